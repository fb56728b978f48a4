"""How a user's own class of model trains, kept for a model that is made anew.

Such a class overrides `train_step` or the like, and its constructor makes layers
rather than taking `(inputs, outputs)`. The new model is an ordinary functional one,
whose class then becomes one with the methods of both: Keras's functional model
computes, the user's class trains.
"""

from __future__ import annotations

import dis
import inspect
import types
from typing import Any

import tensorflow as tf

from tfopt import _keras
from tfopt.types import TfoptError

_STEPS = (
    "train_step",
    "test_step",
    "predict_step",
    "compute_loss",
    "compute_metrics",
    "compile",
    "make_train_function",
    "make_test_function",
)
_FRAMEWORKS = ("keras", "tf_keras", "tensorflow", "builtins")


class NotKept(TfoptError, AttributeError):
    """An attribute of the original model that the new one doesn't have."""


def training_of(model: Any) -> Training | None:
    """Returns what to keep of a model that trains in a way of its own.

    `None`: it trains as Keras does, or its class is called as `cls(inputs, outputs)`.
    """
    keras = _keras.module_of(model)
    cls = type(model)
    if has_functional_constructor(cls, keras) or not overrides(cls, keras):
        return None
    return Training(model)


def overrides(cls: Any, keras: Any) -> bool:
    """Returns whether a class of models trains in another way than Keras's."""
    return any(
        getattr(cls, name, None) is not getattr(keras.Model, name, None)
        for name in _STEPS
    )


def has_functional_constructor(cls: Any, keras: Any) -> bool:
    """Returns whether a class of the user's is called as `cls(inputs, outputs)`."""
    Model = keras.Model
    if not issubclass(cls, Model) or cls in (Model, keras.Sequential):
        return False
    if cls.__module__.split(".", 1)[0] == keras.__name__:
        return False
    if hasattr(cls, "original_class"):
        return False
    parameters = inspect.signature(cls).parameters.values()
    names = [parameter.name for parameter in parameters]
    functional = any(base.__name__ == "Functional" for base in cls.__mro__)
    variadic = {parameter.kind for parameter in parameters} >= {
        inspect.Parameter.VAR_POSITIONAL,
        inspect.Parameter.VAR_KEYWORD,
    }
    return functional and (names[:2] == ["inputs", "outputs"] or variadic)


class Training:
    """What a user's model has beside its layers: its class and attributes.

    Metrics, layers without weights and random generators are copied, other values are
    shared. What holds weights belongs to the original model, so that it is left
    behind: the new model computes by `self(inputs)` alone.

    Args:
        model: Model whose class overrides methods for training, or one that `put_on`
            made.
    """

    def __init__(self, model: Any) -> None:
        keras = _keras.module_of(model)
        self._keras = keras
        self._cls = getattr(type(model), "original_class", type(model))
        self._kept: dict[str, Any] = {}
        self._left: dict[str, str] = dict(getattr(type(model), "left_behind", {}))
        framework = _names_of_keras(type(model))
        for name, value in vars(model).items():
            if name in framework:
                continue
            try:
                self._kept[name] = _copy(keras, value)
            except _HasWeights:
                self._left[name] = type(value).__name__

    def put_on(self, model: Any) -> None:
        """Gives a new functional model the class and the attributes, in place."""
        own = set(vars(model))
        model.__class__ = _class_of(self._keras, self._cls, type(model), self._left)
        for name, value in self._kept.items():
            if name not in own:
                setattr(model, name, _copy(self._keras, value))


class _HasWeights(Exception):
    pass


def _copy(keras: Any, value: Any) -> Any:
    """Returns a value for another model.

    Raises:
        _HasWeights: It holds weights.
    """
    if isinstance(value, dict):
        return {key: _copy(keras, inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        plain = tuple if isinstance(value, tuple) else list
        return plain(_copy(keras, inner) for inner in value)
    if isinstance(value, keras.metrics.Metric):
        return type(value).from_config(value.get_config())
    is_layer = isinstance(value, keras.layers.Layer)
    if is_layer and not value.weights:
        return type(value).from_config(value.get_config())
    if type(value).__name__ == "SeedGenerator":
        return type(value).from_config(value.get_config())
    if is_layer or isinstance(
        value, (tf.Variable, tf.Module, keras.optimizers.Optimizer, *_variable(keras))
    ):
        raise _HasWeights
    return value


def _variable(keras: Any) -> tuple[type, ...]:
    return (keras.Variable,) if hasattr(keras, "Variable") else ()


def _class_of(keras: Any, user: type, functional: type, left: dict[str, str]) -> type:
    """Makes the class that computes as a functional model and trains as the user's."""
    base = next(cls for cls in functional.__mro__ if cls.__name__ == "Functional")
    is_functional = issubclass(user, base)
    namespace: dict[str, Any] = {}
    if is_functional:
        # Past what the user, or Sequential, overrides.
        namespace = {
            name: value for name, value in vars(base).items() if name[:2] != "__"
        }
    return type(
        user.__name__,
        (user,) if is_functional else (base, user),
        {
            **namespace,
            "__module__": user.__module__,
            "__getattr__": _attribute,
            "get_config": _no_config,
            "original_class": user,
            "left_behind": left,
        },
    )


def _attribute(model: Any, name: str) -> Any:
    left = type(model).left_behind
    if name in left:
        raise NotKept(
            f"The model was made anew from the layers that its `call` runs, and "
            f"`self.{name}` of the original model holds weights, so it is not among "
            "them. Expected a training step that computes by `self(inputs, "
            "training=True)` alone, or this attribute to be set on the new model. "
            f"Received: {type(model).__name__}.{name} of class {left[name]}"
        )
    above = next(
        (
            vars(cls)["__getattr__"]
            for cls in type(model).__mro__[1:]
            if "__getattr__" in vars(cls)
        ),
        None,
    )
    if above is not None:
        return above(model, name)
    raise AttributeError(f"{type(model).__name__!r} object has no attribute {name!r}")


def _no_config(model: Any) -> dict[str, Any]:
    raise NotImplementedError(
        "A rewritten model whose class has its own training step and whose constructor "
        "takes no `inputs, outputs` cannot be saved as a whole. Save its weights, "
        "`model.save_weights(path)` (`ModelCheckpoint(save_weights_only=True)`), and "
        "load them into a model prepared alike; or save what `finalize` returns. "
        f"Received: {type(model).__module__}.{type(model).__name__}"
    )


def _names_of_keras(cls: type) -> set[str]:
    """Returns the names that Keras's own code gives to attributes of a model."""
    names: set[str] = set()
    for base in cls.__mro__:
        if base.__module__.split(".", 1)[0] not in _FRAMEWORKS:
            continue
        for member in vars(base).values():
            member = getattr(member, "fget", None) or member
            member = getattr(member, "__func__", member)
            while hasattr(member, "__wrapped__"):
                member = member.__wrapped__
            if isinstance(member, types.FunctionType):
                names |= {
                    line.argval
                    for line in dis.get_instructions(member)
                    if line.opname == "STORE_ATTR"
                }
    return names
