"""Keeps the converter's chatter away from the user's terminal and logs.

Python's warnings and log records are dropped at their source. What C++ writes to file
descriptor 2 goes meanwhile to a small process, this file run as a script, which drops
the chatter at the end and writes the rest back. It is a process of its own because a
converter that aborts takes this one along: then everything is written back, so the
reason of the crash is never lost.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator

_CHATTER = re.compile(
    rb"WARNING: All log messages before absl::InitializeLog\(\)"
    rb"|[IW]\d{4} \d\d:\d\d:\d+\."  # absl's info and warning lines
    rb"|INFO: "  # LiteRT
    rb"|fully_quantize: "  # the converter's quantizer
)
# Diagnostics of a failed conversion, down to the end: the exception has them too.
_DIAGNOSTICS = re.compile(rb"loc\(.*error: |error: |[^ ]+:\d+:\d+: error: ")
_DONE = b"\0tfopt: done\n"
_WAIT_SECONDS = 0.5
_LOGGERS = ("tensorflow", "absl")
_lock = threading.RLock()


@contextlib.contextmanager
def contained() -> Iterator[None]:
    """Drops the chatter while the block runs; one block at a time per process."""
    with _lock, warnings.catch_warnings(), _quiet_loggers(), _held_stderr():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _quiet_loggers() -> Iterator[None]:
    owner = threading.get_ident()

    def other_thread(record: logging.LogRecord) -> bool:
        return record.thread != owner

    loggers = [logging.getLogger(name) for name in _LOGGERS]
    for logger in loggers:
        logger.addFilter(other_thread)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(other_thread)


@contextlib.contextmanager
def _held_stderr() -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        try:
            terminal = os.dup(2)
            stack.callback(os.close, terminal)
            holder = subprocess.Popen(
                [sys.executable, "-I", "-S", __file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,  # Ctrl-C is for this process
            )
        except (OSError, ValueError):
            # No stderr, or no interpreter to start: nothing is held back.
            holder = None
        if holder is None or holder.stdin is None or holder.stdout is None:
            yield
            return
        stack.callback(_reap, holder)
        stack.enter_context(holder.stdout)
        os.dup2(holder.stdin.fileno(), 2)
        try:
            yield
        finally:
            os.write(holder.stdin.fileno(), _DONE)
            os.dup2(terminal, 2)
            holder.stdin.close()
            holder.stdout.read(1)  # until it has written back what it keeps


def _reap(holder: subprocess.Popen[bytes]) -> None:
    try:
        holder.wait(_WAIT_SECONDS)
    except subprocess.TimeoutExpired:
        # A process that another thread started meanwhile has inherited the pipe; the
        # holder passes on what it writes and ends with it.
        holder.returncode = 0


def _hold() -> None:
    held = []
    for line in sys.stdin.buffer:
        held.append(line)
        if line.endswith(_DONE):
            os.write(2, _without_chatter(b"".join(held)[: -len(_DONE)]))
            os.write(1, b".")
            held.clear()
            break
    for line in sys.stdin.buffer:
        os.write(2, line)
    os.write(2, b"".join(held))


def _without_chatter(text: bytes) -> bytes:
    kept = []
    for line in text.splitlines(keepends=True):
        if _DIAGNOSTICS.match(line):
            break
        if not _CHATTER.match(line):
            kept.append(line)
    return b"".join(kept)


if __name__ == "__main__":
    _hold()
