"""Images a second of training, against the same model in a loop as timm's users write it.

The other loop reads folders of JPEGs with timm's own dataset, loader and default transforms, a
worker for each core, and trains with timm's SGD and cross-entropy. Both have the same files, batch,
number format and layout; all layers of the dense model are trained. Whole epochs run turn by turn,
so that whatever else the machine does falls on both, and no worker loads ahead while the other
trains. Ours decodes the files once, before; that is told apart, and in no ratio. The photos lie
beside a developer's checkout.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from timm.data import create_dataset, create_loader
from timm.optim import create_optimizer_v2

from tests.benchmarks.publish import publish
from tests.benchmarks.trials import next_pace, noise_trial
from trainables.costs.flops import count_flops
from trainables.images.catalog import TRAIN
from trainables.images.decode import decode_square
from trainables.images.store import ImageStore, open_store
from trainables.images.tasks import TaskSource, find_origin
from trainables.learning.precision import Precision, training_device

MODELS = ("resnet18", "resnet50")
PHOTOS = Path("../shared/data/clothing10")
FILE_SIDES = {64: 64, 224: 256}
"""Side of the JPEGs, by the pixels trained on: a user prepares files not much larger than needed.
The photos have 96 pixels and are scaled; cameras' files would take a loader longer."""
JPEG_QUALITY = 90


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much runs on a device."""

    batch: int
    images: int
    """An epoch, in whole batches; with few, the start of the loader's workers would weigh much."""


SIZES = {
    "cpu": {64: Size(batch=32, images=128), 224: Size(batch=8, images=16)},
    "cuda": {64: Size(batch=256, images=40960), 224: Size(batch=128, images=20480)},
}
"""By device and pixels."""
ROUNDS = 3


def main() -> None:
    """Times both and prints the table."""
    if not PHOTOS.is_dir():
        raise SystemExit(
            f"{PHOTOS} is no folder, but this benchmark trains on its photos; run it at the root "
            "of a checkout that has the shared data beside it."
        )
    torch.set_num_threads(os.cpu_count() or 1)
    device = training_device()
    rows = [
        row
        for resolution, size in SIZES[device.type].items()
        for row in compare(size, resolution=resolution, device=device)
    ]
    precision = Precision.of(device)
    result = {
        "what": "images a second of training steps of all layers, against a loop with timm's own "
        f"loader on folders of JPEGs; medians of {ROUNDS} interleaved epochs, after one of each",
        "wanted_on_a_gpu": "a ratio of at least 1.0 at 224 pixels and 3.0 at 64",
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "precision_of_both": str(precision.autocast or torch.float32).removeprefix("torch."),
        "layout_of_both": str(precision.memory_format).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "timm_workers": _workers(),
        **{
            f"least_ratio_at_{pixels}": min(r["ratio"] for r in rows if r["pixels"] == pixels)
            for pixels in SIZES[device.type]
        },
        "ratios": rows,
    }
    publish("timm_loop", title="Training against a plain timm loop", result=result)


def compare(size: Size, *, resolution: int, device: torch.device) -> list[dict[str, Any]]:
    """A row for each model."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write_jpegs(folder / "jpegs", images=size.images, side=FILE_SIDES[resolution])
        started = time.perf_counter()
        store = open_store(
            TaskSource(source=str(folder / "jpegs")),
            resolution=resolution,
            cache_dir=folder / "cache",
        )
        decoding_seconds = time.perf_counter() - started
        rows = []
        for model in MODELS:
            ours = _prunetune_epochs(model, store=store, size=size, device=device)
            theirs = _timm_epochs(
                model, folder / "jpegs", resolution=resolution, size=size, device=device
            )
            rounds = [(ours(), theirs()) for _ in range(1 + ROUNDS)][1:]
            rows.append(
                {
                    "model": model,
                    "pixels": resolution,
                    "file_pixels": FILE_SIDES[resolution],
                    "batch": size.batch,
                    "images_an_epoch": size.images,
                    "decoded_once_in_seconds": round(decoding_seconds, 2),
                    "prunetune": round(1 / statistics.median(own for own, _ in rounds), 1),
                    "timm": round(1 / statistics.median(other for _, other in rounds), 1),
                    "ratio": round(statistics.median(other / own for own, other in rounds), 2),
                }
            )
    return rows


def _prunetune_epochs(
    model: str, *, store: ImageStore, size: Size, device: torch.device
) -> Callable[[], float]:
    """A function that trains an epoch and returns the seconds an image took."""
    cost = count_flops(
        timm.create_model(model, num_classes=len(store.class_names)), resolution=store.resolution
    )
    flops = size.images * cost.train_flops
    trial = noise_trial(
        model,
        store=store,
        batch_size=size.batch,
        device=device,
        levels=tuple(flops * (turn + 1e-6) for turn in range(1, 2 + ROUNDS)),
    )
    return lambda: next_pace(trial).seconds


def _timm_epochs(
    name: str, folder: Path, *, resolution: int, size: Size, device: torch.device
) -> Callable[[], float]:
    """The counterpart of `_prunetune_epochs`, with timm's own means."""
    dataset = create_dataset("", root=str(folder), split="train")
    loader = create_loader(
        dataset,
        input_size=(3, resolution, resolution),
        batch_size=size.batch,
        is_training=True,
        num_workers=_workers(),
        pin_memory=device.type == "cuda",
        device=device,
    )
    precision = Precision.of(device)
    model = timm.create_model(name, num_classes=len(dataset.reader.class_to_idx)).to(device)
    model = precision.lay_out(model).train()
    optimizer = create_optimizer_v2(model, opt="sgd", lr=1e-4, momentum=0.9, weight_decay=1e-4)

    def epoch() -> float:
        torch.backends.cudnn.benchmark = True  # in its own turns, as timm's own script sets it
        started = time.perf_counter()
        for inputs, labels in loader:
            with precision.step(device):
                loss = F.cross_entropy(model(precision.images(inputs)), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        loss.item()  # a GPU is waited for
        seconds = time.perf_counter() - started
        torch.backends.cudnn.benchmark = False
        return seconds / size.images

    return epoch


def _workers() -> int:
    return os.cpu_count() or 1


def _write_jpegs(folder: Path, *, images: int, side: int) -> None:
    """Class folders with `images` files to train on, and one of each class to measure with.

    Where there are more files than photos, photos have several names.
    """
    draws = np.random.default_rng(0)
    catalog = find_origin(TaskSource(source=str(PHOTOS))).read()
    for name, part in catalog.parts.items():
        one_of_each = np.unique(part.labels, return_index=True)[1]
        others = np.setdiff1d(np.arange(len(part.labels)), one_of_each)
        files = images if name == TRAIN else len(one_of_each)
        chosen = np.sort(np.concatenate([one_of_each, draws.permutation(others)])[:files])
        labels = [catalog.class_names[label] for label in part.labels[chosen]]
        paths = [folder / name / label / f"{row}.jpg" for row, label in enumerate(labels)]
        for path, raw in zip(paths, part.images(part.rows[chosen]), strict=True):
            pixels = decode_square(raw, resolution=side).transpose(1, 2, 0)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path, quality=JPEG_QUALITY)
        for number in range(len(paths), files):
            first = paths[number % len(paths)]
            first.with_name(f"{number}.jpg").hardlink_to(first)


if __name__ == "__main__":
    main()
