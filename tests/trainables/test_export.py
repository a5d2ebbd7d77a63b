"""Exported models: the same predictions anywhere, and no folder overwritten."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.checkout import ROOT
from tests.trainables.recipes import LEVELS, SMALL, make_recipe, make_trial, run, rung_uri
from trainables.backbones.source import BackboneSource
from trainables.errors import InputError
from trainables.export import (
    CARD_FILE,
    MODEL_FILE,
    WEIGHTS_FILE,
    TransferredModel,
    error_on_test,
    export_model,
    factories_allowed,
    from_checkpoint,
    load_exported,
)
from trainables.images.store import ImageStore
from trainables.learning.evaluation import evaluate
from trainables.measurement import Measurement

USERS_OWN = BackboneSource(
    model="tests.trainables.backbones.cifar_resnet:cifar_resnet", args={"depth": 8}
)
PREDICT = """
import sys
import numpy as np, torch
from trainables.export import load_exported
factory = "tests.trainables.backbones.cifar_resnet:cifar_resnet"
torch.set_num_threads(1)
model = load_exported(sys.argv[1], factories=[factory])
np.save(sys.argv[2], model.predict(np.load(sys.argv[3])))
"""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A trial that has ended, and where it lies."""

    source: BackboneSource
    uri: str
    curve: list[Measurement]


@pytest.fixture(scope="module", params=["resnet", "user's own"])
def trained(
    request: pytest.FixtureRequest, digits: ImageStore, tmp_path_factory: pytest.TempPathFactory
) -> Trained:
    own = request.param == "user's own"
    recipe = make_recipe(
        pruning_ratio=0.5,
        width_rule="inner" if own else "all",
        resolution=12 if own else 16,
        learning_rate=0.05,
        target_flops=LEVELS[1],
    )
    folder = tmp_path_factory.mktemp("trial")
    source = USERS_OWN if own else SMALL
    curve = run(make_trial(digits, recipe, source=source), folder)
    return Trained(source=source, uri=rung_uri(folder, curve[-1].rung), curve=curve)


@pytest.fixture
def exported(trained: Trained, digits: ImageStore, tmp_path: Path) -> Path:
    export_model(
        trained.uri,
        tmp_path / "model",
        backbone=trained.source,
        class_names=digits.class_names,
        card="# Größe",
    )
    return tmp_path / "model"


def loaded(folder: Path | str) -> TransferredModel:
    """The model in `folder`, whose backbone is trusted."""
    return load_exported(folder, factories=[USERS_OWN.model])


def pictures(store: ImageStore, count: int) -> NDArray[np.uint8]:
    """The first validation images as [B, H, W, 3]."""
    images = store.splits["validation"].images[:count]
    return np.ascontiguousarray(images.permute(0, 2, 3, 1).numpy())


def test_the_model_of_a_checkpoint_has_the_error_that_the_trial_measured(
    trained: Trained, digits: ImageStore
) -> None:
    model = from_checkpoint(trained.uri, backbone=trained.source, class_names=digits.class_names)
    measured = trained.curve[-1]
    split = digits.splits["validation"]
    error, loss = evaluate(model.module, split, model.inputs)
    assert error == measured.val_error
    assert loss == pytest.approx(measured.val_loss, rel=1e-5), "the trial's layout rounds otherwise"
    assert model.measurement == measured
    predicted = model.predict(pictures(digits, len(split))).argmax(1)
    wrong = np.mean(predicted != split.labels.numpy())
    assert wrong == measured.val_error


def test_test_error_is_of_the_test_split(trained: Trained, digits: ImageStore) -> None:
    model = from_checkpoint(trained.uri, backbone=trained.source, class_names=digits.class_names)
    test = digits.splits["test"]
    images = np.ascontiguousarray(test.images.permute(0, 2, 3, 1).numpy())
    expected = float(np.mean(model.predict(images).argmax(1) != test.labels.numpy()))
    assert error_on_test(model, digits) == pytest.approx(expected)


@pytest.mark.parametrize("trained", ["user's own"], indirect=True)
def test_another_process_predicts_the_same(
    exported: Path, trained: Trained, digits: ImageStore, tmp_path: Path
) -> None:
    images = pictures(digits, 20)
    np.save(tmp_path / "images.npy", images)
    # where a user's own architecture is found: the folder that the process is started in
    subprocess.run(
        [
            sys.executable,
            "-c",
            f"import sys; sys.path[:0] = [{str(ROOT)!r}]\n{PREDICT}",
            str(exported),
            str(tmp_path / "there.npy"),
            str(tmp_path / "images.npy"),
        ],
        cwd=ROOT,
        check=True,
        timeout=60,
    )
    here = loaded(exported)
    probabilities = here.predict(images)
    assert np.array_equal(np.load(tmp_path / "there.npy"), probabilities)
    assert probabilities.shape == (20, 4)
    assert probabilities.sum(axis=1) == pytest.approx(np.ones(20), abs=1e-5)
    assert here.class_names == digits.class_names
    assert here.measurement == trained.curve[-1]
    assert here.recipe.settings["pruning_ratio"] == 0.5


def test_the_folder_holds_weights_description_and_card_and_no_pickle(exported: Path) -> None:
    assert {path.name for path in exported.iterdir()} == {WEIGHTS_FILE, MODEL_FILE, CARD_FILE}
    assert (exported / CARD_FILE).read_text(encoding="utf-8") == "# Größe"
    description = json.loads((exported / MODEL_FILE).read_text())
    assert description["backbone"]["weights"] is None, "it needs no pretrained weights any more"
    assert [path.name for path in exported.parent.iterdir()] == ["model"], "no trace of the writing"


def test_its_normalisation_is_kept_with_it(exported: Path) -> None:
    description = json.loads((exported / MODEL_FILE).read_text())
    model = loaded(exported)
    assert tuple(description["backbone"]["mean"]) == model.mean
    description["backbone"]["mean"] = [0.1, 0.2, 0.3]
    (exported / MODEL_FILE).write_text(json.dumps(description))
    assert loaded(exported).mean == (0.1, 0.2, 0.3)


@pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType")  # MLflow's own hints
@pytest.mark.parametrize("trained", ["resnet"], indirect=True)
def test_mlflow_loads_it(exported: Path, digits: ImageStore, tmp_path: Path) -> None:
    import mlflow.pyfunc  # seconds, which the other tests need not wait for

    mlflow.pyfunc.save_model(
        tmp_path / "logged",
        loader_module="trainables.export",
        data_path=str(exported),
        pip_requirements=[],
    )
    by_mlflow = mlflow.pyfunc.load_model(str(tmp_path / "logged"))
    images = pictures(digits, 4)
    assert np.array_equal(by_mlflow.predict(images), loaded(exported).predict(images))


def describe_otherwise(folder: Path, **backbone: object) -> None:
    """Writes another backbone into an exported model's description, as a stranger might."""
    description = json.loads((folder / MODEL_FILE).read_text())
    description["backbone"] |= backbone
    (folder / MODEL_FILE).write_text(json.dumps(description))


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that appears once anything in the folder of modules `trap` and `resnet18` is run."""
    sprung, modules = tmp_path / "sprung", tmp_path / "modules"
    for name in ("trap/__init__.py", "resnet18/net.py"):
        (modules / name).parent.mkdir(parents=True)
        (modules / name).write_text(f"open({str(sprung)!r}, 'w')")
    (modules / "trap" / "hubconf.py").write_text(f"open({str(sprung)!r}, 'w')")
    monkeypatch.syspath_prepend(modules)
    return sprung


@pytest.mark.parametrize("trained", ["resnet"], indirect=True)
@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("trap:make", {}),
        ("torch.hub:load", {"repo_or_dir": "trap", "model": "m", "source": "local"}),
        ("resnet18.net:make", {}),  # a timm name and its tag, as timm reads it
        ("os:system", {}),
        ("local-dir:trap", {}),
    ],
)
def test_loading_runs_no_code_that_the_folder_names(
    exported: Path,
    trap: Path,
    name: str,
    args: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(trap.parent / "modules")
    describe_otherwise(exported, model=name, args=args)
    with pytest.raises(InputError, match=f"'{name}', which is no timm model, and .* if you trust"):
        load_exported(exported)
    with pytest.raises(InputError), factories_allowed("another:factory"):
        load_exported(exported, factories=["my:net"])
    assert not trap.exists()


@pytest.mark.parametrize("trained", ["resnet"], indirect=True)
@pytest.mark.parametrize("argument", ["checkpoint_path", "pretrained_cfg", "cache_dir"])
def test_loading_reads_no_other_files(exported: Path, argument: str) -> None:
    describe_otherwise(exported, args={argument: "/etc/passwd"})
    with pytest.raises(InputError, match=f"argument '{argument}', which reads other files"):
        load_exported(exported)


@pytest.mark.parametrize("trained", ["user's own"], indirect=True)
def test_a_factory_is_trusted_by_its_name_and_for_a_while(exported: Path) -> None:
    with pytest.raises(InputError, match="give load_exported factories="):
        load_exported(exported)
    with factories_allowed("an:other"), factories_allowed(USERS_OWN.model):
        inside = load_exported(exported)
    assert inside.recipe == loaded(exported).recipe
    with pytest.raises(InputError):
        load_exported(exported)


def export_to(folder: Path, trained: Trained, store: ImageStore) -> None:
    export_model(
        trained.uri, folder, backbone=trained.source, class_names=store.class_names, card=""
    )


def test_what_lies_in_the_way_is_not_overwritten(
    trained: Trained, digits: ImageStore, tmp_path: Path
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("years of work")
    (tmp_path / "file").write_text("more work")
    for name in ("full", "file"):
        with pytest.raises(InputError, match=f"{name} exists and is no empty folder; export into"):
            export_to(tmp_path / name, trained, digits)
    assert (tmp_path / "full" / "thesis.tex").read_text() == "years of work"
    assert {path.name for path in tmp_path.iterdir()} == {"full", "file"}


def test_an_empty_folder_and_the_one_we_are_in_may_be_filled(
    trained: Trained, digits: ImageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    export_to(Path(), trained, digits)
    monkeypatch.chdir(tmp_path)
    export_to(Path("deep/er"), trained, digits)
    assert loaded("empty").recipe == loaded("deep/er").recipe


def test_a_folder_that_holds_no_model_is_refused(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no model.json; give a folder that was exported to"):
        load_exported(tmp_path / "nowhere")
    description = json.loads((exported / MODEL_FILE).read_text())
    (exported / MODEL_FILE).write_text(json.dumps(description | {"format": 2}))
    with pytest.raises(InputError, match="has format 2 and this version reads 1"):
        loaded(exported)
    (exported / WEIGHTS_FILE).unlink()
    with pytest.raises(InputError, match="holds no model.safetensors"):
        loaded(exported)


@pytest.fixture
def model(exported: Path) -> TransferredModel:
    return loaded(exported)


def test_images_of_any_size_are_resized_and_rectangles_lose_their_margins(
    model: TransferredModel,
) -> None:
    square = np.random.default_rng(0).integers(0, 256, (3, 40, 40, 3), dtype=np.uint8)
    wide = np.zeros((3, 40, 61, 3), dtype=np.uint8)
    wide[:, :, 10:50] = square
    tall = np.ascontiguousarray(wide.transpose(0, 2, 1, 3))
    expected = model.predict(square)
    assert expected.shape == (3, 4)
    assert np.array_equal(model.predict(wide), expected)
    assert np.array_equal(model.predict(tall), model.predict(square.transpose(0, 2, 1, 3)))
    resized = model.inputs(torch.from_numpy(square).permute(0, 3, 1, 2))
    assert resized.shape == (3, 3, model.resolution, model.resolution)


def test_many_images_are_predicted_batch_by_batch(model: TransferredModel) -> None:
    images = np.random.default_rng(0).integers(0, 256, (300, 16, 16, 3), dtype=np.uint8)
    whole = model.predict(images)
    assert whole.shape == (300, 4)
    assert whole[256:] == pytest.approx(model.predict(images[256:]), abs=1e-6)


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((2, 16, 16, 3), dtype=np.float32),
        np.zeros((16, 16, 3), dtype=np.uint8),
        np.zeros((2, 3, 16, 16), dtype=np.uint8),
        np.zeros((0, 16, 16, 3), dtype=np.uint8),
    ],
)
def test_arrays_that_are_no_images_are_refused(
    model: TransferredModel, images: NDArray[np.uint8]
) -> None:
    with pytest.raises(InputError, match="and must be uint8, \\[images, height, width, 3\\]"):
        model.predict(images)


def test_it_is_ready_for_use(model: TransferredModel) -> None:
    assert not model.module.training
    assert not any(parameter.requires_grad for parameter in model.module.parameters())
