"""The report holds what the sweep found, escapes what it shows, and needs no finished trial."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from analysis import units
from analysis.report import MissingSweepError, render, write_report
from analysis.table import (
    frontier_of,
    read_measurements,
    read_trials,
    rows,
    write_measurements,
    write_trials,
)
from tests.analysis.sweeps import CONFIG, sweep, write_sweep


class Page(HTMLParser):
    """The page's visible text, its tags, and whatever it would load."""

    VOID = frozenset({"meta", "br", "img", "link", "input", "hr"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text, self.open, self.tags, self.loads = "", [""], set[str](), list[str]()
        self.feed(html)
        self.text = re.sub(r"\s+", " ", self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.loads += [v for k, v in attrs if k in {"src", "href", "xlink:href"} and v]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1] not in {"style", "script"}:
            self.text += f" {data}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sweep(tmp_path_factory.mktemp("sweep"), trials=24)


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    return Page(render(folder))


def test_every_frontier_point_stands_in_the_table(page: Page, folder: Path) -> None:
    points = frontier_of(read_measurements(folder)).points
    assert len(points) > 3
    for point in points:
        compute, error = units.flops(point.train_flops), units.percent(point.val_error)
        assert re.search(rf"{re.escape(compute)}\s+{re.escape(error)}", page.text)


def test_the_head_tells_what_was_swept_and_what_it_cost(page: Page, folder: Path) -> None:
    trials = rows(read_trials(folder))
    assert "pets-pilot" in page.text
    assert "resnet18.a1_in1k" in page.text
    assert "100 GFLOPs to 100 TFLOPs, 2 per decade" in page.text
    assert "sweep flops 5 PFLOPs" in page.text
    assert units.flops(sum(row["executed_flops"] for row in trials)) in page.text
    for state in {row["state"] for row in trials}:
        assert f"{sum(row['state'] == state for row in trials)} {state}" in page.text


def test_fields_that_the_ranges_call_otherwise_are_told(page: Page) -> None:
    assert "in the configuration's ranges: learning rate as adamw_rate." in page.text


def test_trials_without_success_are_listed_with_their_reasons(page: Page) -> None:
    assert "layer4.1.conv2 would keep 0 of 512 filters" in page.text
    assert "out of memory at batch size 128 (3 attempts)" in page.text
    assert "the training loss was inf at step 40" in page.text
    assert "below the best third" not in page.text  # halved is no failure


def test_the_page_is_self_contained_and_well_formed(page: Page) -> None:
    assert page.open == [""]
    assert all(target.startswith(("#", "data:")) for target in page.loads)
    assert page.tags.isdisjoint({"script", "link", "iframe", "a"})
    assert {"svg", "details", "table"} <= page.tags


def test_whatever_is_shown_is_escaped(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    write_sweep(tmp_path, trials=9)
    config = CONFIG | {"name": evil, "task": {"source": evil}}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(config))
    _, trials = sweep(9)
    write_trials([row | {"reason": evil, "state": "failed"} for row in trials], tmp_path)
    html = render(tmp_path)
    assert "<script" not in html
    assert Page(html).text.count(evil) >= 9 + 3


def test_a_sweep_that_has_just_begun_has_a_page(tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(CONFIG))
    page = Page(render(tmp_path))
    assert "No trial has been measured yet" in page.text
    assert "0 trials" in page.text
    assert "svg" not in page.tags


def test_a_sweep_without_measurements_still_shows_why(tmp_path: Path) -> None:
    write_sweep(tmp_path, trials=0)
    _, trials = sweep(9)
    failed = [row | {"state": "failed", "reason": "no device"} for row in trials]
    write_trials(failed, tmp_path)
    page = Page(render(tmp_path))
    assert page.text.count("no device") == 9
    assert "No trial has been measured yet" in page.text


def test_a_frontier_of_one_point_has_a_page(tmp_path: Path) -> None:
    write_sweep(tmp_path, trials=1)
    measurements = read_measurements(tmp_path).slice(0, 1)
    write_measurements(measurements.to_pylist(), tmp_path)
    page = Page(render(tmp_path))
    assert "One point beats or equals all others" in page.text
    assert "1 trials were measured; a ranking needs at least 10." in page.text


def test_a_bare_configuration_is_enough(tmp_path: Path) -> None:
    write_sweep(tmp_path, trials=9)
    (tmp_path / "sweep.yaml").write_text("rungs: {min_flops: 1e11, max_flops: 1e14, per_decade: 2}")
    page = Page(render(tmp_path))
    assert tmp_path.name in page.text
    assert "100 GFLOPs to 100 TFLOPs" in page.text  # though YAML 1.1 reads 1e11 as text
    assert "hypervolume to 100 TFLOPs" in page.text


@pytest.mark.parametrize("text", [None, "- a list", "{unclosed", b"\xff\xfe"])
def test_a_folder_that_is_no_sweeps_is_refused(tmp_path: Path, text: str | bytes | None) -> None:
    if text is not None:
        (tmp_path / "sweep.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(MissingSweepError, match=r"sweep\.yaml"):
        render(tmp_path)


def test_a_report_replaces_the_old_one(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "sweep", trials=9)
    output = tmp_path / "new" / "report.html"
    write_report(folder, output)
    first = output.read_text(encoding="utf-8")
    write_report(folder, output)
    assert output.read_text(encoding="utf-8") == first  # nothing in it changes with the clock
    assert [path.name for path in output.parent.iterdir()] == ["report.html"]


def test_expected_errors_and_what_confirms_them_are_shown(tmp_path: Path) -> None:
    write_sweep(tmp_path, trials=24)
    measurements, _ = sweep(24)
    measured = frontier_of(measurements).points
    shrunk = [
        row
        | {
            "expected_error": min(1.0, row["val_error"] + 0.0123),
            "confirming_error": 0.4321 if row["trial_id"] == measured[0].trial_id else None,
        }
        for row in measurements
    ]
    write_measurements(shrunk, tmp_path)
    page = Page(render(tmp_path))
    frontier = frontier_of(shrunk)
    assert frontier.confirmed >= 1
    assert f"{frontier.confirmed} of {len(frontier.points)} points confirmed" in page.text
    for point in frontier.points:
        errors = f"{units.percent(point.val_error)} {units.percent(point.expected_error)}"
        assert errors in page.text
    assert "43.2 %" in page.text
    assert "confirmed by another run of the recipe with another seed" in page.text


def test_a_sweep_of_an_earlier_version_shows_no_expected_errors(page: Page) -> None:
    assert "xpected" not in page.text
    assert "confirmed" not in page.text
