"""How much memory a worker takes, and how many of them there is room for."""

from __future__ import annotations

import dataclasses
import pathlib

from tfopt.runner._model_file import Entry, ModelFile
from tfopt.runner._options import Options
from tfopt.runner._tuning import auto_batch_rows

# Private memory of Python, NumPy and LiteRT, and what a fork of it touches.
_PROCESS_BYTES, _FORK_BYTES = 24 << 20, 10 << 20
_ROOT = pathlib.Path("/sys/fs/cgroup")


@dataclasses.dataclass(frozen=True)
class Needs:
    """An estimate of the memory that workers take.

    Attributes:
        shared: Bytes, however many there are.
        each: Bytes of each.
    """

    shared: int
    each: int


def needs(file: ModelFile, entry: Entry, options: Options, *, isolate: bool) -> Needs:
    """Estimates the memory of workers.

    Each interpreter packs its own copy of the weights, unless it is a fork of a process
    that has done so; and it has two activations, the one that an operator reads and
    the one that it writes. (The weights in the file are mapped and shared.)

    Args:
        file: The model.
        entry: The signature.
        options: Rows and threads.
        isolate: Whether workers are processes.
    """
    rows = options.batch_size
    if not isinstance(rows, int):
        rows = auto_batch_rows(entry.activation_bytes)
    activations = 2 * rows * entry.activation_bytes
    weights = file.weight_bytes + entry.derived_bytes
    if not isolate:
        return Needs(0, weights + activations)
    if options.num_threads in ("auto", 1):
        return Needs(weights + _PROCESS_BYTES, activations + _FORK_BYTES)
    return Needs(0, weights + activations + _PROCESS_BYTES)


def available_bytes() -> int | None:
    """Returns the memory that is free, also by control group; None if unknown."""
    found = [size for size in (_free(), _free_in_group()) if size is not None]
    return min(found, default=None)


def most_workers(options: Options, needed: Needs) -> int | None:
    """Returns how many workers there may be for their memory; None: any number.

    Without `max_memory`, half of what is free is the limit, which bounds "auto" only.

    Args:
        options: The number of workers and the memory for all, as given.
        needed: The estimate.

    Raises:
        ValueError: `max_memory` is too small for the workers that are wanted, or for
            a single one.
    """
    limit = options.max_memory
    if limit is None:
        free = available_bytes()
        if free is None:
            return None
        return max(1, (free // 2 - needed.shared) // max(needed.each, 1))
    wanted = options.num_workers if isinstance(options.num_workers, int) else 1
    total = needed.shared + wanted * needed.each
    if total > limit:
        raise ValueError(
            f"The memory is too small: {wanted} worker{'s' * (wanted > 1)} of this "
            f"model need{'s' * (wanted == 1)} about {total:,} bytes for packed weights "
            "and activations. Expected a larger `max_memory`, fewer workers (isolated "
            "ones share the weights), or a quantized model. "
            f"Received: max_memory={limit}"
        )
    return (limit - needed.shared) // max(needed.each, 1)


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
