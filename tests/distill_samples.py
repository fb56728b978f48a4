"""What the tests of Distill share: models, data, and its loss in plain NumPy."""

import numpy as np

BATCH, STEPS = 16, 3


def data(seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(BATCH * STEPS, 12)).astype(np.float32)
    return x, rng.integers(0, 5, BATCH * STEPS)


def net(keras, hidden, activation=None, units=5, seed=0):
    """Two dense layers, `hidden` and `out`."""
    keras.utils.set_random_seed(seed)
    layers = keras.layers
    return keras.Sequential(
        [
            layers.Input((12,), name="features"),
            layers.Dense(hidden, activation="relu", name="hidden"),
            layers.Dense(units, activation=activation, name="out"),
        ]
    )


def noisy(keras, seed=1):
    """A teacher that training mode would change, and that would not repeat itself."""
    keras.utils.set_random_seed(seed)
    layers = keras.layers
    return keras.Sequential(
        [
            layers.Input((12,)),
            layers.Dense(24, activation="relu"),
            layers.BatchNormalization(),
            layers.Dropout(0.5),
            layers.Dense(5),
        ]
    )


def compiled(keras, model, rate=0.0, loss="classes", **options):
    """Compiles with gradient descent; with a rate of zero nothing moves."""
    if loss == "classes":
        logits = model.layers[-1].activation.__name__ == "linear"
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=logits)
    model.compile(keras.optimizers.SGD(rate), loss, **options)
    return model


def fit(model, callbacks, x=None, y=None, epochs=1, **options):
    """Fits the data in order; returns the last epoch's logs."""
    if x is None:
        x, y = data()
    options = {"batch_size": BATCH, "shuffle": False, "verbose": 0, **options}
    history = model.fit(x, y, epochs=epochs, callbacks=list(callbacks), **options)
    return {name: values[-1] for name, values in history.history.items()}


def outputs(model, x=None):
    """float64 outputs in inference mode."""
    return np.asarray(model(data()[0] if x is None else x, training=False), np.float64)


def softmax(logits):
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def kl(teacher, student, temperature):
    """T² KL of softened probabilities of logits, by example."""
    p, q = softmax(teacher / temperature), softmax(student / temperature)
    return temperature**2 * (p * (np.log(p) - np.log(q))).sum(-1)


def sigmoid(logits):
    return 1 / (1 + np.exp(-logits))


def label_kl(teacher, student, temperature):
    """T² times the mean divergence of independent labels, by example."""
    p, q = sigmoid(teacher / temperature), sigmoid(student / temperature)
    each = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    return temperature**2 * each.mean(-1)


def cross_entropy(logits, labels):
    return -np.log(softmax(logits)[np.arange(len(labels)), labels])
