"""State dicts keep the versions of their modules on every way."""

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from trainables.backbones.build import load_into, load_weights
from trainables.backbones.source import BackboneSource
from trainables.backbones.state import load_weights_into, read_weights, versions_of
from trainables.errors import InputError


class Doubled(nn.Module):
    """Version 1 stored half of the gain, and no version at all is refused."""

    _version = 2

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(3))

    def forward(self, rows: Tensor) -> Tensor:
        return rows * self.gain

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        version = args[0].get("version")
        if version not in (1, 2):
            raise ValueError(f"version should be 1 or 2 instead of {version}")
        if version == 1:
            state_dict[f"{prefix}gain"] = 2 * state_dict[f"{prefix}gain"]
        super()._load_from_state_dict(state_dict, prefix, *args)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Sequential(nn.Linear(3, 3), Doubled())
        self.head = nn.Linear(3, 2)

    def forward(self, rows: Tensor) -> Tensor:
        logits: Tensor = self.head(self.inside(rows))
        return logits


def state_of_version(version: int | None) -> Any:
    state: Any = Net().state_dict()
    state["inside.1.gain"].fill_(3.0)
    if version is None:
        del state._metadata["inside.1"]["version"]
    else:
        state._metadata["inside.1"]["version"] = version
    return state


def loaded_gain(weights: Mapping[str, Tensor]) -> float:
    model = Net()
    load_into(model, weights, source=BackboneSource(model="m", weights="file"))
    return model.get_parameter("inside.1.gain")[0].item()


def _parallel(state: Any) -> Any:
    wrapped = type(state)((f"module.{name}", value) for name, value in state.items())
    wrapped._metadata = {
        f"module.{name}" if name else "module": version for name, version in state._metadata.items()
    }
    return {"epoch": 3, "state_dict": wrapped}


@pytest.mark.parametrize(
    "wrap",
    [lambda state: state, lambda state: {"model": state}, _parallel],
    ids=["alone", "nested", "parallel"],
)
@pytest.mark.parametrize(("version", "gain"), [(1, 6.0), (2, 3.0)])
def test_versions_in_a_file_are_heeded(
    tmp_path: Path, wrap: Callable[[Any], Any], version: int, gain: float
) -> None:
    torch.save(wrap(state_of_version(version)), tmp_path / "file.pth")
    weights = load_weights(BackboneSource(model="m", weights=str(tmp_path / "file.pth")))
    assert weights is not None
    assert loaded_gain(weights) == gain
    assert loaded_gain(pickle.loads(pickle.dumps(weights))) == gain, "on its way to a node"


def test_tensors_without_versions_are_of_the_models_own(tmp_path: Path) -> None:
    safetensors.torch.save_file(dict(state_of_version(2)), tmp_path / "file.safetensors")
    weights = read_weights(tmp_path / "file.safetensors")
    assert versions_of(weights) is None
    assert loaded_gain(weights) == loaded_gain(dict(weights)) == 3.0
    model = Net()
    load_weights_into(model, dict(weights))
    assert torch.equal(model.get_parameter("inside.1.gain"), weights["inside.1.gain"])


def test_a_version_that_the_model_does_not_read_is_said() -> None:
    with pytest.raises(InputError, match="cannot be loaded into m .*instead of 9.*save the state"):
        loaded_gain(state_of_version(9))
