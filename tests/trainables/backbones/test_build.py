"""Backbones: how they are named, built and loaded, and what is said when that fails."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from torch import nn

from tests.checkout import SHARED
from tests.trainables.backbones.cifar_resnet import cifar_resnet
from trainables.backbones.build import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    build,
    load_into,
    load_weights,
    normalisation,
)
from trainables.backbones.source import BackboneSource
from trainables.errors import InputError
from trainables.images.augment import model_inputs
from trainables.images.store import open_store
from trainables.images.tasks import TaskSource
from trainables.learning.evaluation import evaluate

SMALL = BackboneSource(model="test_resnet")
Save = Callable[[object, str], BackboneSource]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Writes weights in the format that the file's name asks for; gives their source."""

    def write(content: object, name: str) -> BackboneSource:
        path = tmp_path / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif path.suffix == ".safetensors":
            assert isinstance(content, dict)
            safetensors.torch.save_file(content, path)
        else:
            torch.save(content, path)
        return BackboneSource(model="test_resnet", weights=str(path))

    return write


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Writes a user's module into a folder that Python looks in; gives its name."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(text: str) -> str:
        name = f"users_{abs(hash(text))}"
        (tmp_path / f"{name}.py").write_text(text)
        return name

    return write


def test_a_timm_model_gets_a_head_of_the_tasks_classes() -> None:
    model = build(BackboneSource(model="test_resnet", args={"drop_rate": 0.5}), num_classes=7)
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 7)
    assert model.drop_rate == 0.5


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("resnt50", "'resnt50' is neither a timm model nor a module:factory; did you mean .*resne"),
        ("qqqqqqqq", "timm.list_models\\(\\) names them all"),
        ("resnet18.no_such_tag", "Invalid pretrained tag \\(no_such_tag\\) for resnet18"),
        ("no_such_module:factory", "cannot be imported .*No module named 'no_such_module'"),
        ("tests.trainables.backbones.cifar_resnet:nothing", "has no attribute 'nothing'"),
        ("tests.trainables.backbones.cifar_resnet:", "must name a callable as module:factory"),
        (":cifar_resnet", "must name a callable as module:factory"),
        (".relative:factory", "must name a callable as module:factory"),
        (
            "tests.trainables.backbones.cifar_resnet:__name__",
            "names a str, and must name a callable",
        ),
    ],
)
def test_a_model_that_is_not_there_is_refused(model: str, message: str) -> None:
    with pytest.raises(InputError, match=f"^backbone.model=.*{message}"):
        build(BackboneSource(model=model), num_classes=2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("make = lambda num_classes: 3", "returned a int; a factory must return a torch.nn.Module"),
        ("def make(): ...", "num_classes=2 and backbone.args={} \\(TypeError.*mend backbone.args"),
        ("def make(num_classes): raise KeyError('width')", "cannot be built .*KeyError: 'width'"),
        ("raise OSError('no licence')", "cannot be imported \\(OSError: no licence\\)"),
        ("def make(:", "cannot be imported \\(SyntaxError"),
        (
            "from torch import nn\ndef make(num_classes): return nn.Sequential(nn.Linear(4, 1000))",
            "was asked for 2 classes and has a head of 1000",
        ),
        (
            "from torch import nn\ndef make(num_classes): return nn.Sequential(nn.Flatten())",
            "Sequential has no classifier",
        ),
    ],
)
def test_a_factory_that_makes_no_backbone_is_refused(
    module: Callable[[str], str], text: str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        build(BackboneSource(model=f"{module(text)}:make"), num_classes=2)


def test_arguments_that_the_constructor_refuses_are_named() -> None:
    with pytest.raises(InputError, match="backbone.args={'dpeth': 3} \\(TypeError.*dpeth.*mend"):
        build(BackboneSource(model="test_resnet", args={"dpeth": 3}), num_classes=2)
    with pytest.raises(InputError, match="num_classes"):
        build(BackboneSource(model="test_resnet", args={"num_classes": 3}), num_classes=2)


def test_a_users_factory_is_found_where_the_command_is_started(
    module: Callable[[str], str],
) -> None:
    name = module("from tests.trainables.backbones.cifar_resnet import cifar_resnet as make")
    source = BackboneSource(model=f"{name}:make", args={"depth": 14})
    model = build(source, num_classes=6)
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 6)
    assert normalisation(source, model) == (IMAGENET_MEAN, IMAGENET_STD)


@pytest.mark.parametrize(
    ("name", "wrap"),
    [
        ("plain.safetensors", lambda state: state),
        ("plain.pth", lambda state: state),
        ("nested.pth", lambda state: {"state_dict": state, "epoch": 3}),
        ("nested.pt", lambda state: {"model": state}),
        (
            "parallel.pth",
            lambda state: {"state_dict": {f"module.{n}": v for n, v in state.items()}},
        ),
    ],
)
def test_weights_are_read_from_every_usual_file(
    save: Save, name: str, wrap: Callable[[dict[str, torch.Tensor]], object]
) -> None:
    pretrained = build(SMALL, num_classes=5)
    source = save(wrap(pretrained.state_dict()), name)
    weights = load_weights(source)
    assert weights is not None
    model = build(source, num_classes=3)
    head = model.get_parameter("fc.weight").clone()
    load_into(model, weights, source=source)
    for key, value in model.state_dict().items():
        expected = head if key == "fc.weight" else None
        if not key.startswith("fc."):
            expected = pretrained.state_dict()[key]
        assert expected is None or torch.equal(value, expected), key


def test_a_head_of_as_many_classes_is_fresh_as_well(save: Save) -> None:
    pretrained, model = build(SMALL, num_classes=3), build(SMALL, num_classes=3)
    head = model.get_parameter("fc.weight").clone()
    load_into(model, pretrained.state_dict(), source=SMALL)
    assert torch.equal(model.get_parameter("fc.weight"), head)
    assert torch.equal(model.get_parameter("bn1.weight"), pretrained.get_parameter("bn1.weight"))


def test_halves_become_floats_and_counters_stay_whole(save: Save) -> None:
    state = build(SMALL, num_classes=3).half().state_dict()
    weights = load_weights(save(state, "half.safetensors"))
    assert weights is not None
    assert weights["bn1.weight"].dtype == torch.float32
    assert weights["bn1.num_batches_tracked"].dtype == torch.int64


def test_no_weights_means_random_ones() -> None:
    assert load_weights(SMALL) is None


def test_counters_of_batches_may_be_missing(save: Save) -> None:
    state = build(SMALL, num_classes=3).state_dict()
    without = {n: v for n, v in state.items() if not n.endswith("num_batches_tracked")}
    model = build(SMALL, num_classes=3)
    load_into(model, without, source=SMALL)
    assert torch.equal(model.get_parameter("bn1.weight"), state["bn1.weight"])


def test_weights_of_another_model_are_refused_and_nothing_is_changed() -> None:
    state = build(SMALL, num_classes=3).state_dict()
    model = build(SMALL, num_classes=3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    wrong = [
        (
            {n: v for n, v in state.items() if n != "bn1.weight"},
            "the model's bn1.weight is not in the file \\(1 tensor differs\\)",
        ),
        (state | {"extra": torch.zeros(1)}, "the file's extra is not in the model \\(1 tensor"),
        (
            state | {"bn1.weight": torch.zeros(3), "extra": torch.zeros(1)},
            "bn1.weight is \\(3,\\) in the file and \\(32,\\) in the model \\(2 tensors differ\\)",
        ),
        (
            cifar_resnet(3).state_dict(),
            "tensors differ\\); give the backbone.model and the backbone.args",
        ),
    ]
    for weights, message in wrong:
        with pytest.raises(InputError, match=message):
            load_into(model, weights, source=BackboneSource(model="test_resnet", weights="w.pth"))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (b"not a checkpoint", "broken.safetensors", "cannot be read as safetensors or as a state"),
        (b"not a checkpoint", "broken.pth", "cannot be read as safetensors or as a state dict"),
        (b"", "empty.pth", "cannot be read"),
        ({"epoch": 3}, "no_tensors.pth", "holds no tensors; save the model's state_dict\\(\\)"),
        ([1, 2], "list.pth", "cannot be read"),
        (nn.Linear(2, 2), "pickled_module.pth", "weights_only=True blocked"),
    ],
)
def test_a_file_that_holds_no_weights_is_refused(
    save: Save, content: object, name: str, message: str
) -> None:
    with pytest.raises(InputError, match=message) as error:
        load_weights(save(content, name))
    assert "\n" not in str(error.value)
    assert name in str(error.value)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.safetensors", tmp_path):
        with pytest.raises(InputError, match="is no file; give a local safetensors"):
            load_weights(BackboneSource(model="test_resnet", weights=str(path)))


def test_hub_weights_that_cannot_be_had_name_both_ways_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match="give backbone.weights a local .* or run where the hub"):
        load_weights(BackboneSource(model="test_resnet", weights="hub"))
    with pytest.raises(InputError, match="neither a timm model"):
        load_weights(BackboneSource(model="test_rsnet", weights="hub"))
    with pytest.raises(InputError, match="needs a timm model, and .* is a factory"):
        load_weights(
            BackboneSource(
                model="tests.trainables.backbones.cifar_resnet:cifar_resnet", weights="hub"
            )
        )


def test_normalisation_is_the_configs_else_the_models_else_imagenets() -> None:
    half = (0.5, 0.5, 0.5)
    timms = timm.create_model("test_resnet")
    own = timms.pretrained_cfg["mean"], timms.pretrained_cfg["std"]
    assert normalisation(SMALL, timms) == own == (half, half)
    assert normalisation(SMALL, nn.Linear(1, 1)) == (IMAGENET_MEAN, IMAGENET_STD)
    given = BackboneSource(model="test_resnet", mean=(0.1, 0.2, 0.3), std=(1.0, 1.0, 1.0))
    assert normalisation(given, timms) == ((0.1, 0.2, 0.3), (1.0, 1.0, 1.0))
    assert normalisation(BackboneSource(model="m", mean=(0.0, 0.0, 0.0)), timms)[0] == (0, 0, 0)


@pytest.mark.shared
@pytest.mark.parametrize(
    ("depth", "most"), [(20, 0.21), (56, 0.18)], ids=["20 layers", "56 layers"]
)
def test_a_users_pretrained_model_classifies_from_the_start(
    tmp_path: Path, depth: int, most: float
) -> None:
    # Published: 0.082 and 0.064. These images went through lossy JPEG, which costs ten points;
    # with other means and deviations it would be more than 0.35.
    source = BackboneSource(
        model="tests.trainables.backbones.cifar_resnet:cifar_resnet",
        weights=str(SHARED / "weights" / f"cifar_resnet{depth}.safetensors"),
        args={"depth": depth},
    )
    task = TaskSource(source=str(SHARED / "data" / "cifar10"), max_train_images=10)
    store = open_store(task, resolution=32, cache_dir=tmp_path)
    model = build(source, num_classes=10).eval()
    weights = load_weights(source)
    assert weights is not None
    load_into(model, weights, source=source)
    assert not torch.equal(model.get_parameter("linear.weight"), weights["linear.weight"])
    model.load_state_dict(weights)  # the head too, for the task is the one it was trained on
    mean, std = normalisation(source, model)
    measured, _ = evaluate(
        model,
        store.splits["test"],
        lambda images: model_inputs(images, resolution=32, mean=mean, std=std),
    )
    assert measured < most


@pytest.mark.shared
@pytest.mark.parametrize(
    ("model", "file", "args"),
    [
        ("mobilenetv2_100", "mobilenetv2_100_imagenet_qat", {"pad_type": "same"}),
        ("mobilenetv2_100", "mobilenetv2_100_inat_bird", {"pad_type": "same"}),
    ],
)
def test_real_timm_weights_load_under_another_head(
    model: str, file: str, args: dict[str, str]
) -> None:
    weights_file = SHARED / "weights" / f"{file}.safetensors"
    source = BackboneSource(model=model, weights=str(weights_file), args=args)
    made = build(source, num_classes=10).eval()
    weights = load_weights(source)
    assert weights is not None
    load_into(made, weights, source=source)
    expected = safetensors.torch.load_file(weights_file)["conv_stem.weight"].float()
    assert torch.equal(made.get_parameter("conv_stem.weight"), expected)
    assert np.isfinite(made(torch.zeros(1, 3, 64, 64)).detach().numpy()).all()
