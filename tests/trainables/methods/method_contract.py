"""What every transfer method must keep, whatever it does."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from search_spaces.recipe import Recipe
from tests.trainables.recipes import SMALL, make_trial, run, rung_uri
from trainables.backbones import build as backbones
from trainables.backbones.build import Backbone
from trainables.backbones.source import BackboneSource
from trainables.checkpoints import load_checkpoint
from trainables.costs.flops import count_flops
from trainables.export import export_model, load_exported
from trainables.images.store import ImageStore
from trainables.measurement import Measurement
from trainables.method import Conditions, load_method

GROUPS = ("model", "measured", "optimizer", "transfer")


def check(recipe: Recipe, *, source: BackboneSource = SMALL, source_task: bool = False) -> None:
    """The method's check of the recipe, on a backbone with random weights."""
    model = backbones.build(source, num_classes=4)
    load_method(recipe.method).check(recipe, Conditions(model=model, source_task=source_task))


def pretrained(source: BackboneSource = SMALL) -> backbones.Weights:
    """Weights that stand for pretrained ones: random, and the same at every call."""
    with torch.random.fork_rng():
        torch.manual_seed(11)
        return dict(backbones.build(source, num_classes=7).state_dict())


def assert_plain_finetuning(store: ImageStore, recipe: Recipe, **trial: Any) -> None:
    """A method that is switched off is `full`, bit for bit and at the same cost."""
    full = replace(recipe, method="full", settings={})
    theirs, ours = (make_trial(store, one, **trial) for one in (full, recipe))
    expected, curve = run(theirs), run(ours)
    assert [_comparable(m) for m in curve] == [_comparable(m) for m in expected]
    _assert_equal(_weights(ours), _weights(theirs))


def assert_resumes(store: ImageStore, recipe: Recipe, folder: Path, **trial: Any) -> None:
    """From every checkpoint of a trial its end is that of the trial left alone."""
    whole = make_trial(store, recipe, **trial)
    curve = run(whole, folder / "whole")
    assert len(curve) > 2, "a trial with less than three rungs shows little"
    end, _ = load_checkpoint(rung_uri(folder / "whole", curve[-1].rung), GROUPS)
    for measured in curve[:-1]:
        uri = rung_uri(folder / "whole", measured.rung)
        resumed = make_trial(store, recipe, resume_from=uri, **trial)
        rest = run(resumed, folder / f"from-{measured.rung}")
        later = [m for m in curve if m.rung > measured.rung]
        assert [_comparable(m) for m in rest] == [_comparable(m) for m in later]
        again = rung_uri(folder / f"from-{measured.rung}", curve[-1].rung)
        tensors, _ = load_checkpoint(again, GROUPS)
        for group in GROUPS:
            _assert_equal(tensors[group], end[group])


def assert_exports(
    store: ImageStore, recipe: Recipe, folder: Path, *, source: BackboneSource = SMALL, **trial: Any
) -> nn.Module:
    """The exported file has the backbone's structure and inference cost and gives what was
    measured; returns the model loaded from it."""
    one = make_trial(store, recipe, source=source, **trial)
    curve = run(one, folder / "trial")
    uri = rung_uri(folder / "trial", curve[-1].rung)
    names = store.class_names
    export_model(uri, folder / "export", backbone=source, class_names=names, card="")
    loaded = load_exported(folder / "export")
    dense = backbones.build(source, num_classes=len(names))
    assert {n: v.shape for n, v in loaded.module.state_dict().items()} == {
        n: v.shape for n, v in dense.state_dict().items()
    }
    cost = count_flops(dense, resolution=recipe.resolution)
    assert curve[-1].inference_flops == cost.forward_flops
    assert curve[-1].params == sum(p.numel() for p in dense.parameters())
    images = store.splits["validation"].images
    logits = loaded.module(loaded.inputs(images))
    wrong = (logits.argmax(1) != store.splits["validation"].labels).float().mean().item()
    assert abs(wrong - curve[-1].val_error) < 1e-6
    return loaded.module


def changed(model: nn.Module, weights: backbones.Weights) -> dict[str, int]:
    """How many values of each of the model's parameters differ from the pretrained ones."""
    return {
        name: int((parameter != weights[name]).sum())
        for name, parameter in model.named_parameters()
        if parameter.shape == weights[name].shape
    }


def backbone_of(source: BackboneSource = SMALL) -> Backbone:
    """The source with its pretrained weights."""
    return Backbone(source=source, weights=pretrained(source))


def _comparable(measurement: Measurement) -> dict[str, Any]:
    """Everything but what depends on the clock or on who resumed."""
    values = measurement.to_dict()
    return {k: v for k, v in values.items() if k not in ("train_seconds", "executed_flops")}


def _weights(trial: Any) -> dict[str, Tensor]:
    state: dict[str, Tensor] = trial.measured_model.state_dict()
    return state


def _assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name
