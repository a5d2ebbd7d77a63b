"""Sets larger than the memory: decoded as a stream, mapped, and read a batch at a time."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from trainables.images.memory_map import map_npy

IMAGES, SIDE = 12800, 64  # 157 MB, encoded as well as decoded, for noise cannot be compressed
ALLOWED = 100 << 20
"""Bytes that the process may take beyond what its imports took; with more it is ended. It takes
about 60 MB whether the images are 60 MB or 240."""

TRAINING = """
import os, sys, threading, time
from pathlib import Path
import torch
from trainables.batches.epochs import Epochs
from trainables.images.augment import augment
from trainables.images.store import open_store
from trainables.images.tasks import TaskSource
from trainables.seeds import generator

source, cache, side, allowed = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
torch.set_num_threads(1)
augment(torch.zeros(2, 3, 8, 8), strength=0.5, mirror=True, generator=generator(0))

# bytes in memory that are the process's own: not pages of files, which can be dropped
def held():
    _, resident, shared, *_ = Path("/proc/self/statm").read_text().split()
    return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")

def watch():
    while True:
        if held() > limit:
            print("more than was allowed", flush=True)
            os._exit(1)
        time.sleep(0.002)

limit = held() + allowed
threading.Thread(target=watch, daemon=True).start()

split = open_store(TaskSource(source=source), resolution=side, cache_dir=cache).splits["train"]
epochs, seen = Epochs(images=len(split), seed=0), 0
for step in range(len(split) // 16 + 1):
    images = split.images[epochs.batch(step, size=16)]
    seen += len(augment(images, strength=0.5, mirror=True, generator=generator(step)))
print(len(split), seen)
"""


def as_parquet(folder: Path, pngs: list[bytes]) -> None:
    schema = pa.schema([("image", pa.binary()), ("label", pa.int64())])
    with pq.ParquetWriter(
        folder / "train.parquet", schema, use_dictionary=False, compression="none"
    ) as writer:
        for first in range(0, IMAGES, 200):
            rows = range(first, first + 200)
            images = [pngs[row % len(pngs)] for row in rows]
            table = {"image": images, "label": [row % 2 for row in rows]}
            writer.write_table(pa.table(table, schema=schema))


def as_folders(folder: Path, pngs: list[bytes]) -> None:
    for number, png in enumerate(pngs):
        first = folder / str(number % 2) / f"{number}.png"
        first.parent.mkdir(exist_ok=True)
        first.write_bytes(png)
        for copy in range(1, IMAGES // len(pngs)):
            first.with_name(f"{number}-{copy}.png").hardlink_to(first)


@pytest.mark.parametrize("write", [as_parquet, as_folders])
def test_decoding_and_batches_take_less_memory_than_the_images(
    write: Callable[[Path, list[bytes]], None], tmp_path: Path
) -> None:
    draws = np.random.default_rng(0)
    pngs = []
    for _ in range(100):
        buffer = BytesIO()
        pixels = draws.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(buffer, "PNG", compress_level=0)
        pngs.append(buffer.getvalue())
    source = tmp_path / "source"
    source.mkdir()
    write(source, pngs)
    arguments = [str(source), str(tmp_path / "cache"), str(SIDE), str(ALLOWED)]
    done = subprocess.run(
        [sys.executable, "-c", TRAINING, *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    train, seen = map(int, done.stdout.split())
    assert seen >= train > 0.5 * IMAGES
    assert IMAGES * 3 * SIDE**2 > 1.4 * ALLOWED
    shutil.rmtree(tmp_path)


def test_images_that_would_not_fit_into_memory_are_mapped(tmp_path: Path) -> None:
    path = tmp_path / "images.npy"
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    images = 2 * memory // (3 * SIDE**2)
    with path.open("wb") as file:  # sparse: it takes no room on the disk
        header = {"descr": "|u1", "fortran_order": False, "shape": (images, 3, SIDE, SIDE)}
        np.lib.format.write_array_header_1_0(file, header)
        file.truncate(file.tell() + images * 3 * SIDE**2)
    mapped = map_npy(path)
    assert len(mapped) == images
    assert mapped[[0, images // 2, images - 1]].sum() == 0
