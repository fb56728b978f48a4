"""Freezing: variables become constants, file to file, without a TensorFlow runtime."""

from __future__ import annotations

import logging
import os
import pathlib
from collections.abc import Collection, Sequence
from typing import Any, Literal

from tfopt import artifacts
from tfopt.freezing import checking, report, rewrite, sources, state
from tfopt.freezing import output as outputs
from tfopt.freezing import plan as plans
from tfopt.freezing.plan import Plan
from tfopt.freezing.rewrite import Rewritten
from tfopt.freezing.sources import Source
from tfopt.freezing.state import State
from tfopt.types import Artifact

# Digests of larger outputs would take longer than writing them.
_MEASURE_UP_TO = 8 << 20

OutputFormat = Literal["graph_def", "saved_model", "text"]
Verify = Literal["structure", "bytes", "execution"]

_LOGGER = logging.getLogger(__name__)


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
    stateful: Literal["keep", "error"] = "keep",
    clear_devices: bool = True,
    checkpoint: str | None = None,
    output_node_names: Sequence[str] = (),
    verify: Verify = "bytes",
    verify_data: str | None = None,
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
    saved_model = output_format == "saved_model"
    if keep_variables_over is not None and not saved_model:
        raise ValueError(
            "Only a SavedModel can hold variables beside the graph. Expected "
            '`keep_variables_over` with output_format="saved_model". '
            f"Received: keep_variables_over={keep_variables_over}, "
            f"output_format={output_format!r}"
        )
    with sources.open_source(
        source,
        signature_keys=signature_keys,
        tags=tags,
        checkpoint=checkpoint,
        output_node_names=output_node_names,
    ) as opened:
        plan = plans.make_plan(
            opened,
            denylist=variable_names_denylist,
            keep_over=keep_variables_over,
            stateful=stateful,
            has_variables=saved_model,
        )
        graph = rewrite.rewrite(
            plan.nodes, opened.library, plan.frozen, clear_devices=clear_devices
        )
        first = state.add_state(plan, graph)
        if inline_functions:
            from tfopt.freezing import inlining

            graph = inlining.inline(opened, graph, first)
        with artifacts.atomic_path(output) as temporary:
            # Bytes that are compared afterwards need no check while they are copied.
            checksums = verify == "structure" or output_format == "text"
            _write(temporary, output_format, opened, graph, first, checksums)
            details = report.details(opened, plan, graph, first)
            details["verified"] = _verify(
                temporary,
                output_format,
                opened,
                plan,
                graph,
                first,
                verify,
                verify_data,
            )
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


def _write(
    path: pathlib.Path,
    output_format: OutputFormat,
    source: Source,
    graph: Rewritten,
    first: State,
    checksums: bool,
) -> None:
    tree = outputs.graph_tree(source, graph)
    saved_model = output_format == "saved_model"
    if saved_model:
        tree = outputs.saved_model_tree(source, graph, first, tree)
    values = [constant.value for constant in graph.constants]
    outputs.check_size(tree, values, saved_model=saved_model)
    if saved_model:
        outputs.write_saved_model(
            tree,
            path,
            source=source,
            graph=graph,
            stored=first.stored,
            checksums=checksums,
        )
    else:
        outputs.write_graph(
            tree, path, text=output_format == "text", checksums=checksums
        )


def _verify(
    path: pathlib.Path,
    output_format: OutputFormat,
    source: Source,
    plan: Plan,
    graph: Rewritten,
    first: State,
    level: Verify,
    data: str | None,
) -> dict[str, Any]:
    """Checks the written output, and returns what was checked."""
    saved_model = output_format == "saved_model"
    written = None
    if output_format != "text":
        written = checking.read_back(
            path / "saved_model.pb" if saved_model else path,
            "SavedModel" if saved_model else "GraphDef",
        )
    checking.check_structure(
        outputs.value_less(source, graph) if written is None else written.graph,
        kept=plan.kept,
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
            report.frozen_model(path, output_format, source, graph, first),
            source.signatures,
            data=data,
        )
    return done
