"""One readable line out of what the TFLite converter says when it fails."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from typing import Any

from tfopt import _processes

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
_MEMORY = re.compile(
    r"bad_alloc|MemoryError|[Oo]ut of memory|Cannot allocate memory|pthread_create"
)
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
        "TFLite has no kernel for it. Replace it by other operations, or set "
        "`allow_select_tf_ops=True` for a file that runs only in applications with "
        "LiteRT's Flex delegate, and not in Python",
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


def crash(
    log: str, status: int, *, time_limit: float | None, memory_limit: int | None
) -> str:
    """Returns in one line why the converter's process ended.

    Args:
        log: What it wrote to stderr.
        status: Its exit status, as of `os.waitpid`.
        time_limit: Seconds after which it was ended, if it was.
        memory_limit: Bytes that it was allowed, `None` if there was no limit.
    """
    if time_limit is not None:
        return (
            f"did not end within {time_limit:g} seconds. Give it more by `time_limit`, "
            "or a model with fixed shapes (`input_shapes`)"
        )
    lines = [" ".join(line.split()) for line in _ANSI.sub("", log).splitlines()]
    reasons = _processes.fatal_words(log)
    code = os.waitstatus_to_exitcode(status)
    # C++ code that gets no memory often aborts without a word.
    is_silent = memory_limit is not None and code == -signal.SIGABRT and not reasons
    if is_silent or any(map(_MEMORY.search, lines)):
        return f"failed: {out_of_memory(memory_limit)}"
    how = _processes.how_it_ended(code)
    reason = f": {reasons[0]}" if reasons else ""
    return (
        f"crashed ({how}){reason}. Try fixed shapes (`input_shapes`), unrolled loops, "
        'quantization="dynamic" instead of int8, or `allow_float_fallback=True`; the '
        "graph that crashes it is worth a report to its authors"
    )


def out_of_memory(limit: int | None) -> str:
    """Says that the converter needs more memory than it has."""
    if limit is None:
        return "there is not enough memory for this model"
    return (
        f"it needs more memory than the {limit / 2**20:,.0f} MiB allowed. Give it more "
        "by `memory_limit`"
    )


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
