"""Takes a frontier's models out of a sweep."""

from collections.abc import Callable, Sequence
from pathlib import Path

from analysis.frontier import Frontier, FrontierPoint
from analysis.table import frontier_of, read_measurements
from orchestrator.card import model_card
from orchestrator.config import SweepConfig, read_config
from orchestrator.identity import Identity
from orchestrator.store.beginnings import recorded_identity
from orchestrator.store.folder import SweepFolder
from orchestrator.store.journal import Journal
from trainables.checkpoints import checkpoint_folder, complete_rungs
from trainables.errors import InputError, keys_of
from trainables.export import export_model
from trainables.images.tasks import inspect


def export_point(
    sweep: str, out: Path, *, choose: Callable[[Frontier], FrontierPoint]
) -> FrontierPoint:
    """Writes the model of the point that `choose` takes from the sweep's frontier into `out`.

    `sweep` is a folder or a name. Raises `InputError` for a sweep that is not there, an `out` that
    is not empty, and a point whose checkpoint is gone.
    """
    folder = SweepFolder.find(sweep)
    config = read_config(SweepConfig, folder.config)
    point = choose(frontier_of(read_measurements(folder.storage())))
    if point.rung not in complete_rungs(f"{folder.trials_uri}/{point.trial_id}"):
        raise InputError(
            f"The checkpoint of trial {point.number} at rung {point.rung} is not in "
            f"{folder.trials_uri}; run the sweep's command again to bring the folder in order."
        )
    class_names = _class_names(folder, config)
    write_model(point, out, sweep=folder, config=config, class_names=class_names)
    return point


def _class_names(folder: SweepFolder, config: SweepConfig) -> Sequence[str]:
    """Returns the classes that the sweep was begun with; the task itself may have changed since."""
    recorded = recorded_identity(Journal(folder.storage(), "journal"))
    if recorded is not None:
        return Identity.from_dict(recorded).class_names
    with keys_of("task"):
        return inspect(config.task.to_source()).class_names


def write_model(
    point: FrontierPoint,
    out: Path,
    *,
    sweep: SweepFolder,
    config: SweepConfig,
    class_names: Sequence[str],
) -> None:
    """Writes the model that was measured at `point`, with its card, into the new folder `out`."""
    export_model(
        checkpoint_of(point, sweep),
        out,
        backbone=config.backbone,
        class_names=class_names,
        card=model_card(point, config),
    )


def checkpoint_of(point: FrontierPoint, sweep: SweepFolder) -> str:
    """Returns where the checkpoint of the point's model lies."""
    return checkpoint_folder(f"{sweep.trials_uri}/{point.trial_id}", point.rung)
