"""A small network with every kind of neighbours, and its data, for refined PTQ."""

import numpy as np

from tfopt.conversion import _freezing, _noise, _samples, _sources, _writing

RNG = np.random.default_rng(0)
IMAGES = RNG.random((40, 10, 10, 1), dtype=np.float32)


def network(keras, *, activation="relu", spread=0.0, name=None):
    """Conv, depthwise, shared layers and layers whose names differ by a number.

    `spread`: channels between neighbours are scaled by 2 to the power of up to so
    much, which the outputs don't show.
    """
    layers = keras.layers
    keras.utils.set_random_seed(0)
    inputs = keras.Input((10, 10, 1), name="image")
    stem = layers.Conv2D(8, 3, name="stem", bias_initializer="random_normal")
    depthwise = layers.DepthwiseConv2D(
        3, activation="relu", name="dw", bias_initializer="random_normal"
    )
    pointwise = layers.Conv2D(
        8, 1, activation="relu", name="pw", bias_initializer="random_normal"
    )
    twice = layers.Dense(8, name="twice", activation="relu")
    # The layer `add` is called first, in a scope that is named `add_1` as well.
    added = layers.Add(name="add_1")
    x = stem(inputs)
    x = layers.ReLU(6.0 if activation == "relu6" else None, name="bound")(x)
    y = pointwise(depthwise(x))
    y = layers.Add(name="add")([y, y])
    y = added([y, layers.Conv2D(8, 1, name="side")(y)])
    y = layers.GlobalAveragePooling2D(name="pool")(y)
    y = twice(twice(y))
    model = keras.Model(
        inputs, layers.Dense(4, name="logits", bias_initializer="ones")(y), name=name
    )
    for first, second in ((stem, depthwise), (depthwise, pointwise)):
        _spread(first, second, spread)
    return model


def _spread(first, second, spread):
    size = second.get_weights()[0].shape[-2]
    factor = np.exp2(RNG.uniform(-spread, spread, size)).astype(np.float32)
    kernel, bias = first.get_weights()
    by_channel = factor[:, None] if kernel.shape[-1] == 1 else factor
    first.set_weights([kernel * by_channel, bias * factor])
    kernel, *rest = second.get_weights()
    second.set_weights([kernel / factor[:, None], *rest])


def writer(model, images=IMAGES):
    """What conversion works with: frozen, ready to be calibrated."""
    source = _sources.open_source(model, None)
    samples = _samples.representative(images, source.specs, limit=len(images))
    frozen = _freezing.freeze(source.function)
    return _writing.Writer(frozen, source, samples.batches, False)


def calibrated(model):
    """The float file with ranges, and its operators."""
    with _noise.contained():
        found = writer(model)
        return found.calibrated, found.operators(found.calibrated)


def sqnr(reference, value):
    reference = np.asarray(reference, np.float64)
    noise = np.mean((reference - value) ** 2)
    return 10 * np.log10(np.mean(reference**2) / noise)
