"""Keeps TensorFlow's C++ log lines out of a tool's stderr; used by tools only.

TF_CPP_MIN_LOG_LEVEL does not do it: TensorFlow 2.21 logs some lines before it reads
the variable, and LiteRT never asks. So file descriptor 2 leads through a small
process, this file run as a script, which drops those lines and passes all others.
Being a process of its own, it still passes the reason when TensorFlow aborts.
"""

from __future__ import annotations

import atexit
import os
import re
import subprocess
import sys

_CHATTER = re.compile(
    rb"WARNING: All log messages before absl::InitializeLog\(\)"
    rb"|[IW]\d{4} \d\d:\d\d:\d+\."  # absl's info and warning lines
    rb"|\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+: [IW] "  # the same in TensorFlow <= 2.16
    rb"|E\d{4} .*(cuda|cuInit|cuDNN|cuBLAS|cuFFT)"  # no GPU is no error
    rb"|INFO: "  # LiteRT
    rb"|fully_quantize: "  # the TFLite converter
)
_WAIT_SECONDS = 2


def quiet_cpp_logs() -> None:
    """Filters what C++ code and child processes write to stderr, until exit.

    `sys.stderr` becomes a stream of its own and is not filtered. For the process of
    a tool only: it changes the environment and file descriptor 2.
    """
    if sys.stderr is None:  # closed by the caller: nothing to keep quiet
        return
    # Set too, since lines that are never written cost nothing.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    filter_process = subprocess.Popen(
        [sys.executable, "-I", "-S", __file__],
        stdin=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is for the tool; the filter ends with it
    )
    terminal = os.dup(2)
    pipe = filter_process.stdin
    if pipe is None:
        raise RuntimeError("Popen gave no pipe although it was asked for one.")
    sys.stderr = open(  # noqa: SIM115  (open until the process ends)
        os.dup(2), "w", buffering=1, encoding="utf-8", errors="backslashreplace"
    )
    os.dup2(pipe.fileno(), 2)
    pipe.close()
    atexit.register(_finish, filter_process, terminal)


def _finish(filter_process: subprocess.Popen[bytes], terminal: int) -> None:
    os.dup2(terminal, 2)
    try:
        filter_process.wait(_WAIT_SECONDS)
    except subprocess.TimeoutExpired:
        # A child that outlives the tool still writes to it; it ends with that child.
        filter_process.returncode = 0


def _filter() -> None:
    for line in sys.stdin.buffer:
        if not _CHATTER.match(line):
            os.write(2, line)


if __name__ == "__main__":
    _filter()
