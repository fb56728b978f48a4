"""Reading and rewriting `.tflite` files, without TensorFlow.

`read` gives signatures, operators, tensors and constants as plain NumPy; `rewrite`
writes the same model back with a signature, or without anything that running it
doesn't need; `merge` makes one file of several.

A `.tflite` file is a flatbuffer of
https://github.com/google-ai-edge/LiteRT/blob/main/tflite/converter/schema/schema.fbs
and the generated classes of that schema ship with `ai_edge_litert`.
"""

from tfopt.tflite_file._content import (
    FloatOperator,
    Operator,
    Subgraph,
    Tensor,
    TfliteFile,
    float_operators,
    read,
)
from tfopt.tflite_file._flatbuffer import unpack
from tfopt.tflite_file._int4 import pack_int4
from tfopt.tflite_file._macs import macs
from tfopt.tflite_file._merging import merge
from tfopt.tflite_file._rewriting import check_writable, pack, rewrite

__all__ = [
    "FloatOperator",
    "Operator",
    "Subgraph",
    "Tensor",
    "TfliteFile",
    "check_writable",
    "float_operators",
    "macs",
    "merge",
    "pack",
    "pack_int4",
    "read",
    "rewrite",
    "unpack",
]
