"""The one training loop: a recipe run from rung to rung.

Everything random is drawn from a stream named by (seed, purpose, step), so that the position in
the data and the random state are the step number, and a resumed run is the run itself.
"""

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from search_spaces.recipe import Recipe
from trainables.backbones.build import Backbone
from trainables.backbones.trunk import find_trunk
from trainables.batches.features import FeatureBatches
from trainables.batches.images import Batches, ImageBatches
from trainables.checkpoints import load_checkpoint, save_checkpoint
from trainables.costs.flops import StepCost, count_flops
from trainables.costs.skippable import SkippableFlops
from trainables.errors import InfeasibleError
from trainables.images.store import ImageStore
from trainables.learning.batch_norm import trained_batch_norms
from trainables.learning.freezing import freeze_below, train_mode
from trainables.learning.learner import Learner
from trainables.learning.losses import class_weights
from trainables.learning.precision import Precision
from trainables.measurement import Measurement, Outcome
from trainables.preparation import Preparation
from trainables.rungs import Stop, plan_stops, reachable_levels

LOSS_CHECK_PERIOD = 16
"""Steps between looks at whether the loss is still finite."""
_TENSORS = ("model", "measured", "optimizer", "transfer")
_AVERAGE = ("average",)
"""In a checkpoint only where what was measured is made from the average, and is not the average."""


class Finetuning:
    """One recipe on one task: prepared, then trained to one rung after the other.

    Raises `InfeasibleError` from the constructor when the recipe cannot be realised.
    """

    def __init__(
        self,
        *,
        recipe: Recipe,
        seed: int,
        backbone: Backbone,
        store: ImageStore,
        levels: tuple[float, ...],
        mirror: bool,
        device: torch.device,
        precision: Precision | None = None,
        resume_from: str | None = None,
        source_task: Callable[[], ImageStore] | None = None,
    ) -> None:
        """`precision` is the device's own unless given; `source_task` opens the images that the
        backbone was trained on, where the config names them."""
        started = time.perf_counter()
        self._recipe = recipe
        self._seed = seed
        self._train = store.splits["train"]
        self._device = device
        self._step = 0
        self._next_stop = 0
        self._seconds = 0.0
        self.outcome = Outcome.RUNNING
        self.measurement: Measurement | None = None
        self.unbilled_flops = 0.0
        """Training FLOPs executed since the last measurement, or by a trial ending without one."""
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)  # an earlier trial of this process left it

        checkpoint = (
            None
            if resume_from is None
            else load_checkpoint(resume_from, _TENSORS, optional=_AVERAGE)
        )
        self._preparation = Preparation(
            recipe=recipe,
            seed=seed,
            backbone=backbone,
            store=store,
            source_task=source_task,
            device=device,
        )
        self._model = self._preparation.model
        self._prepare(checkpoint[1] if checkpoint else None)
        freeze_below(self._model, trainable_depth=recipe.trainable_depth)
        plain = count_flops(self._model, resolution=recipe.resolution)
        self._inference_flops = plain.forward_flops
        precision = precision or Precision.of(device)
        self._transfer.attach(precision.lay_out(self._model))
        train_mode(self._model)
        self._check_batch_norms()
        cost = count_flops(self._model, resolution=recipe.resolution)
        self._zeros = SkippableFlops(self._model, resolution=recipe.resolution)
        self._batches = self._choose_batches(store, cost, levels=levels, mirror=mirror)
        self._step_flops = self._batches.step_flops + self._transfer.step_flops
        self._opened = False
        self._eval_flops = self._batches.eval_setup_flops
        self._learner = Learner(
            self._model,
            recipe,
            trained=self._batches.trained(self._model),
            seed=seed,
            class_weights=class_weights(
                self._train.labels.to(device),
                classes=len(store.class_names),
                exponent=recipe.class_weighting,
            ),
            precision=precision,
            transfer=self._transfer,
        )
        self.finished: nn.Module = self._learner.average.model
        """The model that was last measured: plain, in eval mode."""
        self._settling_flops = cost.forward_flops * self._settling_images
        self.stops = plan_stops(
            levels=levels,
            target_flops=recipe.target_flops,
            setup_flops=self._setup_flops + self._batches.setup_flops,
            step_flops=self._step_flops,
            settling_flops=self._settling_flops,
            max_steps=self._batches.max_steps,
        )
        if checkpoint is not None:
            self._restore(*checkpoint)
        self._seconds += time.perf_counter() - started

    def advance(self) -> None:
        """Trains to the next rung and measures there.

        Afterwards `measurement` is the newest one and `outcome` tells whether more rungs lie
        ahead; a loss that stopped being finite ends the trial without a measurement. Must not be
        called when the trial is over.
        """
        if self.outcome is not Outcome.RUNNING:
            raise RuntimeError(f"The trial is over: {self.outcome}.")
        stop = self.stops[self._next_stop]
        started = time.perf_counter()
        self._open_batches()
        if not self._train_to(stop.steps):
            self.outcome = Outcome.DIVERGED
            return
        self._settle()
        self._seconds += time.perf_counter() - started
        self.finished = self._transfer.finished(self._learner.average.model)
        error, loss = self._batches.evaluate(self.finished)
        if not math.isfinite(loss):
            self.outcome = Outcome.DIVERGED
            return
        self.measurement = self._record(stop, error=error, loss=loss)
        self._next_stop += 1
        if self._next_stop == len(self.stops):
            self.outcome = Outcome.COMPLETE

    def save(self, uri: str) -> None:
        """Writes what `resume_from` and an export need, the newest measurement with it.

        A trial resumed from here knows that measurement again, so that one which was saved and
        never reported is not lost. Must be called after a measurement.
        """
        if self.measurement is None:
            raise RuntimeError("A trial is saved at rungs: none is measured yet.")
        tensors = self._learner.tensors()
        if self.finished is self._learner.average.model:
            tensors["measured"] = tensors.pop("average")
        else:
            tensors["measured"] = self.finished.state_dict()
        save_checkpoint(
            uri,
            tensors=tensors,
            state={
                "recipe": self._recipe.to_dict(),
                "seed": self._seed,
                "structure": self._structure,
                "setup_flops": self._setup_flops,
                "step": self._step,
                "skippable_flops": self._zeros.train_flops,
                "learner": self._learner.state(),
                "measurement": self.measurement.to_dict(),
            },
        )

    def _prepare(self, checkpoint: Mapping[str, Any] | None) -> None:
        """Gives the model its structure, which costs nothing where a checkpoint tells it."""
        if checkpoint is None:
            prepared = self._preparation.run()
            self._structure, self._setup_flops = dict(prepared.structure), prepared.flops
            self._transfer = prepared.transfer
            self.unbilled_flops += prepared.flops
        else:
            self._structure, self._setup_flops = checkpoint["structure"], checkpoint["setup_flops"]
            self._transfer = self._preparation.rebuild(self._structure)

    def _check_batch_norms(self) -> None:
        if self._recipe.batch_size > 1:
            return
        for name in trained_batch_norms(self._model):
            raise InfeasibleError(
                f"batch_size=1 leaves the batch norm {name} without a variance to train with",
                spent_flops=self._setup_flops,
            )

    def _choose_batches(
        self, store: ImageStore, cost: StepCost, *, levels: tuple[float, ...], mirror: bool
    ) -> Batches:
        """Features where they are all that training sees of the images, else the images."""
        recipe = self._recipe
        trunk = None
        if recipe.augmentation == recipe.mixup == recipe.cutmix == 0:
            trunk = find_trunk(self._model, resolution=recipe.resolution)
        if trunk is None:
            return ImageBatches(
                recipe=recipe,
                seed=self._seed,
                store=store,
                inputs=self._preparation.inputs,
                cost=cost,
                inference_flops=self._inference_flops,
                mirror=mirror,
                device=self._device,
            )
        reachable = reachable_levels(
            levels, target_flops=recipe.target_flops, spent_flops=self._setup_flops
        )
        return FeatureBatches(
            recipe=recipe,
            seed=self._seed,
            store=store,
            trunk=trunk,
            inputs=self._preparation.inputs,
            normalisation=self._preparation.normalisation,
            cost=cost,
            budget_flops=reachable[-1],
            spent_flops=self._setup_flops,
            device=self._device,
        )

    def _open_batches(self) -> None:
        """Only when a step follows: a trial that is resumed at its end needs none."""
        if not self._opened:
            self.unbilled_flops += self._batches.open()
            self._opened = True
            if self._step == 0:
                images = self._batches.setup_images
                self._zeros.forward(images, shares=self._transfer.zero_shares())

    def _settle(self) -> None:
        self._learner.average.settle(
            self._preparation.calibration(self._settling_images), hold=self._transfer.hold
        )
        self.unbilled_flops += self._settling_flops

    @property
    def _settling_images(self) -> int:
        images = min(self._learner.average.settling_images, len(self._train))
        return images if images > 1 else 0  # one alone has no variance

    def _restore(self, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any]) -> None:
        self._learner.restore(
            {**tensors, "average": tensors.get("average", tensors["measured"])}, state["learner"]
        )
        self.finished = self._transfer.finished(self._learner.average.model)
        self._zeros.train_flops = state["skippable_flops"]
        self.measurement = Measurement.from_dict(state["measurement"])
        self._step = state["step"]
        self._eval_flops = self.measurement.eval_flops
        self._seconds = self.measurement.train_seconds
        self._next_stop = sum(stop.steps <= self._step for stop in self.stops)
        if self._next_stop == len(self.stops):
            self.outcome = Outcome.COMPLETE

    def _train_to(self, steps: int) -> bool:
        """Takes steps until `steps` are taken; False once the loss is seen not to be finite."""
        while self._step < steps:
            loss = self._train_step()
            looks = self._step % LOSS_CHECK_PERIOD == 0 or self._step == steps
            if looks and not math.isfinite(loss.item()):
                return False
        return True

    def _train_step(self) -> Tensor:
        inputs, labels = self._batches.train(self._step)
        loss = self._learner.learn(
            inputs, labels, step=self._step, total_steps=self.stops[-1].steps
        )
        self.unbilled_flops += self._step_flops
        self._zeros.step(self._batches.step_images, shares=self._transfer.zero_shares())
        self._step += 1
        return loss

    def _record(self, stop: Stop, *, error: float, loss: float) -> Measurement:
        self._eval_flops += self._batches.eval_flops
        executed, self.unbilled_flops = self.unbilled_flops, 0.0
        on_gpu = self._device.type == "cuda"
        return Measurement(
            rung=stop.rung,
            train_flops=stop.train_flops,
            executed_flops=executed,
            eval_flops=self._eval_flops,
            inference_flops=self._inference_flops,
            params=sum(p.numel() for p in self.finished.parameters()),
            updated_params=self._transfer.updated_params(self._model),
            nonzero_params=sum(int(p.count_nonzero()) for p in self.finished.parameters()),
            sparse_train_flops=stop.train_flops - self._zeros.train_flops,
            sparse_inference_flops=self._inference_flops
            - self._zeros.inference_flops(self.finished),
            val_error=error,
            val_loss=loss,
            train_seconds=self._seconds,
            images_seen=self._step * self._recipe.batch_size,
            peak_memory_bytes=torch.cuda.max_memory_allocated(self._device) if on_gpu else None,
        )
