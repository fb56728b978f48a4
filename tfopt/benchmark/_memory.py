"""What a process holds in memory, from Linux's /proc."""

from __future__ import annotations

import pathlib

_SELF = pathlib.Path("/proc/self")


def resident_bytes() -> int | None:
    """Returns the resident set; None where the kernel does not tell."""
    return _field("status", "VmRSS:")


def peak_bytes() -> int | None:
    """Returns the largest resident set since `reset_peak`, or since the start."""
    return _field("status", "VmHWM:")


def private_bytes() -> int | None:
    """Returns what is this process's alone; shared libraries and page cache are not."""
    parts = [_field("smaps_rollup", f"Private_{kind}:") for kind in ("Clean", "Dirty")]
    known = [part for part in parts if part is not None]
    return sum(known) if len(known) == len(parts) else None


def reset_peak() -> bool:
    """Makes `peak_bytes` begin anew; returns whether the kernel lets this process.

    See `clear_refs` in https://man7.org/linux/man-pages/man5/proc.5.html.
    """
    try:
        (_SELF / "clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _field(file: str, name: str) -> int | None:
    try:
        text = (_SELF / file).read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    for line in text.splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    return None
