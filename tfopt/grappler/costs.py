"""What each node of a model costs, by Grappler's own measurement."""

from __future__ import annotations

import collections
import dataclasses
import pathlib
from collections.abc import Collection, Sequence
from typing import Any

from tfopt import _trust, artifacts
from tfopt.grappler import child
from tfopt.grappler import model as models
from tfopt.types import TfoptError


@dataclasses.dataclass(frozen=True)
class OpCost:
    """The cost of one node.

    Attributes:
        node: Its name.
        op: Its operation; `"Conv2D+BiasAdd"` if TensorFlow ran several nodes as one.
        time_us: Microseconds that it took in the measured step.
        output_bytes: Memory of its outputs.
    """

    node: str
    op: str
    time_us: float
    output_bytes: int


@dataclasses.dataclass(frozen=True)
class Costs:
    """The costs of a model's nodes.

    Attributes:
        step_ms: Milliseconds of one whole run, parallel work overlapping.
        nodes: The nodes, dearest first.
    """

    step_ms: float
    nodes: tuple[OpCost, ...]

    def by_op(self) -> dict[str, tuple[int, float]]:
        """Returns operation -> (number of nodes, microseconds), dearest first."""
        counts: collections.Counter[str] = collections.Counter()
        times: collections.Counter[str] = collections.Counter()
        for cost in self.nodes:
            counts[cost.op] += 1
            times[cost.op] += cost.time_us  # type: ignore[assignment]
        return {op: (counts[op], time) for op, time in times.most_common()}

    def to_json(self) -> dict[str, Any]:
        """Returns plain data, by operation and by node."""
        by_op = {
            op: {"nodes": count, "time_us": time}
            for op, (count, time) in self.by_op().items()
        }
        return {"step_ms": self.step_ms, "by_op": by_op, "nodes": self.nodes}

    def __str__(self) -> str:
        total = sum(cost.time_us for cost in self.nodes) or 1.0
        lines = [f"{self.step_ms:.2f} ms a run, {len(self.nodes)} nodes"]
        for op, (count, time) in list(self.by_op().items())[:10]:
            lines.append(f"{op:28}{count:6}{time:12.0f} us{time / total:7.1%}")
        return "\n".join(lines)


@_trust.with_safe_mode
def measure_costs(
    source: Any,
    *,
    outputs: Sequence[str] = (),
    signature_key: str | None = None,
    tags: Collection[str] | None = None,
    timeout_s: float = 300.0,
    safe_mode: bool = True,
) -> Costs:
    """Measures what each node of a model costs on this machine.

    Grappler's cluster (`tensorflow.python.grappler.cluster.Cluster.MeasureCosts`) runs
    the graph, its functions inlined, on inputs that it makes up, axes of unknown size
    being 1, in a child process. Its times are of single steps: good for finding what is
    dear, not for comparing models (`tfopt.interleave` is).

    Args:
        source: See `tfopt.optimize_graph`.
        outputs: Names of the outputs of a graph file.
        signature_key: The signature to run, by default the main one.
        tags: Tag set of the SavedModel's graph, by default `{"serve"}`.
        timeout_s: Seconds that it may take.
        safe_mode: Refuse model files that could run code, reach other files or the
            network. False opens and runs whatever they hold.

    Returns:
        The costs, dearest node first.

    Raises:
        ValueError: An option that doesn't fit the source.
        TfoptError: The source cannot be read, or not be run like this.

    Example:
        >>> costs = measure_costs("saved_model")
        >>> "MatMul" in costs.by_op()
        True
    """
    keys = None if signature_key is None else [signature_key]
    with (
        models.open_model(
            source, outputs=outputs, signature_keys=keys, tags=tags, as_graph=True
        ) as model,
        artifacts.temporary_folder() as folder,
    ):
        path = pathlib.Path(folder) / "meta_graph.pb"
        path.write_bytes(model.for_measuring().SerializeToString())
        job = {"task": "costs", "meta_graph": str(path)}
        outcome = child.run(job, timeout_s=timeout_s)
        if outcome.status != "done":
            raise TfoptError(
                "Grappler cannot measure the model. Expected a graph that runs on "
                "made-up inputs whose unknown sizes are 1, without tables or variables "
                f"to initialise. Received: {model.where}: {outcome}"
            )
    rows = [
        OpCost(
            node=row["node"],
            op=row["op"],
            time_us=row["compute_ns"] / 1e3,
            output_bytes=row["output_bytes"],
        )
        for row in outcome.result["rows"]
    ]
    ordered = sorted(rows, key=lambda cost: -cost.time_us)
    return Costs(outcome.result["seconds"] * 1e3, tuple(ordered))
