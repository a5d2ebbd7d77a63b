"""Head-only recipes: features extracted once, shared by a node's trials, and only a head trained.

A recipe is charged the extraction as if it ran alone; what it found ready in the feature store was
not executed for it. The features are those of eval mode and of images without augmentation.
"""

import hashlib
import json
import math
from pathlib import Path

import torch
from torch import Tensor, nn

from search_spaces.recipe import Recipe
from trainables.backbones.layers import classifier
from trainables.backbones.trunk import FrozenTrunk
from trainables.batches.epochs import Epochs
from trainables.batches.feature_store import (
    SMALLEST_CHUNK,
    Features,
    balanced_order,
    open_features,
    whole_chunks,
)
from trainables.batches.interface import Inputs
from trainables.costs.flops import StepCost, trace_flops
from trainables.errors import InfeasibleError
from trainables.images.store import ImageStore, Split
from trainables.learning.evaluation import evaluate
from trainables.learning.parts_that_fit import in_parts_that_fit

EXTRACTION_SHARE = 0.9
"""Share of the compute aimed at that extraction may take where it cannot pay for all images. The
rest is steps of the head, which cost about a thousandth of an image's extraction."""
MAX_PASSES = 100
"""Passes over the features after which a head gains nothing: cheap steps would otherwise run by
the million. The trial ends there, below the compute it aims at."""

_FORMAT = 1  # raise it when the order of the images, the chunks or their inputs change


class FeatureBatches:
    """Stored features for the head alone.

    Raises `InfeasibleError` when the compute aimed at pays for too few images.
    """

    step_images = 0

    def __init__(
        self,
        *,
        recipe: Recipe,
        seed: int,
        store: ImageStore,
        trunk: FrozenTrunk,
        inputs: Inputs,
        normalisation: object,
        cost: StepCost,
        budget_flops: float,
        spent_flops: float,
        device: torch.device,
    ) -> None:
        """`cost` is that of the whole model, `normalisation` what `inputs` applies, as JSON.

        `budget_flops` is the highest rung aimed at, `spent_flops` what preparing has taken of it.
        """
        head = trace_flops(trunk.head, input_shape=trunk.feature_shape)
        extraction = cost.forward_flops - head.forward_flops
        self._train, self._validation = store.splits["train"], store.splits["validation"]
        self.step_flops = head.train_flops * recipe.batch_size
        self._images = _affordable(
            budget_flops,
            spent_flops=spent_flops,
            image_flops=extraction,
            step_flops=self.step_flops,
            total=len(self._train),
        )
        self._extraction_flops = extraction
        self.setup_images = self._images
        self.depends_on_target = self._images < len(self._train)
        self.setup_flops = self._images * extraction
        self.max_steps: int | None = math.ceil(MAX_PASSES * self._images / recipe.batch_size)
        self.eval_setup_flops = len(self._validation) * extraction
        self.eval_flops = len(self._validation) * head.forward_flops
        self._trunk = trunk
        self._inputs = inputs
        self._identity = json.dumps(
            [
                _FORMAT,
                torch.__version__,
                device.type,
                store.folder.name,
                [len(self._train), len(self._validation)],
                recipe.resolution,
                normalisation,
            ]
        )
        self._folder = store.folder.parent / "features"
        self._batch_size = recipe.batch_size
        self._epochs = Epochs(images=self._images, seed=seed)
        self._device = device
        # Those that are extracted, in the order of the source, and where their features lie: with
        # all of them, the batches are those of the images' own.
        order = balanced_order(self._train.labels)
        chosen, self._rows = order[: self._images].sort()
        self._order, self._labels = order, self._train.labels[chosen]

    def open(self) -> float:
        identity = f"{self._identity} {self._trunk.fingerprint()}"
        folder = self._folder / hashlib.sha256(identity.encode()).hexdigest()[:16]
        features = self._stored(folder / "train.f32", self._train, self._order, self._images)
        self._features = features.rows
        everything = torch.arange(len(self._validation))
        looked_at = self._stored(
            folder / "validation.f32", self._validation, everything, len(everything)
        )
        self._looked_at = Split(images=looked_at.rows, labels=self._validation.labels)
        return features.extracted * self._extraction_flops

    def train(self, step: int) -> tuple[Tensor, Tensor]:
        indices = self._epochs.batch(step, size=self._batch_size)
        inputs = self._features[self._rows[indices]].to(self._device, non_blocking=True)
        return inputs, self._labels[indices].to(self._device)

    def trained(self, model: nn.Module) -> nn.Module:
        return nn.Sequential(classifier(model), nn.Flatten())  # a convolution's are [B, C, 1, 1]

    def evaluate(self, model: nn.Module) -> tuple[float, float]:
        return evaluate(self.trained(model), self._looked_at, lambda rows: rows.to(self._device))

    def _stored(self, path: Path, split: Split, order: Tensor, images: int) -> Features:
        def extract(first: int, last: int) -> Tensor:
            images = order[first:last]

            def features(rows: slice) -> Tensor:
                return self._trunk.features(self._inputs(split.images[images[rows]]))

            return torch.cat(list(in_parts_that_fit(features, len(images), part=len(images))))

        return open_features(
            path,
            images=images,
            total=len(split),
            shape=self._trunk.feature_shape,
            extract=extract,
        )


def _affordable(
    budget_flops: float, *, spent_flops: float, image_flops: float, step_flops: float, total: int
) -> int:
    """Images to extract for a recipe that may spend `budget_flops`, `spent_flops` of it before."""
    left = budget_flops - spent_flops
    affordable = EXTRACTION_SHARE * left / image_flops if image_flops else math.inf
    images = whole_chunks(affordable, total=total)
    if images == 0 or images * image_flops + step_flops > left:
        least = min(SMALLEST_CHUNK, total)
        raise InfeasibleError(
            f"preparing costs {spent_flops:.3g} FLOPs, the features of {least} images "
            f"{least * image_flops:.3g} and one step of the head {step_flops:.3g}, too much for "
            f"the {budget_flops:.3g} of the highest rung aimed at, of which features get "
            f"{EXTRACTION_SHARE:.0%} of what preparing leaves",
            spent_flops=spent_flops,
            needs_flops=spent_flops
            + max(least * image_flops / EXTRACTION_SHARE, step_flops / (1 - EXTRACTION_SHARE)),
        )
    return images
