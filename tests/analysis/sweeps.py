"""A synthetic sweep whose answer is known: what the tests of tables, plots and reports read."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from analysis.table import PARAMETERS, write_measurements, write_trials

CONFIG: dict[str, Any] = {
    "name": "pets-pilot",
    "seed": 7,
    "task": {"source": "imagefolder:data/pets"},
    "backbone": {"model": "resnet18.a1_in1k", "weights": "weights/resnet18.safetensors"},
    "budget": {"trials": 60, "sweep_flops": 5e15},
    "rungs": {"min_flops": 1e11, "max_flops": 1e14, "per_decade": 2},
}

Rows = list[dict[str, Any]]


def sweep(trials: int, *, seed: int = 0) -> tuple[Rows, Rows]:
    """Measurement and trial rows in which pruning pays at low compute and costs at high.

    The learning rate matters (best near 3e-3), the pruning ratio matters, label smoothing does
    not. Every state of a trial occurs once there are about twenty trials.
    """
    rng = np.random.default_rng(seed)
    measurements: Rows = []
    trial_rows: Rows = []
    sweep_flops, clock = 0.0, 1.7e9
    for number in range(trials):
        recipe = _recipe(rng)
        state, reason, rungs = _fate(number, rng)
        identity = {
            "trial_id": f"{number:04d}-{int(rng.integers(16**6)):06x}",
            "number": number,
            "attempt": 0,
            "recipe_id": f"{int(rng.integers(16**12)):012x}",
            "seed": int(rng.integers(2**62)),
        }
        prefixed = {f"recipe.{name}": value for name, value in recipe.items()}
        started, spent = clock, 0.0
        for rung in range(rungs):
            curve_flops = 1e11 * 10 ** (rung / 2) * float(rng.uniform(0.9, 1.0))
            executed, spent = curve_flops - spent, curve_flops
            sweep_flops += executed
            clock += executed / 4e11 + 2
            measurements.append(
                identity
                | {
                    "sweep_id": "pets-pilot",
                    "rung": rung,
                    "train_flops": curve_flops,
                    "executed_flops": executed,
                    "eval_flops": 2e10 * (rung + 1),
                    "inference_flops": 3.6e9 * (1 - recipe.get("pruning_ratio", 0.0)) ** 1.6,
                    "params": int(11.2e6 * (1 - recipe.get("pruning_ratio", 0.0)) ** 1.8),
                    "updated_params": int(2e6 * (1 - recipe.get("pruning_ratio", 0.0))),
                    "val_error": (error := _error(curve_flops, recipe, rng)),
                    "val_loss": 4.0 * error,
                    "test_error": min(1.0, error + 0.01) if number % 2 else None,
                    "train_seconds": spent / 4e11,
                    "images_seen": int(spent / 1e10),
                    "peak_memory_bytes": None,
                    "nonzero_params": int(10e6 * (1 - recipe.get("pruning_ratio", 0.0)) ** 1.8),
                    "sparse_train_flops": 0.9 * curve_flops,
                    "sparse_inference_flops": None,
                    "trunk_flops": 0.0,
                    "expected_error": None,
                    "confirming_error": None,
                    "sweep_flops": sweep_flops,
                    "measured_at": clock,
                    "trial_state": state,
                    "method": recipe["method"],
                }
                | prefixed
            )
        finished = None if state == "running" else clock
        trial_rows.append(
            identity
            | {
                "state": state,
                "reason": reason,
                "confirms": None,
                "executed_flops": spent or 3e9 * (state == "failed"),
                "suggested_at": started,
                "finished_at": finished,
            }
            | prefixed
        )
    return measurements, trial_rows


def write_sweep(folder: Path, *, trials: int, seed: int = 0) -> Path:
    """A sweep's folder as the orchestrator leaves it, as far as analysis reads it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sweep.yaml").write_text(yaml.safe_dump(CONFIG, sort_keys=False))
    measurements, trial_rows = sweep(trials, seed=seed)
    write_measurements(measurements, folder, metadata={"sweep_id": "pets-pilot"})
    write_trials(trial_rows, folder, metadata={PARAMETERS: '{"adamw_rate": ["learning_rate"]}'})
    return folder


def _recipe(rng: np.random.Generator) -> dict[str, Any]:
    probe = bool(rng.uniform() < 0.15)
    shared = {
        "method": "linear_probe" if probe else "filter_pruning",
        "learning_rate": float(10 ** rng.uniform(-4, -1)),
        "label_smoothing": float(rng.uniform(0, 0.2)),
        "batch_size": int(rng.choice([32, 64, 128])),
        "resolution": 64,
        "target_flops": float(10 ** rng.uniform(11.5, 14)),
    }
    if probe:
        return shared
    return shared | {
        "pruning_ratio": float(rng.uniform(0, 0.9)),
        "criterion": str(rng.choice(["l1", "taylor", "random"])),
    }


def _fate(number: int, rng: np.random.Generator) -> tuple[str, str | None, int]:
    """State, reason and number of measured rungs of a trial."""
    match number % 20:
        case 7:
            return "infeasible", "layer4.1.conv2 would keep 0 of 512 filters", 0
        case 11:
            return "failed", "out of memory at batch size 128 (3 attempts)", 0
        case 16:
            return "diverged", "the training loss was inf at step 40", 1
        case 19:
            return "running", None, 2
    if rng.uniform() < 0.6:
        return "halved", "below the best third at rung 1", int(rng.integers(1, 4))
    return "complete", None, int(rng.integers(3, 7))


def _error(flops: float, recipe: dict[str, Any], rng: np.random.Generator) -> float:
    ratio = recipe.get("pruning_ratio", 0.0)
    probe = recipe["method"] == "linear_probe"
    floor = 0.28 if probe else 0.06 + 0.25 * ratio**2
    decades = math.log10(flops / 1e11)
    speed = 1.3 if probe else 0.35 + 0.9 * ratio
    miss = abs(math.log10(recipe["learning_rate"] / 3e-3))
    start = 0.95 - 0.35 * ratio - 0.3 * probe
    error = floor + (start - floor) * math.exp(-speed * decades) + 0.15 * miss**1.5
    return float(np.clip(error + rng.normal(0, 0.008), 0, 1))
