"""Runs of examples, each trained once for all tests that look at it."""

from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tests.trainables.methods.method_examples import MethodExample
from tests.trainables.recipes import SMALL, run, rung_uri
from trainables.export import TransferredModel, export_model, from_checkpoint, load_exported
from trainables.finetune import Finetuning
from trainables.images.store import ImageStore
from trainables.measurement import Measurement


class ExampleRun:
    """An example, trained to its end, with a checkpoint at every rung."""

    def __init__(
        self,
        example: MethodExample,
        *,
        store: ImageStore,
        source_task: Callable[[], ImageStore],
        folder: Path,
    ) -> None:
        self.example = example
        self.folder = folder
        """The folder of its checkpoints."""
        self._store = store
        trial = example.trial(store, source_task=source_task if example.source_task else None)
        self.steps = [stop.steps for stop in trial.stops]
        """Steps taken at each rung."""
        self.curve = run(trial, folder)

    def checkpoint(self, rung: int) -> str:
        """URI of the checkpoint that was saved at a rung."""
        return rung_uri(self.folder, rung)

    def resumed(self, rung: int) -> Finetuning:
        """The trial again, resumed from a rung; it fails where it opens its source task."""
        return self.example.trial(
            self._store, source_task=_must_not_be_opened, resume_from=self.checkpoint(rung)
        )

    def measured_models(self) -> Iterator[tuple[Measurement, nn.Module]]:
        """Each measurement and the model that was measured, as its checkpoint has it."""
        for measured in self.curve:
            model = from_checkpoint(
                self.checkpoint(measured.rung),
                backbone=SMALL,
                class_names=self._store.class_names,
            )
            yield measured, model.module

    @cached_property
    def exported(self) -> TransferredModel:
        """The model of the last rung, exported and loaded again."""
        folder = self.folder / "export"
        export_model(
            self.checkpoint(self.curve[-1].rung),
            folder,
            backbone=SMALL,
            class_names=self._store.class_names,
            card="",
        )
        return load_exported(folder)

    def changed(self) -> dict[str, int]:
        """Counts the values below the head, by parameter, in which the export is not pretrained."""
        weights = self.example.weights()
        return {
            name: int((parameter != weights[name]).sum())
            for name, parameter in self.exported.module.named_parameters()
            if parameter.shape == weights[name].shape
        }


RunOf = Callable[[str, str], ExampleRun]
"""Gives the run of an example from the names of its method and its own."""


def comparable(measurement: Measurement) -> dict[str, Any]:
    """Everything but the fields that depend on the clock or on having been resumed."""
    values = measurement.to_dict()
    return {k: v for k, v in values.items() if k not in ("train_seconds", "executed_flops")}


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    """Fails where the tensors differ in names or in any bit."""
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def _must_not_be_opened() -> ImageStore:
    raise AssertionError("A resumed trial has its weights, and opened its source task.")
