"""The importance of each field of the recipe: how much of the error it explains beyond compute."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from analysis.table import Rows, recipe_of, rows

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

MIN_TRIALS = 10
"""Below this many measured trials nothing is claimed."""
COMPUTE = "train_flops"
"""Name under which training compute itself is ranked, for comparison."""
UNFINISHED = "target_flops / train_flops"
"""The field for how far a schedule was from its end. It stands in for `target_flops`, which in a
finished trial equals the training compute and would share its importance."""

_FOLDS = 5
_REPEATS = 5
_TREES = 50  # in each of the folds


@dataclass(frozen=True, kw_only=True)
class FieldImportance:
    """The loss of accuracy in predicting the validation error when one field is shuffled."""

    name: str
    """The recipe's field, or `COMPUTE`, or `UNFINISHED`."""
    importance: float
    """Mean fall of R² on held-out trials; about 0 where the field does not matter."""
    spread: float
    """Standard deviation of that fall over folds and shuffles."""


@dataclass(frozen=True, kw_only=True)
class Importance:
    """A ranking with the evidence for it, or the reason why there is none."""

    fields: tuple[FieldImportance, ...] = ()
    """Most important first; empty when `reason` is given."""
    r2: float | None = None
    """R² of predictions for held-out trials: the ranking deserves no more trust than that."""
    trials: int
    """Trials with at least one measurement."""
    constant: tuple[str, ...] = ()
    """Fields with one value throughout, which therefore say nothing."""
    reason: str | None = None
    """The reason why there is no ranking, in one sentence."""


def recipe_importance(measurements: Rows, *, seed: int = 0) -> Importance:
    """Ranks training compute and the recipe's fields by how much of the error they explain.

    A random forest predicts each trial's last validation error from log10 training compute and
    its recipe; a field's importance is the fall of R² on held-out trials when its values are
    shuffled among them (permutation importance, Breiman 2001; 5-fold cross-validated). Because
    compute is among the inputs, what a field merely gains by spending more is not its own.
    Trees see only the order of a number, so learning rates and decays need no logarithm.
    Text is one-hot; a setting that a method lacks counts as missing, which trees can split on.
    The same measurements and seed give the same ranking.

    It describes this sweep's trials: the search looked more often where it was good, and fields
    that went together share their importance.
    """
    finals = _last_of_each_trial(rows(measurements))
    if len(finals) < MIN_TRIALS:
        return Importance(
            trials=len(finals),
            reason=f"{len(finals)} trials were measured; a ranking needs at least {MIN_TRIALS}.",
        )
    columns = _columns(finals)
    constant = tuple(name for name, values in columns.items() if _same(values))
    varying = {name: values for name, values in columns.items() if name not in constant}
    errors = np.array([row["val_error"] for row in finals])
    if not set(varying) - {COMPUTE} or np.ptp(errors) == 0:
        what = "validation error" if np.ptp(errors) == 0 else "recipe"
        return Importance(
            trials=len(finals), constant=constant, reason=f"All trials have the same {what}."
        )
    falls, r2 = _permutation_falls(varying, errors, seed=seed)
    ranked = sorted(
        (
            FieldImportance(name=name, importance=float(fall.mean()), spread=float(fall.std()))
            for name, fall in zip(varying, falls, strict=True)
        ),
        key=lambda field: -field.importance,
    )
    return Importance(fields=tuple(ranked), r2=r2, trials=len(finals), constant=constant)


def _last_of_each_trial(records: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Returns every trial's measurement of most compute, in the order of suggestion."""
    last: dict[str, Mapping[str, Any]] = {}
    for row in sorted(records, key=lambda row: (row["number"], row["train_flops"])):
        last[row["trial_id"]] = row
    return list(last.values())


def _columns(finals: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Returns each input's values by trial; `None` where a trial's method lacks the setting."""
    recipes = [recipe_of(row) for row in finals]
    columns: dict[str, list[Any]] = {COMPUTE: [math.log10(row["train_flops"]) for row in finals]}
    for name in sorted({name for recipe in recipes for name in recipe}):
        columns[name] = [recipe.get(name) for recipe in recipes]
    if "target_flops" in columns:
        columns[UNFINISHED] = [
            None if target is None else max(1.0, round(target / row["train_flops"], 2))
            for target, row in zip(columns.pop("target_flops"), finals, strict=True)
        ]
    return columns


def _same(values: Sequence[Any]) -> bool:
    return all(value == values[0] for value in values)


def _permutation_falls(
    columns: Mapping[str, Sequence[Any]], errors: NDArray[np.float64], *, seed: int
) -> tuple[NDArray[np.float64], float]:
    """Returns falls of R² [columns, folds × repeats], and R² over all held-out predictions."""
    from sklearn.inspection import permutation_importance
    from sklearn.metrics import r2_score
    from sklearn.model_selection import KFold

    inputs = _matrix(columns)
    falls, predictions = [], np.empty_like(errors)
    for fit, held_out in KFold(_FOLDS, shuffle=True, random_state=seed).split(inputs):
        forest = _forest(columns, seed=seed).fit(inputs[fit], errors[fit])
        predictions[held_out] = forest.predict(inputs[held_out])
        # Squared error over the variance of *all* trials: R² within a small fold is noise.
        drop = permutation_importance(
            forest,
            inputs[held_out],
            errors[held_out],
            scoring="neg_mean_squared_error",
            n_repeats=_REPEATS,
            random_state=seed,
        )
        falls.append(drop.importances / errors.var())
    return np.concatenate(falls, axis=1), float(r2_score(errors, predictions))


def _matrix(columns: Mapping[str, Sequence[Any]]) -> NDArray[np.object_]:
    """Returns [trials, columns]: text as it is, numbers as floats, the missing as "" or NaN."""
    matrix = np.empty((len(next(iter(columns.values()))), len(columns)), dtype=object)
    for j, values in enumerate(columns.values()):
        if _is_text(values):
            matrix[:, j] = ["" if value is None else value for value in values]
        else:
            matrix[:, j] = [math.nan if value is None else float(value) for value in values]
    return matrix


def _forest(columns: Mapping[str, Sequence[Any]], *, seed: int) -> "Pipeline":
    from sklearn.compose import make_column_transformer
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder

    text = [j for j, values in enumerate(columns.values()) if _is_text(values)]
    one_hot = OneHotEncoder(handle_unknown="ignore", sparse_output=False)
    return make_pipeline(
        make_column_transformer((one_hot, text), remainder="passthrough"),
        RandomForestRegressor(n_estimators=_TREES, random_state=seed),
    )


def _is_text(values: Sequence[Any]) -> bool:
    return any(isinstance(value, str) for value in values)
