"""How much memory a worker takes, and how many of them there is room for."""

from __future__ import annotations

import pathlib

from tfopt.runner._model_file import Entry, ModelFile
from tfopt.runner._tuning import auto_batch_rows

_PROCESS_BYTES = 24 << 20  # private memory of Python, NumPy and LiteRT
_ROOT = pathlib.Path("/sys/fs/cgroup")


def worker_bytes(
    file: ModelFile, entry: Entry, batch: int | str | None, *, isolate: bool
) -> int:
    """Estimates the memory that each worker adds.

    It is the weights, of which each interpreter packs a copy of its own, and two
    activations, the one that an operator reads and the one that it writes. (The
    weights in the file are mapped and shared.)

    Args:
        file: The model.
        entry: The signature.
        batch: Rows of an invocation, "auto", or None.
        isolate: Whether the worker is a process.
    """
    rows = batch if isinstance(batch, int) else auto_batch_rows(entry.activation_bytes)
    activations = 2 * rows * entry.activation_bytes
    return file.weight_bytes + activations + (_PROCESS_BYTES if isolate else 0)


def available_bytes() -> int | None:
    """Returns the memory that is free, also by control group; None if unknown."""
    found = [size for size in (_free(), _free_in_group()) if size is not None]
    return min(found, default=None)


def most_workers(
    num_workers: int | str, max_memory: int | None, each: int
) -> int | None:
    """Returns how many workers there may be for their memory; None: any number.

    Args:
        num_workers: As given to the Runner: a number or "auto".
        max_memory: Bytes for all workers; None: half of what is free, which bounds
            "auto" only.
        each: Bytes of one worker.

    Raises:
        ValueError: `max_memory` is too small for the workers that are wanted, or for
            a single one.
    """
    if max_memory is None:
        free = available_bytes()
        return None if free is None else max(1, free // 2 // max(each, 1))
    wanted = num_workers if isinstance(num_workers, int) else 1
    if wanted * each > max_memory:
        raise ValueError(
            f"The memory is too small: {wanted} worker{'s' * (wanted > 1)} of this "
            f"model need about {wanted * each:,} bytes for packed weights and "
            "activations. Expected a larger `max_memory`, fewer workers, or a "
            f"quantized model. Received: max_memory={max_memory}"
        )
    return max_memory // max(each, 1)


def _free() -> int | None:
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None


def _free_in_group() -> int | None:
    names = (
        ("memory.max", "memory.current"),  # version 2
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    )
    for limit, usage in names:
        try:
            free = int((_ROOT / limit).read_text()) - int((_ROOT / usage).read_text())
            return max(free, 0)
        except (OSError, ValueError):  # absent, or "max"
            continue
    return None
