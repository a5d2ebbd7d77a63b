"""What the baselines share: which layers they train is what tells them apart."""

from search_spaces.recipe import Recipe
from trainables.errors import InputError


def check_depth(recipe: Recipe, *, low: float, high: float, instead: str) -> None:
    """Raises `InputError` where `trainable_depth` is not in [low, high]; `instead` is the mend."""
    depth = recipe.trainable_depth
    if not low <= depth <= high:
        rule = f"be {low:g}" if low == high else f"lie in [{low:g}, {high:g}]"
        raise InputError(f"{recipe.method} with trainable_depth={depth:g} must {rule}; {instead}.")
