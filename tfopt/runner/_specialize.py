"""Chooses, by measuring, how the loaded copy of a model is folded (see `_folding`).

Whether a fold pays depends on the CPU: it turns many narrow copies into fewer wide
multiplications, most of them by zero. So each convolution is taken out of the model
and timed against its folds, and used folded only if that is clearly faster and gives
the same bytes. The file itself stays as it is.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter

from tfopt import tflite_file
from tfopt.runner import _folding
from tfopt.runner._engine import LocalEngine
from tfopt.runner._folding import Convolution, Fold
from tfopt.runner._inputs import random_input
from tfopt.runner._model_file import Entry, ModelFile, fingerprint, is_narrow
from tfopt.types import TfoptError

_MAX_MODEL_BYTES = 16 << 20  # the content stays in memory, and is copied once
_MAX_WEIGHTS_BYTES = 1 << 20
_MAX_GROWTH = 16.0
_MAX_ROWS = 32
_MAX_IMAGE_BYTES = 1 << 20
_MIN_SPEEDUP = 1.25
_ROUNDS = 7
_MOST_TRIED = 4
_BUDGET_SECONDS = 0.06  # of measuring; the first convolution is always measured

_logger = logging.getLogger(__name__)
# The time of an integer convolution depends on its sizes and the CPU only.
_choices: dict[Convolution, Fold | None] = {}
_lock = threading.Lock()

Choice = Callable[[Convolution, Sequence[Fold], Any], Fold | None]


@dataclasses.dataclass(frozen=True)
class Specialized:
    """A model as it is loaded.

    Attributes:
        content: The rewritten model.
        changes: What was done, one line for each operator.
    """

    content: bytes
    changes: tuple[str, ...]


def specialize(
    source: str | bytes,
    file: ModelFile,
    *,
    rows: int,
    choose: Choice | None = None,
) -> Specialized | None:
    """Folds the convolutions of a model that are faster folded on this machine.

    Args:
        source: Path or content of the model.
        file: Its facts.
        rows: Most rows of an invocation.
        choose: Returns the fold to use for a convolution, of the possible ones, or
            None; `None` measures. Its third argument is a model of the convolution
            alone (a `ModelT`).

    Returns:
        The model to load, or `None` if the original should be: nothing is faster, or
        something about the model forbids to rewrite it. The log says why, at level
        DEBUG.
    """
    if not file.has_narrow_convolution:
        return None
    started = time.perf_counter()
    try:
        content = _read(source, file)
        found = content and _rewrite(content, file, choose or _Measured(rows))
    # The original is as good, and the interpreter says best what is wrong with it:
    # a damaged file or a missing operator fails here in any way.
    except Exception as error:
        _logger.debug("not specialized: %r", error)
        return None
    milliseconds = 1e3 * (time.perf_counter() - started)
    changes = found.changes if found else "nothing to gain"
    _logger.debug("specialized in %.0f ms: %s", milliseconds, changes)
    return found or None


def same_outputs(
    original: str | bytes, changed: str | bytes, entries: Sequence[Entry]
) -> bool:
    """Whether two models give the same bytes on random inputs.

    Args:
        original: Path or content of a model.
        changed: The same of another one with the same signatures.
        entries: The signatures to run.

    Raises:
        RuntimeError, ValueError: One of them cannot be run on such inputs.
    """
    random = np.random.default_rng(0)
    for entry in entries:
        engines = [
            LocalEngine(source, num_threads=1, entry=entry)
            for source in (original, changed)
        ]
        for magnitude in (1, 100):
            arrays = [
                random_input(random, info, shape, magnitude)
                for info, shape in zip(
                    entry.signature.inputs, entry.input_shapes, strict=True
                )
            ]
            first, second = (engine.run(arrays) for engine in engines)
            for one, other in zip(first, second, strict=True):
                if one.shape != other.shape or one.tobytes() != other.tobytes():
                    return False
    return True


def _read(source: str | bytes, file: ModelFile) -> bytes | None:
    if isinstance(source, bytes):
        return source if len(source) <= _MAX_MODEL_BYTES else None
    with open(source, "rb") as stream:
        status = os.fstat(stream.fileno())
        is_same = fingerprint(status) == file.fingerprint
        return stream.read() if is_same and status.st_size <= _MAX_MODEL_BYTES else None


def _rewrite(content: bytes, file: ModelFile, choose: Choice) -> Specialized | None:
    model = tflite_file.unpack(content)
    tflite_file.check_writable(model)
    places = _places(model)
    chosen = []
    for graph, position, conv in places:
        alone = _folding.extract(model, graph, graph.operators[position])
        fold = choose(conv, _possible(conv), alone)
        if fold is None:
            continue
        if _is_equal(alone, conv, fold):
            chosen.append((graph, position, conv, fold))
        else:
            _logger.debug("refused, as its results differ: %s of %s", fold, conv)
    # From the last one on, since each inserts operators.
    changes = []
    for graph, position, conv, fold in sorted(chosen, key=lambda item: -item[1]):
        changes.append(_described(graph, position, conv, fold))
        _folding.apply_fold(model, graph, position, conv, fold)
    if not changes:
        return None
    folded = tflite_file.pack(model, len(content))
    if not same_outputs(content, folded, file.entries):
        raise TfoptError("the outputs of the folded model differ")
    return Specialized(folded, tuple(reversed(changes)))


def _places(model: Any) -> list[tuple[Any, int, Convolution]]:
    """The convolutions that might gain, those that might gain most first."""
    found = []
    for graph in model.subgraphs:
        for position, operator in enumerate(graph.operators or ()):
            conv = _folding.convolution(model, graph, operator)
            if conv is not None and is_narrow(
                (conv.filters, *conv.kernel, conv.channels)
            ):
                found.append((graph, position, conv))
    return sorted(found, key=lambda item: -_gain(item[2]))


def _possible(conv: Convolution) -> list[Fold]:
    """The folds within the limits of memory and multiplications, best guess first."""
    folds = [
        fold
        for fold in _folding.folds(conv)
        if fold.weights_bytes(conv) <= _MAX_WEIGHTS_BYTES
        and fold.growth(conv) <= _MAX_GROWTH
    ]
    return sorted(folds, key=lambda fold: _cost(conv, fold))


def _cost(conv: Convolution, fold: Fold | None) -> float:
    """A rough guess of the time, to have only a few folds to measure.

    For each tap the channels are copied to a tile of 64 bytes, which is multiplied by
    the weights of 16 outputs at a time; measured on AMX, a copy takes as long as
    2.4 of those. The unit is the time of one of those.
    """
    block, group, taps = (
        (fold.block, fold.group, fold.taps) if fold else (1, 1, conv.kernel[1])
    )
    tiles = math.ceil(block * conv.channels / 64)
    outputs = math.ceil(group * conv.filters / 16)
    pixels = conv.out_height * conv.out_width / group
    return pixels * conv.kernel[0] * taps * tiles * (2.4 + outputs)


def _gain(conv: Convolution) -> float:
    """How much of the time folding might save, in units of `_cost`."""
    best = min((_cost(conv, fold) for fold in _possible(conv)), default=math.inf)
    return _cost(conv, None) - best


class _Measured:
    """Chooses by timing. Choices are kept for the process, as they always hold."""

    def __init__(self, rows: int):
        self._rows = rows
        self._spent = 0.0

    def __call__(
        self, conv: Convolution, folds: Sequence[Fold], alone: Any
    ) -> Fold | None:
        with _lock:
            if conv in _choices:
                return _choices[conv]
        tried = [fold for fold in folds if _cost(conv, None) > 1.1 * _cost(conv, fold)]
        choice = None
        if tried and self._spent < _BUDGET_SECONDS:
            started = time.perf_counter()
            rows = _trial_rows(conv, self._rows)
            choice = _fastest(alone, conv, tried[:_MOST_TRIED], rows)
            self._spent += time.perf_counter() - started
        with _lock:
            return _choices.setdefault(conv, choice)


def _trial_rows(conv: Convolution, rows: int) -> int:
    image = conv.height * conv.width * conv.channels
    result = conv.out_height * conv.out_width * conv.filters
    return max(1, min(rows, _MAX_ROWS, _MAX_IMAGE_BYTES // max(image, result)))


def _fastest(
    alone: Any, conv: Convolution, folds: Sequence[Fold], rows: int
) -> Fold | None:
    """Times a convolution and its folds in turns; None if none is clearly faster."""
    random = np.random.default_rng(0)
    shape = (rows, conv.height, conv.width, conv.channels)
    image = random.integers(-128, 128, shape, np.int8)
    interpreters = [_open(alone, conv, fold, image) for fold in (None, *folds)]
    times = np.empty((_ROUNDS, len(interpreters)))
    for row in times:
        for column, interpreter in enumerate(interpreters):
            started = time.perf_counter()
            interpreter.invoke()
            row[column] = time.perf_counter() - started
    times = times[1:]  # without the first round, which warms up
    original, *folded = np.median(times, axis=0).tolist()
    best = int(np.argmin(folded))
    # The shortest times too, which other processes disturb least.
    speedups = original / folded[best], min(times[:, 0]) / min(times[:, 1 + best])
    _logger.debug(
        "%s, %d rows: %.3f ms; %s: %s ms",
        *(conv, rows, 1e3 * original, folds, [round(1e3 * t, 3) for t in folded]),
    )
    return folds[best] if min(speedups) >= _MIN_SPEEDUP else None


def _is_equal(alone: Any, conv: Convolution, fold: Fold) -> bool:
    """Whether a fold gives the same bytes on random images of all int8 values."""
    random = np.random.default_rng(1)
    shape = (4, conv.height, conv.width, conv.channels)
    image = random.integers(-128, 128, shape, np.int8)
    image[0], image[1] = -128, 127  # what overflows, overflows here
    results = []
    for candidate in (None, fold):
        interpreter = _open(alone, conv, candidate, image)
        interpreter.invoke()
        index = interpreter.get_output_details()[0]["index"]
        results.append(interpreter.get_tensor(index))
    return np.array_equal(results[0], results[1])


def _open(
    alone: Any, conv: Convolution, fold: Fold | None, image: np.ndarray
) -> Interpreter:
    """Opens the model of one convolution, folded or not, on an image batch."""
    model = _folding.extract(alone, alone.subgraphs[0], alone.subgraphs[0].operators[0])
    if fold is not None:
        _folding.apply_fold(model, model.subgraphs[0], 0, conv, fold)
    interpreter = Interpreter(model_content=tflite_file.pack(model), num_threads=1)
    interpreter.resize_tensor_input(0, image.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(0, image)
    return interpreter


def _described(graph: Any, position: int, conv: Convolution, fold: Fold) -> str:
    result = graph.tensors[graph.operators[position].outputs[0]]
    name = (result.name or b"").decode("utf-8", "replace") or f"operator {position}"
    return (
        f"CONV_2D {name}: {conv.height}x{conv.width}x{conv.channels} folded to "
        f"{conv.height}x{conv.width // fold.block}x{fold.block * conv.channels}"
    )
