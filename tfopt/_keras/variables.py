"""Variables of either Keras: names, selection, constraints, and the training step.

Weights are named by where they sit in the model, `"block/dense/kernel"`: the layers'
names from the model down, then the last component of the variable's own name. These
names are unique, and alike in Keras 3 and tf_keras, whose own variable names are
neither.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import importlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from tfopt import _keras

# Weights that multiply activations. Names, not layer classes, decide: layers of the
# user's own, and those that other methods put in place of Keras's, count as well.
_KERNEL_NAMES = ("weight", "weights", "w")
_KERNEL_ENDINGS = ("kernel", "embeddings")
# What is added or scales, and has two axes at times: per head, gate or position.
_VECTOR_NAMES = ("gamma", "beta", "alpha", "scale", "moving_mean", "moving_variance")

Patterns = str | Sequence[str] | None


@dataclasses.dataclass(frozen=True)
class Weight:
    """One variable of a model.

    Attributes:
        name: Unique in the model, for example `"block/dense/kernel"`.
        variable: The Keras (or TensorFlow) variable.
        trainable: Whether the model trains it.
        layer: The layer, model or cell that made it.
    """

    name: str
    variable: Any
    trainable: bool
    layer: Any = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The sizes by axis."""
        return tuple(self.variable.shape)

    @property
    def size(self) -> int:
        """The number of values."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def last_name(self) -> str:
        """The last component of the name, for example `"kernel"`."""
        return self.name.rsplit("/", 1)[-1].split("#", 1)[0]

    @property
    def is_kernel(self) -> bool:
        """Whether the name is that of a weight matrix or table, and not a vector."""
        named = self.last_name in _KERNEL_NAMES or self.last_name.endswith(
            _KERNEL_ENDINGS
        )
        return named and self.is_matrix

    @property
    def is_matrix(self) -> bool:
        """Whether there may be more to it than one value per channel."""
        last = self.last_name
        vector = last.endswith("bias") or last in _VECTOR_NAMES
        return len(self.shape) >= 2 and not vector


def weights(model: Any) -> list[Weight]:
    """Returns all weights of a built model, each once, in the order of its layers.

    Nested models, wrappers and layers that hold layers are entered; a shared layer
    appears where it is met first. Variables of metrics are left out.

    Example:
        >>> [weight.name for weight in weights(model)]
        ['logits/kernel', 'logits/bias']
    """
    trainable = {id(variable) for variable in model.trainable_weights}
    seen = {id(state) for metric in model.metrics for state in metric.variables}
    found: dict[str, Weight] = {}
    for name, variable, layer in _walk(model, "", set()):
        if id(variable) in seen:
            continue
        seen.add(id(variable))
        unique, count = name, 1
        while unique in found:  # two layers of one name inside one layer
            count += 1
            unique = f"{name}#{count}"
        found[unique] = Weight(unique, variable, id(variable) in trainable, layer)
    return list(found.values())


def kernels(model: Any) -> list[Weight]:
    """Returns the weights of a model that are kernels or embedding tables."""
    return [weight for weight in weights(model) if weight.is_kernel]


def select(
    candidates: Sequence[Weight],
    *,
    include: Patterns,
    exclude: Patterns,
    naming: Sequence[str] = (),
) -> tuple[list[Weight], dict[str, str]]:
    """Chooses the trainable kernels that patterns ask for.

    A pattern is a shell-style glob for a weight's name or for any leading part of it:
    `"dense"` is all of that layer (or nested model), `"*conv*"` every name with "conv"
    in it. A weight that is not a kernel, such as a layer's own `table`, is
    chosen by an `include` pattern that ends in its name: `"my_layer/table"`.

    Args:
        candidates: The weights of a model.
        include: Patterns; only weights that match one are chosen. `None`: all.
        exclude: Patterns; weights that match one are not chosen.
        naming: More patterns that may name a weight which is not a kernel.

    Returns:
        The chosen weights, and for each of the others, by name, why it is not chosen.

    Raises:
        ValueError: A pattern matches nothing, or nothing is chosen.
    """
    include, exclude = as_patterns("include", include), as_patterns("exclude", exclude)
    chosen, reasons = [], {}
    for weight in candidates:
        reason = _reason_against(weight, include, exclude, naming)
        if reason:
            reasons[weight.name] = reason
        else:
            chosen.append(weight)
    for argument, patterns in (("include", include), ("exclude", exclude)):
        for pattern in patterns or ():
            if not any(matches(pattern, weight.name) for weight in candidates):
                names = [weight.name for weight in candidates if weight.is_kernel]
                raise ValueError(
                    f"A pattern of `{argument}` matches no weight. Expected globs for "
                    f"names such as {names[:20]}. Received: {argument}={pattern!r}"
                )
    for pattern in include or ():
        if not any(matches(pattern, weight.name) for weight in chosen):
            met = {
                name: reason
                for name, reason in reasons.items()
                if matches(pattern, name)
            }
            raise ValueError(
                "A pattern of `include` matches only weights that cannot be chosen: "
                f"{met}. Received: include={pattern!r}"
            )
    if not chosen:
        raise ValueError(
            "The model has no weight to choose. Expected a trainable kernel or "
            f"embedding table. Received: {reasons}"
        )
    return chosen, reasons


def as_patterns(name: str, patterns: Patterns) -> list[str] | None:
    """Returns the patterns of an argument as a list; None stays None.

    Raises:
        ValueError: They are no non-empty strings; the message names the argument.
    """
    if patterns is None:
        return None
    listed = [patterns] if isinstance(patterns, str) else patterns
    if not isinstance(listed, Sequence) or not all(
        isinstance(pattern, str) and pattern for pattern in listed
    ):
        raise ValueError(
            f"`{name}` must be a glob or a list of globs. Received: {name}={patterns!r}"
        )
    return list(listed)


def get_constraint(variable: Any) -> Callable[[Any], Any] | None:
    """Returns what the optimizer applies to a variable after each update, if any."""
    constraint = variable.constraint
    return getattr(constraint, "called", constraint)


def set_constraint(variable: Any, constraint: Callable[[Any], Any] | None) -> None:
    """Sets what the optimizer applies to a variable after each update.

    A train function that was traced before does not see it: call `retrace`.
    """
    if type(variable).__module__.startswith("keras."):
        variable.constraint = _as_keras_constraint(constraint)
        return
    # tf_keras has TensorFlow's variables, whose property has no setter; inside an
    # AutoCastVariable under mixed precision, and one per device under tf.distribute.
    variable = getattr(variable, "_variable", variable)
    for replica in getattr(variable, "values", None) or (variable,):
        replica._constraint = constraint


def _as_keras_constraint(constraint: Callable[[Any], Any] | None) -> Any:
    # Keras 3.12 takes only instances of its own class, 3.15 every callable.
    keras = importlib.import_module("keras")
    if constraint is None or isinstance(constraint, keras.constraints.Constraint):
        return constraint
    return _calling_class()(constraint)


@functools.cache
def _calling_class() -> type:
    base: Any = importlib.import_module("keras").constraints.Constraint

    class Calling(base):
        """Calls a function; `get_constraint` returns that function."""

        def __init__(self, called: Callable[[Any], Any]):
            self.called = called

        def __call__(self, weight: Any) -> Any:
            return self.called(weight)

    return Calling


def retrace(model: Any) -> None:
    """Makes a new train function, also while `fit` is about to use the old one."""
    model.make_train_function(force=True)


def forget_train_function(model: Any) -> None:
    """Lets the next `fit` trace its train function anew."""
    model.train_function = None


def iterations(model: Any, *, ahead: int = 0) -> int:
    """Returns how many steps the model's optimizer has made.

    Args:
        model: A compiled model.
        ahead: Number of batches to add before counting. A batch is a step, unless the
            optimizer accumulates the gradients of several batches for one.
    """
    optimizer = inner_optimizer(model.optimizer)
    per_step = getattr(optimizer, "gradient_accumulation_steps", None) or 1
    if per_step == 1:
        return int(optimizer.iterations.numpy()) + ahead
    return (int(optimizer._iterations.numpy()) + ahead) // per_step


def steps_per_execution(model: Any) -> int:
    """Returns how many training steps one call of the train function makes."""
    steps = getattr(model, "_steps_per_execution", None)
    if steps is None:
        steps = getattr(model, "steps_per_execution", None) or 1
    return int(steps.numpy() if hasattr(steps, "numpy") else steps)


def moving_average(optimizer: Any, variable: Any) -> Any | None:
    """Returns the optimizer's moving average of a variable, if it keeps one.

    That is what `use_ema=True` writes into the model in the end. Only known once the
    optimizer is built, as it is when a training step is traced.
    """
    optimizer = inner_optimizer(optimizer)
    if not getattr(optimizer, "use_ema", False):
        return None
    if _keras.is_keras3(optimizer):
        index = optimizer._get_variable_index(variable)
    else:
        index = optimizer._index_dict[optimizer._var_key(variable)]
    return optimizer._model_variables_moving_average[index]


def to_numpy(variable: Any) -> np.ndarray:
    """Returns a variable's value; half precision as float32, which NumPy can sort."""
    value = variable.numpy()
    return value.astype(np.float32) if value.dtype.itemsize < 4 else value


def inner_optimizer(optimizer: Any) -> Any:
    """Returns the optimizer that loss scaling wraps, or the one given."""
    return getattr(optimizer, "inner_optimizer", optimizer)


def _walk(layer: Any, prefix: str, entered: set[int]) -> Iterator[tuple[str, Any, Any]]:
    entered.add(id(layer))
    inner = list(layer._flatten_layers(include_self=False, recursive=False))
    below = {id(variable) for child in inner for variable in child.weights}
    for variable in layer.weights:
        if id(variable) not in below:
            name = variable.name.rsplit("/", 1)[-1].split(":", 1)[0]
            yield prefix + name, variable, layer
    for child in inner:
        if id(child) not in entered:
            yield from _walk(child, f"{prefix}{child.name}/", entered)


def matches(pattern: str, name: str) -> bool:
    """Returns whether a glob matches a weight's name or a leading part of it."""
    parts = name.split("/")
    heads = ("/".join(parts[: end + 1]) for end in range(len(parts)))
    return any(fnmatch.fnmatchcase(head, pattern) for head in heads)


def _reason_against(
    weight: Weight,
    include: list[str] | None,
    exclude: list[str] | None,
    naming: Sequence[str],
) -> str | None:
    asked = [p for p in include or () if matches(p, weight.name)]
    by_name = [*asked, *(p for p in naming if matches(p, weight.name))]
    named = any(p.rsplit("/", 1)[-1] == weight.last_name for p in by_name)
    if not (weight.is_kernel or named):
        return "not a kernel"
    if not weight.trainable:
        return "not trainable"
    if "float" not in str(weight.variable.dtype):
        return f"of type {weight.variable.dtype}"
    if include is not None and not asked:
        return "not in `include`"
    hit = next((p for p in exclude or () if matches(p, weight.name)), None)
    return None if hit is None else f"`exclude` has {hit!r}"
