"""Checkpoints: safetensors and JSON in a folder a rung, on any filesystem Arrow can reach.

A checkpoint exists once its `checkpoint.json`, written last, exists: a writer that dies half-way
leaves a folder that nobody reads and the next attempt replaces.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import safetensors.torch
from pyarrow import fs
from torch import Tensor

STATE = "checkpoint.json"
_FOLDER = re.compile(r"rung-(\d+)")

Tensors = Mapping[str, Mapping[str, Tensor]]


def checkpoint_folder(trial_folder: str, rung: int) -> str:
    """Where a trial's checkpoint of `rung` lies."""
    return f"{trial_folder}/rung-{rung:03d}"


def save_checkpoint(uri: str, *, tensors: Tensors, state: Mapping[str, Any]) -> None:
    """Writes one `NAME.safetensors` for each entry of `tensors`, then `state` as JSON.

    Replaces what lies at `uri`, which no reader takes for whole from the first moment on.
    """
    filesystem, folder = fs.FileSystem.from_uri(uri)
    if filesystem.get_file_info(f"{folder}/{STATE}").is_file:
        filesystem.delete_file(f"{folder}/{STATE}")
    if filesystem.get_file_info(folder).type is not fs.FileType.NotFound:
        filesystem.delete_dir(folder)
    filesystem.create_dir(folder, recursive=True)
    for name, group in tensors.items():
        # Copied, because safetensors refuses tensors that share memory, as tied weights do.
        plain = {key: value.detach().cpu().clone().contiguous() for key, value in group.items()}
        with filesystem.open_output_stream(f"{folder}/{name}.safetensors") as stream:
            stream.write(safetensors.torch.save(plain))
    with filesystem.open_output_stream(f"{folder}/{STATE}.partial") as stream:
        stream.write(json.dumps(state).encode())
    filesystem.move(f"{folder}/{STATE}.partial", f"{folder}/{STATE}")


def load_checkpoint(
    uri: str, names: Sequence[str], *, optional: tuple[str, ...] = ()
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The named tensor groups and the state that `save_checkpoint` wrote at `uri`.

    Groups of `optional` that were not written are left out.
    """
    filesystem, folder = fs.FileSystem.from_uri(uri)
    with filesystem.open_input_stream(f"{folder}/{STATE}") as stream:
        state: dict[str, Any] = json.loads(stream.read())
    tensors: dict[str, Any] = {}
    for name in (*names, *optional):
        path = f"{folder}/{name}.safetensors"
        if name in optional and not filesystem.get_file_info(path).is_file:
            continue
        with filesystem.open_input_stream(path) as stream:
            tensors[name] = safetensors.torch.load(stream.read())
    return tensors, state


def newest_checkpoint(trial_folder: str) -> str | None:
    """Returns where the newest whole checkpoint of the trial lies; None where it has none."""
    rungs = complete_rungs(trial_folder)
    return checkpoint_folder(trial_folder, rungs[-1]) if rungs else None


def complete_rungs(trial_uri: str) -> list[int]:
    """The rungs, ascending, of which the trial at `trial_uri` has a whole checkpoint."""
    filesystem, folder = fs.FileSystem.from_uri(trial_uri)
    selector = fs.FileSelector(folder, recursive=False, allow_not_found=True)
    found = []
    for entry in filesystem.get_file_info(selector):
        match = _FOLDER.fullmatch(entry.base_name)
        if match and filesystem.get_file_info(f"{entry.path}/{STATE}").is_file:
            found.append(int(match.group(1)))
    return sorted(found)
