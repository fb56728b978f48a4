"""Layers that are written as Python code, seen as the calls that they make.

`opened` runs the `call` of a layer on symbolic tensors. Calling the layer itself would
record one node; its `call` records one for each layer and operation inside.

Raw `tf.*` functions take the symbolic tensors of tf_keras, but not those of Keras 3.
For these a dispatcher is registered with TensorFlow, which is in effect only in the
thread of an opening and while it lasts.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

from tfopt import _keras
from tfopt._keras import operations
from tfopt._keras.flatten._networks import is_symbolic

_thread = threading.local()


class CannotOpen(Exception):
    """Why a layer stays one opaque call."""


@dataclasses.dataclass(frozen=True)
class Opened:
    """What a layer's `call` did.

    Attributes:
        outputs: What it returned, with symbolic tensors.
        variables: The layer's own variables that it may have used, each with the
            symbolic tensor that stood for it.
        constants: Eager tensors that it gave to operations, as far as they aren't
            among the arguments of recorded calls.
        tape: Knows which variables eager tensors were computed from.
    """

    outputs: Any
    variables: list[tuple[Any, Any]]
    constants: list[tf.Tensor]
    tape: tf.GradientTape

    def check_constants(self, others: list[tf.Tensor]) -> None:
        """Raises if constants were computed from variables, which nothing would train.

        Raises:
            CannotOpen: One was.
        """
        constants = [*self.constants, *others]
        floats = [
            x for x in constants if x.dtype.is_floating and x.shape.num_elements()
        ]
        sources = self.tape.watched_variables()
        if not floats or not sources:
            return
        gradients = self.tape.gradient(floats, sources)
        for variable, gradient in zip(sources, gradients, strict=True):
            if gradient is not None:
                raise CannotOpen(f"it computes from a variable, {variable.name!r}")


def opened(layer: Any, run: Callable[[], Any]) -> Opened:
    """Runs the `call` of a layer on symbolic tensors.

    The layer's own variables are symbolic tensors meanwhile, too.

    Args:
        layer: The layer.
        run: Calls its `call`, or what is to be opened in its place.

    Raises:
        CannotOpen: Its code doesn't work on symbolic tensors.
    """
    keras = _keras.module_of(layer)
    variables = own_variables(layer)
    stand_ins = [
        symbolic(keras, tuple(x.shape), operations.dtype_in_call(layer, x))
        for x in variables
    ]
    stood_for = list(zip(variables, stand_ins, strict=True))
    with (
        _standing_in(layer, stood_for),
        tf.GradientTape() as tape,
        _dispatching(keras) as constants,
    ):
        try:
            outputs = run()
        except Exception as error:
            raise CannotOpen(_reason(error)) from error
    return Opened(outputs, stood_for, constants, tape)


def _reason(error: Exception) -> str:
    """Returns the line of an error that says what was wrong."""
    # Keras writes above it which layer it was.
    text = str(error).rsplit("Error encountered:", 1)[-1]
    lines = [line.strip() for line in text.splitlines()]
    told = [
        line for line in lines if line and not line.startswith("Exception encountered")
    ]
    return told[0][:200] if told else type(error).__name__


def own_variables(layer: Any) -> list[Any]:
    """Returns the variables of a layer that belong to no layer inside of it."""
    if not hasattr(layer, "_flatten_layers"):
        return []  # an operation of Keras 3
    if _keras.is_keras3(layer):
        return [*layer._trainable_variables, *layer._non_trainable_variables]
    return [*layer._trainable_weights, *layer._non_trainable_weights]


def symbolic(keras: Any, shape: tuple[int | None, ...] | None, dtype: Any) -> Any:
    """Returns a symbolic tensor that no layer made.

    Raises:
        CannotOpen: Keras has none of such a shape.
    """
    if keras.__name__ == "keras":
        if shape is None:
            raise CannotOpen("it takes a tensor of unknown rank")
        return keras.KerasTensor(shape, keras.backend.standardize_dtype(dtype))
    return keras.Input(type_spec=tf.TensorSpec(shape, tf.as_dtype(dtype)))


def check_plain(things: Any) -> list[tf.Tensor]:
    """Returns the eager tensors among the arguments of a call.

    Raises:
        CannotOpen: A variable is among them; nothing would train it.
    """
    found = []
    for thing in tf.nest.flatten(things):
        if isinstance(thing, tf.Variable) or hasattr(thing, "assign"):
            raise CannotOpen(f"it uses a variable of another layer, {thing.name!r}")
        if isinstance(thing, tf.Tensor):
            found.append(thing)
    return found


@contextlib.contextmanager
def _standing_in(layer: Any, stood_for: list[tuple[Any, Any]]) -> Iterator[None]:
    """Replaces variables by symbolic tensors where the layer's attributes hold them.

    Attributes are replaced behind the back of Keras, which tracks them.
    """
    replaced: list[tuple[Any, Any, Any]] = []
    places = [vars(layer)]
    places += [x for x in vars(layer).values() if type(x) is list]
    try:
        for place in places:
            items = place.items() if isinstance(place, dict) else enumerate(place)
            for key, value in list(items):
                for variable, stand_in in stood_for:
                    if value is variable:
                        replaced.append((place, key, value))
                        place[key] = stand_in
        with _refusing_losses(layer):
            yield
    finally:
        for place, key, value in replaced:
            place[key] = value


@contextlib.contextmanager
def _refusing_losses(layer: Any) -> Iterator[None]:
    # Losses and metrics that `call` adds would be lost.
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise CannotOpen("its `call` adds losses or metrics")

    names = [name for name in ("add_loss", "add_metric") if hasattr(layer, name)]
    names = [name for name in names if name not in vars(layer)]
    try:
        for name in names:
            vars(layer)[name] = refuse
        yield
    finally:
        for name in names:
            vars(layer).pop(name, None)


@contextlib.contextmanager
def _dispatching(keras: Any) -> Iterator[list[tf.Tensor]]:
    """Lets `tf.*` take symbolic tensors of Keras 3; yields constants they are given."""
    outer = getattr(_thread, "constants", None)
    constants: list[tf.Tensor] = []
    if keras.__name__ == "keras":
        _dispatcher()
        _thread.constants = constants
    try:
        yield constants
    finally:
        _thread.constants = outer


class _Dispatcher(tf.__internal__.dispatch.GlobalOpDispatcher):
    """Makes a layer of each function that is called on symbolic tensors of Keras 3."""

    def handle(self, op: Any, args: Any, kwargs: Any) -> Any:
        constants = getattr(_thread, "constants", None)
        if constants is None:
            return self.NOT_SUPPORTED
        if not any(map(_is_keras3_tensor, tf.nest.flatten((args, kwargs)))):
            return self.NOT_SUPPORTED
        name = operations.name_of(op)
        if name is None:
            return self.NOT_SUPPORTED
        constants += check_plain((args, kwargs))
        return operations.recorded(name, args, kwargs, _is_keras3_tensor)


def _is_keras3_tensor(thing: Any) -> bool:
    return is_symbolic(thing) and type(thing).__module__.split(".", 1)[0] == "keras"


_registering = threading.Lock()
_registered: list[_Dispatcher] = []


def _dispatcher() -> None:
    """Registers the dispatcher once; TensorFlow has no way to take one back."""
    with _registering:
        if not _registered:
            _registered.append(_Dispatcher())
            _registered[0].register()
