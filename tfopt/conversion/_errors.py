"""One readable line out of what the TFLite converter says when it fails."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

_SHOWN = 3
# "%4 = "tf.BiasAdd"(%3, %0) <{...}> : (tensor<?x6x6x4xf16>, ...) -> tensor<...>"
_OPERANDS = re.compile(r"see current operation: [^\n]*? : \((?P<types>[^)]*)\) -> ")
_NO_KERNEL = re.compile(r"'(?P<op>tf\.\w+)' op is neither a custom op nor a flex op")
# Consequences of another error that is reported as well.
_CONSEQUENCE = re.compile(r"failed to legalize|Lowering tensor list ops is failed")
_SUMMARY = re.compile(r"failed while converting|Could not translate MLIR")
# Calls that freezing has inlined.
_CALLS = re.compile(r"((Stateful)?PartitionedCall(_\d+)?/)+")
_LONGEST = 500
_ANSI = re.compile(r"\x1b\[\d+m")
_KERAS_REPORT = re.compile(
    r"Exception encountered when calling .*?\n\n|\n\nArguments received by .*",
    re.DOTALL,
)
_ADVICE = (
    (
        re.compile(r"xf16|xbf16"),
        "The model computes in half precision; convert a float32 copy of it (same "
        "weights, dtype policy 'float32')",
    ),
    (
        re.compile(r"element_shape to be static|TensorListReserve"),
        "Recurrent layers need a fixed batch size (`Input(batch_size=1)`) or "
        "`unroll=True`",
    ),
    (
        re.compile(r"FakeQuantWithMinMaxVarsPerChannel|mismatched quantized axes"),
        "Fake quantization of weights per channel must be baked into the weights "
        "first: convert the result of `tfopt.finalize`",
    ),
    (
        _NO_KERNEL,
        "TFLite has no kernel for it. Replace it by other operations (files with "
        "TensorFlow's own kernels inside cannot run in Python)",
    ),
    (
        re.compile(r"[Qq]uantization not yet supported|not yet supported"),
        "Keep such operators in float with `allow_float_fallback=True`",
    ),
)


def explain(error: BaseException) -> str:
    r"""Returns the reason of a failed conversion in one line, with advice if any.

    Args:
        error: What `TFLiteConverter.convert` raised.

    Example:
        >>> explain(RuntimeError("tflite/x.cc:1 failed.\nstack ..."))
        'tflite/x.cc:1 failed'
    """
    text = str(error)
    reasons = list(dict.fromkeys(_reasons(error))) or [_first_line(text)]
    more = f" and {len(reasons) - _SHOWN} more" if len(reasons) > _SHOWN else ""
    line = "; ".join(reasons[:_SHOWN]) + more
    for pattern, advice in _ADVICE:
        if pattern.search(line):
            return f"{line}. {advice}"
    return line


def condense(error: BaseException) -> str:
    """Returns the message of any error as one line of at most 500 characters.

    Of an error that AutoGraph or Keras wrapped in a report, the message alone.
    """
    text = _ANSI.sub("", str(error)).strip()
    if text.startswith("in user code:"):
        text = text.splitlines()[-1]
    text = _KERAS_REPORT.sub("", text)
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST else line[: _LONGEST - 3] + "..."


def _reasons(error: Any) -> Iterator[str]:
    """Reasons from the structured diagnostics that a ConverterError carries."""
    diagnostics = list(getattr(error, "errors", ()))
    causes = [
        item
        for item in diagnostics
        if not _CONSEQUENCE.search(item.error_message)
        and not _SUMMARY.search(item.error_message)
    ]
    for item in causes or diagnostics:
        message = _first_line(item.error_message)
        missing = _NO_KERNEL.search(message)
        operands = _OPERANDS.search(item.error_message)
        if missing and operands:
            message += f" on ({operands['types']})"
        names = [call.name for call in item.location.call if call.name]
        yield f"{message} at {_CALLS.sub('', names[0])!r}" if names else message


def _first_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return (lines[0] if lines else "no reason given").rstrip(".: ") + (
        "." if len(lines) == 1 and lines[0].endswith(".") else ""
    )
