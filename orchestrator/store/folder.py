"""A sweep's folder: what lies where, and that one driver at a time works in it."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import yaml
from filelock import FileLock, Timeout
from pyarrow import fs

from trainables.errors import InputError, first_line

STORED = ("journal", "measurements", "trials", "trials.parquet")
"""The parts of a sweep that lie where `storage.uri` says."""


@dataclass(frozen=True, kw_only=True)
class SweepFolder:
    """Where everything of one sweep lies."""

    root: Path
    """The sweep's folder on the driver's machine."""
    uri: str
    """Where journal, tables and checkpoints lie: the folder itself, or a shared store."""

    @classmethod
    def at(cls, root: Path, *, uri: str | None = None) -> "SweepFolder":
        return cls(root=root, uri=uri.rstrip("/") if uri else root.resolve().as_uri())

    @classmethod
    def find(cls, sweep: str) -> "SweepFolder":
        """The sweep at a path, or of a name under `./runs`; `InputError` when there is none."""
        for root in (Path(sweep).expanduser(), Path("runs") / sweep):
            if (root / "sweep.yaml").is_file():
                return cls.at(root.resolve(), uri=_stored_uri(root / "sweep.yaml"))
        runs = sorted(p.parent.name for p in Path("runs").glob("*/sweep.yaml"))
        known = f"; under ./runs there are {', '.join(runs)}" if runs else ""
        raise InputError(
            f"{sweep!r} is no sweep: neither it nor ./runs/{sweep} holds a sweep.yaml{known}."
        )

    @property
    def config(self) -> Path:
        """The config as resolved."""
        return self.root / "sweep.yaml"

    @property
    def study(self) -> Path:
        """The Optuna study's journal."""
        return self.root / "optuna.journal"

    @property
    def report(self) -> Path:
        return self.root / "report.html"

    @property
    def figure(self) -> Path:
        """The frontier as a picture."""
        return self.root / "frontier.png"

    @property
    def artifacts(self) -> Path:
        """MLflow's artifacts when it is embedded."""
        return self.root / "artifacts"

    @property
    def tracking_uri(self) -> str:
        """MLflow's database when it is embedded."""
        return sqlite_url(self.root / "mlflow.db")

    @property
    def tune(self) -> Path:
        """Tune's snapshots of the running session, never restored and removed at its end."""
        return self.root / ".tune"

    @property
    def exports(self) -> Path:
        """The frontier's models on their way to MLflow."""
        return self.root / ".exports"

    @property
    def trials_uri(self) -> str:
        """The trials' checkpoints."""
        return f"{self.uri}/trials"

    def storage(self) -> fs.FileSystem:
        """A filesystem rooted where the journal and the tables lie."""
        base, path = fs.FileSystem.from_uri(self.uri)
        base.create_dir(path, recursive=True)
        return fs.SubTreeFileSystem(path, base)

    def make(self) -> None:
        """Makes the folder and its store where they are missing; `InputError` if it cannot."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            self.storage()
        except OSError as error:
            raise InputError(
                f"The sweep's folder {self.root} cannot be written ({error}); choose another with "
                "storage.folder or storage.uri."
            ) from error

    def keep_config(self, text: str) -> None:
        """Puts the config in place in one step, so that a kill leaves the old one or the new."""
        unfinished = self.root / ".sweep.yaml.unfinished"
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(self.config)

    def clear(self) -> None:
        """Removes what is the sweep's, and nothing else that may lie next to it.

        MLflow's database stays: it may be open, here or in a `prunetune ui`, so MLflow itself
        forgets the sweep.
        """
        storage = self.storage()
        for info in storage.get_file_info(list(STORED)):
            if info.type is fs.FileType.Directory:
                storage.delete_dir(info.path)
            elif info.is_file:
                storage.delete_file(info.path)
        for folder in (self.artifacts, self.tune, self.exports):
            shutil.rmtree(folder, ignore_errors=True)
        for file in (self.config, self.study, self.report, self.figure):
            file.unlink(missing_ok=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the folder for one driver; `InputError` when another holds it.

        The lock is the operating system's, so a killed driver leaves none behind.
        """
        self.make()
        lock = FileLock(self._lock)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise InputError(
                f"Another driver is running the sweep in {self.root}; wait for it or stop it, "
                "or give this sweep another name."
            ) from None
        try:
            yield
        finally:
            lock.release()

    @property
    def _lock(self) -> Path:
        return self.root / ".driver.lock"


def sqlite_url(database: Path) -> str:
    """Returns the URL of an SQLite file, in whose path `?` and `%` mean themselves.

    MLflow makes the folder that the URL's text names. From the first name with such a character on
    all is quoted, slashes too, so that the text names a folder that is there.
    """
    parts = database.parts
    odd = next((i for i, name in enumerate(parts) if {"?", "%"} & set(name)), len(parts))
    plain, quoted = Path(*parts[:odd]), quote("/".join(parts[odd:]), safe="")
    return f"sqlite:///{plain / quoted if quoted else plain}"


def stored(sweep: str) -> fs.FileSystem:
    """A filesystem rooted where the journal of a sweep lies, given as `find` takes it or as a URI.

    Raises `InputError` where there is none.
    """
    if "://" not in sweep:
        return SweepFolder.find(sweep).storage()
    try:
        base, path = fs.FileSystem.from_uri(sweep.rstrip("/"))
        storage = fs.SubTreeFileSystem(path, base)
        found = storage.get_file_info("journal").type is fs.FileType.Directory
    except (OSError, ValueError) as error:
        raise InputError(
            f"{sweep!r} cannot be read ({first_line(error)}); give a sweep's folder, its name "
            "under ./runs, or its storage.uri."
        ) from error
    if not found:
        raise InputError(f"{sweep!r} is no sweep: it holds no journal; give a sweep's storage.uri.")
    return storage


def _stored_uri(config: Path) -> str | None:
    storage = yaml.safe_load(config.read_text()).get("storage") or {}
    uri: str | None = storage.get("uri")
    return uri
