"""The demo: a backbone that knows five digits learns all ten."""

from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from analysis.frontier import Frontier
from orchestrator.config import PretrainConfig, SweepConfig, read_config, validate
from orchestrator.pretraining import run_pretraining
from orchestrator.sweep import Sweep

DEMO = Path(__file__).with_name("demo.yaml")
SOURCE_CLASSES = ("0", "1", "2", "3", "4")
"""The digits that the demo's backbone is pretrained on."""


def run_demo(out: Path, *, console: Console) -> Frontier:
    """Pretrains the demo's backbone unless it is there, and runs its sweep in `out`."""
    weights = out.with_name(f"{out.name}-backbone") / "digits-0-4.safetensors"
    swept = read_config(SweepConfig, DEMO, [f"storage.folder={out}", f"backbone.weights={weights}"])
    if not weights.exists():
        values = {
            "task": asdict(swept.task) | {"classes": SOURCE_CLASSES},
            "backbone": {"model": swept.backbone.model},
            "out": str(weights),
            "epochs": 6,
        }
        run_pretraining(validate(PretrainConfig, values, what="the demo"), console=console)
        swept = read_config(
            SweepConfig, DEMO, [f"storage.folder={out}", f"backbone.weights={weights}"]
        )
    return Sweep(swept, console=console).run()
