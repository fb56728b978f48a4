"""TensorFlow's graph optimizer, Grappler, offline and under control."""

from __future__ import annotations

import logging
import os
import pathlib
import typing
from collections.abc import Collection, Sequence
from typing import Any, Literal

from tfopt import _progress, _trust, artifacts
from tfopt.grappler import model as models
from tfopt.grappler import optimizing
from tfopt.grappler.config import GrapplerConfig, Preset
from tfopt.types import Artifact

__all__ = ["GrapplerConfig", "explain_graph", "measure_costs", "optimize_graph"]

OutputFormat = Literal["graph_def", "saved_model", "text"]
Verify = Literal["structure", "execution"]

_FORMATS = {".pb": "graph_def", ".pbtxt": "text"}
# Digests of larger outputs would take longer than writing them.
_MEASURE_UP_TO = 8 << 20
_LOGGER = logging.getLogger(__name__)


@_trust.with_safe_mode
@_progress.task("optimizing the graph")
def optimize_graph(
    source: Any,
    output: str | os.PathLike[str],
    config: GrapplerConfig | Preset | None = None,
    *,
    outputs: Sequence[str] = (),
    signature_keys: Sequence[str] | None = None,
    tags: Collection[str] | None = None,
    output_format: OutputFormat | None = None,
    timeout_s: float = 600.0,
    verify: Verify = "execution",
    verify_data: str | None = None,
    tolerance: float | None = None,
    safe_mode: bool = True,
) -> Artifact:
    """Rewrites a model by TensorFlow's own graph optimizer, for good.

    The source is frozen on the way, as Grappler can fold only constants. The result is
    portable: no node is bound to a device, all operations are public ones, and branches
    and loops stay functional. Grappler runs in a child process, so that a crash or a
    hang of an optimizer is an error here.

    Unless the configuration says otherwise, graphs of any size are optimized
    (`min_graph_nodes=-1`), an optimizer's failure is an error
    (`fail_on_optimizer_errors=True`), and TensorFlow's own silent time limit is off
    (`meta_optimizer_timeout_ms=-1`): what is left is `timeout_s`.

    Args:
        source: Whatever `tfopt.freeze` takes: a SavedModel directory, a Keras model or
            its file, a tf.Module, tf.function or ConcreteFunction; or a frozen graph
            (`.pb`, `.pbtxt`) with `outputs`.
        output: The file or directory to write. What stands there is replaced once the
            new one is complete.
        config: The options, or a preset's name; by default those of TensorFlow.
        outputs: Names of the outputs of a graph file, with or without `:0`.
        signature_keys: Signatures to keep, by default all for inference.
        tags: Tag set of the SavedModel's graph, by default `{"serve"}`.
        output_format: `"graph_def"`, `"text"` or `"saved_model"`, which keeps
            signatures, tables, assets and variables; by default what the suffix of
            `output` says (`.pb`, `.pbtxt`, or a directory).
        timeout_s: Seconds that Grappler may take.
        verify: `"structure"`: the graph is complete and portable. `"execution"`:
            moreover the source and the result compute the same in a child process,
            TensorFlow's optimizations at run time switched off.
        verify_data: An .npz file with one array per input for `"execution"`; by default
            inputs are made up.
        tolerance: Largest difference allowed of an output, as a fraction of its largest
            magnitude. By default 0 for the preset `"lossless"`, and otherwise 1000
            rounding units of its type; none if the configuration reduces precision,
            whose error is only reported.
        safe_mode: Refuse model files that could run code, reach other files or the
            network. False opens and runs whatever they hold.

    Returns:
        The written artifact. Its `details` hold node counts before and after, the
        largest error, what each optimizer did, and what `tfopt.freeze` tells.

    Raises:
        ValueError: An option that doesn't fit the source, or names nothing.
        TfoptError: The source is damaged, or tags or signatures don't exist.
        ConversionError: Grappler fails, crashes or takes too long, or the output would
            be over 2 GiB.
        VerificationError: The result isn't what was promised; nothing is written.

    Example:
        >>> artifact = optimize_graph("saved_model", "fast", "lossless")
        >>> artifact.details["max_error"]
        0.0
    """
    form = _form(output, output_format)
    _check_options(verify, timeout_s, tolerance, signature_keys, tags)
    chosen = resolve(config)
    with (
        models.open_model(
            source,
            outputs=outputs,
            signature_keys=signature_keys,
            tags=tags,
            as_graph=form != "saved_model",
            runs=verify == "execution",
        ) as model,
        artifacts.temporary_folder() as work,
        artifacts.atomic_path(output) as temporary,
    ):
        done = optimizing.optimize(model, chosen, pathlib.Path(work), timeout_s)
        optimizing.check(model, done.graph)
        model.write(temporary, form, done.graph, done.op_list)
        details = optimizing.details(model, done, chosen, form)
        if verify == "execution":
            details |= optimizing.compare(
                model, chosen, temporary, form, data=verify_data, tolerance=tolerance
            )
        signature = model.signature
        where = model.where
    for warning in details["warnings"]:
        _LOGGER.warning("%s", warning)
    return artifacts.describe(
        output,
        "graph_def" if form == "text" else form,
        signature=signature,
        history=[
            {
                "operation": "optimize_graph",
                "source": where,
                "config": chosen.get_config(),
            }
        ],
        details=details,
        measure_up_to=_MEASURE_UP_TO,
    )


def resolve(config: GrapplerConfig | Preset | None) -> GrapplerConfig:
    """Returns the configuration that an argument means.

    Raises:
        ValueError: It is neither a configuration nor the name of a preset.
    """
    if config is None:
        return GrapplerConfig()
    if isinstance(config, GrapplerConfig):
        return config
    if isinstance(config, str):
        return GrapplerConfig.preset(config)
    raise ValueError(
        "Expected a GrapplerConfig or the name of a preset. "
        f"Received: config={config!r}"
    )


def _form(output: Any, output_format: str | None) -> str:
    if output_format is None:
        return _FORMATS.get(pathlib.Path(output).suffix, "saved_model")
    if output_format not in typing.get_args(OutputFormat):
        raise ValueError(
            f"Unknown output_format. Expected one of {typing.get_args(OutputFormat)}. "
            f"Received: output_format={output_format!r}"
        )
    return output_format


def _check_options(
    verify: str,
    timeout_s: float,
    tolerance: float | None,
    signature_keys: Any,
    tags: Any,
) -> None:
    if verify not in typing.get_args(Verify):
        raise ValueError(
            f"Unknown verify. Expected one of {typing.get_args(Verify)}. "
            f"Received: verify={verify!r}"
        )
    if not timeout_s > 0:
        raise ValueError(
            f"Expected a positive number of seconds. Received: timeout_s={timeout_s}"
        )
    if tolerance is not None and not tolerance >= 0:
        raise ValueError(f"Expected 0 or more. Received: tolerance={tolerance}")
    for name, value in (("signature_keys", signature_keys), ("tags", tags)):
        if isinstance(value, str):
            raise ValueError(f"Expected a list of strings. Received: {name}={value!r}")


def __getattr__(name: str) -> Any:
    # Reports take more imports than rewriting does.
    if name == "explain_graph":
        from tfopt.grappler.explaining import explain_graph

        return explain_graph
    if name == "measure_costs":
        from tfopt.grappler.costs import measure_costs

        return measure_costs
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
