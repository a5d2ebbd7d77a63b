"""The measurement table and the trial table: Parquet, one row a measurement or a trial.

They lie under a sweep's folder on any pyarrow filesystem, as `measurements/part-0.parquet` and
`trials.parquet`. They are views of the sweep's journal: written whole, replaced whole, and
rebuilt from it at any time.
"""

from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.fs import FileSelector, FileSystem, FileType, LocalFileSystem, SubTreeFileSystem

from analysis.frontier import Frontier, FrontierPoint

Row = Mapping[str, Any]
"""One measurement or one trial by column name; the recipe's fields begin with `recipe.`."""
Rows: TypeAlias = pa.Table | Sequence[Row]
"""A table as it was read, or its rows."""
Source: TypeAlias = FileSystem | str | PathLike[str]
"""A sweep's folder, which exists: a local path, or a filesystem rooted there."""

RECIPE = "recipe."
"""What the names of the recipe's columns begin with."""
MEASUREMENTS_PATH = "measurements/part-0.parquet"
"""Where the measurement table lies in a sweep's folder."""
TRIALS_PATH = "trials.parquet"
"""Where the trial table lies in a sweep's folder."""


def _known(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=False)


MEASUREMENTS = pa.schema(
    [
        _known("sweep_id", pa.string()),
        _known("trial_id", pa.string()),
        _known("number", pa.int64()),
        _known("attempt", pa.int64()),
        _known("rung", pa.int64()),
        _known("train_flops", pa.float64()),
        _known("executed_flops", pa.float64()),
        _known("eval_flops", pa.float64()),
        _known("inference_flops", pa.float64()),
        _known("params", pa.int64()),
        _known("updated_params", pa.int64()),
        _known("val_error", pa.float64()),
        _known("val_loss", pa.float64()),
        pa.field("test_error", pa.float64()),
        _known("train_seconds", pa.float64()),
        _known("images_seen", pa.int64()),
        pa.field("peak_memory_bytes", pa.int64()),
        pa.field("nonzero_params", pa.int64()),
        pa.field("sparse_train_flops", pa.float64()),
        pa.field("sparse_inference_flops", pa.float64()),
        _known("sweep_flops", pa.float64()),
        _known("measured_at", pa.float64()),
        _known("trial_state", pa.string()),
        _known("recipe_id", pa.string()),
        _known("seed", pa.int64()),
        _known("method", pa.string()),
    ]
)
"""Columns of every measurement table; the recipe's columns follow them, nullable.

Units as in `trainables.measurement`; `sweep_flops` is what the sweep had executed when the
measurement came in, `measured_at` is in Unix seconds.
"""

TRIALS = pa.schema(
    [
        _known("trial_id", pa.string()),
        _known("number", pa.int64()),
        _known("state", pa.string()),
        pa.field("reason", pa.string()),
        _known("attempt", pa.int64()),
        _known("executed_flops", pa.float64()),
        _known("seed", pa.int64()),
        _known("suggested_at", pa.float64()),
        pa.field("finished_at", pa.float64()),
        _known("recipe_id", pa.string()),
    ]
)
"""Columns of every trial table; the recipe's columns follow them, nullable."""


class MissingTableError(ValueError):
    """A sweep's folder holds no such table, or one without rows; the message says which."""


class InvalidTableError(ValueError):
    """Rows that no table can hold; the message names the row or column, the rule and the mend."""


def write_measurements(
    records: Iterable[Row], folder: Source, *, metadata: Mapping[str, str] | None = None
) -> None:
    """Replaces the sweep's measurement table by `records`; readers see the old one or the new one.

    (trial_id, attempt, rung) must be unique. `metadata` goes into the Parquet schema.
    """
    table = measurement_table(records)
    filesystem = _filesystem(folder)
    write_table(table.replace_schema_metadata(metadata), filesystem, MEASUREMENTS_PATH)


def write_trials(
    records: Iterable[Row], folder: Source, *, metadata: Mapping[str, str] | None = None
) -> None:
    """Replaces the sweep's trial table by `records`; readers see the old one or the new one.

    trial_id must be unique. `metadata` goes into the Parquet schema.
    """
    table = trial_table(records)
    write_table(table.replace_schema_metadata(metadata), _filesystem(folder), TRIALS_PATH)


def read_measurements(folder: Source) -> pa.Table:
    """The sweep's measurements; `MissingTableError` when it has none yet."""
    return _read(_filesystem(folder), MEASUREMENTS_PATH, noun="measurements")


def read_trials(folder: Source) -> pa.Table:
    """The sweep's trials; `MissingTableError` when it has none yet."""
    return _read(_filesystem(folder), TRIALS_PATH, noun="trials")


def measurement_table(records: Iterable[Row]) -> pa.Table:
    """The rows as a table of `MEASUREMENTS` and the recipe's columns, checked."""
    return _table(records, MEASUREMENTS, key=("trial_id", "attempt", "rung"))


def trial_table(records: Iterable[Row]) -> pa.Table:
    """The rows as a table of `TRIALS` and the recipe's columns, checked."""
    return _table(records, TRIALS, key=("trial_id",))


def rows(table: Rows) -> list[dict[str, Any]]:
    """The table's rows as records; settings that a row's method does not have are left out."""
    records = table.to_pylist() if isinstance(table, pa.Table) else table
    return [
        {name: v for name, v in row.items() if v is not None or not name.startswith(RECIPE)}
        for row in records
    ]


def recipe_of(row: Row) -> dict[str, Any]:
    """The recipe in a row, under the names of its fields."""
    return {
        name.removeprefix(RECIPE): value
        for name, value in row.items()
        if name.startswith(RECIPE) and value is not None
    }


def frontier_of(measurements: Rows) -> Frontier:
    """The frontier of all measurements: every rung of every trial counts, however it ended."""
    return Frontier().merge(
        FrontierPoint(
            trial_id=row["trial_id"],
            number=row["number"],
            rung=row["rung"],
            train_flops=row["train_flops"],
            val_error=row["val_error"],
            test_error=row.get("test_error"),
            inference_flops=row["inference_flops"],
            params=row["params"],
            updated_params=row["updated_params"],
            recipe=recipe_of(row),
        )
        for row in rows(measurements)
    )


def write_table(table: pa.Table, filesystem: FileSystem, path: str) -> None:
    """Puts the table at `path` in one step: written under a temporary name, then moved.

    A reader never sees half a table and a failed write leaves the old one. The temporary name is
    fixed and hidden from dataset readers, so what a killed writer leaves is overwritten by the
    next; there is one writer, the driver.
    """
    parent, _, name = path.rpartition("/")
    if parent:
        filesystem.create_dir(parent, recursive=True)
    unfinished = f"{parent}/.{name}.unfinished".lstrip("/")
    pq.write_table(table, unfinished, filesystem=filesystem, compression="zstd")
    filesystem.move(unfinished, path)


def _read(filesystem: FileSystem, path: str, *, noun: str) -> pa.Table:
    if filesystem.get_file_info(path).type is FileType.NotFound:
        found = filesystem.get_file_info(FileSelector("", allow_not_found=True))
        holds = ", ".join(sorted(info.base_name for info in found)) or "nothing"
        raise MissingTableError(
            f"The sweep has no {noun}: {path} does not exist in its folder, which holds {holds}; "
            "give the folder of a sweep that has been started."
        )
    with filesystem.open_input_file(path) as file:
        table = pq.read_table(file)
    if not table.num_rows:
        raise MissingTableError(f"The sweep has no {noun} yet: {path} has no rows.")
    return table


def _filesystem(folder: Source) -> FileSystem:
    if isinstance(folder, FileSystem):
        return folder
    return SubTreeFileSystem(str(folder), LocalFileSystem())


def _table(records: Iterable[Row], base: pa.Schema, *, key: tuple[str, ...]) -> pa.Table:
    records = list(records)
    _refuse_duplicates(records, key)
    schema = _with_recipe(base, records)
    try:
        table = pa.Table.from_pylist([dict(record) for record in records], schema=schema)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
        raise InvalidTableError(f"A row does not fit the table's columns: {error}.") from error
    for column in base:
        if not column.nullable and table.column(column.name).null_count:
            raise InvalidTableError(
                f"A row has no {column.name!r}, which every row must have; only "
                f"{', '.join(c.name for c in base if c.nullable)} may be unknown."
            )
    return table


def _refuse_duplicates(records: Sequence[Row], key: tuple[str, ...]) -> None:
    seen = set()
    for record in records:
        value = tuple(record.get(name) for name in key)
        if value in seen:
            what = ", ".join(f"{name}={part!r}" for name, part in zip(key, value, strict=True))
            raise InvalidTableError(f"Two rows have {what}; ({', '.join(key)}) must be unique.")
        seen.add(value)


def _with_recipe(base: pa.Schema, records: Sequence[Row]) -> pa.Schema:
    """`base` and the recipe's columns, in the order of their names, typed after their values."""
    kinds: dict[str, set[type]] = {}
    known = set(base.names)
    for record in records:
        for name, value in record.items():
            if name.startswith(RECIPE):
                if value is not None:
                    kinds.setdefault(name, set()).add(type(value))
            elif name not in known:
                raise InvalidTableError(
                    f"A row has {name!r}, which is no column; the columns are "
                    f"{', '.join(base.names)} and the recipe's, which begin with {RECIPE!r}."
                )
    columns = [pa.field(name, _arrow_type(name, kinds[name])) for name in sorted(kinds)]
    return pa.schema([*base, *columns])


def _arrow_type(name: str, kinds: set[type]) -> pa.DataType:
    """The column type for a setting whose values have these types; int and float make float."""
    if kinds == {bool}:
        return pa.bool_()
    if kinds == {str}:
        return pa.string()
    if kinds == {int}:
        return pa.int64()
    if kinds <= {int, float}:
        return pa.float64()
    raise InvalidTableError(
        f"{name!r} holds values of the types {', '.join(sorted(k.__name__ for k in kinds))}; a "
        "setting must be all str, all bool, or all numbers (int and float) over a sweep."
    )
