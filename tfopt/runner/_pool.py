"""Worker threads and the engines they share."""

from __future__ import annotations

import collections
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

from tfopt.runner._engine import Engine
from tfopt.runner._job import Job
from tfopt.types import TfoptError

_GRACE_SECONDS = 5.0


class Pool:
    """Works jobs off, several at once, with at most one engine per worker.

    A thread that gets a job's ticket claims pieces from it until none is left or
    others wait; then it goes to the end of the line. So a small request is not stuck
    behind a large one, and each worker keeps its engine as long as nobody wants it.

    Args:
        open_engine: Opens one engine.
        num_workers: How many engines and threads there may be; both are made when
            they are first needed.
        end_engines: Ends engines in other processes, in use or not; None where there
            are none. It is called by `close`, a while after all jobs were cancelled.
    """

    def __init__(
        self,
        open_engine: Callable[[], Engine],
        num_workers: int,
        end_engines: Callable[[], None] | None = None,
    ):
        self._end_engines = end_engines
        self._engines = _Engines(open_engine, num_workers)
        self._num_workers = num_workers
        self._tickets: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._jobs: set[Job] = set()
        # Reentrant: the garbage collector may call `close` from anywhere.
        self._lock = threading.RLock()
        self._is_closed = False

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._is_closed

    def adopt(self, engine: Engine) -> None:
        """Takes over an engine that was opened elsewhere, where there is room."""
        self._engines.adopt(engine)

    def renew_engine(self) -> None:
        """Throws one engine away, after its current piece, for a fresh one."""
        self._engines.take().close()
        self._engines.give(None)

    def submit(self, job: Job) -> None:
        """Queues a job for the threads.

        Raises:
            TfoptError: The pool is closed.
        """
        self._start(job, min(job.num_pieces, self._num_workers))

    def run(self, job: Job) -> Any:
        """Works a job off, with the calling thread as one of the workers.

        Raises:
            TfoptError: The pool is closed, or the job failed.
        """
        engine = self._engines.take_at_once()
        if engine is not None and job.num_pieces == 1:
            return self._run_at_once(job, engine)
        try:
            # More hands than engines would only pass them back and forth.
            hands = min(job.num_pieces, self._num_workers)
            self._start(job, hands - (engine is not None))
            while engine is not None:
                taken, engine = engine, None  # `_work` gives it back
                self._work(job, taken, is_wanted=self._engines.has_waiters)
                if job.has_unclaimed_pieces:
                    engine = self._engines.take()
            return job.result()
        except BaseException as error:
            if engine is not None:
                self._engines.give(engine)
            job.cancel(error)  # after KeyboardInterrupt the workers stop as well
            raise

    def _run_at_once(self, job: Job, engine: Engine) -> Any:
        usable: Engine | None = None
        try:
            result = job.run_at_once(engine)
            usable = engine
            return result
        finally:
            if usable is None:
                engine.close()
            self._engines.give(usable)

    def close(self) -> None:
        """Cancels all jobs and ends the threads, after their current pieces."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
            jobs, threads = list(self._jobs), list(self._threads)
        for job in jobs:
            job.cancel(TfoptError("The Runner was closed before the work was done"))
        for _ in threads:
            self._tickets.put(None)
        if self._end_engines is not None:
            # What hangs in another process must not hang this one.
            latest = time.monotonic() + _GRACE_SECONDS
            while self._engines.num_in_use and time.monotonic() < latest:
                time.sleep(0.001)
            self._end_engines()
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join()
        self._engines.clear()

    def _start(self, job: Job, num_tickets: int) -> None:
        with self._lock:
            if self._is_closed:
                raise TfoptError("The Runner is closed. Expected an open one")
            self._jobs.add(job)
            job.on_end = self._jobs.discard
            while num_tickets and len(self._threads) < self._num_workers:
                # Daemon, as an unclosed Runner must not keep the process alive;
                # at exit the Runner's finalizer still ends and joins them.
                thread = threading.Thread(
                    target=self._serve,
                    name=f"tfopt-runner-{len(self._threads)}",
                    daemon=True,
                )
                self._threads.append(thread)
                thread.start()
            for _ in range(num_tickets):
                self._tickets.put(job)

    def _serve(self) -> None:
        while (job := self._tickets.get()) is not None:
            try:
                engine = self._engines.take()
            except Exception as error:  # a further interpreter can't be opened
                job.cancel(error)
                continue
            self._work(job, engine, is_wanted=self._has_other_work)
            if job.has_unclaimed_pieces:
                self._tickets.put(job)
            del job, engine  # waiting for the next ticket must not keep them alive

    def _work(self, job: Job, engine: Engine, *, is_wanted: Callable[[], bool]) -> None:
        """Works on a job until it has no pieces left or the engine is wanted."""
        usable: Engine | None = engine
        piece = job.claim()
        is_working = piece is not None
        try:
            while piece is not None:
                usable = None
                if job.work_on(piece, engine):
                    usable = engine
                piece = None if is_wanted() else job.claim_next()
        finally:
            if usable is None:
                engine.close()
            self._engines.give(usable)
            if is_working:
                job.end_piece()

    def _has_other_work(self) -> bool:
        return self._engines.has_waiters() or not self._tickets.empty()


class _Engines:
    """The engines of a pool: idle ones, room for more, and who waits for one."""

    def __init__(self, open_engine: Callable[[], Engine], limit: int):
        self._open_engine = open_engine
        self._limit = self._room = limit
        self._idle: list[Engine] = []
        self._waiters: collections.deque[queue.SimpleQueue] = collections.deque()
        self._lock = threading.Lock()

    @property
    def num_in_use(self) -> int:
        with self._lock:
            return self._limit - self._room - len(self._idle)

    def has_waiters(self) -> bool:
        return bool(self._waiters)

    def adopt(self, engine: Engine) -> None:
        with self._lock:
            if self._room:
                self._room -= 1
                self._idle.append(engine)
                return
        engine.close()

    def take(self) -> Engine:
        """Returns an engine; waits in line for one if need be."""
        mailbox: queue.SimpleQueue = queue.SimpleQueue()
        with self._lock:
            if self._idle:
                return self._pick()
            if self._room:
                self._room -= 1
                mailbox.put(None)
            else:
                self._waiters.append(mailbox)
        try:
            return mailbox.get() or self._open()
        except KeyboardInterrupt:
            self._leave(mailbox)
            raise

    def take_at_once(self) -> Engine | None:
        """Returns an engine, or None if all are in use."""
        with self._lock:
            if self._idle:
                return self._pick()
            if not self._room:
                return None
            self._room -= 1
        return self._open()

    def give(self, engine: Engine | None) -> None:
        """Gives an engine back; None makes room for a new one in its place."""
        with self._lock:
            if self._waiters:
                self._waiters.popleft().put(engine)
            elif engine is None:
                self._room += 1
            else:
                self._idle.append(engine)

    def clear(self) -> None:
        with self._lock:
            self._room += len(self._idle)
            engines = list(self._idle)
            self._idle.clear()
        for engine in engines:
            engine.close()

    def _pick(self) -> Engine:
        # The one that this thread used last: its tensors are in this core's cache.
        thread = threading.get_ident()
        for index, engine in enumerate(self._idle):
            if engine.last_thread == thread:
                return self._idle.pop(index)
        engine = self._idle.pop()
        engine.last_thread = thread
        return engine

    def _open(self) -> Engine:
        try:
            engine = self._open_engine()
        except BaseException:
            self.give(None)
            raise
        engine.last_thread = threading.get_ident()
        return engine

    def _leave(self, mailbox: queue.SimpleQueue) -> None:
        with self._lock:
            if mailbox in self._waiters:
                self._waiters.remove(mailbox)
                return
        if not mailbox.empty():
            self.give(mailbox.get())
