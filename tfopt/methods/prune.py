"""Pruning as one Keras callback, without wrappers."""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from tfopt import _keras, masks, schedules
from tfopt._keras import variables
from tfopt.methods import _penalty, _prune_arguments, _ramp, _scores, _targets
from tfopt.methods._guarding import GuardingMethod
from tfopt.methods._masking import Masks
from tfopt.methods._prune_log import Log
from tfopt.methods._prune_run import Run
from tfopt.methods._rewind import Rewind
from tfopt.types import VerificationError

_log = logging.getLogger(__name__)


class Prune(GuardingMethod[Run]):
    """Makes a growing fraction of the weights zero while the model trains.

    The weights of the lowest score go first, by default the smallest. Masks are
    computed by the schedule before a training step and enforced by the optimizer
    inside every step, right after the weight update. So the model is exactly as sparse
    as the schedule says after every batch, for every callback and in every checkpoint,
    and needs no stripping: it stays the model it was. Works in place on any built
    Keras 3 or tf_keras model, also on one that `QuantizeAware` has prepared.

    Pruned are all trainable kernels and embedding tables. `report` lists them, and why
    the other weights are left alone; a warning is logged for matrices among those that
    nobody excluded. Steps are optimizer steps (`optimizer.iterations`); a second `fit`
    of a compiled model goes on where the first one stopped. With
    `steps_per_execution > 1`, masks that fall due within an execution are applied
    before it, so that what it leaves is right.

    Args:
        final_sparsity: Fraction of zero weights in the end, in [0, 1). `None` only
            with a schedule object, `per_layer`, `threshold`, `keep_existing_zeros` or
            a structure such as `"2:4"`, which says it.
        initial_sparsity: Fraction of zero weights at `begin_step`.
        begin_step: Step at which pruning begins. 0: before the first training step.
        end_step: Step at which `final_sparsity` is reached, on the frequency grid or
            not. `None`: at 3/4 of the training that `fit` plans, counted from
            `begin_step` or, in a model whose optimizer has made steps already, from
            where it stands.
        frequency: Masks are computed every `frequency` steps. `None`: 50 times in all.
        power: Exponent of the polynomial; 3 prunes most of it early.
        schedule: `"polynomial"`, `"constant"` (all at once at `begin_step`) or an
            object of `tfopt.schedules` or TFMOT, which then says all of the above.
        score: Which weights stay: those of large `"magnitude"` |w|; `"gradient"`
            |w·∂L/∂w| averaged over the batches since the masks were last computed, or
            over `data`; `"movement"` -Σ w·∂L/∂w since `fit` began; `"activation"` |w|
            times the root mean square of its input over `data`; or `"random"` ones.
            What is pruned once stays so.
        structure: What is pruned together: `"unstructured"`, single weights; `"4x1"`,
            blocks of 4 inputs by 1 output (of a Dense kernel, or at each position of a
            convolution's; any size; blocks at the edge may be smaller); `"2:4"`, two
            zeros in each four inputs of an output (any m:n; a last shorter group of k
            inputs has k - (n - m) zeros), on the way in a growing share of the groups;
            `"channel"` or `"filter"`, all weights of an output with their bias and
            BatchNormalization, not those of the model's outputs.
        block_pooling: `"avg"` or `"max"`: which of its weights' scores is that of a
            block, or of a channel unless by magnitude: that goes by its norm.
        scope: `"local"`: every weight tensor gets the sparsity. `"global"`: all
            together do, and layers with larger weights keep more; better from about
            0.9 on, where the local scope leaves small layers too little.
        min_density: Fraction of its weights (blocks, channels) that each tensor keeps
            at least under the global scope; no more than its local share.
        include: Globs for names such as `"block/dense/kernel"` or for leading parts of
            them such as `"block"`; only what matches is pruned. `None`: everything. A
            weight that is not a kernel is pruned if its own name is given:
            `"my_layer/table"`.
        exclude: Globs of what not to prune.
        per_layer: Final sparsity by glob, for weights that are to differ from
            `final_sparsity`; the first that matches counts. They have their sparsity
            each, also under the global scope. Without `final_sparsity`, only they are
            pruned.
        strict: Raise if a weight matrix is not pruned that neither `include`,
            `exclude` nor `per_layer` leaves out.
        keep_existing_zeros: Weights that are zero when `fit` starts stay zero. Without
            `final_sparsity` this is all that is done: pruning preserved through
            fine-tuning or quantization-aware training.
        threshold: Instead of a sparsity: prune weights with |w| (of a block or channel,
            the pooled one) below this, every `frequency` (100) steps from `begin_step`
            to `end_step` (the end), but never a whole tensor.
        data: Batches, readable again and again, on which masks are scored: `(x, y)` or
            `(x, y, sample_weight)` for `"gradient"`, also `x` alone for
            `"activation"`, which needs them. Few batches do. Not part of the config.
        rewind_step: Lottery tickets: when a `fit` ends that has made the final masks,
            all weights get the values back that they had at this step, under the
            masks. Then train again with `Prune(keep_existing_zeros=True)`.
        sparsity_penalty: `{"kind": "l1" or "group_lasso", "strength": 1e-4}`, a term of
            the loss for the weights to prune; the groups are those of `structure`,
            output channels if it has none.
        log_dir: Folder for TensorBoard: sparsity of each weight tensor per epoch.
        seed: For the score `"random"`.

    Attributes:
        report: After `fit` has started: one dictionary per weight of the model with
            `name`, `shape`, `size`, `pruned`, `reason` (why not, else `""`) and
            `sparsity` (fraction of zeros, when training last ended; else None).

    Raises:
        ValueError: An argument is wrong; patterns match nothing; `strict` and there
            are skips; or, from `fit`, the schedule begins after the training that
            `fit` plans, or ended before it.
        TfoptError: From `fit`, a score cannot be had of a layer or training step.

    Warns:
        UserWarning: The schedule ends after the training that `fit` plans, starts with
            a jump, or lets weights grow back that are zero.

    Reference:
        Zhu and Gupta, "To prune, or not to prune", https://arxiv.org/abs/1710.01878;
        rewinding: Frankle and Carbin, https://arxiv.org/abs/1803.03635; the scores:
        `tfopt/methods/_scores.py`.

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
        score: Literal[
            "magnitude", "movement", "gradient", "activation", "random"
        ] = "magnitude",
        structure: str = "unstructured",
        block_pooling: Literal["avg", "max"] = "avg",
        scope: masks.Scope = "local",
        min_density: float = masks.MIN_DENSITY,
        include: str | Sequence[str] | None = None,
        exclude: str | Sequence[str] | None = None,
        per_layer: Mapping[str, float] | None = None,
        strict: bool = False,
        keep_existing_zeros: bool = False,
        threshold: float | None = None,
        data: Iterable[Any] | None = None,
        rewind_step: int | None = None,
        sparsity_penalty: Mapping[str, Any] | None = None,
        log_dir: str | None = None,
        seed: int = 0,
    ):
        super().__init__()
        schedule = schedules.adapt(schedule)
        self.final_sparsity = final_sparsity
        self.initial_sparsity = initial_sparsity
        self.begin_step = begin_step
        self.end_step = end_step
        self.frequency = frequency
        self.power = power
        self.schedule = schedule
        self.score = score
        self.structure = structure
        self.block_pooling = block_pooling
        self.scope = scope
        self.min_density = min_density
        self.include = include
        self.exclude = exclude
        self.per_layer = per_layer
        self.strict = strict
        self.keep_existing_zeros = keep_existing_zeros
        self.threshold = threshold
        self.data = data
        self.rewind_step = rewind_step
        self.sparsity_penalty = sparsity_penalty
        self.log_dir = log_dir
        self.seed = seed
        self._last_masks: dict[str, np.ndarray] = {}
        # A ramp derived from the length of a `fit` holds for later ones as well, as
        # long as the same optimizer counts the steps; so do the early weights.
        self._derived: tuple[Any, schedules.Schedule] | None = None
        self._rewind: Rewind | None = None
        _prune_arguments.check(self._arguments())

    @property
    def masks(self) -> dict[str, np.ndarray]:
        """The masks by weight name, bool arrays; True keeps. Empty before `fit`."""
        return self._last_masks if self._run is None else self._run.guard.numpy()

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments as plain values, without `data`."""
        config = self._arguments()
        del config["data"]
        if isinstance(self.schedule, schedules.Schedule):
            config["schedule"] = schedules.serialize(self.schedule)
        for name in ("per_layer", "sparsity_penalty"):
            if config[name] is not None:
                config[name] = dict(config[name])
        return config

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Prune:
        """Makes a Prune from `get_config`'s dictionary; give `data` along if needed."""
        return cls(**config)

    def finalize(self, model: Any) -> Any:
        """Returns the model, after counting its zeros.

        Raises:
            VerificationError: Weights have fewer zeros than promised.
        """
        self._end_run()  # of an aborted fit
        _keras.check_model(model)
        final = _prune_arguments.final_sparsity(self._arguments())
        selection = _targets.select(model, self._rules(), final)
        if final is None and self.per_layer is None:
            self._check_kept(selection)
            return model
        for target in selection.targets:
            zeros = sum(selection.structured_zeros(w) for w in target.weights)
            self._check_zeros(
                target.weights, zeros, selection.least_zeros(target, target.final)
            )
        return model

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Starts masking at the first epoch: only now is the plan of `fit` known."""
        super().on_epoch_begin(epoch, logs)
        if self._run is not None:
            self._run.is_last_epoch = epoch + 1 >= self.params["epochs"]

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Computes new masks if some fall due within the coming execution."""
        del logs
        run = self._current_run(batch)
        if self._rewind is not None:
            self._rewind.look()
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
            run.update(run.due if step is None else step)
            run.due = run.schedule.next_update(run.reach)
            if run.due is None:
                run.scorer.stop()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Checks that nothing has written weights past the masks; logs sparsities."""
        super().on_epoch_end(epoch, logs)
        run = self._run
        if run is not None and run.log is not None:
            run.log.write(variables.iterations(self.model), run.values())

    def _finish(self, run: Run) -> None:
        run.enforce("at the end of training")
        ramp = run.schedule
        if run.due is not None and isinstance(ramp, schedules.PolynomialDecay):
            _log.warning(
                "Training ended at step %d and the schedule at step %d; the sparsity "
                "is not yet %s.",
                variables.iterations(self.model),
                ramp.end_step,
                ramp.final_sparsity,
            )
        elif self._rewind is not None:
            self._rewind.restore()
            run.guard.enforce(list(run.guard.numpy()))

    def _arguments(self) -> dict[str, Any]:
        return super().get_config()

    def _rules(self) -> _targets.Rules:
        structure = masks.Structure.parse(self.structure)
        by_norm = structure.kind == "channel" and self.score == "magnitude"
        return _targets.Rules(
            include=self.include,
            exclude=self.exclude,
            per_layer=self.per_layer,
            structure=structure,
            pooling="norm" if by_norm else self.block_pooling,
            scope=self.scope,
            min_density=self.min_density,
            strict=self.strict,
        )

    def _start(self, epoch: int) -> Run:
        final = _prune_arguments.final_sparsity(self._arguments())
        selection = _targets.select(self.model, self._rules(), final)
        self.report = selection.report
        chosen = selection.weights
        values = {w.name: variables.to_numpy(w.variable) for w in chosen}
        fit = self._plan(epoch)
        schedule = self._schedule_of(fit, selection, values)
        self._announce(selection, schedule)
        if self.rewind_step is not None and (
            self._rewind is None or not self._rewind.is_for(self.model)
        ):
            self._rewind = Rewind(self.model, self.rewind_step)
        keep = {
            name: value != 0 if self.keep_existing_zeros else np.ones_like(value, bool)
            for name, value in values.items()
        }
        scorer = _scores.Scorer(
            self.score, self.model, chosen, data=self.data, seed=self.seed
        )
        run = Run(
            guard=Masks(self.model, [*chosen, *selection.vectors]),
            selection=selection,
            scorer=scorer,
            keep=keep,
            schedule=schedule,
            fit=fit,
            due=None if schedule is None else schedule.begin_step,
            threshold=self.threshold,
            log=None if self.log_dir is None else Log(self.log_dir, self.model),
        )
        scorer.install()
        if self.sparsity_penalty is not None:
            structure = masks.Structure.parse(self.structure)
            run.undo = _penalty.install(self.sparsity_penalty, chosen, structure)
        run.guard.install()
        first = run.begin(values, variables.steps_per_execution(self.model))
        run.guard.assign(selection.with_followers(first))
        return run

    def _announce(
        self, selection: _targets.Selection, schedule: schedules.Schedule | None
    ) -> None:
        """Says what is pruned, and what is not though nobody asked for that."""
        pruned = [weight.name for weight in selection.weights]
        _log.info("Pruning %s; %s", pruned, schedule)
        for name, reason in selection.skips.items():
            _log.warning("Not pruning %s: %s.", name, reason)

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
        self,
        fit: _ramp.Fit,
        selection: _targets.Selection,
        values: Mapping[str, np.ndarray],
    ) -> schedules.Schedule | None:
        """Returns the checked schedule of a fit; None: only zeros are kept."""
        size = sum(value.size for value in values.values())
        weights = _ramp.Weights(
            size=size,
            zeros=size - sum(np.count_nonzero(value) for value in values.values()),
            least_zeros=selection.all_least_zeros,
            slack=selection.slack(),
        )
        arguments = self._arguments()
        final = _prune_arguments.highest(arguments)
        make = functools.partial(_prune_arguments.make, arguments, final)
        if isinstance(self.schedule, schedules.Schedule):
            schedule = self.schedule
        elif self.threshold is not None:
            # It says when; how sparse that makes the model remains to be seen.
            return make(self.begin_step, self.end_step)
        elif not final:
            return None
        elif self.schedule == "constant" or self.end_step is not None:
            schedule = make(self.begin_step, self.end_step)
        elif self._derived is not None and self._derived[0] is self.model.optimizer:
            schedule = self._derived[1]
        else:
            schedule = _ramp.derive(
                make,
                begin_step=self.begin_step,
                weights=weights,
                fit=fit,
                delay=self._delay(),
            )
            self._derived = (self.model.optimizer, schedule)
        _ramp.check(
            schedule,
            weights=weights,
            fit=fit,
            keep_existing_zeros=self.keep_existing_zeros,
        )
        return schedule

    def _delay(self) -> int:
        """Returns after how many steps there is a score."""
        observed = _scores.is_observed(self.score, self.data)
        return variables.steps_per_execution(self.model) if observed else 0

    def _end(self, run: Run) -> None:
        run.end(self.report)
        self._last_masks = run.guard.numpy()

    def _check_kept(self, selection: _targets.Selection) -> None:
        """Raises unless the zeros of the last masks are there."""
        if not self._last_masks:
            raise VerificationError(
                "Prune has kept no zeros yet. Expected `fit` with this callback "
                f"before `finalize`. Received: {self._describe()}"
            )
        zeros = sum(
            weight.size - np.count_nonzero(weight.variable.numpy())
            for weight in selection.weights
        )
        names = {weight.name for weight in selection.weights}
        masked = [mask for name, mask in self._last_masks.items() if name in names]
        self._check_zeros(
            selection.weights, zeros, sum(int((~mask).sum()) for mask in masked)
        )

    def _check_zeros(
        self, weights: Sequence[variables.Weight], found: int, expected: int
    ) -> None:
        if found < expected:
            size = sum(weight.size for weight in weights)
            raise VerificationError(
                "The model is less sparse than promised. Expected at least "
                f"{expected} zeros in {size} weights, found {found}. "
                "Train to the end of the schedule, with Prune in every fit, and "
                "let no later callback bring back earlier weights "
                "(restore_best_weights). Received: weights="
                f"{[weight.name for weight in weights]}, {self._describe()}"
            )

    def _describe(self) -> str:
        parameters = inspect.signature(type(self).__init__).parameters
        return ", ".join(
            f"{name}={value!r}"
            for name, value in self.get_config().items()
            if value != parameters[name].default
        )
