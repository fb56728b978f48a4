"""Runner: ordered, multithreaded LiteRT inference on NumPy arrays, without TensorFlow.

How it is built: `_model_file` reads what the file declares, `_layout` finds out how
the model treats its batch axis, `_planning` how many workers pay, `_inputs` checks what
the caller hands over, `_engine` is one interpreter (`_isolation`: in a process of its
own), `_job` one request cut into pieces, and `_pool` the threads that work on them.
"""

from __future__ import annotations

import concurrent.futures
import functools
import logging
import os
import threading
import weakref
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

from tfopt.runner import _inputs, _memory, _options, _planning
from tfopt.runner._engine import Engine, explain
from tfopt.runner._job import Job, in_order
from tfopt.runner._layout import find_layout, has_open_axes
from tfopt.runner._model_file import read_model_file
from tfopt.runner._opening import Opener
from tfopt.runner._pool import Pool
from tfopt.runner._request import Batching, Request
from tfopt.runner._tuning import auto_batch_rows
from tfopt.types import Artifact, Signature, TfoptError

__all__ = ["Batching", "Runner"]

_logger = logging.getLogger(__name__)
_LOOK_AHEAD = 8  # batches of `map` for each worker


class Runner:
    """Runs a `.tflite` model on NumPy arrays with several threads.

    Rows are cut into batches that keep the activations inside the cache, spread over
    worker threads (one interpreter each) and put together again in order. With the
    same `batch_size`, results are equal to the last bit for any number of workers.
    Rows must not depend on each other; for a model that mixes the rows of a batch use
    `batch_size=None`.

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
      its last invocation. One Runner is one stream: it gets one worker, each `run` is
      one invocation in the order of the calls, and `reset_state()` starts over, as
      does a failed run. Open a Runner for each stream. Check `is_stateful`.
    * **Automatic choices**: what is "auto" is measured when the model is opened, in
      0.3 s at most and within a process only once; the log (INFO) and `plan` say what
      came out. Models whose input sizes are open, and those run as a whole, get a
      worker for each core.

    A Runner may be used from several threads at once; they share the workers fairly.
    Close it, or use it as a context manager. After `fork` open a new one.

    Args:
        model: Path of a `.tflite` file, its `Artifact`, or its content as bytes. A
            path is memory-mapped and costs less memory than bytes.
        num_workers: Interpreters that work in parallel. Each keeps its own packed
            copy of the weights (but see `isolate`); "auto" stays within `max_memory`.
        num_threads: Threads inside of each interpreter. "auto": mostly 1, which gives
            the most rows per second. Workers x threads never exceed the cores where
            one of them is "auto".
        batch_size: Rows of one invocation. "auto": as many as keep the activations
            inside the L2 cache, or half or twice that. None: never cut.
        signature_key: Which signature to run. None: "serving_default", or the only
            one.
        quantized_io: How quantized integer tensors are handed over. "auto": floats in
            give floats out, integers in give integers out. "float": outputs are
            always float32. "raw": integers only, both ways.
        specialize: Rewrite int8 convolutions over few channels in memory, where that
            was measured to be faster on this machine and found to give the same
            bytes; see `specialized`. It adds some 10 to 100 ms to opening a model
            that has one, and nothing to others.
        isolate: Run each interpreter in a process of its own: a model that crashes
            its interpreter is an error of that batch, and the next one gets a new
            process. Processes of one thread share the packed weights, so a large
            model takes less memory than without; opening takes about 0.2 s longer and
            each invocation some 0.1 ms. It protects from crashes, not from malice.
        timeout_s: With `isolate`, the seconds that loading or one invocation may take
            before its process is ended. None: no limit.
        max_memory: Bytes that the packed weights and activations of all workers may
            take, as estimated. None: "auto" workers take half of the free memory at
            most.
        tuning_cache: JSON file that keeps measured choices, by model content,
            machine and library version. It is made when it isn't there.

    Raises:
        ValueError: An option or the signature key is not possible for this model.
        TfoptError: The file can't be read, is damaged, or the interpreter cannot run
            it, for example for an operator that it lacks, or (with `isolate`) as it
            crashes.

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
        isolate: bool = False,
        timeout_s: float | None = None,
        max_memory: int | None = None,
        tuning_cache: str | os.PathLike[str] | None = None,
    ):
        self._source = _options.as_source(model)
        self._file = read_model_file(self._source)
        self._entry = self._file.entry(signature_key)
        self._options = _options.check(
            isolate=isolate,
            file=self._file,
            num_workers=num_workers,
            num_threads=num_threads,
            batch_size=batch_size,
            quantized_io=quantized_io,
            max_memory=max_memory,
            timeout_s=timeout_s,
            tuning_cache=tuning_cache,
        )
        needed = _memory.needs(self._file, self._entry, self._options, isolate=isolate)
        self._limit = _memory.most_workers(self._options, needed)
        self._plan = _planning.by_rule(
            self._options, self._limit, has_state=self.is_stateful
        )
        self._layout: Any = None  # a `Layout`, once it is known
        self._layout_lock = threading.Lock()
        self._pid = os.getpid()
        self._opener = Opener(
            self._source,
            self._file,
            self._entry,
            isolate=isolate,
            timeout_s=self._options.timeout_s,
        )
        try:
            self._specialized: tuple[str, ...] = ()
            if specialize:
                self._specialized = self._opener.specialize(self._options.batch_size)
            engines = self._prepare()
        except BaseException:
            self._opener.close()
            raise
        self._open_engine = functools.partial(self._opener.open, self.num_threads)
        self._pool = Pool(
            self._open_engine,
            self.num_workers,
            self._opener.close if isolate else None,
        )
        for engine in engines:
            self._pool.adopt(engine)
        self._finalizer = weakref.finalize(
            self, _close, self._pool, self._opener, self._pid
        )
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
    def loaded(self) -> str | bytes:
        """What the interpreters load: the path, or bytes if it is `specialized`."""
        return self._opener.loaded

    @property
    def plan(self) -> str:
        """Workers, threads and rows, whether they were measured, and the figures."""
        return str(self._plan)

    @property
    def num_workers(self) -> int:
        """Interpreters that may work in parallel."""
        return self._plan.num_workers

    @property
    def num_threads(self) -> int:
        """Threads inside of each interpreter."""
        return self._plan.num_threads

    @property
    def batch_size(self) -> int | None:
        """The most rows of one invocation; None where inputs are not cut."""
        if self._layout is not None and self._layout.mode == "whole":
            return None
        if self._layout is not None and self._layout.mode == "fixed":
            return self._layout.rows
        chosen = self._options.batch_size
        if isinstance(chosen, str):
            rule = auto_batch_rows(self._entry.activation_bytes)
            return self._plan.batch_rows or rule
        return chosen

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
        limit = _LOOK_AHEAD * self.num_workers
        if look_ahead is not None:
            limit = _options.count("look_ahead", look_ahead, automatic=False)
        self._check_usable()
        return in_order(iter(batches), self._start, limit)

    def batching(self, inputs: Any) -> Batching:
        """Checks inputs, and says how their rows would be cut, without running them.

        Args:
            inputs: As for `run`.

        Returns:
            What a caller needs to hand over the same rows bit by bit, to `map`.

        Raises:
            ValueError, TfoptError: As for `run`.

        Example:
            >>> runner.batching(images).rows
            64
        """
        self._check_usable()
        request = self._request(inputs)
        return Batching(
            rows=request.rows,
            batch_rows=request.piece_rows or None,
            inputs=tuple(
                info.name
                for info, batched in zip(
                    self.signature.inputs, self._layout.is_batched, strict=True
                )
                if batched
            ),
        )

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

    def _start(self, inputs: Any, index: int) -> Job:
        job = self._job(inputs, batch=index, owner=self)
        self._pool.submit(job)
        return job

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
        quantized_io = self._options.quantized_io
        arrays = [
            _inputs.check(info, value, floats=quantized_io != "raw")
            for info, value in zip(
                signature.inputs, _inputs.arrange(signature, inputs), strict=True
            )
        ]
        if self._layout is None:
            with self._layout_lock:
                if self._layout is None:
                    engine = self._find_layout([array.shape for array in arrays])
                    self._pool.adopt(engine)
        return Request(
            self._entry,
            self._layout,
            arrays,
            quantized_io=quantized_io,
            batch=self._options.batch_size,
            auto_rows=self._plan.batch_rows,
        )

    def _prepare(self) -> list[Engine]:
        """Finds layout and plan as far as the file tells; returns engines for it."""
        if has_open_axes(self._entry):
            return []
        engine = self._find_layout(self._entry.input_shapes)
        if not _planning.is_measurable(self._plan, self._options, self._layout):
            return [engine]
        from tfopt.runner import _plan_cache  # what is chosen needs none

        self._plan, engines = _plan_cache.measure_once(
            self._plan,
            self._options,
            self._entry,
            self._layout,
            self._opener,
            self._limit,
            engine,
        )
        return engines

    def _find_layout(self, shapes: Sequence[tuple[int, ...]]) -> Engine:
        open_engine = functools.partial(self._opener.open, self.num_threads)
        try:
            layout, engine = find_layout(
                self._entry, shapes, open_engine, self._file.state
            )
        except (RuntimeError, ValueError) as error:
            raise explain(self._source, self._file, error) from error
        try:
            self._layout = layout.with_batch(self._options.batch_size, self._entry)
        except BaseException:
            engine.close()
            raise
        return engine

    def _check_usable(self) -> None:
        if os.getpid() != self._pid:
            raise TfoptError(
                "The Runner was opened before a fork, and threads do not survive one. "
                "Open a Runner in the new process"
            )
        if self._pool.is_closed:
            raise TfoptError("The Runner is closed. Open a new one")


def _close(pool: Pool, opener: Opener, pid: int) -> None:
    if os.getpid() == pid:  # threads and processes of a forked one are its parent's
        pool.close()
        opener.close()
