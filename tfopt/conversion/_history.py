"""What tfopt notes inside a `.tflite` file about how it was made."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

NAME = "tfopt"


def metadata(
    signature_keys: Sequence[str], options: Mapping[str, Any]
) -> dict[str, bytes]:
    """Returns the metadata entry of a file: short JSON, the same for the same options.

    Args:
        signature_keys: Keys of the file's signatures.
        options: What was asked for; what is off or not given is left out.

    Example:
        >>> metadata(["serving_default"], {"quantization": "int8", "sparse": False})
        {'tfopt': b'{"history":[{"operation":"convert","quantization":"int8"}],...
    """
    done = {name: value for name, value in options.items() if value}
    content = {
        "version": sys.modules["tfopt"].__version__,
        "signatures": list(signature_keys),
        "history": [{"operation": "convert", **done}],
    }
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return {NAME: text.encode()}
