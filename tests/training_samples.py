"""What makes the short fits of tests cheap; most of their time is tracing."""

import numpy as np
import tensorflow as tf


def built(model):
    """Builds the optimizer of a compiled model; returns the model.

    A training step that finds an optimizer without variables is traced twice, by
    either Keras. A model without weights is left as it is.
    """
    if not model.built:
        return model
    with model.distribute_strategy.scope():
        model.optimizer.build(model.trainable_variables)
    return model


def batches(x, y, size):
    """A dataset of arrays in their order; Keras traces functions to slice arrays."""
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(size)


def outputs(model, inputs):
    """What a model gives in inference mode, as arrays, without tracing `predict`."""
    return tf.nest.map_structure(np.asarray, model(inputs, training=False))
