"""PAC-Net keeps what it learned of its source bit for bit, and pays for having learned it."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from optuna.samplers import RandomSampler
from torch import Tensor, nn

from orchestrator.config import SweepConfig, validate
from orchestrator.doctor import Examination
from orchestrator.inputs import SweepInputs
from search_spaces.draws import check_space, draw
from search_spaces.methods.pac_net import pac_net as space
from search_spaces.problem import Problem
from search_spaces.recipe import Optimizer, Recipe, Schedule
from search_spaces.space import missing_condition
from tests.trainables.contexts import make_context
from tests.trainables.methods.method_contract import (
    assert_exports,
    assert_plain_finetuning,
    assert_resumes,
    check,
    pretrained,
)
from tests.trainables.recipes import LEVELS, SMALL, make_recipe, make_trial, run
from trainables.backbones import build as backbones
from trainables.backbones.layers import backbone_weights
from trainables.backbones.source import BackboneSource
from trainables.costs.flops import StepCost, count_flops
from trainables.errors import InfeasibleError, InputError
from trainables.finetune import Finetuning
from trainables.images.store import ImageStore, open_store
from trainables.images.tasks import TaskSource
from trainables.measurement import Outcome
from trainables.mechanisms.source_task import SourceTask
from trainables.mechanisms.sparsity import Scope, keep_largest
from trainables.method import Conditions, MethodContext, load_method
from trainables.methods import pac_net
from trainables.methods.pac_net import Calibration

SOURCE_CLASSES = 5
OTHER_DIGITS = TaskSource(source="digits", classes=("5", "6", "7", "8", "9"), max_train_images=96)
PROBLEM = Problem(rungs=LEVELS, native_resolution=16, train_images=96, classes=4, source_task=True)


@pytest.fixture(scope="module")
def source(image_cache: Path) -> Callable[[], ImageStore]:
    """Opens the task of five other digits."""
    store = open_store(OTHER_DIGITS, resolution=16, cache_dir=image_cache)
    return lambda: store


def recipe_of(
    *, sparsity: float = 0.8, penalty: float = 0.01, allocate_share: float = 0.25, **changes: Any
) -> Recipe:
    settings = {"sparsity": sparsity, "penalty": penalty, "allocate_share": allocate_share}
    return make_recipe(method="pac_net", settings=settings, **changes)


def backbone(classes: int = 7) -> nn.Module:
    model = backbones.build(SMALL, num_classes=classes)
    backbones.load_into(model, pretrained(), source=SMALL)
    return model


def kept_masks(sparsity: float = 0.8) -> dict[str, Tensor]:
    scores = {name: weight.detach().abs() for name, weight in backbone_weights(backbone()).items()}
    return keep_largest(scores, sparsity=sparsity, scope=Scope.GLOBAL)


def at(model: nn.Module, masks: Mapping[str, Tensor]) -> Tensor:
    weights = backbone_weights(model)
    return torch.cat([weights[name].detach()[mask] for name, mask in masks.items()])


def cost_of(classes: int) -> StepCost:
    return count_flops(backbones.build(SMALL, num_classes=classes), resolution=16)


def noise_context(model: nn.Module, recipe: Recipe, *, scale: float = 1.0) -> MethodContext:
    """Whose source task is noise of one's own number of values."""

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


def empty(num_classes: int) -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 4))


# prune and allocate


def test_the_largest_weights_are_retrained_and_the_others_zero(
    digits: ImageStore, source: Callable[[], ImageStore]
) -> None:
    trial = make_trial(digits, recipe_of(), weights=pretrained(), source_task=source)
    kept = kept_masks()
    assert not at(trial.model, {name: ~mask for name, mask in kept.items()}).any()
    before, after = at(backbone(), kept), at(trial.model, kept)
    assert (before != after).float().mean() > 0.99
    assert torch.nn.functional.cosine_similarity(before, after, dim=0) > 0.9


def test_all_but_the_classifier_comes_from_the_source_task() -> None:
    model, recipe = backbone(4), recipe_of()
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
    recipe = recipe_of(optimizer=optimizer, schedule=Schedule.CONSTANT, target_flops=4e9)
    levels = (1.6e9, 4e9)
    trial = make_trial(digits, recipe, weights=pretrained(), source_task=source, levels=levels)
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
    recipe = recipe_of(allocate_share=0.01)
    with pytest.raises(InfeasibleError, match="pays 7.96e.06 FLOPs, and one step") as caught:
        make_trial(digits, recipe, weights=pretrained(), source_task=source)
    assert caught.value.spent_flops == 0


def test_a_loss_that_is_not_finite_is_infeasible_and_paid_for() -> None:
    model, recipe = backbone(4), recipe_of(learning_rate=1e30)
    with pytest.raises(InfeasibleError, match="loss on the source task is not finite") as caught:
        pac_net.prepare(model, noise_context(model, recipe, scale=1e30))
    assert caught.value.spent_flops > 0
    assert caught.value.spent_flops % (8 * cost_of(SOURCE_CLASSES).train_flops) == 0


# calibrate


@pytest.mark.parametrize("optimizer", Optimizer)
def test_kept_weights_are_bit_identical_after_calibration(
    digits: ImageStore, source: Callable[[], ImageStore], optimizer: Optimizer
) -> None:
    schedule = Schedule.CONSTANT
    recipe = recipe_of(optimizer=optimizer, schedule=schedule, weight_decay=0.1, clip_norm=1.0)
    levels = (2e9, 4e9, 8e9) if optimizer is Optimizer.SCHEDULE_FREE_ADAMW else LEVELS
    recipe = make_recipe(**{**vars(recipe), "target_flops": levels[-1]})
    trial = make_trial(digits, recipe, weights=pretrained(), source_task=source, levels=levels)
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
    calibration = Calibration(pruned, penalty=0.5)
    calibration.attach(model)
    loss = calibration.penalty(step=0, total_steps=1)
    assert loss is not None
    torch.testing.assert_close(loss, 0.5 * at(model, pruned).square().sum())
    loss.backward()
    for name, weight in backbone_weights(model).items():
        assert weight.grad is not None
        torch.testing.assert_close(weight.grad, weight.detach() * pruned[name])
    without = Calibration(pruned, penalty=0.0)
    without.attach(model)
    assert without.penalty(step=0, total_steps=1) is None


def test_the_penalty_keeps_what_was_pruned_small(
    digits: ImageStore, source: Callable[[], ImageStore]
) -> None:
    pruned = {name: ~mask for name, mask in kept_masks().items()}

    def size(penalty: float) -> float:
        recipe = recipe_of(penalty=penalty)
        trial = make_trial(digits, recipe, weights=pretrained(), source_task=source)
        run(trial)
        return float(at(trial.measured_model, pruned).norm())

    assert 0 < size(5.0) < 0.9 * size(0.0)


def test_updated_params_are_all_but_the_kept_ones(
    digits: ImageStore, source: Callable[[], ImageStore]
) -> None:
    trial = make_trial(digits, recipe_of(), weights=pretrained(), source_task=source)
    measured = run(trial)[-1]
    kept = sum(int(mask.sum()) for mask in kept_masks().values())
    assert measured.updated_params == measured.params - kept


# the contract


@pytest.mark.parametrize("optimizer", [Optimizer.SGD, Optimizer.ADAMW])
def test_a_resumed_run_is_the_run_itself_and_does_not_retrain(
    digits: ImageStore,
    source: Callable[[], ImageStore],
    tmp_path: Path,
    optimizer: Optimizer,
) -> None:
    opened: list[ImageStore] = []

    def counted() -> ImageStore:
        opened.append(source())
        return opened[-1]

    recipe = recipe_of(optimizer=optimizer)
    assert_resumes(digits, recipe, tmp_path, weights=pretrained(), source_task=counted)
    assert len(opened) == 1


def test_sparsity_0_is_plain_finetuning(digits: ImageStore) -> None:
    assert_plain_finetuning(digits, recipe_of(sparsity=0.0), weights=pretrained())


def test_it_exports_the_backbones_structure(
    digits: ImageStore, source: Callable[[], ImageStore], tmp_path: Path
) -> None:
    model = assert_exports(digits, recipe_of(), tmp_path, weights=pretrained(), source_task=source)
    trial = make_trial(digits, recipe_of(), weights=pretrained(), source_task=source)
    assert torch.equal(at(model, kept_masks()), at(trial.model, kept_masks()))


# what is refused


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"sparsity": 1.0}, "sparsity=1.0 must be less than 1"),
        ({"sparsity": 0.9999999}, "each keeps at least one"),
        ({"sparsity": 0.5, "penalty": -1.0}, "penalty=-1.0 must be greater than or equal to 0"),
        ({"sparsity": 0.5, "allocate_share": 0.0}, "allocate_share=0.0 must be greater than 0"),
        ({"sparsity": 0.5, "allocate_share": 1.5}, "allocate_share=1.5 must be less than 1"),
        ({"penalty": 0.1}, "sparsity is missing"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, float], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        check(make_recipe(method="pac_net", settings=settings), source_task=True)


def test_other_bad_combinations_are_refused() -> None:
    with pytest.raises(InputError, match="trainable_depth=0.5 must be 1"):
        check(recipe_of(trainable_depth=0.5), source_task=True)
    bare = BackboneSource(model=f"{__name__}:empty")
    with pytest.raises(InputError, match="has no convolution or linear layer below its head"):
        check(recipe_of(), source=bare, source_task=True)
    with pytest.raises(InputError, match="config names none; add a source_task section"):
        check(recipe_of(), source_task=False)


def space_check(tmp_path: Path, *, space: Mapping[str, Any], **sections: Any) -> str:
    """What is found of a config's search space before a sweep begins."""
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


def test_every_recipe_of_the_space_passes_and_one_trains(
    digits: ImageStore, source: Callable[[], ImageStore]
) -> None:
    assert missing_condition("pac_net", PROBLEM) is None
    model = backbone()
    for recipe in check_space(space, {}, PROBLEM).recipes:
        load_method(recipe.method).check(recipe, Conditions(model=model, source_task=True))
    levels = (4e9, 8e9)
    ranges = {"target_rung": 1, "batch_size": 16, "resolution": 16}
    problem = Problem(
        rungs=levels, native_resolution=16, train_images=96, classes=4, source_task=True
    )
    drawn = draw(space, ranges, problem, RandomSampler(seed=1))
    trial: Finetuning = make_trial(
        digits, drawn.recipe, weights=pretrained(), source_task=source, levels=levels
    )
    assert run(trial)[-1].images_seen >= 2 * 16
