"""The demo, and pretraining as it and the command line run it."""

from pathlib import Path

from rich.console import Console
from rich.progress import Progress as Bar

from analysis import units
from analysis.frontier import Frontier
from orchestrator.cluster.resources import image_cache
from orchestrator.config import PretrainConfig, SweepConfig, read_config, validate
from orchestrator.sweep import Sweep
from trainables.images.store import open_store
from trainables.pretraining import Pretrained, Pretraining
from trainables.pretraining import pretrain as train_backbone

DEMO = Path(__file__).with_name("demo.yaml")
SOURCE_CLASSES = ("0", "1", "2", "3", "4")
"""The digits that the demo's backbone is pretrained on."""


def run_demo(out: Path, *, console: Console) -> Frontier:
    """Pretrains the demo's backbone unless it is there, and runs its sweep in `out`."""
    weights = out.with_name(f"{out.name}-backbone") / "digits-0-4.safetensors"
    swept = read_config(SweepConfig, DEMO, [f"storage.folder={out}", f"backbone.weights={weights}"])
    if not weights.exists():
        values = {
            "task": swept.task.model_dump() | {"classes": SOURCE_CLASSES},
            "backbone": {"model": swept.backbone.model},
            "out": str(weights),
            "epochs": 6,
        }
        run_pretraining(validate(PretrainConfig, values, what="the demo"), console=console)
        swept = read_config(
            SweepConfig, DEMO, [f"storage.folder={out}", f"backbone.weights={weights}"]
        )
    return Sweep(swept, console=console).run()


def run_pretraining(config: PretrainConfig, *, console: Console) -> Pretrained:
    """Makes the backbone that the config describes and says how to use it."""
    store = open_store(
        config.task.to_source(),
        resolution=config.task.resolution,
        cache_dir=image_cache(None),
    )
    plan = Pretraining(
        epochs=config.epochs,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        batch_size=config.batch_size,
        label_smoothing=config.label_smoothing,
        augmentation=config.augmentation,
        mirror=config.task.mirror,
        seed=config.seed,
    )
    with Bar(console=console, transient=True) as bar:
        task = bar.add_task("pretraining", total=config.epochs)
        result = train_backbone(
            config.backbone.to_source(),
            store,
            plan,
            Path(config.out).resolve(),
            on_epoch=lambda _: bar.advance(task),
        )
    console.print(
        f"pretrained {config.backbone.model}: {units.percent(result.val_error)} validation error "
        f"on its own task, {units.flops(result.train_flops)}; backbone.weights: {config.out}",
        soft_wrap=True,
    )
    return result
