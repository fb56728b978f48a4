"""Graph rewrites, in the manner of the Graph Transform Tool."""

from __future__ import annotations

import contextlib
import os
import typing
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from tfopt import _trust, artifacts
from tfopt.savedmodel import graphs, outside
from tfopt.transforms import _contents, _registry, _run, _sources, _verifier
from tfopt.transforms._run import Verify
from tfopt.transforms._sources import OutputFormat
from tfopt.types import Artifact

# Digests and compressed sizes of larger outputs would take long.
_MEASURE_UP_TO = 64 << 20


@_trust.with_safe_mode
def transform_graph(
    source: Any,
    output: str | os.PathLike[str],
    transforms: str | Sequence[str | tuple[str, Mapping[str, Any]]],
    *,
    inputs: Sequence[str] | None = None,
    outputs: Sequence[str] | None = None,
    signature_keys: Sequence[str] | None = None,
    tags: Collection[str] | None = None,
    output_format: OutputFormat | None = None,
    init_op: str | None = None,
    asset_feeds: Mapping[str, str] | None = None,
    variable_names_denylist: Sequence[str] = (),
    keep_variables_over: int | None = None,
    verify: Verify = "outputs",
    verify_data: str | None = None,
    safe_mode: bool = True,
) -> Artifact:
    """Rewrites a graph by a list of transforms, and checks every one of them.

    Takes what TensorFlow's Graph Transform Tool took, and SavedModels as well. Each
    transform declares what it keeps: outputs equal bit by bit, close, or merely
    measured; nodes; types. After each one the graph's structure is checked, and a child
    process runs it on the same inputs as the original, TensorFlow's own optimizer off.
    If a transform breaks its promise, an error names it and nothing is written.

    Args:
        source: A GraphDef (a `.pb` or `.pbtxt` file, its bytes, the message, or a
            tf.Graph), or whatever `tfopt.freeze` takes: a SavedModel directory, a Keras
            model or its file, a tf.Module, a ConcreteFunction. That is frozen first.
        output: The file, or for `"saved_model"` the directory, to write. What stands
            there is replaced once the new one is complete.
        transforms: The transforms and presets to apply, in order: a text in the Graph
            Transform Tool's syntax, or a list of such texts and of pairs of a name and
            a dictionary of options.
        inputs: Tensors or nodes of a GraphDef that callers feed; by default the
            placeholders that the outputs need.
        outputs: Tensors or nodes of a GraphDef that callers fetch.
        signature_keys: Signatures of a model to keep, by default all for inference.
        tags: Tag set of a SavedModel's graph, by default `{"serve"}`.
        output_format: `"graph_def"` (binary protobuf), `"text"` (the same as text) or
            `"saved_model"`, which keeps signatures, tables, assets and the variables
            that cannot be frozen. By default what the suffix of `output` says: `.pb`,
            `.pbtxt`, or else a SavedModel.
        init_op: Node of a GraphDef that has to be run before others, to fill tables; it
            is kept.
        asset_feeds: Tensor -> file that the init op is fed.
        variable_names_denylist: See `tfopt.freeze`.
        keep_variables_over: See `tfopt.freeze`.
        verify: `"outputs"`: the graph is run after every transform. `"final"`: only
            after the last one. `"structure"`: never; of the last graph inputs and
            outputs of nodes are compared with TensorFlow's registry of operations.
        verify_data: An .npz file with one array per input for running the graph; by
            default inputs are made up from types and shapes.
        safe_mode: Refuse model files that could run code, reach other files or the
            network. False opens and runs whatever they hold.

    Returns:
        The written artifact. Its `details` hold, for each transform, options, seconds,
        nodes and bytes before and after, its findings, and the largest and mean error
        of each output against the source; and what the graph's bytes are.

    Raises:
        ValueError: A list of transforms that cannot be read, an unknown transform or
            option, or options that don't fit the source.
        TfoptError: The source cannot be read, or a transform cannot be applied.
        ConversionError: The source cannot be frozen, or the output is over 2 GiB.
        VerificationError: A transform didn't keep its promise, or the source cannot be
            run; nothing is written.

    Example:
        >>> artifact = transform_graph("saved_model", "small.pb", "remove_device")
        >>> [step["name"] for step in artifact.details["steps"]]
        ['remove_device']
    """
    _check_options(
        verify=verify,
        output_format=output_format,
        lists={
            "inputs": inputs,
            "outputs": outputs,
            "signature_keys": signature_keys,
            "tags": tags,
            "variable_names_denylist": variable_names_denylist,
        },
    )
    steps = _registry.resolve(transforms)
    form = _sources.output_format_of(source, output, output_format)
    if verify != "structure" and isinstance(source, (str, os.PathLike)):
        outside.check_file(source, "run", tags)
    with contextlib.ExitStack() as stack:
        stack.enter_context(graphs.errors_of(source))
        verifier = None
        if verify != "structure":
            # First, as TensorFlow takes seconds to load.
            verifier = stack.enter_context(_verifier.open_verifier())
        opened = stack.enter_context(
            _sources.open_source(
                source,
                output_format=form,
                inputs=inputs,
                outputs=outputs,
                signature_keys=signature_keys,
                tags=tags,
                init_op=init_op,
                asset_feeds=asset_feeds or {},
                freeze_options={
                    "variable_names_denylist": variable_names_denylist,
                    "keep_variables_over": keep_variables_over,
                },
            )
        )
        graph_def, report = _run.run(
            opened, steps, verify=verify, verify_data=verify_data, verifier=verifier
        )
        with artifacts.atomic_path(output) as temporary:
            _sources.write(opened, graph_def, temporary, form)
    return artifacts.describe(
        output,
        "graph_def" if form == "text" else form,
        signature=opened.signature,
        history=[
            {
                "operation": "transform_graph",
                "source": opened.where,
                "transforms": [str(step) for step in steps],
            }
        ],
        details=_details(opened, graph_def, report, verify),
        measure_up_to=_MEASURE_UP_TO,
    )


def _check_options(
    *, verify: str, output_format: str | None, lists: Mapping[str, Any]
) -> None:
    for name, value, choices in (
        ("verify", verify, typing.get_args(Verify)),
        ("output_format", output_format, (None, *typing.get_args(OutputFormat))),
    ):
        if value not in choices:
            raise ValueError(
                f"Unknown {name}. Expected one of {choices}. Received: {name}={value!r}"
            )
    for name, value in lists.items():
        if isinstance(value, str):
            raise ValueError(f"Expected a list of strings. Received: {name}={value!r}")


def _details(
    opened: _sources.Source, graph_def: Any, report: _run.Report, verify: str
) -> dict[str, Any]:
    return {
        "nodes_before": report.before["nodes"],
        "nodes": opened.graph.num_nodes,
        "functions_before": report.before["functions"],
        "functions": len(opened.graph.functions),
        "graph_bytes_before": report.before["bytes"],
        "graph_bytes": graph_def.ByteSize(),
        **_contents.contents(opened.graph),
        "steps": report.steps,
        "outputs": report.outputs,
        "verified": verify,
        "transform_seconds": round(report.transform_seconds, 6),
        "verify_seconds": round(report.verify_seconds, 6),
        "signatures": {
            key: {"inputs": call.inputs, "outputs": call.outputs}
            for key, call in opened.calls.items()
        },
        "init_op": opened.init_op,
        "asset_feeds": dict(opened.asset_feeds),
        "kept_variables": (opened.frozen or {}).get("kept_variables", []),
    }
