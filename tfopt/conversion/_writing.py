"""Writes the content of a file: the converter's own way, or in steps that refine it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

from tfopt import tflite_file
from tfopt.conversion import (
    _bias_correction,
    _equalization,
    _freezing,
    _int4,
    _lowering,
    _operators,
    _samples,
    _selective,
)
from tfopt.conversion._isolation import Isolated, Local
from tfopt.conversion._operators import LayerOperator
from tfopt.conversion._samples import Batch
from tfopt.conversion._sources import Source

# Bias correction runs the model once per layer.
_CORRECTION_EXAMPLES = 128
_CORRECTION_BATCH = 16


@dataclasses.dataclass(frozen=True)
class Written:
    """The content of a file and what was done for it.

    Attributes:
        content: With the model's own names of inputs and outputs.
        kept: Operators of it that stay float by request.
        report: `"kept_float"`, `"equalization"`, `"bias_correction"`: JSON, or `None`.
    """

    content: bytes
    kept: frozenset[int]
    report: dict[str, Any]


class Writer:
    """Writes one model as often as it is asked, and calibrates it once.

    Args:
        frozen: The frozen function.
        source: The model.
        calibration: Batches for int8.
        strip_debug_info: Whether to leave out names.
        lowering: What calls the converter.
        metadata: Entries to put into the file.
    """

    def __init__(
        self,
        frozen: Any,
        source: Source,
        calibration: Sequence[Batch],
        strip_debug_info: bool,
        lowering: Local | Isolated | None = None,
        metadata: Mapping[str, bytes] | None = None,
    ):
        self._frozen = frozen
        self._source = source
        self._calibration = calibration
        self._strip = strip_debug_info
        self._lowering = lowering or Local()
        self._metadata = metadata

    def write(self, options: _lowering.Options) -> Written:
        """Converts.

        Raises:
            ValueError: A pattern of `keep_float` matches nothing.
            ConversionError: The converter refuses the model.
        """
        report: dict[str, Any] = dict.fromkeys(
            ("kept_float", "equalization", "bias_correction")
        )
        kept: list[LayerOperator] = []
        if options.quantization == "int4":
            content, kept = self._int4(options, report)
        elif not options.is_refined:
            content = self._plain(options)
        elif options.quantization in ("dynamic", "float16"):
            content, kept = self._selective(options, report)
        else:
            content, kept = self._int8(options, report)
        if _freezing.trained_scheme(self._frozen) == "int4":
            content = tflite_file.pack_int4(content)
        return Written(
            content=self.named(content),
            kept=_positions(content, kept),
            report=report,
        )

    @functools.cached_property
    def calibrated(self) -> bytes:
        """The float file with the range of each tensor, for int8."""
        options = _lowering.Options("int8", "float32", "float32", allow_float=True)
        return self._lowering.calibrate(self._frozen, options, self._calibration)

    def operators(self, content: bytes) -> list[LayerOperator]:
        """Returns the operators of a float file under the names of their layers."""
        return _operators.listed(content, self._frozen, self._source.layers)

    def named(self, content: bytes) -> bytes:
        """Names inputs and outputs as the model does."""
        return tflite_file.rewrite(
            content,
            signature_key=self._source.signature_key,
            input_names=self._source.input_names,
            output_names=self._source.output_names,
            strip_debug_info=self._strip,
            metadata=self._metadata,
        )

    def _plain(self, options: _lowering.Options) -> bytes:
        frozen = self._frozen
        if options.quantization == "int16x8" and _freezing.has_fake_quant(frozen):
            # The converter knows no fake quantization of 16 bits. It finds the scales
            # of the weights again; its ranges of activations come from the samples.
            frozen = _freezing.without_fake_quant(frozen)
        return self._lowering.lower(frozen, options, self._calibration)

    def _selective(
        self, options: _lowering.Options, report: dict[str, Any]
    ) -> tuple[bytes, list[LayerOperator]]:
        plain = self._lowering.lower(
            self._frozen, dataclasses.replace(options, quantization="none")
        )
        kept = self._kept(plain, options, report)
        smaller = self._lowering.lower(self._frozen, options)
        return _selective.restore(smaller, plain, kept), kept

    def _int4(
        self, options: _lowering.Options, report: dict[str, Any]
    ) -> tuple[bytes, list[LayerOperator]]:
        plain = self._lowering.lower(
            self._frozen, dataclasses.replace(options, quantization="none")
        )
        kept = self._kept(plain, options, report)
        wide: list[LayerOperator] = []
        if options.keep_int8:
            operators = self.operators(plain)
            wide = _operators.select(operators, options.keep_int8, argument="keep_int8")
            report["kept_int8"] = _operators.share(wide, operators)
        return _int4.quantize(plain, kept=kept, wide=wide), kept

    def _int8(
        self, options: _lowering.Options, report: dict[str, Any]
    ) -> tuple[bytes, list[LayerOperator]]:
        floats = self.calibrated
        kept = self._kept(floats, options, report)
        if options.equalize:
            equalized, report["equalization"] = _equalization.equalize(
                floats, self.operators(floats)
            )
            floats = self._lowering.recalibrate(equalized, self._calibration)
        names = {name for operator in kept for name in operator.tensors}
        content = self._lowering.quantize(floats, options, names)
        if options.correct_bias:
            content, report["bias_correction"] = _bias_correction.correct(
                floats, content, self.operators(floats), self._correction_batches()
            )
        return content, kept

    def _correction_batches(self) -> Sequence[Batch]:
        """Calibration examples, several at a time where the model takes them."""
        size = _CORRECTION_BATCH if _samples.is_batch_free(self._source.specs) else 1
        samples = _samples.Samples(tuple(self._calibration), "representative")
        return samples.merged(_CORRECTION_EXAMPLES, size)

    def _kept(
        self, content: bytes, options: _lowering.Options, report: dict[str, Any]
    ) -> list[LayerOperator]:
        if not options.keep_float:
            return []
        operators = self.operators(content)
        kept = _operators.select(operators, options.keep_float, argument="keep_float")
        report["kept_float"] = _operators.share(kept, operators)
        return kept


def _positions(content: bytes, kept: Sequence[LayerOperator]) -> frozenset[int]:
    """Finds the operators of a quantized file that operators of the float one became.

    Names are compared here, as an application's file may have none.
    """
    names = {name for operator in kept for name in operator.tensors}
    graph = tflite_file.read(content).subgraphs[0]
    return frozenset(
        operator.index
        for operator in graph.operators
        if operator.name not in ("QUANTIZE", "DEQUANTIZE")
        and any(
            _operators.is_named(graph.tensors[index].name, names)
            for index in operator.outputs
        )
    )
