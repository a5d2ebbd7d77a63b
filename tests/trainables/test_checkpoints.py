"""Checkpoints: whole or not there."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from trainables.checkpoints import (
    STATE,
    checkpoint_folder,
    complete_rungs,
    load_checkpoint,
    save_checkpoint,
)

TENSORS = {"model": {"w": torch.arange(6.0).view(2, 3), "n": torch.tensor(4)}, "momentum": {}}


@pytest.fixture(params=["path", "uri", "uri with a space"])
def trial(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "path":
        return str(tmp_path / "trial")
    name = "my trial" if request.param == "uri with a space" else "trial"
    return (tmp_path / name).as_uri()


def test_what_is_saved_is_loaded(trial: str) -> None:
    uri = checkpoint_folder(trial, 3)
    save_checkpoint(uri, tensors=TENSORS, state={"step": 5, "structure": {"cuts": []}})
    tensors, state = load_checkpoint(uri, ("model", "momentum"))
    assert state == {"step": 5, "structure": {"cuts": []}}
    assert torch.equal(tensors["model"]["w"], TENSORS["model"]["w"])
    assert tensors["model"]["n"].dtype == torch.int64
    assert tensors["momentum"] == {}
    assert complete_rungs(trial) == [3]


def test_rungs_are_numbers_in_order(trial: str) -> None:
    for rung in (10, 2, 1000):
        save_checkpoint(checkpoint_folder(trial, rung), tensors=TENSORS, state={})
    assert complete_rungs(trial) == [2, 10, 1000]


def test_a_trial_that_never_ran_has_none(trial: str) -> None:
    assert complete_rungs(trial) == []


@pytest.mark.parametrize("left", [(), ("model.safetensors",), (f"{STATE}.partial",)])
def test_a_checkpoint_of_a_writer_that_died_is_not_there_and_is_replaced(
    tmp_path: Path, left: tuple[str, ...]
) -> None:
    save_checkpoint(checkpoint_folder(str(tmp_path), 0), tensors=TENSORS, state={})
    broken = tmp_path / "rung-001"
    broken.mkdir()
    for name in left:
        (broken / name).write_bytes(b"half")
    assert complete_rungs(str(tmp_path)) == [0]
    save_checkpoint(str(broken), tensors=TENSORS, state={"step": 1})
    assert complete_rungs(str(tmp_path)) == [0, 1]
    assert {path.name for path in broken.iterdir()} == {
        STATE,
        "model.safetensors",
        "momentum.safetensors",
    }


def test_other_folders_and_files_are_no_rungs(tmp_path: Path) -> None:
    for name in ("rung-x", "a-rung-001", "rung-001x", "notes"):
        (tmp_path / name).mkdir()
        (tmp_path / name / STATE).write_text("{}")
    (tmp_path / "rung-004").write_text("a file")
    assert complete_rungs(str(tmp_path)) == []


def test_a_write_that_fails_leaves_no_checkpoint(tmp_path: Path) -> None:
    uri = checkpoint_folder(str(tmp_path), 0)
    save_checkpoint(uri, tensors=TENSORS, state={"step": 1})
    with pytest.raises(TypeError):
        save_checkpoint(uri, tensors=TENSORS, state={"step": object()})
    assert complete_rungs(str(tmp_path)) == []


def test_views_tied_weights_and_gradients_are_saved_by_value(tmp_path: Path) -> None:
    layer = nn.Linear(3, 3)
    shared = {"a": layer.weight, "b": layer.weight, "transposed": layer.weight.t()}
    save_checkpoint(str(tmp_path / "rung-000"), tensors={"model": shared}, state={})
    tensors, _ = load_checkpoint(str(tmp_path / "rung-000"), ("model",))
    assert torch.equal(tensors["model"]["b"], layer.weight)
    assert torch.equal(tensors["model"]["transposed"], layer.weight.t())


def test_a_checkpoint_that_is_gone_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_checkpoint(str(tmp_path / "rung-000"), ("model",))


def test_the_state_is_plain_json(tmp_path: Path) -> None:
    save_checkpoint(str(tmp_path / "rung-000"), tensors={}, state={"seed": 2**63 - 1})
    assert json.loads((tmp_path / "rung-000" / STATE).read_text()) == {"seed": 2**63 - 1}
