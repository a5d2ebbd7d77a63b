"""Makes a backbone from a task: plain supervised training of the dense model."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import nn

from search_spaces.recipe import Optimizer, Recipe, Schedule
from trainables.backbones import build as backbones
from trainables.backbones.source import BackboneSource
from trainables.batches.images import ImageBatches
from trainables.costs.flops import count_flops
from trainables.errors import InputError
from trainables.images.augment import model_inputs
from trainables.images.store import ImageStore
from trainables.learning.freezing import train_mode
from trainables.learning.learner import Learner
from trainables.learning.precision import Precision, training_device
from trainables.seeds import derive_seed


@dataclass(frozen=True, kw_only=True)
class Pretraining:
    """The plan by which a backbone is made."""

    epochs: int
    learning_rate: float
    weight_decay: float
    batch_size: int
    label_smoothing: float
    augmentation: float
    mirror: bool
    seed: int


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """The result, which is written as JSON next to the weights."""

    source: BackboneSource
    """The backbone as a sweep's config names it."""
    class_names: tuple[str, ...]
    val_error: float
    """Share of the source task's validation images classified wrongly, 0-1."""
    train_flops: float


def pretrain(
    source: BackboneSource,
    store: ImageStore,
    plan: Pretraining,
    out: Path,
    *,
    on_epoch: Callable[[int], None] = lambda _: None,
) -> Pretrained:
    """Trains the source's model on the task and writes its averaged weights to `out`.

    SGD-Nesterov, warm-up and cosine, over `epochs` passes; from `source.weights` if it has some.
    Raises `InputError` when training diverges or `out` does not end in .safetensors.
    """
    images = len(store.splits["train"])
    _check(plan, out, images=images)
    device = training_device()
    model = _starting_model(source, plan, classes=len(store.class_names)).to(device)
    mean, std = backbones.normalisation(source, model)
    cost = count_flops(model, resolution=store.resolution)
    steps_per_epoch = images // plan.batch_size
    train_flops = plan.epochs * steps_per_epoch * plan.batch_size * cost.train_flops
    recipe = _recipe(plan, resolution=store.resolution, train_flops=train_flops)
    batches = ImageBatches(
        recipe=recipe,
        seed=plan.seed,
        store=store,
        inputs=lambda images: model_inputs(
            images.to(device), resolution=store.resolution, mean=mean, std=std
        ),
        cost=cost,
        inference_flops=cost.forward_flops,
        mirror=plan.mirror,
        device=device,
        drop_last=True,
    )
    average = _train(
        model, recipe, plan, batches, steps_per_epoch=steps_per_epoch, on_epoch=on_epoch
    )
    error, loss = batches.evaluate(average)
    if not math.isfinite(loss):
        raise _diverged(plan, plan.epochs)
    result = Pretrained(
        source=BackboneSource(
            model=source.model, weights=str(out), args=source.args, mean=mean, std=std
        ),
        class_names=store.class_names,
        val_error=error,
        train_flops=train_flops,
    )
    _write(average, result, plan, out, resolution=store.resolution)
    return result


def _check(plan: Pretraining, out: Path, *, images: int) -> None:
    if out.suffix != ".safetensors":
        raise InputError(f"out={str(out)!r} must end in .safetensors, the format it is written in.")
    if images < plan.batch_size:
        raise InputError(
            f"batch_size={plan.batch_size} is more than the {images} training images; lower it."
        )


def _starting_model(source: BackboneSource, plan: Pretraining, *, classes: int) -> nn.Module:
    """The source's model in training mode, with its weights where it has some."""
    torch.manual_seed(derive_seed(plan.seed, "model"))
    model = backbones.build(source, num_classes=classes)
    weights = backbones.load_weights(source)
    if weights is not None:
        backbones.load_into(model, weights, source=source)
    train_mode(model)
    return model


def _recipe(plan: Pretraining, *, resolution: int, train_flops: float) -> Recipe:
    """The plan as full finetuning: SGD-Nesterov, warm-up and cosine."""
    return Recipe(
        method="full",
        learning_rate=plan.learning_rate,
        weight_decay=plan.weight_decay,
        batch_size=plan.batch_size,
        label_smoothing=plan.label_smoothing,
        layer_decay=1.0,
        trainable_depth=1.0,
        resolution=resolution,
        augmentation=plan.augmentation,
        target_flops=train_flops,
        optimizer=Optimizer.SGD,
        schedule=Schedule.COSINE,
    )


def _train(
    model: nn.Module,
    recipe: Recipe,
    plan: Pretraining,
    batches: ImageBatches,
    *,
    steps_per_epoch: int,
    on_epoch: Callable[[int], None],
) -> nn.Module:
    """Trains the model, epoch by epoch; its average."""
    learner = Learner(
        model,
        recipe,
        trained=model,
        seed=plan.seed,
        class_weights=None,
        precision=Precision(),  # float32 on every device: others start from these weights
    )
    for epoch in range(plan.epochs):
        for step in range(epoch * steps_per_epoch, (epoch + 1) * steps_per_epoch):
            inputs, labels = batches.train(step)
            loss = learner.learn(
                inputs, labels, step=step, total_steps=plan.epochs * steps_per_epoch
            )
        if not torch.isfinite(loss):
            raise _diverged(plan, epoch + 1)
        on_epoch(epoch + 1)
    return learner.average.model


def _write(
    model: nn.Module, result: Pretrained, plan: Pretraining, out: Path, *, resolution: int
) -> None:
    """Writes the weights to `out`, and a JSON card next to them."""
    out.parent.mkdir(parents=True, exist_ok=True)
    state = {name: value.cpu().contiguous() for name, value in model.state_dict().items()}
    safetensors.torch.save_file(state, out)
    card = asdict(result) | {"pretraining": asdict(plan), "resolution": resolution}
    out.with_suffix(".json").write_text(json.dumps(card, indent=2) + "\n")


def _diverged(plan: Pretraining, epoch: int) -> InputError:
    return InputError(
        f"Pretraining diverged in epoch {epoch}: its loss is not finite; lower "
        f"learning_rate={plan.learning_rate:g}."
    )
