"""Freezing: variables become constants, file to file, without a TensorFlow runtime."""

from __future__ import annotations

import logging
import os
import pathlib
import typing
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

from tfopt import _progress, _trust, artifacts
from tfopt.freezing import checking, report, rewrite, sources, state
from tfopt.freezing import output as outputs
from tfopt.freezing import plan as plans
from tfopt.freezing.output import FrozenModel
from tfopt.savedmodel import graphs, outside
from tfopt.types import Artifact

# Digests of larger outputs would take longer than writing them.
_MEASURE_UP_TO = 8 << 20

OutputFormat = Literal["graph_def", "saved_model", "text"]
Stateful = Literal["keep", "error"]
Verify = Literal["structure", "bytes", "execution"]

_LOGGER = logging.getLogger(__name__)


@_trust.with_safe_mode
@_progress.task("freezing")
def freeze(
    source: Any,
    output: str | os.PathLike[str],
    *,
    signature_keys: Sequence[str] | None = None,
    tags: Collection[str] | None = None,
    output_format: OutputFormat = "graph_def",
    inline_functions: bool = False,
    variable_names_denylist: Sequence[str] = (),
    keep_variables_over: int | None = None,
    stateful: Stateful = "keep",
    clear_devices: bool = True,
    checkpoint: str | None = None,
    output_node_names: Sequence[str] = (),
    verify: Verify = "bytes",
    verify_data: str | None = None,
    safe_mode: bool = True,
) -> Artifact:
    """Turns a model's variables into constants.

    Works on files: the graph is rewritten as a message, and the variables' bytes are
    copied from the checkpoint to the output, checked by their checksums. So it takes
    neither a TensorFlow runtime nor memory for the weights, and it handles what a
    session cannot: lookup tables, vocabularies, embeddings in loops and branches.

    A variable that the model writes (a counter, the state of a random generator) stays
    a variable, initialised to its saved value; the result lists it with the operation
    that writes it. Freezing pays for small models, where TensorFlow can then fold and
    fuse more; it makes large ones slower to load, of which the result warns.

    Args:
        source: A SavedModel directory of TF1 or TF2; a TF1 graph (`.meta`, or a
            GraphDef in `.pb` or `.pbtxt`) with `checkpoint` and `output_node_names`; a
            Keras model of either version, or its `.keras` or `.h5` file; a tf.Module
            with signatures, a tf.function or a ConcreteFunction.
        output: The file, or for `"saved_model"` the directory, to write. What stands
            there is replaced once the new one is complete.
        signature_keys: Signatures to keep, by default all for inference.
        tags: Tag set of the SavedModel's graph, by default `{"serve"}`.
        output_format: `"graph_def"` (binary protobuf), `"text"` (the same as text) or
            `"saved_model"`, which keeps signatures, tables and assets.
        inline_functions: Whether to replace calls by the functions' bodies. This takes
            the TensorFlow runtime, and TensorFlow does it itself when it loads a graph;
            it is meant for tools that don't understand functions.
        variable_names_denylist: Names or patterns (`"embedding/*"`) of variables that
            stay variables.
        keep_variables_over: Variables of more than this many bytes stay variables;
            only with `output_format="saved_model"`, which stores them beside the graph.
        stateful: What to do about variables that the model writes: `"keep"` them, or
            raise an `"error"`.
        clear_devices: Whether to drop the devices that nodes were assigned to.
        checkpoint: Prefix of the checkpoint of a TF1 graph.
        output_node_names: Outputs of a TF1 graph.
        verify: `"structure"`: no variable is left except those kept, and nothing is
            missing. `"bytes"`: moreover the written constants equal the checkpoint.
            `"execution"`: moreover a child process runs the model and its frozen form
            on the same inputs, and they agree: bit by bit, and within rounding when
            TensorFlow optimizes both.
        verify_data: An .npz file with one array per input for `"execution"`; by default
            inputs are made up.
        safe_mode: Refuse model files that could run code, reach other files or the
            network. False opens and runs whatever they hold.

    Returns:
        The written artifact. Its `details` hold counts, kept variables, the init op
        with the asset files it must be fed, warnings, and findings of `verify`.

    Raises:
        ValueError: An option that doesn't fit the source, or names nothing.
        TfoptError: The source is damaged, or tags or signatures don't exist.
        ConversionError: The output would be over 2 GiB, or a variable's value cannot be
            found, or is written and `stateful="error"`.
        VerificationError: The result isn't what was promised; nothing is written.

    Example:
        >>> artifact = freeze("saved_model", "frozen.pb")
        >>> artifact.format, len(artifact.details["kept_variables"])
        ('graph_def', 0)
    """
    _check_options(
        output_format=output_format,
        stateful=stateful,
        verify=verify,
        keep_variables_over=keep_variables_over,
        lists={
            "signature_keys": signature_keys,
            "tags": tags,
            "variable_names_denylist": variable_names_denylist,
            "output_node_names": output_node_names,
        },
    )
    if verify == "execution" and isinstance(source, (str, os.PathLike)):
        outside.check_file(source, "run", tags)
    with (
        graphs.errors_of(source),
        sources.open_source(
            source,
            signature_keys=signature_keys,
            tags=tags,
            checkpoint=checkpoint,
            output_node_names=output_node_names,
        ) as opened,
    ):
        plan = plans.make_plan(
            opened,
            denylist=variable_names_denylist,
            keep_over=keep_variables_over,
            stateful=stateful,
            has_variables=output_format == "saved_model",
        )
        graph = rewrite.rewrite(
            plan.nodes, opened.library, plan.frozen, clear_devices=clear_devices
        )
        first = state.add_state(plan, graph)
        if inline_functions:
            from tfopt.freezing import inlining

            graph = inlining.inline(opened, graph, first)
        model = FrozenModel(opened, plan, graph, first, output_format)
        details = report.details(model)
        with artifacts.atomic_path(output) as temporary:
            # Bytes that are compared afterwards need no check while they are copied.
            checksums = verify == "structure" or output_format == "text"
            outputs.write(model, temporary, checksums=checksums)
            details["verified"] = _verify(model, temporary, verify, verify_data)
        for warning in details["warnings"]:
            _LOGGER.warning("%s", warning)
        return artifacts.describe(
            output,
            "graph_def" if output_format == "text" else output_format,
            signature=report.main_signature(opened),
            history=[{"operation": "freeze", "source": opened.where}],
            details=details,
            measure_up_to=_MEASURE_UP_TO,
        )


def _check_options(
    *,
    output_format: str,
    stateful: str,
    verify: str,
    keep_variables_over: int | None,
    lists: Mapping[str, Any],
) -> None:
    for name, value, choices in (
        ("output_format", output_format, typing.get_args(OutputFormat)),
        ("stateful", stateful, typing.get_args(Stateful)),
        ("verify", verify, typing.get_args(Verify)),
    ):
        if value not in choices:
            raise ValueError(
                f"Unknown {name}. Expected one of {choices}. Received: {name}={value!r}"
            )
    for name, value in lists.items():
        if isinstance(value, str):
            raise ValueError(f"Expected a list of strings. Received: {name}={value!r}")
    if keep_variables_over is not None and output_format != "saved_model":
        raise ValueError(
            "Only a SavedModel can hold variables beside the graph. Expected "
            '`keep_variables_over` with output_format="saved_model". '
            f"Received: keep_variables_over={keep_variables_over}, "
            f"output_format={output_format!r}"
        )


def _verify(
    model: FrozenModel, path: pathlib.Path, level: Verify, data: str | None
) -> dict[str, Any]:
    """Checks the written output, and returns what was checked."""
    source, graph, first = model.source, model.graph, model.state
    written = None
    if model.output_format != "text":
        kind = "SavedModel" if model.is_saved_model else "GraphDef"
        written = checking.read_back(model.message_path(path), kind)
    checking.check_structure(
        outputs.value_less(model) if written is None else written.graph,
        kept=model.plan.kept,
        tensors=[*source.entry_nodes, *filter(None, [first.init_op])],
        has_checkpoint=bool(first.stored),
    )
    done: dict[str, Any] = {"structure": True}
    if level == "structure":
        return done
    if written is not None and source.checkpoint is not None:
        done["constant_bytes"] = checking.check_bytes(
            written, graph.constants, source.checkpoint
        )
    if level == "execution":
        done["execution"] = checking.check_execution(
            report.original_model(source),
            report.frozen_model(model, path),
            source.signatures,
            data=data,
        )
    return done
