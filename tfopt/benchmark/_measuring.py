"""Measuring models in turn, each in a process of its own."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import operator
import os
import pathlib
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

from tfopt import _progress, _trust, artifacts
from tfopt.benchmark import _inputs, _models, _process
from tfopt.benchmark._measurement import Measurement, mean_profile
from tfopt.benchmark._results import Benchmark
from tfopt.benchmark._timing import Timing, all_or_none
from tfopt.types import TfoptError

_logger = logging.getLogger(__name__)
_PROFILE_RUNS = 30
# Calls that each worker gets in a round of the throughput, at least.
_CALLS_PER_WORKER = 4


@dataclasses.dataclass
class _Candidate:
    """A model on its way: its process, and what is known so far."""

    file: _models.ModelFile
    process: _process.ModelProcess | None = None
    known: dict[str, Any] = dataclasses.field(default_factory=dict)
    rounds: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    sustained: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    throughput_calls: int = 1

    def try_to(self, work: Callable[..., Any], *arguments: Any) -> None:
        """Does a piece of work on this; a failure becomes the row's reason."""
        if "error" in self.known:
            return
        try:
            work(self, *arguments)
        except TfoptError as error:
            self.known = {"error": str(error), **_sizes(self.known)}
            self.close()

    def call(self, task: str, **arguments: Any) -> Any:
        """Runs a task in the model's process."""
        if self.process is None:
            raise TfoptError("The model has no process; this is a bug in tfopt.")
        return self.process.call(task, **arguments)

    def close(self) -> None:
        """Ends the process."""
        if self.process is not None:
            self.process.close()
            self.process = None


@_trust.with_safe_mode
def benchmark_models(
    models: _models.Models | _models.Model,
    *,
    batch_size: int = 1,
    num_workers: int | Literal["auto"] = "auto",
    num_threads: int | Literal["auto"] = "auto",
    num_runs: int = 50,
    warmup_runs: int = 3,
    rounds: int = 10,
    min_round_ms: float = 20.0,
    autotune: bool = False,
    profile: bool = False,
    data: _inputs.Arrays | None = None,
    seed: int = 0,
    signature_key: str | None = None,
    inputs: Sequence[str] = (),
    outputs: Sequence[str] = (),
    cpus: Sequence[int] | None = None,
    timeout_s: float = 300.0,
    safe_mode: bool = True,
) -> Benchmark:
    """Measures latency, throughput, memory and start of models of any format.

    Each model is loaded in a process of its own. Then rounds go through all models in
    turn, A B C A B C, so that a change of the machine's mood meets all of them; for
    every round the kernel tells how long the process waited for a core. A model that
    cannot be loaded, fails or kills its process is a row with the reason.

    Args:
        models: By name; or a list, or a single one. Each a path (`.tflite`, `.keras`,
            `.h5`, a SavedModel directory, a GraphDef), an `Artifact`, the bytes of a
            `.tflite` file, or a Keras model.
        batch_size: Examples in one call. A model with a fixed batch keeps its own.
        num_workers: Parallel calls when throughput is measured. "auto": for `.tflite`
            files the available cores / `num_threads`, for others 1, as TensorFlow is
            parallel in itself.
        num_threads: Threads inside of a call. "auto": 1 for `.tflite` files, for
            others what TensorFlow takes.
        num_runs: Calls of each model that are timed, at least.
        warmup_runs: Calls before, beside the first one.
        rounds: How often it is each model's turn.
        min_round_ms: A turn lasts at least so long.
        autotune: Whether to try workers x threads x rows for `.tflite` files first and
            to take the set-up with the highest throughput.
        profile: Whether to measure in the end where the time goes, operator by
            operator.
        data: Inputs [rows, ...], one array or arrays by name; by default made up:
            normal floats, integers of one byte at random, others 0 or 1; free axes
            but the batch get 16.
        seed: Of made-up inputs, which are the same for all models with equal
            signatures.
        signature_key: The signature to run, by default the main one.
        inputs: Names of the inputs of graph files, by default their placeholders.
        outputs: Names of the outputs of graph files.
        cpus: Cores that the models' processes may use; by default all.
        timeout_s: Seconds that each step (loading, a round) may take.
        safe_mode: Refuse model files that could run code, reach other files or the
            network. False opens and runs whatever they hold.

    Returns:
        The `Benchmark`: `Measurement`s, and their report.

    Raises:
        ValueError: An option is out of range, or a model is none.
        TfoptError: A path leads to no model.

    Example:
        >>> found = benchmark_models({"ours": "model.tflite"}, num_runs=10, rounds=2)
        >>> print(found["ours"].latency)  # doctest: +SKIP
        median 0.0061 ms, min 0.0058, p90 0.0063, spread 4%, quiet 2/2
    """
    settings = Settings(
        batch_size=batch_size,
        num_workers=num_workers,
        num_threads=num_threads,
        num_runs=num_runs,
        warmup_runs=warmup_runs,
        rounds=rounds,
        min_round_ms=min_round_ms,
        autotune=autotune,
        profile=profile,
        seed=seed,
        signature_key=signature_key,
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        cpus=None if cpus is None else tuple(cpus),
        timeout_s=timeout_s,
    )
    with (
        _models.as_files(models) as files,
        artifacts.temporary_folder() as folder,
    ):
        written = None
        if data is not None:
            arrays = dict(data) if isinstance(data, Mapping) else {"": data}
            written = _process.write_arrays(pathlib.Path(folder), arrays)
        return measure(files, settings, data=written)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """The options of `benchmark_models`.

    Attributes:
        floats: Whether quantized outputs are given as floats, beside its own options.
    """

    batch_size: int = 1
    num_workers: int | Literal["auto"] = "auto"
    num_threads: int | Literal["auto"] = "auto"
    num_runs: int = 50
    warmup_runs: int = 3
    rounds: int = 10
    min_round_ms: float = 20.0
    autotune: bool = False
    profile: bool = False
    seed: int = 0
    signature_key: str | None = None
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    cpus: tuple[int, ...] | None = None
    timeout_s: float = 300.0
    floats: bool = False

    def __post_init__(self) -> None:
        for name in ("batch_size", "num_runs", "rounds"):
            _count(name, getattr(self, name))
        _count("warmup_runs", self.warmup_runs, least=0)
        for name in ("num_workers", "num_threads"):
            if getattr(self, name) != "auto":
                _count(name, getattr(self, name))
        if not 0 <= self.min_round_ms < math.inf:
            raise ValueError(
                "Expected 0 or more milliseconds. Received: "
                f"min_round_ms={self.min_round_ms!r}"
            )
        if not self.timeout_s > 0:
            raise ValueError(
                "Expected a positive number of seconds. "
                f"Received: timeout_s={self.timeout_s!r}"
            )
        if self.cpus is None:
            return
        has_pinning = hasattr(os, "sched_getaffinity")
        allowed = sorted(os.sched_getaffinity(0)) if has_pinning else []
        if not self.cpus or not set(self.cpus) <= set(allowed):
            raise ValueError(
                f"Expected cores among {allowed}, at least one. "
                f"Received: cpus={self.cpus!r}"
            )

    def engine_options(self) -> dict[str, Any]:
        """Returns what opening a model needs; see `_engine.open_engine`."""
        names = ("num_workers", "num_threads", "signature_key", "inputs", "outputs")
        return {name: getattr(self, name) for name in (*names, "floats")}


def measure(
    files: Sequence[_models.ModelFile],
    settings: Settings,
    *,
    data: str | None = None,
    finish: Callable[[_models.ModelFile, _process.ModelProcess], None] | None = None,
) -> Benchmark:
    """Measures model files in turn; see `benchmark_models`.

    Args:
        files: The models.
        settings: How.
        data: Folder of inputs by `write_arrays`; by default they are made up.
        finish: Gets each model's process after its rounds, while the model is loaded.
            A `TfoptError` of it becomes the model's reason.
    """
    candidates = [_Candidate(file) for file in files]
    with contextlib.ExitStack() as stack:
        for candidate in candidates:
            stack.callback(candidate.close)
        turns = len(candidates) * (settings.rounds + 2)
        advance = stack.enter_context(_progress.task("measuring", turns))
        for candidate in candidates:
            advance(0, what=f"loading {candidate.file.name}")
            candidate.try_to(_start, settings, data)
            advance()
        calls = math.ceil(settings.num_runs / settings.rounds)
        for number in range(settings.rounds):
            _logger.debug("round %d of %d", number + 1, settings.rounds)
            for candidate in candidates:
                advance(0, what=f"timing {candidate.file.name}")
                candidate.try_to(_round, calls, settings.min_round_ms)
                advance()
        for candidate in candidates:
            advance(0, what=f"finishing {candidate.file.name}")
            candidate.try_to(_finish, settings.profile, finish)
            advance()
    given = {**dataclasses.asdict(settings), "data": "given" if data else "made up"}
    return Benchmark(tuple(map(_measurement, candidates)), given)


def _start(candidate: _Candidate, settings: Settings, data: str | None) -> None:
    """Starts a model's process, loads it there and warms it up."""
    file = candidate.file
    _logger.debug("loading %s", file.path)
    candidate.known |= file.sizes()
    rows, options = settings.batch_size, settings.engine_options()
    if settings.autotune and file.format == "tflite":
        tried = _tune(file, settings)
        best = tried[0]
        candidate.known["autotuned"] = tuple(tried)
        rows = best["rows"]
        options |= {key: best[key] for key in ("num_workers", "num_threads")}
        _logger.info(
            "%s: %d workers x %d threads, %d rows",
            *(file.name, best["num_workers"], best["num_threads"], rows),
        )
    candidate.process = _process.ModelProcess(
        cpus=settings.cpus, timeout_s=settings.timeout_s
    )
    opened = candidate.process.call(
        "open",
        file=file.path,
        format=file.format,
        rows=rows,
        data=data,
        seed=settings.seed,
        options=options,
    )
    names = ("import_ms", "load_ms", "first_ms", "rows", "signature", "private_bytes")
    candidate.known |= {name: opened[name] for name in names} | opened["config"]
    candidate.process.call("warm_up", calls=settings.warmup_runs)


def _tune(file: _models.ModelFile, settings: Settings) -> list[dict[str, Any]]:
    cores = len(settings.cpus or os.sched_getaffinity(0))
    arguments = {
        "path": file.path,
        "cores": cores,
        "signature_key": settings.signature_key,
    }
    with _process.ModelProcess(
        cpus=settings.cpus, timeout_s=settings.timeout_s
    ) as process:
        target = "tfopt.benchmark._litert:autotune"
        return process.call("call", target=target, arguments=arguments)


def _round(candidate: _Candidate, calls: int, min_ms: float) -> None:
    first = not candidate.rounds
    candidate.rounds.append(candidate.call("sample", calls=calls, min_ms=min_ms))
    workers = candidate.known["num_workers"]
    if first:
        once_ms = statistics.median(candidate.rounds[0]["calls_ms"])
        enough = math.ceil(min_ms / max(once_ms, 1e-3))
        candidate.throughput_calls = workers * max(_CALLS_PER_WORKER, enough)
    candidate.sustained.append(
        candidate.call("throughput", calls=candidate.throughput_calls)
    )


def _finish(
    candidate: _Candidate,
    profile: bool,
    finish: Callable[[_models.ModelFile, _process.ModelProcess], None] | None,
) -> None:
    candidate.known |= candidate.call("memory")
    if profile:
        try:
            found = candidate.call("profile", runs=_PROFILE_RUNS)
            candidate.known["profile"] = mean_profile(found["runs"])
            candidate.known["notes"] = tuple(filter(None, [found["note"]]))
        except TfoptError as error:  # what was measured before stays
            candidate.known["notes"] = (f"No profile: {error}",)
    if finish is not None and candidate.process is not None:
        finish(candidate.file, candidate.process)
    candidate.close()


def _measurement(candidate: _Candidate) -> Measurement:
    file, known = candidate.file, candidate.known
    where: dict[str, Any] = {
        "name": file.name,
        "path": file.shown_path,
        "format": file.format,
    }
    if "error" in known:
        return Measurement(**where, **known)
    rounds, sustained = candidate.rounds, candidate.sustained
    rows = known["rows"] * candidate.throughput_calls
    return Measurement(
        **where,
        **known,
        calls_ms=tuple(time for item in rounds for time in item["calls_ms"]),
        latency=Timing(
            samples_ms=tuple(statistics.median(item["calls_ms"]) for item in rounds),
            calls_per_sample=len(rounds[0]["calls_ms"]),
            queue_shares=_shares(rounds),
        ),
        throughput=Timing(
            samples_ms=tuple(item["seconds"] * 1e3 / rows for item in sustained),
            calls_per_sample=candidate.throughput_calls,
            queue_shares=_shares(sustained),
        ),
    )


def _shares(samples: Iterable[dict[str, Any]]) -> tuple[float, ...] | None:
    return all_or_none([item["queue_share"] for item in samples])


def _sizes(known: dict[str, Any]) -> dict[str, Any]:
    return {key: known[key] for key in ("size_bytes", "gzip_bytes") if key in known}


def _count(name: str, value: Any, *, least: int = 1) -> None:
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if number < least or isinstance(value, bool):
        raise ValueError(
            f"Expected a whole number from {least} on. Received: {name}={value!r}"
        )
