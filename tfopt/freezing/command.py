"""The function behind the command `freeze_graph`, with TensorFlow's names for flags."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

from tfopt import _trust, artifacts, freezing
from tfopt.types import UsageError


@dataclasses.dataclass(frozen=True)
class Frozen(artifacts.Outcome):
    """What the command prints: the artifact, and what has to be known to use it."""

    def __str__(self) -> str:
        details = self.artifact.details
        lines = [
            str(self.artifact),
            f"{details['constants']} constants of {details['constant_bytes']:,} bytes, "
            f"{details['nodes']} nodes, {details['functions']} functions",
        ]
        for key, tensors in details["signatures"].items():
            inputs, outputs = (_listed(tensors[side]) for side in ("inputs", "outputs"))
            lines.append(f"signature {key}: {inputs} -> {outputs}")
        lines += [_kept(entry) for entry in details["kept_variables"]]
        lines += self.state_lines()
        return "\n".join([*lines, f"verified: {_verified(details['verified'])}"])


@_trust.with_safe_mode
def freeze_graph(
    *,
    input_saved_model_dir: str | None = None,
    saved_model_tags: Sequence[str] | None = None,
    signature_keys: Sequence[str] | None = None,
    input_keras_file: str | None = None,
    input_meta_graph: str | None = None,
    input_graph: str | None = None,
    input_checkpoint: str | None = None,
    output_node_names: Sequence[str] = (),
    output_graph: str | None = None,
    output_saved_model_dir: str | None = None,
    output_format: Literal["binary", "text"] = "binary",
    inline_functions: bool = False,
    variable_names_denylist: Sequence[str] = (),
    keep_variables_over: int | None = None,
    stateful: Literal["keep", "error"] = "keep",
    clear_devices: bool = True,
    verify: Literal["structure", "bytes", "execution"] = "bytes",
    verify_data: str | None = None,
    safe_mode: bool = True,
) -> Frozen:
    """Freezes one model, given by one `input_...`, into one `output_...`.

    Args:
        input_saved_model_dir: Directory of the SavedModel to freeze.
        saved_model_tags: Tag set of the SavedModel's graph, by default serve.
        signature_keys: Signatures to keep, by default all for inference.
        input_keras_file: A .keras or .h5 file to freeze.
        input_meta_graph: A TF1 graph (.meta) to freeze, with its checkpoint.
        input_graph: A GraphDef (.pb or .pbtxt) with its restore part, likewise.
        input_checkpoint: Prefix of the checkpoint of a TF1 graph.
        output_node_names: Outputs of a TF1 graph.
        output_graph: File for the frozen graph.
        output_saved_model_dir: Directory for the frozen SavedModel, which keeps
            signatures, tables and assets.
        output_format: Form of the frozen graph's file.
        inline_functions: Whether to replace calls by the functions' bodies; loads
            TensorFlow.
        variable_names_denylist: Names or patterns (embedding/*) of variables that stay
            variables.
        keep_variables_over: Variables of more than this many bytes stay variables,
            stored beside the graph; only with output_saved_model_dir.
        stateful: What to do about variables that the model writes.
        clear_devices: Whether to drop the devices that nodes were assigned to.
        verify: What to check of the result: that nothing is missing (structure),
            moreover that all constants equal the checkpoint (bytes), moreover that it
            computes the same in a child process with TensorFlow (execution).
        verify_data: A .npz file with one array per input for the check by execution;
            by default inputs are made up.
        safe_mode: Refuse model files that could run code, reach other files or the
            network.

    Raises:
        UsageError: Not exactly one input and one output.
        TfoptError: See `tfopt.freeze`.
    """
    source = only(
        "input",
        input_saved_model_dir=input_saved_model_dir,
        input_keras_file=input_keras_file,
        input_meta_graph=input_meta_graph,
        input_graph=input_graph,
    )
    target = only(
        "output",
        output_graph=output_graph,
        output_saved_model_dir=output_saved_model_dir,
    )
    form: freezing.OutputFormat = "graph_def"
    if output_saved_model_dir is not None:
        form = "saved_model"
    elif output_format == "text":
        form = "text"
    artifact = freezing.freeze(
        source,
        target,
        signature_keys=signature_keys,
        tags=saved_model_tags,
        output_format=form,
        inline_functions=inline_functions,
        variable_names_denylist=variable_names_denylist,
        keep_variables_over=keep_variables_over,
        stateful=stateful,
        clear_devices=clear_devices,
        checkpoint=input_checkpoint,
        output_node_names=output_node_names,
        verify=verify,
        verify_data=verify_data,
    )
    return Frozen(artifact)


def only(what: str, **given: str | None) -> str:
    """Returns the one value that isn't `None`.

    Raises:
        UsageError: There are several, or none.
    """
    values = [value for value in given.values() if value is not None]
    if len(values) != 1:
        received = [name for name, value in given.items() if value is not None]
        raise UsageError(
            f"Which {what} is meant is unclear. Expected exactly one of "
            f"{', '.join(given)}. Received: {', '.join(received) or 'none'}"
        )
    return values[0]


def _listed(tensors: dict[str, list[str]]) -> str:
    return ", ".join(f"{name}={'+'.join(names)}" for name, names in tensors.items())


def _kept(entry: dict[str, Any]) -> str:
    line = f"kept variable {entry['name']}: {entry['reason']}"
    if entry["writers"]:
        use = entry["writers"][0]
        line += f" by {use['op']} ({use['node']})"
    return line


def _verified(done: dict[str, Any]) -> str:
    parts = ["structure"]
    if "constant_bytes" in done:
        parts.append(f"{done['constant_bytes']:,} bytes of constants")
    for key, outputs in done.get("execution", {}).items():
        for name, found in outputs.items():
            if found["deterministic"]:
                parts.append(
                    f"{key}/{name} equal, {found['optimized_difference']:.2g} apart "
                    "when optimized"
                )
            else:
                parts.append(f"{key}/{name} is random, so only its shape")
    return "; ".join(parts)
