"""A small task that the tests of this room share."""

from pathlib import Path

import pytest
import torch
from hypothesis import settings

from tests.trainables.recipes import DIGITS
from trainables.images.store import ImageStore, open_store

settings.register_profile("busy machine", deadline=None)
settings.load_profile("busy machine")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def image_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where decoded images lie."""
    return tmp_path_factory.mktemp("images")


@pytest.fixture(scope="session")
def digits(image_cache: Path) -> ImageStore:
    """96 training and 87 validation images of four digits, at 16 pixels."""
    return open_store(DIGITS, resolution=16, cache_dir=image_cache)
