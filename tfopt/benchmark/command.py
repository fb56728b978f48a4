"""The function behind the command `benchmark_model`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from tfopt import _trust
from tfopt import data as datasets
from tfopt.benchmark import _measuring, _models
from tfopt.benchmark._results import Benchmark
from tfopt.types import TfoptError


@_trust.with_safe_mode
def benchmark_model(
    *,
    model: Sequence[str],
    batch_size: int = 1,
    num_workers: int | Literal["auto"] = "auto",
    num_threads: int | Literal["auto"] = "auto",
    num_runs: int = 50,
    warmup_runs: int = 3,
    rounds: int = 10,
    min_round_ms: float = 20.0,
    autotune: bool = False,
    profile: bool = False,
    data: str | None = None,
    seed: int = 0,
    signature_key: str | None = None,
    inputs: Sequence[str] = (),
    outputs: Sequence[str] = (),
    cpus: Sequence[int] | None = None,
    timeout_s: float = 300.0,
    safe_mode: bool = True,
) -> Benchmark:
    """Measures models of any format in turn, each in a process of its own.

    Args:
        model: A .tflite, .keras, .h5, .pb file or SavedModel directory, or name=path;
            may be repeated.
        batch_size: Examples in one call.
        num_workers: Parallel calls for the throughput; auto: the available cores /
            num_threads for .tflite files, else 1.
        num_threads: Threads inside of a call; auto: 1 for .tflite files, else
            TensorFlow's own choice.
        num_runs: Calls of each model that are timed, at least.
        warmup_runs: Calls that are not timed.
        rounds: How often it is each model's turn.
        min_round_ms: Milliseconds that a turn lasts at least.
        autotune: Whether to look for the best workers, threads and rows of .tflite
            files first.
        profile: Whether to list in the end what each operator takes.
        data: A .npz file (x_test, or arrays by input name) or module:function with the
            inputs; by default they are made up.
        seed: Seed of made-up inputs.
        signature_key: The signature to run.
        inputs: Inputs of graph files, by default their placeholders.
        outputs: Outputs of graph files.
        cpus: Cores that models may use.
        timeout_s: Seconds that loading a model, or a round, may take.
        safe_mode: Refuse model files that could run code, reach other files or the
            network.

    Raises:
        TfoptError: No model could be measured.
        ValueError: An option is out of range.
    """
    found = _measuring.benchmark_models(
        _models.parse(model),
        batch_size=batch_size,
        num_workers=num_workers,
        num_threads=num_threads,
        num_runs=num_runs,
        warmup_runs=warmup_runs,
        rounds=rounds,
        min_round_ms=min_round_ms,
        autotune=autotune,
        profile=profile,
        data=None if data is None else datasets.load_examples(data)[0],
        seed=seed,
        signature_key=signature_key,
        inputs=inputs,
        outputs=outputs,
        cpus=cpus,
        timeout_s=timeout_s,
    )
    errors = [f"{item.name}: {item.error}" for item in found.measurements if item.error]
    if len(errors) == len(found.measurements):
        raise TfoptError(f"No model could be measured. {'; '.join(errors)}")
    return found
