"""Making a backbone: what it writes can be transferred, and what goes wrong is said."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from tests.trainables.recipes import LEVELS, SMALL, make_recipe
from trainables.backbones.build import Backbone, build, load_into, load_weights, normalisation
from trainables.backbones.source import BackboneSource
from trainables.costs.flops import count_flops
from trainables.errors import InputError
from trainables.finetune import Finetuning
from trainables.images.augment import model_inputs
from trainables.images.store import ImageStore
from trainables.learning.evaluation import evaluate
from trainables.pretraining import Pretrained, Pretraining, pretrain

PLAN = Pretraining(
    epochs=2,
    learning_rate=0.05,
    weight_decay=1e-4,
    batch_size=20,
    label_smoothing=0.1,
    augmentation=0.3,
    mirror=False,
    seed=3,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("backbones") / "new"


@pytest.fixture(scope="module")
def epochs() -> list[int]:
    return []


@pytest.fixture(scope="module")
def made(digits: ImageStore, folder: Path, epochs: list[int]) -> Pretrained:
    return pretrain(SMALL, digits, PLAN, folder / "digits.safetensors", on_epoch=epochs.append)


def test_a_trial_starts_from_the_weights(made: Pretrained, digits: ImageStore) -> None:
    weights = load_weights(made.source)
    assert weights is not None
    Finetuning(
        recipe=make_recipe(),
        seed=0,
        backbone=Backbone(source=made.source, weights=weights),
        store=digits,
        levels=LEVELS,
        mirror=False,
        device=torch.device("cpu"),
    )
    model = build(made.source, num_classes=7)
    load_into(model, weights, source=made.source)
    assert torch.equal(model.get_buffer("bn1.running_var"), weights["bn1.running_var"])


def test_the_weights_have_the_error_that_was_told(made: Pretrained, digits: ImageStore) -> None:
    model = build(made.source, num_classes=4).eval()
    weights = load_weights(made.source)
    assert weights is not None
    model.load_state_dict(weights)
    mean, std = normalisation(made.source, model)
    error, _ = evaluate(
        model,
        digits.splits["validation"],
        lambda images: model_inputs(images, resolution=16, mean=mean, std=std),
    )
    assert error == made.val_error < 0.75


def test_its_compute_is_that_of_its_steps(made: Pretrained, epochs: list[int]) -> None:
    cost = count_flops(build(SMALL, num_classes=4), resolution=16).train_flops
    assert made.train_flops == 2 * (96 // 20) * 20 * cost
    assert epochs == [1, 2]


def test_its_card_names_it_and_how_it_was_made(made: Pretrained, folder: Path) -> None:
    card = json.loads((folder / "digits.json").read_text())
    assert BackboneSource(**card["source"]) == made.source
    assert card["source"]["weights"] == str(folder / "digits.safetensors")
    assert card["pretraining"] == asdict(PLAN)
    assert card["resolution"] == 16
    assert tuple(card["class_names"]) == made.class_names


def test_it_repeats_bit_by_bit(made: Pretrained, digits: ImageStore, tmp_path: Path) -> None:
    again = pretrain(SMALL, digits, PLAN, tmp_path / "again.safetensors")
    assert again.val_error == made.val_error
    assert made.source.weights is not None
    first = Path(made.source.weights).read_bytes()
    assert (tmp_path / "again.safetensors").read_bytes() == first


def test_it_goes_on_from_weights(made: Pretrained, digits: ImageStore, tmp_path: Path) -> None:
    gentle = replace(PLAN, epochs=1, learning_rate=1e-9)
    out = tmp_path / "more.safetensors"
    more = load_weights(pretrain(made.source, digits, gentle, out).source)
    weights = load_weights(made.source)
    assert more is not None
    assert weights is not None
    torch.testing.assert_close(more["layer1.0.conv1.weight"], weights["layer1.0.conv1.weight"])


@pytest.mark.parametrize(
    ("plan", "out", "message"),
    [
        (PLAN, "w.pth", "must end in .safetensors, the format it is written in"),
        (
            replace(PLAN, batch_size=97),
            "w.safetensors",
            "batch_size=97 is more than the 96 training images",
        ),
        (
            replace(PLAN, learning_rate=1e9),
            "w.safetensors",
            "diverged in epoch 1: .* lower learning_rate=1e",
        ),
    ],
)
def test_what_cannot_work_is_said_and_nothing_written(
    digits: ImageStore, tmp_path: Path, plan: Pretraining, out: str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        pretrain(SMALL, digits, plan, tmp_path / out)
    assert list(tmp_path.iterdir()) == []
