"""Backbones: a timm name or a user's own factory, and where its weights come from."""

import importlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import group_parameters, load_state_dict
from torch import Tensor, nn

from trainables.errors import InputError
from trainables.sources import BackboneSource

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Weights = Mapping[str, Tensor]
Channels = tuple[float, float, float]


def build(source: BackboneSource, *, num_classes: int) -> nn.Module:
    """A model of the source's architecture, randomly initialised, with a head of `num_classes`.

    Raises `InputError` when the name is unknown or the constructor refuses its arguments.
    """
    if ":" in source.model:
        factory = _factory(source.model)
    elif timm.is_model(source.model):
        factory = _timm_factory(source.model)
    else:
        near = timm.list_models(f"*{source.model.split('.')[0]}*")[:3]
        hint = f"did you mean {', '.join(near)}?" if near else "timm.list_models() names them all."
        raise InputError(
            f"backbone.model={source.model!r} is neither a timm model nor a module:factory; {hint}"
        )
    try:
        model = factory(num_classes=num_classes, **source.args)
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise InputError(
            f"backbone.model={source.model!r} cannot be built with num_classes={num_classes} and "
            f"args={dict(source.args)!r}: {error}"
        ) from error
    if not isinstance(model, nn.Module):
        raise InputError(
            f"backbone.model={source.model!r} returned a {type(model).__name__}; "
            "a factory must return a torch.nn.Module."
        )
    classifier(model)
    return model


def load_weights(source: BackboneSource) -> Weights | None:
    """The source's state dict on the CPU in float32, or None for random weights.

    Raises `InputError` when the file or the hub cannot be read.
    """
    if source.weights is None:
        return None
    if source.weights == "hub":
        return _from_hub(source)
    path = Path(source.weights).expanduser()
    if not path.is_file():
        raise InputError(
            f"backbone.weights={source.weights!r} is no file; give a local safetensors or "
            "state-dict file, `hub` for timm's hub, or leave it out to start from random weights."
        )
    try:
        state = load_state_dict(str(path))
    except Exception as error:
        raise InputError(
            f"backbone.weights={source.weights!r} cannot be read as safetensors or as a state "
            f"dict ({type(error).__name__}: {error}); save the model's state_dict() again."
        ) from error
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    return {n: v.float() if v.is_floating_point() else v for n, v in tensors.items()}


def load_into(model: nn.Module, weights: Weights, *, source: BackboneSource) -> None:
    """Copies pretrained weights into `model`; the head alone may differ and stays as it is.

    Raises `InputError` naming the first tensor that does not fit.
    """
    head = classifier_name(model) + "."
    own = {name: value for name, value in model.state_dict().items() if not name.startswith(head)}
    optional = ("num_batches_tracked",)
    missing = [n for n in own if n not in weights and not n.endswith(optional)]
    unexpected = [n for n in weights if n not in own and not n.startswith(head)]
    reshaped = [n for n in own if n in weights and own[n].shape != weights[n].shape]
    problems = len(missing) + len(unexpected) + len(reshaped)
    if problems:
        if reshaped:
            name = reshaped[0]
            shapes = tuple(weights[name].shape), tuple(own[name].shape)
            what = f"{name} is {shapes[0]} in the file and {shapes[1]} in the model"
        elif missing:
            what = f"the model's {missing[0]} is not in the file"
        else:
            what = f"the file's {unexpected[0]} is not in the model"
        raise InputError(
            f"backbone.weights={source.weights!r} does not fit {source.model}: {what} "
            f"({problems} tensors differ); name the architecture and args it was trained with."
        )
    model.load_state_dict({n: weights[n] for n in own if n in weights}, strict=False)


def classifier(model: nn.Module) -> nn.Module:
    """The model's head: what timm says it is, else the last linear layer.

    Raises `InputError` for a model without one.
    """
    return model.get_submodule(classifier_name(model))


def classifier_name(model: nn.Module) -> str:
    """Qualified name of `classifier(model)`."""
    if hasattr(model, "get_classifier"):
        head = model.get_classifier()
        for name, module in model.named_modules():
            if module is head and name:
                return name
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise InputError(
            f"{type(model).__name__} has no classifier: a backbone needs a get_classifier() "
            "as timm's have, or a last torch.nn.Linear."
        )
    return linear[-1]


def layer_of_parameter(model: nn.Module) -> dict[str, int]:
    """Layer index of every parameter from the input (0) to the head (the largest).

    timm's models tell their layers (`group_matcher`); for others each module that owns
    parameters is a layer of its own, in order of definition. The head is a layer by itself.
    """
    if hasattr(model, "group_matcher"):
        layers: dict[str, int] = group_parameters(
            model, model.group_matcher(coarse=False), reverse=True
        )
    else:
        layers, owners = {}, dict[str, int]()
        for name, _ in model.named_parameters():
            owner = name.rpartition(".")[0]
            layers[name] = owners.setdefault(owner, len(owners))
    head = classifier_name(model) + "."
    trunk = sorted({layer for name, layer in layers.items() if not name.startswith(head)})
    order = {layer: index for index, layer in enumerate(trunk)}
    return {
        name: len(trunk) if name.startswith(head) else order[layers[name]]
        for name, _ in model.named_parameters()
    }


def normalisation(
    source: BackboneSource, model: nn.Module
) -> tuple[Channels, Channels]:
    """Channel means and deviations (0-1) that the backbone's inputs are normalised by."""
    own: Mapping[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    mean = source.mean or own.get("mean") or IMAGENET_MEAN
    std = source.std or own.get("std") or IMAGENET_STD
    return (mean[0], mean[1], mean[2]), (std[0], std[1], std[2])


def _timm_factory(name: str) -> Callable[..., nn.Module]:
    def create(**kwargs: Any) -> nn.Module:
        model: nn.Module = timm.create_model(name, pretrained=False, **kwargs)
        return model

    return create


def _factory(name: str) -> Callable[..., nn.Module]:
    module_name, _, attribute = name.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:  # a console script does not look in the folder it is started from
        sys.path.insert(0, here)
    try:
        found = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise InputError(
            f"backbone.model={name!r} cannot be imported ({error}); it must name a callable as "
            "module:factory, importable from the folder the command is started in."
        ) from error
    if not callable(found):
        raise InputError(f"backbone.model={name!r} names a {type(found).__name__}, not a callable.")
    factory: Callable[..., nn.Module] = found
    return factory


def _from_hub(source: BackboneSource) -> Weights:
    if ":" in source.model:
        raise InputError(
            f"backbone.weights='hub' needs a timm model, and backbone.model={source.model!r} is a "
            "factory; give backbone.weights a local safetensors or state-dict file."
        )
    try:
        model = timm.create_model(source.model, pretrained=True, **source.args)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"The pretrained weights of {source.model} could not be had from timm's hub "
            f"({reason}); give backbone.weights a local safetensors or state-dict file, or run "
            "where the hub can be reached."
        ) from error
    weights: dict[str, torch.Tensor] = model.state_dict()
    return weights
