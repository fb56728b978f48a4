"""Weights of 4 bits after training, by Google's quantizer (`litert-quantizer`)."""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Sequence
from typing import Any

from tfopt.conversion import _errors
from tfopt.conversion._operators import LayerOperator
from tfopt.types import ConversionError

_PACKAGE = "litert_quantizer"  # the extra [litert-quantizer]


def check_installed() -> None:
    """Raises unless the quantizer is there.

    Raises:
        ConversionError: It isn't; says how to install it.
    """
    if importlib.util.find_spec(_PACKAGE) is None:
        raise ConversionError(
            'quantization="int4" needs Google\'s quantizer, which is not installed. '
            'Expected: pip install "tfopt[litert-quantizer]"; or use "dynamic" or '
            '"int8". Received: no module litert_quantizer'
        )


def quantize(
    plain: bytes, *, kept: Sequence[LayerOperator], wide: Sequence[LayerOperator]
) -> bytes:
    """Quantizes weights to 4 bits, with a scale per channel.

    Activations stay float between operators; kernels quantize them while they run.

    Args:
        plain: The float file as the converter wrote it.
        kept: Operators whose weights stay float.
        wide: Operators whose weights get 8 bits.

    Raises:
        ConversionError: The quantizer refuses the model.
    """
    quantizer, managers = (
        importlib.import_module(f"{_PACKAGE}.{name}")
        for name in ("quantizer", "algorithm_manager")
    )
    everything: Any = importlib.import_module(f"{_PACKAGE}.qtyping").TFLOperationName(
        "*"
    )
    try:
        work = quantizer.Quantizer(plain)
        work.add_dynamic_config(".*", everything, 4)
        if wide:
            work.add_dynamic_config(_scope(wide), everything, 8)
        if kept:
            work.update_quantization_recipe(
                _scope(kept),
                everything,
                algorithm_key=managers.AlgorithmName.NO_QUANTIZE,
            )
        result = work.quantize(enable_progress_bar=False, enable_progress_report=False)
    except Exception as error:
        raise ConversionError(
            "Google's quantizer refuses the model (quantization='int4'): "
            f"{_errors.condense(error)}"
        ) from error
    return bytes(result.quantized_model)


def _scope(operators: Sequence[LayerOperator]) -> str:
    """A regular expression for operators; the quantizer searches in their outputs."""
    names = {name for operator in operators for name in operator.tensors}
    return "|".join(f"(?:^|;){re.escape(name)}(?:$|;)" for name in sorted(names))
