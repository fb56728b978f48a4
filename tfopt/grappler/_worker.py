"""What child processes do; see `child`.

This process imports TensorFlow but starts nothing of it, so that it can fork for each
job. The fork writes to files what it logged and what it found.
"""

from __future__ import annotations

import base64
import json
import os
import pathlib
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import rewriter_config_pb2
from tensorflow.python.framework import op_def_registry
from tensorflow.python.grappler import cluster as clusters
from tensorflow.python.grappler import item as items
from tensorflow.python.grappler import tf_optimizer

from tfopt import _processes, benchmark
from tfopt.freezing import _execution, functions, rewrite

_PRODUCTS = ("Conv2D", "Conv3D", "DepthwiseConv2dNative", "MatMul")
_POLL_S = 0.01
_FINISH_S = 5.0

# Marks arrays of strings in the file of reference outputs.
_STRINGS = "strings"


def outcomes(request: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Runs the jobs of a request; returns the fields of their `Outcome`s."""
    # Of Python 3.12 and later: NumPy has idle threads of its own at this point.
    warnings.filterwarnings("ignore", message=".*fork", category=DeprecationWarning)
    folder = pathlib.Path(request["folder"])
    return [_run(job, request["timeout_s"], folder) for job in request["jobs"]]


def _run(
    job: Mapping[str, Any], timeout_s: float, folder: pathlib.Path
) -> dict[str, Any]:
    """Runs one job in a fork; returns the fields of an `Outcome`."""
    log, answer = folder / "log", folder / "job.json"
    answer.unlink(missing_ok=True)
    begin = time.perf_counter()
    pid = os.fork()
    if pid == 0:
        _work(job, log, answer)
    status, in_time = _wait(pid, begin + timeout_s)
    outcome: dict[str, Any] = {
        "status": "done",
        "result": None,
        "message": "",
        "log": log.read_text(errors="replace") if log.exists() else "",
        "seconds": time.perf_counter() - begin,
    }
    if not in_time:
        outcome |= {"status": "timeout", "message": f"no result after {timeout_s:g} s"}
    elif os.WIFSIGNALED(status) or not answer.exists():
        how = _processes.how_it_ended(os.waitstatus_to_exitcode(status))
        reason = _processes.last_words(outcome["log"]) or "no message"
        outcome |= {"status": "crashed", "message": f"{how}: {reason}"}
    else:
        outcome |= json.loads(answer.read_text(encoding="utf-8"))
    return outcome


def _wait(pid: int, deadline: float) -> tuple[int, bool]:
    """Waits for a fork; ends it at the deadline. Returns its status, and if in time."""
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return status, True
        if time.perf_counter() > deadline:
            os.kill(pid, signal.SIGKILL)
            return os.waitpid(pid, 0)[1], False
        time.sleep(_POLL_S)


def _work(job: Mapping[str, Any], log: pathlib.Path, answer: pathlib.Path) -> None:
    """Runs a job in this fork, and ends it."""
    code = 0
    try:
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(file, 1)
        os.dup2(file, 2)
        try:
            found = {"result": _TASKS[job["task"]](job)}
        except Exception as error:
            # TensorFlow's own C++ exceptions are among these.
            traceback.print_exc()
            message = " ".join(str(error).split())[:500]
            name = type(error).__name__
            found = {"status": "failed", "message": f"{name}: {message}"}
        answer.write_text(json.dumps(found), encoding="utf-8")
    except BaseException:
        traceback.print_exc()
        code = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        # Not the parent's clean-up, nor the end of TensorFlow's threads.
        os._exit(code)


def _register(job: Mapping[str, Any]) -> None:
    """Asks for one optimizer by name; TensorFlow's log tells whether it exists."""
    config = rewriter_config_pb2.RewriterConfig(optimizers=[job["name"]])
    # One that parallelizes aborts without.
    config.auto_parallel.num_replicas = 2
    meta_graph = tf.compat.v1.MetaGraphDef()
    meta_graph.graph_def.node.add(name="nothing", op="NoOp")
    meta_graph.collection_def["train_op"].node_list.value.append("nothing")
    _optimize_graph(meta_graph, config)


def _optimize(job: Mapping[str, Any]) -> dict[str, Any]:
    """Optimizes a MetaGraphDef; writes the GraphDef and the OpDefs that it uses."""
    begin = time.perf_counter()
    meta_graph = _read_meta_graph(job)
    graph = _optimize_graph(meta_graph, _read_config(job))
    seconds = time.perf_counter() - begin
    pathlib.Path(job["output"]).write_bytes(graph.SerializeToString())
    if "op_list" in job:
        used = {node.op for nodes in functions.bodies(graph) for node in nodes}
        used -= {function.signature.name for function in graph.library.function}
        known = [op_def_registry.get(name) for name in sorted(used)]
        op_list = meta_graph.meta_info_def.stripped_op_list
        del op_list.op[:]
        op_list.op.extend(definition for definition in known if definition is not None)
        pathlib.Path(job["op_list"]).write_bytes(op_list.SerializeToString())
    return {"seconds": seconds}


def _evaluate(job: Mapping[str, Any]) -> dict[str, Any]:
    """Runs a model, and compares it with the reference."""
    with np.load(job["reference"], allow_pickle=False) as stored:
        keys = json.loads(str(stored["keys"]))
        reference = {
            key: {
                name: [[_restored(stored[ref], ref) for ref in refs] for refs in pair]
                for name, pair in outputs.items()
            }
            for key, outputs in keys.items()
        }
    found = {}
    for key, signature in job["signatures"].items():
        inputs = _inputs(job, signature)
        ours = _execution.run(job["model"], signature, inputs, grappler=False)
        exact = {name: pair[0] for name, pair in reference[key].items()}
        again = {name: pair[1] for name, pair in reference[key].items()}
        found[key] = _execution.compare(exact, again, ours)
    return found


def _reference(job: Mapping[str, Any]) -> None:
    """Runs the source twice and keeps its outputs in a file."""
    arrays: dict[str, np.ndarray] = {}
    keys: dict[str, dict[str, list[list[str]]]] = {}
    for key, signature in job["signatures"].items():
        inputs = _inputs(job, signature)
        runs = [
            _execution.run(job["model"], signature, inputs, grappler=False)
            for _ in range(2)
        ]
        for name in runs[0]:
            pair = []
            for run in runs:
                refs = [
                    f"{_STRINGS if array.dtype.hasobject else 'array'}_{position}"
                    for position, array in enumerate(run[name], len(arrays))
                ]
                arrays.update(zip(refs, map(_plain, run[name]), strict=True))
                pair.append(refs)
            keys.setdefault(key, {})[name] = pair
    with pathlib.Path(job["reference"]).open("wb") as file:
        np.savez(file, keys=np.array(json.dumps(keys)), **arrays)  # type: ignore[arg-type]


def _plain(array: np.ndarray) -> np.ndarray:
    """Returns strings as bytes of JSON, which take no pickling; others as they are."""
    if not array.dtype.hasobject:
        return array
    items = [base64.b64encode(item).decode() for item in array.flat]
    text = json.dumps({"shape": array.shape, "items": items})
    return np.frombuffer(text.encode(), np.uint8)


def _restored(array: np.ndarray, ref: str) -> np.ndarray:
    if not ref.startswith(_STRINGS):
        return array
    content = json.loads(array.tobytes())
    found = np.empty(len(content["items"]), dtype=object)
    found[:] = [base64.b64decode(item) for item in content["items"]]
    return found.reshape(content["shape"])


def _latency(job: Mapping[str, Any]) -> dict[str, Any]:
    """Times models in turn, on the same input."""
    signature = job["signature"]
    feed = _inputs(job, signature)[0]
    fetch = list(signature["outputs"].values())
    contexts, candidates = [], {}
    for name, model in job["models"].items():
        context = _execution.open_session(model, model["grappler"])
        session = context.__enter__()
        contexts.append(context)
        candidates[name] = _call(session, fetch, feed)
    timings = benchmark.interleave(
        candidates, rounds=job["rounds"], warmup=2, time_limit_s=job["time_limit_s"]
    )
    # The process ends now; nothing has to be closed.
    return {name: timing.to_dict() for name, timing in timings.items()}


def _call(session: Any, fetch: list[str], feed: Mapping[str, Any]) -> Callable[[], Any]:
    tensors = [session.graph.get_tensor_by_name(name) for name in fetch]
    return lambda: session.run(tensors, feed)


def _costs(job: Mapping[str, Any]) -> dict[str, Any]:
    """Lets Grappler's cluster run the graph and tell what each node took."""
    meta_graph = _read_meta_graph(job)
    # A call would be one row: its function's nodes are wanted.
    config = rewriter_config_pb2.RewriterConfig(
        optimizers=["function"],
        min_graph_nodes=-1,
        disable_tfg_optimizer=True,
        fail_on_optimizer_errors=True,
    )
    graph = _optimize_graph(meta_graph, config)
    meta_graph.graph_def.CopyFrom(graph)
    # The cluster's session optimizes: it would fuse nodes, and book a convolution to
    # the Relu behind it. What is fetched stays.
    fetches = meta_graph.collection_def["train_op"].node_list.value
    fetches.extend(name for name in _fetchable(graph) if name not in fetches)
    cluster = clusters.Cluster(disable_detailed_stats=False, disable_timeline=True)
    measured, seconds, _ = cluster.MeasureCosts(items.Item(meta_graph))
    merged = _merged_ops(graph, {found.node for found in measured})
    rows = [
        {
            "node": found.node,
            "op": merged.get(found.node, found.op.op),
            "compute_ns": found.compute_cost,
            "output_bytes": sum(found.op_memory.output_memory),
        }
        for found in measured
    ]
    return {"seconds": seconds, "rows": rows}


def _merged_ops(graph: Any, measured: set[str]) -> dict[str, str]:
    """Returns node -> `"Conv2D+BiasAdd"` for those that ran with the one before.

    oneDNN merges a product and the BiasAdd behind it after Grappler, whatever is
    fetched, under the name of the latter; the product then isn't measured.
    """
    nodes = {node.name: node for node in graph.node}
    merged = {}
    for name in measured & set(nodes):
        op = nodes[name].op
        if op != "BiasAdd":
            continue
        source = nodes.get(nodes[name].input[0].split(":")[0])
        if source and source.op in _PRODUCTS and source.name not in measured:
            merged[name] = f"{source.op}+{op}"
    return merged


def _fetchable(graph_def: Any) -> list[str]:
    """Returns the nodes that have a plain tensor as output."""
    with tf.Graph().as_default() as graph:
        tf.import_graph_def(graph_def, name="")
        return [
            node.name
            for node in graph.get_operations()
            if node.outputs
            and node.type not in ("Const", "Placeholder")
            and node.outputs[0].dtype.base_dtype not in (tf.resource, tf.variant)
        ]


def _optimize_graph(meta_graph: Any, options: Any) -> Any:
    config = tf.compat.v1.ConfigProto()
    config.graph_options.rewrite_options.CopyFrom(options)
    functions.set_lowering_aside(meta_graph.graph_def)
    graph = tf_optimizer.OptimizeGraph(config, meta_graph, verbose=True)
    functions.restore_lowering(graph)
    used = functions.used_functions(graph)
    del graph.library.function[:]
    graph.library.function.extend(used)
    for nodes in functions.bodies(graph):
        rewrite.drop_dangling_colocation(nodes)
        for node in nodes:
            node.device = ""
    return graph


def _read_meta_graph(job: Mapping[str, Any]) -> Any:
    content = pathlib.Path(job["meta_graph"]).read_bytes()
    return tf.compat.v1.MetaGraphDef.FromString(content)


def _read_config(job: Mapping[str, Any]) -> Any:
    content = bytes.fromhex(job["config"])
    return rewriter_config_pb2.RewriterConfig.FromString(content)


def _inputs(
    job: Mapping[str, Any], signature: Mapping[str, Any]
) -> list[dict[str, np.ndarray]]:
    return [
        _execution.make_inputs(signature["inputs"], job["data"], seed)
        for seed in range(2)
    ]


def _sleep(job: Mapping[str, Any]) -> None:
    """Does nothing for some seconds: a hang, for tests."""
    time.sleep(job["seconds"])


_TASKS: Mapping[str, Callable[[Mapping[str, Any]], Any]] = {
    "register": _register,
    "optimize": _optimize,
    "evaluate": _evaluate,
    "reference": _reference,
    "latency": _latency,
    "costs": _costs,
    "sleep": _sleep,
}


if __name__ == "__main__":
    _processes.answer(outcomes)
