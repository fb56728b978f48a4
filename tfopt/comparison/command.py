"""The function behind the command `compare_models`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from tfopt import _trust, comparison
from tfopt.benchmark import _models
from tfopt.comparison import _examples
from tfopt.report import Report


@_trust.with_safe_mode
def compare_models(
    *,
    model: Sequence[str],
    data: str,
    reference: str | None = None,
    metric: Sequence[str] | None = None,
    output: str | None = None,
    output_dir: str | None = None,
    input_scale: float = 1.0,
    num_examples: int | None = None,
    batch_size: int = 1,
    num_workers: int | Literal["auto"] = "auto",
    num_threads: int | Literal["auto"] = "auto",
    num_runs: int = 30,
    profile: bool = False,
    signature_key: str | None = None,
    inputs: Sequence[str] = (),
    outputs: Sequence[str] = (),
    cpus: Sequence[int] | None = None,
    timeout_s: float = 600.0,
    safe_mode: bool = True,
) -> Report:
    """Compares models of any formats on the same examples.

    Args:
        model: A .tflite, .keras, .h5, .pb file or SavedModel directory, or name=path;
            may be repeated.
        data: A .npz file with x_test (x_test/NAME for several inputs) and, for metrics,
            y_test; or module:function.
        reference: Name of the model to agree with, by default the first.
        metric: Any of accuracy, top_5, auc, f1, mse, mae, cosine, mean_iou, or
            module:function; by default accuracy, if there are labels.
        output: The output that is judged, where there are several.
        output_dir: Folder for report.md, report.json, report.html and PNG plots.
        input_scale: Factor on the inputs, such as 0.00392156863 (1/255) for pixels.
        num_examples: Take only the first so many.
        batch_size: Examples in one call when time is measured.
        num_workers: Parallel calls for the throughput.
        num_threads: Threads inside of a call.
        num_runs: Calls of each model that are timed, at least.
        profile: Whether to measure what each operator takes.
        signature_key: The signature to run.
        inputs: Inputs of graph files, by default their placeholders.
        outputs: Outputs of graph files.
        cpus: Cores that models may use.
        timeout_s: Seconds that loading a model, or running all examples, may take.
        safe_mode: Refuse model files that could run code, reach other files or the
            network.

    Raises:
        TfoptError: The data or the reference fail.
        ValueError: An option is out of range.
    """
    examples = _examples.load(data, limit=num_examples).scaled(input_scale)
    return comparison.compare(
        _models.parse(model),
        data=(examples.inputs, examples.labels),
        reference=reference,
        metric=metric,
        output=output,
        output_dir=output_dir,
        batch_size=batch_size,
        num_workers=num_workers,
        num_threads=num_threads,
        num_runs=num_runs,
        profile=profile,
        signature_key=signature_key,
        inputs=inputs,
        outputs=outputs,
        cpus=cpus,
        timeout_s=timeout_s,
    )
