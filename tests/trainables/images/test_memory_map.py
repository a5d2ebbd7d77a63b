"""Mapped arrays: private, lasting, and as large as the disk has room for."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from trainables.images.memory_map import map_private

HEADER = 64
ROWS = np.arange(30, dtype=np.float32).reshape(10, 3)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "rows"
    path.write_bytes(b"#" * HEADER + ROWS.tobytes())
    return path


def test_the_rows_asked_for_are_read_after_the_file_is_closed_and_gone(path: Path) -> None:
    with path.open("rb") as file:
        mapped = map_private(file, dtype=np.float32, shape=(4, 3), offset=HEADER)
    path.unlink()
    assert torch.equal(mapped, torch.from_numpy(ROWS[:4]))


def test_writing_changes_neither_the_file_nor_another_map(path: Path) -> None:
    before = path.read_bytes()
    with path.open("r+b") as file:
        one, other = (
            map_private(file, dtype=np.float32, shape=(10, 3), offset=HEADER) for _ in range(2)
        )
    one.zero_()
    assert torch.equal(other, torch.from_numpy(ROWS))
    assert path.read_bytes() == before


def test_a_file_larger_than_the_memory_is_mapped(path: Path) -> None:
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    rows = 2 * memory // ROWS[0].nbytes
    with path.open("r+b") as file:  # sparse: it takes no room on the disk
        file.truncate(HEADER + rows * ROWS[0].nbytes)
        mapped = map_private(file, dtype=np.float32, shape=(rows, 3), offset=HEADER)
    assert torch.equal(mapped[9], torch.from_numpy(ROWS[9]))
    assert not mapped[-1].any()


def test_a_file_that_is_too_short_is_refused(path: Path) -> None:
    with path.open("rb") as file, pytest.raises(ValueError, match="greater than file size"):
        map_private(file, dtype=np.float32, shape=(11, 3), offset=HEADER)
