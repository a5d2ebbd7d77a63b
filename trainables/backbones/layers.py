"""The layers of a model in order, and which of them is its head."""

import re

from timm.models import group_parameters
from torch import Tensor, nn

from trainables.backbones.logits import makers_of_logits
from trainables.errors import InputError

WEIGHTED = (nn.modules.conv._ConvNd, nn.Linear)
"""The layers whose work counts as FLOPs: convolutions and matrix products."""
_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
_BLOCK = re.compile(r"(.*?\.\d+(?:\.\d+)*)(?:\.|$)")  # down to its first run of numbers


def classifier(model: nn.Module) -> nn.Module:
    """The model's head: what timm says it is, else the linear layer that makes the logits.

    The place of a layer in the model's definition says nothing; only of a model that runs at no
    usual size is it the last linear layer. Raises `InputError` for a model without one.
    """
    return model.get_submodule(classifier_name(model))


def classifier_name(model: nn.Module) -> str:
    """Qualified name of `classifier(model)`."""
    modules: dict[str, nn.Module] = dict(model.named_modules())
    get_classifier = getattr(model, "get_classifier", None)
    if callable(get_classifier):
        head: object = get_classifier()
        if isinstance(head, tuple):
            raise InputError(
                f"{type(model).__name__} has {len(head)} classifiers, as distilled models have, "
                "and a backbone needs exactly one; choose a model that was made with one."
            )
        for name, module in modules.items():
            if module is head and name:
                return name
    linear = [name for name, module in modules.items() if name and isinstance(module, nn.Linear)]
    if not linear:
        raise InputError(
            f"{type(model).__name__} has no classifier: a backbone needs a get_classifier() "
            "as timm's have, or a torch.nn.Linear inside it that makes its logits."
        )
    makers = makers_of_logits(model)
    if makers is None:
        return linear[-1]
    if len(makers) == 1 and makers <= set(linear):
        return min(makers)
    made_by = " and ".join(sorted(makers)) or "no layer"
    raise InputError(
        f"{type(model).__name__} makes its logits by {made_by}, and a backbone needs one "
        "torch.nn.Linear that does; give it a get_classifier() that returns its head."
    )


def is_within(name: str, module: str) -> bool:
    """Whether a qualified name is that of the module called `module`, or of anything in it."""
    return f"{name}.".startswith(f"{module}.")


def below_head(model: nn.Module) -> dict[str, nn.Parameter]:
    """All parameters but the classifier's, by qualified name, in the model's order."""
    head = classifier_name(model)
    return {n: parameter for n, parameter in model.named_parameters() if not is_within(n, head)}


def is_norm(module: nn.Module) -> bool:
    """Whether the module is a normalisation layer: batch, instance, group, layer or RMS."""
    return isinstance(module, _NORMS)


def computes_its_weight(module: nn.Module) -> bool:
    """Whether the module's weight is computed from other tensors, as by weight or spectral norm."""
    if nn.utils.parametrize.is_parametrized(module):
        return True  # not asked for its weight, because that may change it
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and not isinstance(weight, nn.Parameter)


def norm_parameters(model: nn.Module) -> frozenset[str]:
    """Qualified names of the gains and biases of all normalisation layers."""
    return frozenset(
        f"{name}.{parameter}"
        for name, module in model.named_modules()
        if is_norm(module)
        for parameter, _ in module.named_parameters(recurse=False)
    )


def backbone_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """Weights of the convolutions and linear layers, by qualified name, but for the classifier's.

    They are what sparsity, masks and deltas are about; biases and norms are not among them, nor is
    a weight that is computed from other tensors, as by weight or spectral norm.
    """
    head = classifier_name(model)
    return {
        f"{name}.weight": layer.get_parameter("weight")
        for name, layer in model.named_modules()
        if isinstance(layer, WEIGHTED)
        and not computes_its_weight(layer)
        and not is_within(name, head)
    }


def zero_share(model: nn.Module) -> float:
    """Share (0-1) of the values of `backbone_weights` that are zero; 0 for a model without any."""
    weights = backbone_weights(model).values()
    values = sum(weight.numel() for weight in weights)
    zeros = values - sum(int(weight.count_nonzero()) for weight in weights)
    return zeros / values if values else 0.0


def layer_of_parameter(model: nn.Module) -> dict[str, int]:
    """Layer index of every parameter from the input (0) to the head (the largest).

    timm's models tell their layers (`group_matcher`). In others, in order of definition, a numbered
    block (`layer1.0`, `features.3`) is a layer, and so is each module outside of blocks; one of
    nothing but vectors, as a norm is, belongs to the layer before it. The head is always a layer
    by itself.
    """
    group_matcher = getattr(model, "group_matcher", None)
    layers: dict[str, int] = (
        group_parameters(model, group_matcher(coarse=False), reverse=True)
        if callable(group_matcher)
        else _layers_by_name(model)
    )
    head = classifier_name(model)
    trunk = sorted({layer for name, layer in layers.items() if not is_within(name, head)})
    order = {layer: index for index, layer in enumerate(trunk)}
    return {
        name: len(trunk) if is_within(name, head) else order[layers[name]]
        for name, _ in model.named_parameters()
    }


def _layers_by_name(model: nn.Module) -> dict[str, int]:
    layers: dict[str, int] = {}
    seen: dict[str, int] = {}  # by the name of a block or of a module outside of blocks
    layer = -1
    for name, _ in model.named_parameters():
        # what parametrises a weight belongs to the module whose weight it is
        owner = name.partition(".parametrizations.")[0]
        owner = name.rpartition(".")[0] if owner == name else owner
        block = _BLOCK.match(owner)
        key = block.group(1) if block else owner
        if key not in seen:
            vectors_only = all(p.ndim <= 1 for p in model.get_submodule(key).parameters())
            layer += not (seen and vectors_only)
            seen[key] = layer
        layers[name] = seen[key]
    return layers
