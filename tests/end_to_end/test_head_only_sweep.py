"""A sweep of recipes that train the head alone: one extraction on its bill, whole models out."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from analysis.frontier import Frontier
from analysis.table import read_measurements, read_trials, rows
from orchestrator.config import SweepConfig, validate
from orchestrator.exporting import export_point
from orchestrator.sweep import Sweep
from trainables.backbones import build as backbones
from trainables.backbones.source import BackboneSource
from trainables.errors import InputError
from trainables.export import load_exported
from trainables.images.store import open_store
from trainables.images.tasks import TaskSource

TRIALS = 4
IMAGES = 300
TASK = TaskSource(source="digits", max_train_images=IMAGES)


@dataclass(frozen=True, kw_only=True)
class Swept:
    config: SweepConfig
    folder: Path
    cache: Path
    frontier: Frontier
    trials: list[dict[str, Any]]
    measurements: list[dict[str, Any]]


@pytest.fixture(scope="module")
def swept(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Swept:
    """Two trials at a time, so that the first two want the same features at once.

    All lies in a folder whose name has a meaning in URLs.
    """
    folder = tmp_path_factory.mktemp("head-only") / "which? 100% #1"
    folder.mkdir()
    torch.manual_seed(0)
    model = backbones.build(BackboneSource(model="test_resnet"), num_classes=10)
    save_file(model.state_dict(), folder / "weights.safetensors")
    values = {
        "name": "head-only",
        "task": {"source": "digits", "resolution": 16, "mirror": False, "max_train_images": IMAGES},
        "backbone": {"model": "test_resnet", "weights": str(folder / "weights.safetensors")},
        "space": {
            "ranges": {
                "pruning_ratio": 0.0,
                "batch_norm_repair": False,
                "trainable_depth": 0.0,
                "resolution": 16,
                "batch_size": 64,
                "learning_rate": {"low": 0.01},
            }
        },
        "budget": {"trials": TRIALS},
        "rungs": {"min_flops": 1e9, "max_flops": 1e9},
        "search": {"reduction_factor": None},
        "resources": {"concurrent": 2},
        "storage": {"folder": str(folder / "sweep"), "cache": str(folder / "cache")},
    }
    config = validate(SweepConfig, values, what="the test")
    frontier = Sweep(config).run()
    return Swept(
        config=config,
        folder=folder / "sweep",
        cache=folder / "cache",
        frontier=frontier,
        trials=rows(read_trials(folder / "sweep")),
        measurements=rows(read_measurements(folder / "sweep")),
    )


def test_each_trial_is_charged_the_extraction_and_the_sweep_is_billed_one(swept: Swept) -> None:
    assert [trial["state"] for trial in swept.trials] == ["complete"] * TRIALS
    assert len(swept.measurements) == TRIALS
    charged = [row["train_flops"] for row in swept.measurements]
    executed = [row["executed_flops"] for row in swept.measurements]
    extraction = IMAGES * swept.measurements[0]["inference_flops"]
    assert min(charged) > 0.99 * extraction
    bill = max(row["sweep_flops"] for row in swept.measurements)
    assert bill == pytest.approx(sum(executed))
    assert sum(charged) - bill == pytest.approx((TRIALS - 1) * extraction, rel=1e-3)
    assert sum(flops > 0.99 * extraction for flops in executed) == 1


def test_what_is_exported_is_the_whole_model_and_was_tested_as_such(
    swept: Swept, tmp_path: Path
) -> None:
    best = swept.frontier.points[-1]
    export_point(str(swept.folder), tmp_path / "model", choose=lambda found: found.points[-1])
    model = load_exported(tmp_path / "model")
    test = open_store(TASK, resolution=16, cache_dir=swept.cache).splits["test"]
    with torch.no_grad():
        wrong = model.module(model.inputs(test.images)).argmax(1) != test.labels
    assert best.test_error == pytest.approx(wrong.float().mean().item())
    measured = best.measurement
    assert measured.params == sum(parameter.numel() for parameter in model.module.parameters())
    assert measured.updated_params == 10 * 97, "of 96 features, with a bias"


def test_other_weights_in_their_place_are_refused_and_models_are_still_exported(
    swept: Swept, tmp_path: Path
) -> None:
    path = Path(str(swept.config.backbone.weights))
    content = path.read_bytes()
    model = backbones.build(BackboneSource(model="test_resnet"), num_classes=10)
    save_file(model.state_dict(), path)
    with pytest.raises(InputError, match="another state of the weights of backbone"):
        Sweep(swept.config).run()
    path.write_bytes(content)
    assert Sweep(swept.config).run() == swept.frontier
    export_point(str(swept.folder), tmp_path / "out", choose=lambda found: found.points[-1])
    assert load_exported(tmp_path / "out").class_names == tuple("0123456789")
