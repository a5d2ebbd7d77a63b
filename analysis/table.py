"""The measurement table and the trial table: Parquet, one row a measurement or a trial.

They lie under a sweep's folder on any pyarrow filesystem, as `measurements/part-0.parquet` and
`trials.parquet`. They are views of the sweep's journal: written whole, replaced whole, and
rebuilt from it at any time.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from os import PathLike
from types import NoneType
from typing import Any, TypeAlias, get_args, get_type_hints

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.fs import FileSelector, FileSystem, FileType, LocalFileSystem, SubTreeFileSystem

from analysis.frontier import Frontier, FrontierPoint
from search_spaces.recipe import Setting
from trainables.errors import UserError
from trainables.measurement import Measurement

Row = Mapping[str, Any]
"""One measurement or one trial by column name; the recipe's fields begin with `recipe.`."""
Rows: TypeAlias = pa.Table | Sequence[Row]
"""A table as it was read, or its rows."""
Source: TypeAlias = FileSystem | str | PathLike[str]
"""A sweep's folder, which exists: a local path, or a filesystem rooted there."""

RECIPE = "recipe."
"""The prefix of the recipe's columns."""
PARAMETERS = "prunetune.parameters"
"""The key in the trial table's metadata under which `parameters_of` finds its answer, as JSON."""
MEASUREMENTS_PATH = "measurements/part-0.parquet"
"""The place of the measurement table in a sweep's folder."""
TRIALS_PATH = "trials.parquet"
"""The place of the trial table in a sweep's folder."""


@dataclass(frozen=True, kw_only=True)
class MeasurementRow:
    """One row of the measurement table: a measurement, and where in the sweep it was made."""

    sweep_id: str
    """The sweep, the same however often it is resumed."""
    trial_id: str
    """The trial that was measured, unique in the sweep."""
    number: int
    """The trial's place in the order of suggestion, from 0."""
    attempt: int
    """The number of times that the trial had been started again by then."""
    measurement: Measurement
    """Each of its fields is a column."""
    expected_error: float | None
    """The error, 0-1, to expect of the model on new images; `None` if unknown."""
    confirming_error: float | None
    """The mean validation error, 0-1, of the recipe's runs with other seeds at this rung; `None`
    if there were none."""
    sweep_flops: float
    """Training FLOPs that the sweep had executed when the measurement came in."""
    measured_at: float
    """The time when it came in, Unix seconds."""
    trial_state: str
    """The state that the trial is in now."""
    recipe_id: str
    """The recipe's id, which depends on its content alone."""
    seed: int
    """The trial's seed."""
    method: str
    """The transfer method."""
    recipe: Mapping[str, Setting]
    """The recipe on one level of names: columns with the prefix `RECIPE`."""


@dataclass(frozen=True, kw_only=True)
class TrialRow:
    """One row of the trial table."""

    trial_id: str
    """Unique in the sweep."""
    number: int
    """The trial's place in the order of suggestion, from 0."""
    state: str
    """The state that it is in now."""
    reason: str | None
    """The reason why it was stopped, failed or was refused."""
    attempt: int
    """The number of times that it was started again."""
    executed_flops: float
    """Training FLOPs that the sweep paid for it, repeats included."""
    seed: int
    """The trial's seed."""
    confirms: str | None
    """The trial whose recipe it ran once more, with another seed, if it did."""
    suggested_at: float
    """The time when it was suggested, Unix seconds."""
    finished_at: float | None
    """The time when it ended, Unix seconds; `None` while it is unfinished."""
    recipe_id: str
    """The recipe's id, which depends on its content alone."""
    recipe: Mapping[str, Setting]
    """The recipe on one level of names: columns with the prefix `RECIPE`."""


def _schema(record: type) -> pa.Schema:
    """Returns the columns that every table of such records has, in the order of their fields."""
    columns: list[pa.Field] = []
    for name, hint in get_type_hints(record).items():
        if hint is Measurement:
            columns += _schema(Measurement)
        elif name != "recipe":
            kinds = set(get_args(hint) or (hint,))
            (kind,) = kinds - {NoneType}
            columns.append(pa.field(name, _ARROW_TYPES[kind], nullable=NoneType in kinds))
    return pa.schema(columns)


_ARROW_TYPES = {bool: pa.bool_(), str: pa.string(), int: pa.int64(), float: pa.float64()}

MEASUREMENTS = _schema(MeasurementRow)
"""Columns of every measurement table; the recipe's columns follow them, nullable."""
TRIALS = _schema(TrialRow)
"""Columns of every trial table; the recipe's columns follow them, nullable."""


class MissingTableError(UserError):
    """A sweep's folder holds no such table, or one without rows; the message says which."""


class InvalidTableError(UserError):
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
    """Returns the sweep's measurements; raises `MissingTableError` when it has none yet."""
    return _read(_filesystem(folder), MEASUREMENTS_PATH, noun="measurements")


def read_trials(folder: Source) -> pa.Table:
    """Returns the sweep's trials; raises `MissingTableError` when it has none yet."""
    return _read(_filesystem(folder), TRIALS_PATH, noun="trials")


def parameters_of(trials: pa.Table) -> dict[str, list[str]]:
    """Returns the recipe's fields of each parameter of the search space that is called otherwise.

    For example `{"adamw_rate": ["learning_rate"]}`. Empty for a table of an earlier version.
    """
    written = (trials.schema.metadata or {}).get(PARAMETERS.encode(), b"{}")
    fields: dict[str, list[str]] = json.loads(written)
    return fields


def measurement_table(records: Iterable[Row]) -> pa.Table:
    """Checks the rows and returns a table of `MEASUREMENTS` and the recipe's columns."""
    return _table(records, MEASUREMENTS, key=("trial_id", "attempt", "rung"))


def trial_table(records: Iterable[Row]) -> pa.Table:
    """Checks the rows and returns a table of `TRIALS` and the recipe's columns."""
    return _table(records, TRIALS, key=("trial_id",))


def rows(table: Rows) -> list[dict[str, Any]]:
    """Returns the table's rows, without the settings that a row's method does not have."""
    records = table.to_pylist() if isinstance(table, pa.Table) else table
    return [
        {name: v for name, v in row.items() if v is not None or not name.startswith(RECIPE)}
        for row in records
    ]


def recipe_of(row: Row) -> dict[str, Any]:
    """Returns the recipe in a row, under the names of its fields."""
    return {
        name.removeprefix(RECIPE): value
        for name, value in row.items()
        if name.startswith(RECIPE) and value is not None
    }


def row_of(record: MeasurementRow | TrialRow) -> dict[str, Any]:
    """Returns the record by column name."""
    row: dict[str, Any] = {}
    for f in fields(record):
        value = getattr(record, f.name)
        if isinstance(value, Measurement):
            row |= value.to_dict()
        elif f.name == "recipe":
            row |= recipe_columns(value)
        else:
            row[f.name] = value
    return row


def recipe_columns(recipe: Mapping[str, Setting]) -> dict[str, Setting]:
    """Returns the recipe by the names that its fields have as columns."""
    return {f"{RECIPE}{name}": value for name, value in recipe.items()}


def frontier_of(measurements: Rows) -> Frontier:
    """Returns the frontier: every rung of every trial counts, however the trial ended.

    Its expected errors do not rise with compute (`Frontier.expected`).
    """
    measured = Frontier().merge(
        FrontierPoint(
            trial_id=row["trial_id"],
            number=row["number"],
            measurement=Measurement.from_dict(row),
            recipe=recipe_of(row),
            expected_error=row.get("expected_error"),  # tables of earlier versions have neither
            confirming_error=row.get("confirming_error"),
        )
        for row in rows(measurements)
    )
    return measured.expected()


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
    """Returns `base` and the recipe's columns, sorted by name and typed after their values."""
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
    """Returns the type of a setting's column from its values'; int and float make float."""
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
