"""The Tune trainable: one reusable actor that runs recipe after recipe, a rung a step.

The only file of this room that knows Ray. Everything it decides, `finetune.Finetuning` decides.
"""

import functools
import gc
import json
import logging
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

import torch
from ray import tune

from search_spaces.recipe import Recipe
from trainables.backbones.build import Backbone, load_weights
from trainables.backbones.digest import weights_digest
from trainables.backbones.source import BackboneSource
from trainables.checkpoints import checkpoint_folder, newest_checkpoint
from trainables.errors import InfeasibleError, InputError, keys_of
from trainables.export import error_on_test, from_checkpoint
from trainables.finetune import Finetuning
from trainables.images.cache import image_cache
from trainables.images.store import ImageStore, open_store
from trainables.images.tasks import TaskSource
from trainables.learning.precision import training_device
from trainables.measurement import Measurement, Outcome, Report
from trainables.trial_setting import TrialSetting

_log = logging.getLogger(__name__)


class TransferTrial(tune.Trainable):
    """Runs `config["recipe"]` from its last rung on; each step is one rung.

    A trial saves its checkpoint before it reports, under `trials_uri`, so that whatever was
    reported can be resumed and exported. After a failure Tune simply sets the trial up again: it
    finds its newest checkpoint and first reports that one's measurement once more, which the
    driver ignores if it has it. Without one of its own it goes on from the newest checkpoint of
    the trial `config["continues"]`, as far as the two are the same.
    """

    def setup(self, config: dict[str, Any]) -> None:
        self._set_up_at = time.time()
        _freeze_modules()
        setting = TrialSetting.from_dict(config["setting"])
        torch.set_num_threads(setting.threads)
        self._uri = f"{setting.trials_uri}/{config['trial_id']}"
        self._finetuning: Finetuning | None = None
        self._refusal: Report | None = None
        own = newest_checkpoint(self._uri)
        self._resumed = own is not None
        try:
            self._finetuning = Finetuning(
                recipe=Recipe.from_dict(config["recipe"]),
                seed=config["seed"],
                backbone=_backbone(json.dumps(asdict(setting.backbone)), setting.weights_digest),
                store=_task(setting),
                levels=setting.levels,
                mirror=setting.mirror,
                device=training_device(),
                resume_from=own,
                continue_from=_continued(config.get("continues"), setting) if own is None else None,
                source_task=_source_task(setting),
            )
        except InfeasibleError as error:
            self._refusal = self._report(  # not the error: it holds the model
                Outcome.INFEASIBLE,
                reason=str(error),
                unmeasured_flops=error.spent_flops,
                needs_flops=error.needs_flops,
            )

    def step(self) -> dict[str, Any]:
        report = self._next_report()
        return {"report": report.to_json()}

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.cleanup()
        self.setup(new_config)
        return True

    def cleanup(self) -> None:
        self._finetuning = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: the trial's own checkpoint was written before its last report."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing: `setup` has resumed the trial from its own newest checkpoint."""

    def _next_report(self) -> Report:
        if self._refusal is not None:
            return replace(self._refusal, reported_at=time.time())
        finetuning = self._finetuning
        assert finetuning is not None  # set up, and not refused
        if self._resumed:
            self._resumed = False
            return self._report(finetuning.outcome, measurement=finetuning.measurement)
        finetuning.advance()
        if finetuning.outcome is Outcome.DIVERGED:
            return self._report(
                Outcome.DIVERGED,
                reason="the loss is not finite",
                unmeasured_flops=finetuning.unbilled_flops,
            )
        measured = finetuning.measurement
        assert measured is not None  # advance() measures unless it diverges
        finetuning.save(checkpoint_folder(self._uri, measured.rung))
        return self._report(finetuning.outcome, measurement=measured)

    def _report(
        self,
        outcome: Outcome,
        *,
        measurement: Measurement | None = None,
        unmeasured_flops: float = 0.0,
        reason: str | None = None,
        needs_flops: float | None = None,
    ) -> Report:
        return Report(
            outcome=outcome,
            measurement=measurement,
            unmeasured_flops=unmeasured_flops,
            reason=reason,
            needs_flops=needs_flops,
            set_up_at=self._set_up_at,
            reported_at=time.time(),
        )


def _continued(trial_id: str | None, setting: TrialSetting) -> str | None:
    """Finds the newest checkpoint of the trial to go on from; None where there is none."""
    if trial_id is None:
        return None
    uri = newest_checkpoint(f"{setting.trials_uri}/{trial_id}")
    if uri is None:
        _log.warning("The trial starts from scratch: %s has no checkpoint left.", trial_id)
    return uri


@functools.cache
def _freeze_modules() -> None:
    """Has the collections between trials skip what is loaded for good, which took 0.2 s each."""
    gc.collect()
    gc.freeze()


@functools.lru_cache(maxsize=2)
def _backbone(source: str, digest: str | None) -> Backbone:
    """Kept by the actor, so that a sweep reads its weights once an actor, not once a trial."""
    parsed = BackboneSource(**json.loads(source))
    weights = load_weights(parsed)
    if digest is not None and weights_digest(weights) != digest:
        raise _other_content(f"backbone.weights={parsed.weights!r}")
    return Backbone(source=parsed, weights=weights)


@functools.lru_cache(maxsize=2)
def _store(
    section: str, task: str, resolution: int, cache: str | None, digest: str | None
) -> ImageStore:
    """`section` is where the config names the task."""
    source = TaskSource(**json.loads(task))
    with keys_of(section):
        folder = image_cache(cache)
        store = open_store(source, resolution=resolution, cache_dir=folder, trusting=True)
    if digest is not None and store.digest != digest:
        raise _other_content(f"{section}.source={source.source!r}")
    return store


def _other_content(what: str) -> InputError:
    return InputError(
        f"On {socket.gethostname()}, {what} has another content than where the sweep was started, "
        "or is decoded by other versions of libraries; give all nodes the same files and the same "
        "environment."
    )


def _task(setting: TrialSetting) -> ImageStore:
    task = json.dumps(asdict(setting.task))
    return _store("task", task, setting.store_resolution, setting.cache, setting.task_digest)


def _source_task(setting: TrialSetting) -> Callable[[], ImageStore] | None:
    if setting.source_task is None:
        return None
    task = json.dumps(asdict(setting.source_task))
    resolution, digest = setting.source_resolution, setting.source_task_digest
    return lambda: _store("source_task", task, resolution, setting.cache, digest)


def measure_test_error(setting: Mapping[str, Any], checkpoint_uri: str) -> float:
    """The error (0-1), on the task's test split, of the model in a trial's checkpoint."""
    parsed = TrialSetting.from_dict(setting)
    torch.set_num_threads(parsed.threads)
    store = _task(parsed)
    model = from_checkpoint(checkpoint_uri, backbone=parsed.backbone, class_names=store.class_names)
    model.module.to(training_device())
    return error_on_test(model, store)
