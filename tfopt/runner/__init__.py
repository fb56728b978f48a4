"""Runner: ordered, multithreaded LiteRT inference on NumPy arrays, without TensorFlow.

How it is built: `_model_file` reads what the file declares, `_layout` finds out how
the model treats its batch axis, `_inputs` checks what the caller hands over, `_engine`
is one interpreter, `_job` one request cut into pieces, and `_pool` the threads that
work on them.
"""

from __future__ import annotations

import collections
import concurrent.futures
import functools
import logging
import operator
import os
import threading
import weakref
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

from tfopt.runner import _inputs
from tfopt.runner._engine import explain, open_engine
from tfopt.runner._job import Job
from tfopt.runner._layout import Layout, find_layout, has_open_axes
from tfopt.runner._model_file import read_model_file
from tfopt.runner._pool import Pool
from tfopt.runner._request import Request
from tfopt.runner._tuning import auto_batch_rows, available_cores
from tfopt.types import Artifact, Signature, TfoptError

__all__ = ["Runner"]

_logger = logging.getLogger(__name__)
_LOOK_AHEAD = 8  # batches of `map` for each worker


class Runner:
    """Runs a `.tflite` model on NumPy arrays with several threads.

    Rows are cut into batches that keep the activations inside the cache, spread over
    worker threads (one interpreter each) and put together again in order. For any
    number of workers the results are equal to the last bit. Rows must not depend on
    each other; for a model that mixes the rows of a batch use `batch_size=None`.

    * **Inputs**: one array for a model with one input; otherwise a mapping from
      input name to array, or a list or tuple in the order of `signature.inputs`.
      The first axis counts rows. Types have to be the model's. Arrays must not be
      changed while they are worked on.
    * **Outputs**: one array for a model with one output, otherwise a dict by name;
      always new arrays, NaN included as the model gives them.
    * **Integer inputs and outputs** are taken and returned as they are; the scale is
      in `signature`. A model with quantized integer inputs takes float32 as well,
      quantizes it, and then returns its quantized outputs as float32: floats in,
      floats out; integers in, integers out. See `quantized_io`.
    * **Any batch**: a last, smaller batch is run at its own size. Models with a fixed
      batch (declared, or baked into a Reshape) get their last batch padded with
      copies of its last row, which are cut off again. A model whose outputs don't
      have one row per input row is run on its inputs as they are, in one invocation.
    * **State**: a model with variables (or an LSTM fused into one operator) remembers
      its last invocation. It gets one worker, each `run` is one invocation, and
      `reset_state()` starts over. Check `is_stateful`.

    A Runner may be used from several threads at once; they share the workers fairly.
    Close it, or use it as a context manager. After `fork` open a new one.

    Args:
        model: Path of a `.tflite` file, its `Artifact`, or its content as bytes. A
            path is memory-mapped and costs less memory than bytes.
        num_workers: Interpreters that work in parallel. Each keeps its own packed
            copy of the weights. "auto": the available cores / `num_threads`.
        num_threads: Threads inside of each interpreter. "auto": 1, which gives the
            most rows per second; more helps single requests to large models only.
        batch_size: Rows of one invocation. "auto": as many as keep the activations
            inside the L2 cache, within 8 and 128. None: never cut.
        signature_key: Which signature to run. None: "serving_default", or the only
            one.
        quantized_io: How quantized integer tensors are handed over. "auto": floats in
            give floats out, integers in give integers out. "float": outputs are
            always float32. "raw": integers only, both ways.
        specialize: Rewrite int8 convolutions over few channels in memory, where that
            was measured to be faster on this machine and found to give the same
            bytes; see `specialized`. It adds some 10 to 100 ms to opening a model
            that has one, and nothing to others.

    Raises:
        ValueError: An option or the signature key is not possible for this model.
        TfoptError: The file can't be read, is damaged, or the interpreter cannot run
            it, for example for an operator that it lacks.

    Example:
        >>> with tfopt.Runner("model.tflite") as runner:
        ...     print(runner.signature)
        ...     scores = runner.run(images)  # float32 [64, 10]
        ...     winners = [scores.argmax(axis=1) for scores in runner.map(batches)]
        serving_default(image: float32 [?, 28, 28]) -> (logits: float32 [?, 10])
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | Artifact | bytes,
        *,
        num_workers: int | Literal["auto"] = "auto",
        num_threads: int | Literal["auto"] = "auto",
        batch_size: int | Literal["auto"] | None = "auto",
        signature_key: str | None = None,
        quantized_io: Literal["auto", "float", "raw"] = "auto",
        specialize: bool = True,
    ):
        self._source = _as_source(model)
        self._file = read_model_file(self._source)
        self._entry = self._file.entry(signature_key)
        self._batch_size = (
            None if batch_size is None else _count("batch_size", batch_size)
        )
        if quantized_io not in ("auto", "float", "raw"):
            raise ValueError(
                'Unknown way to hand over integers. Expected "auto", "float" or '
                f'"raw". Received: quantized_io={quantized_io!r}'
            )
        self._quantized_io = quantized_io
        threads = _count("num_threads", num_threads)
        self._num_threads = 1 if threads == "auto" else threads
        self._num_workers = self._choose_workers(_count("num_workers", num_workers))
        self._specialized: tuple[str, ...] = ()
        self._open_engine = functools.partial(
            open_engine,
            self._specialize() if specialize else self._source,
            num_threads=self._num_threads,
            entry=self._entry,
            file=self._file,
        )
        self._pid = os.getpid()
        self._pool = Pool(self._open_engine, self._num_workers)
        self._finalizer = weakref.finalize(self, _close, self._pool, self._pid)
        self._layout: Layout | None = None
        self._layout_lock = threading.Lock()
        if not has_open_axes(self._entry):
            self._find_layout(self._entry.input_shapes)
        _logger.debug("opened %r", self)

    @property
    def signature(self) -> Signature:
        """Key, inputs and outputs; `str()` of it reads like a function's head.

        The key of a file without signatures is the name of its primary subgraph.
        """
        return self._entry.signature

    @property
    def is_stateful(self) -> bool:
        """Whether the model remembers its last invocation."""
        return self._file.state is not None

    @property
    def specialized(self) -> tuple[str, ...]:
        """What was rewritten in memory for speed, one line per operator.

        An int8 convolution over few channels gets several pixels of a row as one,
        which is faster on CPUs with wide integer dot products. The outputs are the
        same to the last bit, and the file stays as it is.
        """
        return self._specialized

    @property
    def num_workers(self) -> int:
        """Interpreters that may work in parallel."""
        return self._num_workers

    @property
    def num_threads(self) -> int:
        """Threads inside of each interpreter."""
        return self._num_threads

    @property
    def batch_size(self) -> int | None:
        """The most rows of one invocation; None where inputs are not cut."""
        if self._layout is not None and self._layout.mode == "whole":
            return None
        if self._layout is not None and self._layout.mode == "fixed":
            return self._layout.rows
        if self._batch_size == "auto":
            return auto_batch_rows(self._entry.activation_bytes)
        return self._batch_size

    def run(self, inputs: Any) -> Any:
        """Runs any number of rows; blocks until all are done.

        Args:
            inputs: Arrays with the same number of rows; see the class for the forms.

        Returns:
            An array [rows, ...], or a dict of them by output name.

        Raises:
            ValueError: Names, types or shapes don't fit `signature`.
            RunError: A batch failed in the interpreter. The Runner stays usable.
            TfoptError: The Runner is closed or was inherited through `fork`.

        Example:
            >>> runner.run({"image": images}).shape
            (64, 10)
        """
        job = self._job(inputs)
        if self.is_stateful:  # strictly in the order of the calls
            self._pool.submit(job)
            return job.result()
        return self._pool.run(job)

    __call__ = run

    def submit(self, inputs: Any) -> concurrent.futures.Future:
        """Starts a run in the background.

        Args:
            inputs: As for `run`.

        Returns:
            A future of what `run` would return. In a coroutine:
            `await asyncio.wrap_future(runner.submit(inputs))`.

        Raises:
            ValueError, TfoptError: As for `run`, at once; `RunError` is in the future.

        Example:
            >>> futures = [runner.submit(images) for images in batches]
            >>> scores = [future.result() for future in futures]
        """
        future: concurrent.futures.Future = concurrent.futures.Future()
        self._pool.submit(self._job(inputs, owner=self, future=future))
        return future

    def map(
        self, batches: Iterable[Any], *, look_ahead: int | None = None
    ) -> Iterator[Any]:
        """Runs batch after batch and yields the results in order.

        Batches are read ahead so that all workers stay busy, but never further than
        `look_ahead`; endless generators are welcome and memory stays bounded. The
        generator is read in the caller's thread. When it raises, or a batch fails,
        the results before are yielded first and then the exception is raised.

        Args:
            batches: Inputs as for `run`, one item per batch.
            look_ahead: Most batches read beyond the one that is yielded. None: eight
                for each worker, which keeps them busy with batches that take 0.1 ms.
                Two are enough for batches that take 10 ms.

        Yields:
            For each batch what `run` would return.

        Raises:
            ValueError: A batch doesn't fit; the message names its index.
            RunError: A batch failed; `batch` is its index in `batches`.

        Example:
            >>> digits = [scores.argmax(axis=-1) for scores in runner.map(batches)]
            >>> len(digits), digits[0].shape
            (4, (16,))
        """
        limit = _LOOK_AHEAD * self._num_workers
        if look_ahead is not None:
            limit = _count("look_ahead", look_ahead, automatic=False)
        self._check_usable()
        return self._map(iter(batches), limit)

    def reset_state(self) -> None:
        """Makes a stateful model forget its past, after its current invocation.

        Raises:
            TfoptError: The Runner is closed or was inherited through `fork`.
        """
        self._check_usable()
        if self.is_stateful:
            self._pool.renew_engine()

    def close(self) -> None:
        """Cancels pending work, ends the threads and frees the interpreters.

        Batches that run at this moment are finished first; their results and all
        pending ones become a `TfoptError`. Closing twice is fine.
        """
        self._finalizer()

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        name = "bytes" if isinstance(self._source, bytes) else repr(self._source)
        return (
            f"Runner({name}, num_workers={self.num_workers}, "
            f"num_threads={self.num_threads}, batch_size={self.batch_size}, "
            f"signature_key={self.signature.key!r})"
        )

    def _map(self, batches: Iterator[Any], look_ahead: int) -> Iterator[Any]:
        jobs: collections.deque[Job] = collections.deque()
        problem: Exception | None = None
        is_over = False
        index = 0
        try:
            while jobs or not is_over:
                if not is_over and len(jobs) <= look_ahead:
                    try:
                        job = self._job(next(batches), batch=index, owner=self)
                        self._pool.submit(job)
                        jobs.append(job)
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

    def _job(
        self,
        inputs: Any,
        *,
        batch: int | None = None,
        owner: Runner | None = None,
        future: concurrent.futures.Future | None = None,
    ) -> Job:
        self._check_usable()
        try:
            request = self._request(inputs)
        except ValueError as error:
            if batch is None:
                raise
            raise ValueError(f"Batch {batch}: {error}") from error
        return Job(
            rows=request.rows,
            piece_rows=request.piece_rows,
            compute=request.compute,
            collect=request.collect,
            batch=batch,
            owner=owner,
            future=future,
        )

    def _request(self, inputs: Any) -> Request:
        signature = self.signature
        arrays = [
            _inputs.check(info, value, floats=self._quantized_io != "raw")
            for info, value in zip(
                signature.inputs, _inputs.arrange(signature, inputs), strict=True
            )
        ]
        layout = self._layout or self._find_layout([array.shape for array in arrays])
        return Request(
            self._entry,
            layout,
            arrays,
            quantized_io=self._quantized_io,
            batch=self._batch_size,
        )

    def _find_layout(self, shapes: Sequence[tuple[int, ...]]) -> Layout:
        with self._layout_lock:
            if self._layout is None:
                try:
                    layout, engine = find_layout(
                        self._entry, shapes, self._open_engine, self._file.state
                    )
                except (RuntimeError, ValueError) as error:
                    raise explain(self._source, self._file, error) from error
                self._layout = layout.with_batch(self._batch_size, self._entry)
                self._pool.adopt(engine)
            return self._layout

    def _specialize(self) -> str | bytes:
        """Returns what to load: the model, or a faster equal of it."""
        if not self._file.has_narrow_convolution:
            return self._source
        from tfopt.runner import _specialize  # takes 20 ms, which few models need

        rows = self._batch_size
        if not isinstance(rows, int):
            rows = auto_batch_rows(self._entry.activation_bytes)
        found = _specialize.specialize(self._source, self._file, rows=rows)
        if found is None:
            return self._source
        self._specialized = found.changes
        return found.content

    def _choose_workers(self, num_workers: int | str) -> int:
        if self._file.state is None:
            if isinstance(num_workers, int):
                return num_workers
            return max(1, available_cores() // self._num_threads)
        if num_workers not in ("auto", 1):
            raise ValueError(
                f"The model has state ({self._file.state}), so its invocations depend "
                "on each other and cannot run in parallel. Expected num_workers=1 or "
                f'"auto". Received: num_workers={num_workers}'
            )
        return 1

    def _check_usable(self) -> None:
        if os.getpid() != self._pid:
            raise TfoptError(
                "The Runner was opened before a fork, and threads do not survive one. "
                "Open a Runner in the new process"
            )
        if self._pool.is_closed:
            raise TfoptError("The Runner is closed. Open a new one")


def _as_source(model: Any) -> str | bytes:
    if isinstance(model, Artifact):
        return model.path
    if isinstance(model, (bytes, bytearray, memoryview)):
        return bytes(model)
    if isinstance(model, (str, os.PathLike)):
        return os.fsdecode(model)
    raise ValueError(
        "Not a model. Expected the path, the `Artifact` or the bytes of a `.tflite` "
        f"file; make one by `tfopt.convert`. Received: model={type(model).__name__}"
    )


def _count(name: str, value: Any, *, automatic: bool = True) -> Any:
    if automatic and isinstance(value, str) and value == "auto":
        return value
    try:
        number = operator.index(value)
    except TypeError:
        number = 0
    if number < 1 or isinstance(value, bool):
        raise ValueError(
            f"Not a possible count. Expected {name} to be a whole number from 1 on"
            + (' or "auto"' if automatic else "")
            + f". Received: {name}={value!r}"
        )
    return number


def _close(pool: Pool, pid: int) -> None:
    if os.getpid() == pid:  # the threads of a forked process are its parent's
        pool.close()
