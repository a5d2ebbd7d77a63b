"""A sweep's folder is found, held by one driver, and cleared of what is the sweep's own."""

import subprocess
import sys
from pathlib import Path

import pytest
from pyarrow import fs
from sqlalchemy import make_url

from orchestrator.store.folder import SweepFolder
from tests.checkout import ROOT
from trainables.errors import InputError

HOLD = """
import sys
from pathlib import Path
from tests.checkout import ROOT
from orchestrator.store.folder import SweepFolder
with SweepFolder.at(Path(sys.argv[1])).locked():
    print("held", flush=True)
    sys.stdin.read()
"""


def begun(root: Path, config: str = "name: x\n") -> Path:
    root.mkdir(parents=True)
    (root / "sweep.yaml").write_text(config)
    return root


def test_a_sweep_is_found_by_name_and_by_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = begun(tmp_path / "runs" / "flowers")
    monkeypatch.chdir(tmp_path)
    for sweep in ("flowers", "runs/flowers", str(root), f"{root}/"):
        assert SweepFolder.find(sweep) == SweepFolder(root=root, uri=root.as_uri())


@pytest.mark.parametrize(
    "name", ["plain", "which model? v1", "100%", "a%20b/c?d", "x?mode=memory", "#1;a@b:c&d=e+f"]
)
def test_every_character_of_a_path_is_the_paths(tmp_path: Path, name: str) -> None:
    folder = SweepFolder.at(tmp_path / name)
    folder.make()
    url = make_url(folder.tracking_uri)
    assert url.database == str(tmp_path / name / "mlflow.db")
    assert not url.query
    text = folder.tracking_uri.removeprefix("sqlite:///")
    assert Path(text).parent.is_dir(), "MLflow makes this folder"
    assert folder.storage().get_file_info("journal").type is fs.FileType.NotFound
    folder.storage().create_dir("journal")
    assert (tmp_path / name / "journal").is_dir()


def test_a_plain_paths_database_is_where_it_was(tmp_path: Path) -> None:
    assert SweepFolder.at(tmp_path).tracking_uri == f"sqlite:///{tmp_path}/mlflow.db"


def test_what_is_no_sweep_is_refused_with_those_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"'tulips' is no sweep: .*holds a sweep.yaml\.$"):
        SweepFolder.find("tulips")
    begun(tmp_path / "runs" / "flowers")
    begun(tmp_path / "runs" / "birds")
    with pytest.raises(InputError, match="under ./runs there are birds, flowers"):
        SweepFolder.find("tulips")


def test_a_found_sweep_knows_where_its_store_is(tmp_path: Path) -> None:
    root = begun(tmp_path / "here", "storage:\n  uri: file:///elsewhere/sweep/\n")
    found = SweepFolder.find(str(root))
    assert found.uri == "file:///elsewhere/sweep"
    assert found.trials_uri == "file:///elsewhere/sweep/trials"


def test_the_store_is_rooted_in_the_folder_whatever_its_name(tmp_path: Path) -> None:
    folder = SweepFolder.at(tmp_path / "a sweep, 50 % ü")
    with folder.storage().open_output_stream("x.txt") as stream:
        stream.write(b"1")
    assert (folder.root / "x.txt").read_bytes() == b"1"
    filesystem, path = fs.FileSystem.from_uri(folder.trials_uri)
    filesystem.create_dir(path)
    assert (folder.root / "trials").is_dir()


def test_a_second_driver_is_refused_until_the_first_is_dead(tmp_path: Path) -> None:
    folder = SweepFolder.at(tmp_path / "sweep")
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder.root)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with (
            pytest.raises(InputError, match="Another driver is running the sweep"),
            folder.locked(),
        ):
            pass
        other.kill()
        other.wait()
    with folder.locked():
        pass


def test_the_lock_is_released_when_the_driver_fails(tmp_path: Path) -> None:
    folder = SweepFolder.at(tmp_path / "sweep")
    with pytest.raises(KeyError), folder.locked():
        raise KeyError
    with folder.locked():
        pass


def test_the_config_is_replaced_whole(tmp_path: Path) -> None:
    folder = SweepFolder.at(tmp_path)
    folder.keep_config("name: a\n")
    folder.keep_config("name: ü\n")
    assert [path.name for path in tmp_path.iterdir()] == ["sweep.yaml"]
    assert folder.config.read_text(encoding="utf-8") == "name: ü\n"


OWN = ("sweep.yaml", "optuna.journal", "report.html", "frontier.png", "trials.parquet")
OWN_FOLDERS = ("journal", "measurements", "trials", "artifacts", ".tune", ".exports")


@pytest.mark.parametrize("stored", ["folder", "elsewhere"])
def test_clearing_takes_the_sweep_and_leaves_the_rest(tmp_path: Path, stored: str) -> None:
    root, store = tmp_path / "folder", tmp_path / stored
    store.mkdir()
    folder = SweepFolder.at(root, uri=store.as_uri())
    for place in {root, store}:
        place.mkdir(exist_ok=True)
        (place / "thesis.tex").write_text("mine")
        (place / "photos").mkdir()
    for name in OWN_FOLDERS:
        place = store if name in ("journal", "measurements", "trials") else root
        (place / name).mkdir()
        (place / name / "x").write_text("")
    for name in OWN:
        (store if name == "trials.parquet" else root).joinpath(name).write_text("")
    (root / "mlflow.db").write_text("")
    with folder.locked():
        folder.clear()
        with pytest.raises(InputError), folder.locked():
            pass
    left = {path.name for place in (root, store) for path in place.iterdir()}
    assert left - {".driver.lock"} == {"thesis.tex", "photos", "mlflow.db"}


def test_clearing_what_never_was_is_no_trouble(tmp_path: Path) -> None:
    SweepFolder.at(tmp_path / "new").clear()
