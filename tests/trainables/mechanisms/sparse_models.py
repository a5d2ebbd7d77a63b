"""Small sparse models, looked at step by step."""

from collections.abc import Iterator

from torch import nn

from trainables.backbones.layers import backbone_weights
from trainables.finetune import Finetuning

WEIGHTS = 370_608
"""Values of test_resnet's convolutions."""
HEAD = 96 * 4 + 4
"""Values of a head of four classes."""
PARAMS = 373_076
"""All values of test_resnet with a head of four classes."""


def zeros(model: nn.Module) -> int:
    """Values of its convolutions, or linear layers below the head, that are zero."""
    return sum(zeros_by_weight(model).values())


def zeros_by_weight(model: nn.Module) -> dict[str, int]:
    """The same, weight by weight."""
    weights = backbone_weights(model)
    return {name: w.numel() - int(w.count_nonzero()) for name, w in weights.items()}


def steps(trial: Finetuning) -> Iterator[tuple[int, nn.Module]]:
    """Trains to the trial's end, giving after each step its number, from 0, and the model."""
    for step in range(trial.stops[-1].steps):
        assert trial.train_to(step + 1)
        yield step, trial.model
