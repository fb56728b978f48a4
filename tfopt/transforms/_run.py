"""Applying transforms one after the other, each checked before the next."""

from __future__ import annotations

import dataclasses
import inspect
import time
from collections.abc import Sequence
from typing import Any, Literal

from tfopt import _progress
from tfopt.transforms import _checking, _verifier
from tfopt.transforms._base import Promise
from tfopt.transforms._registry import Step
from tfopt.transforms._sources import Source, serialize
from tfopt.transforms._verifier import Verifier
from tfopt.types import TfoptError, VerificationError

Verify = Literal["outputs", "final", "structure"]
_RANK = {"equal": 0, "close": 1, "reported": 2}


@dataclasses.dataclass
class Report:
    """What was done.

    Attributes:
        steps: One entry for each transform, as plain JSON data.
        before: Nodes, functions and bytes of the source's graph.
        outputs: Output -> difference to the original, after the last transform; `None`
            if nothing was run.
        transform_seconds: What the transforms themselves took.
        verify_seconds: What checking took.
    """

    steps: list[dict[str, Any]]
    before: dict[str, int]
    outputs: dict[str, Any] | None = None
    transform_seconds: float = 0.0
    verify_seconds: float = 0.0


def run(
    source: Source,
    steps: Sequence[Step],
    *,
    verify: Verify,
    verify_data: str | None,
    verifier: Verifier | None,
) -> tuple[Any, Report]:
    """Applies transforms to a graph, in place.

    Args:
        source: The graph.
        steps: The transforms.
        verify: How much is checked, see `tfopt.transform_graph`.
        verify_data: A `.npz` file with inputs.
        verifier: Runs the graphs, unless `verify` is `"structure"`.

    Returns:
        The GraphDef, and what was done.

    Raises:
        ValueError: A transform refuses an option.
        TfoptError: A transform cannot be applied.
        VerificationError: A transform didn't keep its promise.
    """
    return _Runner(source, steps, verify, verify_data, verifier).run()


class _Runner:
    def __init__(
        self,
        source: Source,
        steps: Sequence[Step],
        verify: Verify,
        data: str | None,
        verifier: Verifier | None,
    ):
        self._source = source
        self._graph = source.graph
        self._steps = steps
        self._verify = verify
        self._data = data
        self._verifier = verifier
        self._applied = 0
        self._last = b""

    def run(self) -> tuple[Any, Report]:
        """Applies all steps."""
        whole = {**_counts(self._graph), "bytes": self._bytes()}
        _checking.clean(self._graph)
        self._check_source()
        report = Report([], whole)
        began = time.perf_counter()
        if self._verifier is not None:
            self._verifier.start(self._source, self._data)
        self._last = serialize(self._graph.to_graph_def())
        report.verify_seconds += time.perf_counter() - began
        for step in _progress.each(self._steps, "transforming"):
            self._apply(step, report)
            self._applied += 1
        if self._verify == "structure":
            self._raise_if("structure", _checking.arity_faults(self._graph))
        elif self._verify == "final" and self._steps and self._verifier is not None:
            began = time.perf_counter()
            report.outputs = self._compare(_joined(self._steps), "max_error")
            report.verify_seconds += time.perf_counter() - began
        return self._graph.to_graph_def(), report

    def _apply(self, step: Step, report: Report) -> None:
        """Applies one transform and checks it."""
        promise = step.transform.promise
        before, counts = _checking.snapshot(self._graph), _counts(self._graph)
        began = time.perf_counter()
        findings = self._call(step)
        seconds = time.perf_counter() - began
        faults = _checking.promise_faults(before, self._graph, promise)
        began = time.perf_counter()
        _checking.clean(self._graph)
        seconds += time.perf_counter() - began
        began = time.perf_counter()
        self._raise_if("promise", faults)
        self._raise_if("structure", _checking.structure_faults(self._graph))
        last, self._last = self._last, serialize(self._graph.to_graph_def())
        entry = {
            "name": step.transform.name,
            "options": dict(step.options),
            "seconds": round(seconds, 6),
            "nodes_before": counts["nodes"],
            "nodes_after": self._graph.num_nodes,
            "bytes_before": len(last),
            "bytes_after": len(self._last),
            "findings": findings,
            "outputs": None,
        }
        if self._verify == "outputs":
            if last == self._last and report.outputs is not None:
                # The same graph was run already; each step adds nothing to the error.
                entry["outputs"] = report.outputs
            else:
                entry["outputs"] = report.outputs = self._compare(promise, "step_error")
        report.steps.append(entry)
        report.transform_seconds += seconds
        report.verify_seconds += time.perf_counter() - began

    def _call(self, step: Step) -> dict[str, Any]:
        """Runs a transform; errors say which it was."""
        try:
            return step.transform.function(self._graph, **step.options)
        except (ValueError, TfoptError) as error:
            kind = ValueError if isinstance(error, ValueError) else type(error)
            raise kind(f"{step}: {error} {self._history()}") from error
        except Exception as error:
            where = inspect.trace()[-1]
            raise TfoptError(
                f"{step} failed on this graph. Expected any valid graph to work; this "
                f"is a bug in tfopt, please report it. {self._history()} Received: "
                f"{type(error).__name__}: {error} ({where.function}:{where.lineno})"
            ) from error

    def _compare(self, promise: Promise, error: str) -> dict[str, Any]:
        """Runs the present graph; returns how far its outputs are off."""
        if self._verifier is None:
            raise AssertionError("there is nothing to run the graph with")
        answer = self._verifier.compare(self._last)
        if "error" in answer:
            self._raise_if("execution", [f"it cannot be run: {answer['error']}"])
        outputs = answer["outputs"]
        self._raise_if("outputs", _verifier.faults(outputs, promise, error=error))
        return {
            name: {
                "random": found["random"],
                "max_error": found["max_error"],
                "mean_error": found["mean_error"],
                "scale": found["scale"],
            }
            for name, found in outputs.items()
        }

    def _check_source(self) -> None:
        faults = _checking.structure_faults(self._graph)
        if faults:
            raise TfoptError(
                "The graph is damaged before any transform. Expected complete edges "
                f"and functions. Received: {self._source.where}: "
                f"{_checking.shown(faults)}"
            )

    def _raise_if(self, what: str, faults: list[str]) -> None:
        if not faults:
            return
        done = self._applied == len(self._steps)
        culprit = "The transforms" if done else str(self._steps[self._applied])
        expected = {
            "promise": "the nodes and types that it promises to keep",
            "structure": "a graph with complete edges and functions",
            "execution": "a graph that runs",
            "outputs": "the outputs that it promises",
        }[what]
        raise VerificationError(
            f"{culprit} broke the graph; nothing is written. Expected {expected}; this "
            f"is a bug in tfopt, please report it. {self._history()} Received: "
            f"{_checking.shown(faults)}"
        )

    def _history(self) -> str:
        done = [str(step) for step in self._steps[: self._applied]]
        return f"Applied before: {', '.join(done) or 'nothing'}."

    def _bytes(self) -> int:
        return len(serialize(self._graph.to_graph_def()))


def _counts(graph: Any) -> dict[str, int]:
    return {"nodes": graph.num_nodes, "functions": len(graph.functions)}


def _joined(steps: Sequence[Step]) -> Promise:
    """Returns what all the transforms together promise about outputs."""
    promises = [step.transform.promise for step in steps]
    weakest = max(promises, key=lambda promise: _RANK[promise.outputs]).outputs
    # Differences add up, and a scale may shrink by as much: twice the sum is safe.
    tolerance = 2.0 * sum(promise.tolerance for promise in promises)
    return Promise(outputs=weakest, tolerance=tolerance)
