"""Keeps what a timm model says about its own widths true after a cut."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from trainables.backbones.skeleton import float_dtype
from trainables.errors import InfeasibleError


@dataclass(frozen=True, kw_only=True)
class DeclaredShapes:
    """The shapes behind the widths that a model declares."""

    features: tuple[int, ...]
    """Shape of `forward_features`; empty where the model has none."""
    taps: Mapping[str, tuple[int, ...]]
    """Output shapes of the modules that `feature_info` names."""


def declared_shapes(skeleton: nn.Module, *, resolution: int) -> DeclaredShapes:
    """The shapes behind `num_features` and `feature_info` of a model on the meta device.

    Raises `InfeasibleError` where the model does not run at `resolution`.
    """
    skeleton.eval()
    images = torch.empty((1, 3, resolution, resolution), dtype=float_dtype(skeleton), device="meta")
    taps: dict[str, tuple[int, ...]] = {}
    modules = dict(skeleton.named_modules())
    hooks = [
        modules[name].register_forward_hook(_note_shape(taps, name))
        for name, _ in _taps(skeleton)
        if name in modules
    ]
    features: list[tuple[int, ...]] = []
    forward = getattr(skeleton, "forward_features", None)

    def forward_features(*args: Any, **kwargs: Any) -> Any:
        assert callable(forward)
        output = forward(*args, **kwargs)
        features.append(tuple(output.shape) if isinstance(output, torch.Tensor) else ())
        return output

    own: Any = skeleton
    if callable(forward):
        own.forward_features = forward_features  # one pass shows them and what the taps put out
    try:
        with torch.no_grad():
            skeleton(images)
    except Exception as error:  # whatever a user's forward may raise
        raise InfeasibleError(
            f"{type(skeleton).__name__} does not run at {resolution} pixels: "
            f"{type(error).__name__}: {error}."
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
        if callable(forward):
            del own.forward_features
    return DeclaredShapes(features=features[0] if features else (), taps=taps)


def mend(model: Any, *, dense: DeclaredShapes, pruned: DeclaredShapes) -> None:
    """Set `num_features`, `head_hidden_size`, `feature_info` and the head's widths in `model`."""
    for name, info in _taps(model):
        if name in dense.taps and name in pruned.taps:
            info["num_chs"] = _narrowed(info["num_chs"], dense.taps[name], pruned.taps[name])
    width = getattr(model, "num_features", None)
    if not isinstance(width, int):
        return
    narrowed = _narrowed(width, dense.features, pruned.features)
    model.num_features = narrowed
    renamed = {width: narrowed}
    hidden = getattr(model, "head_hidden_size", None)
    if isinstance(hidden, int):
        model.head_hidden_size = renamed[hidden] = _classifier_inputs(model) or narrowed
    head: Any = getattr(model, "head", None)
    if isinstance(head, nn.Module) and not isinstance(head, nn.Linear | nn.Conv2d):
        for name in ("in_features", "num_features"):
            if (declared := getattr(head, name, None)) in renamed:
                setattr(head, name, renamed[declared])


def _taps(model: nn.Module) -> Iterator[tuple[str, dict[str, Any]]]:
    """The modules whose widths `feature_info` declares, each with its entry."""
    found = getattr(model, "feature_info", None)
    entries = getattr(found, "info", found)
    for entry in entries if isinstance(entries, list) else []:
        if isinstance(entry, dict) and isinstance(entry.get("num_chs"), int):
            yield str(entry.get("module")), entry


def _note_shape(taps: dict[str, tuple[int, ...]], name: str) -> Callable[..., None]:
    def note(_module: nn.Module, _inputs: Any, output: Any) -> None:
        if isinstance(output, torch.Tensor):
            taps[name] = tuple(output.shape)

    return note


def _narrowed(width: int, dense: tuple[int, ...], pruned: tuple[int, ...]) -> int:
    """The size after pruning of the dimension that had size `width` before."""
    for dim in (1, -1):
        if len(dense) == len(pruned) > 1 and dense[dim] == width:
            return pruned[dim]
    return width


def _classifier_inputs(model: Any) -> int | None:
    get_classifier = getattr(model, "get_classifier", None)
    classifier = get_classifier() if callable(get_classifier) else None
    if isinstance(classifier, nn.Linear):
        return classifier.in_features
    return classifier.in_channels if isinstance(classifier, nn.Conv2d) else None
