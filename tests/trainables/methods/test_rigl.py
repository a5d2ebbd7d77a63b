"""RigL: connections move, and their number in each layer never does."""

from math import cos, floor, pi
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.known import known
from tests.trainables.mechanisms.sparse_models import PARAMS, WEIGHTS, steps, zeros
from tests.trainables.methods.example_runs import RunOf
from tests.trainables.methods.examples.rigl import EXAMPLE
from tests.trainables.methods.method_examples import OPTIMIZERS
from tests.trainables.recipes import run
from trainables.backbones.layers import backbone_weights
from trainables.errors import InputError
from trainables.finetune import Finetuning
from trainables.images.store import ImageStore
from trainables.mechanisms.masks import MaskedTransfer
from trainables.methods.rigl import RigL

UPDATES = EXAMPLE.settings["updates"]
ASKED = round(0.8 * WEIGHTS)


def masks_of(trial: Finetuning) -> dict[str, Tensor]:
    transfer = trial.transfer
    assert isinstance(transfer, MaskedTransfer)
    return {name: mask.clone() for name, mask in transfer.masks.items()}


def free(masks: dict[str, Tensor]) -> dict[str, int]:
    return {name: int(mask.count_nonzero()) for name, mask in masks.items()}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("distribution", ["erk", "uniform"])
def test_connections_move_and_their_number_stays(
    digits: ImageStore, distribution: str, optimizer: str
) -> None:
    example = EXAMPLE.but(settings={"distribution": distribution}, **OPTIMIZERS[optimizer])
    trial = example.trial(digits)
    masks = masks_of(trial)
    number, updates = free(masks), 0
    assert sum(number.values()) == WEIGHTS - ASKED
    for _, model in steps(trial):
        weights, before, masks = backbone_weights(model), masks, masks_of(trial)
        assert free(masks) == number
        for name, mask in masks.items():
            assert not weights[name][~mask].any()
            assert not weights[name][mask & ~before[name]].any(), "what is grown starts at zero"
        updates += any(not torch.equal(mask, before[name]) for name, mask in masks.items())
    assert updates == UPDATES


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_what_is_grown_learns_in_the_steps_that_follow(digits: ImageStore, optimizer: str) -> None:
    trial = EXAMPLE.but(**OPTIMIZERS[optimizer]).trial(digits)
    masks = masks_of(trial)
    grown: dict[str, Tensor] = {}
    for _, model in steps(trial):
        weights = backbone_weights(model)
        for name, new in grown.items():
            assert weights[name][new].count_nonzero() > 0.9 * int(new.sum())
        before, masks = masks, masks_of(trial)
        grown = {name: mask & ~before[name] for name, mask in masks.items()}
        grown = {name: new for name, new in grown.items() if new.any()}


def test_the_share_that_moves_decays_on_a_cosine(digits: ImageStore) -> None:
    trial = EXAMPLE.trial(digits)
    transfer = trial.transfer
    assert isinstance(transfer, RigL)
    end = floor(0.75 * trial.stops[-1].steps)
    number = free(masks_of(trial))
    room = {name: mask.numel() - number[name] for name, mask in transfer.masks.items()}
    updates = {}
    for step, _ in steps(trial):
        share = 0.4 / 2 * (1 + cos(pi * step / end))
        for name, grown in transfer._grown.items():
            assert int(grown.sum()) == min(floor(share * number[name]), room[name])
            updates[step] = share
    assert 0 < min(updates) < max(updates) < end
    assert len(updates) == UPDATES
    assert list(updates.values()) == sorted(updates.values(), reverse=True)


def test_it_drops_the_smallest_weights_and_grows_where_gradients_are_largest(
    digits: ImageStore,
) -> None:
    trial = EXAMPLE.trial(digits)
    transfer = trial.transfer
    assert isinstance(transfer, RigL)
    masks = masks_of(trial)
    draws = torch.Generator().manual_seed(0)
    gradients = {n: torch.randn(w.shape, generator=draws) for n, w in transfer.weights.items()}
    magnitudes = {name: w.detach().abs().clone() for name, w in transfer.weights.items()}
    for name, weight in transfer.weights.items():
        weight.grad = gradients[name].clone()
    step = next(s for s in range(1, 100) if transfer._fraction(s, 100) > 0)
    transfer.after_backward(step=step, total_steps=100)
    for name, now in transfer.masks.items():
        dropped, grown = masks[name] & ~now, now & ~masks[name]
        kept = masks[name] & now
        if not grown.any():
            continue
        # a few of the smallest have a large gradient, and grow again
        assert magnitudes[name][dropped].max() <= magnitudes[name][kept].quantile(0.6)
        assert gradients[name][grown].abs().min() >= gradients[name][~now].abs().max()
        weight = transfer.weights[name]
        assert weight.grad is not None
        assert not weight.grad[~kept].any()
        assert weight.grad.count_nonzero() > 0.5 * int(kept.sum())


def test_small_layers_are_denser_by_erdos_renyi_kernel(digits: ImageStore) -> None:
    for distribution, spread in (("erk", 0.5), ("uniform", 0.01)):
        masks = masks_of(EXAMPLE.but(settings={"distribution": distribution}).trial(digits))
        densities = [float(mask.float().mean()) for mask in masks.values()]
        assert (max(densities) - min(densities) > spread) is (distribution == "erk")


def test_every_rung_and_the_export_have_the_masks_of_now(digits: ImageStore, run_of: RunOf) -> None:
    trial = EXAMPLE.trial(digits)
    for _ in trial.stops:
        trial.advance()
        weights = backbone_weights(trial.measured_model)
        assert not any(weights[n][~mask].any() for n, mask in masks_of(trial).items())
        assert trial.measurement is not None
        assert trial.measurement.updated_params == PARAMS - ASKED
    for optimizer in OPTIMIZERS:
        assert zeros(run_of("rigl", optimizer).exported.module) == ASKED


def test_a_fraction_of_zero_moves_nothing(digits: ImageStore) -> None:
    trial = EXAMPLE.but(settings={"update_fraction": 0.0}).trial(digits)
    first = masks_of(trial)
    curve = run(trial)
    assert all(torch.equal(mask, first[name]) for name, mask in masks_of(trial).items())
    moving = run(EXAMPLE.trial(digits))
    assert [m.train_flops for m in curve] == [m.train_flops for m in moving], "moving costs nothing"
    assert curve[-1].val_loss != moving[-1].val_loss
    assert known(moving[-1].sparse_train_flops) < 0.5 * moving[-1].train_flops


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"sparsity": 1.0}, "sparsity=1.0 must be less than 1"),
        ({"sparsity": 0.99999}, "leaves 4 of 370608 values to 15 layers"),
        ({"distribution": "random"}, "must be 'erk' or 'uniform'"),
        ({"update_fraction": 1.5}, "update_fraction=1.5 must be less than or"),
        ({"updates": 0}, "updates=0 must be greater than or equal to 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        EXAMPLE.but(settings=settings).check()
