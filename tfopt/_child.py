"""Calling a function in a process of its own, on tf_keras.

Importing TFMOT switches a process to tf_keras for good, so what needs it runs in a
child. Arguments and result are JSON; logs and progress go to the same stderr.
"""

from __future__ import annotations

import importlib
import json
import logging
import sys
from collections.abc import Mapping
from typing import Any

import absl.logging

from tfopt import _processes, _trust, artifacts
from tfopt.types import TfoptError, UsageError, VerificationError

_ERRORS = {cls.__name__: cls for cls in (TfoptError, UsageError, VerificationError)}


def call(target: str, arguments: Mapping[str, Any]) -> Any:
    """Calls a function in a child process in which `tf.keras` is tf_keras.

    Args:
        target: `"module:function"`.
        arguments: Its keyword arguments, JSON-able.

    Returns:
        What it returns, as `artifacts.to_json` writes it and JSON reads it.

    Raises:
        TfoptError: The function raised it, or the child died.
        ValueError: The function raised it.
    """
    given = {
        "target": target,
        "path": sys.path,
        "arguments": arguments,
        "trusted": _trust.is_trusted(),
    }
    try:
        content = _processes.ask(
            "tfopt._child",
            json.loads(artifacts.to_json(given)),
            settings={"TF_USE_LEGACY_KERAS": "1"},
            is_quiet=False,
        )
    except _processes.Death as death:
        raise TfoptError(
            "The child process with tf_keras failed; its messages stand above. "
            f"Received: {death} of {target}"
        ) from None
    if "error" in content:
        raise _ERRORS.get(content["error"], ValueError)(content["message"])
    return content["result"]


def _run(given: Mapping[str, Any]) -> Any:
    """Runs in the child: calls the function."""
    sys.path[:] = given["path"]
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("tfopt").setLevel(logging.INFO)
    absl.logging.set_verbosity(absl.logging.ERROR)  # Keras's remarks
    module, _, name = given["target"].partition(":")
    content: dict[str, Any]
    try:
        function = getattr(importlib.import_module(module), name)
        with _trust.scope(safe_mode=not given["trusted"]):
            content = {"result": function(**given["arguments"])}
    except (TfoptError, ValueError, OSError) as error:
        content = {"error": type(error).__name__, "message": str(error)}
    return json.loads(artifacts.to_json(content))


if __name__ == "__main__":
    _processes.answer(_run)
