"""A sweep knows its task and its weights by their content, wherever they lie."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from pyarrow import fs
from safetensors.torch import save_file

from orchestrator.config import SweepConfig, validate
from orchestrator.identity import Identity, changed_versions, check_same, identify
from orchestrator.inputs import SweepInputs
from orchestrator.store.beginnings import recorded_identity
from orchestrator.store.journal import Journal
from orchestrator.store.ledger import Ledger
from trainables.backbones import build as backbones
from trainables.backbones.source import BackboneSource
from trainables.errors import InputError

Change = Callable[[Path], object]
"""Changes something of what a sweep is made from."""


@pytest.fixture
def made_from(tmp_path: Path) -> Path:
    """A folder with a task and weights."""
    for name in ("cat", "dog"):
        _add_class(tmp_path, name)
    save_file(backbones.build(_SMALL, num_classes=2).state_dict(), tmp_path / "w.safetensors")
    return tmp_path


_SMALL = BackboneSource(model="test_resnet")


def _add_class(folder: Path, name: str = "cow") -> None:
    (folder / "task" / name).mkdir(parents=True)
    for number in range(8):
        color = (len(name), ord(name[0]), 10 * number)
        Image.new("RGB", (8, 8), color).save(folder / "task" / name / f"{number}.png")


def identity(folder: Path, **task: Any) -> Identity:
    values = {
        "name": "pets",
        "task": {"source": str(folder / "task"), "resolution": 8, **task},
        "backbone": {"model": "test_resnet", "weights": str(folder / "w.safetensors")},
        "budget": {"trials": 1},
        "rungs": {"min_flops": 1e9, "max_flops": 2e9},
        "storage": {"cache": str(folder / "cache")},
    }
    return identify(SweepInputs(validate(SweepConfig, values, what="the test")))


def _another_image(folder: Path) -> None:
    Image.new("RGB", (8, 8), (1, 2, 3)).save(folder / "task" / "cat" / "0.png")


def _images_swapped(folder: Path) -> None:
    one, other = folder / "task" / "cat" / "0.png", folder / "task" / "dog" / "0.png"
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)


def _image_gone(folder: Path) -> None:
    (folder / "task" / "cat" / "0.png").unlink()


def _class_renamed(folder: Path) -> None:
    (folder / "task" / "dog").rename(folder / "task" / "hound")


def _one_weight(folder: Path) -> None:
    state = backbones.load_weights(
        BackboneSource(model="test_resnet", weights=str(folder / "w.safetensors"))
    )
    assert state is not None
    changed = {name: value.clone() for name, value in state.items()}
    changed["conv1.0.weight"].view(-1)[0] += 1e-3
    save_file(changed, folder / "w.safetensors")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (_another_image, "the images or labels of task"),
        (_images_swapped, "the images or labels of task"),
        (_image_gone, "the images or labels of task"),
        (_add_class, "the classes of task (new: cow) and of the images"),
        (_class_renamed, "the classes of task (new: hound; gone: dog) and of the images"),
        (_one_weight, "another state of the weights of backbone, and"),
    ],
)
def test_content_that_was_changed_in_its_place_is_refused(
    made_from: Path, change: Change, told: str
) -> None:
    before = identity(made_from)
    check_same(identity(made_from), before, sweep=made_from)
    change(made_from)
    with pytest.raises(InputError) as caught:
        check_same(identity(made_from), before, sweep=made_from)
    assert told in str(caught.value)
    assert str(caught.value).endswith("or choose another name.")


def test_content_may_be_touched_and_made_anew(made_from: Path) -> None:
    before = identity(made_from)
    for path in made_from.glob("task/*/*.png"):
        path.write_bytes(path.read_bytes())
    weights = torch.load(_as_state_dict(made_from), weights_only=True)
    save_file(weights, made_from / "w.safetensors")
    assert identity(made_from) == before


def _as_state_dict(folder: Path) -> Path:
    source = BackboneSource(model="test_resnet", weights=str(folder / "w.safetensors"))
    torch.save(dict(backbones.load_weights(source) or {}), folder / "w.pth")
    return folder / "w.pth"


def test_other_versions_are_told_and_do_not_refuse(made_from: Path) -> None:
    before = identity(made_from)
    torch_version = before.versions["torch"]
    assert torch.__version__.startswith(torch_version)
    now = replace(before, versions=dict(before.versions) | {"torch": "9.9"})
    check_same(now, before, sweep=made_from)
    assert changed_versions(now, before) == f"torch {torch_version}, now 9.9"
    with pytest.raises(InputError, match=r"\(and with torch .*, now 9\.9\)"):
        check_same(replace(now, weights="other"), before, sweep=made_from)


def test_the_journal_keeps_what_the_sweep_was_begun_with(made_from: Path) -> None:
    filesystem = fs.SubTreeFileSystem(str(made_from), fs.LocalFileSystem())
    journal = Journal(filesystem, "journal")
    ledger = Ledger(journal)
    ledger.open(sweep_id="older")
    assert recorded_identity(journal) is None
    first = identity(made_from)
    ledger.open(sweep_id="pets", identity=first.to_dict())
    ledger.open(sweep_id="pets", identity=replace(first, versions={}).to_dict())
    journal.close()
    recorded = recorded_identity(Journal(filesystem, "journal"))
    assert recorded is not None
    assert Identity.from_dict(recorded) == first
    assert Identity.from_dict({**recorded, "a key of later": 1}) == first
