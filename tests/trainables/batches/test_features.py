"""Head-only recipes: one extraction for all, each charged as if alone, and the model as ever."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from search_spaces.recipe import Recipe
from tests.trainables.recipes import DIGITS, SMALL, make_recipe, make_trial, run, rung_uri
from trainables.backbones import build as backbones
from trainables.backbones.source import BackboneSource
from trainables.backbones.state import Weights
from trainables.batches.features import MAX_PASSES, FeatureBatches
from trainables.checkpoints import load_checkpoint
from trainables.errors import InfeasibleError
from trainables.export import export_model, load_exported
from trainables.finetune import Finetuning
from trainables.images.store import ImageStore, Split, open_store
from trainables.measurement import Measurement, Outcome

LEVELS = (2.37e8, 2.4e8, 2.45e8, 3e8)
"""Extraction of all 96 images takes 2.35e8, a hundred passes of the head 1.5e7."""
CONVOLUTION = BackboneSource(model="dla46_c")
NO_NORMS = BackboneSource(model="test_nfnet")


@pytest.fixture
def store(digits: ImageStore, tmp_path: Path) -> ImageStore:
    """The digits, with a feature store of the test's own."""
    return replace(digits, folder=tmp_path / "cache" / digits.folder.name)


def head_only(**changes: Any) -> Recipe:
    return make_recipe(**{"trainable_depth": 0.0, "target_flops": LEVELS[-1]} | changes)


def make(store: ImageStore, recipe: Recipe, **changes: Any) -> Finetuning:
    return make_trial(store, recipe, **{"levels": LEVELS} | changes)


@pytest.fixture(scope="module")
def pretrained() -> Weights:
    """Weights that are the same for every seed, as those of a file are."""
    torch.manual_seed(0)
    return backbones.build(SMALL, num_classes=4).state_dict()


def levels_above_extraction(store: ImageStore, recipe: Recipe, **changes: Any) -> tuple[float, ...]:
    """Levels a tenth, a third and two thirds of the way through the steps, and one to aim at.

    The last pays for all images, and is never reached, as the features are passed enough by then.
    """
    aimless = replace(recipe, target_flops=1e15)
    batches = (trial := make(store, aimless, levels=(1e15,), **changes)).batches
    assert isinstance(batches, FeatureBatches)
    assert batches.max_steps is not None
    begun = trial.prices.preparation_flops + batches.setup_flops
    passes = batches.max_steps * batches.step_flops
    return (*(begun + share * passes for share in (0.1, 1 / 3, 2 / 3)), 1.2 * begun + passes)


def bill(curve: list[Measurement]) -> float:
    return sum(measured.executed_flops for measured in curve)


def unbilled(measurement: Measurement) -> Measurement:
    return replace(measurement, train_seconds=0.0, executed_flops=0.0)


def test_the_second_trial_extracts_nothing_and_is_charged_all_the_same(
    store: ImageStore, pretrained: Weights
) -> None:
    first = run(make(store, head_only(), weights=pretrained, seed=1))
    extraction = first[0].train_flops - first[0].images_seen * head_flops(first)
    assert extraction == pytest.approx(96 * first[0].inference_flops, rel=1e-3)
    second = run(make(store, head_only(learning_rate=0.1), weights=pretrained, seed=2))
    assert [m.train_flops for m in second] == [m.train_flops for m in first]
    assert bill(first) == pytest.approx(first[-1].train_flops)
    assert bill(second) == pytest.approx(second[-1].train_flops - extraction)
    assert [m.val_error for m in first] != [m.val_error for m in second]


def head_flops(curve: list[Measurement]) -> float:
    """Training FLOPs of an image in the head."""
    seen = curve[-1].images_seen - curve[0].images_seen
    return (curve[-1].train_flops - curve[0].train_flops) / seen


def test_a_trial_is_the_same_whoever_extracted(
    store: ImageStore, pretrained: Weights, tmp_path: Path
) -> None:
    def made(store: ImageStore, recipe: Recipe, **changes: Any) -> Finetuning:
        return make(store, recipe, weights=pretrained, **changes)

    alone = run(made(store, head_only(), seed=1), tmp_path / "alone")
    other = replace(store, folder=tmp_path / "other" / store.folder.name)
    few = run(made(other, head_only(target_flops=1e8, batch_size=4), levels=(1e8,), seed=9))
    assert few[-1].images_seen == 4 * 25 * 32, "a hundred passes over the 32 it can afford"
    shared = run(made(other, head_only(), seed=1), tmp_path / "shared")
    assert [unbilled(m) for m in shared] == [unbilled(m) for m in alone]
    extracted_before = 32 / 96 * (alone[0].train_flops - alone[0].images_seen * head_flops(alone))
    assert bill(alone) - bill(shared) == pytest.approx(extracted_before)
    for name in ("model", "measured", "optimizer"):
        file = f"rung-{alone[-1].rung:03d}/{name}.safetensors"
        assert (tmp_path / "alone" / file).read_bytes() == (tmp_path / "shared" / file).read_bytes()


@pytest.mark.parametrize("ratio", [0.0, 0.5])
def test_it_is_the_plain_path_within_rounding(store: ImageStore, ratio: float) -> None:
    levels = (8e8,)
    plain = make(
        store,
        # an augmentation so small that no pixel moves, but which takes the images
        head_only(pruning_ratio=ratio, augmentation=1e-12, target_flops=8e8),
        levels=levels,
    )
    (images,) = run(plain)
    trial = make(store, head_only(pruning_ratio=ratio, target_flops=8e8), levels=levels)
    stop = replace(trial.stops[-1], steps=plain.stops[-1].steps)
    trial.stops = (stop,)  # as many steps, so that the schedule is the same
    (features,) = run(trial)
    assert features.val_loss == pytest.approx(images.val_loss, rel=1e-4)
    assert features.val_error == pytest.approx(images.val_error, abs=1.5 / 87)
    one, other = (t.model.get_parameter("fc.weight") for t in (trial, plain))
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("source", "changes"),
    [
        (SMALL, {"pruning_ratio": 0.5, "label_smoothing": 0.1}),
        (NO_NORMS, {"resolution": 32}),
        (CONVOLUTION, {"resolution": 32}),
    ],
    ids=["pruned", "no norms", "convolution as head"],
)
def test_a_trial_resumed_from_any_rung_ends_as_if_it_had_never_stopped(
    store: ImageStore, tmp_path: Path, source: BackboneSource, changes: dict[str, Any]
) -> None:
    recipe = head_only(**changes | {"batch_size": 32})
    levels = levels_above_extraction(store, recipe, source=source)
    recipe = replace(recipe, target_flops=levels[-1])
    made = make(store, recipe, source=source, levels=levels)
    whole = run(made, tmp_path / "whole")
    assert [measured.rung for measured in whole] == [0, 1, 2, 3]
    extraction = made.batches.setup_flops
    for index, measured in enumerate(whole):
        uri = rung_uri(tmp_path / "whole", measured.rung)
        elsewhere = replace(store, folder=tmp_path / f"node {index}" / store.folder.name)
        for resumed_on, again_extracted in ((store, 0.0), (elsewhere, extraction)):
            again = make(resumed_on, recipe, source=source, levels=levels, resume_from=uri)
            assert again.unbilled_flops == 0
            rest = run(again, tmp_path / "rest")
            assert [unbilled(m) for m in rest] == [unbilled(m) for m in whole[index + 1 :]]
            if not rest:
                continue
            steps = whole[-1].train_flops - measured.train_flops
            assert bill(rest) == pytest.approx(steps + again_extracted)
            for name in ("model", "measured", "optimizer"):
                file = f"rung-003/{name}.safetensors"
                resumed = (tmp_path / "rest" / file).read_bytes()
                assert resumed == (tmp_path / "whole" / file).read_bytes()


def test_one_image_a_batch_needs_no_variance_where_the_norms_are_frozen(store: ImageStore) -> None:
    (measured,) = run(make(store, head_only(batch_size=1, target_flops=3e7), levels=(3e7,)))
    assert measured.images_seen == 8 * MAX_PASSES


def folders(store: ImageStore) -> set[str]:
    return {path.name for path in (store.folder.parent / "features").iterdir()}


def test_what_makes_other_features_has_a_place_of_its_own(
    store: ImageStore, image_cache: Path
) -> None:
    fewer = replace(DIGITS, classes=("4", "5", "6", "7"))
    other_task = open_store(fewer, resolution=16, cache_dir=image_cache)
    moved = replace(other_task, folder=store.folder.parent / other_task.folder.name)
    assert moved.folder.name != store.folder.name
    trials = [
        (store, head_only(batch_size=96), {}),
        (store, head_only(batch_size=96, pruning_ratio=0.5), {}),
        (store, head_only(batch_size=96, pruning_ratio=0.5, width_rule="all"), {}),
        (store, head_only(batch_size=96, resolution=12), {}),
        (moved, head_only(batch_size=96), {}),
        (store, head_only(batch_size=96), {"source": replace(SMALL, mean=(0.1, 0.2, 0.3))}),
    ]
    for number, (images, recipe, changes) in enumerate(trials, start=1):
        curve = run(make(images, recipe, **changes))
        assert len(folders(store)) == number
        assert bill(curve) == pytest.approx(curve[-1].train_flops)


def test_equal_prunings_share_whatever_the_seed_of_their_trials(
    store: ImageStore, pretrained: Weights
) -> None:
    for seed in (1, 2):
        run(make(store, head_only(batch_size=96, pruning_ratio=0.5), weights=pretrained, seed=seed))
    assert len(folders(store)) == 1


def test_little_compute_extracts_few_images_and_leaves_some_for_steps(store: ImageStore) -> None:
    curve = run(make(store, head_only(target_flops=5e7), levels=(5e7,)))
    extraction = 16 * curve[-1].inference_flops  # 18 cost 90 % of it, and chunks end at 16
    assert curve[-1].train_flops == pytest.approx(extraction, rel=0.1)
    assert curve[-1].train_flops > extraction
    assert curve[-1].images_seen == 16 * MAX_PASSES


@pytest.mark.parametrize(("flops", "ratio"), [(1.9e7, 0.0), (1.5e8, 0.5)])
def test_too_little_compute_is_infeasible_and_nothing_is_extracted(
    store: ImageStore, flops: float, ratio: float
) -> None:
    recipe = head_only(target_flops=flops, pruning_ratio=ratio)
    if ratio:
        spent = make(store, replace(recipe, target_flops=1e9), levels=(1e9,)).unbilled_flops
        flops = spent * 1.05
        recipe = replace(recipe, target_flops=flops)
    with pytest.raises(
        InfeasibleError, match="the features of 8 images .* too much for the"
    ) as error:
        make(store, recipe, levels=(flops,))
    assert error.value.spent_flops == (spent if ratio else 0)
    assert not store.folder.parent.exists()
    needs = error.value.needs_flops
    assert needs is not None
    assert needs > flops
    enough, less = needs * (1 + 1e-9), needs * (1 - 1e-3)
    assert make(store, replace(recipe, target_flops=enough), levels=(enough,)).stops
    with pytest.raises(InfeasibleError, match="the features of 8 images"):
        make(store, replace(recipe, target_flops=less), levels=(less,))


def test_no_rung_under_the_target_is_told_as_ever(store: ImageStore) -> None:
    with pytest.raises(InfeasibleError, match="no rung lies at or under"):
        make(store, head_only(target_flops=1e8))


def test_it_ends_after_a_hundred_passes_however_much_it_could_afford(store: ImageStore) -> None:
    trial = make(store, head_only(target_flops=1e13, batch_size=7), levels=(3e8, 1e12, 1e13))
    curve = run(trial)
    assert trial.outcome is Outcome.COMPLETE
    assert [m.rung for m in curve] == [0], "the rungs above would be the same point again"
    assert curve[-1].images_seen == 7 * -(-MAX_PASSES * 96 // 7)
    assert curve[-1].train_flops < 3e8


def test_validation_features_are_extracted_once_and_counted_once(store: ImageStore) -> None:
    curve = run(make(store, head_only()))
    image = curve[0].inference_flops
    looks = [m.eval_flops for m in curve]
    assert looks[0] == pytest.approx(87 * image)
    assert looks[1] - looks[0] == pytest.approx(looks[2] - looks[1])
    assert 0 < looks[1] - looks[0] < 0.01 * 87 * image


def test_what_is_saved_and_exported_is_the_whole_model(store: ImageStore, tmp_path: Path) -> None:
    curve = run(make(store, head_only(pruning_ratio=0.5)), tmp_path / "trial")
    uri = rung_uri(tmp_path / "trial", curve[-1].rung)
    tensors, _ = load_checkpoint(uri, ("model", "measured", "optimizer"))
    assert tensors["model"].keys() == tensors["measured"].keys() > {"conv1.0.weight", "fc.weight"}
    assert set(tensors["optimizer"]) == {"momentum_buffer:fc.weight", "momentum_buffer:fc.bias"}
    export_model(uri, tmp_path / "exported", backbone=SMALL, class_names=store.class_names, card="")
    model = load_exported(tmp_path / "exported")
    validation = store.splits["validation"]
    with torch.no_grad():
        wrong = model.module(model.inputs(validation.images)).argmax(1) != validation.labels
    assert wrong.float().mean().item() == pytest.approx(curve[-1].val_error)


def test_a_split_smaller_than_a_chunk(store: ImageStore) -> None:
    train = store.splits["train"]
    few = Split(images=train.images[:3], labels=train.labels[:3])
    tiny = replace(store, splits={**store.splits, "train": few})
    (measured,) = run(make(tiny, head_only(target_flops=1e8), levels=(1e8,)))
    assert measured.images_seen == 8 * -(-3 * MAX_PASSES // 8)


def test_images_that_do_not_fit_into_memory_together_are_extracted_in_halves(
    store: ImageStore, pretrained: Weights
) -> None:
    rich = run(make(store, head_only(), weights=pretrained))
    elsewhere = replace(store, folder=store.folder.parents[1] / "other" / store.folder.name)
    trial = make(elsewhere, head_only(), weights=pretrained)
    sizes: list[int] = []

    def run_out(_model: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        sizes.append(len(arguments[0]))
        if sizes[-1] > 5:
            raise torch.OutOfMemoryError(f"{sizes[-1]} images are too many.")

    trial.model.register_forward_pre_hook(run_out)
    poor = run(trial)
    assert sizes[:6] == [8, 4, 4, 8, 4, 4]
    assert bill(poor) == bill(rich)
    assert [m.val_loss for m in poor] == pytest.approx([m.val_loss for m in rich], rel=1e-4)
