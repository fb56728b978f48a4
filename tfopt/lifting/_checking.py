"""Comparing a lifted model with the graph that it came from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfopt._keras.flatten import to_model
from tfopt.lifting._assembling import Assembled
from tfopt.lifting._network import Network
from tfopt.types import TfoptError, VerificationError

# Of the largest magnitude in a tensor: other orders of summation, over many layers.
_TOLERANCE = 1e-4
_BATCH_SIZE = 2
_FREE_SIZE = 64


def check(
    network: Network,
    assembled: Assembled,
    model: Any,
    data: Mapping[str, Any] | None,
) -> None:
    """Runs both on the same inputs.

    Args:
        network: The graph.
        assembled: The flat graph of Keras layers.
        model: The Keras model made of that.
        data: Inputs by name; by default random ones, always the same.

    Raises:
        ValueError: `data` misses an input.
        TfoptError: The graph itself fails on the inputs.
        VerificationError: An output differs; the message names the first tensor that
            does.
    """
    arrays = _random(network) if data is None else _given(network, data)
    tensors = {key: network.source(t).name for key, t in network.outputs.items()}
    expected = _run(network, tensors.values(), arrays)
    found = _outputs(model, arrays)
    differing = [
        key
        for key, name in tensors.items()
        if _difference(expected[name], found[key]) is not None
    ]
    if differing:
        raise VerificationError(
            "The lifted model doesn't compute what the graph computes. This is an "
            f"error of tfopt; {_first_difference(network, assembled, arrays)}. "
            f"Received: outputs {differing} of {network.where}"
        )


def _run(network: Network, names: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    try:
        return network.run(list(names), arrays)
    except (tf.errors.OpError, ValueError) as error:
        raise TfoptError(
            "The graph fails on inputs that were made up to compare it with the lifted "
            "model. Expected `verify_data` with an array for each input. "
            f"Received: {_shapes(arrays)} ({str(error).splitlines()[0]})"
        ) from error


def _first_difference(
    network: Network, assembled: Assembled, arrays: Mapping[str, np.ndarray]
) -> str:
    inputs = {tensor.name for tensor in network.inputs.values()}
    names = [name for name in assembled.values if name not in inputs]
    graph = assembled.graph
    everything = to_model(
        dataclasses.replace(
            graph,
            outputs=[assembled.values[name] for name in names],
            output_names=[f"tensor_{index}" for index in range(len(names))],
        )
    )
    expected = _run(network, names, arrays)
    found = everything(_as_taken(everything, arrays), training=False)
    for name, tensor in zip(names, tf.nest.flatten(found), strict=True):
        difference = _difference(expected[name], np.asarray(tensor))
        if difference is not None:
            producer = assembled.values[name].producer
            layer = producer.layer.name if producer else name
            return (
                f"the first tensor that differs is {name!r}, of the layer {layer!r}: "
                f"{difference}"
            )
    return "each layer is right on its own"


def _difference(expected: np.ndarray, found: np.ndarray) -> str | None:
    if expected.shape != found.shape:
        return f"shape {found.shape} instead of {expected.shape}"
    if expected.dtype.kind not in "fc":
        wrong = int((expected != found).sum())
        return f"{wrong} of {expected.size} elements" if wrong else None
    finite = np.isfinite(expected)
    if (finite != np.isfinite(found)).any():
        return "infinite or NaN in other places"
    if not finite.any():
        return None
    limit = _TOLERANCE * np.abs(expected[finite]).max() + 1e-6
    worst = np.abs(expected[finite] - found[finite]).max()
    return f"by {worst:.3g}, where {limit:.3g} is allowed" if worst > limit else None


def _outputs(model: Any, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    found = model(_as_taken(model, arrays), training=False)
    if isinstance(found, dict):
        return {name: np.asarray(tensor) for name, tensor in found.items()}
    return {model.output_names[0]: np.asarray(found)}


def _as_taken(model: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    tensors = {name: tf.constant(array) for name, array in arrays.items()}
    return tensors if isinstance(model.input, dict) else next(iter(tensors.values()))


def _given(network: Network, data: Mapping[str, Any]) -> dict[str, np.ndarray]:
    missing = sorted(set(network.inputs) - set(data))
    if missing:
        raise ValueError(
            f"`verify_data` misses inputs. Expected arrays for {sorted(network.inputs)}"
            f". Received: verify_data with {sorted(data)}"
        )
    return {
        name: np.asarray(data[name], tensor.dtype.as_numpy_dtype)
        for name, tensor in network.inputs.items()
    }


def _random(network: Network) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    arrays = {}
    for name, tensor in network.inputs.items():
        sizes = tensor.shape.as_list()
        shape = [_BATCH_SIZE if sizes[0] is None else sizes[0]]
        shape += [_FREE_SIZE if size is None else size for size in sizes[1:]]
        # Whole numbers so small that most tables have such a row.
        array: np.ndarray = (
            generator.normal(size=shape)
            if tensor.dtype.is_floating
            else generator.integers(0, 2, size=shape)
        )
        arrays[name] = array.astype(tensor.dtype.as_numpy_dtype)
    return arrays


def _shapes(arrays: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in arrays.items()}
