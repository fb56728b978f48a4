"""Where results come from: the machine and the versions of the packages."""

from __future__ import annotations

import importlib.metadata
import os
import pathlib
import platform
from typing import Any

_DISTRIBUTIONS = {
    "tfopt": ("tfopt",),
    "tensorflow": ("tensorflow", "tensorflow-cpu", "tf-nightly", "tf-nightly-cpu"),
    "keras": ("keras", "keras-nightly"),
    "tf_keras": ("tf-keras", "tf-keras-nightly"),
    "tfmot": ("tensorflow-model-optimization", "tf-model-optimization-nightly"),
    "litert": ("ai-edge-litert", "ai-edge-litert-nightly"),
    "numpy": ("numpy",),
}


def versions() -> dict[str, str | None]:
    """Returns the versions of Python and of the packages that results depend on.

    Nothing is imported for it; None stands for a package that is not installed.

    Example:
        >>> sorted(versions())[:3]
        ['keras', 'litert', 'numpy']
    """
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name, distributions in _DISTRIBUTIONS.items():
        found[name] = next(filter(None, map(_version, distributions)), None)
    return found


def machine() -> dict[str, Any]:
    """Returns the CPU's name, the number of cores this process may use, and the OS.

    Example:
        >>> machine()["cores"] >= 1
        True
    """
    return {
        "cpu": _cpu_name(),
        "cores": _num_cores(),
        "os": f"{platform.system()} {platform.release()} {platform.machine()}",
    }


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_name() -> str:
    try:
        text = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        text = ""
    names = [
        line.partition(":")[2].strip()
        for line in text.splitlines()
        if line.startswith("model name")
    ]
    return names[0] if names else platform.processor() or platform.machine()


def _num_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
