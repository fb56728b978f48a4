"""`fold_constants`: computes now what comes out the same every time."""

from __future__ import annotations

import collections
from typing import Any

from tfopt.savedmodel import protos
from tfopt.transforms import _evaluation, _ops, _semantics, _shapes
from tfopt.transforms._base import Findings, GraphModel, transform
from tfopt.transforms._evaluation import Expressions, Key
from tfopt.transforms._foldable import Foldable
from tfopt.transforms._graph import Tensor

_NO_KERNEL = "No OpKernel was registered"


@transform(adds_nodes=True)
def fold_constants(
    graph: GraphModel,
    *,
    maximum_size: int = 100 * 1024,
    ignore_errors: bool = False,
    clear_output_shapes: bool = True,
) -> Findings:
    """Replaces expressions of constants by their values, in functions too.

    TensorFlow's kernels compute them, without its graph optimizer. Nodes that may have
    an effect or differ from run to run are left, as are random numbers, simulated
    quantization, calls and TF1's control flow; a value waits for all that its
    expression waited for. The shape of a tensor is a constant if it follows from those
    of the inputs, in the graph itself. The file doesn't blow up: a value is stored if
    it is small, or no larger than the constants that it makes superfluous. Constants
    stored in a narrow type (int8 or float16 weights, say) never become larger ones.

    Args:
        graph: The graph.
        maximum_size: Values of more than this many bytes are stored only instead of at
            least as many. By default as many as in TensorFlow's own optimizer.
        ignore_errors: Whether to leave expressions that fail (a division by zero, say)
            as they are, instead of raising. Those that TensorFlow has no CPU kernel for
            are left anyway.
        clear_output_shapes: Whether to drop the nodes' `_output_shapes`, notes that
            may be outdated and keep the graph from being loaded.

    Returns:
        `folded`: number of nodes that are constants now; `passed`: number of nodes that
        handed on a constant, whose consumers take it directly now. `skipped`: what was
        left, and why.

    Raises:
        ValueError: `maximum_size` is negative.
        TfoptError: An expression fails.
    """
    if maximum_size < 0:
        raise ValueError(
            f"Expected a number of bytes. Received: maximum_size={maximum_size}"
        )
    if clear_output_shapes:
        for body in graph.bodies:
            for node in body.nodes.values():
                node.attr.pop("_output_shapes", None)
    folding = _Folding(graph, maximum_size, ignore_errors)
    folding.counts["folded"] += _shapes.fold_shapes(graph)
    # What is known of a shape may depend on a value of the round before.
    while folding.run_round():
        pass
    return {
        "folded": folding.counts["folded"],
        "passed": folding.counts["passed"],
        "skipped": [
            {"node": f"{key.body}/{key.node}" if key.body else key.node, "reason": why}
            for key, why in folding.left.items()
        ],
    }


class _Folding:
    """Folds the constants of a graph, round by round.

    Attributes:
        left: Nodes that don't become constants -> why.
        counts: How many nodes were `folded` or `passed`.
    """

    def __init__(self, graph: GraphModel, maximum_size: int, ignore_errors: bool):
        self.left: dict[Key, str] = {}
        self.counts: collections.Counter[str] = collections.Counter()
        self._graph = graph
        self._maximum_size = maximum_size
        self._ignore_errors = ignore_errors
        self._effects = _semantics.Effects(graph)
        constants = (n for b in graph.bodies for n in b if n.op == "Const")
        # No intermediate result takes more than all there is.
        self._largest = max(
            maximum_size,
            sum(_evaluation.num_bytes(n.attr["value"].tensor) for n in constants),
        )

    def run_round(self) -> bool:
        """Folds what can be folded; returns whether another round may find more."""
        while True:
            parts = [
                Foldable(self._graph, body, self._effects, self.left)
                for body in self._graph.bodies
            ]
            try:
                values = self._evaluate(parts)
                break
            except _evaluation.UnevaluableError as error:
                if not self._ignore_errors and _NO_KERNEL not in error.reason:
                    raise
                self.left[error.key] = error.reason
        num_folded = len(values)
        for part in parts:
            self.counts["passed"] += part.num_passed
            self._write(part, values)
            self.left.update(part.oversized)
        # Results that are unknown now may be known with these constants.
        return bool(num_folded) and any(part.unknown for part in parts)

    def _evaluate(self, parts: list[Foldable]) -> dict[tuple[Key, int], Any]:
        if not any(part.computed for part in parts):
            return {}
        expressions = Expressions(self._graph.versions)
        for part in parts:
            part.add_to(expressions)
        expressions.load()
        for part in parts:
            part.decide(expressions, self._largest, self._maximum_size)
        wanted = [result for part in parts for result in part.results()]
        if not wanted:
            return {}
        return dict(zip(wanted, expressions.values(wanted), strict=True))

    def _write(self, part: Foldable, values: dict[tuple[Key, int], Any]) -> None:
        draft, body = part.draft, part.body
        mine = {key: value for key, value in values.items() if key[0].body == body.name}
        for (key, output), value in mine.items():
            node = body.nodes[key.node]
            attributes = {"dtype": _ops.Type(value.dtype), "value": value}
            controls = part.waits[key.node]
            if part.num_outputs[key.node] == 1:
                draft.become(node, "Const", [], **attributes)
                draft.controls[key.node] = list(controls)
            else:
                name = f"{key.node}/{output}"
                constant = protos.message_class("NodeDef")(name=name, op="Const")
                constant.device = node.device
                _ops.set_attributes(constant, **attributes)
                tensor = draft.add(constant, controls=controls, before=key.node)
                draft.move(Tensor(key.node, output), tensor)
        self.counts["folded"] += len({key for key, _ in mine})
        part.redirect()
        draft.write()
