"""One LiteRT interpreter, opened on one signature and used by one thread at a time."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from ai_edge_litert.interpreter import Interpreter

from tfopt.runner._model_file import Entry, ModelFile
from tfopt.types import TfoptError


class Engine(Protocol):
    """Runs one signature of a model at any size that the model allows.

    Attributes:
        last_thread: Identifier of the thread that used it last.
    """

    last_thread: int

    def run(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Invokes the model once; returns its outputs as new arrays.

        Raises:
            RuntimeError, ValueError: The interpreter refused.
        """

    def output_shapes(self, shapes: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
        """Returns the output shapes for input shapes, as known before a run.

        Raises:
            RuntimeError, ValueError: The model cannot take these sizes.
        """

    def close(self) -> None:
        """Frees the interpreter; the engine is of no use any more."""


class LocalEngine:
    """An interpreter of this process.

    The interpreter's public methods reach the primary subgraph only, and its
    `SignatureRunner` resizes without checking (a wrong size of a fixed axis is
    accepted silently). Hence the wrapped object's own calls, which take a subgraph.
    `Invoke` releases the GIL; no other call takes noticeable time.

    After any exception the engine has to be thrown away: the interpreter keeps
    half-changed shapes and repeats old messages.
    """

    def __init__(self, source: str | bytes, *, num_threads: int, entry: Entry):
        """Opens a path (memory-mapped) or the content of a model."""
        self._interpreter: Any = (
            Interpreter(model_content=source, num_threads=num_threads)
            if isinstance(source, bytes)
            else Interpreter(model_path=source, num_threads=num_threads)
        )
        self._raw = self._interpreter._interpreter
        self._entry = entry
        self._shapes = list(entry.input_shapes)
        self._allocated: list[tuple[int, ...]] | None = None
        self.last_thread = 0

    def run(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """See `Engine`."""
        shapes = [array.shape for array in arrays]
        if shapes != self._allocated:
            self._allocate(shapes)
        raw, subgraph = self._raw, self._entry.subgraph
        for index, array in zip(self._entry.input_indices, arrays, strict=True):
            raw.SetTensor(index, array, subgraph)
        raw.Invoke(subgraph)
        return [raw.GetTensor(i, subgraph) for i in self._entry.output_indices]

    def output_shapes(self, shapes: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
        """See `Engine`."""
        if list(shapes) != self._allocated:
            self._allocate(shapes)
        raw, subgraph = self._raw, self._entry.subgraph
        return [
            tuple(map(int, raw.TensorSize(index, subgraph)))
            for index in self._entry.output_indices
        ]

    def close(self) -> None:
        """See `Engine`."""
        # An exception that someone keeps holds the engine, but not its memory.
        self._interpreter = self._raw = None

    def _allocate(self, shapes: Sequence[tuple[int, ...]]) -> None:
        infos = self._entry.signature.inputs
        for position, index in enumerate(self._entry.input_indices):
            shape = tuple(shapes[position])
            if shape != self._shapes[position]:
                size = np.array(shape, np.int32)
                strict = infos[position].shape is not None  # else the rank may change
                self._raw.ResizeInputTensor(index, size, strict, self._entry.subgraph)
        self._raw.AllocateTensors(self._entry.subgraph)
        self._shapes = self._allocated = list(shapes)


def explain(source: str | bytes, file: ModelFile, error: BaseException) -> TfoptError:
    """Turns an interpreter's refusal into one line that names the operator."""
    reason = one_line(error)
    unresolved = re.search(r"[Uu]nresolved custom op: (\S+?)\.? ", reason + " ")
    if unresolved:
        reason = _missing_ops([unresolved.group(1)])
    elif "custom op" in reason and file.custom_ops:
        reason = _missing_ops(list(file.custom_ops))
    return cannot_run(source, reason)


def check_operators(source: str | bytes, file: ModelFile) -> None:
    """Refuses a model with TensorFlow operators, which no interpreter here has.

    Raises:
        TfoptError: There are some; the message names them.
    """
    flex = [name for name in file.custom_ops if name.startswith("Flex")]
    if flex:
        raise cannot_run(source, _missing_ops(flex))


def one_line(error: BaseException) -> str:
    """Returns an exception's message without line breaks and run-on sentences."""
    text = " ".join(str(error).split()) or type(error).__name__
    return re.sub(r"(?<=\S)Node number", "; node number", text)


def _missing_ops(names: list[str]) -> str:
    return (
        f"the LiteRT interpreter has no operator {', '.join(names)}; convert with "
        "TFLite builtin operators only"
    )


def cannot_run(source: str | bytes, reason: str) -> TfoptError:
    """Returns the error about a model that the interpreter does not take."""
    name = "model bytes" if isinstance(source, bytes) else f"model={source!r}"
    return TfoptError(f"Cannot run the model: {reason}. Received: {name}")
