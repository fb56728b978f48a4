"""How the rows of a request map to invocations of a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from tfopt.runner._engine import Engine
from tfopt.runner._model_file import Entry
from tfopt.runner._tuning import auto_piece_rows

Shapes = Sequence[tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class Layout:
    """What was found out about a model's batch axis.

    Attributes:
        mode: `"free"`: any number of rows, each output has one row per input row.
            `"fixed"`: the same with exactly `rows` rows. `"whole"`: inputs go in as
            they are, in one invocation.
        rows: Rows of an invocation where fixed, else 0.
        is_batched: For each input, whether its first axis counts rows and is cut.
            The others go whole to every invocation.
        reason: Why a model is `"whole"`, for messages.
        is_sure: False for outputs whose shapes show only in the run; then the
            caller may say that they are per row, by choosing a batch size.
    """

    mode: Literal["free", "fixed", "whole"]
    rows: int = 0
    is_batched: tuple[bool, ...] = ()
    reason: str = ""
    is_sure: bool = True

    def with_batch(self, batch: int | str | None, entry: Entry) -> Layout:
        """Returns the layout that a chosen batch size leads to.

        Raises:
            ValueError: The model cannot be run in batches of that size.
        """
        if not isinstance(batch, int):
            return self
        if self.mode == "whole" and not self.is_sure:
            # The outputs of each batch are checked as they come.
            return Layout("free", is_batched=_free_axes(entry))
        if self.mode == "whole":
            raise ValueError(
                f"The model cannot be run in batches: {self.reason}. Expected "
                f'batch_size=None or "auto". Received: batch_size={batch}'
            )
        if self.mode == "fixed" and batch != self.rows:
            raise ValueError(
                f"The model runs in batches of {self.rows} rows only. Expected "
                f'batch_size={self.rows} or "auto". Received: batch_size={batch}'
            )
        return self


def has_open_axes(entry: Entry) -> bool:
    """Whether an axis other than the first is open, so that only real inputs fit."""
    return any(None in (info.shape or ())[1:] for info in entry.signature.inputs)


def find_layout(
    entry: Entry,
    shapes: Shapes,
    open_engine: Callable[[], Engine],
    state: str | None,
) -> tuple[Layout, Engine]:
    """Finds out how a model treats its first axis, by trial.

    The declared shapes don't tell: a model whose batch is baked into a Reshape
    declares a free axis all the same, and so does a lookup table. So a few sizes are
    tried, without running.

    Args:
        entry: The signature.
        shapes: Input shapes with all axes known but the first one.
        open_engine: Opens a fresh engine.
        state: What the model remembers between invocations, if anything.

    Returns:
        The layout and an engine that is fit for use.

    Raises:
        RuntimeError, ValueError: The model cannot be allocated at any size.
    """
    trial = _Trial(entry, shapes, open_engine)
    if any(info.shape is None for info in entry.signature.inputs):
        return _whole(entry, "the rank of an input is open"), trial.engine
    if state is not None:
        trial.as_written()  # shows now what the interpreter lacks
        return _whole(entry, f"it has state ({state})"), trial.engine
    if any(_free_axes(entry)):
        two, three = trial.with_rows(2), trial.with_rows(3)
        if two is not None and three is not None:
            return _free_layout(entry, two, three, trial), trial.engine
    return _fixed_layout(entry, shapes, trial.as_written()), trial.engine


def piece_rows(
    layout: Layout, entry: Entry, arrays: Sequence[np.ndarray], batch: int | str | None
) -> int:
    """Returns the rows of each invocation for one request; 0 for all at once."""
    if layout.mode == "whole":
        return 0
    if layout.mode == "fixed":
        return layout.rows
    if batch is None:
        return 0
    if isinstance(batch, int):
        return batch
    rows = arrays[layout.is_batched.index(True)].shape[0]
    # Axes that the file leaves open count as 1 there: scale up to the real ones.
    written = sum(_elements(shape[1:]) for shape in entry.input_shapes)
    given = sum(_elements(array.shape[1:]) for array in arrays)
    growth = max(1, given // max(written, 1))
    return auto_piece_rows(rows, entry.activation_bytes * growth)


class _Trial:
    """Tries input sizes; a refused one spoils the engine, so a fresh one is opened."""

    def __init__(self, entry: Entry, shapes: Shapes, open_engine: Callable):
        self.engine: Engine = open_engine()
        self._open_engine = open_engine
        self._shapes = shapes
        self._written = [shape[:1] for shape in entry.input_shapes]
        self._is_free = _free_axes(entry)

    def as_written(self) -> Shapes:
        """Output shapes at the size in the file: 1 row where the axis is free."""
        return self.engine.output_shapes(
            [
                (*written, *shape[1:])
                for written, shape in zip(self._written, self._shapes, strict=True)
            ]
        )

    def with_rows(self, rows: int, *, but: int = -1, other: int = 0) -> Shapes | None:
        """Output shapes for a number of rows; None where the model refuses it.

        Args:
            rows: Size of all free first axes,
            but: except for the input of this index,
            other: whose first axis gets this size.
        """
        shapes = []
        for index, shape in enumerate(self._shapes):
            size = other if index == but else rows
            first = (size,) if self._is_free[index] else self._written[index]
            shapes.append((*first, *shape[1:]))
        try:
            return self.engine.output_shapes(shapes)
        except (RuntimeError, ValueError):
            self.engine = self._open_engine()
            return None


def _free_layout(entry: Entry, two: Shapes, three: Shapes, trial: _Trial) -> Layout:
    unknown = ""
    for info, a, b in zip(entry.signature.outputs, two, three, strict=True):
        if a[:1] == (2,) and b[:1] == (3,) and a[1:] == b[1:]:
            continue
        if info.shape and info.shape[0] is None and a == b:
            unknown = f"the shape of output {info.name!r} is known only after a run"
        else:
            return _whole(entry, _not_per_row(info.name))
    if unknown:
        return _whole(entry, unknown, is_sure=False)
    is_batched = list(_free_axes(entry))
    if is_batched.count(True) > 1:
        # Rows belong together unless different numbers of them are accepted. Then
        # the outputs follow one of the inputs, and the other is a table, say.
        for index in [i for i, free in enumerate(is_batched) if free]:
            outputs = trial.with_rows(3, but=index, other=2)
            if outputs is not None:
                follows = {shape[0] == 2 for shape in outputs}
                if len(follows) > 1:
                    return _whole(entry, "its inputs have batch axes of their own")
                is_batched[index] = follows.pop()
        if not any(is_batched):
            return _whole(entry, "its inputs have batch axes of their own")
    return Layout("free", is_batched=tuple(is_batched))


def _fixed_layout(entry: Entry, shapes: Shapes, outputs: Shapes) -> Layout:
    sizes = {shape[0] for shape in entry.input_shapes if shape}
    if len(sizes) != 1:
        return _whole(entry, "its inputs have no first axis in common")
    rows = sizes.pop()
    for info, shape in zip(entry.signature.outputs, outputs, strict=True):
        if shape[:1] != (rows,):
            return _whole(entry, _not_per_row(info.name))
    return Layout("fixed", rows, is_batched=tuple(bool(shape) for shape in shapes))


def _whole(entry: Entry, reason: str, *, is_sure: bool = True) -> Layout:
    nothing = (False,) * len(entry.signature.inputs)
    return Layout("whole", is_batched=nothing, reason=reason, is_sure=is_sure)


def _not_per_row(output: str) -> str:
    return f"output {output!r} does not have one row per input row"


def _free_axes(entry: Entry) -> tuple[bool, ...]:
    return tuple((info.shape or (0,))[0] is None for info in entry.signature.inputs)


def _elements(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape, dtype=np.int64))
