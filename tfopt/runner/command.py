"""The function behind the command `run_tflite`."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import time
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np

from tfopt import _progress, artifacts
from tfopt.runner import Runner
from tfopt.runner._engine import one_line
from tfopt.runner._files import Outputs, read_inputs
from tfopt.types import RunError, TfoptError, UsageError

_CHUNK_BYTES = 4 << 20  # of inputs, handed to the Runner at once
_MAX_BATCHES = 16


@dataclasses.dataclass(frozen=True)
class Run:
    """What the command prints.

    Attributes:
        model: Path of the model.
        signature: What was called.
        rows: Rows of the inputs.
        output: Path of the result.
        outputs: Type and shape of each array in it, by name.
        open_seconds: To open the model, measuring included.
        run_seconds: To run all rows, reading and writing included.
        rows_per_second: Throughput of the run.
        num_workers: Interpreters.
        num_threads: Threads of each.
        batch_size: The most rows of an invocation; None: not cut.
        plan: How these were found.
        specialized: What was rewritten in memory for speed.
        isolated: Whether the interpreters had processes of their own.
    """

    model: str
    signature: str
    rows: int
    output: str
    outputs: dict[str, dict[str, Any]]
    open_seconds: float
    run_seconds: float
    rows_per_second: float
    num_workers: int
    num_threads: int
    batch_size: int | None
    plan: str
    specialized: tuple[str, ...]
    isolated: bool

    def __str__(self) -> str:
        size = os.path.getsize(self.output)
        lines = [f"{self.output}: {size:,} bytes"]
        for name, info in self.outputs.items():
            lines.append(f"{name}: {info['dtype']} {info['shape']}")
        lines.append(
            f"{self.rows:,} rows in {self.run_seconds:.3g} s, "
            f"{self.rows_per_second:,.0f} rows/s with {self.plan}"
        )
        return "\n".join([*lines, *self.specialized])


def run_tflite(
    *,
    model: str,
    input: Sequence[str],
    output: str,
    signature_key: str | None = None,
    batch_size: int | Literal["auto"] | None = "auto",
    num_workers: int | Literal["auto"] = "auto",
    num_threads: int | Literal["auto"] = "auto",
    quantized_io: Literal["auto", "float", "raw"] = "auto",
    specialize: bool = True,
    isolate: bool = True,
    timeout_s: float | None = None,
    max_memory: int | None = None,
    tuning_cache: str | None = None,
) -> Run:
    """Runs a model on arrays in files.

    Args:
        model: The .tflite file.
        input: A .npz file with an array for each input by name, or a .npy file, which
            is memory-mapped, so it may be larger than the memory; with several
            inputs NAME=FILE.npy for each.
        output: File for the outputs: .npz with an array for each by name, or .npy
            where there is only one.
        signature_key: Signature to run, by default serving_default or the only one.
        batch_size: Rows of one invocation; none to run all at once.
        num_workers: Interpreters that work in parallel.
        num_threads: Threads inside of each interpreter.
        quantized_io: Whether outputs of a quantized model are floats: as the inputs
            are (auto), always (float), or never (raw).
        specialize: Whether to rewrite int8 convolutions in memory where that is faster.
        isolate: Whether interpreters run in processes of their own, so that a model
            that crashes them is an error; without it a trusted model starts sooner.
        timeout_s: Seconds that loading or one invocation may take, with isolate.
        max_memory: Bytes that the weights and activations of all workers may take.
        tuning_cache: File that keeps measured choices for the next time.

    Raises:
        UsageError: The files do not go together with the model.
        ValueError: The arrays do not fit the model.
        TfoptError: The model cannot be run, or a file cannot be read or written.
    """
    begin = time.perf_counter()
    suffix = pathlib.Path(output).suffix
    if suffix not in (".npz", ".npy"):
        raise UsageError(
            "The form of the output is unclear. Expected a name that ends with .npz "
            f"or .npy. Received: output={output}"
        )
    with Runner(
        model,
        signature_key=signature_key,
        batch_size=batch_size,
        num_workers=num_workers,
        num_threads=num_threads,
        quantized_io=quantized_io,
        specialize=specialize,
        isolate=isolate,
        timeout_s=timeout_s,
        max_memory=max_memory,
        tuning_cache=tuning_cache,
    ) as runner:
        names = [info.name for info in runner.signature.outputs]
        if suffix == ".npy" and len(names) != 1:
            raise UsageError(
                "A .npy file holds one array. Expected --output=FILE.npz for the "
                f"outputs {', '.join(names)}. Received: output={output}"
            )
        opened = time.perf_counter()
        arrays = read_inputs(input, runner.signature)
        with artifacts.atomic_path(output) as temporary:
            outputs = Outputs(temporary.parent)
            rows = _run(runner, arrays, outputs)
            written = outputs.write(temporary)
        seconds = time.perf_counter() - opened
        return Run(
            model=model,
            signature=str(runner.signature),
            rows=rows,
            output=output,
            outputs=written,
            open_seconds=opened - begin,
            run_seconds=seconds,
            rows_per_second=rows / seconds,
            num_workers=runner.num_workers,
            num_threads=runner.num_threads,
            batch_size=runner.batch_size,
            plan=runner.plan,
            specialized=runner.specialized,
            isolated=isolate,
        )


def _run(runner: Runner, arrays: dict[str, np.ndarray], outputs: Outputs) -> int:
    """Runs all rows, chunk by chunk; returns their number."""
    names = [info.name for info in runner.signature.outputs]
    batching = runner.batching(arrays)
    rows, step = batching.rows, batching.batch_rows

    def by_name(result: Any) -> dict[str, np.ndarray]:
        return result if isinstance(result, dict) else {names[0]: result}

    if not step or rows <= step:
        outputs.add(by_name(runner.run(arrays)))
        return rows
    batch_bytes = step * sum(
        array[:1].nbytes for name, array in arrays.items() if name in batching.inputs
    )
    chunk = step * max(1, min(_MAX_BATCHES, _CHUNK_BYTES // max(batch_bytes, 1)))

    def chunks() -> Iterator[dict[str, np.ndarray]]:
        for start in range(0, rows, chunk):
            yield {
                name: array[start : start + chunk] if name in batching.inputs else array
                for name, array in arrays.items()
            }

    with _progress.task("rows", rows) as advance:
        try:
            for index, result in enumerate(runner.map(chunks())):
                outputs.add(by_name(result))
                advance(min(chunk, rows - index * chunk))
        except RunError as error:
            first, end = (error.batch * chunk + row for row in error.rows)
            raise TfoptError(
                f"Rows {first} to {end - 1} failed: "
                f"{one_line(error.__cause__ or error)}"
            ) from error
    return rows
