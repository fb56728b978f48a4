"""Measures how outputs suffer when layers are quantized: one by one, all but one, all.

One trace, one freezing and one calibration serve all measurements; each then costs one
pass of the converter's quantizer over the float file (0.3 s for MobileNetV2) and one
run in LiteRT: real integer kernels and no simulation.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tfopt import _progress, tflite_file
from tfopt._keras import variables
from tfopt.conversion import (
    _checking,
    _freezing,
    _lowering,
    _noise,
    _operators,
    _samples,
    _sources,
    _verification,
    _writing,
)
from tfopt.conversion._operators import LayerOperator
from tfopt.quantization import _data, _ranges, _result, _variants
from tfopt.quantization._result import Layer, QuantizationSensitivity, Score
from tfopt.quantization._scores import ScoreFile
from tfopt.report import Metric, find_metric
from tfopt.types import VerificationError

_LOGGER = logging.getLogger(__name__)
METHODS = _variants.METHODS
MODES = ("alone", "restored", "both", "whole")
_BATCH = 32


def measure(
    model: Any,
    data: Any,
    *,
    methods: str | Sequence[str],
    metric: str | Callable[[Any, Any], float] | None = None,
    higher_is_better: bool | None = None,
    mode: str = "alone",
    include: variables.Patterns = None,
    exclude: variables.Patterns = None,
    examples: int = 512,
    calibration_examples: int = 256,
    signature_key: str | None = None,
    cache: str | os.PathLike[str] | None = None,
) -> QuantizationSensitivity:
    """Measures; `tfopt.sensitivity` describes the arguments.

    Raises:
        ValueError: An argument is wrong, or nothing is left to measure.
        ConversionError: The model cannot be converted.
    """
    wanted = _checked_methods(methods)
    if mode not in MODES:
        raise ValueError(f"Expected one of {MODES}. Received: mode={mode!r}")
    subject = _Subject(
        model,
        data,
        metric=metric,
        examples=examples,
        calibration_examples=calibration_examples,
        signature_key=signature_key,
        cache=cache,
    )
    layers = subject.chosen(include, exclude)
    with _noise.contained(), subject.scores:
        whole = {name: subject.score(name, "whole", "") for name in wanted}
        measured: dict[str, dict[str, dict[str, Score]]] = {}
        for kind in ("alone", "restored"):
            measured[kind] = {
                name: {
                    layer: subject.score(name, kind, layer)
                    for layer in _progress.each(layers, f"{name} {kind}: layers")
                    if mode in (kind, "both")
                    and _variants.has_effect(name, subject.groups[layer])
                }
                for name in wanted
            }
        described = {layer: subject.described(layer) for layer in layers}
    name = subject.metric_name
    if higher_is_better is None:
        higher_is_better = subject.higher_is_better
    return QuantizationSensitivity(
        metric=name or None,
        higher_is_better=higher_is_better,
        baseline=subject.baseline,
        layers=described,
        whole=whole,
        alone=measured["alone"],
        restored=measured["restored"],
    )


class _Subject:
    """A model with its data, ready to be quantized in any part."""

    def __init__(
        self,
        model: Any,
        data: Any,
        *,
        metric: str | Callable[[Any, Any], float] | None,
        examples: int,
        calibration_examples: int,
        signature_key: str | None,
        cache: str | os.PathLike[str] | None,
    ):
        for name, value in (
            ("examples", examples),
            ("calibration_examples", calibration_examples),
        ):
            if value < 1:
                raise ValueError(f"Expected 1 or more. Received: {name}={value}")
        source = _sources.open_source(model, signature_key)
        with _noise.contained():
            frozen = _freezing.freeze(source.function)
        if _freezing.has_fake_quant(frozen):
            raise ValueError(
                "The model holds fake quantization: it was trained for int8. Give it "
                "as it was before. Received: a model with fake quantization"
            )
        inputs, labels = _data.split(data, len(source.specs), limit=examples)
        samples = _samples.representative(inputs, source.specs, limit=examples)
        calibration = samples.batches[:calibration_examples]
        with _noise.contained():
            _checking.check_quantization(_variants.OPTIONS, frozen, samples)
            self._writer = _writing.Writer(frozen, source, calibration, False)
            self._calibrated = self._writer.calibrated
        self._frozen = frozen
        self._samples = samples
        self._operators = self._writer.operators(self._calibrated)
        size = _BATCH if _samples.is_batch_free(source.specs) else 1
        self._batches = samples.merged(len(samples.batches), size)
        self._expected = [source.run(batch) for batch in self._batches]
        self._labels = labels
        self._metric = _metric(metric, labels)
        self.metric_name = "" if self._metric is None else self._metric.name
        better = "" if self._metric is None else self._metric.better
        lowers = ("loss", "error")  # in names of functions
        self.higher_is_better = better == "higher" or (
            not better and not any(word in self.metric_name for word in lowers)
        )
        self.baseline = self._measured(self._expected)
        self.groups = _groups(self._operators)
        self.scores = ScoreFile(cache, self._fingerprint(source))

    def chosen(
        self, include: variables.Patterns, exclude: variables.Patterns
    ) -> list[str]:
        """Names of the layers to measure.

        Raises:
            ValueError: A pattern matches nothing, or nothing is left.
        """
        wanted = self._operators
        if include is not None:
            wanted = _operators.select(wanted, include, argument="include")
        unwanted = _operators.select(self._operators, exclude, argument="exclude")
        names = {x.layer for x in wanted} - {x.layer for x in unwanted}
        effective = [
            name
            for name, group in self.groups.items()
            if name in names and any(x.kind not in _variants.VIEWS for x in group)
        ]
        if not effective:
            raise ValueError(
                "No layer is left to measure. "
                f"Received: include={include!r}, exclude={exclude!r}"
            )
        return effective

    def score(self, method: str, kind: str, layer: str) -> Score:
        """Returns a score, measured now or before.

        Args:
            method: How to quantize.
            kind: `"alone"`, `"restored"` (all but this layer) or `"whole"`.
            layer: The layer; `""` for the whole.
        """
        return self.scores.get(
            f"{method}/{kind}/{layer}", lambda: self._score(method, kind, layer)
        )

    def described(self, layer: str) -> Layer:
        """Returns what a layer takes in float, and what numbers it has."""
        group = self.groups[layer]
        macs = [operator.macs for operator in group]
        return Layer(
            operators=tuple(dict.fromkeys(operator.kind for operator in group)),
            macs=None if None in macs else sum(count or 0 for count in macs),
            constant_bytes=sum(operator.constant_bytes for operator in group),
            constants=self._constants[layer],
            outputs=self._outputs.get(layer),
        )

    @functools.cached_property
    def _constants(self) -> dict[str, dict[str, _result.Constant]]:
        return _ranges.constants(self._calibrated, self.groups)

    @functools.cached_property
    def _outputs(self) -> dict[str, _result.Range]:
        return _ranges.outputs(self._calibrated, self.groups, self._samples)

    @functools.cached_property
    def _dynamic(self) -> bytes:
        return _lowering.lower(self._frozen, _variants.DYNAMIC)

    def _score(self, method: str, kind: str, layer: str) -> Score:
        everything = {operator.index for operator in self._operators}
        mine = {operator.index for operator in self.groups.get(layer, ())}
        chosen = mine if kind == "alone" else everything - mine
        content = self._writer.named(
            _variants.variant(
                method,
                self._calibrated,
                self._operators,
                chosen,
                lambda: self._dynamic,
            )
        )
        signature = tflite_file.read(content).signatures[0]
        try:
            found = _verification.run(content, signature, self._batches)
        except VerificationError as error:
            # Kernels refuse scales that differ too much: this part cannot be integers.
            _LOGGER.debug("%s, %s %r cannot run: %s", method, kind, layer, error)
            return Score(_result.BROKEN_DB, None)
        ratios = [
            _verification.measure(
                [item[name] for item in self._expected],
                [item[name] for item in found],
            ).sqnr_db
            for name, value in self._expected[0].items()
            if value.dtype.kind == "f"
        ]
        if not ratios:
            raise ValueError(
                "The model has no float output to compare. "
                f"Received: outputs {list(self._expected[0])}"
            )
        if any(np.isnan(ratio) or ratio == -np.inf for ratio in ratios):
            # One layer in integers can break what follows, as zeros do a logarithm.
            return Score(_result.BROKEN_DB, None)
        return Score(_result.finite(min(ratios)), self._measured(found))

    def _measured(self, outputs: Sequence[Mapping[str, np.ndarray]]) -> float | None:
        if self._metric is None or self._labels is None:
            return None
        merged = {
            name: np.concatenate([item[name] for item in outputs])
            for name in outputs[0]
        }
        # Of several outputs, functions alone can make something.
        only: Any = next(iter(merged.values())) if len(merged) == 1 else merged
        value = float(self._metric.function(only, self._labels))
        if not np.isfinite(value):
            raise ValueError(
                "The metric must be a finite number. "
                f"Received: {self._metric.name}={value}"
            )
        return value

    def _fingerprint(self, source: _sources.Source) -> str:
        """Identifies model, data and metric: scores of others don't fit."""
        # Without names of nodes, some of which TensorFlow numbers in each process.
        content = tflite_file.rewrite(
            self._calibrated,
            signature_key=source.signature_key,
            input_names=source.input_names,
            output_names=source.output_names,
            strip_debug_info=True,
        )
        digest = hashlib.sha256(content)
        for batch in self._batches:
            for value in batch.values():
                digest.update(np.ascontiguousarray(value).tobytes())
        if self._labels is not None:
            digest.update(np.ascontiguousarray(self._labels).tobytes())
        digest.update(self.metric_name.encode())
        return digest.hexdigest()


def _metric(
    metric: str | Callable[[Any, Any], float] | None, labels: np.ndarray | None
) -> Metric | None:
    if metric is None and labels is None:
        return None
    if labels is None:
        raise ValueError(
            "A metric needs labels. Expected `data` to be `(inputs, labels)` or a "
            f"dataset of such pairs. Received: metric={metric!r}"
        )
    return find_metric("accuracy" if metric is None else metric)


def _checked_methods(methods: str | Sequence[str]) -> list[str]:
    names = [methods] if isinstance(methods, str) else list(methods)
    if not names or any(name not in METHODS for name in names):
        raise ValueError(
            f'Expected "prune", or one or several of {METHODS}. '
            f"Received: methods={methods!r}"
        )
    return list(dict.fromkeys(names))


def _groups(operators: Sequence[LayerOperator]) -> dict[str, list[LayerOperator]]:
    groups: dict[str, list[LayerOperator]] = {}
    for operator in operators:
        groups.setdefault(operator.layer, []).append(operator)
    return groups
