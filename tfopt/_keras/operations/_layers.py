"""TensorFlow operations, and variables without a layer, as layers of either Keras."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import tensorflow as tf

from tfopt._keras.operations import _arguments, _names
from tfopt.types import TfoptError

_PACKAGE = "tfopt"


@dataclasses.dataclass(frozen=True)
class Classes:
    """The layer classes of one Keras."""

    Operation: type
    Weight: type


@functools.cache
def classes(keras: Any) -> Classes:
    """Returns the layer classes for the module `keras` or `tf_keras`.

    They are registered as serializable, so that saved models with them load.
    """

    def make(name: str, base: type) -> type:
        members = {"__module__": __name__}
        made = type(name, (base, keras.layers.Layer), members)
        return keras.saving.register_keras_serializable(_PACKAGE)(made)

    return Classes(
        Operation=make("Operation", _Operation), Weight=make("Weight", _Weight)
    )


class _Operation:
    """A TensorFlow function as a layer.

    Args:
        function: Name such as "nn.relu" or "raw_ops.Relu"; see `_names`.
        arguments: Positional arguments, encoded by `_arguments.encode`, in a list.
        keywords: Keyword arguments by name, each encoded.

    Raises:
        TfoptError: The function isn't one that an operation may be.
    """

    def __init__(
        self,
        *,
        function: str,
        arguments: list[Any] | None = None,
        keywords: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        kwargs.pop("autocast", None)
        super().__init__(autocast=False, **kwargs)  # type: ignore[call-arg]
        self.function = function
        # As text, since Keras replaces lists and dictionaries that it is given.
        self._arguments = _arguments.dumps([arguments or [], keywords or {}])
        self._count = _arguments.placeholders(
            [arguments or [], *(keywords or {}).values()]
        )
        self._function = _names.function_of(function)
        self.supports_masking = True
        self.built = True

    def call(self, inputs: Any) -> Any:
        """Runs the function on a tensor, or a list of as many as it takes."""
        return self._run(inputs)

    # tf_keras would rewrite it, and inspects the signature of `call`.
    @tf.autograph.experimental.do_not_convert
    def _run(self, inputs: Any) -> Any:
        tensors = tf.nest.flatten(inputs)
        arguments, keywords = _arguments.loads(self._arguments)
        if len(tensors) != self._count:
            raise TfoptError(
                f"An operation was given {len(tensors)} tensors. Expected "
                f"{self._count}. Received: function={self.function!r}"
            )
        return self._function(
            *_arguments.decode(arguments, tensors),
            **{key: _arguments.decode(x, tensors) for key, x in keywords.items()},
        )

    def compute_output_spec(self, inputs: Any) -> Any:
        """Infers the output's shape, for Keras 3.

        Keras 3.15 takes the product of a tensor and a number for a sparse tensor.
        """
        dense = tf.nest.map_structure(
            lambda x: type(x)(x.shape, x.dtype) if getattr(x, "sparse", False) else x,
            inputs,
        )
        return super().compute_output_spec(dense)  # type: ignore[misc]

    def compute_mask(self, inputs: Any, mask: Any = None) -> None:
        """Operations have no masks, as in a model that is made of them."""
        return None

    def get_config(self) -> dict[str, Any]:
        arguments, keywords = _arguments.loads(self._arguments)
        return {
            **super().get_config(),  # type: ignore[misc]
            "function": self.function,
            "arguments": arguments,
            "keywords": keywords,
        }


class _Weight:
    """A variable as a layer, which returns it whatever its input is.

    Args:
        shape: Shape of the variable.
        weight_name: Name of the variable.
        **kwargs: Arguments of every layer; `dtype` may be a mixed policy.
    """

    def __init__(
        self, *, shape: Any, weight_name: str = "value", **kwargs: Any
    ) -> None:
        kwargs.pop("autocast", None)
        super().__init__(autocast=False, **kwargs)  # type: ignore[call-arg]
        self.weight_shape = tuple(shape)
        self.weight_name = weight_name
        self.supports_masking = True

    def build(self, input_shape: Any = None) -> None:
        self.value = self.add_weight(  # type: ignore[attr-defined]
            name=self.weight_name,
            shape=self.weight_shape,
            dtype=self.variable_dtype,  # type: ignore[attr-defined]
            initializer="zeros",
        )
        self.built = True

    def call(self, inputs: Any) -> Any:
        """Returns the variable's value; the input only ties it to a model."""
        value = tf.convert_to_tensor(self.value)
        if not value.dtype.is_floating:
            return value
        return tf.cast(value, self.compute_dtype)  # type: ignore[attr-defined]

    def compute_mask(self, inputs: Any, mask: Any = None) -> None:
        """A variable has no mask."""
        return None

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),  # type: ignore[misc]
            "shape": list(self.weight_shape),
            "weight_name": self.weight_name,
        }
