"""One request, cut into pieces that several threads may work on."""

from __future__ import annotations

import collections
import concurrent.futures
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from tfopt.runner._engine import Engine, one_line
from tfopt.types import RunError, TfoptError


class Job:
    """Hands out pieces in order and gathers their outputs.

    Threads claim pieces from the job's counter and write into one preallocated
    output, so the order of the results does not depend on who computes what.

    Args:
        rows: Number of rows of the request.
        piece_rows: Rows of each piece; 0 for one piece with everything.
        compute: `(engine, start, stop) -> outputs` for a range of rows.
        collect: Makes the result from the list of outputs.
        batch: Index of the request in `map`, for messages.
        owner: Kept alive until the job ends.
        future: Resolved at the end; it may cancel the job before it begins.
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
        future: concurrent.futures.Future | None = None,
    ):
        self.num_pieces = -(-rows // piece_rows) if piece_rows else 1
        self.on_end: Callable[[Job], None] | None = None
        self.is_done = False
        self._rows = rows
        self._piece_rows = piece_rows or rows
        self._compute: Callable | None = compute
        self._collect: Callable | None = collect
        self._batch = batch
        self._owner = owner
        self._future = future
        self._outputs: list[np.ndarray] | None = None
        self._result: Any = None
        self._error: BaseException | None = None
        self._failed_piece = self.num_pieces
        self._lock = threading.Lock()
        self._next = 0
        self._running = 0
        self._is_wanted: bool | None = None
        self._is_stopped = False
        self._is_ended = False
        # Held until the job is done: a Future's condition costs more than a small
        # model's invocation.
        self._pending = threading.Lock()
        self._pending.acquire()

    @property
    def has_unclaimed_pieces(self) -> bool:
        """Whether `claim` may return another piece."""
        return not self._is_stopped and self._next < self.num_pieces

    def wait(self) -> None:
        """Blocks until the job is done."""
        with self._pending:
            pass

    def result(self) -> Any:
        """Blocks until the job is done; returns its result or raises its error."""
        self.wait()
        if self._error is not None:
            raise self._error
        return self._result

    def run_at_once(self, engine: Engine) -> Any:
        """Computes everything in one piece and returns the result.

        The short way, without counting, for a job that nobody else knows.

        Raises:
            RunError: The computation failed.
        """
        try:
            return self._collect(self._compute(engine, 0, self._rows))  # type: ignore
        except Exception as error:
            raise self._describe(error, 0, 0, self._rows) from error

    def claim(self) -> int | None:
        """Returns the next piece to work on; None when there is none left."""
        with self._lock:
            if self._is_stopped or self._next == self.num_pieces:
                return None
            if self._next or self._begin():
                self._next += 1
                self._running += 1
                return self._next - 1
            self._is_stopped = True
        self._end_if_over()
        return None

    def claim_next(self) -> int | None:
        """Returns the next piece, for a thread that has just computed one.

        With None the piece before it counts as running until `end_piece`.
        """
        with self._lock:
            if self._is_stopped or self._next == self.num_pieces:
                return None
            self._next += 1
            return self._next - 1

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
        """Counts a claimed piece as ended; the last one ends the job.

        Apart from `work_on`, so that the engine is given back first and whoever
        waits for the result finds it idle.
        """
        with self._lock:
            self._running -= 1
        self._end_if_over()

    def cancel(self, error: BaseException) -> None:
        """Stops handing out pieces; the job fails unless all are claimed already."""
        with self._lock:
            if self.has_unclaimed_pieces:
                self._is_stopped = True
                self._error = error
                self._failed_piece = -1  # whatever still fails: this is the reason
        self._end_if_over()

    def _store(self, start: int, stop: int, results: Sequence[np.ndarray]) -> None:
        if self.num_pieces == 1:
            self._outputs = list(results)
            return
        outputs = self._outputs or self._allocate(results)
        for output, result in zip(outputs, results, strict=True):
            target = output[start:stop]
            if target.shape != result.shape:
                raise TfoptError(
                    "the output shapes of different batches do not make one array; "
                    "hand smaller batches to `map`, or use `batch_size=None` to run "
                    f"all rows in one invocation. Received: shape={result.shape} "
                    f"for {stop - start} rows"
                )
            target[...] = result

    def _allocate(self, results: Sequence[np.ndarray]) -> list[np.ndarray]:
        with self._lock:
            if self._outputs is None:  # else another thread was faster
                self._outputs = [
                    np.empty((self._rows, *result.shape[1:]), result.dtype)
                    for result in results
                ]
            return self._outputs

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

    def _begin(self) -> bool:
        """Whether the future, which is asked once, was not cancelled before."""
        if self._is_wanted is None:
            self._is_wanted = (
                self._future is None or self._future.set_running_or_notify_cancel()
            )
        return self._is_wanted

    def _end_if_over(self) -> None:
        with self._lock:
            if self._is_ended or self._running or self.has_unclaimed_pieces:
                return
            self._is_ended = True
        if self._error is None and not self._is_stopped:
            try:
                self._result = self._collect(self._outputs or [])  # type: ignore
            except Exception as error:
                self._error = error
        self.is_done = True
        self._pending.release()
        if self._future is not None and self._begin():
            if self._error is None:
                self._future.set_result(self._result)
            else:
                self._future.set_exception(self._error)
        self._release()

    def _release(self) -> None:
        # Whoever keeps the future must not keep inputs and Runner alive with it.
        if self.on_end is not None:
            self.on_end(self)
        self.on_end = None
        self._compute = self._collect = self._outputs = None
        self._owner = self._future = None


def in_order(
    batches: Iterator[Any], start: Callable[[Any, int], Job], look_ahead: int
) -> Iterator[Any]:
    """Yields the results of one job for each batch, in order.

    Args:
        batches: What to run; read in the caller's thread.
        start: Starts the job of a batch, which is given with its index.
        look_ahead: The most batches read beyond the one that is yielded.

    Yields:
        What each job returns.

    Raises:
        Exception: What a job, `start` or `batches` raised, after the results before.
    """
    jobs: collections.deque[Job] = collections.deque()
    problem: Exception | None = None
    is_over = False
    index = 0
    try:
        while jobs or not is_over:
            if not is_over and len(jobs) <= look_ahead:
                try:
                    jobs.append(start(next(batches), index))
                except StopIteration:
                    is_over = True
                except Exception as error:  # raised when its turn comes
                    is_over, problem = True, error
                index += 1
            else:
                # One awakening for half of the line, as each costs as much as a
                # small batch.
                jobs[len(jobs) // 2].wait()
                jobs[0].wait()
            while jobs and jobs[0].is_done:
                yield jobs.popleft().result()
        if problem is not None:
            raise problem
    finally:
        for job in jobs:
            job.cancel(TfoptError("The iteration was ended"))
