"""The Tune trainable, driven as Tune drives it and without a cluster."""

import gc
import json
import shutil
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ray.tune import Trainable
from safetensors.torch import save_file

from search_spaces.recipe import Recipe, Schedule
from tests.trainables.raised_trials import unpaid
from tests.trainables.recipes import DIGITS, LEVELS, SMALL, make_recipe
from trainables import trial
from trainables.backbones.build import build, load_weights
from trainables.backbones.digest import weights_digest
from trainables.backbones.source import BackboneSource
from trainables.checkpoints import checkpoint_folder, complete_rungs
from trainables.errors import InputError
from trainables.export import error_on_test, from_checkpoint
from trainables.finetune import Finetuning
from trainables.images.store import open_store
from trainables.images.tasks import TaskSource
from trainables.measurement import Measurement, Outcome, Report
from trainables.trial import TransferTrial, measure_test_error
from trainables.trial_setting import TrialSetting

RECIPE = make_recipe(pruning_ratio=0.5, augmentation=0.4, target_flops=LEVELS[2])


@pytest.fixture
def setting(tmp_path: Path, image_cache: Path) -> TrialSetting:
    return TrialSetting(
        backbone=SMALL,
        task=DIGITS,
        store_resolution=16,
        source_task=None,
        source_resolution=16,
        mirror=False,
        levels=LEVELS,
        cache=str(image_cache),
        trials_uri=(tmp_path / "trials").as_uri(),
        threads=1,
    )


def config(
    setting: TrialSetting,
    recipe: Recipe = RECIPE,
    trial_id: str = "t0",
    continues: str | None = None,
) -> dict[str, Any]:
    return {
        "trial_id": trial_id,
        "continues": continues,
        "recipe": recipe.to_dict(),
        "seed": 5,
        "setting": setting.to_dict(),
    }


@pytest.fixture(scope="module")
def actor(tmp_path_factory: pytest.TempPathFactory, image_cache: Path) -> Iterator[TransferTrial]:
    """One actor for all tests, as a sweep has: each test resets it to a trial of its own."""
    folder = tmp_path_factory.mktemp("first")
    first = TrialSetting(
        backbone=SMALL,
        task=DIGITS,
        store_resolution=16,
        source_task=None,
        source_resolution=16,
        mirror=False,
        levels=LEVELS,
        cache=str(image_cache),
        trials_uri=folder.as_uri(),
        threads=1,
    )
    made = TransferTrial(config(first))
    yield made
    stop(made)


def stop(actor: Trainable) -> None:
    """Ends the actor as Tune does, which knows it as a trainable like any other."""
    actor.stop()


def step(actor: Trainable) -> Report:
    return Report.from_json(actor.train()["report"])


def reset(actor: Trainable, values: dict[str, Any]) -> None:
    assert actor.reset(values)


def run(actor: Trainable) -> list[Report]:
    """Steps until the trial says it is over."""
    reports = [step(actor)]
    while reports[-1].outcome is Outcome.RUNNING:
        reports.append(step(actor))
    return reports


def timeless(reports: list[Report]) -> list[Measurement]:
    measured = [report.measurement for report in reports]
    return [replace(m, train_seconds=0.0) for m in measured if m is not None]


def test_a_trial_reports_every_rung_and_leaves_its_checkpoints(
    actor: TransferTrial, setting: TrialSetting
) -> None:
    reset(actor, config(setting))
    reports = run(actor)
    rungs = [m.rung for m in timeless(reports)]
    assert len(rungs) >= 2
    assert [r.outcome for r in reports] == [Outcome.RUNNING] * (len(rungs) - 1) + [Outcome.COMPLETE]
    assert complete_rungs(f"{setting.trials_uri}/t0") == rungs
    assert all(r.unmeasured_flops == 0 and r.reason is None for r in reports)
    (set_up_at,) = {r.set_up_at for r in reports}
    assert set_up_at is not None
    assert all(r.reported_at is not None and set_up_at <= r.reported_at for r in reports)


def test_a_checkpoint_lies_there_before_its_rung_is_reported(
    actor: TransferTrial, setting: TrialSetting
) -> None:
    reset(actor, config(setting))
    report = step(actor)
    assert report.measurement is not None
    assert complete_rungs(f"{setting.trials_uri}/t0") == [report.measurement.rung]


def test_a_trial_set_up_again_repeats_its_last_report_and_goes_on(
    actor: TransferTrial, setting: TrialSetting, tmp_path: Path
) -> None:
    reset(actor, config(setting))
    whole = run(actor)
    last = timeless(whole)[-1]
    shutil.rmtree(tmp_path / "trials" / "t0" / f"rung-{last.rung:03d}")  # as if killed before it

    reset(actor, config(setting))
    again = run(actor)
    assert timeless(again) == timeless(whole)[-2:]
    assert again[0].measurement == whole[-2].measurement, "word for word"
    assert [r.outcome for r in again] == [Outcome.RUNNING, Outcome.COMPLETE]


def test_a_trial_that_had_ended_says_so_again(actor: TransferTrial, setting: TrialSetting) -> None:
    reset(actor, config(setting))
    whole = run(actor)
    reset(actor, config(setting))
    (again,) = run(actor)
    assert again.outcome is Outcome.COMPLETE
    assert again.measurement == whole[-1].measurement


def test_a_half_written_checkpoint_is_passed_over(
    actor: TransferTrial, setting: TrialSetting, tmp_path: Path
) -> None:
    reset(actor, config(setting))
    whole = run(actor)
    last = timeless(whole)[-1]
    (tmp_path / "trials" / "t0" / f"rung-{last.rung:03d}" / "checkpoint.json").unlink()
    reset(actor, config(setting))
    assert timeless(run(actor)) == timeless(whole)[-2:]
    assert complete_rungs(f"{setting.trials_uri}/t0")[-1] == last.rung


def test_a_trial_goes_on_from_the_newest_checkpoint_of_the_one_that_it_continues(
    actor: TransferTrial, setting: TrialSetting
) -> None:
    recipe = replace(RECIPE, schedule=Schedule.WARMUP_STABLE_DECAY)
    raised = replace(recipe, target_flops=LEVELS[3])
    reset(actor, config(setting, raised, trial_id="alone"))
    alone = timeless(run(actor))
    reset(actor, config(setting, recipe, trial_id="lower"))
    *_, ended = timeless(run(actor))
    assert 0 < ended.trunk_flops < ended.train_flops

    reset(actor, config(setting, raised, trial_id="raised", continues="lower"))
    first = step(actor)
    reset(actor, config(setting, raised, trial_id="raised", continues="lower"))  # as if killed
    again, *later = run(actor)
    assert again.measurement == first.measurement, "a checkpoint of its own comes first"
    found = timeless([first, *later])
    executed = found[0].train_flops - ended.trunk_flops
    assert [unpaid(m) for m in found] == [unpaid(m) for m in alone[-len(found) :]]
    assert found[0].executed_flops == pytest.approx(executed)
    assert found[0].rung == ended.rung < found[-1].rung


@pytest.mark.parametrize("continues", ["never-was", "unsaved"])
def test_a_trial_whose_forerunner_left_nothing_starts_from_scratch(
    actor: TransferTrial,
    setting: TrialSetting,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    continues: str,
) -> None:
    (tmp_path / "trials" / "unsaved").mkdir(parents=True)
    reset(actor, config(setting, trial_id="alone"))
    alone = timeless([step(actor)])
    reset(actor, config(setting, continues=continues))
    assert timeless([step(actor)]) == alone
    (line,) = [record.getMessage() for record in caplog.records if record.name == trial.__name__]
    assert line == f"The trial starts from scratch: {continues} has no checkpoint left."


def test_a_config_of_an_older_version_continues_nothing(
    actor: TransferTrial, setting: TrialSetting
) -> None:
    older = config(setting)
    del older["continues"]
    reset(actor, older)
    assert step(actor).outcome is Outcome.RUNNING


def test_nothing_of_one_trial_reaches_the_next(actor: TransferTrial, setting: TrialSetting) -> None:
    reset(actor, config(setting))
    alone = timeless(run(actor))
    other = make_recipe(pruning_ratio=0.3, width_rule="all", learning_rate=0.1, batch_size=16)
    infeasible = make_recipe(target_flops=LEVELS[0] / 2)
    diverging = make_recipe(learning_rate=1e6)
    for number, before in enumerate((other, infeasible, diverging)):
        reset(actor, config(setting, before, trial_id=f"before-{number}"))
        step(actor)
    reset(actor, config(setting, trial_id="after"))
    assert timeless(run(actor)) == alone


def test_an_actor_lets_go_of_the_trial_before(actor: TransferTrial, setting: TrialSetting) -> None:
    reset(actor, config(setting))
    step(actor)
    before = weakref.ref(actor._finetuning)
    refused = make_recipe(pruning_ratio=0.5, target_flops=1.0)
    reset(actor, config(setting, refused, trial_id="t1"))
    gc.collect()
    assert before() is None
    assert not any(type(kept) is Finetuning for kept in gc.get_objects())


def test_a_recipe_that_cannot_be_realised_is_reported_and_not_raised(
    actor: TransferTrial, setting: TrialSetting
) -> None:
    dear = replace(setting, levels=(1e6, 1e7))
    reset(actor, config(dear, make_recipe(pruning_ratio=0.5, target_flops=1e7)))
    report = step(actor)
    assert report.outcome is Outcome.INFEASIBLE
    assert report.measurement is None
    assert "preparing costs" in str(report.reason)
    assert report.unmeasured_flops > 1e7, "what preparing it took is the sweep's to pay"
    assert report.needs_flops is not None
    assert report.needs_flops > report.unmeasured_flops
    assert complete_rungs(f"{setting.trials_uri}/t0") == []


def test_a_diverging_trial_tells_what_it_executed(
    actor: TransferTrial, setting: TrialSetting
) -> None:
    reset(actor, config(setting, make_recipe(learning_rate=1e6, target_flops=LEVELS[-1])))
    *_, report = run(actor)
    assert report.outcome is Outcome.DIVERGED
    assert report.measurement is None
    assert report.reason == "the loss is not finite"
    assert 0 < report.unmeasured_flops <= LEVELS[-1]


def test_a_users_mistake_is_raised_with_its_sentence(
    actor: TransferTrial, setting: TrialSetting
) -> None:
    wrong = replace(setting, backbone=BackboneSource(model="test_rsnet"))
    with pytest.raises(InputError, match="neither a timm model"):
        actor.reset_config(config(wrong))
    absent = replace(setting, task=TaskSource(source="/not/on/this/node"))
    with pytest.raises(InputError, match="^task.source='/not/on/this/node' does not exist"):
        actor.reset_config(config(absent))


def test_test_error_is_measured_from_a_checkpoint(
    actor: TransferTrial, setting: TrialSetting, image_cache: Path
) -> None:
    reset(actor, config(setting))
    rung = timeless(run(actor))[-1].rung
    uri = checkpoint_folder(f"{setting.trials_uri}/t0", rung)
    store = open_store(DIGITS, resolution=16, cache_dir=image_cache)
    model = from_checkpoint(uri, backbone=SMALL, class_names=store.class_names)
    error = measure_test_error(setting.to_dict(), uri)
    assert error == error_on_test(model, store)
    assert 0 < error < 1


def test_a_node_with_other_content_is_refused(
    actor: TransferTrial, setting: TrialSetting, tmp_path: Path, image_cache: Path
) -> None:
    save_file(build(SMALL, num_classes=4).state_dict(), tmp_path / "w.safetensors")
    source = replace(SMALL, weights=str(tmp_path / "w.safetensors"))
    known = replace(
        setting,
        backbone=source,
        task_digest=open_store(DIGITS, resolution=16, cache_dir=image_cache).digest,
        weights_digest=weights_digest(load_weights(source)),
    )
    reset(actor, config(known))
    with pytest.raises(InputError, match="task.source='digits' has another content"):
        actor.reset_config(config(replace(known, task_digest="of other images")))
    with pytest.raises(InputError, match=r"backbone.weights='.*' has another content"):
        actor.reset_config(config(replace(known, weights_digest="of other weights")))


def test_a_sweeps_weights_are_those_of_every_trial(
    actor: TransferTrial, setting: TrialSetting, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    pretrained = build(SMALL, num_classes=4)
    with torch.no_grad():
        pretrained.get_parameter("layer1.0.conv1.weight").zero_()
    torch.save(pretrained.state_dict(), tmp_path / "w.pth")
    source = BackboneSource(model="test_resnet", weights=str(tmp_path / "w.pth"))
    reset(actor, config(replace(setting, backbone=source), make_recipe(trainable_depth=0.0)))
    assert actor._finetuning is not None
    assert not actor._finetuning.model.get_parameter("layer1.0.conv1.weight").any()


def test_setting_and_report_survive_json(setting: TrialSetting) -> None:
    rich = replace(
        setting,
        backbone=BackboneSource(model="m:f", args={"depth": 3}, mean=(0.1, 0.2, 0.3)),
        task=TaskSource(source="digits", classes=("1", "2"), max_train_images=40),
    )
    assert TrialSetting.from_dict(rich.to_dict()) == rich
    assert TrialSetting.from_dict(json.loads(json.dumps(rich.to_dict()))) == rich
    report = Report(
        outcome=Outcome.DIVERGED,
        measurement=None,
        unmeasured_flops=3.0,
        reason="why",
        needs_flops=5.0,
        set_up_at=1.0,
        reported_at=2.0,
    )
    assert Report.from_json(report.to_json()) == report
    older = json.loads(report.to_json())
    del older["needs_flops"]
    assert Report.from_json(json.dumps(older)) == replace(report, needs_flops=None)
