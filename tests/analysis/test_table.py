"""The tables keep what is written to them, on any filesystem, and refuse what they cannot keep."""

from collections.abc import Callable
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from pyarrow.fs import FileSystem, FSSpecHandler, LocalFileSystem, PyFileSystem, SubTreeFileSystem

from analysis import table
from analysis.frontier import Frontier
from tests.analysis.sweeps import sweep
from trainables.measurement import Measurement


def local(tmp_path: Path) -> FileSystem:
    return SubTreeFileSystem(str(tmp_path), LocalFileSystem())


def in_memory(_: Path) -> FileSystem:
    store = fsspec.filesystem("memory")
    store.store.clear()  # fsspec keeps one memory store per process
    store.pseudo_dirs[:] = [""]
    return SubTreeFileSystem("/bucket/sweep", PyFileSystem(FSSpecHandler(store)))


MEASURED = table.MeasurementRow(
    sweep_id="pets",
    trial_id="t0",
    number=0,
    attempt=1,
    expected_error=0.26,
    confirming_error=0.27,
    measurement=Measurement(
        rung=2,
        train_flops=3e9,
        executed_flops=1e9,
        eval_flops=1e8,
        inference_flops=1e6,
        params=1000,
        updated_params=10,
        val_error=0.25,
        val_loss=0.7,
        train_seconds=1.5,
        images_seen=640,
        peak_memory_bytes=4096,
    ),
    sweep_flops=5e9,
    measured_at=1.7e9,
    trial_state="running",
    recipe_id="0123456789ab",
    seed=7,
    method="full",
    recipe={"method": "full"},
)
REFUSED = table.TrialRow(
    trial_id="t1",
    number=1,
    state="infeasible",
    reason="no filter left",
    attempt=0,
    executed_flops=0.0,
    seed=8,
    confirms=None,
    suggested_at=1.7e9,
    finished_at=None,
    recipe_id="0123456789ab",
    recipe={"method": "full"},
)

everywhere = pytest.mark.parametrize("filesystem", [local, in_memory])
Place = Callable[[Path], FileSystem]


def one_row(**changes: Any) -> dict[str, Any]:
    measurements, _ = sweep(1)
    return measurements[0] | changes


@everywhere
def test_measurements_come_back_as_they_were_written(tmp_path: Path, filesystem: Place) -> None:
    store = filesystem(tmp_path)
    written, _ = sweep(20)
    table.write_measurements(written, store, metadata={"sweep_id": "pets-pilot"})
    read = table.read_measurements(store)
    assert table.rows(read) == [dict(sorted_like(read, row)) for row in written]
    assert read.schema.metadata[b"sweep_id"] == b"pets-pilot"


@everywhere
def test_trials_come_back_as_they_were_written(tmp_path: Path, filesystem: Place) -> None:
    store = filesystem(tmp_path)
    _, written = sweep(20)
    table.write_trials(written, store)
    read = table.read_trials(store)
    assert table.rows(read) == [dict(sorted_like(read, row)) for row in written]
    assert {row["state"] for row in table.rows(read)} >= {"complete", "infeasible", "failed"}


@everywhere
def test_a_second_write_replaces_the_first(tmp_path: Path, filesystem: Place) -> None:
    store = filesystem(tmp_path)
    table.write_measurements(sweep(20)[0], store)
    table.write_measurements([one_row()], store)
    assert table.read_measurements(store).num_rows == 1
    names = [info.base_name for info in store.get_file_info(pa.fs.FileSelector("measurements"))]
    assert names == ["part-0.parquet"]


def test_a_failed_write_leaves_the_old_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table.write_measurements([one_row()], tmp_path)

    def disk_full(_: pa.Table, where: str, *, filesystem: FileSystem, **__: Any) -> None:
        with filesystem.open_output_stream(where) as stream:
            stream.write(b"PAR1 half a table")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(pq, "write_table", disk_full)
        with pytest.raises(OSError, match="No space left"):
            table.write_measurements(sweep(20)[0], tmp_path)
    assert table.read_measurements(tmp_path).num_rows == 1
    # a dataset reader ignores what the failed write left behind
    assert ds.dataset(tmp_path / "measurements").count_rows() == 1
    table.write_measurements(sweep(20)[0], tmp_path)
    assert [f.name for f in (tmp_path / "measurements").iterdir()] == ["part-0.parquet"]


def test_every_field_of_a_measurement_is_a_column() -> None:
    of_both = (*fields(Measurement), *fields(table.MeasurementRow))
    optional = {f.name for f in of_both if "None" in str(f.type)}
    assert {f.name for f in fields(Measurement)} <= set(table.MEASUREMENTS.names)
    assert {f.name for f in table.MEASUREMENTS if f.nullable} == optional


def test_a_record_is_a_row_of_its_table() -> None:
    assert set(table.row_of(MEASURED)) == {*table.MEASUREMENTS.names, "recipe.method"}
    (read,) = table.rows(table.measurement_table([table.row_of(MEASURED)]))
    assert read == table.row_of(MEASURED)
    (read,) = table.rows(table.trial_table([table.row_of(REFUSED)]))
    assert read == table.row_of(REFUSED)
    assert set(read) == {*table.TRIALS.names, "recipe.method"}


def test_a_table_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    """Columns for what was not measured then are missing; others came first or last."""
    known = [f.name for f in fields(Measurement) if f.default is MISSING]
    new = set(table.MEASUREMENTS.names) - {"trial_id", "number", "method", *known}
    written = table.measurement_table(sweep(20)[0])
    old = written.drop_columns(list(new)).append_column("mood", [["good"] * len(written)])
    table.write_table(old, local(tmp_path), table.MEASUREMENTS_PATH)
    read = table.read_measurements(tmp_path)
    points, expected = table.frontier_of(read).points, table.frontier_of(written).points
    assert [(p.trial_id, p.rung, p.val_error, p.recipe) for p in points] == [
        (p.trial_id, p.rung, p.val_error, p.recipe) for p in expected
    ]
    assert {p.measurement.nonzero_params for p in points} == {None}


def test_settings_are_typed_after_their_values() -> None:
    whole = one_row(**{"recipe.cut": 1, "recipe.on": True, "recipe.batch_size": 64})
    part = one_row(rung=1, **{"recipe.cut": 0.5, "recipe.name": "x", "recipe.batch_size": 32})
    schema = table.measurement_table([whole, part]).schema
    assert schema.field("recipe.cut").type == pa.float64()
    assert schema.field("recipe.batch_size").type == pa.int64()
    assert schema.field("recipe.on").type == pa.bool_()
    assert schema.field("recipe.name").type == pa.string()
    assert schema.field("recipe.name").nullable


def test_settings_a_method_lacks_are_left_out_of_its_rows() -> None:
    pruned = one_row(**{"recipe.pruning_ratio": 0.5})
    probe = {k: v for k, v in one_row(rung=1).items() if k != "recipe.pruning_ratio"}
    first, second = table.rows(table.measurement_table([pruned, probe]))
    assert table.recipe_of(first)["pruning_ratio"] == 0.5
    assert "pruning_ratio" not in table.recipe_of(second)
    assert second["test_error"] is None  # unknown, still a column


@pytest.mark.parametrize("value", ["on", True])
def test_a_setting_of_mixed_types_is_refused(value: object) -> None:
    mixed = [one_row(**{"recipe.cut": 1}), one_row(rung=1, **{"recipe.cut": value})]
    with pytest.raises(table.InvalidTableError, match=r"'recipe\.cut' holds values of the types"):
        table.measurement_table(mixed)


def test_duplicate_keys_are_refused() -> None:
    with pytest.raises(table.InvalidTableError, match=r"attempt=0, rung=0; .* must be unique"):
        table.measurement_table([one_row(), one_row(val_error=0.1)])
    assert table.measurement_table([one_row(), one_row(attempt=1)]).num_rows == 2
    _, trials = sweep(1)
    with pytest.raises(table.InvalidTableError, match="trial_id"):
        table.trial_table(trials * 2)


def test_rows_that_do_not_fit_are_refused_by_name() -> None:
    incomplete = one_row()
    del incomplete["val_error"]
    with pytest.raises(table.InvalidTableError, match="'val_error', which every row must have"):
        table.measurement_table([incomplete])
    with pytest.raises(table.InvalidTableError, match="'mood', which is no column"):
        table.measurement_table([one_row(mood="good")])
    with pytest.raises(table.InvalidTableError, match="does not fit"):
        table.measurement_table([one_row(params="many")])
    with pytest.raises(table.InvalidTableError, match="does not fit"):
        table.measurement_table([one_row(seed=2**70)])


@everywhere
def test_missing_and_empty_tables_say_so(tmp_path: Path, filesystem: Place) -> None:
    store = filesystem(tmp_path)
    with pytest.raises(table.MissingTableError, match=r"part-0\.parquet does not exist"):
        table.read_measurements(store)
    with pytest.raises(table.MissingTableError, match=r"holds nothing"):
        table.read_trials(store)
    table.write_measurements([], store)
    with pytest.raises(table.MissingTableError, match="no measurements yet"):
        table.read_measurements(store)
    with pytest.raises(table.MissingTableError, match="holds measurements"):
        table.read_trials(store)


def test_the_frontier_of_a_table_is_that_of_its_rows() -> None:
    measurements, _ = sweep(30)
    stored = table.measurement_table(measurements)
    frontier = table.frontier_of(stored)
    assert frontier == table.frontier_of(measurements)
    assert len(frontier.points) > 3
    assert frontier.points[-1].val_error == min(row["val_error"] for row in measurements)
    cheapest = frontier.points[0]
    assert cheapest.recipe["method"] in {"filter_pruning", "linear_probe"}
    assert table.frontier_of([]) == Frontier()


def sorted_like(read: pa.Table, row: dict[str, Any]) -> list[tuple[str, Any]]:
    """The row's items in the table's order of columns."""
    return [(name, row[name]) for name in read.column_names if name in row]
