"""A whole sweep starts from an earlier one, and goes on when that one is gone."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.config import SweepConfig, read_begun, validate
from orchestrator.sweep import Sweep
from tests.journals import events_of


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


def run(folder: Path, *, trials: int, after: tuple[Path, ...] = (), **values: Any) -> None:
    config = {
        "name": folder.name,
        "task": {"source": "digits", "resolution": 16, "mirror": False, "max_train_images": 100},
        "backbone": {"model": "test_resnet"},
        "budget": {"trials": trials},
        "rungs": {"min_flops": 2e9, "max_flops": 5e9},
        "resources": {"concurrent": 1},
        "storage": {"folder": str(folder), "cache": str(folder.parent / "cache")},
    }
    read = validate(SweepConfig, config | values, what="the test")
    Sweep(read, after=[str(earlier) for earlier in after]).run()


def happened(folder: Path, event: str) -> list[dict[str, Any]]:
    return [each for each in events_of(folder) if each["event"] == event]


def test_a_sweep_starts_from_an_earlier_one_and_resumes_without_it(
    local_ray: None, runs: Path
) -> None:
    earlier, later = runs / "earlier", runs / "later"
    start = [{"pruning_ratio": 0.5, "criterion": "l1", "learning_rate": 0.01, "optimizer": "sgd"}]
    run(earlier, trials=2, space={"start": start})
    first = happened(earlier, "suggested")[0]
    assert first["start"] == 0
    assert first["params"].items() >= start[0].items()

    run(later, trials=1, after=(earlier,))
    shutil.rmtree(earlier)
    run(later, trials=2, after=(earlier,))

    (started,) = happened(later, "started_with")
    assert [recipe["origin"].split(",")[0] for recipe in started["recipes"]] == ["earlier"]
    tried, drawn = happened(later, "suggested")
    assert [tried["start"], drawn["start"]] == [0, None]
    assert tried["params"].items() >= started["recipes"][0]["values"].items()


def test_a_sweep_that_was_begun_before_auto_keeps_its_search(local_ray: None, runs: Path) -> None:
    older = runs / "older"
    run(older, trials=1, search={"sampler": "tpe", "scheduler": "halving"})
    forget_names(older)

    run(older, trials=2)

    opened = happened(older, "opened")
    assert [each.get("search") for each in opened] == [
        None,
        {"sampler": "tpe", "scheduler": "halving"},
    ]
    assert read_begun(older / "sweep.yaml").search.names == opened[-1]["search"]
    (started,) = happened(older, "started_with")
    assert started["recipes"] == [], "nor does it get a portfolio on its way"


def forget_names(folder: Path) -> None:
    """Makes a sweep one that an older prunetune began, which had nothing to choose by name."""
    for segment in (folder / "journal").glob("segment-*"):
        events = [json.loads(line) for line in segment.read_text().splitlines()]
        for event in events:
            event.pop("search", None)
        segment.write_text("".join(json.dumps(event) + "\n" for event in events))
    config = yaml.safe_load((folder / "sweep.yaml").read_text())
    del config["search"]["sampler"], config["search"]["scheduler"]
    (folder / "sweep.yaml").write_text(yaml.safe_dump(config))
