"""TFLite Micro: a `.tflite` model as C source, and the operators it needs.

Microcontrollers have no files: the model is compiled in, and of the interpreter only
the kernels that it uses.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import re
from collections.abc import Mapping

import numpy as np

from tfopt import artifacts, inspection, tflite_file
from tfopt.types import TfoptError

_ALIGNMENT = 16
_BYTES_PER_LINE = 12
_KEYWORDS = """
alignas alignof auto bool break case char class const constexpr continue default delete
do double else enum extern false float for goto if inline int long namespace new nullptr
operator private protected public register restrict return short signed sizeof static
struct switch template this throw true try typedef typeof union unsigned using virtual
void volatile while
"""
# Builtin operator -> the method of MicroMutableOpResolver without "Add", where it isn't
# the operator's name in camel case.
_IRREGULAR = {
    "AVERAGE_POOL_2D": "AveragePool2D",
    "BATCH_MATMUL": "BatchMatMul",
    "CONV_2D": "Conv2D",
    "CUMSUM": "CumSum",
    "DEPTHWISE_CONV_2D": "DepthwiseConv2D",
    "L2_POOL_2D": "L2Pool2D",
    "MAX_POOL_2D": "MaxPool2D",
    "PADV2": "PadV2",
    "UNIDIRECTIONAL_SEQUENCE_LSTM": "UnidirectionalSequenceLSTM",
}
# The operators that TFLite Micro has kernels for.
_REGULAR = frozenset(
    {
        *("ABS", "ADD", "ADD_N", "ARG_MAX", "ARG_MIN", "ASSIGN_VARIABLE"),
        *("BATCH_TO_SPACE_ND", "BROADCAST_ARGS", "BROADCAST_TO", "CALL_ONCE", "CAST"),
        *("CEIL", "CONCATENATION", "COS", "DEPTH_TO_SPACE", "DEQUANTIZE", "DIV"),
        *("DYNAMIC_UPDATE_SLICE", "ELU", "EMBEDDING_LOOKUP", "EQUAL", "EXP"),
        *("EXPAND_DIMS", "FILL", "FLOOR", "FLOOR_DIV", "FLOOR_MOD"),
        *("FULLY_CONNECTED", "GATHER", "GATHER_ND", "GREATER", "GREATER_EQUAL"),
        *("HARD_SWISH", "IF", "L2_NORMALIZATION", "LEAKY_RELU", "LESS", "LESS_EQUAL"),
        *("LOG", "LOGICAL_AND", "LOGICAL_NOT", "LOGICAL_OR", "LOGISTIC"),
        *("LOG_SOFTMAX", "MAXIMUM", "MEAN", "MINIMUM", "MIRROR_PAD", "MUL", "NEG"),
        *("NOT_EQUAL", "PACK", "PAD", "PRELU", "QUANTIZE", "READ_VARIABLE"),
        *("REDUCE_MAX", "REDUCE_MIN", "RELU", "RELU6", "RESHAPE", "RESIZE_BILINEAR"),
        *("RESIZE_NEAREST_NEIGHBOR", "REVERSE_V2", "ROUND", "RSQRT", "SELECT_V2"),
        *("SHAPE", "SIN", "SLICE", "SOFTMAX", "SPACE_TO_BATCH_ND", "SPACE_TO_DEPTH"),
        *("SPLIT", "SPLIT_V", "SQRT", "SQUARE", "SQUARED_DIFFERENCE", "SQUEEZE"),
        *("STRIDED_SLICE", "SUB", "SUM", "SVDF", "TANH", "TRANSPOSE"),
        *("TRANSPOSE_CONV", "UNPACK", "VAR_HANDLE", "WHILE", "ZEROS_LIKE"),
    }
)


@dataclasses.dataclass(frozen=True)
class CSource:
    """A model as C source.

    Attributes:
        name: The array's name; its length is `<name>_len`.
        source: Content of the `.c` file (which is C++ too).
        header: Content of the `.h` file.
    """

    name: str
    source: str = dataclasses.field(repr=False)
    header: str = dataclasses.field(repr=False)

    def source_beside(self, header: str) -> str:
        """Returns the source as a file that includes its header, by file name."""
        return f'#include "{header}"\n\n{self.source}'

    def write(self, path: str | os.PathLike[str]) -> tuple[str, str]:
        """Writes the source to `path` and the header beside it.

        Args:
            path: A path that ends in `.c`, `.cc` or `.cpp`.

        Returns:
            Paths of the source and of the header.

        Raises:
            ValueError: Another suffix.
            TfoptError: A file cannot be written.
        """
        target = pathlib.Path(path)
        if target.suffix not in (".c", ".cc", ".cpp"):
            raise ValueError(
                "Expected a file name that ends in .c, .cc or .cpp. "
                f"Received: path={os.fspath(path)!r}"
            )
        header = target.with_suffix(".h")
        source = self.source_beside(header.name)
        artifacts.write_files(
            {str(header): self.header.encode(), str(target): source.encode()}
        )
        return str(target), str(header)


def c_array(content: bytes, *, name: str = "model") -> CSource:
    """Returns a `.tflite` model as a constant array of C, aligned as TFLite wants it.

    The array is `const`, so that it stays in flash memory.

    Args:
        content: The `.tflite` file.
        name: The array's name, a C identifier.

    Returns:
        Source and header, for C from C99 on and C++ from C++11 on. The same content
        and name give the same text.

    Raises:
        ValueError: `name` is no identifier.
        TfoptError: The content is no `.tflite` file.

    Example:
        >>> with open("model.tflite", "rb") as file:
        ...     content = file.read()
        >>> print(c_array(content, name="digits").header.splitlines()[-8])
        extern const unsigned char digits[];
    """
    _check_identifier(name)
    tflite_file.read(content)  # raises if it is none
    guard = f"{name.upper()}_H_"
    header = f"""\
/* A TFLite model of {len(content)} bytes. Generated: do not edit. */
#ifndef {guard}
#define {guard}

#ifdef __cplusplus
extern "C" {{
#endif

extern const unsigned char {name}[];
extern const unsigned int {name}_len;

#ifdef __cplusplus
}}
#endif

#endif /* {guard} */
"""
    source = f"""\
#if defined(__cplusplus)
#define TFOPT_ALIGNED alignas({_ALIGNMENT})
#elif defined(__STDC_VERSION__) && __STDC_VERSION__ >= 201112L
#define TFOPT_ALIGNED _Alignas({_ALIGNMENT})
#elif defined(_MSC_VER)
#define TFOPT_ALIGNED __declspec(align({_ALIGNMENT}))
#else
#define TFOPT_ALIGNED __attribute__((aligned({_ALIGNMENT})))
#endif

TFOPT_ALIGNED const unsigned char {name}[] = {{
{_lines(content)}
}};
const unsigned int {name}_len = {len(content)};
"""
    return CSource(name, source, header)


def operators(content: bytes) -> Mapping[str, Mapping[str, int]]:
    """Returns which operators a `.tflite` file needs, with the types they compute in.

    Args:
        content: The `.tflite` file.

    Returns:
        Operator -> type -> how often, both in alphabetical order; `""` is the type of
        operators that only move values.

    Raises:
        TfoptError: The content is no `.tflite` file.

    Example:
        >>> with open("model.tflite", "rb") as file:
        ...     operators(file.read())["FULLY_CONNECTED"]
        {'float32': 1}
    """
    found: dict[str, dict[str, int]] = {}
    for subgraph in tflite_file.read(content).subgraphs:
        for operator in subgraph.operators:
            kinds = found.setdefault(operator.name, {})
            kind = inspection.arithmetic(operator, subgraph)
            kinds[kind] = kinds.get(kind, 0) + 1
    return {name: dict(sorted(found[name].items())) for name in sorted(found)}


def op_resolver(content: bytes, *, name: str = "model") -> str:
    """Returns the C++ code of the smallest op resolver that runs a model.

    Args:
        content: The `.tflite` file.
        name: Prefix of the names it defines: the type `<name>_OpResolver`, the
            function `<name>_register_ops`, and the constant `<name>_arena_estimate`,
            the bytes for activations to which the kernels' own buffers and the
            interpreter's structures come on top.

    Returns:
        A header of C++.

    Raises:
        ValueError: `name` is no identifier.
        TfoptError: The content is no `.tflite` file, or TFLite Micro has no kernel for
            an operator; names them.

    Example:
        >>> with open("model.tflite", "rb") as file:
        ...     code = op_resolver(file.read())
        >>> "resolver.AddFullyConnected()" in code
        True
    """
    _check_identifier(name)
    needed = operators(content)
    known = {*_REGULAR, *_IRREGULAR}
    unknown = [operator for operator in needed if operator not in known]
    if unknown:
        raise TfoptError(
            "TFLite Micro has no kernels for some operators of the model. Expected "
            "builtin operators that it knows; custom ones are registered by hand with "
            f"AddCustom. Received: {unknown}"
        )
    calls = "\n".join(
        f"  if (resolver.Add{_method(operator)}() != kTfLiteOk) return kTfLiteError;"
        for operator in needed
    )
    arena = inspection.inspect(content).arena_bytes
    return f"""\
// The operators of a TFLite model for TFLite Micro. Generated: do not edit.
#pragma once

#include "tensorflow/lite/micro/micro_mutable_op_resolver.h"

using {name}_OpResolver = tflite::MicroMutableOpResolver<{len(needed)}>;

constexpr unsigned int {name}_arena_estimate = {arena};

inline TfLiteStatus {name}_register_ops({name}_OpResolver& resolver) {{
{calls}
  return kTfLiteOk;
}}
"""


def _check_identifier(name: str) -> None:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) or name in _KEYWORDS.split():
        raise ValueError(
            "`name` must be an identifier of C and C++, such as 'g_model'. "
            f"Received: name={name!r}"
        )


def _method(operator: str) -> str:
    if operator in _IRREGULAR:
        return _IRREGULAR[operator]
    return "".join(word.capitalize() for word in operator.split("_"))


def _lines(content: bytes) -> str:
    """Returns bytes as comma-separated hexadecimal numbers, at 5 characters each."""
    cells = np.array([f"0x{value:02x}," for value in range(256)], "S5")
    data = np.frombuffer(content, np.uint8)
    whole = len(data) // _BYTES_PER_LINE * _BYTES_PER_LINE
    rows = cells[data[:whole].reshape(-1, _BYTES_PER_LINE)]
    width = 5 * _BYTES_PER_LINE
    text = rows.tobytes().decode()
    lines = [text[start : start + width] for start in range(0, len(text), width)]
    if whole < len(data):
        lines.append(cells[data[whole:]].tobytes().decode())
    return "\n".join(f"  {line}" for line in lines)
