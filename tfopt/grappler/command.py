"""The function behind the command `run_grappler`, with TensorFlow's names for flags."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import tfopt.grappler
from tfopt import _trust, artifacts
from tfopt.freezing import command
from tfopt.grappler.config import GrapplerConfig, Preset
from tfopt.report import Report
from tfopt.types import UsageError


@dataclasses.dataclass(frozen=True)
class Rewritten(artifacts.Outcome):
    """What the command prints: the artifact, and what became of the graph."""

    def __str__(self) -> str:
        details = self.artifact.details
        lines = [
            str(self.artifact),
            f"{details['nodes']:,} nodes of {details['nodes_before']:,}, graph of "
            f"{details['bytes']:,} bytes of {details['bytes_before']:,}, "
            f"in {details['seconds']:.2f} s",
        ]
        if details["bfloat16_nodes"]:
            lines.append(f"{details['bfloat16_nodes']} nodes with bfloat16")
        lines += self.state_lines()
        for key, outputs in details.get("verified", {}).get("execution", {}).items():
            for name, found in outputs.items():
                lines.append(f"verified {key}/{name}: {_in_words(found)}")
        return "\n".join(lines)


@_trust.with_safe_mode
def run_grappler(
    *,
    saved_model_dir: str | None = None,
    saved_model_tags: Sequence[str] | None = None,
    signature_keys: Sequence[str] | None = None,
    in_graph: str | None = None,
    outputs: Sequence[str] = (),
    output_saved_model_dir: str | None = None,
    out_graph: str | None = None,
    preset: Preset | None = None,
    rewriter_options: Sequence[str] = (),
    explain: bool = False,
    rounds: int = 20,
    timeout_s: float = 600.0,
    verify: Literal["structure", "execution"] = "execution",
    verify_data: str | None = None,
    tolerance: float | None = None,
    options: Mapping[str, Any] | None = None,
    safe_mode: bool = True,
) -> Rewritten | Report:
    """Optimizes one model, or explains what each optimizer does to it.

    Args:
        saved_model_dir: Directory of the SavedModel to optimize.
        saved_model_tags: Tag set of the SavedModel's graph, by default serve.
        signature_keys: Signatures to keep, by default all for inference.
        in_graph: A frozen graph (.pb or .pbtxt) to optimize, with its outputs.
        outputs: Outputs of the frozen graph.
        output_saved_model_dir: Directory for the optimized SavedModel.
        out_graph: File for the optimized graph (.pb, or .pbtxt for text).
        preset: Options to begin with, which the other flags change.
        rewriter_options: Further options of RewriterConfig as name=value, for those
            that a newer TensorFlow has.
        explain: Whether to measure each optimizer alone and all without it, instead of
            writing anything.
        rounds: Samples of latency of each variant for --explain; 0 measures none.
        timeout_s: Seconds that Grappler may take, for --explain each time.
        verify: What to check of the result, that the graph is complete and portable
            (structure), moreover that it computes the same (execution).
        verify_data: A .npz file with one array per input; by default inputs are made
            up.
        tolerance: Largest difference allowed, as a fraction of an output's largest
            magnitude.
        options: Fields of RewriterConfig.
        safe_mode: Refuse model files that could run code, reach other files or the
            network.

    Raises:
        UsageError: Not exactly one input, or not one output.
        TfoptError: See `tfopt.optimize_graph`.
    """
    source = command.only("input", saved_model_dir=saved_model_dir, in_graph=in_graph)
    config = _config(preset, options or {}, rewriter_options)
    common: dict[str, Any] = {
        "outputs": outputs,
        "signature_keys": signature_keys,
        "tags": saved_model_tags,
        "timeout_s": timeout_s,
        "verify_data": verify_data,
    }
    targets = {
        "out_graph": out_graph,
        "output_saved_model_dir": output_saved_model_dir,
    }
    if explain:
        if any(targets.values()):
            raise UsageError(
                "--explain writes no model. Expected no output with it; --report=FILE "
                f"keeps the table. Received: {_given(targets)}"
            )
        return tfopt.grappler.explain_graph(source, config, rounds=rounds, **common)
    form: Any = "saved_model" if output_saved_model_dir else None
    if out_graph is not None:
        form = "text" if out_graph.endswith(".pbtxt") else "graph_def"
    artifact = tfopt.grappler.optimize_graph(
        source,
        command.only("output", **targets),
        config,
        output_format=form,
        verify=verify,
        tolerance=tolerance,
        **common,
    )
    return Rewritten(artifact)


def _config(
    preset: Preset | None, options: Mapping[str, Any], newer: Sequence[str]
) -> GrapplerConfig:
    config = GrapplerConfig() if preset is None else GrapplerConfig.preset(preset)
    given = dict(options)
    for item in newer:
        name, equals, text = item.partition("=")
        if not equals:
            raise UsageError(
                f"Expected name=value. Received: rewriter_options={item!r}"
            )
        given[name] = GrapplerConfig.parse(name, text)
    return config.replace(**given)


def _given(flags: Mapping[str, str | None]) -> str:
    return ", ".join(name for name, value in flags.items() if value) or "none"


def _in_words(found: Mapping[str, Any]) -> str:
    if not found["deterministic"]:
        return "random, so only its shape"
    if found["equal"]:
        return "equal, bit by bit"
    return f"{found['difference']:.2g} apart, largest value {found['scale']:.2g}"
