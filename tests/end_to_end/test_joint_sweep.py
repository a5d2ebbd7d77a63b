"""A sweep in which every method competes: none is known by name on the way to the frontier."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from analysis.frontier import Frontier, FrontierPoint
from analysis.table import read_measurements, read_trials, rows
from orchestrator.config import SweepConfig, validate
from orchestrator.exporting import export_point
from orchestrator.sweep import Sweep
from search_spaces.space import built_in_spaces
from trainables.backbones import build as backbones
from trainables.backbones.layers import backbone_weights
from trainables.backbones.source import BackboneSource
from trainables.export import load_exported

TRIALS = 20
METHODS = {name for name in built_in_spaces() if name != "joint"}


@dataclass(frozen=True, kw_only=True)
class Swept:
    folder: Path
    frontier: Frontier
    trials: list[dict[str, Any]]
    measurements: list[dict[str, Any]]


@pytest.fixture(scope="module")
def swept(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Swept:
    """The backbone has zeros and its source task is named, so that no method is left out."""
    folder = tmp_path_factory.mktemp("joint")
    torch.manual_seed(0)
    model = backbones.build(BackboneSource(model="test_resnet"), num_classes=5)
    with torch.no_grad():
        for weight in backbone_weights(model).values():
            weight[weight.abs() < weight.abs().median()] = 0.0
    save_file(model.state_dict(), folder / "weights.safetensors")
    digits = {"source": "digits", "resolution": 16, "mirror": False, "max_train_images": 200}
    values = {
        "name": "joint",
        "task": digits,
        "source_task": {**digits, "classes": ["0", "1", "2", "3", "4"]},
        "backbone": {"model": "test_resnet", "weights": str(folder / "weights.safetensors")},
        "space": {"function": "joint", "ranges": {"learning_rate": {"low": 0.01}}},
        "budget": {"trials": TRIALS},
        "rungs": {"min_flops": 2e9, "max_flops": 8e9, "per_decade": 3},
        "search": {"sampler": "random", "scheduler": "halving", "generation": TRIALS},
        "resources": {"concurrent": 2, "max_failures": 0},
        "storage": {"folder": str(folder / "sweep"), "cache": str(folder / "cache")},
    }
    frontier = Sweep(validate(SweepConfig, values, what="the test")).run()
    return Swept(
        folder=folder / "sweep",
        frontier=frontier,
        trials=rows(read_trials(folder / "sweep")),
        measurements=rows(read_measurements(folder / "sweep")),
    )


def test_no_recipe_of_any_method_fails(swept: Swept) -> None:
    assert len(swept.trials) == TRIALS
    assert [t["reason"] for t in swept.trials if t["state"] == "failed"] == []
    drawn = {trial["recipe.method"] for trial in swept.trials}
    assert drawn <= METHODS
    assert len(drawn) > len(METHODS) / 2
    assert len({row["method"] for row in swept.measurements}) > len(METHODS) / 3


def test_all_are_measured_on_the_same_axes(swept: Swept) -> None:
    for row in swept.measurements:
        assert 0 < row["sparse_train_flops"] <= row["train_flops"] <= 8e9 * (1 + 1e-9)
        assert row["updated_params"] > 0
        assert 0 < row["nonzero_params"] <= row["params"]
        assert 0 < row["sparse_inference_flops"] <= row["inference_flops"]


def test_the_frontiers_models_are_plain(swept: Swept, tmp_path: Path) -> None:
    for index, point in enumerate(swept.frontier.points):
        folder = tmp_path / str(index)

        def this(found: Frontier, index: int = index) -> FrontierPoint:
            return found.points[index]

        export_point(str(swept.folder), folder, choose=this)
        module = load_exported(folder).module
        assert sum(p.numel() for p in module.parameters()) == point.measurement.params
        assert not any("parametrizations" in name for name in module.state_dict())
