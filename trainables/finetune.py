"""The one training loop: a recipe run from rung to rung.

Everything random is drawn from a stream named by (seed, purpose, step), so that the position in
the data and the random state are the step number, and a resumed run is the run itself.
"""

import functools
import logging
import math
import time
from collections.abc import Callable
from dataclasses import asdict, replace

import torch
from torch import Tensor, nn

from search_spaces.recipe import Recipe
from trainables.backbones.build import Backbone
from trainables.batches.choice import choose_batches
from trainables.batches.interface import Batches
from trainables.costs.bill import Bill, Prices, reset_peak_memory
from trainables.costs.flops import StepCost, count_flops
from trainables.costs.skippable import SkippableFlops
from trainables.errors import InfeasibleError, first_line
from trainables.images.store import ImageStore
from trainables.learning.batch_norm import trained_batch_norms
from trainables.learning.freezing import freeze_below, train_mode
from trainables.learning.learner import Learner
from trainables.learning.losses import class_weights
from trainables.learning.precision import Precision
from trainables.learning.schedules import steps_before_decay
from trainables.measurement import Measurement, Outcome
from trainables.method import Prepared, Transfer
from trainables.preparation import Preparation
from trainables.rungs import Stop, plan_stops
from trainables.trial_checkpoint import (
    CannotContinueError,
    Snapshot,
    TrialCheckpoint,
    Trunk,
    load_trunk,
)

LOSS_CHECK_PERIOD = 16
"""Steps between looks at whether the loss is still finite."""
_log = logging.getLogger(__name__)


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
        continue_from: str | None = None,
        source_task: Callable[[], ImageStore] | None = None,
    ) -> None:
        """`precision` is the device's own unless given; `source_task` opens the images that the
        backbone was trained on, where the config names them.

        `resume_from` is a checkpoint of this very trial. Without one the trial goes on from
        `continue_from`, a checkpoint of a trial of the same recipe and seed towards less compute,
        where that keeps steps which the two share: what it measures from then on is what it would
        have measured alone. Else it starts from scratch, and the log says why.
        """
        self._working_since = time.perf_counter()
        reset_peak_memory(device)
        self._recipe = recipe
        self._seed = seed
        self._store = store
        self._device = device
        self._step = 0
        self._next_stop = 0
        self._opened = False
        self.outcome = Outcome.RUNNING
        self.measurement: Measurement | None = None
        """The newest one."""
        set_up = functools.partial(
            self._set_up,
            backbone=backbone,
            source_task=source_task,
            levels=levels,
            mirror=mirror,
            precision=precision or Precision.of(device),
        )
        if resume_from is not None:
            set_up(TrialCheckpoint.load(resume_from))
        elif continue_from is None or not self._continues(continue_from, set_up):
            set_up(None)
        self._bill_time()

    def _continues(self, uri: str, set_up: Callable[[TrialCheckpoint], None]) -> bool:
        """Sets the trial up to go on from another's trunk; False where that cannot be."""
        try:
            set_up(load_trunk(uri, recipe=self._recipe, seed=self._seed))
        except CannotContinueError as error:
            _log.warning("The trial starts from scratch and not from %s: %s.", uri, error)
            return False
        return True

    def _set_up(
        self,
        origin: TrialCheckpoint | None,
        *,
        backbone: Backbone,
        source_task: Callable[[], ImageStore] | None,
        levels: tuple[float, ...],
        mirror: bool,
        precision: Precision,
    ) -> None:
        """Makes everything ready to train on from `origin`, or from scratch."""
        recipe, seed, store, device = self._recipe, self._seed, self._store, self._device
        self._preparation = Preparation(
            recipe=recipe,
            seed=seed,
            backbone=backbone,
            store=store,
            source_task=source_task,
            device=device,
        )
        prepared = self._prepare(origin)
        self._structure = dict(prepared.structure)
        self._transfer = self._preparation.transfer(self._structure)
        inference_flops = self._freeze(precision, prepared)
        cost = count_flops(self.model, resolution=recipe.resolution)
        self._batches = choose_batches(
            self.model,
            recipe=recipe,
            seed=seed,
            store=store,
            inputs=self._preparation.inputs,
            normalisation=self._preparation.normalisation,
            cost=cost,
            inference_flops=inference_flops,
            levels=levels,
            spent_flops=prepared.flops,
            mirror=mirror,
            device=device,
        )
        self._learner = self._make_learner(precision)
        self.measured_model: nn.Module = self.average
        """The model that was last measured: plain, in eval mode."""
        self._bill = self._price(
            cost, preparation_flops=prepared.flops, inference_flops=inference_flops
        )
        self.stops = self._plan(levels)
        self._trunk = self._planned_trunk()
        if origin is None:
            self._bill.prepared()
        elif origin.measurement is None:
            self._branch(origin)
        else:
            self._resume(origin, origin.measurement)

    @property
    def model(self) -> nn.Module:
        """The model that is trained, as the method has prepared it and takes hold of it."""
        return self._preparation.model

    @property
    def average(self) -> nn.Module:
        """The average of `model` as of the last settling, from which `measured_model` is made."""
        return self._learner.average.model

    @property
    def transfer(self) -> Transfer:
        """The method at work on `model`."""
        return self._transfer

    @property
    def batches(self) -> Batches:
        """The images or features that a step is fed."""
        return self._batches

    @property
    def prices(self) -> Prices:
        """FLOPs of what the trial does, known in advance."""
        return self._bill.prices

    @property
    def unbilled_flops(self) -> float:
        """Training FLOPs executed since the last measurement, or by a trial ending without one."""
        return self._bill.unbilled_flops

    def advance(self) -> None:
        """Trains to the next rung and measures there.

        Afterwards `measurement` is the newest one and `outcome` tells whether more rungs lie
        ahead; a loss that stopped being finite ends the trial without a measurement. Must not be
        called when the trial is over.
        """
        if self.outcome is not Outcome.RUNNING:
            raise RuntimeError(f"The trial is over: {self.outcome}.")
        stop = self.stops[self._next_stop]
        self._working_since = time.perf_counter()
        if not self.train_to(stop.steps):
            self.outcome = Outcome.DIVERGED
            return
        self._settle()
        self._bill_time()
        self._measure(stop)

    def train_to(self, steps: int) -> bool:
        """Takes steps until `steps` are taken; False once the loss is seen not to be finite."""
        self._open_batches()
        while self._step < steps:
            self._keep_trunk()
            loss = self._train_step()
            looks = self._step % LOSS_CHECK_PERIOD == 0 or self._step == steps
            if looks and not math.isfinite(loss.item()):
                return False
        return True

    def save(self, uri: str) -> None:
        """Writes what `resume_from`, `continue_from` and an export need.

        A trial resumed from here knows the newest measurement again, so that one which was saved
        and never reported is not lost. Must be called after a measurement.
        """
        if self.measurement is None:
            raise RuntimeError("A trial is saved at rungs: none is measured yet.")
        checkpoint = TrialCheckpoint(
            recipe=self._recipe,
            seed=self._seed,
            structure=self._structure,
            preparation_flops=self.prices.preparation_flops,
            snapshot=self._snapshot(),
            measurement=self.measurement,
            trunk=self._trunk,
        )
        is_average = self.measured_model is self.average
        checkpoint.save(uri, measured=None if is_average else self.measured_model.state_dict())

    def _prepare(self, origin: TrialCheckpoint | None) -> Prepared:
        """Gives the model its structure, which a checkpoint tells and saves from finding again."""
        if origin is None:
            return self._preparation.run()
        self._preparation.reshape(origin.structure)
        return Prepared(flops=origin.preparation_flops, structure=origin.structure)

    def _freeze(self, precision: Precision, prepared: Prepared) -> float:
        """Makes the model ready to be trained; FLOPs of an image's pass through it while plain."""
        recipe = self._recipe
        freeze_below(self.model, trainable_depth=recipe.trainable_depth)
        plain = count_flops(self.model, resolution=recipe.resolution)
        self._transfer.attach(precision.lay_out(self.model))
        if prepared.tensors:
            self._transfer.restore(prepared.tensors, {})
        train_mode(self.model)
        if recipe.batch_size == 1 and (norms := trained_batch_norms(self.model)):
            raise InfeasibleError(
                f"batch_size=1 leaves the batch norm {norms[0]} without a variance to train with",
                spent_flops=prepared.flops,
            )
        return plain.forward_flops

    def _make_learner(self, precision: Precision) -> Learner:
        weights = class_weights(
            self._store.splits["train"].labels.to(self._device),
            classes=len(self._store.class_names),
            exponent=self._recipe.class_weighting,
        )
        return Learner(
            self.model,
            self._recipe,
            trained=self._batches.trained(self.model),
            seed=self._seed,
            class_weights=weights,
            precision=precision,
            transfer=self._transfer,
        )

    def _price(self, cost: StepCost, *, preparation_flops: float, inference_flops: float) -> Bill:
        """The bill of a trial that has spent nothing; `cost` is that of training the model."""
        prices = Prices(
            inference_flops=inference_flops,
            preparation_flops=preparation_flops,
            setup_flops=self._batches.setup_flops,
            step_flops=self._batches.step_flops + self._transfer.step_flops,
            settling_flops=cost.forward_flops * self._settling_images,
            eval_setup_flops=self._batches.eval_setup_flops,
            eval_flops=self._batches.eval_flops,
        )
        skippable = SkippableFlops(self.model, resolution=self._recipe.resolution)
        return Bill(prices, skippable=skippable, device=self._device)

    def _plan(self, levels: tuple[float, ...]) -> tuple[Stop, ...]:
        return plan_stops(
            levels=levels,
            target_flops=self._recipe.target_flops,
            setup_flops=self.prices.preparation_flops + self.prices.setup_flops,
            step_flops=self.prices.step_flops,
            settling_flops=self.prices.settling_flops,
            max_steps=self._batches.max_steps,
        )

    @property
    def _steps_alike(self) -> int:
        """Counts the first steps that do not depend on how many follow."""
        total_steps = self.stops[-1].steps
        return min(
            steps_before_decay(self._recipe.schedule, total_steps=total_steps),
            self._transfer.shared_steps(total_steps=total_steps),
        )

    def _planned_trunk(self) -> Trunk | None:
        """Returns the steps that a run towards more compute takes as well; None without any."""
        takes_no_more_steps = self.stops[-1].steps == self._batches.max_steps
        steps = self._steps_alike
        if steps == 0 or takes_no_more_steps or self._batches.depends_on_target:
            return None
        return Trunk(steps=steps, prices=asdict(self.prices))

    def _keep_trunk(self) -> None:
        """Keeps the training as it stands, if the next step is the first that is not shared."""
        if self._trunk is None or self._trunk.steps != self._step:
            return
        self._bill_time()
        self._trunk = replace(self._trunk, snapshot=self._snapshot().copied())

    def _snapshot(self) -> Snapshot:
        return Snapshot(
            step=self._step,
            tensors=self._learner.tensors(),
            learner=self._learner.state(),
            skippable_flops=self._bill.skippable_flops,
            train_seconds=self._bill.seconds,
        )

    def _branch(self, origin: TrialCheckpoint) -> None:
        """Goes on from another trial's trunk; raises `CannotContinueError` if it is not our own."""
        snapshot, trunk = origin.snapshot, origin.trunk
        if trunk is None or trunk.prices != asdict(self.prices):
            raise CannotContinueError("its steps are others, because they cost something else")
        if snapshot.step > self._steps_alike:
            raise CannotContinueError(
                f"only {self._steps_alike} of its {snapshot.step} steps are this trial's too"
            )
        if snapshot.step >= self.stops[-1].steps:
            raise CannotContinueError(f"no step follows its {snapshot.step}")
        try:
            self._go_on(snapshot)
        except (KeyError, ValueError, RuntimeError) as error:
            raise CannotContinueError(f"it is damaged: {first_line(error)}") from error

    def _resume(self, origin: TrialCheckpoint, measurement: Measurement) -> None:
        """Goes on from this very trial's own checkpoint."""
        self._go_on(origin.snapshot)
        self._trunk = origin.trunk  # none of an older one, which may have begun differently
        self.measured_model = self._transfer.plain_model(self.average)
        self.measurement = measurement
        if self._next_stop == len(self.stops):
            self.outcome = Outcome.COMPLETE

    def _go_on(self, snapshot: Snapshot) -> None:
        """Makes the snapshot the training's own state."""
        self._learner.restore(snapshot.tensors, snapshot.learner)
        self._step = snapshot.step
        self._next_stop = sum(stop.steps <= self._step for stop in self.stops)
        self._bill.resume(
            looks=self._next_stop,
            seconds=snapshot.train_seconds,
            skippable_flops=snapshot.skippable_flops,
        )

    def _bill_time(self) -> None:
        """Bills the wall time of the work since it was last billed or begun."""
        now = time.perf_counter()
        self._bill.worked(now - self._working_since)
        self._working_since = now

    def _open_batches(self) -> None:
        """Makes the batches ready when a step follows: a trial resumed at its end needs none."""
        if self._opened:
            return
        executed_flops = self._batches.open()
        self._opened = True
        passed = self._batches.setup_images if self._step == 0 else 0  # later: counted before
        self._bill.opened(executed_flops, images=passed, shares=self._transfer.zero_shares())

    def _train_step(self) -> Tensor:
        inputs, labels = self._batches.train(self._step)
        loss = self._learner.learn(
            inputs, labels, step=self._step, total_steps=self.stops[-1].steps
        )
        self._bill.stepped(images=self._batches.step_images, shares=self._transfer.zero_shares())
        self._step += 1
        return loss

    def _settle(self) -> None:
        self._learner.average.settle(
            self._preparation.calibration(self._settling_images), hold=self._transfer.hold
        )
        self._bill.settled()

    @property
    def _settling_images(self) -> int:
        train = self._store.splits["train"]
        images = min(self._learner.average.settling_images, len(train))
        return images if images > 1 else 0  # one alone has no variance

    def _measure(self, stop: Stop) -> None:
        self.measured_model = self._transfer.plain_model(self.average)
        error, loss = self._batches.evaluate(self.measured_model)
        if not math.isfinite(loss):
            self.outcome = Outcome.DIVERGED
            return
        is_last = self._next_stop + 1 == len(self.stops)
        self.measurement = self._bill.measured(
            self.measured_model,
            stop=stop,
            images_seen=self._step * self._recipe.batch_size,
            updated_params=self._transfer.updated_params(self.model),
            error=error,
            loss=loss,
            trunk_steps=self._trunk.steps if is_last and self._trunk is not None else 0,
        )
        self._next_stop += 1
        if self._next_stop == len(self.stops):
            self.outcome = Outcome.COMPLETE
