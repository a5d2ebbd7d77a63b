"""The command line. It starts fast: what a command needs is imported by that command."""

import errno
import json
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from trainables.errors import InputError, UserError

if TYPE_CHECKING:
    from analysis.frontier import Frontier, FrontierPoint

app = typer.Typer(
    help="Finds the compute-optimal frontier of transfer learning.",
    epilog="Example: prunetune demo",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

ConfigFile = Annotated[Path, typer.Argument(help="The config, a YAML file.", metavar="CONFIG.yaml")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Config values to replace: budget.trials=50.", metavar="KEY=VALUE"),
]
SweepName = Annotated[
    str, typer.Argument(help="A sweep's folder, or its name under ./runs.", metavar="SWEEP")
]
After = Annotated[
    list[str] | None,
    typer.Option(
        help="An earlier sweep, by folder, name or storage URI, whose best recipes are tried "
        "first. May be given several times.",
        metavar="RUN",
    ),
]
MaxFlops = Annotated[
    float | None, typer.Option(help="The best model within so many training FLOPs.")
]
MaxError = Annotated[
    float | None, typer.Option(help="The cheapest model with at most this validation error, 0-1.")
]


def main() -> None:
    """Runs the command line; bad input ends it with one sentence and exit status 2."""
    # The user's own models and spaces are looked for where the command is started, which a console
    # script does not do by itself. Workers take the path over from the driver.
    sys.path.insert(0, str(Path.cwd()))
    # Nothing is told to anybody about a user's sweeps, unless the user has asked for it.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        app()
    except UserError as error:
        _refuse(str(error))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        where = f" for {error.filename}" if error.filename else ""
        _refuse(f"There is no space left{where}; free some, and the same command resumes.")


@app.command(epilog="Example: prunetune demo --out runs/demo")
def demo(
    out: Annotated[Path, typer.Option(help="The sweep's folder.")] = Path("runs/demo"),
) -> None:
    """Pretrain a small backbone on five handwritten digits, then sweep it over all ten."""
    from orchestrator.demo import run_demo

    console = Console()
    with _resumable():
        frontier = run_demo(out, console=console)
    _show(frontier, console)
    _say(console, "report", str(out / "report.html"))
    _say(console, "MLflow", f"prunetune ui {out}")


@app.command(epilog="Example: prunetune sweep flowers.yaml budget.trials=200")
def sweep(
    config: ConfigFile,
    overrides: Overrides = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Delete the sweep and start over.")
    ] = False,
    address: Annotated[str | None, typer.Option(help="A running Ray cluster's address.")] = None,
    after: After = None,
) -> None:
    """Find the frontier. The same command resumes; a raised budget extends."""
    from orchestrator.config import SweepConfig, read_config
    from orchestrator.sweep import Sweep

    replaced = [*(overrides or []), *([f"ray.address={address}"] if address else [])]
    parsed = read_config(SweepConfig, config, replaced)
    console = Console()
    with _resumable():
        frontier = Sweep(parsed, after=after or (), console=console).run(fresh=fresh)
    _show(frontier, console)
    _say(console, "report", str(parsed.folder / "report.html"))


@app.command(epilog="Example: prunetune pretrain house-style.yaml epochs=40")
def pretrain(config: ConfigFile, overrides: Overrides = None) -> None:
    """Make a backbone from a labelled image dataset of your own."""
    from orchestrator.config import PretrainConfig, read_config
    from orchestrator.pretraining import run_pretraining

    run_pretraining(read_config(PretrainConfig, config, overrides or []), console=Console())


@app.command(epilog="Example: prunetune frontier flowers --max-error 0.05")
def frontier(
    sweep: SweepName,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, a list of points.")] = False,
    max_flops: MaxFlops = None,
    max_error: MaxError = None,
) -> None:
    """Print a sweep's frontier, or the one point that answers a question."""
    from analysis.frontier import Frontier
    from analysis.table import frontier_of, read_measurements
    from orchestrator.store.folder import SweepFolder

    folder = SweepFolder.find(sweep)
    found = frontier_of(read_measurements(folder.storage()))
    if max_flops is not None or max_error is not None:
        found = Frontier((_chosen(found, max_flops=max_flops, max_error=max_error),))
    if as_json:
        print(json.dumps([point.to_dict() for point in found.points], indent=2))
    else:
        _show(found, Console())


@app.command(epilog="Example: prunetune report flowers -o flowers.html")
def report(
    sweep: SweepName,
    out: Annotated[Path, typer.Option("-o", "--out", help="The HTML file to write.")],
) -> None:
    """Write one self-contained page: frontier, curves, importance, cost."""
    from analysis.report import write_report
    from orchestrator.store.folder import SweepFolder

    folder = SweepFolder.find(sweep)
    write_report(folder.root, out, tables=folder.storage())
    _say(Console(), "report", str(out))


@app.command(epilog="Example: prunetune export flowers --max-flops 1e13 -o flowers-model")
def export(
    sweep: SweepName,
    out: Annotated[Path, typer.Option("-o", "--out", help="A new folder for the model.")],
    max_flops: MaxFlops = None,
    max_error: MaxError = None,
) -> None:
    """Write a frontier model as safetensors, recipe and card; the most accurate by default."""
    from orchestrator.exporting import export_point

    point = export_point(
        sweep, out, choose=lambda found: _chosen(found, max_flops=max_flops, max_error=max_error)
    )
    reached = f"validation error {point.val_error:.4f}"
    _say(Console(), str(out), f"trial {point.number}, rung {point.rung}, {reached}")


@app.command(epilog="Example: prunetune portfolio flowers birds -o plants-and-birds.json")
def portfolio(
    sweeps: Annotated[
        list[str],
        typer.Argument(help="Sweeps, by folder, name or storage URI.", metavar="RUN..."),
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="The JSON file to write.")],
) -> None:
    """Write down the best recipes of sweeps, for search.portfolio of others to start with."""
    from orchestrator.search import portfolio as portfolios
    from orchestrator.search.earlier import earlier_sweep

    recipes = portfolios.portfolio_of([earlier_sweep(sweep) for sweep in sweeps])
    portfolios.write(out, recipes)
    _say(Console(), str(out), f"{len(recipes)} recipes, from the best")


@app.command(epilog="Example: prunetune doctor flowers.yaml")
def doctor(config: ConfigFile, overrides: Overrides = None, after: After = None) -> None:
    """Check everything that can be known before compute is spent; tell what the budget buys."""
    from orchestrator.config import SweepConfig, read_config
    from orchestrator.doctor import Examination
    from orchestrator.inputs import SweepInputs
    from orchestrator.terminal.outlook_table import OutlookTable

    console = Console()
    parsed = read_config(SweepConfig, config, overrides or [])
    _say(console, "ok  config", "valid", style="green")
    told: set[str] = set()  # several checks may meet one mistake
    examination = Examination(SweepInputs(parsed, after=after or ()))
    for check in examination.checks:
        try:
            _say(console, f"ok  {check.title}", check.run(), style="green")
        except UserError as error:
            if str(error) not in told:
                _say(console, f"bad {check.title}", str(error), style="red")
            told.add(str(error))
    if told:
        raise typer.Exit(2)
    try:
        console.print(OutlookTable(examination.outlook()))
    except UserError as error:
        _say(console, "bad budget", str(error), style="red")
        raise typer.Exit(2) from error


@app.command(epilog="Example: prunetune ui flowers")
def ui(
    sweep: Annotated[
        str | None, typer.Argument(help="A sweep; the newest under ./runs if left out.")
    ] = None,
    port: Annotated[int, typer.Option(help="The port on loopback.", min=1, max=65535)] = 5000,
) -> None:
    """Open the MLflow UI of a sweep on loopback."""
    from orchestrator.tracking.ui import serve

    serve(sweep, port=port, console=Console())


def _chosen(
    found: "Frontier", *, max_flops: float | None, max_error: float | None
) -> "FrontierPoint":
    """Returns the one point that fits, the most accurate of all by default."""
    if not found.points:
        raise InputError("The sweep's frontier is empty: nothing was measured yet; run it first.")
    if max_flops is not None and max_error is not None:
        raise InputError("--max-flops and --max-error ask for two different points; give one.")
    for flag, limit in (("--max-flops", max_flops), ("--max-error", max_error)):
        if limit is not None and (math.isnan(limit) or limit < 0):
            raise InputError(f"{flag}={limit} must not be negative.")
    if max_flops is not None:
        point = found.best_under(max_flops)
        wanted = f"costs at most {max_flops:g} FLOPs; the cheapest takes"
        refusal = f"{wanted} {found.points[0].train_flops:g}"
    elif max_error is not None:
        point = found.cheapest_under(max_error)
        wanted = f"has an error of at most {max_error:g}; the lowest is"
        refusal = f"{wanted} {found.points[-1].val_error:g}"
    else:
        return found.points[-1]
    if point is None:
        raise InputError(f"No point of the frontier {refusal}; loosen the limit.")
    return point


def _show(found: "Frontier", console: Console) -> None:
    from orchestrator.terminal.frontier_table import FrontierTable

    console.print(FrontierTable(found))


def _say(console: Console, label: str, message: str, *, style: str = "dim") -> None:
    """Prints one line, whatever it holds and however narrow the terminal is."""
    console.print(Text.assemble((f"{label}: ", style), message), soft_wrap=True)


def _refuse(sentence: str) -> None:
    _say(Console(stderr=True), "prunetune", sentence, style="red")
    sys.exit(2)


@contextmanager
def _resumable() -> Iterator[None]:
    """Ends the command quietly on an interrupt, because that is the user's way to stop it."""
    try:
        yield
    except KeyboardInterrupt:
        Console(stderr=True).print("stopped; the same command resumes")
        raise typer.Exit(130) from None
