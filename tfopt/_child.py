"""Calling a function in a process of its own, on tf_keras.

Importing TFMOT switches a process to tf_keras for good, so what needs it runs in a
child. Arguments and result are JSON; logs and progress go to the same stderr.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import pathlib
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import absl.logging

from tfopt import artifacts
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
    environment = {**os.environ, "TF_USE_LEGACY_KERAS": "1"}
    with artifacts.temporary_folder() as folder:
        outcome = pathlib.Path(folder) / "outcome.json"
        child = subprocess.run(
            [sys.executable, "-m", "tfopt._child", target, str(outcome)],
            input=artifacts.to_json({"path": sys.path, "arguments": arguments}),
            text=True,
            env=environment,
            check=False,
        )
        if child.returncode or not outcome.exists():
            raise TfoptError(
                f"The child process with tf_keras failed; its messages stand above. "
                f"Received: exit code {child.returncode} of {target}"
            )
        content = json.loads(outcome.read_text(encoding="utf-8"))
    if "error" in content:
        raise _ERRORS.get(content["error"], ValueError)(content["message"])
    return content["result"]


def main(target: str, outcome: str) -> None:
    """Runs in the child: reads the arguments from stdin, writes the outcome."""
    given = json.loads(sys.stdin.read())
    sys.path[:] = given["path"]
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("tfopt").setLevel(logging.INFO)
    absl.logging.set_verbosity(absl.logging.ERROR)  # Keras's remarks
    module, _, name = target.partition(":")
    content: dict[str, Any]
    try:
        function = getattr(importlib.import_module(module), name)
        content = {"result": function(**given["arguments"])}
    except (TfoptError, ValueError, OSError) as error:
        content = {"error": type(error).__name__, "message": str(error)}
    artifacts.write_json(outcome, content)


if __name__ == "__main__":
    main(*sys.argv[1:])
