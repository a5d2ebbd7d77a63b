"""AC/DC: compressed and decompressed by turns, as scheduled, and compressed in the end."""

from itertools import groupby
from typing import Any

import pytest
import torch

from tests.known import known
from tests.trainables.mechanisms.sparse_models import PARAMS, WEIGHTS, steps, zeros
from tests.trainables.methods.example_runs import RunOf
from tests.trainables.methods.examples.ac_dc import EXAMPLE
from tests.trainables.methods.method_examples import OPTIMIZERS
from tests.trainables.recipes import run
from trainables.backbones.layers import backbone_weights
from trainables.errors import InputError
from trainables.finetune import Finetuning
from trainables.images.store import ImageStore
from trainables.rungs import rung_levels

ASKED = round(0.9 * WEIGHTS)


def phases_of(trial: Finetuning) -> list[tuple[bool, int]]:
    """Whether each phase was compressed, and its steps."""
    sparse = [zeros(model) == ASKED for _, model in steps(trial)]
    return [(compressed, len(list(run))) for compressed, run in groupby(sparse)]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_phases_are_as_scheduled_and_the_last_is_compressed(
    digits: ImageStore, scope: str, optimizer: str
) -> None:
    trial = EXAMPLE.but(settings={"scope": scope}, **OPTIMIZERS[optimizer]).trial(digits)
    total = trial.stops[-1].steps
    phases = phases_of(trial)
    assert [compressed for compressed, _ in phases] == [False, True, False, True, False, True]
    shares = [0.2, 0.125, 0.125, 0.125, 0.125, 0.3]
    assert all(
        abs(taken - share * total) <= 1 for (_, taken), share in zip(phases, shares, strict=True)
    )


def test_more_phases_than_steps_still_end_compressed(digits: ImageStore) -> None:
    many = EXAMPLE.but(settings={"cycles": 50, "warm_up": 0.1, "finish": 0.01}, levels=(3e8,))
    phases = phases_of(many.trial(digits))
    assert phases[-1] == (True, 1)
    assert len(phases) > 1
    once = EXAMPLE.but(settings={"cycles": 1, "warm_up": 0.0, "finish": 0.2}, levels=(1e8,))
    assert phases_of(once.trial(digits)) == [(True, 1)]


def test_a_dense_phase_trains_what_was_held_from_zero(digits: ImageStore) -> None:
    held: dict[str, torch.Tensor] = {}
    seen = 0
    for _, model in steps(EXAMPLE.trial(digits)):
        weights = backbone_weights(model)
        sparse = zeros(model) == ASKED
        if held and not sparse:  # the first step of a dense phase
            for name, mask in held.items():
                typical = weights[name][~mask].abs().mean()
                assert 0 < weights[name][mask].abs().mean() < 0.2 * typical
            seen += 1
        held = {name: weight == 0 for name, weight in weights.items()} if sparse else {}
    assert seen == 2


def test_a_compressed_phase_keeps_the_largest_at_its_start(digits: ImageStore) -> None:
    before: dict[str, torch.Tensor] = {}
    for _, model in steps(EXAMPLE.but(settings={"scope": "global"}).trial(digits)):
        weights = {name: w.detach().clone() for name, w in backbone_weights(model).items()}
        if before and zeros(model) == ASKED:
            kept = torch.cat([before[name][weights[name] != 0] for name in weights]).abs()
            gone = torch.cat([before[name][weights[name] == 0] for name in weights]).abs()
            assert kept.min() >= gone.max() - 1e-6
            break
        before = weights
    assert len(kept) == WEIGHTS - ASKED


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_rung_measures_a_model_as_sparse_as_asked(digits: ImageStore, optimizer: str) -> None:
    levels = rung_levels(min_flops=1.5e8, max_flops=1.2e9, per_decade=10)
    trial = EXAMPLE.but(levels=levels, **OPTIMIZERS[optimizer]).trial(digits)
    states = set()
    for _ in trial.stops:
        trial.advance()
        assert zeros(trial.measured_model) == ASKED
        assert trial.measurement is not None
        assert trial.measurement.updated_params == PARAMS - ASKED
        states.add(zeros(trial.model) == ASKED)
    assert states == {False, True}, "rungs in dense phases and in compressed ones"


def test_the_exported_backbone_is_as_sparse_as_asked(run_of: RunOf) -> None:
    for optimizer in OPTIMIZERS:
        assert zeros(run_of("ac_dc", optimizer).exported.module) == ASKED


def test_compressed_steps_alone_could_skip_their_zeros(digits: ImageStore) -> None:
    measured = run(EXAMPLE.but(levels=(1.2e9,)).trial(digits))[-1]
    saved = 1 - known(measured.sparse_train_flops) / measured.train_flops
    assert 0.35 < saved < 0.55, "0.9 of somewhat more than half of the steps"


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"sparsity": 1}, "sparsity=1 must be less than 1"),
        ({"sparsity": 0.99999}, "leaves 4 of 370608 values to 15 layers"),
        ({"scope": "row"}, "scope='row' must be 'layer' or 'global'"),
        ({"cycles": 0}, "cycles=0 must be greater than or equal to 1"),
        ({"warm_up": 0.7, "finish": 0.5}, "must add up to at most 1"),
        ({"finish": 0.0}, "finish=0.0 must be greater than 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        EXAMPLE.but(settings=settings).check()
