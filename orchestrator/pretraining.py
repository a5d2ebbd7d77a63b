"""Pretraining, from its config to the weights and what is said of them."""

from pathlib import Path

from rich.console import Console
from rich.progress import Progress as Bar

from analysis import units
from orchestrator.config import PretrainConfig
from trainables.errors import keys_of
from trainables.images.cache import image_cache
from trainables.images.store import open_store
from trainables.pretraining import Pretrained, Pretraining, pretrain


def run_pretraining(config: PretrainConfig, *, console: Console) -> Pretrained:
    """Makes the backbone that the config describes and says how to use it."""
    with keys_of("task"):
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
        result = pretrain(
            config.backbone,
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
