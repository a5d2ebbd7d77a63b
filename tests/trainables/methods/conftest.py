"""The examples' runs, which the tests of all methods share."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.trainables.methods.example_runs import ExampleRun, RunOf
from tests.trainables.methods.method_examples import examples_of
from trainables.images.store import ImageStore, open_store
from trainables.images.tasks import TaskSource

OTHER_DIGITS = TaskSource(source="digits", classes=("5", "6", "7", "8", "9"), max_train_images=96)


@pytest.fixture(scope="session")
def source(image_cache: Path) -> Callable[[], ImageStore]:
    """Opens the task of five other digits, on which the backbone counts as pretrained."""
    store = open_store(OTHER_DIGITS, resolution=16, cache_dir=image_cache)
    return lambda: store


@pytest.fixture(scope="session")
def run_of(
    digits: ImageStore,
    source: Callable[[], ImageStore],
    tmp_path_factory: pytest.TempPathFactory,
) -> RunOf:
    """Trains an example when it is first asked for."""
    runs: dict[tuple[str, str], ExampleRun] = {}

    def find(method: str, name: str) -> ExampleRun:
        if (method, name) not in runs:
            runs[method, name] = ExampleRun(
                examples_of(method).trained[name],
                store=digits,
                source_task=source,
                folder=tmp_path_factory.mktemp(f"{method}-{name}"),
            )
        return runs[method, name]

    return find
