"""The object graph of a TF2 checkpoint: pruning it, and matching it with a model.

A TF2 checkpoint stores, beside its tensors, which object holds which: nodes with named
edges, and for each variable the key of its tensor. The key alone doesn't say what a
tensor is: it is whichever path was met first, so that the kernels of a compiled Keras 3
model are stored as `optimizer/_trainable_variables/0` and so on.

Reference:
    TensorFlow `core/protobuf/trackable_object_graph.proto`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

from tfopt.savedmodel import protos
from tfopt.savedmodel.bundle import BundleReader
from tfopt.types import TfoptError

GRAPH_KEY = "_CHECKPOINTABLE_OBJECT_GRAPH"
VALUE = "VARIABLE_VALUE"
_VALUE_SUFFIX = f"/.ATTRIBUTES/{VALUE}"

# The model's own variables, in the order of its `trainable_variables`, as an edge of a
# Keras 3 optimizer. Layers in Python lists and dicts are reachable only this way.
_TRAINED = "_trainable_variables"
_METRIC_EDGES = {"metrics", "_metrics", "compiled_metrics", "_compile_metrics"}
# State of Keras's metrics; one of the first two alone may be a layer's.
_METRIC_STATE = {
    *("total", "count", "total_cm", "true_positives", "true_negatives"),
    *("false_positives", "false_negatives"),
}
_RANDOM_EDGES = ("seed_generator", "random_generator")

OPTIMIZER, METRICS = "optimizer", "metrics"
SEEDS, COUNTER = "seed generators", "save counter"


def read_graph(reader: BundleReader) -> Any | None:
    """Returns the checkpoint's TrackableObjectGraph, `None` if it has none (TF1).

    Raises:
        TfoptError: It is damaged.
    """
    from google.protobuf.message import DecodeError

    if GRAPH_KEY not in reader:
        return None
    try:
        data = reader.read(GRAPH_KEY).item()
        graph = protos.message_class("TrackableObjectGraph").FromString(data)
        _check(graph)
    except (DecodeError, ValueError, TypeError) as error:
        raise TfoptError(
            "The checkpoint's object graph is damaged. Expected an intact checkpoint. "
            f"Received: path={reader.prefix!r} ({error})"
        ) from error
    return graph


def _check(graph: Any) -> None:
    """Raises ValueError if an edge leads nowhere, or a name isn't what it must be."""
    count = len(graph.nodes)
    if not count:
        raise ValueError("it has no nodes")
    for node in graph.nodes:
        numbers = [edge.node_id for edge in node.children]
        numbers += [slot.slot_variable_node_id for slot in node.slot_variables]
        if any(not 0 <= number < count for number in numbers):
            raise ValueError(f"an edge leads out of the {count} nodes")
        for edge in node.children:
            if edge.local_name == _TRAINED:
                for item in graph.nodes[edge.node_id].children:
                    int(item.local_name)


def prune(graph: Any) -> tuple[Any, dict[str, list[str]], set[str]]:
    """Removes optimizer state, metrics, seed generators and the save counter.

    Of a Keras 3 optimizer, the edges to the variables of the model stay.

    Returns:
        The graph that is left, why -> attribute keys of the nodes removed, and the keys
        of the variables that an optimizer says it trains.
    """
    optimizers = {i for i, node in enumerate(graph.nodes) if _is_optimizer(node)}
    kept, refused = _reach(graph, optimizers)
    numbers = {old: new for new, old in enumerate(kept)}
    pruned = type(graph)()
    for old in kept:
        source, target = graph.nodes[old], pruned.nodes.add()
        target.attributes.extend(source.attributes)
        if source.HasField("registered_saver"):
            target.registered_saver.CopyFrom(source.registered_saver)
        for edge in source.children:
            if not _refusal(graph, old, edge, optimizers) and edge.node_id in numbers:
                target.children.add(
                    node_id=numbers[edge.node_id], local_name=edge.local_name
                )
    dropped: dict[str, list[str]] = {}
    for number, reason in refused.items():
        if number not in numbers:
            keys = [item.checkpoint_key for item in graph.nodes[number].attributes]
            dropped.setdefault(reason, []).extend(keys)
    trained = {
        value_key(graph, entry.node_id) or ""
        for number in optimizers
        for edge in graph.nodes[number].children
        if edge.local_name == _TRAINED
        for entry in graph.nodes[edge.node_id].children
    }
    return pruned, {why: keys for why, keys in dropped.items() if keys}, trained - {""}


def keep_only(graph: Any, keys: Iterable[str]) -> Any:
    """Returns the graph without attributes of other keys; nodes and edges stay."""
    wanted = set(keys)
    result = type(graph)()
    for node in graph.nodes:
        target = result.nodes.add()
        target.CopyFrom(node)
        del target.attributes[:]
        target.attributes.extend(
            item for item in node.attributes if item.checkpoint_key in wanted
        )
    return result


def value_key(graph: Any, number: int) -> str | None:
    """Returns the key of a variable's tensor, `None` if the node is no variable."""
    for attribute in graph.nodes[number].attributes:
        if attribute.name == VALUE:
            return attribute.checkpoint_key
    return None


def full_names(graph: Any) -> dict[str, str]:
    """Returns the variables' own names by key."""
    return {
        item.checkpoint_key: item.full_name or item.checkpoint_key
        for node in graph.nodes
        for item in node.attributes
    }


def parts(graph: Any) -> dict[str, int]:
    """Returns what may be a model: the whole (`""`) and what it directly holds."""
    found = {"": 0}
    for edge in graph.nodes[0].children:
        if edge.node_id != 0 and graph.nodes[edge.node_id].children:
            found[edge.local_name] = edge.node_id
    return found


def match(graph: Any, root: int, model: Any) -> tuple[dict[int, str], set[str]]:
    """Walks a model and a node of the graph side by side.

    Args:
        graph: A TrackableObjectGraph.
        root: The node to compare with the model.
        model: A Keras model.

    Returns:
        The key of each variable met, by the variable's `id`; and all keys below the
        node that met no object of the model.
    """
    found: dict[int, str] = {}
    met: set[int] = set()
    todo = deque([(root, model)])
    while todo:
        number, thing = todo.popleft()
        if number in met:
            continue
        met.add(number)
        key = value_key(graph, number)
        if key is not None:
            found.setdefault(id(thing), key)
        held = _children(thing)
        for edge in graph.nodes[number].children:
            if edge.local_name in held:
                todo.append((edge.node_id, held[edge.local_name]))
    trained = _trained(graph, root)
    wanted = list(model.trainable_weights)
    if len(trained) == len(wanted):
        # By its place among those that the optimizer trains, where no path leads.
        for number, variable in zip(trained, wanted, strict=True):
            key = value_key(graph, number)
            if key is not None and id(variable) not in found:
                found[id(variable)] = key
                met.add(number)
    below = _below(graph, root)
    used = set(found.values())
    unmet = {value_key(graph, number) for number in below - met} - used
    return found, {key for key in unmet if key is not None}


def build_graph(model: Any, variables: list[Any]) -> tuple[Any, list[str]]:
    """Makes the graph that `tf.train.Checkpoint(model)` would store for inference.

    Args:
        model: A Keras model.
        variables: Its variables to store.

    Returns:
        The graph, and the key of each variable. One that TensorFlow doesn't find in the
        model, since its layer is in a list, say, gets the key `weights/<position>`.
    """
    graph = protos.message_class("TrackableObjectGraph")()
    keys: dict[int, str] = {}
    wanted = {id(variable) for variable in variables}
    numbers = {id(model): 0}
    alive = [model]  # so that no id is used twice
    todo: deque[tuple[Any, str]] = deque([(model, "")])
    graph.nodes.add()
    while todo:
        thing, path = todo.popleft()
        number = numbers[id(thing)]
        if id(thing) in wanted:
            keys[id(thing)] = path + _VALUE_SUFFIX
            graph.nodes[number].attributes.add(
                name=VALUE, full_name=thing.name, checkpoint_key=keys[id(thing)]
            )
            continue
        for name, child in _children(thing).items():
            if name in ("optimizer", "save_counter", *_METRIC_EDGES):
                continue
            if id(child) not in numbers:
                numbers[id(child)] = len(graph.nodes)
                graph.nodes.add()
                alive.append(child)
                step = _escape(name)
                todo.append((child, f"{path}/{step}" if path else step))
            graph.nodes[number].children.add(
                node_id=numbers[id(child)], local_name=name
            )
    return graph, [
        keys.get(id(variable), f"weights/{position}{_VALUE_SUFFIX}")
        for position, variable in enumerate(variables)
    ]


def _reach(graph: Any, optimizers: set[int]) -> tuple[list[int], dict[int, str]]:
    """Returns the nodes to keep, in order, and the others with the reason."""
    kept = {0: None}
    refused: dict[int, str] = {}
    todo = deque([0])
    while todo:
        number = todo.popleft()
        for edge in graph.nodes[number].children:
            reason = _refusal(graph, number, edge, optimizers)
            if reason:
                for below in _below(graph, edge.node_id):
                    refused.setdefault(below, reason)
            elif edge.node_id not in kept:
                kept[edge.node_id] = None
                todo.append(edge.node_id)
    for node in graph.nodes:
        for slot in node.slot_variables:
            refused.setdefault(slot.slot_variable_node_id, OPTIMIZER)
    return list(kept), refused


def _refusal(graph: Any, parent: int, edge: Any, optimizers: set[int]) -> str | None:
    name, child = edge.local_name, graph.nodes[edge.node_id]
    held = {item.local_name for item in child.children}
    if parent in optimizers:
        return None if name == _TRAINED else OPTIMIZER
    if edge.node_id in optimizers:
        return None if _TRAINED in held else OPTIMIZER
    if parent == 0 and name == "save_counter":
        return COUNTER
    state = held - {"_variables"}
    is_metric = bool(state) and state <= _METRIC_STATE
    if name in _METRIC_EDGES or (is_metric and state not in ({"total"}, {"count"})):
        return METRICS
    if name.endswith(_RANDOM_EDGES) or "_state_var" in held:
        return SEEDS
    return None


def _is_optimizer(node: Any) -> bool:
    held = {edge.local_name for edge in node.children}
    return (
        len(node.slot_variables) > 0
        or held >= {"_iterations", "_learning_rate"}
        or held >= {"_iterations", "_variables"}
        or held >= {"iter", "learning_rate"}  # tf_keras.optimizers.legacy
        or held >= {"loss_scale", "base_optimizer"}
    )


def _trained(graph: Any, root: int) -> list[int]:
    """Returns the variables that the optimizer of a node trains, in order."""
    for holder in (root, 0):  # of a compiled model, or beside the model
        for edge in graph.nodes[holder].children:
            for inner in graph.nodes[edge.node_id].children:
                if inner.local_name == _TRAINED:
                    entries = graph.nodes[inner.node_id].children
                    ordered = sorted(entries, key=lambda item: int(item.local_name))
                    return [item.node_id for item in ordered]
    return []


def _below(graph: Any, root: int) -> set[int]:
    found = {root}
    todo = [root]
    while todo:
        for edge in graph.nodes[todo.pop()].children:
            if edge.node_id not in found:
                found.add(edge.node_id)
                todo.append(edge.node_id)
    return found


def _children(thing: Any) -> dict[str, Any]:
    import tensorflow as tf

    if not hasattr(thing, "_trackable_children"):
        return {}
    return dict(tf.train.TrackableView(thing).children(thing))


def _escape(name: str) -> str:
    # As TensorFlow does in keys, in which "." and "/" have a meaning.
    return name.replace(".", "..").replace("/", ".S")


def keys_of(attribute_key: str, keys: Iterable[str]) -> Iterator[str]:
    """Yields the tensors of an attribute: a table's keys and values are two."""
    for key in keys:
        if key == attribute_key or key.startswith((attribute_key + "-",)):
            yield key
