"""Values of variables, as they are stored."""

from __future__ import annotations

from typing import Any

import tensorflow as tf


def value_of(variable: Any) -> tf.Tensor:
    """Returns a variable's value as float32.

    Under mixed precision both Keras round variables when they are read in `call`;
    the variable inside (`_value` in Keras 3, `_variable` in tf_keras) is not rounded.
    """
    tensor = tf.convert_to_tensor(variable)
    if tensor.dtype != tf.float32:
        for inner in ("_value", "_variable"):
            if getattr(variable, inner, None) is not None:
                tensor = tf.convert_to_tensor(getattr(variable, inner))
    return tf.cast(tensor, tf.float32)
