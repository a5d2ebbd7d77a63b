"""Exported models: a folder with safetensors, a recipe and a card, loaded back in one call."""

import json
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import timm
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from search_spaces.recipe import Recipe
from trainables.backbones.build import build, normalisation
from trainables.backbones.source import BackboneSource
from trainables.backbones.state import load_weights_into
from trainables.checkpoints import load_checkpoint
from trainables.errors import InputError
from trainables.images.augment import model_inputs
from trainables.images.store import ImageStore
from trainables.learning.evaluation import EVALUATION_BATCH, evaluate
from trainables.measurement import Measurement
from trainables.method import load_method

WEIGHTS_FILE = "model.safetensors"
MODEL_FILE = "model.json"
CARD_FILE = "README.md"
FORMAT = 1
_READS_FILES = frozenset({"pretrained", "pretrained_cfg", "pretrained_cfg_overlay"}) | {
    "checkpoint_path",
    "cache_dir",
}
"""Arguments of `timm.create_model` that fetch weights, which an exported model brings itself."""
_allowed = ContextVar[frozenset[str]]("allowed factories", default=frozenset())


@dataclass(frozen=True, kw_only=True)
class TransferredModel:
    """A trained model with what is needed to use it."""

    module: nn.Module
    """Takes normalised images [B, 3, r, r], gives logits [B, classes]; in eval mode."""
    class_names: tuple[str, ...]
    """Names of the classes in order of the logits."""
    resolution: int
    """Side r of its input in pixels."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    recipe: Recipe
    measurement: Measurement
    """The measurement of this very model."""

    def inputs(self, images: Tensor) -> Tensor:
        """Normalised input [B, 3, r, r], on the module's device, of square images [B, 3, R, R]."""
        device = next(self.module.parameters()).device
        return model_inputs(
            images.to(device), resolution=self.resolution, mean=self.mean, std=self.std
        )

    @torch.inference_mode()
    def predict(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Class probabilities [B, classes] of RGB images [B, H, W, 3], uint8, of any size.

        As in training, the middle square is taken and resized. Raises `InputError` for an array
        of another kind.
        """
        if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8 or not images.size:
            raise InputError(
                f"images are {images.dtype} of shape {images.shape}, and must be uint8, "
                "[images, height, width, 3], in RGB."
            )
        height, width = images.shape[1:3]
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        square = np.ascontiguousarray(images[:, top : top + side, left : left + side])
        batches = torch.from_numpy(square).permute(0, 3, 1, 2).split(EVALUATION_BATCH)
        logits = torch.cat([self.module(self.inputs(batch)) for batch in batches])
        probabilities: NDArray[np.float32] = logits.float().softmax(1).cpu().numpy()
        return probabilities


def from_checkpoint(
    uri: str, *, backbone: BackboneSource, class_names: Sequence[str]
) -> TransferredModel:
    """The model that a trial measured at the rung whose checkpoint lies at `uri`."""
    tensors, state = load_checkpoint(uri, ("measured",))
    return _assemble(tensors["measured"], state, backbone=backbone, class_names=class_names)


def error_on_test(model: TransferredModel, store: ImageStore) -> float:
    """The model's error (0-1) on the task's test split."""
    error, _ = evaluate(model.module, store.splits["test"], model.inputs)
    return error


def export_model(
    uri: str, folder: Path, *, backbone: BackboneSource, class_names: Sequence[str], card: str
) -> TransferredModel:
    """Writes the model of the checkpoint at `uri` into `folder`, which must be new or empty.

    The folder then holds `model.safetensors`, `model.json` (backbone, structure, recipe, classes,
    measurement: all that `load_exported` needs) and `card` as README.md. No pickle. Raises
    `InputError` when the folder holds other files.
    """
    folder = folder.expanduser().absolute()
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise InputError(f"{folder} exists and is no empty folder; export into a new one.")
    tensors, state = load_checkpoint(uri, ("measured",))
    model = _assemble(tensors["measured"], state, backbone=backbone, class_names=class_names)
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    safetensors.torch.save_file(
        {name: value.clone().contiguous() for name, value in model.module.state_dict().items()},
        unfinished / WEIGHTS_FILE,
    )
    description = {
        "format": FORMAT,
        "backbone": asdict(backbone) | {"weights": None, "mean": model.mean, "std": model.std},
        "classes": list(class_names),
        **{key: state[key] for key in ("recipe", "seed", "structure", "measurement")},
    }
    (unfinished / MODEL_FILE).write_text(json.dumps(description, indent=2) + "\n")
    (unfinished / CARD_FILE).write_text(card, encoding="utf-8")
    if folder.exists():
        folder.rmdir()
    unfinished.rename(folder)
    return model


def load_exported(folder: Path | str, *, factories: Collection[str] = ()) -> TransferredModel:
    """The model that `export_model` wrote into `folder`, in any process.

    Nothing that the folder names is imported or called, except timm's models and the `factories`,
    the backbones by `module:factory` that the caller trusts. Raises `InputError` when the folder
    holds no exported model, or one that asks for more.
    """
    folder = Path(folder).expanduser()
    for name in (MODEL_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise InputError(f"{folder} holds no {name}; give a folder that was exported to.")
    state = json.loads((folder / MODEL_FILE).read_text())
    if state.get("format") != FORMAT:
        raise InputError(
            f"{folder} has format {state.get('format')} and this version reads {FORMAT}; "
            "load it with the version that exported it."
        )
    backbone = BackboneSource(**state["backbone"])
    _check_trusted(backbone, folder, allowed=_allowed.get().union(factories))
    return _assemble(
        safetensors.torch.load_file(folder / WEIGHTS_FILE),
        state,
        backbone=backbone,
        class_names=state["classes"],
    )


@contextmanager
def factories_allowed(*names: str) -> Iterator[None]:
    """Inside the block exported models may have backbones of these `module:factory` names.

    It is the way to trust them where another library calls `load_exported`:

        with factories_allowed("my_nets:make"):
            model = mlflow.pyfunc.load_model("models:/...")
    """
    token = _allowed.set(_allowed.get().union(names))
    try:
        yield
    finally:
        _allowed.reset(token)


def _load_pyfunc(path: str) -> TransferredModel:
    """MLflow's entry: `mlflow.pyfunc.load_model` calls this with the folder it downloaded."""
    return load_exported(path)


def _check_trusted(backbone: BackboneSource, folder: Path, *, allowed: Collection[str]) -> None:
    """Raises `InputError` for a backbone that would run code or read files of others."""
    name = backbone.model
    # a colon makes it a factory, although timm takes what follows a dot for a tag
    if name not in allowed and (":" in name or not timm.is_model(name)):
        raise InputError(
            f"{folder} has the backbone {name!r}, which is no timm model, and loading it would run "
            f"that code; if you trust it, give load_exported factories=[{name!r}], or load it "
            f"inside of factories_allowed({name!r})."
        )
    if name not in allowed and (files := _READS_FILES.intersection(backbone.args)):
        raise InputError(
            f"{folder} asks for the backbone's argument {min(files)!r}, which reads other files, "
            "and an exported model needs none; export it again without that backbone.args."
        )


def _assemble(
    weights: Mapping[str, Tensor],
    state: Mapping[str, Any],
    *,
    backbone: BackboneSource,
    class_names: Sequence[str],
) -> TransferredModel:
    recipe = Recipe.from_dict(state["recipe"])
    module = build(backbone, num_classes=len(class_names))
    mean, std = normalisation(backbone, module)
    load_method(recipe.method).reshape(module, state["structure"], recipe)
    load_weights_into(module, weights)
    return TransferredModel(
        module=module.eval().requires_grad_(requires_grad=False),
        class_names=tuple(class_names),
        resolution=recipe.resolution,
        mean=mean,
        std=std,
        recipe=recipe,
        measurement=Measurement.from_dict(state["measurement"]),
    )
