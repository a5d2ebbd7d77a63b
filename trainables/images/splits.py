"""The splits of a task into images that train, that choose and that judge."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainables.errors import InputError, Key
from trainables.images.catalog import DEVTEST, TEST, TRAIN, VALIDATION
from trainables.images.faults import refusal

Indices = NDArray[np.intp]
Labels = NDArray[np.int64]

TRAIN_SHARES: Mapping[frozenset[str], Mapping[str, int]] = {
    frozenset({TRAIN}): {TRAIN: 56, VALIDATION: 12, DEVTEST: 12, TEST: 20},
    frozenset({TRAIN, TEST}): {TRAIN: 70, VALIDATION: 15, DEVTEST: 15},
    frozenset({TRAIN, VALIDATION}): {TRAIN: 80, TEST: 20},
    frozenset({TRAIN, VALIDATION, TEST}): {TRAIN: 100},
}
"""Per cent of the official train part that go to each split, by the parts a source has.

The first two are the protocol of Nevis'22 (arXiv 2211.11747). Ours: three official parts are
taken as they are, where Nevis cuts train again and holds the official validation part out; and
where only test is missing, it is cut from train at the protocol's 20 %.
"""


@dataclass(frozen=True, kw_only=True)
class SplitRows:
    """The images of one split."""

    part: str
    """The official part that they all come from."""
    indices: Indices
    """[n] positions in that part, ascending."""


def plan_splits(
    parts: Mapping[str, Labels],
    class_names: Sequence[str],
    *,
    seed: int,
    max_train_images: int | None = None,
    max_validation_images: int | None = None,
) -> dict[str, SplitRows]:
    """Plans train, validation and test, and `devtest` where the rule holds one out.

    `parts` are the labels of the official parts, `TRAIN_SHARES` is the rule. Cuts are seeded and
    stratified, equal on every machine. Every class is in train and validation, and in test where
    that is cut here; else `InputError` names the class. `devtest` judges the search itself and is
    never read by a sweep; it is left out where it would be empty.
    """
    shares = TRAIN_SHARES.get(frozenset(parts))
    if shares is None:
        raise InputError(
            f"The parts found are {', '.join(sorted(parts)) or 'none'}, but images to train on "
            "are needed; name a part 'train', alone or next to 'validation' and 'test'."
        )
    required = [split for split in shares if split != DEVTEST]
    _check_classes(parts, class_names, required=required, shares=shares)

    cut = stratified_cut(parts[TRAIN], shares=shares, required=required, seed=seed)
    splits = {name: SplitRows(part=TRAIN, indices=rows) for name, rows in cut.items() if rows.size}
    for name in (VALIDATION, TEST):
        if name in parts:
            splits[name] = SplitRows(part=name, indices=np.arange(len(parts[name])))
    for name, limit in ((TRAIN, max_train_images), (VALIDATION, max_validation_images)):
        if limit is not None:
            whole = splits[name]
            labels = parts[whole.part][whole.indices]
            key = Key(f"max_{name}_images")
            chosen = stratified_sample(labels, limit=limit, seed=seed, key=key)
            splits[name] = SplitRows(part=whole.part, indices=whole.indices[chosen])
    return {name: splits[name] for name in (TRAIN, VALIDATION, DEVTEST, TEST) if name in splits}


def stratified_cut(
    labels: Labels, *, shares: Mapping[str, int], required: Collection[str], seed: int
) -> dict[str, Indices]:
    """Cuts `labels` into one piece per share: disjoint, covering, ascending positions.

    Every piece has its share of every class to within one image, and every piece in `required`
    at least one image of each class, which needs as many images of it as there are such pieces.
    scikit-learn's stratified splits keep totals instead, and leave a small class out of a piece.
    """
    counts = np.bincount(labels)
    quotas = np.array(list(shares.values()), dtype=np.int64)
    floors = np.array([int(name in required) for name in shares], dtype=np.int64)
    taken = _draw(labels, _apportion(counts, quotas, floors), seed=seed)
    return dict(zip(shares, taken, strict=True))


def stratified_sample(labels: Labels, *, limit: int, seed: int, key: Key) -> Indices:
    """Returns ascending positions of `limit` of the `labels`, or of all if there are no more.

    One image of every class is chosen first, the rest in proportion. Raises `InputError` when
    `limit`, which the user sets as `key`, is below the number of classes.
    """
    counts = np.bincount(labels)
    classes = np.count_nonzero(counts)
    if limit < classes:
        raise InputError(
            key,
            f"={limit} must be at least the number of classes, {classes}, so that every class is "
            "there; raise it, or name fewer in ",
            Key("classes"),
            ".",
        )
    if limit >= len(labels):
        return np.arange(len(labels))
    first = np.minimum(counts, 1)
    quotas = np.array([limit - classes, len(labels) - limit], dtype=np.int64)
    more = _apportion(counts - first, quotas, np.zeros(2, dtype=np.int64))
    return _draw(labels, more + np.stack([first, 0 * first], axis=1), seed=seed)[0]


def _apportion(
    counts: NDArray[np.int64], quotas: NDArray[np.int64], floors: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Returns [C, K], the images of each class that each piece gets; rows add up to `counts`.

    Class by class, every piece first gets the whole images of its share; the images left over go
    to the pieces that are owed most, counting earlier classes, so that equal classes do not all
    round the same way. Whole numbers throughout: `owed` is in images times the sum of `quotas`.
    """
    unit = int(quotas.sum())
    owed = np.zeros_like(quotas)
    table = np.zeros((len(counts), len(quotas)), dtype=np.int64)
    for given, count in zip(table, counts, strict=True):
        exact = count * quotas
        given += exact // unit
        spare = count - given.sum()
        given[np.argsort(-(owed + exact - given * unit), kind="stable")[:spare]] += 1
        if count:
            _lift_to_floors(given, exact - given * unit, floors, unit)
        owed += exact - given * unit
    return table


def _lift_to_floors(
    given: NDArray[np.int64], lacking: NDArray[np.int64], floors: NDArray[np.int64], unit: int
) -> None:
    """Moves single images in place, from the pieces most above their share to those below."""
    for piece in np.flatnonzero(given < floors):
        donors = np.flatnonzero(given > floors)
        donor = donors[np.argmin(lacking[donors])]
        given[[donor, piece]] += [-1, 1]
        lacking[[donor, piece]] += [unit, -unit]


def _draw(labels: Labels, table: NDArray[np.int64], *, seed: int) -> list[Indices]:
    """Draws random images of each class for each piece, as many as `table` [C, K] says."""
    # The raw stream of a bit generator is the one that NumPy promises never to change (NEP 19).
    keys = np.random.PCG64(seed).random_raw(len(labels))
    order = np.lexsort((keys, labels))  # class by class, shuffled within
    pieces = np.repeat(np.tile(np.arange(table.shape[1]), len(table)), table.ravel())
    return [np.sort(order[pieces == piece]) for piece in range(table.shape[1])]


def _check_classes(
    parts: Mapping[str, Labels],
    class_names: Sequence[str],
    *,
    required: Sequence[str],
    shares: Mapping[str, int],
) -> None:
    for part, labels in parts.items():
        if not labels.size:
            raise InputError(
                f"The part {part} holds no image, but every part needs some; add images or remove "
                "the part."
            )
    if len(class_names) < 2:
        raise InputError(
            f"The only class is {class_names[0]!r}, but telling classes apart needs at least 2; "
            "add images of another class."
        )
    rule = " / ".join(f"{name} {share}" for name, share in shares.items()) + " %"
    cut = f"cutting it into {rule} needs" if len(shares) > 1 else "training needs"
    for part, needed, why in ((TRAIN, len(required), cut), (VALIDATION, 1, "validation needs")):
        if part not in parts:
            continue
        counts = np.bincount(parts[part], minlength=len(class_names))
        if (few := np.flatnonzero(counts < needed)).size:
            listed = [
                f"class {class_names[index]!r} has {counts[index]} "
                f"image{'s' * int(counts[index] != 1)} in {part}"
                for index in few.tolist()
            ]
            raise refusal(
                listed,
                rule=f"{why} at least {needed} of every class, so add images or name only the "
                "others in ",
                key=Key("classes"),
            )
