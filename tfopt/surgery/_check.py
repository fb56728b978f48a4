"""Whether a model without some channels computes what the masked one does."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import tensorflow as tf

from tfopt._keras import flatten
from tfopt._keras.flatten import Call, Graph, Value
from tfopt.surgery._structure import Structure
from tfopt.types import TfoptError, VerificationError

# Of outputs, as a fraction of the largest value.
TOLERANCE = 1e-5
# Of what each layer returns, likewise. Rounding may be larger there (a normalization
# subtracts large means), and mistakes are larger still.
INNER_TOLERANCE = 1e-3

_EXAMPLES = 4
_FREE_SIZE = 64  # of an axis whose size the model leaves open


def compare(
    structure: Structure,
    small: Graph,
    masked: Graph,
    *,
    model: Any = None,
    removed: np.ndarray,
    without_effect: np.ndarray,
    inputs: Any,
) -> float:
    """Runs two graphs layer by layer and compares the channels that are left.

    Outputs alone would not do: those of an untrained network may hardly depend on its
    inputs, and then equal ones prove nothing.

    Args:
        structure: Of the graph from which both were made.
        small: Without some channels.
        masked: With zeros in place of them.
        model: The Keras model of `small`, if it has been made.
        removed: Atoms that `small` lacks, bool [atoms].
        without_effect: These and others that are not compared, bool [atoms].
        inputs: What the models are called with.

    Returns:
        The largest absolute difference of an output, as a fraction of that output's
        largest absolute value; the maximum over the outputs.

    Raises:
        VerificationError: A layer's values or the outputs differ, or are not finite.
    """
    outputs = set(tf.nest.flatten(masked.outputs))
    runs = [_Run(small, inputs, model), _Run(masked, inputs)]
    worst = 0.0
    for calls in zip(small.calls, masked.calls, strict=True):
        for run, call in zip(runs, calls, strict=True):
            run.step(call)
        for value in calls[0].outputs:
            got, expected = (run.values[value] for run in runs)
            layout = structure.layouts.get(value)
            if layout is not None:
                compared = ~without_effect[layout.atoms]
                expected = np.compress(compared, expected, axis=layout.axis)
                # Some of the others may have stayed, to make a round number.
                compared = compared[~removed[layout.atoms]]
                got = np.compress(compared, got, axis=layout.axis)
            error = _error(got, expected, calls[0].layer.path)
            worst = max(worst, error if value in outputs else 0.0)
            if error > (TOLERANCE if value in outputs else INNER_TOLERANCE):
                raise VerificationError(
                    f"Without its channels, the model computes something else at the "
                    f"layer {calls[0].layer.path!r}. Expected a difference of at most "
                    f"{TOLERANCE:g} of the largest output and {INNER_TOLERANCE:g} "
                    f"inside the model. Received: {error:.3g}"
                )
        for run, call in zip(runs, calls, strict=True):
            run.forget(call)
    return worst


class _Run:
    """A graph that runs one call after the other, eagerly."""

    def __init__(self, graph: Graph, inputs: Any, model: Any = None):
        self._model = flatten.to_model(graph) if model is None else model
        given = tf.nest.flatten(inputs)
        wanted = tf.nest.flatten(graph.inputs)
        if len(given) != len(wanted):
            raise ValueError(
                f"`data` must hold the model's {len(wanted)} inputs. "
                f"Received: {len(given)} arrays"
            )
        self.values: dict[Value, Any] = {
            value: tf.cast(array, value.dtype)
            for value, array in zip(wanted, given, strict=True)
        }
        self._uses = Counter(value for call in graph.calls for value in call.inputs)

    def step(self, call: Call) -> None:
        """Makes one call."""
        args, kwargs = call.map_arguments(self.values.__getitem__)
        spec = call.layer
        if spec.weights is None:
            layer = flatten.make_layer(spec)
        else:
            layer = self._model.get_layer(spec.name)
        results = tf.nest.flatten(layer(*args, **kwargs))
        self.values.update(zip(call.outputs, results, strict=True))

    def forget(self, call: Call) -> None:
        """Drops the values that no later call needs."""
        self._uses.subtract(call.inputs)
        for value in {*call.inputs, *call.outputs}:
            if self._uses[value] <= 0:
                self.values.pop(value, None)


def _error(got: Any, expected: Any, path: str) -> float:
    got, expected = np.asarray(got), np.asarray(expected)
    if got.dtype.kind != "f":
        return float((got != expected).any())
    if not (np.isfinite(got).all() and np.isfinite(expected).all()):
        raise VerificationError(
            f"The layer {path!r} returns values that are not finite, so nothing can be "
            "compared. Expected inputs, given as `data`, for which all are finite. "
            f"Received: values of shape {expected.shape}"
        )
    scale = float(np.abs(expected).max(initial=0.0)) or 1.0
    return float(np.abs(got - expected).max(initial=0.0)) / scale


def random_inputs(graph: Graph, *, seed: int = 0) -> Any:
    """Returns random inputs in the structure in which the model takes them.

    Floats are normally distributed; integers below the size of the tables that they
    look up, otherwise 0 or 1.

    Raises:
        TfoptError: An input is of a type that cannot be made up.
    """
    rng = np.random.default_rng(seed)
    return tf.nest.map_structure(lambda value: _random(graph, value, rng), graph.inputs)


def _random(graph: Graph, value: Value, rng: np.random.Generator) -> tf.Tensor:
    batch, *others = value.shape or (None,)
    shape = [batch or _EXAMPLES, *(size or _FREE_SIZE for size in others)]
    dtype = tf.as_dtype(value.dtype)
    if dtype.is_floating:
        return tf.constant(rng.normal(0.0, 1.0, shape), dtype)
    if not (dtype.is_integer or dtype.is_bool):
        raise TfoptError(
            "Cannot make up inputs to compare the models with. Expected float or "
            f"integer inputs; give some as `data`. Received: an input of {dtype.name}"
        )
    sizes = [
        call.layer.config["input_dim"]
        for call in graph.calls
        if call.layer.kind == "Embedding" and value in call.inputs
    ]
    return tf.cast(rng.integers(0, min(sizes, default=2), shape), dtype)
