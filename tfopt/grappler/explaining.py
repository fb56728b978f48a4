"""What each optimizer does to a model: nodes, bytes, error and latency."""

from __future__ import annotations

import pathlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from tfopt import _progress, _trust, artifacts
from tfopt.freezing import checking
from tfopt.grappler import child, optimizing, registry
from tfopt.grappler import model as models
from tfopt.grappler.config import GrapplerConfig
from tfopt.grappler.model import Model
from tfopt.report import Column, Report, Table, machine, versions
from tfopt.savedmodel import reader
from tfopt.types import TfoptError

_SOURCE = "source"
_AT_RUN_TIME = "source, optimized at run time"

# Toggles that are off by default: shown alone, and added to the default.
_OFF_BY_DEFAULT = sorted(
    {"debug_stripper", "scoped_allocator", *registry.REDUCED_PRECISION}
    - {"auto_mixed_precision"}
)
_NOT_ALONE = frozenset({"autoparallel"})

_COLUMNS = (
    Column(key="nodes", better="lower"),
    Column(key="bytes", better="lower"),
    Column(key="max_error", title="max error", format=".2g"),
    Column(key="latency_ms", unit="ms", format=".2f", better="lower"),
    Column(key="spread", format=".0%"),
    Column(key="optimize_s", title="optimizing", unit="s", format=".2f"),
    Column(key="status", title="outcome"),
)
_NOTES = (
    "Nodes include those of functions. Errors are against the source on the same "
    "made-up or given inputs, and latencies are medians of one run in turn; both with "
    "TensorFlow's own optimization at run time off, but for the row that says so.",
    "A latency is worth comparing only where it differs by more than the spread (the "
    "middle half of the samples, as a fraction of the median).",
)


@_trust.with_safe_mode
def explain_graph(
    source: Any,
    config: GrapplerConfig | None = None,
    *,
    outputs: Sequence[str] = (),
    signature_keys: Sequence[str] | None = None,
    tags: Collection[str] | None = None,
    variants: Mapping[str, GrapplerConfig] | None = None,
    rounds: int = 20,
    timeout_s: float = 120.0,
    verify_data: str | None = None,
    safe_mode: bool = True,
) -> Report:
    """Measures what Grappler's optimizers do to a model, one by one.

    Each optimizer runs alone; all of a configuration run but one; and some that are off
    by default are added. Every run is a process of its own: an optimizer that crashes,
    hangs or fails is a row that says so. Latency is that of the main signature.

    All variants are in memory at once when they are timed.

    Args:
        source: See `tfopt.optimize_graph`.
        config: What "all" means, by default TensorFlow's defaults.
        outputs: Names of the outputs of a graph file.
        signature_keys: Signatures to keep, by default all for inference.
        tags: Tag set of the SavedModel's graph, by default `{"serve"}`.
        variants: Name -> configuration, to be measured instead of these.
        rounds: Samples of latency of each variant; 0 measures none.
        timeout_s: Seconds that each optimizer, and each run, may take.
        verify_data: An .npz file with one array per input; by default made up.
        safe_mode: Refuse model files that could run code, reach other files or the
            network. False opens and runs whatever they hold.

    Returns:
        The report; its table has a row for each variant, and `data["rows"]` moreover
        what each step did.

    Raises:
        ValueError: An option that is out of range or doesn't fit the source.
        TfoptError: The source cannot be read or run.

    Example:
        >>> plain = GrapplerConfig(remapping="off")
        >>> report = explain_graph("saved_model", variants={"plain": plain}, rounds=0)
        >>> list(report.tables[0].rows)
        ['source', 'plain']
    """
    if rounds < 0 or not timeout_s > 0:
        raise ValueError(
            "Expected 0 or more rounds and a positive time. "
            f"Received: rounds={rounds}, timeout_s={timeout_s}"
        )
    base = GrapplerConfig() if config is None else config
    chosen = default_variants(base) if variants is None else dict(variants)
    with (
        models.open_model(
            source,
            outputs=outputs,
            signature_keys=signature_keys,
            tags=tags,
            as_graph=True,
        ) as model,
        artifacts.temporary_folder() as folder,
    ):
        study = _Study(model, pathlib.Path(folder), timeout_s, verify_data)
        study.optimize(chosen)
        study.evaluate()
        if rounds:
            study.time(rounds)
        rows = study.rows
        where = model.where
    keys = [column.key for column in _COLUMNS]
    table = Table(
        title=f"Optimizers of Grappler on {where}",
        columns=_COLUMNS,
        rows={
            name: {**{key: row.get(key) for key in keys}, "status": _outcome(row)}
            for name, row in rows.items()
        },
        corner="variant",
    )
    return Report(
        title="Graph optimization, optimizer by optimizer",
        tables=[table],
        notes=_NOTES,
        data={"source": where, "config": base.get_config(), "rows": rows},
        machine=machine(),
        versions=versions(),
    )


def default_variants(config: GrapplerConfig) -> dict[str, GrapplerConfig]:
    """Returns the variants that `explain_graph` measures.

    Args:
        config: What "default" means.
    """
    found = {"default": config}
    names = [name for name in registry.SWITCHES if name not in _NOT_ALONE]
    for name in names:
        found[f"only {name}"] = GrapplerConfig(optimizers=[name])
    found["only constfold, pruning"] = GrapplerConfig(
        optimizers=["constfold", "pruning"]
    )
    found["lossless"] = GrapplerConfig.preset("lossless")
    for name in names:
        field, off = registry.SWITCHES[name]
        if name not in _OFF_BY_DEFAULT:
            found[f"default minus {name}"] = config.replace(**{field: off})
    found["default minus implementation_selector"] = config.replace(
        implementation_selector="off"
    )
    for name in _OFF_BY_DEFAULT:
        field, _ = registry.SWITCHES[name]
        found[f"default plus {name}"] = config.replace(**{field: "on"})
    return found


def _outcome(row: Mapping[str, Any]) -> str:
    return "; ".join([row["status"], *row.get("remarks", ())])


class _Study:
    """Measures variants of a model, step by step.

    Attributes:
        rows: Variant -> what is known of it.
    """

    def __init__(
        self, model: Model, work: pathlib.Path, timeout_s: float, data: str | None
    ):
        self.rows: dict[str, dict[str, Any]] = {}
        self._model, self._work, self._timeout_s = model, work, timeout_s
        self._paths: dict[str, pathlib.Path] = {}
        self._signatures = {
            key: checking.describe_signature(signature, key)
            for key, signature in model.signatures.items()
        }
        self._common = {
            "signatures": self._signatures,
            "data": data,
            "reference": str(work / "reference.npz"),
        }
        self._add(_SOURCE, model.graph)
        self._paths[_SOURCE] = work / "source.pb"
        self._paths[_SOURCE].write_bytes(model.graph.SerializeToString())

    def optimize(self, variants: Mapping[str, GrapplerConfig]) -> None:
        """Runs Grappler once for each variant."""
        for onednn in (False, True):
            names = [
                name
                for name, config in variants.items()
                if config.reduces_precision == onednn
            ]
            jobs = []
            for name in names:
                request = optimizing.job(self._model, variants[name], self._work)
                request["output"] = str(self._work / f"{len(self._paths)}.pb")
                self._paths[name] = pathlib.Path(request["output"])
                jobs.append(request)
            if not jobs:
                continue
            with _progress.task(f"optimizing by {len(jobs)} configurations"):
                outcomes = child.run_all(jobs, timeout_s=self._timeout_s, onednn=onednn)
            for name, outcome in zip(names, outcomes, strict=True):
                self._optimized(name, variants[name], outcome)
        # In the order asked for.
        self.rows = {name: self.rows[name] for name in (_SOURCE, *variants)}

    def evaluate(self) -> None:
        """Runs each variant on its own, and compares."""
        names = [name for name in self._alive() if name != _SOURCE]
        jobs: list[dict[str, Any]] = [
            {**self._common, "task": "reference", "model": self._loaded(_SOURCE)}
        ]
        jobs += [
            {**self._common, "task": "evaluate", "model": self._loaded(name)}
            for name in names
        ]
        with _progress.task(f"running {len(jobs)} graphs"):
            first, *outcomes = child.run_all(jobs, timeout_s=self._timeout_s)
        if first.status != "done":
            raise TfoptError(
                "The source cannot be run. Expected inputs made up from the signature "
                "to work; give real ones with verify_data (an .npz file). "
                f"Received: {self._model.where}: {first}"
            )
        for name, outcome in zip(names, outcomes, strict=True):
            if outcome.status == "done":
                self.rows[name]["max_error"] = optimizing.max_error(outcome.result)
                self.rows[name]["outputs"] = outcome.result
            else:
                self.rows[name]["status"] = f"run {outcome}"

    def time(self, rounds: int) -> None:
        """Times the source and all variants that work, in turn."""
        names = self._alive()
        requests = {name: {**self._loaded(name), "grappler": False} for name in names}
        requests[_AT_RUN_TIME] = {**requests[_SOURCE], "grappler": True}
        request = {
            **self._common,
            "task": "latency",
            "signature": self._signatures[self._model.main_key],
            "models": requests,
            "rounds": rounds,
            "time_limit_s": self._timeout_s,
        }
        # Loading and warming up take their time, too.
        limit = self._timeout_s * 2 + len(requests)
        with _progress.task(f"timing {len(requests)} graphs"):
            outcome = child.run(request, timeout_s=limit)
        if outcome.status != "done":
            for name in names:
                self.rows[name]["status"] = f"not timed, {outcome}"
            return
        at_run_time = {**self.rows[_SOURCE], "nodes": None, "bytes": None}
        rows = {_SOURCE: self.rows[_SOURCE], _AT_RUN_TIME: at_run_time, **self.rows}
        for name, timing in outcome.result.items():
            rows[name]["latency_ms"] = timing["median_ms"]
            rows[name]["spread"] = timing["spread"]
            rows[name]["timing"] = timing
        self.rows = rows

    def _alive(self) -> list[str]:
        return [name for name, row in self.rows.items() if row["status"] == "ok"]

    def _loaded(self, name: str) -> dict[str, Any]:
        return self._model.as_graph(self._paths[name], "graph_def")

    def _add(self, name: str, graph: Any, **more: Any) -> None:
        self.rows[name] = {
            "nodes": optimizing.num_nodes(graph),
            "bytes": graph.ByteSize(),
            "status": "ok",
            **more,
        }

    def _optimized(
        self, name: str, config: GrapplerConfig, outcome: child.Outcome
    ) -> None:
        if outcome.status != "done":
            self.rows[name] = {"status": str(outcome), "config": config.get_config()}
            return
        graph = reader.read_message(self._paths[name], "GraphDef")
        self._add(
            name,
            graph,
            optimize_s=outcome.result["seconds"],
            config=config.get_config(),
            steps=optimizing.steps(outcome.log),
            bfloat16_nodes=optimizing.num_bfloat16(graph),
        )
        ignored: Iterable[str] = registry.unknown_names(outcome.log)
        internal = optimizing.internal_ops(graph) - optimizing.internal_ops(
            self._model.graph
        )
        remarks = [f"not portable: {', '.join(sorted(internal))}"] if internal else []
        remarks += [f"ignored by TensorFlow: {', '.join(ignored)}"] if ignored else []
        self.rows[name]["remarks"] = remarks
