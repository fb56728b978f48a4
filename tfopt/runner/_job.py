"""One request, cut into pieces that several threads may work on."""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tfopt.runner._engine import Engine, one_line
from tfopt.types import RunError, TfoptError


class Job:
    """Hands out pieces in order, gathers their outputs and resolves a future.

    Threads claim pieces from the job's counter and write into one preallocated
    output, so the order of the results does not depend on who computes what.

    Args:
        rows: Number of rows of the request.
        piece_rows: Rows of each piece; 0 for one piece with everything.
        compute: `(engine, start, stop) -> outputs` for a range of rows.
        collect: Makes the result from the list of outputs.
        batch: Index of the request in `map`, for messages.
        owner: Kept alive until the job ends.
    """

    def __init__(
        self,
        *,
        rows: int,
        piece_rows: int,
        compute: Callable[[Engine, int, int], list[np.ndarray]],
        collect: Callable[[list[np.ndarray]], Any],
        batch: int | None = None,
        owner: object = None,
    ):
        self.future: concurrent.futures.Future = concurrent.futures.Future()
        self.num_pieces = -(-rows // piece_rows) if piece_rows else 1
        self.on_end: Callable[[Job], None] = _ignore
        self._rows = rows
        self._piece_rows = piece_rows or rows
        self._compute: Callable | None = compute
        self._collect: Callable | None = collect
        self._batch = batch
        self._owner = owner
        self._outputs: list[np.ndarray] | None = None
        self._lock = threading.Lock()
        self._next = 0
        self._running = 0
        self._error: BaseException | None = None
        self._failed_piece = self.num_pieces
        self._is_stopped = False
        self._is_ended = False

    @property
    def has_unclaimed_pieces(self) -> bool:
        """Whether `claim` may return another piece."""
        return not self._is_stopped and self._next < self.num_pieces

    def claim(self) -> int | None:
        """Returns the next piece to work on; None when there is none left."""
        with self._lock:
            if not self.has_unclaimed_pieces:
                return None
            if self._next or self.future.set_running_or_notify_cancel():
                self._next += 1
                self._running += 1
                return self._next - 1
            self._is_stopped = self._is_ended = True
        self._release()
        return None

    def work_on(self, piece: int, engine: Engine) -> bool:
        """Computes a claimed piece; a failure becomes the job's.

        Returns:
            Whether it went well, so that the engine is still usable.

        Raises:
            BaseException: `KeyboardInterrupt` and the like, only.
        """
        start = piece * self._piece_rows
        stop = min(start + self._piece_rows, self._rows)
        try:
            self._store(start, stop, self._compute(engine, start, stop))  # type: ignore
            return True
        except Exception as error:
            self._fail(piece, self._describe(error, piece, start, stop))
            return False
        except BaseException as error:
            self._fail(piece, error)
            raise

    def end_piece(self) -> None:
        """Counts a claimed piece as ended; the last one resolves the future.

        Apart from `work_on`, so that the engine is given back first and whoever
        waits for the result finds it idle.
        """
        with self._lock:
            self._running -= 1
        self._resolve_if_over()

    def cancel(self, error: BaseException) -> None:
        """Stops handing out pieces; the job fails unless all are claimed already."""
        with self._lock:
            if self.has_unclaimed_pieces:
                self._is_stopped = True
                self._error = error
        self._resolve_if_over()

    def _store(self, start: int, stop: int, results: Sequence[np.ndarray]) -> None:
        if self.num_pieces == 1:
            self._outputs = list(results)
            return
        with self._lock:
            if self._outputs is None:
                self._outputs = [
                    np.empty((self._rows, *result.shape[1:]), result.dtype)
                    for result in results
                ]
            outputs = self._outputs
        for output, result in zip(outputs, results, strict=True):
            if result.shape != (stop - start, *output.shape[1:]):
                raise TfoptError(
                    "the output shapes of different batches do not make one array; "
                    "hand smaller batches to `map`, or use `batch_size=None` to run "
                    f"all rows in one invocation. Received: shape={result.shape} "
                    f"for {stop - start} rows"
                )
            output[start:stop] = result

    def _describe(
        self, error: Exception, piece: int, start: int, stop: int
    ) -> RunError:
        batch = piece if self._batch is None else self._batch
        described = RunError(
            f"Batch {batch} failed (rows {start} to {stop - 1}): {one_line(error)}",
            batch=batch,
            rows=(start, stop),
        )
        described.__cause__ = error
        return described

    def _fail(self, piece: int, error: BaseException) -> None:
        with self._lock:
            self._is_stopped = True
            # Pieces are claimed in order, so the lowest failing one always runs:
            # which error is reported does not depend on timing.
            if piece < self._failed_piece:
                self._failed_piece, self._error = piece, error

    def _resolve_if_over(self) -> None:
        with self._lock:
            if self._is_ended or self._running or self.has_unclaimed_pieces:
                return
            self._is_ended = True
            was_cancelled = not (
                self._next or self.future.set_running_or_notify_cancel()
            )
        error, result = self._error, None
        if error is None and self._collect is not None:
            try:
                result = self._collect(self._outputs or [])
            except Exception as problem:
                error = problem
        self._release()
        if was_cancelled:
            return
        if error is None:
            self.future.set_result(result)
        else:
            self.future.set_exception(error)

    def _release(self) -> None:
        # Whoever keeps the future must not keep inputs and Runner alive with it.
        self.on_end(self)
        self.on_end = _ignore
        self._compute = self._collect = self._outputs = self._owner = None


def _ignore(job: Job) -> None:
    """Stands for no callback."""
