"""Quantization-aware training: the model learns with int8 rounding in place."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Literal

from tfopt import _keras
from tfopt._keras import fake_quantize, operations, variables
from tfopt._keras.flatten import Graph, flatten, to_model
from tfopt.methods._base import Method
from tfopt.methods.quantize_aware import _arguments, _rewrite
from tfopt.methods.quantize_aware._calibration import calibrate
from tfopt.methods.quantize_aware._canonical import canonicalize
from tfopt.methods.quantize_aware._lowering import lower
from tfopt.methods.quantize_aware._phases import Phases
from tfopt.methods.quantize_aware._placement import Plan, make_plan
from tfopt.methods.quantize_aware._schemes import scheme_of, weights_alone
from tfopt.types import TfoptError

_log = logging.getLogger(__name__)

# Makes saved models load with Keras's own `load_model` too.
fake_quantize.classes(_keras.preferred())
operations.classes(_keras.preferred())


class QuantizeAware(Method):
    """Trains a model with the rounding that integer inference will have.

    `prepare` returns a new model in which weights and activations are rounded to
    their integer grids in the forward pass, while the gradient passes straight through
    and the variables stay float. `finalize` returns a plain model with the rounded
    weights, whose activations have fixed ranges; `tfopt.convert(model,
    quantization="int8")` turns that into a `.tflite` file that computes the same,
    without a representative dataset.

    Weights are symmetric, with zero kept exactly (so pruned weights stay pruned), and
    activations asymmetric int8. BatchNormalization and ReLU behind a layer fuse into
    it, as they will in LiteRT: BatchNormalization trains as usual, because per-channel
    weight scales absorb its factors exactly.

    LSTM, GRU, SimpleRNN and Bidirectional become Dense layers and arithmetic, once for
    each time step, as LiteRT has no integer loop; so they need a fixed number of steps.

    Ranges of activations follow the training batches: the first batch's range is
    taken at once, and until then activations pass through unquantized. With a
    `representative_dataset` they are known before the first step.

    Args:
        scheme: What is quantized, and so the mode in which the result converts.
            `"int8"`: weights and activations, for `quantization="int8"`.
            `"int8_weights"`: weights alone, for `"dynamic"`; nothing but the weights
            is rounded in training. `"int16x8"`: int8 weights and int16 activations,
            symmetric, for `"int16x8"`: accuracy near float where int8 activations
            cost too much, but LiteRT runs it by slow kernels, and not every operator.
        weight_bits: From 2 to 8. With fewer than 8, they take `2**weight_bits - 1`
            values out of the int8 grid. They are stored as int8 and run by the same
            int8 kernels: the file is no smaller and no faster, but it compresses
            better (gzip, or an application package).
        packed: Store weights of 4 bits as int4, two in a byte, where LiteRT's kernels
            take them: Conv2D, DepthwiseConv2D and Dense. Only with `weight_bits=4`
            and `scheme="int8"`.
        activation_bits: Of activations: 8, or 16, which is `scheme="int16x8"`;
            LiteRT has no kernels for fewer.
        per_channel: Whether each output channel of a weight has a scale of its own.
            One scale per weight is for accelerators that need it; a layer followed
            by BatchNormalization cannot have that, nor other schemes than `"int8"`.
        range_tracking: How ranges follow those of the batches. `"ema"`: as a moving
            average. `"minmax"`: they only widen. `"percentile"`: as a moving average
            of ranges that leave out the outermost values. `"mse"`: as a moving
            average of the ranges with the least quantization error. Except with
            `"minmax"`, outputs of the model and inputs of softmax have a range that
            widens at once, so that no class is cut off; with int16 all have.
        ema_decay: Weight of the past in the moving average, per step.
        percentile: With `"percentile"`, the percentage of a batch's values that must
            not be above the range, and of those that must not be below it.
        delay_steps: Activations are rounded only from this optimizer step on; before,
            only their ranges are followed (Jacob et al., section 3.1).
        freeze_batch_norm_after: From this optimizer step on, BatchNormalization uses
            its moving statistics, as inference does, and they no longer change; 0 for
            always.
        freeze_ranges_after: From this optimizer step on, ranges no longer change.
        include: Globs for names of layers such as `"encoder/conv*"`, or for leading
            parts of them such as `"encoder"`, or for classes such as `"Dense"`; only
            what matches is quantized. What fuses into a layer follows it. `None`:
            everything.
        exclude: The same of the layers that stay float, also in the `.tflite`.
        keep_float: The same as `exclude`, by the name that `tfopt.convert` uses; both
            hold.
        representative_dataset: Typical inputs, which `prepare` runs to find ranges, in
            every form that `tfopt.convert` takes: an array of examples [n, ...], a
            dictionary of such arrays by input name, an `.npz` file of them, or an
            iterable (or function that returns one) of examples or batches, each an
            array, a tuple in the order of the inputs, or a dictionary.
        calibration_examples: At most about so many examples are taken from it, so it
            may be endless.
        calibration_batches: Take so many batches of it instead.
        strict: Whether a layer that cannot be quantized is an error. Otherwise it
            stays float and is listed in `report` and in a log message.

    Attributes:
        report: After `prepare`: one dictionary per layer with its `name` and `path`
            (the names of the models it is in, and its own), its `kind`, its
            `treatment` and, for float layers, the `reason`. Treatments are the scheme
            such as `"int8"`, `"fused"` (into the layer before), `"same_scale"` (moves
            quantized values), `"identity"` (gone in inference), `"constant"` (a
            variable that operations take) and `"float"`.

    Raises:
        ValueError: An argument is out of range, or doesn't go with another one.

    Example:
        >>> methods = [tfopt.QuantizeAware()]
        >>> student = tfopt.prepare(model, methods)
        >>> student.compile("adam", loss)
        >>> student.fit(images, labels, callbacks=methods, verbose=0)
        >>> student = tfopt.finalize(student, methods)
        >>> data = tfopt.convert(student, quantization="int8")

    Reference:
        Jacob et al., Quantization and Training of Neural Networks for Efficient
        Integer-Arithmetic-Only Inference, CVPR 2018.
    """

    def __init__(
        self,
        *,
        scheme: Literal["int8", "int8_weights", "int16x8"] = "int8",
        weight_bits: int = 8,
        packed: bool = False,
        activation_bits: int = 8,
        per_channel: bool = True,
        range_tracking: Literal["ema", "minmax", "percentile", "mse"] = "ema",
        ema_decay: float = 0.99,
        percentile: float = 99.9,
        delay_steps: int = 0,
        freeze_batch_norm_after: int | None = None,
        freeze_ranges_after: int | None = None,
        include: str | Sequence[str] | None = None,
        exclude: str | Sequence[str] | None = None,
        keep_float: str | Sequence[str] | None = None,
        representative_dataset: Any = None,
        calibration_examples: int = 256,
        calibration_batches: int | None = None,
        strict: bool = False,
    ) -> None:
        super().__init__()
        self.scheme = scheme
        self.weight_bits = weight_bits
        self.packed = packed
        self.activation_bits = activation_bits
        self.per_channel = per_channel
        self.range_tracking = range_tracking
        self.ema_decay = ema_decay
        self.percentile = percentile
        self.delay_steps = delay_steps
        self.freeze_batch_norm_after = freeze_batch_norm_after
        self.freeze_ranges_after = freeze_ranges_after
        self.include = include
        self.exclude = exclude
        self.keep_float = keep_float
        self.representative_dataset = representative_dataset
        self.calibration_examples = calibration_examples
        self.calibration_batches = calibration_batches
        self.strict = strict
        self.report: list[dict[str, Any]] = []
        self._next_phase: int | None = None
        _arguments.check(self)

    def prepare(self, model: Any) -> Any:
        """Returns a copy of a model that trains with int8 rounding.

        Args:
            model: Built model of Keras 3 (on TensorFlow) or tf_keras, which is not
                changed. Models nested in it are inlined. Code is opened: a subclassed
                model, custom layers that hold layers and attention layers become the
                layers, `keras.ops` and `tf.*` functions that their `call` runs in
                inference, so of `if training:` the other branch is taken; Dropout,
                BatchNormalization and custom layers without layers inside whose
                `call` takes `training` behave in training as ever.

        Returns:
            Functional model of the same Keras, uncompiled, with the same inputs,
            outputs and weights. Layers keep their names (those of nested models that
            clash become `outer_inner`); variables keep theirs.
            A class with its own `train_step`, `compute_loss` or the like still trains
            by it, which must compute by `self(inputs)`: attributes that hold weights
            are left behind. Unless it is made as `cls(inputs, outputs)`, save its
            weights, not the model; `finalize` returns a plain one.

        Raises:
            ValueError: A pattern of `include` or `exclude` matches no layer.
            TfoptError: The model's code cannot be opened, it is prepared already, has
                nothing that can be quantized, or, with `strict`, something that
                cannot.
        """
        graph = flatten(model)
        if _rewrite.is_prepared(graph):
            raise TfoptError(
                "The model is prepared for quantization-aware training already. "
                f"Expected a plain model. Received: model={model.name!r}"
            )
        canonicalize(graph)
        plan = make_plan(
            graph,
            include=_arguments.patterns(graph, self.include),
            exclude=_arguments.patterns(graph, self.exclude, self.keep_float) or (),
        )
        scheme = scheme_of(self)
        if scheme == "int8_weights":
            plan = weights_alone(plan)
        self.report = [entry.as_dict(scheme) for entry in plan.report]
        self._check_plan(graph, plan)
        _rewrite.insert_fake_quantization(
            graph,
            plan,
            _rewrite.Numbers(
                weight_bits=self.weight_bits,
                packed=self.packed,
                per_channel=self.per_channel,
                activation_bits=16 if scheme == "int16x8" else 8,
                range_tracking=self.range_tracking,
                ema_decay=self.ema_decay,
                percentile=self.percentile,
                observing=self.delay_steps > 0,
            ),
            freezes_batch_norm=self.freeze_batch_norm_after is not None,
        )
        prepared = _made(graph)
        if self.representative_dataset is not None and plan.points:
            calibrate(
                prepared,
                self.representative_dataset,
                max_examples=self.calibration_examples,
                max_batches=self.calibration_batches,
            )
        return prepared

    def finalize(self, model: Any) -> Any:
        """Returns the plain model that int8 inference will compute.

        Args:
            model: What `prepare` returned, trained; also one saved and reloaded.

        Returns:
            Functional model of float32 Keras layers with rounded weights, operations
            where the converter needs them, and one layer per activation that rounds
            to its final range.

        Raises:
            TfoptError: The model isn't prepared, or no batch has been seen.
        """
        graph = flatten(model)
        if not _rewrite.is_prepared(graph):
            raise TfoptError(
                "The model is not prepared for quantization-aware training. Expected "
                "the model that `prepare` returned, after training. "
                f"Received: model={model.name!r}"
            )
        weighted = _rewrite.weighted_layers(graph)
        _rewrite.bake(graph)
        lower(graph, weighted)
        graph.training = None
        return _made(graph)

    def on_train_begin(self, logs: Any = None) -> None:
        """Checks that the model in training is a prepared one; enters its phase.

        Raises:
            TfoptError: It isn't, so training would not be quantization-aware.
        """
        classes = fake_quantize.classes(_keras.module_of(self.model))
        ours = (classes.ActivationRange, *classes.weighted.values())
        if not any(isinstance(layer, ours) for layer in _keras.leaf_layers(self.model)):
            raise TfoptError(
                "QuantizeAware is among the callbacks, but the model is not prepared. "
                "Train the model that `tfopt.prepare(model, methods)` returns. "
                f"Received: model={self.model.name!r}"
            )
        self._enter_phase()

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Enters the next phase when it is due."""
        if self._next_phase is None:
            return
        if variables.iterations(self.model) >= self._next_phase:
            self._enter_phase()

    def _enter_phase(self) -> None:
        phases = Phases(
            delay_steps=self.delay_steps,
            freeze_batch_norm_after=self.freeze_batch_norm_after,
            freeze_ranges_after=self.freeze_ranges_after,
        )
        step = variables.iterations(self.model)
        phases.enter(self.model, step)
        self._next_phase = phases.following(step)

    def _check_plan(self, graph: Graph, plan: Plan) -> None:
        left = [entry for entry in plan.report if entry.is_left_over]
        if not any(entry.treatment == "int8" for entry in plan.report):
            raise TfoptError(
                "Nothing in the model can be quantized. "
                f"Received: model={graph.name!r} with layers "
                f"{[str(entry) for entry in plan.report]}"
            )
        norms = [
            entry.path
            for entry in plan.report
            if entry.kind == "BatchNormalization" and entry.treatment == "fused"
        ]
        if norms and not self.per_channel:
            raise TfoptError(
                "With one scale per weight, a layer cannot absorb the factors of the "
                "BatchNormalization behind it, which differ by channel. Use "
                f"per_channel=True. Received: per_channel=False with {norms}"
            )
        if left and self.strict:
            raise TfoptError(
                "Layers cannot be quantized, and `strict` forbids to leave them "
                f"float: {[str(entry) for entry in left]}. Exclude them, or set "
                f"strict=False. Received: model={graph.name!r}"
            )
        for entry in left:
            _log.warning("QuantizeAware leaves a layer float: %s", entry)


def _made(graph: Graph) -> Any:
    try:
        return to_model(graph)
    except RecursionError as error:
        raise TfoptError(
            "Keras cannot hold a chain of so many layers. Expected fewer time steps, "
            "or fewer recurrent layers behind each other, as they are unrolled. "
            f"Received: model={graph.name!r} with {len(graph.calls)} calls"
        ) from error
