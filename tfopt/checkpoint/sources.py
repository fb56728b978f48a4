"""What a slim checkpoint can be made from: every source becomes a `Plan`."""

from __future__ import annotations

import dataclasses
import importlib
import os
import pathlib
import re
from typing import Any

from tfopt import artifacts
from tfopt.checkpoint import matching, objects, tf1
from tfopt.checkpoint.plan import METADATA_KEY, Item, Metadata, Plan, read_metadata
from tfopt.savedmodel.bundle import BundleReader
from tfopt.types import TfoptError

_SUFFIX = re.compile(r"\.(index|meta|data-\d{5}-of-\d{5})$")
_LATEST = re.compile(r'^model_checkpoint_path: "(.*)"', re.MULTILINE)


def make_plan(source: Any, *, keep: str, model: Any = None) -> Plan:
    """Decides what of a source goes into a slim checkpoint.

    Raises:
        TfoptError: The source cannot be read, has no weights, or it is unknown which of
            them are trainable.
    """
    if not isinstance(source, (str, os.PathLike)):
        return _of_model(source, keep, model)
    path = os.fspath(source)
    if path.endswith(artifacts.KERAS_SUFFIXES):
        return _of_model(_keras().load(path), keep, model)
    if isinstance(model, (str, os.PathLike)):
        model = _keras().load(model)
    if model is not None:
        _keras().check_model(model)
    reader = BundleReader(resolve(path))
    graph = objects.read_graph(reader)
    if METADATA_KEY in reader and model is None:
        metadata = read_metadata(reader)
        if metadata.keep == "trainable" and keep == "inference":
            raise TfoptError(
                "The slim checkpoint holds trainable weights only; the others, such as "
                "BatchNorm statistics, are gone. Expected keep='trainable', or the "
                f"checkpoint it was made from. Received: {reader.prefix!r}"
            )
        plan = _of_slim(reader, metadata)
    elif graph is None:
        plan = _of_saver(reader, model)
    else:
        plan = _of_objects(reader, graph, model)
    plan = _filter(plan, keep)
    if not plan.items:
        raise TfoptError(
            "Nothing is left to write: the checkpoint holds no weights of a model. "
            f"Expected one that was saved with its model. Received: {reader.prefix!r}"
        )
    return plan


def resolve(path: str | os.PathLike[str]) -> str:
    """Returns the prefix of the checkpoint that a path means.

    Args:
        path: A prefix; one of the checkpoint's files; a directory with checkpoints, of
            which the latest is meant; or a SavedModel directory.

    Raises:
        TfoptError: There is no checkpoint.

    Example:
        >>> resolve("saved_model")
        'saved_model/variables/variables'
    """
    given = os.fspath(path)
    prefix = _SUFFIX.sub("", given)
    if os.path.isfile(prefix + ".index"):
        return prefix
    folder = pathlib.Path(given)
    if not folder.is_dir():
        raise TfoptError(
            "There is no checkpoint. Expected a prefix such as 'model/ckpt-1', for "
            "which model/ckpt-1.index exists, or a directory with checkpoints. "
            f"Received: path={given!r}"
        )
    if (folder / "variables" / "variables.index").is_file():
        return str(folder / "variables" / "variables")
    if (folder / "checkpoint").is_file():
        latest = _LATEST.search((folder / "checkpoint").read_text(encoding="utf-8"))
        # Old ones name the place on the machine that trained; none leads out of here.
        name = os.path.basename(latest[1]) if latest else ""
        if name and (folder / (name + ".index")).is_file():
            return str(folder / name)
    found = sorted(folder.glob("*.index"))
    if len(found) != 1:
        listed = [entry.stem for entry in found][:10]
        raise TfoptError(
            "Which checkpoint is the latest is unknown. Expected a directory whose "
            "file `checkpoint` names one that exists, or with a single checkpoint. "
            f"Received: path={given!r} with {listed}"
        )
    return str(found[0]).removesuffix(".index")


def _of_model(source: Any, keep: str, model: Any) -> Plan:
    keras = _keras()
    keras.check_model(source)
    if model is not None:
        raise ValueError(
            "A model says itself what is trainable. Expected `model` only with a "
            f"checkpoint as the source. Received: model={model!r}"
        )
    weights = matching.weights(source)
    graph, keys = objects.build_graph(source, [weight.variable for weight in weights])
    items = [
        Item(
            key=key,
            name=weight.name,
            shape=weight.shape,
            dtype=matching.dtype_of(weight.variable),
            value=weight.variable.numpy,
            position=position,
            trainable=weight.trainable,
        )
        for position, (weight, key) in enumerate(zip(weights, keys, strict=True))
    ]
    plan = Plan(
        kind="keras",
        where=f"Keras model {source.name!r}",
        items=items,
        dropped={},
        graph=graph,
        model_weights=len(weights),
    )
    return _filter(plan, keep)


def _of_slim(reader: BundleReader, metadata: Metadata) -> Plan:
    """A slim checkpoint as the source: it says itself what is what."""
    items = [
        Item(
            key=entry.key,
            name=entry.name,
            shape=entry.shape,
            dtype=reader.entry(entry.key).dtype,
            position=entry.position,
            trainable=entry.trainable,
        )
        for entry in metadata.weights
    ]
    return Plan(
        kind=metadata.kind,
        where=reader.prefix,
        items=items,
        dropped={},
        reader=reader,
        graph=objects.read_graph(reader),
        model_weights=metadata.model_weights,
    )


def _of_objects(reader: BundleReader, graph: Any, model: Any) -> Plan:
    """A TF2 checkpoint: all but what the object graph shows to be for training only."""
    pruned, dropped, trained = objects.prune(graph)
    names, keys = objects.full_names(graph), reader.keys()
    left_out = {
        key
        for attributes in dropped.values()
        for attribute in attributes
        for key in objects.keys_of(attribute, keys)
    }
    plan = Plan(
        kind="object",
        where=reader.prefix,
        items=[
            _item(reader, key, names.get(key, key), (key in trained) or None)
            for key in keys
            if key not in left_out and key not in (objects.GRAPH_KEY, METADATA_KEY)
        ],
        dropped=dropped,
        reader=reader,
        graph=pruned,
    )
    if trained:
        plan.items = [
            dataclasses.replace(item, trainable=item.key in trained)
            for item in plan.items
        ]
    return plan if model is None else _with_model(plan, model)


def _of_saver(reader: BundleReader, model: Any) -> Plan:
    """A TF1 checkpoint: all but slots, powers and the step."""
    trainable = tf1.trainable_names(reader.prefix)
    dropped, keys = tf1.optimizer_keys(reader, trainable), reader.keys()
    plan = Plan(
        kind="saver",
        where=reader.prefix,
        items=[
            _item(reader, key, key, None if trainable is None else key in trainable)
            for key in keys
            if key not in dropped and key != METADATA_KEY
        ],
        dropped={objects.OPTIMIZER: dropped} if dropped else {},
        reader=reader,
    )
    return plan if model is None else _with_model(plan, model)


def _with_model(plan: Plan, model: Any) -> Plan:
    """Keeps what the model has, and notes its position and trainability there."""
    weights = matching.weights(model)
    by_key = {item.key: item for item in plan.items}
    shapes = {key: item.shape for key, item in by_key.items()}
    found = matching.locate(plan.graph, shapes, model, weights)
    found.check(plan.where, allow_unexpected=True)
    items = [
        dataclasses.replace(
            by_key[key],
            name=weights[position].name,
            position=position,
            trainable=weights[position].trainable,
        )
        for position, key in sorted(found.keys.items())
    ]
    kept = {item.key for item in items}
    others = [key for key in by_key if key not in kept]
    dropped = {**plan.dropped, **({"not in the model": others} if others else {})}
    return dataclasses.replace(
        plan, items=items, dropped=dropped, model_weights=len(weights)
    )


def _filter(plan: Plan, keep: str) -> Plan:
    """Leaves out what isn't trainable, if so asked."""
    if keep == "inference":
        return plan
    if all(item.trainable is None for item in plan.items):
        graph = f" or its graph {plan.where}.meta" if plan.kind == "saver" else ""
        raise TfoptError(
            "The checkpoint doesn't say which of its weights are trainable. Expected "
            f"`model`, a Keras model or its file (--model),{graph} beside it. "
            f"Received: keep='trainable', model=None, path={plan.where!r}"
        )
    gone = [item.key for item in plan.items if not item.trainable]
    return dataclasses.replace(
        plan,
        items=[item for item in plan.items if item.trainable],
        dropped={**plan.dropped, **({"not trainable": gone} if gone else {})},
    )


def _item(reader: BundleReader, key: str, name: str, trainable: bool | None) -> Item:
    entry = reader.entry(key)
    return Item(key, name, entry.shape, entry.dtype, trainable=trainable)


def _keras() -> Any:
    # Late, since it may load TensorFlow, which checkpoints don't need.
    return importlib.import_module("tfopt._keras")
