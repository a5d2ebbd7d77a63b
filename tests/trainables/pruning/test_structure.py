"""Structures as data."""

import json

import pytest

from trainables.errors import InputError
from trainables.pruning import PrunedStructure
from trainables.pruning.channels.groups import Side
from trainables.pruning.structure import Cut


def test_structures_survive_json() -> None:
    structure = PrunedStructure(
        cuts=(
            Cut(name="a.b", side=Side.OUT, width=4, kept=(0, 2)),
            Cut(name="c", side=Side.BOTH, width=3, kept=(1,)),
        )
    )
    text = json.dumps(structure.to_dict())
    assert PrunedStructure.from_dict(json.loads(text)) == structure
    assert structure.cuts[0].removed == (1, 3)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"cuts": [{"name": "a", "side": "up", "width": 4, "kept": [0]}]},
        {"cuts": [{"name": "a", "side": "out", "width": 4, "kept": [2, 1]}]},
        {"cuts": [{"name": "a", "side": "out", "width": 4, "kept": [4]}]},
        {"cuts": [{"name": "a", "side": "out", "width": 4, "kept": []}]},
        {"cuts": 3},
    ],
)
def test_a_structure_that_was_not_written_by_a_pruning_is_refused(
    values: dict[str, object],
) -> None:
    with pytest.raises(InputError, match=r"no pruned structure|must be ascending"):
        PrunedStructure.from_dict(values)
