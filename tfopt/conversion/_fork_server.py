"""The process that isolated conversions are forks of.

It has loaded TensorFlow and nothing else: no model, no threads of a session. Each job
runs in a fork of it, so starting one takes milliseconds, whatever a job leaks goes with
it, and a job that crashes takes nothing along.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import socket
import struct
from multiprocessing.connection import Connection
from typing import Any, NoReturn

from tfopt import _processes
from tfopt.conversion import _errors, _graphs, _lowering, _verification
from tfopt.types import TfoptError

# Memory limit of a job in bytes, -1 for none; then a pid, then an exit status.
NUMBER = struct.Struct("<q")


def main(descriptor: int) -> None:
    """Serves jobs until the process that asks for them is gone.

    Args:
        descriptor: A socket to that process. For each job it sends a memory limit with
            two file descriptors, the socket of the job and its log, and gets the
            job's process id, and its exit status in the end.
    """
    _processes.settle()
    control = socket.socket(fileno=descriptor)
    with contextlib.suppress(OSError):
        control.sendall(NUMBER.pack(0))  # ready
        while True:
            head, descriptors, _, _ = socket.recv_fds(control, NUMBER.size, 2)
            if not head:
                break
            _serve(control, descriptors, NUMBER.unpack(head)[0])
    os._exit(0)


def _serve(control: socket.socket, descriptors: list[int], limit: int) -> None:
    alive, held = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(alive)
        control.close()
        _run(descriptors[0], descriptors[1], limit)
    for descriptor in (held, *descriptors):
        os.close(descriptor)
    control.sendall(NUMBER.pack(pid))
    # The pipe ends with the job; the control socket, with the user's process.
    ended, _, _ = select.select([alive, control.fileno()], [], [])
    if control.fileno() in ended:
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    os.close(alive)
    control.sendall(NUMBER.pack(status))


def _run(descriptor: int, log: int, limit: int) -> NoReturn:
    """Does one job in the fork."""
    try:
        os.dup2(log, 1)
        os.dup2(log, 2)
        port = Connection(descriptor)
        port.send(_answer(port, limit))
    finally:
        # Without the destructors of a model that may be broken.
        os._exit(0)


def _answer(port: Connection, limit: int) -> tuple[str, Any]:
    try:
        if limit >= 0:
            size = _data_bytes() + limit
            resource.setrlimit(resource.RLIMIT_DATA, (size, size))
        name, arguments = port.recv()
        return "result", _JOBS[name](*arguments)
    except (TfoptError, ValueError) as error:
        return type(error).__name__, str(error)
    except MemoryError:
        return "MemoryError", ""
    except Exception as error:
        return "ConversionError", _errors.condense(error)


def _data_bytes() -> int:
    """Returns the memory that counts to the limit and is taken already (Linux)."""
    with open("/proc/self/status", encoding="ascii") as file:
        for line in file:
            if line.startswith("VmData:"):
                return int(line.split()[1]) * 1024
    return 0


def _with_function(job: Any) -> Any:
    def call(graph: bytes, inputs: list[str], outputs: list[str], *rest: Any) -> Any:
        import tensorflow as tf

        definition = tf.compat.v1.GraphDef.FromString(graph)
        return job(_graphs.imported(definition, inputs, outputs), *rest)

    return call


_JOBS = {
    "lower": _with_function(_lowering.lower),
    "calibrate": _with_function(_lowering.calibrate),
    "recalibrate": _lowering.recalibrate,
    "quantize": _lowering.quantize,
    "run": _verification.run,
}
