"""What a Runner can be told, checked."""

from __future__ import annotations

import dataclasses
import operator
import os
from typing import Any

from tfopt.runner._model_file import ModelFile
from tfopt.types import Artifact


@dataclasses.dataclass(frozen=True)
class Options:
    """The options of a Runner, as they were given.

    Attributes:
        num_workers: A number, or "auto".
        num_threads: A number, or "auto".
        batch_size: A number, "auto", or None.
        quantized_io: "auto", "float" or "raw".
        max_memory: Bytes, or None.
        timeout_s: Seconds, or None.
        tuning_cache: Path, or None.
    """

    num_workers: int | str
    num_threads: int | str
    batch_size: int | str | None
    quantized_io: str
    max_memory: int | None
    timeout_s: float | None
    tuning_cache: str | None


def check(*, isolate: bool, file: ModelFile, **given: Any) -> Options:
    """Checks the options of a Runner.

    Args:
        isolate: Whether interpreters run in other processes.
        file: The model's facts.
        **given: The fields of `Options`.

    Raises:
        ValueError: One of them is out of range, or they do not go together.
    """
    for name in ("num_workers", "num_threads", "batch_size", "max_memory"):
        automatic = name != "max_memory"
        if given[name] is not None or name.startswith("num"):
            given[name] = count(name, given[name], automatic=automatic)
    if given["quantized_io"] not in ("auto", "float", "raw"):
        raise ValueError(
            'Unknown way to hand over integers. Expected "auto", "float" or '
            f'"raw". Received: quantized_io={given["quantized_io"]!r}'
        )
    timeout_s = given["timeout_s"]
    if timeout_s is not None:
        if not isolate:
            raise ValueError(
                "Only a process of its own can be ended when it takes too long. "
                f"Expected isolate=True with it. Received: timeout_s={timeout_s}"
            )
        if not isinstance(timeout_s, (int, float)) or not 0 < timeout_s < 1e9:
            raise ValueError(
                "Not a possible time. Expected timeout_s to be a number of seconds "
                f"above 0, or None. Received: timeout_s={timeout_s!r}"
            )
    if file.state is not None and given["num_workers"] not in ("auto", 1):
        raise ValueError(
            f"The model has state ({file.state}), so its invocations depend "
            "on each other and cannot run in parallel. Expected num_workers=1 or "
            f'"auto". Received: num_workers={given["num_workers"]}'
        )
    if given["tuning_cache"] is not None:
        given["tuning_cache"] = os.fspath(given["tuning_cache"])
    return Options(**given)


def as_source(model: Any) -> str | bytes:
    """Returns the path or the content of a model, from any form of it.

    Raises:
        ValueError: It is something else.
    """
    if isinstance(model, Artifact):
        return model.path
    if isinstance(model, (bytes, bytearray, memoryview)):
        return bytes(model)
    if isinstance(model, (str, os.PathLike)):
        return os.fsdecode(model)
    raise ValueError(
        "Not a model. Expected the path, the `Artifact` or the bytes of a `.tflite` "
        f"file; make one by `tfopt.convert`. Received: model={type(model).__name__}"
    )


def count(name: str, value: Any, *, automatic: bool = True) -> Any:
    """Returns a whole number from 1 on, or "auto" where that is possible.

    Raises:
        ValueError: It is something else.
    """
    if automatic and isinstance(value, str) and value == "auto":
        return value
    try:
        number = operator.index(value)
    except TypeError:
        number = 0
    if number < 1 or isinstance(value, bool):
        raise ValueError(
            f"Not a possible count. Expected {name} to be a whole number from 1 on"
            + (' or "auto"' if automatic else "")
            + f". Received: {name}={value!r}"
        )
    return number
