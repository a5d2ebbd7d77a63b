"""PAC-Net keeps what it learned of its source bit for bit, and pays for having learned it."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from orchestrator.config import SweepConfig, validate
from orchestrator.doctor import Examination
from orchestrator.inputs import SweepInputs
from search_spaces.recipe import Optimizer, Recipe, Schedule
from tests.trainables.contexts import make_context
from tests.trainables.methods.example_runs import RunOf
from tests.trainables.methods.examples.pac_net import EXAMPLE
from tests.trainables.methods.method_examples import pretrained
from tests.trainables.recipes import LEVELS, SMALL, run
from trainables.backbones import build as backbones
from trainables.backbones.layers import backbone_weights
from trainables.costs.flops import StepCost, count_flops
from trainables.errors import InfeasibleError, InputError
from trainables.images.store import ImageStore
from trainables.measurement import Outcome
from trainables.mechanisms.anchors import anchor_tensors
from trainables.mechanisms.sparsity import SparsityScope, keep_largest
from trainables.method import MethodContext, SourceTask
from trainables.methods import pac_net
from trainables.methods.pac_net import Calibration

SOURCE_CLASSES = 5


def backbone(classes: int = 7) -> nn.Module:
    model = backbones.build(SMALL, num_classes=classes)
    backbones.load_into(model, pretrained(), source=SMALL)
    return model


def kept_masks(sparsity: float = 0.8) -> dict[str, Tensor]:
    scores = {name: weight.detach().abs() for name, weight in backbone_weights(backbone()).items()}
    return keep_largest(scores, sparsity=sparsity, scope=SparsityScope.GLOBAL)


def at(model: nn.Module, masks: Mapping[str, Tensor]) -> Tensor:
    weights = backbone_weights(model)
    return torch.cat([weights[name].detach()[mask] for name, mask in masks.items()])


def cost_of(classes: int) -> StepCost:
    return count_flops(backbones.build(SMALL, num_classes=classes), resolution=16)


def noise_context(model: nn.Module, recipe: Recipe, *, scale: float = 1.0) -> MethodContext:
    """A context whose source task is noise in `SOURCE_CLASSES` classes."""

    def batch(step: int, size: int) -> tuple[Tensor, Tensor]:
        draws = torch.Generator().manual_seed(step)
        images = scale * torch.randn((size, 3, 16, 16), generator=draws)
        return images, torch.arange(size) % SOURCE_CLASSES

    return make_context(
        model,
        recipe.settings,
        recipe=recipe,
        source_task=lambda: SourceTask(
            model=backbone(SOURCE_CLASSES), batch=batch, train_images=100
        ),
    )


# prune and allocate


def test_the_largest_weights_are_retrained_and_the_others_zero(
    digits: ImageStore, source: Callable[[], ImageStore]
) -> None:
    trial = EXAMPLE.trial(digits, source_task=source)
    kept = kept_masks()
    assert not at(trial.model, {name: ~mask for name, mask in kept.items()}).any()
    before, after = at(backbone(), kept), at(trial.model, kept)
    assert (before != after).float().mean() > 0.99
    assert torch.nn.functional.cosine_similarity(before, after, dim=0) > 0.9


def test_all_but_the_classifier_comes_from_the_source_task() -> None:
    model, recipe = backbone(4), EXAMPLE.recipe()
    head = {name: value.clone() for name, value in model.state_dict().items() if "fc." in name}
    pac_net.prepare(model, noise_context(model, recipe))
    now = model.state_dict()
    for name, value in pretrained().items():
        if name.startswith("fc."):
            assert torch.equal(now[name], head[name])
        else:
            assert not torch.equal(now[name], value), name


@pytest.mark.parametrize("optimizer", Optimizer)
def test_the_retraining_is_counted_to_the_flop(
    digits: ImageStore, source: Callable[[], ImageStore], optimizer: Optimizer
) -> None:
    example = EXAMPLE.but(optimizer=optimizer, schedule=Schedule.CONSTANT, levels=(1.6e9, 4e9))
    trial = example.trial(digits, source_task=source)
    free = optimizer is Optimizer.SCHEDULE_FREE_ADAMW
    settling = {
        classes: 96 * cost_of(classes).forward_flops if free else 0.0  # all its images
        for classes in (SOURCE_CLASSES, 4)
    }
    step = 8 * cost_of(SOURCE_CLASSES).train_flops
    steps = int((0.25 * 4e9 - settling[SOURCE_CLASSES]) / step)
    assert steps > 1
    retraining = steps * step + settling[SOURCE_CLASSES]
    assert trial.unbilled_flops == retraining
    first = run(trial)[0]
    calibration = first.images_seen * cost_of(4).train_flops + settling[4]
    assert first.train_flops == retraining + calibration


def test_a_share_that_pays_no_step_is_infeasible(
    digits: ImageStore, source: Callable[[], ImageStore]
) -> None:
    example = EXAMPLE.but(settings={"allocate_share": 0.01})
    with pytest.raises(InfeasibleError, match="pays 7.96e.06 FLOPs, and one step") as caught:
        example.trial(digits, source_task=source)
    assert caught.value.spent_flops == 0
    needs = caught.value.needs_flops
    assert needs is not None
    enough = needs * (1 + 1e-9)
    assert example.but(levels=(enough,)).trial(digits, source_task=source).stops
    with pytest.raises(InfeasibleError, match="FLOPs, and one step"):
        example.but(levels=(needs * (1 - 1e-3),)).trial(digits, source_task=source)


def test_a_loss_that_is_not_finite_is_infeasible_and_paid_for() -> None:
    model, recipe = backbone(4), EXAMPLE.but(learning_rate=1e30).recipe()
    with pytest.raises(InfeasibleError, match="loss on the source task is not finite") as caught:
        pac_net.prepare(model, noise_context(model, recipe, scale=1e30))
    assert caught.value.spent_flops > 0
    assert caught.value.spent_flops % (8 * cost_of(SOURCE_CLASSES).train_flops) == 0


# calibrate


@pytest.mark.parametrize("optimizer", Optimizer)
def test_kept_weights_are_bit_identical_after_calibration(
    digits: ImageStore, source: Callable[[], ImageStore], optimizer: Optimizer
) -> None:
    example = EXAMPLE.but(
        optimizer=optimizer,
        schedule=Schedule.CONSTANT,
        weight_decay=0.1,
        clip_norm=1.0,
        levels=(2e9, 4e9, 8e9) if optimizer is Optimizer.SCHEDULE_FREE_ADAMW else LEVELS,
    )
    trial = example.trial(digits, source_task=source)
    kept = kept_masks()
    pruned = {name: ~mask for name, mask in kept.items()}
    anchors = at(trial.model, kept)
    while trial.outcome is Outcome.RUNNING:
        trial.advance()
        assert torch.equal(at(trial.measured_model, kept), anchors)
        assert torch.equal(at(trial.model, kept), anchors)
    # at this size the last stage's features are one pixel, which meets one tap in nine
    assert (at(trial.measured_model, pruned) != 0).float().mean() > 0.25


def test_the_penalty_is_lambda_times_the_squares_of_what_was_pruned() -> None:
    model, pruned = backbone(), {name: ~mask for name, mask in kept_masks().items()}

    def penalty(factor: float) -> Tensor | None:
        calibration = Calibration(penalty=factor)
        calibration.attach(model)
        calibration.restore(anchor_tensors(pruned, model.state_dict()), {})
        return calibration.penalty(step=0, total_steps=1)

    loss = penalty(0.5)
    assert loss is not None
    torch.testing.assert_close(loss, 0.5 * at(model, pruned).square().sum())
    loss.backward()
    for name, weight in backbone_weights(model).items():
        assert weight.grad is not None
        torch.testing.assert_close(weight.grad, weight.detach() * pruned[name])
    assert penalty(0.0) is None


def test_the_penalty_keeps_what_was_pruned_small(
    digits: ImageStore, source: Callable[[], ImageStore]
) -> None:
    pruned = {name: ~mask for name, mask in kept_masks().items()}

    def size(penalty: float) -> float:
        trial = EXAMPLE.but(settings={"penalty": penalty}).trial(digits, source_task=source)
        run(trial)
        return float(at(trial.measured_model, pruned).norm())

    assert 0 < size(5.0) < 0.9 * size(0.0)


def test_updated_params_are_all_but_the_kept_ones(run_of: RunOf) -> None:
    measured = run_of("pac_net", "sgd").curve[-1]
    kept = sum(int(mask.sum()) for mask in kept_masks().values())
    assert measured.updated_params == measured.params - kept


def test_the_exported_model_has_the_kept_weights_of_before_the_first_step(
    digits: ImageStore, source: Callable[[], ImageStore], run_of: RunOf
) -> None:
    whole = run_of("pac_net", "sgd")
    trial = whole.example.trial(digits, source_task=source)
    kept = kept_masks()
    assert torch.equal(at(whole.exported.module, kept), at(trial.model, kept))


# what is refused


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"sparsity": 1.0}, "sparsity=1.0 must be less than 1"),
        ({"sparsity": 0.9999999}, "each keeps at least one"),
        ({"penalty": -1.0}, "penalty=-1.0 must be greater than or equal to 0"),
        ({"allocate_share": 0.0}, "allocate_share=0.0 must be greater than 0"),
        ({"allocate_share": 1.5}, "allocate_share=1.5 must be less than 1"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, float], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        EXAMPLE.but(settings=settings).check()


def test_a_config_without_a_source_task_is_refused() -> None:
    with pytest.raises(InputError, match="config names none; add a source_task section"):
        replace(EXAMPLE, source_task=False).check()


def space_check(tmp_path: Path, *, space: Mapping[str, Any], **sections: Any) -> str:
    """Returns what the check of a config's search space finds before a sweep begins."""
    config = {
        "name": "tiny",
        "task": {"source": "digits", "resolution": 16, "max_train_images": 100},
        "backbone": {"model": "test_resnet"},
        "budget": {"trials": 2},
        "rungs": {"min_flops": 2e9, "max_flops": 1e10},
        "storage": {"folder": str(tmp_path / "sweep"), "cache": str(tmp_path / "cache")},
        "space": space,
        **sections,
    }
    examination = Examination(SweepInputs(validate(SweepConfig, config, what="the test")))
    (found,) = (one for one in examination.checks if one.title == "space")
    return found.run()


def test_a_config_without_a_source_task_is_refused_when_it_is_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="config names none; add a source_task section"):
        space_check(tmp_path, space={"function": "pac_net"})
    joint = {"function": "joint", "ranges": {"method": ["pac_net", "full"]}}
    with pytest.raises(ValueError, match="pac_net needs a source_task in the config"):
        space_check(tmp_path, space=joint)
    section = {"source": "digits", "resolution": 16}
    found = space_check(tmp_path, space={"function": "pac_net"}, source_task=section)
    assert found.startswith("pac_net; ")
    assert "parameters: pac_net_sparsity (sparsity), pac_net_penalty (penalty), " in found
