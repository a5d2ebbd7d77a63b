"""Weights made from other parameters while a model is trained, and made plain again afterwards."""

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn.utils import parametrize

from trainables.backbones.layers import backbone_weights

_WEIGHT = "weight"


def reparametrize(model: nn.Module, make: Callable[[Tensor], nn.Module]) -> None:
    """Parametrises the weights below the head, in place.

    `make` gives the parametrisation of one weight from its values.
    """
    for name, weight in backbone_weights(model).items():
        layer = model.get_submodule(name.rpartition(".")[0])
        parametrize.register_parametrization(layer, _WEIGHT, make(weight.detach()))


def originals(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters trained in the place of each parametrised weight, by the weight's name."""
    return {
        f"{name}.{_WEIGHT}": layer.get_parameter(f"parametrizations.{_WEIGHT}.original")
        for name, layer in model.named_modules()
        if parametrize.is_parametrized(layer, _WEIGHT)
    }


def parametrizations(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that make each parametrised weight, by the weight's name."""
    return {
        f"{name}.{_WEIGHT}": layer.get_submodule(f"parametrizations.{_WEIGHT}.0")
        for name, layer in model.named_modules()
        if parametrize.is_parametrized(layer, _WEIGHT)
    }


def merge(model: nn.Module) -> None:
    """Makes parametrised weights plain parameters of the values they have, in place.

    torch's `remove_parametrizations` takes the weight from the layer's class too, which a copy
    shares with its original: the model that is trained would be left without.
    """
    for layer in model.modules():
        if parametrize.is_parametrized(layer, _WEIGHT):
            weight = getattr(layer, _WEIGHT).detach()
            plain_type = parametrize.type_before_parametrizations(layer)
            del layer.parametrizations
            layer.__class__ = plain_type
            layer.register_parameter(_WEIGHT, nn.Parameter(weight))
