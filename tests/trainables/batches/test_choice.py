"""The choice of batches: features where training the head on them is training the model."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.trainables.recipes import SMALL, make_recipe, make_trial
from trainables.backbones.source import BackboneSource
from trainables.batches.features import FeatureBatches
from trainables.batches.images import ImageBatches
from trainables.images.store import ImageStore

DROPS = BackboneSource(model="test_resnet", args={"drop_rate": 0.3})


@pytest.mark.parametrize(
    ("source", "changes", "kind"),
    [
        (SMALL, {}, FeatureBatches),
        (SMALL, {"pruning_ratio": 0.5}, FeatureBatches),
        (SMALL, {"augmentation": 0.1}, ImageBatches),
        (SMALL, {"mixup": 0.2}, ImageBatches),
        (SMALL, {"cutmix": 1.0}, ImageBatches),
        (SMALL, {"trainable_depth": 0.2}, ImageBatches),
        (DROPS, {}, ImageBatches),
    ],
    ids=["head", "pruned", "augmented", "mixup", "cutmix", "deeper", "dropout"],
)
def test_features_are_chosen_where_the_head_sees_nothing_else(
    digits: ImageStore, tmp_path: Path, source: BackboneSource, changes: dict[str, Any], kind: type
) -> None:
    store = replace(digits, folder=tmp_path / "cache" / digits.folder.name)
    recipe = make_recipe(**{"trainable_depth": 0.0, "target_flops": 1e9} | changes)
    assert type(make_trial(store, recipe, source=source, levels=(1e9,)).batches) is kind
