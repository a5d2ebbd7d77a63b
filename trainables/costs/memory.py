"""Peak memory: what a recipe needs at once, and the share of a GPU that gives it that much.

Memory is linear in the batch, fixed + per image, so two batches tell it for every other. It is
traced on the meta device, where tensors have shapes but no values, in the way that FLOPs are
counted. What no trace knows, number formats and the workspaces of a GPU's libraries, is measured
once by real steps (`memory_probe`), which `calibrated` carries over to other recipes.
"""

import math
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from trainables.backbones.skeleton import float_dtype, meta_copy, output_tensors
from trainables.errors import InputError

TRACED_BATCHES = (2, 6)
"""Images in the two traces: a norm needs two, and linear is linear from there on."""
CUDA_CONTEXT_BYTES = 600 << 20
"""Bytes that a process holds on a GPU besides its tensors: driver context, kernels, handles."""
MOST_TRIALS = 64
"""Trials on a GPU at most; Ray counts in ten-thousandths of one."""


@dataclass(frozen=True, kw_only=True)
class PeakMemory:
    """A peak that is linear in the batch."""

    fixed_bytes: float
    """Held whatever the batch: weights, gradients, optimiser state, the average."""
    image_bytes: float
    """More for each image of the batch: saved activations and the largest temporaries."""

    def at(self, images: int) -> int:
        """Bytes with a batch of `images`."""
        return math.ceil(self.fixed_bytes + self.image_bytes * images)

    def calibrated(self, *, traced: "PeakMemory", measured: "PeakMemory") -> "PeakMemory":
        """This traced peak as it will be measured, going by a model whose peak is known both ways.

        The fixed part and that of an image are scaled each by its own ratio.
        """
        return PeakMemory(
            fixed_bytes=self.fixed_bytes * measured.fixed_bytes / traced.fixed_bytes,
            image_bytes=self.image_bytes * measured.image_bytes / traced.image_bytes,
        )


@dataclass(frozen=True, kw_only=True)
class TrialMemory:
    """The peaks of a trial's two kinds of work, which never run at once."""

    training: PeakMemory
    """The peak of a training step."""
    evaluation: PeakMemory
    """The peak of a forward pass without gradients, with everything that training keeps."""

    def peak_bytes(self, *, batch_size: int, evaluation_batch: int) -> int:
        """Bytes that the trial needs at once, at most."""
        return max(self.training.at(batch_size), self.evaluation.at(evaluation_batch))

    def calibrated(self, *, traced: "TrialMemory", measured: "TrialMemory") -> "TrialMemory":
        """`PeakMemory.calibrated` for both kinds of work."""
        return TrialMemory(
            training=self.training.calibrated(traced=traced.training, measured=measured.training),
            evaluation=self.evaluation.calibrated(
                traced=traced.evaluation, measured=measured.evaluation
            ),
        )


def trace_memory(model: nn.Module, *, resolution: int, optimizer_copies: int = 1) -> TrialMemory:
    """The memory that training `model` takes, counted without running it.

    Tensor storages that live at once are added up, operator by operator. `requires_grad` and the
    modules' modes decide what is saved for the backward pass, so freeze and set them first. Held
    all the time: the weights, their running average, and for each weight that is trained a
    gradient and `optimizer_copies` values (`optimizers.STATE_COPIES`). A step frees the last
    gradients before it begins, but the trace keeps them: without, small batches peak at the end of
    the backward pass and large ones at its beginning, and two would not tell the others. In the
    model's own dtype, without autocast; scratch space of the kernels is not known. Raises
    `InputError` where the model cannot be traced.
    """

    def training(images: int) -> int:
        return _traced_peak(model, (images, 3, resolution, resolution), backward=True)

    def evaluation(images: int) -> int:
        return _traced_peak(model, (images, 3, resolution, resolution), backward=False)

    held = _held_bytes(model, optimizer_copies=optimizer_copies)
    try:
        return TrialMemory(
            training=fit_peak(lambda images: held + training(images)),
            evaluation=fit_peak(lambda images: held + evaluation(images)),
        )
    except Exception as error:  # whatever a user's forward may raise
        raise InputError(
            f"The memory of {type(model).__name__} at {resolution} pixels cannot be counted: "
            f"{type(error).__name__}: {error}; a model must run on tensors that have shapes but "
            "no values (device 'meta')."
        ) from error


def fit_peak(
    peak_bytes: Callable[[int], int], *, batches: tuple[int, int] = TRACED_BATCHES
) -> PeakMemory:
    """The straight line through `peak_bytes` of the two `batches`."""
    small, large = batches
    low, high = peak_bytes(small), peak_bytes(large)
    slope = (high - low) / (large - small)
    return PeakMemory(fixed_bytes=low - slope * small, image_bytes=slope)


def gpu_share(peak_bytes: int, *, device_bytes: int, margin: float = 0.1) -> float:
    """The share of a GPU for a trial that needs `peak_bytes`: 1/n where n of them fit, else 1.

    Each also needs its process's own `CUDA_CONTEXT_BYTES`; a `margin` of the GPU's `device_bytes`
    stays free for the allocator's gaps. n is a power of two, up to `MOST_TRIALS`, so that shares of
    any kind fill a GPU without a rest, and there are few of them: an actor is only kept for a trial
    with the same one. A trial that does not fit alone gets a whole GPU.
    """
    if peak_bytes < 0 or device_bytes <= 0:
        raise InputError(
            f"peak_bytes={peak_bytes} and device_bytes={device_bytes} must be a need of at least "
            "0 and a size above 0 bytes; give what was measured."
        )
    if not 0 <= margin < 1:
        raise InputError(f"margin={margin} must lie in [0, 1); 0 leaves nothing free.")
    fits = int(device_bytes * (1 - margin) / (peak_bytes + CUDA_CONTEXT_BYTES))
    trials = min(max(1, fits), MOST_TRIALS)
    return float(0.5 ** (trials.bit_length() - 1))


class _LiveBytes(TorchDispatchMode):
    """Adds up the storages that operators make, as long as each is alive."""

    def __init__(self) -> None:
        TorchDispatchMode.__init__(self)
        self.peak_bytes = 0
        self._live_bytes = 0
        self._known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def hold(self, tensor: Tensor) -> None:
        """Takes `tensor` for known: it is counted elsewhere."""
        self._known.add(tensor.untyped_storage())

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known:  # a view, or changed in place
            return
        self._known.add(storage)
        size = storage.nbytes()
        self._live_bytes += size
        self.peak_bytes = max(self.peak_bytes, self._live_bytes)
        weakref.finalize(storage, self._release, size)

    def _release(self, size: int) -> None:
        self._live_bytes -= size


def _traced_peak(model: nn.Module, shape: tuple[int, ...], *, backward: bool) -> int:
    """Bytes that a pass over images of `shape` needs besides the model and its gradients."""
    with torch.inference_mode(mode=False), torch.set_grad_enabled(backward):
        skeleton = meta_copy(model)
        if not backward:
            skeleton.eval()
        live = _LiveBytes()
        for parameter in skeleton.parameters():
            live.hold(parameter)
            if parameter.requires_grad:
                parameter.grad = torch.empty_like(parameter)
                live.hold(parameter.grad)
        for buffer in skeleton.buffers():
            live.hold(buffer)
        with live:
            images = torch.empty(shape, dtype=float_dtype(model), device="meta")
            outputs = list(output_tensors(skeleton(images)))
            losses = [F.cross_entropy(t, _targets(t)) for t in outputs if t.requires_grad]
            if losses:
                torch.autograd.backward(losses)
    return live.peak_bytes


def _targets(logits: Tensor) -> Tensor:
    """Labels of the shape that fits `logits` [B, C, ...]."""
    return torch.empty(
        (logits.shape[0], *logits.shape[2:]), dtype=torch.int64, device=logits.device
    )


def _held_bytes(model: nn.Module, *, optimizer_copies: int) -> int:
    """Weights and statistics twice (the model and its average), gradients, optimiser state."""
    trained = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    everything = sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
    return 2 * everything + (1 + optimizer_copies) * trained
