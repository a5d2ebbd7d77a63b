"""Decoded images that are no longer as they were written are found, and made anew."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from trainables.images.store import ImageStore, open_store
from trainables.images.tasks import TaskSource

DIGITS = TaskSource(source="digits", max_train_images=20)


def opened(cache: Path, *, trusting: bool = False) -> ImageStore:
    return open_store(DIGITS, resolution=8, cache_dir=cache, trusting=trusting)


@pytest.fixture
def sound(tmp_path: Path) -> ImageStore:
    """A store that lies in `tmp_path`, with copies of its images, which damage does not reach."""
    store = opened(tmp_path)
    splits = {
        name: replace(split, images=split.images.clone()) for name, split in store.splits.items()
    }
    return replace(store, splits=splits)


def same(one: ImageStore, other: ImageStore) -> bool:
    """Tells whether the two are equal in every pixel and label."""
    if one.digest != other.digest or one.splits.keys() != other.splits.keys():
        return False
    for name, split in one.splits.items():
        if not torch.equal(split.images, other.splits[name].images):
            return False
        if not torch.equal(split.labels, other.splits[name].labels):
            return False
    return True


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def impossible(path: Path) -> None:
    np.save(path, np.full(len(np.load(path)), 99))


def shorten(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


DAMAGES = [
    ("train.npy", flip),
    ("test.npy", shorten),
    ("validation.npy", Path.unlink),
    ("train.labels.npy", impossible),
    ("store.json", shorten),
    ("store.json", flip),
    ("store.json", Path.unlink),
]


@pytest.mark.parametrize("trusting", [True, False])
@pytest.mark.parametrize(("name", "damage"), DAMAGES)
def test_what_was_damaged_is_made_anew_once(
    sound: ImageStore,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    name: str,
    damage: Callable[[Path], None],
    *,
    trusting: bool,
) -> None:
    damage(sound.folder / name)
    assert same(opened(tmp_path, trusting=trusting), sound)
    assert caplog.text.count("are damaged (") == 1
    assert same(opened(tmp_path, trusting=trusting), sound)
    assert caplog.text.count("are damaged (") == 1
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_what_lies_in_the_stores_place_is_damage(sound: ImageStore, tmp_path: Path) -> None:
    shutil.rmtree(sound.folder)
    sound.folder.mkdir()
    assert same(opened(tmp_path), sound)
    shutil.rmtree(sound.folder)
    sound.folder.write_text("in the way")
    assert same(opened(tmp_path), sound)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_changed_class_name_is_damage(sound: ImageStore, tmp_path: Path) -> None:
    path = sound.folder / "store.json"
    stored = json.loads(path.read_text())
    stored["content"]["class_names"][0] = "seven"
    path.write_text(json.dumps(stored))
    assert opened(tmp_path).class_names == sound.class_names


def test_damage_that_left_no_trace_is_found_unless_trusted(
    sound: ImageStore, tmp_path: Path
) -> None:
    """A bit that flips on the disk changes no time, which nothing but reading the file finds."""
    flip(path := sound.folder / "train.npy")
    status = path.stat()
    stamp = [status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]
    verified = sound.folder / "verified.json"
    verified.write_text(json.dumps(json.loads(verified.read_text()) | {"train.npy": stamp}))
    assert not same(opened(tmp_path, trusting=True), sound)
    assert same(opened(tmp_path), sound)


def test_the_digest_tells_tasks_apart(sound: ImageStore, tmp_path: Path) -> None:
    other = TaskSource(source="digits", max_train_images=20, split_seed=1)
    assert open_store(other, resolution=8, cache_dir=tmp_path).digest != sound.digest
    assert opened(tmp_path / "elsewhere").digest == sound.digest
