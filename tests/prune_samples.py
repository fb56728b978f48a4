"""What the tests of Prune share: models, data, and a callback that watches."""

import numpy as np
import training_samples

from tfopt import masks
from tfopt._keras import variables

STEPS, BATCH = 6, 8  # steps per epoch


def data(features=12):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(STEPS * BATCH, features)).astype(np.float32)
    return x, rng.integers(0, 5, STEPS * BATCH)


def dense(keras, **options):
    """Two dense layers, `first` (12×16) and `second` (16×5)."""
    layers = [
        keras.layers.Input((12,)),
        keras.layers.Dense(16, activation="relu", name="first", **options),
        keras.layers.Dense(5, name="second", **options),
    ]
    return keras.Sequential(layers)


def compiled(keras, model=None, optimizer="adam", **options):
    model = dense(keras) if model is None else model
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, **options)
    return training_samples.built(model) if optimizer == "adam" else model


def fit(model, callbacks=(), epochs=2, **options):
    x, y = data()
    options = {"shuffle": False, "verbose": 0, **options}
    options |= {"epochs": epochs, "callbacks": list(callbacks)}
    if options.keys() & {"batch_size", "validation_split"}:
        return model.fit(x, y, **{"batch_size": BATCH, **options})
    return model.fit(training_samples.batches(x, y, BATCH), **options)


def zeros(model):
    """Number of zeros by kernel name."""
    return {
        weight.name: weight.size - np.count_nonzero(weight.variable.numpy())
        for weight in variables.kernels(model)
    }


def expected_zeros(model, sparsity):
    return {
        weight.name: weight.size - masks.num_kept(weight.size, sparsity)
        for weight in variables.kernels(model)
    }


def watch(keras):
    """A callback whose `seen` has (steps made, zeros by kernel) of every moment."""

    class Watch(keras.callbacks.Callback):
        def __init__(self):
            super().__init__()
            self.seen = []

        def look(self, *_, logs=None):
            self.seen.append((variables.iterations(self.model), zeros(self.model)))

        on_train_batch_end = on_epoch_end = on_train_end = look

    return Watch()


def is_exact(seen, model, schedule):
    """Whether all that was seen is what the schedule says, to the last zero."""
    for step, found in seen:
        update = schedule.last_update(step)
        sparsity = 0.0 if update is None else schedule(update)
        if found != expected_zeros(model, sparsity):
            return False
    return bool(seen)
