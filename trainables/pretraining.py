"""Makes a backbone from a task: plain supervised training of the dense model."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import safetensors.torch
import torch
import torch.nn.functional as F

from search_spaces.recipe import Optimizer, Schedule
from trainables.backbones import build as backbones
from trainables.backbones.source import BackboneSource
from trainables.costs.flops import count_flops
from trainables.errors import InputError
from trainables.images.augment import augment, model_inputs
from trainables.images.store import ImageStore
from trainables.learning.averages import RunningAverage
from trainables.learning.evaluation import evaluate
from trainables.learning.freezing import train_mode
from trainables.learning.optimizers import build_optimizer
from trainables.learning.precision import training_device
from trainables.learning.schedules import set_learning_rate
from trainables.seeds import derive_seed, generator


@dataclass(frozen=True, kw_only=True)
class Pretraining:
    """How the backbone is made."""

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
    """What came out; written as JSON beside the weights."""

    source: BackboneSource
    """How to name the backbone in a sweep's config."""
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
    if out.suffix != ".safetensors":
        raise InputError(f"out={str(out)!r} must end in .safetensors, the format it is written in.")
    train = store.splits["train"]
    if len(train.labels) < plan.batch_size:
        raise InputError(
            f"batch_size={plan.batch_size} is more than the {len(train.labels)} training images; "
            "lower it."
        )
    device = training_device()
    torch.manual_seed(derive_seed(plan.seed, "model"))
    model = backbones.build(source, num_classes=len(store.class_names))
    weights = backbones.load_weights(source)
    if weights is not None:
        backbones.load_into(model, weights, source=source)
    mean, std = backbones.normalisation(source, model)
    model.to(device)
    train_mode(model)
    average = RunningAverage(model)
    optimizer = build_optimizer(
        Optimizer.SGD,
        model,
        learning_rate=plan.learning_rate,
        weight_decay=plan.weight_decay,
        layer_decay=1.0,
    )

    def inputs(images: torch.Tensor) -> torch.Tensor:
        return model_inputs(images.to(device), resolution=store.resolution, mean=mean, std=std)

    steps_per_epoch = len(train.labels) // plan.batch_size
    step = 0
    for epoch in range(plan.epochs):
        order = torch.randperm(len(train.labels), generator=generator(plan.seed, "order", epoch))
        for indices in order.split(plan.batch_size)[:steps_per_epoch]:
            torch.manual_seed(derive_seed(plan.seed, "step", step))
            images = augment(
                train.images[indices].to(device),
                strength=plan.augmentation,
                mirror=plan.mirror,
                generator=generator(plan.seed, "augment", step, device=device),
            )
            set_learning_rate(
                optimizer,
                schedule=Schedule.COSINE,
                step=step,
                total_steps=plan.epochs * steps_per_epoch,
            )
            loss = F.cross_entropy(
                model(inputs(images)),
                train.labels[indices].to(device),
                label_smoothing=plan.label_smoothing,
            )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            step += 1
            average.update(step=step)
        if not torch.isfinite(loss):
            raise _diverged(plan, epoch + 1)
        on_epoch(epoch + 1)
    error, validation_loss = evaluate(average.model, store.splits["validation"], inputs)
    if not math.isfinite(validation_loss):
        raise _diverged(plan, plan.epochs)
    result = Pretrained(
        source=BackboneSource(
            model=source.model, weights=str(out), args=source.args, mean=mean, std=std
        ),
        class_names=store.class_names,
        val_error=error,
        train_flops=step
        * plan.batch_size
        * count_flops(model, resolution=store.resolution).train_flops,
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    state = {name: value.cpu().contiguous() for name, value in average.model.state_dict().items()}
    safetensors.torch.save_file(state, out)
    card = asdict(result) | {"pretraining": asdict(plan), "resolution": store.resolution}
    out.with_suffix(".json").write_text(json.dumps(card, indent=2) + "\n")
    return result


def _diverged(plan: Pretraining, epoch: int) -> InputError:
    return InputError(
        f"Pretraining diverged in epoch {epoch}: its loss is not finite; lower "
        f"learning_rate={plan.learning_rate:g}."
    )
