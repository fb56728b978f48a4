"""How the rows of a request map to invocations of a model."""

from __future__ import annotations

import dataclasses
import math
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
    if any(_free_axes(entry)) and (layout := _free_layout(entry, trial)) is not None:
        return layout, trial.engine
    return _fixed_layout(entry, shapes, trial.as_written()), trial.engine


def piece_rows(
    layout: Layout,
    entry: Entry,
    arrays: Sequence[np.ndarray],
    batch: int | str | None,
    auto_rows: int | None = None,
) -> int:
    """Returns the rows of each invocation for one request; 0 for all at once.

    Args:
        layout: How rows may be cut.
        entry: The signature.
        arrays: The inputs.
        batch: Rows of an invocation, "auto", or None for all.
        auto_rows: What "auto" was found to be best; None: the rule.
    """
    if layout.mode == "whole":
        return 0
    if layout.mode == "fixed":
        return layout.rows
    if batch is None:
        return 0
    if isinstance(batch, int):
        return batch
    rows = arrays[layout.is_batched.index(True)].shape[0]
    row_bytes = entry.activation_bytes
    if has_open_axes(entry):  # they count as 1 in the file: scale up to the real ones
        written = sum(math.prod(shape[1:]) for shape in entry.input_shapes)
        given = sum(math.prod(array.shape[1:]) for array in arrays)
        row_bytes *= max(1, given // max(written, 1))
    return auto_piece_rows(rows, row_bytes, auto_rows)


class _Trial:
    """Tries input sizes; a refused one spoils the engine, so a fresh one is opened."""

    def __init__(self, entry: Entry, shapes: Shapes, open_engine: Callable):
        self.engine: Engine = open_engine()
        self._entry = entry
        self._open_engine = open_engine
        self._shapes = shapes
        self._written = [shape[:1] for shape in entry.input_shapes]

    def as_written(self) -> Shapes:
        """Output shapes at the size in the file: 1 row where the axis is free."""
        return self.engine.output_shapes(self._sized(self._written))

    def with_rows(self, rows: Sequence[int], fill: int | None = None) -> Shapes | None:
        """Output shapes for the numbers of rows of each input; None if refused.

        Args:
            rows: Size of each input's first axis, where that is free.
            fill: Runs the model on this value. None: only allocates.
        """
        firsts = [
            (size,) if free else written
            for size, free, written in zip(
                rows, _free_axes(self._entry), self._written, strict=True
            )
        ]
        shapes = self._sized(firsts)
        try:
            if fill is None:
                return self.engine.output_shapes(shapes)
            infos = self._entry.signature.inputs
            arrays = [
                np.full(shape, str(fill) if info.dtype == object else fill, info.dtype)
                for info, shape in zip(infos, shapes, strict=True)
            ]
            return [output.shape for output in self.engine.run(arrays)]
        except (RuntimeError, ValueError):
            self.engine.close()
            self.engine = self._open_engine()
            return None

    def _sized(self, firsts: Sequence[tuple[int, ...]]) -> Shapes:
        return [
            (*first, *shape[1:])
            for first, shape in zip(firsts, self._shapes, strict=True)
        ]


def _free_layout(entry: Entry, trial: _Trial) -> Layout | None:
    """The layout of a model with free first axes; None where they are not free."""
    is_free = _free_axes(entry)
    twos, threes = [2] * len(is_free), [3] * len(is_free)
    two, three = trial.with_rows(twos), trial.with_rows(threes)
    if two is None or three is None:
        return None
    fill = None
    if any(
        a == b and info.shape and info.shape[0] is None
        for info, a, b in zip(entry.signature.outputs, two, three, strict=True)
    ):
        # A shape that is computed in the graph, as by Keras 3's Flatten, shows only in
        # a run. Different values, since it may depend on them (a filter, say).
        fill = 0
        two = trial.with_rows(twos, 0)
        three = trial.with_rows(threes, 1) or trial.with_rows(threes, 0)
        if two is None and trial.with_rows([1] * len(is_free), 0) is not None:
            return None
        if two is None or three is None:
            reason = "the shapes of its outputs are known only after a run"
            return _whole(entry, reason, is_sure=False)
    for info, a, b in zip(entry.signature.outputs, two, three, strict=True):
        if a[:1] != (2,) or b[:1] != (3,) or a[1:] != b[1:]:
            return _whole(entry, _not_per_row(info.name), is_sure=fill is None)
    return _separate_inputs(entry, trial, fill)


def _separate_inputs(entry: Entry, trial: _Trial, fill: int | None) -> Layout:
    """Finds out which of several free first axes are the batch.

    They belong together unless different sizes are accepted. Then the outputs follow
    one of them, and the others are lookup tables, say.
    """
    is_batched = list(_free_axes(entry))
    if is_batched.count(True) == 1:
        return Layout("free", is_batched=tuple(is_batched))
    for index in [i for i, free in enumerate(is_batched) if free]:
        rows = [2 if i == index else 3 for i in range(len(is_batched))]
        outputs = trial.with_rows(rows, fill)
        if outputs is not None:
            is_followed = {shape[0] == 2 for shape in outputs}
            if len(is_followed) > 1:
                return _whole(entry, "its inputs have batch axes of their own")
            is_batched[index] = is_followed.pop()
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
