"""Batches of images: which ones a step sees, with and without the rest of an epoch."""

import torch

from tests.trainables.recipes import make_recipe
from trainables.batches.images import ImageBatches
from trainables.costs.flops import StepCost
from trainables.images.store import ImageStore
from trainables.seeds import generator

SIZE = 20
"""Images a batch, of which 96 fill four and leave 16."""


def made(store: ImageStore, *, drop_last: bool) -> ImageBatches:
    return ImageBatches(
        recipe=make_recipe(batch_size=SIZE),
        seed=3,
        store=store,
        inputs=lambda images: images,
        cost=StepCost(forward_flops=5.0, train_flops=14.0, fixed_flops=1.0),
        inference_flops=4.0,
        mirror=False,
        device=torch.device("cpu"),
        drop_last=drop_last,
    )


def permutation(epoch: int) -> torch.Tensor:
    return torch.randperm(96, generator=generator(3, "order", epoch))


def test_a_batch_reaches_into_the_next_epoch(digits: ImageStore) -> None:
    train = digits.splits["train"]
    images, labels = made(digits, drop_last=False).train(4)
    seen = torch.cat([permutation(0)[80:], permutation(1)[:4]])
    assert torch.equal(images, train.images[seen].float())
    assert torch.equal(labels, train.labels[seen])


def test_the_rest_of_an_epoch_is_dropped_where_asked(digits: ImageStore) -> None:
    batches = made(digits, drop_last=True)
    for step in range(12):
        epoch, place = divmod(step, 4)
        seen = permutation(epoch)[place * SIZE : (place + 1) * SIZE]
        _, labels = batches.train(step)
        assert torch.equal(labels, digits.splits["train"].labels[seen])


def test_prices_are_those_of_its_images(digits: ImageStore) -> None:
    batches = made(digits, drop_last=False)
    assert batches.step_flops == 14 * SIZE + 1
    assert batches.eval_flops == 4 * 87
    assert (batches.setup_flops, batches.eval_setup_flops, batches.open()) == (0, 0, 0)
