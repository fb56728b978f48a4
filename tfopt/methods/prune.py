"""Magnitude pruning as one Keras callback, without wrappers."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from tfopt import _keras, masks, schedules
from tfopt._keras import variables
from tfopt.methods import _ramp
from tfopt.methods._base import Method
from tfopt.methods._masking import Masks, to_numpy
from tfopt.types import TfoptError, VerificationError

_log = logging.getLogger(__name__)


class Prune(Method):
    """Makes a growing fraction of the weights zero while the model trains.

    The smallest weights go first. Masks are computed by the schedule before a training
    step and enforced by the optimizer inside every step, right after the weight
    update. So the model is exactly as sparse as the schedule says after every batch,
    for every callback and in every checkpoint, and needs no stripping: it stays the
    model it was. Works in place on any built Keras 3 or tf_keras model, also on one
    that `QuantizeAware` has prepared.

    Pruned are all trainable kernels and embedding tables (`report` lists them, and why
    the other weights are left alone). Steps are optimizer steps
    (`optimizer.iterations`); a second `fit` of a compiled model goes on where the first
    one stopped. With `steps_per_execution > 1`, masks that fall due within an execution
    are applied before it, so that what it leaves is right.

    Args:
        final_sparsity: Fraction of zero weights in the end, in [0, 1). `None` only
            with a schedule object or with `keep_existing_zeros=True`.
        initial_sparsity: Fraction of zero weights at `begin_step`.
        begin_step: Step at which pruning begins. 0: before the first training step.
        end_step: Step at which `final_sparsity` is reached, on the frequency grid or
            not. `None`: at 3/4 of the training that `fit` plans, counted from
            `begin_step` or, in a model whose optimizer has made steps already, from
            where it stands.
        frequency: Masks are computed every `frequency` steps. `None`: 50 times in all.
        power: Exponent of the polynomial; 3 prunes most of it early.
        schedule: `"polynomial"`, `"constant"` (all at once at `begin_step`) or an
            object of `tfopt.schedules`, which then says all of the above.
        scope: `"local"`: every weight tensor gets the sparsity. `"global"`: all
            together do, and layers with larger weights keep more; better from about
            0.9 on, where the local scope leaves small layers too little.
        include: Globs for names such as `"block/dense/kernel"` or for leading parts of
            them such as `"block"`; only what matches is pruned. `None`: everything.
        exclude: Globs of what not to prune.
        keep_existing_zeros: Weights that are zero when `fit` starts stay zero. Without
            `final_sparsity` this is all that is done: pruning preserved through
            fine-tuning or quantization-aware training.

    Attributes:
        report: After `fit` has started: one dictionary per weight of the model with
            `name`, `shape`, `size`, `pruned`, `reason` (why not, else `""`) and
            `sparsity` (fraction of zeros, when training last ended; else None).

    Raises:
        ValueError: An argument is wrong; patterns match nothing; or, from `fit`, the
            schedule begins after the training that `fit` plans, or ended before it.

    Warns:
        UserWarning: The schedule ends after the training that `fit` plans, starts with
            a jump, or lets weights grow back that are zero.

    Reference:
        Zhu and Gupta, "To prune, or not to prune", https://arxiv.org/abs/1710.01878.

    Example:
        >>> prune = Prune(final_sparsity=0.8, end_step=6)
        >>> history = model.fit(images, labels, 8, callbacks=[prune], verbose=0)
        >>> model = prune.finalize(model)  # counts the zeros
        >>> prune.report[0]["name"], prune.report[0]["sparsity"]
        ('logits/kernel', 0.8)
    """

    def __init__(
        self,
        *,
        final_sparsity: float | None = None,
        initial_sparsity: float = 0.0,
        begin_step: int = 0,
        end_step: int | None = None,
        frequency: int | None = None,
        power: float = 3,
        schedule: (
            Literal["polynomial", "constant"] | schedules.Schedule | Mapping[str, Any]
        ) = "polynomial",
        scope: masks.Scope = "local",
        include: str | Sequence[str] | None = None,
        exclude: str | Sequence[str] | None = None,
        keep_existing_zeros: bool = False,
    ):
        super().__init__()
        if isinstance(schedule, Mapping):
            schedule = schedules.deserialize(schedule)
        self.final_sparsity = final_sparsity
        self.initial_sparsity = initial_sparsity
        self.begin_step = begin_step
        self.end_step = end_step
        self.frequency = frequency
        self.power = power
        self.schedule = schedule
        self.scope = scope
        self.include = include
        self.exclude = exclude
        self.keep_existing_zeros = keep_existing_zeros
        self.report: list[dict[str, Any]] = []
        self._run: _Run | None = None
        self._last_masks: dict[str, np.ndarray] = {}
        # A ramp derived from the length of a `fit` holds for later ones as well, as
        # long as the same optimizer counts the steps.
        self._derived: tuple[Any, schedules.Schedule] | None = None
        self._check_arguments()

    @property
    def masks(self) -> dict[str, np.ndarray]:
        """The masks by weight name, bool arrays; True keeps. Empty before `fit`."""
        return self._last_masks if self._run is None else self._run.masks.numpy()

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments as plain values."""
        config = super().get_config()
        if not isinstance(self.schedule, str):
            config["schedule"] = schedules.serialize(self.schedule)
        return config

    def finalize(self, model: Any) -> Any:
        """Returns the model, after counting its zeros.

        Raises:
            VerificationError: Weights have fewer zeros than promised.
        """
        if self._run is not None:  # a fit was aborted
            self._end(self._run)
        _keras.check_model(model)
        chosen, _ = variables.select(
            variables.weights(model), include=self.include, exclude=self.exclude
        )
        for group, kept in self._promised(chosen):
            size = sum(weight.size for weight in group)
            nonzero = sum(np.count_nonzero(weight.variable.numpy()) for weight in group)
            if nonzero > kept:
                raise VerificationError(
                    "The model is less sparse than promised. Expected at least "
                    f"{size - kept} zeros in {size} weights, found {size - nonzero}. "
                    "Train to the end of the schedule, with Prune in every fit, and "
                    "let no later callback bring back earlier weights "
                    "(restore_best_weights). Received: weights="
                    f"{[weight.name for weight in group]}, {self._describe()}"
                )
        return model

    def on_train_begin(self, logs: Any = None) -> None:
        """Cleans up after an aborted fit; the new one starts with its first epoch."""
        del logs
        if self._run is not None:
            self._end(self._run)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Starts masking at the first epoch: only now is the plan of `fit` known.

        By now, all callbacks have begun and a backup has restored weights and steps.
        """
        del logs
        if self._run is None:
            self._run = self._start(epoch)
        self._run.is_last_epoch = epoch + 1 >= self.params["epochs"]
        self._run.reach = variables.iterations(self.model)

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Computes new masks if some fall due within the coming execution."""
        del logs
        run = self._run
        if run is None:
            raise TfoptError(
                "Prune was not told that an epoch began. Expected `fit`, or a training "
                "loop that calls `on_train_begin`, `on_epoch_begin` and so on, as "
                f"keras.callbacks.CallbackList does. Received: batch={batch}"
            )
        if not run.checked:
            run.masks.check_installed()
            run.checked = True
        if run.schedule is None or run.due is None:
            return
        batches = variables.steps_per_execution(self.model)
        is_last = False
        if run.fit.batches is not None:
            left = run.fit.batches - batch
            is_last = run.is_last_epoch and left <= batches
            batches = min(batches, left)
        # An upper bound, so that the true count is read only when it matters: reading
        # it waits for the device.
        run.reach += batches
        if run.reach < run.due and not is_last:
            return
        run.reach = variables.iterations(self.model, ahead=batches)
        if is_last:
            # Loss scaling may have skipped steps, for which there is no time left.
            run.reach = max(run.reach, run.fit.last or 0)
        if run.reach >= run.due:
            step = run.schedule.last_update(run.reach)
            self._update(run, run.schedule, run.due if step is None else step)
            run.due = run.schedule.next_update(run.reach)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Checks that nothing has written weights past the masks."""
        del logs
        if self._run is not None:
            _enforce(self._run, f"in epoch {epoch}")

    def on_train_end(self, logs: Any = None) -> None:
        """Gives the weights their own constraints back; they stay sparse."""
        del logs
        run = self._run
        if run is None:  # there was no epoch
            return
        _enforce(run, "at the end of training")
        if run.due is not None and isinstance(run.schedule, schedules.PolynomialDecay):
            _log.warning(
                "Training ended at step %d and the schedule at step %d; the sparsity "
                "is not yet %s.",
                variables.iterations(self.model),
                run.schedule.end_step,
                run.schedule.final_sparsity,
            )
        self._end(run)

    def _check_arguments(self) -> None:
        if self.scope not in masks.SCOPES:
            raise ValueError(
                f"`scope` must be one of {masks.SCOPES}. Received: scope={self.scope!r}"
            )
        for name in ("include", "exclude"):
            variables.as_patterns(name, getattr(self, name))
        if not isinstance(self.keep_existing_zeros, bool):
            raise ValueError(
                "`keep_existing_zeros` must be True or False. "
                f"Received: keep_existing_zeros={self.keep_existing_zeros!r}"
            )
        given = {
            "final_sparsity": self.final_sparsity is not None,
            "initial_sparsity": self.initial_sparsity != 0,
            "begin_step": self.begin_step != 0,
            "end_step": self.end_step is not None,
            "frequency": self.frequency is not None,
            "power": self.power != 3,
        }
        idle: Sequence[str] = list(given)
        if isinstance(self.schedule, schedules.Schedule):
            why = "the schedule object says it"
        elif self.schedule not in ("polynomial", "constant"):
            raise ValueError(
                '`schedule` must be "polynomial", "constant" or an object of '
                f"tfopt.schedules. Received: schedule={self.schedule!r}"
            )
        elif self.final_sparsity is None:
            why = "without `final_sparsity` there is no schedule"
            if not self.keep_existing_zeros:
                raise ValueError(
                    "`final_sparsity` must be given, unless with a schedule object or "
                    "keep_existing_zeros=True. Received: final_sparsity=None"
                )
        else:
            why = "a constant schedule has none"
            idle = ["initial_sparsity", "power"] if self.schedule == "constant" else []
            end_step = self.end_step
            if end_step is None and self.schedule == "polynomial":
                end_step = 2**63  # any valid one: its time has not come
            self._make_schedule(self.begin_step, end_step)
        for name in idle:
            if given[name]:
                raise ValueError(
                    f"`{name}` must not be given: {why}. "
                    f"Received: {name}={getattr(self, name)!r}"
                )

    def _make_schedule(
        self, begin_step: int, end_step: int | None
    ) -> schedules.Schedule:
        return _ramp.make(
            str(self.schedule),
            final_sparsity=self.final_sparsity or 0.0,
            initial_sparsity=self.initial_sparsity,
            begin_step=begin_step,
            end_step=end_step,
            power=self.power,
            frequency=self.frequency,
        )

    def _start(self, epoch: int) -> _Run:
        _keras.check_model(self.model)
        candidates = variables.weights(self.model)
        chosen, reasons = variables.select(
            candidates, include=self.include, exclude=self.exclude
        )
        self.report = [
            {
                "name": weight.name,
                "shape": weight.shape,
                "size": weight.size,
                "pruned": weight.name not in reasons,
                "reason": reasons.get(weight.name, ""),
                "sparsity": None,
            }
            for weight in candidates
        ]
        values = {weight.name: to_numpy(weight.variable) for weight in chosen}
        fit = self._plan(epoch)
        schedule = self._schedule_of(fit, _ramp.Weights.of(values, self.scope))
        keep = {
            name: value != 0 if self.keep_existing_zeros else np.ones_like(value, bool)
            for name, value in values.items()
        }
        enforced = Masks(self.model, chosen)
        enforced.install()
        enforced.assign(keep)
        # Biases and the like are only in the report: every model has many.
        skipped = {
            weight.name: reasons[weight.name]
            for weight in candidates
            if weight.is_kernel and weight.name in reasons
        }
        _log.info(
            "Pruning %s; skipping %s; %s", list(values), skipped or "none", schedule
        )
        due = None if schedule is None else schedule.begin_step
        return _Run(enforced, keep, schedule, fit, due)

    def _plan(self, epoch: int) -> _ramp.Fit:
        batches, epochs = self.params.get("steps"), self.params["epochs"] - epoch
        count = functools.partial(variables.iterations, self.model)
        return _ramp.Fit(
            origin=max(0, count(ahead=-(batches or 0) * epoch)),
            first=count(),
            last=None if batches is None else count(ahead=batches * epochs),
            batches=batches,
            epochs=epochs,
        )

    def _schedule_of(
        self, fit: _ramp.Fit, weights: _ramp.Weights
    ) -> schedules.Schedule | None:
        """Returns the checked schedule of a fit; None: only zeros are kept."""
        if isinstance(self.schedule, schedules.Schedule):
            schedule = self.schedule
        elif self.final_sparsity is None:
            return None
        elif self.schedule == "constant" or self.end_step is not None:
            schedule = self._make_schedule(self.begin_step, self.end_step)
        elif self._derived is not None and self._derived[0] is self.model.optimizer:
            schedule = self._derived[1]
        else:
            schedule = _ramp.derive(
                self._make_schedule,
                begin_step=self.begin_step,
                weights=weights,
                fit=fit,
            )
            self._derived = (self.model.optimizer, schedule)
        _ramp.check(
            schedule,
            weights=weights,
            fit=fit,
            keep_existing_zeros=self.keep_existing_zeros,
        )
        return schedule

    def _update(self, run: _Run, schedule: schedules.Schedule, step: int) -> None:
        """Computes and applies the masks of a step."""
        values = run.masks.values()
        bad = [name for name, value in values.items() if np.isnan(value).any()]
        if bad:
            raise TfoptError(
                "The training has diverged: weights are NaN, so none is smallest. Try "
                f"a lower learning rate. Received: weights={bad}, step={step}"
            )
        scores = [np.abs(value) for value in values.values()]
        computed = masks.compute(scores, schedule(step), scope=self.scope)
        run.masks.assign(
            {
                name: mask & run.keep[name]
                for name, mask in zip(values, computed, strict=True)
            }
        )

    def _end(self, run: _Run) -> None:
        run.masks.remove()
        values = run.masks.values()
        for row in self.report:
            if row["pruned"]:
                row["sparsity"] = float(np.mean(values[row["name"]] == 0))
        self._last_masks = run.masks.numpy()
        self._run = None

    def _promised(
        self, chosen: Sequence[variables.Weight]
    ) -> list[tuple[list[variables.Weight], int]]:
        """Returns groups of weights, and how many of a group may be non-zero."""
        final = self.final_sparsity
        if isinstance(self.schedule, schedules.Schedule):
            final = self.schedule.final_sparsity
        if final is None:
            if not self._last_masks:
                raise VerificationError(
                    "Prune has kept no zeros yet. Expected `fit` with this callback "
                    f"before `finalize`. Received: {self._describe()}"
                )
            kept = sum(int(mask.sum()) for mask in self._last_masks.values())
            return [(list(chosen), kept)]
        if self.scope == "local":
            return [([w], masks.num_kept(w.size, final)) for w in chosen]
        sizes = [weight.size for weight in chosen]
        return [(list(chosen), masks.total_kept(sizes, final, scope="global"))]

    def _describe(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self._given().items())

    def _given(self) -> dict[str, Any]:
        default = {"power": 3, "begin_step": 0, "initial_sparsity": 0.0}
        return {
            name: value
            for name, value in self.get_config().items()
            if value not in (None, False) and value != default.get(name)
        }


@dataclasses.dataclass
class _Run:
    """The state of one `fit`.

    Attributes:
        masks: The masks in force.
        keep: Bool arrays by weight name; False is zero for good.
        schedule: None: the masks never change.
        fit: What the `fit` plans.
        due: The next step that updates the masks; None: no more.
        reach: Upper bound of the optimizer steps after the coming execution.
        is_last_epoch: Whether the last planned epoch is running.
        checked: Whether the masks were seen to be installed.
    """

    masks: Masks
    keep: dict[str, np.ndarray]
    schedule: schedules.Schedule | None
    fit: _ramp.Fit
    due: int | None
    reach: int = 0
    is_last_epoch: bool = False
    checked: bool = False


def _enforce(run: _Run, when: str) -> None:
    escaped = run.masks.escaped()
    if escaped:
        _ramp.warn(
            f"Pruned weights of {escaped} were written past the optimizer {when}, by a "
            "callback that brings back earlier weights or by a training step of the "
            "model's own. They are set to zero again."
        )
        run.masks.enforce()
