"""Quantization-aware training: the model learns with int8 rounding in place."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Literal

from tfopt import _keras
from tfopt._keras import fake_quantize
from tfopt._keras.flatten import Graph, flatten, to_model
from tfopt.methods._base import Method
from tfopt.methods.quantize_aware import _rewrite
from tfopt.methods.quantize_aware._calibration import calibrate
from tfopt.methods.quantize_aware._canonical import canonicalize
from tfopt.methods.quantize_aware._placement import Plan, make_plan
from tfopt.types import TfoptError

_log = logging.getLogger(__name__)

# Makes saved models load with Keras's own `load_model` too.
fake_quantize.classes(_keras.preferred())


class QuantizeAware(Method):
    """Trains a model with the rounding that int8 inference will have.

    `prepare` returns a new model in which weights and activations are rounded to
    their int8 grids in the forward pass, while the gradient passes straight through
    and the variables stay float. `finalize` returns a plain model with the rounded
    weights, whose activations have fixed ranges; `tfopt.convert(model,
    quantization="int8")` turns that into a `.tflite` file that computes the same,
    without a representative dataset.

    Weights are symmetric, with zero kept exactly (so pruned weights stay pruned), and
    activations asymmetric int8. BatchNormalization and ReLU behind a layer fuse into
    it, as they will in LiteRT: BatchNormalization trains as usual, because per-channel
    weight scales absorb its factors exactly.

    Ranges of activations follow the training batches: the first batch's range is
    taken at once, and until then activations pass through unquantized. With a
    `representative_dataset` they are known before the first step.

    Args:
        weight_bits: From 2 to 8. With fewer than 8, they take `2**weight_bits - 1`
            values out of the int8 grid. They are stored as int8 and run by the same
            int8 kernels: the file is no smaller and no faster, but it compresses
            better (gzip, or an application package).
        activation_bits: Only 8: LiteRT has no kernels for fewer.
        per_channel: Whether each output channel of a weight has a scale of its own.
            One scale per weight is for accelerators that need it; a layer followed
            by BatchNormalization cannot have that.
        range_tracking: `"ema"`: the range is a moving average of those of the
            batches, for outputs of the model and inputs of softmax one that widens
            at once. `"minmax"`: it only widens.
        ema_decay: Weight of the past in the moving average, per step.
        include: Globs for names of layers such as `"encoder/conv*"`, or for leading
            parts of them such as `"encoder"`; only what matches is quantized. What
            fuses into a layer follows it. `None`: everything.
        exclude: Globs of the layers that stay float, also in the `.tflite`.
        representative_dataset: Typical inputs, which `prepare` runs to find ranges: an
            array of examples [n, ...]; or an iterable, or a function that returns
            one, of examples or batches, each an array, a tuple in the order of the
            inputs, or a dictionary by input name.
        calibration_examples: At most about so many examples are taken from it, so it
            may be endless.
        strict: Whether a layer that cannot be quantized is an error. Otherwise it
            stays float and is listed in `report` and in a log message.

    Attributes:
        report: After `prepare`: one dictionary per layer with its `name` and `path`
            (the names of the models it is in, and its own), its `kind`, its
            `treatment` and, for float layers, the `reason`. Treatments are `"int8"`,
            `"fused"` (into the layer before), `"same_scale"` (moves quantized
            values), `"identity"` (gone in inference) and `"float"`.

    Raises:
        ValueError: An argument is out of range.

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
        weight_bits: int = 8,
        activation_bits: int = 8,
        per_channel: bool = True,
        range_tracking: Literal["ema", "minmax"] = "ema",
        ema_decay: float = 0.99,
        include: str | Sequence[str] | None = None,
        exclude: str | Sequence[str] | None = None,
        representative_dataset: Any = None,
        calibration_examples: int = 256,
        strict: bool = False,
    ) -> None:
        super().__init__()
        self.weight_bits = weight_bits
        self.activation_bits = activation_bits
        self.per_channel = per_channel
        self.range_tracking = range_tracking
        self.ema_decay = ema_decay
        self.include = include
        self.exclude = exclude
        self.representative_dataset = representative_dataset
        self.calibration_examples = calibration_examples
        self.strict = strict
        self.report: list[dict[str, Any]] = []
        self._check_arguments()

    def prepare(self, model: Any) -> Any:
        """Returns a copy of a model that trains with int8 rounding.

        Args:
            model: Built Sequential or Functional model of Keras 3 (on TensorFlow) or
                tf_keras; models nested in it are inlined. It is not changed.

        Returns:
            Functional model of the same Keras, uncompiled, with the same inputs,
            outputs and weights. Layers keep their names (those of nested models that
            clash become `outer_inner`); variables keep theirs.

        Raises:
            ValueError: A pattern of `include` or `exclude` matches no layer.
            TfoptError: The model is subclassed, prepared already, has nothing that
                can be quantized, or, with `strict`, something that cannot.
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
            include=_patterns(self.include),
            exclude=_patterns(self.exclude) or (),
        )
        self.report = [entry.as_dict() for entry in plan.report]
        self._check_plan(graph, plan)
        _rewrite.insert_fake_quantization(
            graph,
            plan,
            weight_bits=self.weight_bits,
            per_channel=self.per_channel,
            range_tracking=self.range_tracking,
            ema_decay=self.ema_decay,
        )
        prepared = to_model(graph)
        if self.representative_dataset is not None:
            calibrate(
                prepared,
                self.representative_dataset,
                max_examples=self.calibration_examples,
            )
        return prepared

    def finalize(self, model: Any) -> Any:
        """Returns the plain model that int8 inference will compute.

        Args:
            model: What `prepare` returned, trained; also one saved and reloaded.

        Returns:
            Functional model of plain float32 Keras layers with rounded weights, and
            one layer per activation that rounds to its final range.

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
        _rewrite.bake(graph)
        return to_model(graph)

    def on_train_begin(self, logs: Any = None) -> None:
        """Checks that the model in training is a prepared one.

        Raises:
            TfoptError: It isn't, so training would not be quantization-aware.
        """
        cls = fake_quantize.classes(_keras.module_of(self.model)).ActivationRange
        if not any(isinstance(layer, cls) for layer in _keras.leaf_layers(self.model)):
            raise TfoptError(
                "QuantizeAware is among the callbacks, but the model is not prepared. "
                "Train the model that `tfopt.prepare(model, methods)` returns. "
                f"Received: model={self.model.name!r}"
            )

    def _check_arguments(self) -> None:
        bits, examples = self.weight_bits, self.calibration_examples
        checks = {
            "weight_bits": (
                isinstance(bits, int) and 2 <= bits <= 8,
                "an integer from 2 to 8",
            ),
            "activation_bits": (
                self.activation_bits == 8,
                "8, as LiteRT's integer kernels take int8 activations",
            ),
            "range_tracking": (
                self.range_tracking in ("ema", "minmax"),
                "'ema' or 'minmax'",
            ),
            "ema_decay": (0 <= self.ema_decay < 1, "in [0, 1)"),
            "calibration_examples": (
                isinstance(examples, int) and examples >= 1,
                "an integer of at least 1",
            ),
        }
        for name, (is_good, expected) in checks.items():
            if not is_good:
                raise ValueError(
                    f"`{name}` must be {expected}. "
                    f"Received: {name}={getattr(self, name)!r}"
                )

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


def _patterns(patterns: str | Sequence[str] | None) -> tuple[str, ...] | None:
    if patterns is None:
        return None
    return (patterns,) if isinstance(patterns, str) else tuple(patterns)
