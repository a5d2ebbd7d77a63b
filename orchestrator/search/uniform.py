"""Random search: every recipe is drawn from the space as it is."""

import optuna
from optuna.samplers import BaseSampler, RandomSampler


def uniform(history: optuna.Study, seed: int) -> BaseSampler:
    """Draws every value at random and learns nothing."""
    return RandomSampler(seed=seed)
