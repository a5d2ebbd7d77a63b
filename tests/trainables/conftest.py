"""A small task that the tests of this room share."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from trainables.images.store import ImageStore, Split, open_store
from trainables.images.tasks import TaskSource

settings.register_profile("busy machine", deadline=None)
settings.load_profile("busy machine")

DIGITS = TaskSource(source="digits", max_train_images=96)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def image_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where decoded images lie."""
    return tmp_path_factory.mktemp("images")


@pytest.fixture(scope="session")
def digits(image_cache: Path) -> ImageStore:
    """96 training and 60 validation images of the ten digits, at 16 pixels."""
    store = open_store(DIGITS, resolution=16, cache_dir=image_cache)
    validation = store.splits["validation"]
    fewer = Split(images=validation.images[:60], labels=validation.labels[:60])
    return replace(store, splits={**store.splits, "validation": fewer})
