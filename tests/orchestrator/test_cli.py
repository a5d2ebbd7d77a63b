"""Bad input ends a command with one sentence and status 2 before anything is begun."""

import io
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch
import yaml
from PIL import Image

from orchestrator import cli
from orchestrator.store.folder import SweepFolder
from orchestrator.store.journal import Journal
from orchestrator.store.tables import TableWriter
from tests.checkout import ROOT
from tests.orchestrator.fake_trials import disk, ledger_of

COMMANDS = (
    "demo",
    "sweep",
    "pretrain",
    "frontier",
    "report",
    "export",
    "doctor",
    "portfolio",
    "ui",
)


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a command ended."""

    status: int
    out: str
    err: str


Prunetune = Callable[..., Ended]


@pytest.fixture
def prunetune(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Prunetune:
    """Runs the command line in this process."""

    def run(*arguments: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["prunetune", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        status = ended.value.code
        assert isinstance(status, int | None)
        return Ended(status=status or 0, out=captured.out, err=captured.err)

    return run


def config_for(tmp_path: Path) -> dict[str, Any]:
    return {
        "name": "tiny",
        "task": {"source": "digits", "resolution": 16, "max_train_images": 100},
        "backbone": {"model": "test_resnet"},
        "budget": {"trials": 2},
        "rungs": {"min_flops": 2e9, "max_flops": 1e10},
        "storage": {"folder": str(tmp_path / "sweep"), "cache": str(tmp_path / "cache")},
    }


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(config_for(tmp_path)))
    return path


@pytest.fixture
def refused(config: Path, prunetune: Prunetune, tmp_path: Path) -> Callable[..., str]:
    """Runs `prunetune sweep` and returns its complaint; nothing of a sweep may have begun."""

    def sentence(*overrides: str, path: Path = config) -> str:
        ended = prunetune("sweep", str(path), *overrides)
        assert ended.status == 2
        assert not (tmp_path / "sweep" / "sweep.yaml").exists()
        assert not (tmp_path / "sweep" / "journal").exists()
        return the_sentence(ended)

    return sentence


def the_sentence(ended: Ended) -> str:
    """All that was said on standard error, in one line."""
    assert ended.err.startswith("prunetune: ")
    assert ended.err.endswith("\n")
    assert ended.err.count("\n") == 1, ended.err
    return ended.err.removeprefix("prunetune: ").rstrip("\n")


# help


def test_help_shows_an_example(prunetune: Prunetune) -> None:
    ended = prunetune("--help")
    assert ended.status == 0
    assert "Example: prunetune demo" in ended.out
    assert all(command in ended.out for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_commands_help_shows_an_example(prunetune: Prunetune, command: str) -> None:
    ended = prunetune(command, "--help")
    assert ended.status == 0
    assert f"Example: prunetune {command}" in ended.out


@pytest.mark.parametrize(
    "loads",
    [
        "import orchestrator.cli",
        "import orchestrator.terminal.frontier_table, orchestrator.store.folder",
    ],
)
def test_help_and_the_frontier_load_nothing_heavy(loads: str) -> None:
    heavy = "{'torch', 'ray', 'mlflow', 'optuna', 'timm'}"
    program = f"import sys; {loads}; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


# what a sweep refuses


def test_a_config_that_is_not_there(refused: Callable[..., str], tmp_path: Path) -> None:
    assert str(tmp_path / "none.yaml") in refused(path=tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("budget.trails=5", ("budget.trails is not known", "did you mean trials?")),
        ("space.ranges.pruning_ratio=[0.5, 1.5]", ("ranges.pruning_ratio=[0.5, 1.5]", "[0, 0.95]")),
        ("space.ranges.pruning_ratio=[0.5, 0.1]", ("ranges.pruning_ratio=[0.5, 0.1]", "low end")),
        ("space.ranges.pruning_ration=0.5", ("pruning_ration", "did you mean pruning_ratio?")),
        ("space.ranges.criterion=[l3]", ("'l3'", "l1, l2, batch_norm_scale")),
        ("space.start={criterion: l1}", ("space.start should be a valid list",)),
        ("space.start=[{pruning_ratio: 1}]", ("start.0.pruning_ratio=1", "within [0, 0.95]")),
        ("space.start=[{}, {pruning_ration: 1}]", ("start.1.pruning_ration=1", "pruning_ratio?")),
        ("space.start=[{target_rung: 1}]", ("start.0.target_rung=1", "leave it out")),
        ("search.portfolio=/no/such.json", ("search.portfolio='/no/such.json'", "auto, none, or")),
        ("space.function=filter_prunning", ("'filter_prunning'", "filter_pruning")),
        ("space.function=no_such_module:space", ("no_such_module:space", "PYTHONPATH")),
        ("space.function=json:space", ("json:space", "has no function 'space'")),
        ("backbone.model=test_resnt", ("backbone.model='test_resnt'",)),
        ("backbone.model=no_such_module:net", ("no_such_module:net", "module:factory")),
        ("backbone.weights=/no/such.safetensors", ("/no/such.safetensors", "is no file")),
        ("task.source=/no/such/folder", ("task.source='/no/such/folder' does not exist",)),
        ("task.classes=[cat, dog]", ("task.classes names 'cat'", "0, 1, 2")),
        ("source_task={source: /no/such}", ("source_task.source='/no/such' does not exist",)),
        ("task.max_train_images=5", ("task.max_train_images=5 must be", "fewer in task.classes")),
        ("rungs.max_flops=1e8", ("max_flops=1e+08 below min_flops",)),
        ("tracking.uri=http://127.0.0.1:9", ("http://127.0.0.1:9", "Connection refused")),
        ("ray.address=127.0.0.1:9", ("'127.0.0.1:9'", "Connection refused")),
    ],
)
def test_what_makes_no_sense(
    refused: Callable[..., str], override: str, named: tuple[str, ...]
) -> None:
    sentence = refused(override)
    for part in named:
        assert part in sentence


def test_recipes_none_of_which_can_be_realised(refused: Callable[..., str]) -> None:
    sentence = refused("rungs.min_flops=10", "rungs.max_flops=100")
    assert "one step" in sentence
    assert "raise rungs.max_flops" in sentence


def test_weights_that_do_not_fit(refused: Callable[..., str], tmp_path: Path) -> None:
    weights = tmp_path / "other.safetensors"
    safetensors.torch.save_file({"layer.weight": torch.zeros(2)}, weights)
    sentence = refused(f"backbone.weights={weights}")
    assert str(weights) in sentence
    assert "does not fit test_resnet" in sentence


def test_weights_that_are_none(refused: Callable[..., str], tmp_path: Path) -> None:
    weights = tmp_path / "notes.safetensors"
    weights.write_text("no weights")
    assert str(weights) in refused(f"backbone.weights={weights}")


def png(value: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), (value, value, value)).save(buffer, "PNG")
    return buffer.getvalue()


def class_folders(folder: Path, counts: dict[str, int]) -> Path:
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            (folder / name / f"{number:02}.png").write_bytes(png(number))
    return folder


def test_a_corrupt_image_in_a_class_folder(refused: Callable[..., str], tmp_path: Path) -> None:
    task = class_folders(tmp_path / "pets", {"cat": 12, "dog": 12})
    (task / "dog" / "07.png").write_bytes(png()[:40])
    assert str(task / "dog" / "07.png") in refused(f"task.source={task}")


def test_a_corrupt_image_in_a_parquet_file(refused: Callable[..., str], tmp_path: Path) -> None:
    images = [{"bytes": png(row), "path": None} for row in range(24)]
    images[17] = {"bytes": b"no image", "path": None}
    path = tmp_path / "pets" / "train.parquet"
    path.parent.mkdir()
    pq.write_table(pa.table({"image": images, "label": [row % 2 for row in range(24)]}), path)
    sentence = refused(f"task.source={path.parent}")
    assert str(path) in sentence
    assert "row 17" in sentence


def test_a_class_with_one_image(refused: Callable[..., str], tmp_path: Path) -> None:
    task = class_folders(tmp_path / "pets", {"cat": 12, "dog": 1})
    sentence = refused(f"task.source={task}")
    assert "'dog'" in sentence
    assert "1 image" in sentence


def test_images_with_several_labels(refused: Callable[..., str], tmp_path: Path) -> None:
    images = [{"bytes": png(row), "path": None} for row in range(8)]
    path = tmp_path / "pets" / "train.parquet"
    path.parent.mkdir()
    pq.write_table(pa.table({"image": images, "label": [[0, 1]] * 8}), path)
    assert "label" in refused(f"task.source={path.parent}")


def test_a_table_with_a_fine_and_a_coarse_label(
    refused: Callable[..., str], prunetune: Prunetune, config: Path, tmp_path: Path
) -> None:
    rows = range(60)
    images = [{"bytes": png(row), "path": None} for row in rows]
    fine, coarse = [row % 6 for row in rows], [row % 2 for row in rows]
    path = tmp_path / "plants" / "train.parquet"
    path.parent.mkdir()
    pq.write_table(pa.table({"photo": images, "fine": fine, "coarse": coarse}), path)
    sentence = refused(f"task.source={path.parent}", "task.max_train_images=null")
    assert "2 columns that may be the label" in sentence
    assert sentence.endswith("set task.label_column to one of fine, coarse.")
    for column, classes in (("fine", 6), ("coarse", 2)):
        ended = prunetune(
            *("doctor", str(config), f"task.source={path.parent}", "task.max_train_images=null"),
            f"task.label_column={column}",
        )
        assert ended.status == 0
        assert f"{classes} classes" in ended.out
    assert "set task.label_column" in refused(
        f"task.source={path.parent}", "task.label_column=photo"
    )
    assert "set source_task.label_column" in refused(f"source_task={{source: {path.parent}}}")


def test_a_folder_that_another_driver_holds(refused: Callable[..., str], tmp_path: Path) -> None:
    with SweepFolder.at(tmp_path / "sweep").locked():
        assert "Another driver is running the sweep" in refused()


def test_a_folder_that_cannot_be_made(config: Path, prunetune: Prunetune, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    ended = prunetune("sweep", str(config), f"storage.folder={tmp_path / 'file' / 'sweep'}")
    assert ended.status == 2
    assert str(tmp_path / "file") in the_sentence(ended)


def test_a_space_of_ones_own_that_raises(
    refused: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "faulty_space.py").write_text("def space(trial, problem):\n    return 1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    sentence = refused("space.function=faulty_space:space")
    assert "raised ZeroDivisionError" in sentence


def test_the_hub_without_a_network(config: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "orchestrator", "sweep", str(config)),
            *("backbone.model=test_resnet.r160_in1k", "backbone.weights=hub"),
        ],
        cwd=ROOT,
        env=os.environ
        | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path), "NO_PROXY": "*"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    sentence = the_sentence(Ended(status=2, out=done.stdout, err=done.stderr))
    assert "test_resnet.r160_in1k" in sentence
    assert not (tmp_path / "sweep" / "sweep.yaml").exists()


def test_brackets_in_a_sentence_are_shown(refused: Callable[..., str]) -> None:
    assert "[red]" in refused("name='[red]x'")


def test_a_fault_of_ours_shows_where(
    prunetune: Prunetune, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fault(*_: object) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr("orchestrator.config.read_config", fault)
    monkeypatch.setattr(sys, "argv", ["prunetune", "sweep", str(config)])
    with pytest.raises(ValueError, match="a bug"):
        cli.main()


def test_a_full_disk_is_no_fault_of_ours(
    prunetune: Prunetune, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "/data/journal")

    monkeypatch.setattr("orchestrator.config.read_config", full)
    ended = prunetune("sweep", str(config))
    assert ended.status == 2
    assert the_sentence(ended) == (
        "There is no space left for /data/journal; free some, and the same command resumes."
    )


# doctor


def test_doctor_says_what_it_found(prunetune: Prunetune, config: Path, tmp_path: Path) -> None:
    ended = prunetune("doctor", str(config))
    assert ended.status == 0
    lines = ended.out.splitlines()
    assert [line.split(":")[0] for line in lines if line.startswith("ok")] == [
        f"ok  {title}"
        for title in (
            *("config", "folder", "task", "backbone"),
            *("space", "search", "start", "images", "recipes", "tracking"),
        )
    ]
    assert "10 classes" in ended.out
    assert not (tmp_path / "sweep" / "sweep.yaml").exists()
    assert "What the budget buys, about" in ended.out
    (everything,) = [line.split() for line in lines if line.lstrip().startswith("all ")]
    assert int(everything[1]) > 0


def test_doctor_refuses_a_budget_that_buys_nothing(prunetune: Prunetune, config: Path) -> None:
    ended = prunetune("doctor", str(config), "budget.trials=null", "budget.sweep_flops=1e6")
    assert ended.status == 2
    assert "budget.sweep_flops=1e+06 buys no trial" in " ".join(ended.out.split())


def test_doctor_goes_on_after_a_bad_thing(prunetune: Prunetune, config: Path) -> None:
    ended = prunetune(
        "doctor", str(config), "tracking.uri=http://127.0.0.1:9", "space.ranges.pruning_ratio=2"
    )
    assert ended.status == 2
    bad = [line.split(":")[0] for line in ended.out.splitlines() if line.startswith("bad")]
    assert bad == ["bad space", "bad tracking"], "recipes meet the same mistake as the space"
    assert "ok  backbone" in ended.out


def test_doctor_says_what_the_sweep_starts_with(prunetune: Prunetune, config: Path) -> None:
    ended = prunetune("doctor", str(config), "space.start=[{pruning_ratio: 0.5}, {}]")
    assert ended.status == 0
    assert "ok  start: 2 of space.start\n" in ended.out


@pytest.mark.parametrize("command", ["sweep", "doctor"])
def test_an_earlier_sweep_that_is_none(prunetune: Prunetune, config: Path, command: str) -> None:
    ended = prunetune(command, str(config), "--after", "/no/such/run")
    assert ended.status == 2
    assert "'/no/such/run' is no sweep" in f"{ended.out}{ended.err}"


# what a sweep left


@pytest.fixture
def swept(tmp_path: Path) -> Path:
    """A sweep's folder whose frontier costs 1, 2 and 4 GFLOPs."""
    root = tmp_path / "runs" / "flowers"
    root.mkdir(parents=True)
    (root / "sweep.yaml").write_text(yaml.safe_dump(config_for(tmp_path)))
    TableWriter(ledger_of({0: [0.5, 0.4], 1: [0.6, 0.45, 0.2]}), disk(root)).write()
    return root


def test_the_frontier_is_printed(prunetune: Prunetune, swept: Path) -> None:
    ended = prunetune("frontier", str(swept))
    assert ended.status == 0
    assert [line.split()[0:5] for line in ended.out.splitlines()[3:]] == [
        ["0", "@", "0", "1", "G"],
        ["0", "@", "1", "2", "G"],
        ["1", "@", "2", "4", "G"],
    ]


def points(ended: Ended) -> list[tuple[int, int]]:
    assert ended.status == 0, ended.err
    return [(point["number"], point["rung"]) for point in json.loads(ended.out)]


def test_the_frontier_as_json(prunetune: Prunetune, swept: Path) -> None:
    assert points(prunetune("frontier", str(swept), "--json")) == [(0, 0), (0, 1), (1, 2)]


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        (("--max-flops", "3e9"), (0, 1)),
        (("--max-flops", "1e9"), (0, 0)),
        (("--max-flops", "inf"), (1, 2)),
        (("--max-error", "0.45"), (0, 1)),
        (("--max-error", "1"), (0, 0)),
    ],
)
def test_the_frontier_answers_a_question(
    prunetune: Prunetune, swept: Path, question: tuple[str, str], answer: tuple[int, int]
) -> None:
    assert points(prunetune("frontier", str(swept), "--json", *question)) == [answer]


@pytest.mark.parametrize(
    ("question", "sentence"),
    [
        (("--max-flops", "1e8"), "costs at most 1e+08 FLOPs; the cheapest takes 1e+09"),
        (("--max-error", "0.1"), "has an error of at most 0.1; the lowest is 0.2"),
        (("--max-flops", "1e9", "--max-error", "0.5"), "ask for two different points"),
        (("--max-flops", "nan"), "--max-flops=nan must not be negative"),
        (("--max-error", "-1"), "--max-error=-1.0 must not be negative"),
    ],
)
def test_a_question_without_an_answer(
    prunetune: Prunetune, swept: Path, question: tuple[str, ...], sentence: str
) -> None:
    ended = prunetune("frontier", str(swept), *question)
    assert ended.status == 2
    assert sentence in the_sentence(ended)


@pytest.mark.parametrize("command", ["frontier", "report -o x.html", "export -o x", "ui"])
def test_a_sweep_that_is_not_there(
    prunetune: Prunetune, swept: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.chdir(swept.parents[1])
    name, *options = command.split()
    ended = prunetune(name, "flower", *options)
    assert ended.status == 2
    assert "under ./runs there are flowers" in the_sentence(ended)


def test_a_sweep_that_has_measured_nothing(prunetune: Prunetune, swept: Path) -> None:
    (swept / "measurements" / "part-0.parquet").unlink()
    ended = prunetune("frontier", str(swept))
    assert ended.status == 2
    assert "no measurement" in the_sentence(ended)


def test_a_report_is_written(prunetune: Prunetune, swept: Path, tmp_path: Path) -> None:
    ended = prunetune("report", str(swept), "-o", str(tmp_path / "report.html"))
    assert ended.status == 0
    assert "<html" in (tmp_path / "report.html").read_text()


def test_a_model_whose_checkpoint_is_gone_is_not_exported(
    prunetune: Prunetune, swept: Path, tmp_path: Path
) -> None:
    ended = prunetune("export", str(swept), "-o", str(tmp_path / "model"))
    assert ended.status == 2
    assert "The checkpoint of trial 1 at rung 2 is not in" in the_sentence(ended)
    assert not (tmp_path / "model").exists()


def test_a_portfolio_of_sweeps_is_written_and_read(
    prunetune: Prunetune, config: Path, tmp_path: Path
) -> None:
    root = tmp_path / "runs" / "flowers"
    root.mkdir(parents=True)
    (root / "sweep.yaml").write_text(yaml.safe_dump(config_for(tmp_path)))
    journal = Journal(disk(root), "journal")
    ledger_of({0: [0.5, 0.4], 1: [0.6, 0.45, 0.2]}, journal=journal)
    journal.close()
    out = tmp_path / "flowers.json"
    ended = prunetune("portfolio", str(root), root.as_uri(), "-o", str(out))
    assert ended.status == 0, ended.err
    assert f"{out}: 2 recipes, from the best" in ended.out
    ended = prunetune("doctor", str(config), f"search.portfolio={out}")
    assert "ok  start: 1 of flowers" in ended.out


# ui


@contextmanager
def listening() -> Iterator[int]:
    """A port that is taken."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken.getsockname()[1]


def test_the_ui_needs_a_port_of_its_own(prunetune: Prunetune, swept: Path) -> None:
    with listening() as port:
        ended = prunetune("ui", str(swept), "--port", str(port))
    assert ended.status == 2
    assert f"Port {port} cannot be had" in the_sentence(ended)


def test_the_ui_of_nothing(
    prunetune: Prunetune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = prunetune("ui")
    assert ended.status == 2
    assert "There is no sweep under ./runs" in the_sentence(ended)


def test_the_ui_of_a_sweep_on_a_server_is_there(
    prunetune: Prunetune, swept: Path, tmp_path: Path
) -> None:
    tracked = config_for(tmp_path) | {"tracking": {"uri": "http://mlflow.example"}}
    (swept / "sweep.yaml").write_text(yaml.safe_dump(tracked))
    ended = prunetune("ui", str(swept))
    assert ended.status == 0
    assert "http://mlflow.example" in ended.out
