"""The function behind the command `transform_graph`."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from tfopt import _trust, artifacts
from tfopt import transforms as library
from tfopt.freezing import command
from tfopt.transforms import _listing, _sources
from tfopt.types import UsageError


@dataclasses.dataclass(frozen=True)
class Transformed(artifacts.Outcome):
    """What the command prints: a line for each transform, and what was written."""

    def __str__(self) -> str:
        return as_text(self)

    def __rich__(self) -> Any:
        from rich.console import Group
        from rich.text import Text

        details = self.artifact.details
        lines = [
            str(self.artifact),
            f"graph: {details['nodes_before']} -> {details['nodes']} nodes, "
            f"{details['graph_bytes_before']:,} -> {details['graph_bytes']:,} bytes; "
            f"transforms took {details['transform_seconds']:.2f} s, "
            f"checks {details['verify_seconds']:.1f} s",
            f"constants: {details['constant_bytes']:,} bytes",
            *_errors(details),
        ]
        lines += self.state_lines()
        table = _listing.table(
            ("transform", "nodes", "bytes", "seconds", "error", "findings"),
            [_row(step) for step in details["steps"]],
        )
        return Group(table, *(Text(line) for line in lines))


@dataclasses.dataclass(frozen=True)
class Listing:
    """The transforms and presets that there are."""

    content: Mapping[str, Any]

    def to_json(self) -> Mapping[str, Any]:
        """Returns them as plain data, for `--report`."""
        return self.content

    def __str__(self) -> str:
        return as_text(self)

    def __rich__(self) -> Any:
        return _listing.render(self.content)


def as_text(shown: Any, *, width: int = 100) -> str:
    """Returns what rich would print, without colours."""
    from rich.console import Console

    file = io.StringIO()
    Console(file=file, width=width, color_system=None).print(shown)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()).strip("\n")


@_trust.with_safe_mode
def transform_graph(
    *,
    in_graph: str | None = None,
    saved_model_dir: str | None = None,
    keras_model_file: str | None = None,
    out_graph: str | None = None,
    output_saved_model_dir: str | None = None,
    transforms: str | None = None,
    inputs: Sequence[str] = (),
    outputs: Sequence[str] = (),
    signature_keys: Sequence[str] | None = None,
    saved_model_tags: Sequence[str] | None = None,
    output_format: Literal["binary", "text"] = "binary",
    init_op: str | None = None,
    variable_names_denylist: Sequence[str] = (),
    keep_variables_over: int | None = None,
    verify: library.Verify = "outputs",
    verify_data: str | None = None,
    list_transforms: bool = False,
    safe_mode: bool = True,
) -> Transformed | Listing:
    """Transforms one model into one output, or lists the transforms.

    Args:
        in_graph: A frozen GraphDef (.pb or .pbtxt) to transform.
        saved_model_dir: A SavedModel to transform; it is frozen on the way.
        keras_model_file: A .keras or .h5 file to transform, likewise.
        out_graph: File for the transformed graph.
        output_saved_model_dir: Directory for the transformed SavedModel, which keeps
            signatures, tables and assets.
        transforms: What to apply, in order, with options in brackets; deploy and small
            are presets.
        inputs: Nodes or tensors that callers feed; only with in_graph. By default the
            placeholders that the outputs need.
        outputs: Nodes or tensors that callers fetch; only with in_graph.
        signature_keys: Signatures to keep, by default all for inference.
        saved_model_tags: Tag set of the SavedModel's graph, by default serve.
        output_format: Form of the transformed graph's file.
        init_op: Node that fills tables and must stay; only with in_graph.
        variable_names_denylist: Names or patterns (embedding/*) of variables that stay
            variables.
        keep_variables_over: Variables of more than this many bytes stay variables,
            stored beside the graph; only with output_saved_model_dir.
        verify: What to check: outputs after every transform, only after the last one
            (final), or nothing but the graph's structure.
        verify_data: A .npz file with one array per input for the check of outputs; by
            default inputs are made up.
        list_transforms: Print what transforms and presets there are, with options.
        safe_mode: Refuse model files that could run code, reach other files or the
            network.

    Raises:
        UsageError: Not exactly one input and one output, or no transforms.
        ValueError: See `tfopt.transform_graph`.
        TfoptError: See `tfopt.transform_graph`.
    """
    if list_transforms:
        return Listing(_listing.content())
    source = command.only(
        "input",
        in_graph=in_graph,
        saved_model_dir=saved_model_dir,
        keras_model_file=keras_model_file,
    )
    target = command.only(
        "output",
        out_graph=out_graph,
        output_saved_model_dir=output_saved_model_dir,
    )
    if transforms is None:
        raise UsageError(
            "There is nothing to do. Expected --transforms, for example "
            "--transforms=deploy; --list_transforms lists them. "
            "Received: no transforms"
        )
    form: _sources.OutputFormat = "text" if output_format == "text" else "graph_def"
    artifact = library.transform_graph(
        source,
        target,
        transforms,
        inputs=inputs or None,
        outputs=outputs or None,
        signature_keys=signature_keys,
        tags=saved_model_tags,
        output_format=form if out_graph is not None else "saved_model",
        init_op=init_op,
        variable_names_denylist=variable_names_denylist,
        keep_variables_over=keep_variables_over,
        verify=verify,
        verify_data=verify_data,
    )
    return Transformed(artifact)


def _row(step: Mapping[str, Any]) -> tuple[str, ...]:
    options = ", ".join(
        f"{key}={'+'.join(map(str, value)) if isinstance(value, tuple) else value}"
        for key, value in step["options"].items()
    )
    counts = [
        f"{key} {value:,}" if isinstance(value, int) else f"{key} {value:.3g}"
        for key, value in step["findings"].items()
        if isinstance(value, (int, float)) and value
    ]
    skipped = len(step["findings"].get("skipped", ()))
    if skipped:
        counts.append(f"skipped {skipped}")
    errors = [found["max_error"] for found in (step["outputs"] or {}).values()]
    return (
        f"{step['name']}({options})" if options else step["name"],
        f"{step['nodes_before']} -> {step['nodes_after']}",
        f"{step['bytes_after']:,}",
        f"{step['seconds']:.3f}",
        f"{max(errors):.2g}" if errors else "",
        ", ".join(counts),
    )


def _errors(details: Mapping[str, Any]) -> list[str]:
    if details["outputs"] is None:
        return ["verified: structure only"]
    return [
        f"output {name}: random, so only its shape was checked"
        if found["random"]
        else f"output {name}: differs by at most {found['max_error']:.3g}, on average "
        f"{found['mean_error']:.2g}, of values up to {found['scale']:.3g}"
        for name, found in details["outputs"].items()
    ]
