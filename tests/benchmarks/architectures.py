"""How many of timm's convnets can be pruned: one of each family's variants, with random weights.

A convnet here is a model whose blocks are convolutions and gates, over channels or over places;
self-attention among places, state-space and MLP mixers are none. A model is reached if, under both
width rules at a ratio of one half, pruning takes a good part of its work (`LEAST_SAVED`), the
pruned model runs forward and backward, and another process that has nothing but its safetensors and
its structure as JSON computes identical outputs.
"""

import copy
import json
import multiprocessing
import signal
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import timm
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tests.benchmarks.publish import publish
from trainables.backbones.layers import classifier_name
from trainables.pruning import PrunedStructure, PruningPlan, WidthRule, prune, rebuild

FAMILIES: Mapping[str, str] = {
    "byobnet": "bat_resnext26ts eca_resnet33ts eca_resnext26ts gcresnet33ts gcresnext26ts gernet_s "
    "mobileone_s0 mobileone_s4 regnetz_b16 regnetz_c16_evos regnetz_d8 repvgg_a0 repvgg_b1g4 "
    "repvgg_d2se resnet32ts resnet50_mlp resnet51q resnext26ts seresnet33ts seresnext26ts",
    "convmixer": "convmixer_768_32",
    "convnext": "convnext_atto convnext_atto_ols convnext_atto_rms convnext_tiny_hnf "
    "convnextv2_atto",
    "cspnet": "cs3darknet_focus_s cs3darknet_s cs3edgenet_x cs3sedarknet_l cs3sedarknet_xdw "
    "cspdarknet53 cspresnet50 cspresnet50d cspresnet50w cspresnext50 darknet17 darknetaa53 "
    "sedarknet21",
    "cspnext": "cspnext_tiny",
    "densenet": "densenet121 densenetblur121d",
    "dla": "dla34 dla46_c dla46x_c dla60_res2net dla60_res2next dla60x",
    "dpn": "dpn48b dpn68 dpn68b",
    "efficientnet": "efficientnet_b0 efficientnet_b0_g16_evos efficientnet_b0_g8_gn "
    "efficientnet_b0_gn efficientnet_b1_pruned efficientnet_blur_b0 efficientnet_cc_b0_4e "
    "efficientnet_es efficientnet_lite0 efficientnet_x_b3 efficientnetv2_rw_t fbnetc_100 "
    "gc_efficientnetv2_rw_t mixnet_s mnasnet_small mobilenet_edgetpu_100 "
    "mobilenet_edgetpu_v2_xs mobilenetv1_100 mobilenetv1_100h mobilenetv2_050 mobilenetv2_110d "
    "semnasnet_050 spnasnet_100 tf_efficientnet_b0 tf_efficientnet_cc_b0_4e tf_efficientnetv2_b0 "
    "tf_mixnet_s tinynet_e",
    "fasternet": "fasternet_t0",
    "fastvit": "fastvit_t8 fastvit_mci0",
    "ghostnet": "ghostnet_050 ghostnetv2_100 ghostnetv3_050",
    "hardcorenas": "hardcorenas_a",
    "hgnet": "hgnet_tiny hgnetv2_b0",
    "hrnet": "hrnet_w18_small hrnet_w18_small_v2",
    "inception_next": "inception_next_atto",
    "inception_resnet_v2": "inception_resnet_v2",
    "inception_v3": "inception_v3",
    "inception_v4": "inception_v4",
    "lcnetv2": "lcnetv2_small",
    "mambaout": "mambaout_femto",
    "metaformer": "convformer_s18 poolformer_s12 poolformerv2_s12",
    "mobilenetv3": "fbnetv3_b lcnet_035 mobilenetv3_large_100 mobilenetv3_rw "
    "mobilenetv3_small_050 mobilenetv4_conv_aa_medium mobilenetv4_conv_blur_medium "
    "mobilenetv4_conv_small mobilenetv4_conv_medium tf_mobilenetv3_small_minimal_100",
    "nasnet": "nasnetalarge",
    "nfnet": "dm_nfnet_f0 eca_nfnet_l0 nf_ecaresnet26 nf_regnet_b0 nf_resnet26 nf_seresnet26 "
    "nfnet_f0 nfnet_l0",
    "pnasnet": "pnasnet5large",
    "rdnet": "rdnet_tiny",
    "regnet": "regnetv_040 regnetx_002 regnety_002 regnety_008_tv regnety_040_sgn regnetz_005 "
    "regnetz_040_h",
    "repghost": "repghostnet_050",
    "repvit": "repvit_m0_9 repvit_m1",
    "res2net": "res2net50_14w_8s res2net50_48w_2s res2net50d res2next50",
    "resnest": "resnest14d resnest50d_1s4x24d",
    "resnet": "ecaresnet26t ecaresnet50d ecaresnet50d_pruned ecaresnetlight ecaresnext26t_32x4d "
    "resnet10t resnet18 resnet18d resnet26 resnet26t resnet50 resnet50_gn resnet50c resnet50s "
    "resnet50t resnetaa34d resnetaa50 resnetblur18 resnetblur50 resnetrs50 resnext50_32x4d "
    "senet154 seresnet18 seresnet50 seresnet50t seresnetaa50d seresnext26d_32x4d "
    "seresnext26t_32x4d wide_resnet50_2",
    "resnetv2": "resnetv2_18 resnetv2_34d resnetv2_50 resnetv2_50d_evos resnetv2_50d_frn "
    "resnetv2_50d_gn resnetv2_50t resnetv2_50x1_bit",
    "rexnet": "rexnet_100 rexnetr_100",
    "selecsls": "selecsls42 selecsls42b",
    "senet": "legacy_seresnet18 legacy_seresnet50 legacy_seresnext26_32x4d",
    "sknet": "skresnet18 skresnet50 skresnext50_32x4d",
    "starnet": "starnet_s050",
    "tresnet": "tresnet_m tresnet_v2_l",
    "vgg": "vgg11 vgg11_bn",
    "vovnet": "eca_vovnet39b ese_vovnet19b_dw ese_vovnet19b_slim ese_vovnet39b_evos vovnet39a",
    "xception": "legacy_xception",
    "xception_aligned": "xception41 xception41p",
}
"""By the module of timm that defines them: its smallest models with each kind of block."""
RATIO = 0.5
RESOLUTION = 128
"""Pixels; twice the deepest stride of the models is enough for every layer to do its work."""
OWN_RESOLUTIONS = {"bat_resnext26ts": 256}
"""Pixels for models that only accept multiples of something larger."""
SECONDS = 180
"""Time limit on a model in a process."""
LEAST_SAVED = {WidthRule.INNER: 0.1, WidthRule.ALL: 0.35}
"""Share of the forward FLOPs; with every channel halved 0.75 go, under `inner` streams stay."""
_PROCESSES = 2
_MODELS_A_PROCESS = 40  # then a fresh one, since allocators keep what they once had


def main() -> None:
    """Runs the sweep, 25 minutes on two cores that others use as well."""
    names = [name for family in FAMILIES.values() for name in family.split()]
    with tempfile.TemporaryDirectory() as folder:
        rows = sweep(names, Path(folder))
    reached = [row for row in rows if not row["failure"]]
    result = {
        "what": f"{len(rows)} convnets of timm {timm.__version__} in {len(FAMILIES)} modules, "
        f"random weights, {RESOLUTION} px, ratio {RATIO}, both width rules; pruned, run forward "
        "and backward, and rebuilt in another process from safetensors and JSON",
        "architectures": len(rows),
        "reached": len(reached),
        "reached_share": round(len(reached) / len(rows), 4),
        "reached_without_a_skipped_layer": sum(
            not (row["inner_skipped"] or row["all_skipped"]) for row in reached
        ),
        "failures": [
            {"name": row["name"], "reason": row["failure"]} for row in rows if row["failure"]
        ],
        "models": rows,
    }
    publish("architectures", title="Pruning timm's convnets at 0.5", result=result)


def sweep(names: list[str], folder: Path) -> list[dict[str, Any]]:
    """A row for each model; what one process prunes the other rebuilds."""
    rows: list[dict[str, Any]] = []
    for start in range(0, len(names), _MODELS_A_PROCESS):
        part = names[start : start + _MODELS_A_PROCESS]
        spawn = multiprocessing.get_context("spawn")
        pools = [ProcessPoolExecutor(1, mp_context=spawn) for _ in range(_PROCESSES)]
        rows += _part(part, folder, pools)
        for pool in pools:
            pool.shutdown()
    return rows


def _part(names: list[str], folder: Path, pools: list[ProcessPoolExecutor]) -> list[dict[str, Any]]:
    console = Console(stderr=True)
    pruned = [
        pools[number % len(pools)].submit(_row, name, folder) for number, name in enumerate(names)
    ]
    rebuilt: list[Future[str]] = []
    for number, name in enumerate(names):
        pruned[number].result()
        rebuilt.append(pools[(number + 1) % len(pools)].submit(_rebuilt, name, folder))
    rows = []
    for future, again in zip(pruned, rebuilt, strict=True):
        row = future.result()
        row["failure"] = row["failure"] or again.result()
        console.print(f"{row['name']}: {row['seconds']} s, {row['failure'] or 'reached'}")
        rows.append(row)
    return rows


def _row(name: str, folder: Path) -> dict[str, Any]:
    """Prunes `name` under both rules and returns the findings; leaves files for `_rebuilt`."""
    torch.set_num_threads(1)
    start = time.perf_counter()
    row: dict[str, Any] = {"name": name, "failure": ""}
    for rule in WidthRule:
        row[f"{rule}_saved"] = row[f"{rule}_skipped"] = None
    try:
        with _limit(SECONDS):
            torch.manual_seed(0)
            dense = timm.create_model(name, num_classes=10)
            for rule in WidthRule:
                structure, saved = _prune(name, copy.deepcopy(dense), rule, folder)
                row[f"{rule}_saved"] = round(saved, 3)
                row[f"{rule}_skipped"] = len(structure.skipped)
                if saved < LEAST_SAVED[rule]:
                    first = f": {structure.skipped[0].reason}" if structure.skipped else ""
                    row["failure"] = f"{rule} saves {saved:.0%} of the FLOPs{first}"
    except Exception as error:
        row["failure"] = f"{rule}: {type(error).__name__}: {error}"
    row["seconds"] = round(time.perf_counter() - start, 1)
    return row


def _prune(
    name: str, model: nn.Module, rule: WidthRule, folder: Path
) -> tuple[PrunedStructure, float]:
    """The pruned structure, and the share of the forward FLOPs that went."""
    with FlopCounterMode(display=False) as before:
        _outputs(model, name)
    structure = prune(
        model,
        PruningPlan(ratio=RATIO, width_rule=rule),
        head=classifier_name(model),
        resolution=_resolution(name),
        seed=0,
    )
    model.train()
    model(_images(name)).square().mean().backward()
    for parameter in model.parameters():
        if parameter.grad is not None and parameter.grad.shape != parameter.shape:
            raise RuntimeError("a gradient has another shape than its parameter")
    files = _files(name, rule, folder)
    save_file(_owned(model.state_dict()), files["weights"])
    files["structure"].write_text(json.dumps(structure.to_dict()))
    with FlopCounterMode(display=False) as after:
        save_file({"outputs": _outputs(model, name)}, files["outputs"])
    return structure, 1 - after.get_total_flops() / before.get_total_flops()


def _rebuilt(name: str, folder: Path) -> str:
    """Why the model cannot be had back from its files; empty if it can."""
    torch.set_num_threads(1)
    try:
        with _limit(SECONDS):
            torch.manual_seed(1)
            dense = timm.create_model(name, num_classes=10)
            for rule in WidthRule:
                files = _files(name, rule, folder)
                if not files["outputs"].exists():
                    return ""  # it was not pruned, as its row says
                model = copy.deepcopy(dense)
                structure = PrunedStructure.from_dict(json.loads(files["structure"].read_text()))
                rebuild(model, structure, resolution=_resolution(name))
                model.load_state_dict(load_file(files["weights"]))
                expected = load_file(files["outputs"])["outputs"]
                for file in files.values():
                    file.unlink()
                if not torch.equal(_outputs(model, name), expected):
                    return f"{rule}: rebuilt from disk, its outputs differ"
    except Exception as error:
        return f"{rule}: rebuilding: {type(error).__name__}: {error}"
    return ""


def _files(name: str, rule: WidthRule, folder: Path) -> dict[str, Path]:
    stem = folder / f"{name}.{rule}"
    return {
        "weights": stem.with_suffix(f".{rule}.weights.safetensors"),
        "structure": stem.with_suffix(f".{rule}.json"),
        "outputs": stem.with_suffix(f".{rule}.outputs.safetensors"),
    }


def _owned(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each tensor in memory of its own, as safetensors asks."""
    return {name: tensor.clone().contiguous() for name, tensor in state.items()}


def _resolution(name: str) -> int:
    return OWN_RESOLUTIONS.get(name, RESOLUTION)


def _images(name: str) -> Tensor:
    side = _resolution(name)
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))


def _outputs(model: nn.Module, name: str) -> Tensor:
    with torch.no_grad():
        outputs: Tensor = model.eval()(_images(name))
    return outputs


@contextmanager
def _limit(seconds: int) -> Iterator[None]:
    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise TimeoutError(f"took longer than {seconds} s")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


if __name__ == "__main__":
    main()
