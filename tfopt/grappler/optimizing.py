"""One run of Grappler on a model, and what is checked and told of it."""

from __future__ import annotations

import collections
import dataclasses
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from tfopt.freezing import checking, functions
from tfopt.grappler import child, registry
from tfopt.grappler.config import GrapplerConfig
from tfopt.grappler.model import Model
from tfopt.savedmodel import protos, reader
from tfopt.types import ConversionError, VerificationError

# Rounding units of the output's type by which results may differ if Grappler folds and
# fuses, as in freezing.
_ULPS = 1000
_BFLOAT16 = 14

_STEP = re.compile(
    r"\] (?P<name>\w+?)(?:\{[^\n]*\})?(?:"
    r": Graph size after: (?P<nodes>\d+) nodes \((?P<change>-?\d+)\)"
    r"[^\n]*?time = (?P<ms>[\d.]+)ms"
    r"|(?P<nothing> did nothing)| failed: (?P<failure>[^\n]*))"
)


@dataclasses.dataclass(frozen=True)
class Optimized:
    """What Grappler made.

    Attributes:
        graph: The GraphDef.
        op_list: The OpList of the operations that it uses.
        seconds: How long Grappler took.
        log: What it logged.
    """

    graph: Any
    op_list: Any
    seconds: float
    log: str


def offline(config: GrapplerConfig) -> GrapplerConfig:
    """Returns a configuration with the defaults of `optimize_graph`."""
    given = config.get_config()
    defaults = {
        "min_graph_nodes": -1,
        "fail_on_optimizer_errors": True,
        "meta_optimizer_timeout_ms": -1,
    }
    return config.replace(**{k: v for k, v in defaults.items() if k not in given})


def job(model: Model, config: GrapplerConfig, work: pathlib.Path) -> dict[str, Any]:
    """Returns what `_worker` needs to optimize a model; writes it once to `work`."""
    meta_graph = work / "meta_graph.pb"
    if not meta_graph.exists():
        meta_graph.write_bytes(model.for_grappler().SerializeToString())
    return {
        "task": "optimize",
        "meta_graph": str(meta_graph),
        "config": offline(config).serialized.hex(),
        "output": str(work / "optimized.pb"),
    }


def optimize(
    model: Model, config: GrapplerConfig, work: pathlib.Path, timeout_s: float
) -> Optimized:
    """Runs Grappler in a child process.

    Raises:
        ConversionError: It fails, crashes or takes too long, or ignores an optimizer.
    """
    request = job(model, config, work)
    request["op_list"] = str(work / "op_list.pb")
    # Only lower precision needs oneDNN; it would also fuse into its own operations.
    onednn = config.reduces_precision
    outcome = child.run(request, timeout_s=timeout_s, onednn=onednn)
    if outcome.status != "done":
        raise ConversionError(
            "Grappler cannot optimize the graph. Expected it to return one; switch off "
            "the optimizer that is to blame (explain_graph or run_grappler --explain "
            "show which), or give more time with timeout_s. "
            f"Received: {model.where}, {config}: {outcome}"
        )
    ignored = registry.unknown_names(outcome.log)
    if ignored:
        raise ConversionError(
            "TensorFlow ignored an optimizer that it doesn't know. Expected registered "
            f"names. Received: {', '.join(ignored)}"
        )
    return Optimized(
        graph=reader.read_message(request["output"], "GraphDef"),
        op_list=protos.message_class("OpList").FromString(
            pathlib.Path(request["op_list"]).read_bytes()
        ),
        seconds=outcome.result["seconds"],
        log=outcome.log,
    )


def check(model: Model, graph: Any) -> None:
    """Checks that a graph is complete and portable.

    Raises:
        VerificationError: Lists what is wrong.
    """
    checking.check_structure(
        graph,
        kept=model.kept,
        tensors=model.entry_nodes,
        has_checkpoint=model.has_stored_variables,
    )
    internal = internal_ops(graph) - internal_ops(model.graph)
    if internal:
        raise VerificationError(
            "The optimized graph has operations that are TensorFlow's own and differ "
            "between versions and machines. Expected public ones only; switch off the "
            'optimizer that makes them (remapping="off" for _Fused...). '
            f"Received: {', '.join(sorted(internal))}"
        )


def internal_ops(graph: Any) -> set[str]:
    """Returns the operations of a graph that no user can make."""
    used = {node.op for nodes in functions.bodies(graph) for node in nodes}
    library = {function.signature.name for function in graph.library.function}
    return {op for op in used - library if op.startswith("_")}


def num_nodes(graph: Any) -> int:
    """Returns the nodes of a graph and of its functions."""
    return sum(len(nodes) for nodes in functions.bodies(graph))


def num_bfloat16(graph: Any) -> int:
    """Returns how many nodes have bfloat16 among their types."""
    return sum(
        any(value.type == _BFLOAT16 for value in node.attr.values())
        for nodes in functions.bodies(graph)
        for node in nodes
    )


def steps(log: str) -> list[dict[str, Any]]:
    """Returns what Grappler's log says of each optimizer, in order.

    Example:
        >>> log = "x.cc:9] remapper: Graph size after: 7 nodes (-2), time = 0.5ms."
        >>> steps(log)
        [{'optimizer': 'remapper', 'nodes': 7, 'change': -2, 'ms': 0.5}]
    """
    found: list[dict[str, Any]] = []
    for match in _STEP.finditer(log):
        step: dict[str, Any] = {"optimizer": match["name"]}
        if match["nodes"]:
            step |= {"nodes": int(match["nodes"]), "change": int(match["change"])}
            step["ms"] = float(match["ms"])
        elif match["failure"]:
            step["failure"] = match["failure"].strip()
        else:
            step["change"] = 0
        found.append(step)
    return found


def details(
    model: Model, done: Optimized, config: GrapplerConfig, form: str
) -> dict[str, Any]:
    """Returns the `Artifact.details` of a run, as plain JSON data."""
    ops = collections.Counter(
        node.op for nodes in functions.bodies(done.graph) for node in nodes
    )
    warnings = list(model.details["warnings"])
    lowered = num_bfloat16(done.graph) - num_bfloat16(model.graph)
    if config.reduces_precision and lowered <= 0 and not ops["Cast"]:
        warnings.append(
            "The configuration asks for a lower precision, but no node has changed: "
            "this machine's CPU or TensorFlow build may not support it."
        )
    return {
        **{key: model.details[key] for key in ("kept_variables", "tables")},
        "signatures": model.details["signatures"],
        "init_op": model.init_op,
        "asset_feeds": {} if form == "saved_model" else model.asset_feeds,
        "nodes_before": num_nodes(model.graph),
        "nodes": num_nodes(done.graph),
        "functions": len(done.graph.library.function),
        "bytes_before": model.graph.ByteSize(),
        "bytes": done.graph.ByteSize(),
        "bfloat16_nodes": num_bfloat16(done.graph),
        "ops": dict(ops.most_common()),
        "seconds": done.seconds,
        "steps": steps(done.log),
        "config": offline(config).get_config(),
        "warnings": warnings,
    }


def compare(
    model: Model,
    config: GrapplerConfig,
    path: pathlib.Path,
    form: str,
    *,
    data: str | None,
    tolerance: float | None,
) -> dict[str, Any]:
    """Runs the source and the written result, and judges the difference.

    Returns:
        `max_error`, the largest over all outputs, and `verified`, by output.

    Raises:
        VerificationError: They differ by more than is allowed, or cannot be run.
    """
    if form == "saved_model":
        ours = model.as_saved_model(path)
    else:
        ours = model.as_graph(path, form)
    found = checking.compare_execution(
        model.original, ours, model.signatures, data=data
    )
    if tolerance is None and config == GrapplerConfig.preset("lossless"):
        tolerance = 0.0
    for key, results in found.items():
        for name, result in results.items():
            allowed = limit(result, config, tolerance)
            result["limit"] = allowed
            if allowed is None or is_within(result, allowed):
                continue
            raise VerificationError(
                "The optimized graph computes something else. Expected outputs within "
                f"{allowed:.3g}, TensorFlow's optimizer off at run time; switch off "
                "the optimizer that rounds differently (constant_folding, "
                "arithmetic_optimization and remapping may; explain_graph and "
                "run_grappler --explain tell), or give a tolerance. Received: output "
                f"{name!r} of {key!r}, {describe(result)}"
            )
    return {"max_error": max_error(found), "verified": {"execution": found}}


def limit(
    result: Mapping[str, Any], config: GrapplerConfig, tolerance: float | None
) -> float | None:
    """Returns how far an output may be off; None: at any distance."""
    if tolerance is not None:
        return tolerance * result["scale"]
    if config.reduces_precision:
        return None
    return _ULPS * result["epsilon"] * max(1.0, result["scale"])


def is_within(result: Mapping[str, Any], allowed: float) -> bool:
    """Whether an output is as close as it must be; 0 means bit by bit."""
    if not result["deterministic"]:
        return result["same_shapes"]
    return result["equal"] or (allowed > 0 and result["difference"] <= allowed)


def max_error(found: Mapping[str, Mapping[str, Any]]) -> float:
    """Returns the largest difference of outputs that aren't random."""
    return max(
        (
            result["difference"]
            for results in found.values()
            for result in results.values()
            if result["deterministic"]
        ),
        default=0.0,
    )


def describe(result: Mapping[str, Any]) -> str:
    """Returns what was found of an output, in words."""
    if not result["same_shapes"]:
        return "other shapes"
    return f"off by {result['difference']:.3g}, largest value {result['scale']:.3g}"
