"""Cluster: no tensor ever has more values than promised, and centroids learn."""

import cluster_samples as samples
import numpy as np
import pytest

from tfopt._keras import variables
from tfopt.methods.cluster import Cluster, cluster_once
from tfopt.types import TfoptError, VerificationError

pytestmark = pytest.mark.both_keras


@pytest.mark.parametrize(
    ("options", "fitted_before"),
    [
        *(({}, True), ({"jit_compile": True}, True)),
        *(({"steps_per_execution": 4}, False), ({"run_eagerly": True}, False)),
    ],
    ids=str,
)
def test_few_values_after_every_batch(keras, options, fitted_before):
    model, watcher = samples.compiled(keras, **options), samples.watch(keras)
    if fitted_before:  # traces the training step without clusters
        samples.fit(model, epochs=1)
    cluster = Cluster(num_clusters=6)
    samples.fit(model, [watcher, cluster])
    assert watcher.seen
    assert set(watcher.seen) == {6}
    assert cluster.finalize(model) is model
    assert all(variable.constraint is None for variable in model.trainable_weights)
    samples.fit(model, [watcher], epochs=1)  # without Cluster
    assert watcher.seen[-1] > 6
    with pytest.raises(VerificationError, match=r"first/kernel': 1.*num_clusters=6"):
        cluster.finalize(model)


class Oracle:
    """What one SGD step does to clustered weights, in NumPy with loops."""

    def __init__(self, values, centroids, adaptive):
        self.latent, self.centroids = values.astype(np.float64), centroids
        self.adaptive = adaptive
        self.members = self._nearest()

    def _nearest(self):
        self.centroids = np.sort(self.centroids)
        return np.abs(self.latent[..., None] - self.centroids).argmin(axis=-1)

    @property
    def value(self):
        return self.centroids[self.members]

    def step(self, update):
        self.latent = (self.latent if self.adaptive else self.value) + update
        if self.adaptive:
            self.members = self._nearest()
        for index in range(len(self.centroids)):
            if (self.members == index).any():
                self.centroids[index] = self.latent[self.members == index].mean()


@pytest.mark.parametrize("frequency", [None, 1])
def test_centroids_follow_the_mean_gradient_of_their_members(keras, frequency):
    """Against NumPy: linear regression, whose gradient is a formula."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(30, 7)), rng.normal(size=(30, 6))
    start = rng.normal(size=(7, 6)).astype(np.float32)

    def run(rate):
        layers = [keras.Input((7,)), keras.layers.Dense(6, use_bias=False, name="d")]
        model = keras.Sequential(layers)
        model.set_weights([start])
        model.compile(keras.optimizers.SGD(rate), "mse")
        cluster = Cluster(num_clusters=4, frequency=frequency, end_step=100)
        model.fit(x, y, batch_size=30, epochs=8, verbose=0, callbacks=[cluster])
        return model.get_weights()[0]

    first = cluster_once(model_of(keras, start), 4).get_weights()[0]
    assert len(np.unique(first)) == 4
    oracle = Oracle(start, np.unique(first).astype(np.float64), frequency is not None)
    before = oracle.members
    for _ in range(8):
        oracle.step(-0.5 * 2 / y.size * x.T @ (x @ oracle.value - y))
    np.testing.assert_allclose(run(0.5), oracle.value, rtol=1e-4)
    assert not np.allclose(run(0.51), oracle.value, rtol=1e-4)
    # Some weights have changed clusters, if and only if they may.
    assert np.array_equal(before, oracle.members) == (frequency is None)


def model_of(keras, kernel):
    layers = [
        keras.Input(kernel.shape[:1]),
        keras.layers.Dense(kernel.shape[1], use_bias=False, name="d"),
    ]
    model = keras.Sequential(layers)
    model.set_weights([kernel])
    return model


@pytest.mark.parametrize("end_step", [None, 12, 100])
def test_weights_change_clusters_at_some_steps_only(keras, end_step):
    moved = []

    class Members(keras.callbacks.Callback):
        before = None

        def on_train_batch_end(self, batch, logs=None):
            kernel = self.model.get_layer("first").kernel.numpy()
            now = np.unique(kernel, return_inverse=True)[1].ravel()
            if self.before is not None:
                # Numbers may be swapped, as centroids may pass each other.
                pairs = set(zip(self.before, now, strict=True))
                if len(pairs) > len(set(now)):
                    moved.append(int(self.model.optimizer.iterations.numpy()))
            self.before = now

    keras.utils.set_random_seed(0)
    model = samples.compiled(keras, optimizer=keras.optimizers.SGD(2.0))
    cluster = Cluster(num_clusters=4, frequency=5, end_step=end_step)
    samples.fit(model, [Members(), cluster], epochs=4)  # 24 steps
    steps = {5, 10, 15, 20}
    # By default, half-way.
    expected = {step for step in steps if step < (end_step or 12)}
    assert moved
    assert set(moved) <= expected
    if end_step == 100:
        assert max(moved) > 12


def test_clustered_models_learn(keras):
    model = samples.compiled(keras, optimizer=keras.optimizers.Adam(0.02))
    first = samples.fit(model, epochs=1).history["loss"][0]
    cluster = Cluster(num_clusters=8)
    last = samples.fit(model, [cluster], epochs=20).history["loss"][-1]
    assert last < 0.85 * first
    assert samples.distinct(cluster.finalize(model)) == {
        **{"first/kernel": 8, "second/kernel": 8}
    }


def test_per_channel(keras):
    model = samples.compiled(keras)
    cluster = Cluster(num_clusters=3, per_channel=True)
    samples.fit(model, [cluster])
    for kernel in (model.get_layer(name).kernel for name in ("first", "second")):
        assert [len(np.unique(c)) for c in kernel.numpy().T] == [3] * kernel.shape[1]
    assert samples.distinct(cluster.finalize(model))["first/kernel"] == 3 * 16
    assert [row["distinct"] for row in cluster.report if row["clustered"]] == [3, 3]
    model.get_layer("second").kernel.assign(np.random.normal(size=(16, 5)))
    with pytest.raises(VerificationError, match="second/kernel': 16"):
        cluster.finalize(model)


def test_one_shot(keras):
    model = samples.dense(keras)
    before = [weight.copy() for weight in model.get_weights()]
    small = cluster_once(model, 5)
    assert samples.distinct(small) == {"first/kernel": 5, "second/kernel": 5}
    for kept, now in zip(before, model.get_weights(), strict=True):
        assert np.array_equal(kept, now)
    # Each weight has the nearest value, and each value is the mean of its weights.
    start, kernel = before[0], small.get_layer("first").get_weights()[0]
    centroids = np.unique(kernel)
    nearest = np.abs(start[..., None] - centroids).argmin(axis=-1)
    assert np.array_equal(centroids[nearest], kernel)
    for index, centroid in enumerate(centroids):
        assert start[nearest == index].mean() == pytest.approx(centroid, rel=1e-4)
    # What is clustered already stays as it is.
    again = cluster_once(small, 5).get_layer("first").get_weights()[0]
    np.testing.assert_allclose(again, kernel, rtol=1e-6)
    with pytest.raises(ValueError, match=r"no steps.*begin_step=3"):
        cluster_once(model, 5, begin_step=3)


def sequence_model(keras):
    layers = keras.layers
    tokens = keras.Input((12,))
    table = layers.Embedding(5, 8, name="table")
    x = table(layers.Lambda(lambda t: keras.activations.relu(t) * 0)(tokens))
    x = x + layers.MultiHeadAttention(2, 4, name="attention")(x, x)
    x = layers.SimpleRNN(4, name="recurrent")(x)
    return keras.Model(tokens, layers.Dense(5, name="head")(x))


def image_model(keras):
    layers = keras.layers
    block = keras.Sequential(
        [
            layers.Input((3, 4, 4)),
            layers.Conv2D(4, 2, padding="same", name="conv"),
            layers.DepthwiseConv2D(3, padding="same", name="depthwise"),
            layers.SeparableConv2D(6, 2, padding="same", name="separable"),
            layers.Conv2DTranspose(4, 2, padding="same", name="transposed"),
        ],
        name="block",
    )
    inputs = keras.Input((12,))
    x = layers.Flatten()(block(layers.Reshape((3, 4, 1))(inputs) * np.ones(4, "f")))
    shared = layers.Dense(48, name="shared")
    return keras.Model(inputs, layers.Dense(5, name="head")(shared(shared(x))))


def subclassed_model(keras):
    class Net(keras.Model):
        def __init__(self):
            super().__init__()
            self.inner = [keras.layers.Dense(7), keras.layers.Dense(5)]

        def build(self, shape):
            self.w = self.add_weight(name="w", shape=(shape[-1], shape[-1]))
            super().build(shape)

        def call(self, x):
            return self.inner[1](self.inner[0](x @ self.w))

    model = Net()
    model(np.zeros((1, 12), np.float32))
    return model


@pytest.mark.parametrize(
    ("build", "mode"),
    [
        *((sequence_model, {}), (subclassed_model, {})),
        *(
            (image_model, {"per_channel": True}),
            (image_model, {"channel_scales": True}),
        ),
    ],
)
def test_kinds_of_models(keras, build, mode):
    model = samples.compiled(keras, build(keras))
    cluster = Cluster(num_clusters=4, **mode)
    samples.fit(model, [cluster], epochs=1)
    rows = {row["name"]: row for row in cluster.report}
    for weight in variables.kernels(model):
        row = rows[weight.name]
        # The small ones have channels of four values.
        assert row["clustered"] or row["reason"] in ("only 4 values", "only 1 values")
        assert row["clustered"] or "per_channel" in mode
        assert not row["clustered"] or 1 < row["distinct"] <= 4
    assert cluster.finalize(model) is model


def half_zero(model):
    for weight in variables.kernels(model):
        value = weight.variable.numpy()
        weight.variable.assign(value * (np.abs(value) > np.median(np.abs(value))))
    return {w.name: w.variable.numpy() == 0 for w in variables.kernels(model)}


@pytest.mark.parametrize("preserve_zeros", [True, False, "auto"])
def test_zeros(keras, preserve_zeros):
    model, watcher = samples.compiled(keras), samples.watch(keras)
    zeros = half_zero(model)
    cluster = Cluster(num_clusters=5, preserve_zeros=preserve_zeros)
    samples.fit(model, [watcher, cluster])
    assert max(watcher.seen) <= 5
    for weight in variables.kernels(model):
        value = weight.variable.numpy()
        assert value[zeros[weight.name]].any() == (preserve_zeros is False)
        assert value[~zeros[weight.name]].any()


def test_a_zero_cluster_without_zeros_yet(keras):
    for preserve_zeros in (True, "auto"):
        model = samples.compiled(keras)
        samples.fit(model, [Cluster(num_clusters=5, preserve_zeros=preserve_zeros)])
        has_zeros = [
            (weight.variable.numpy() == 0).any() for weight in variables.kernels(model)
        ]
        assert has_zeros == [preserve_zeros is True] * 2


def test_begin_step(keras):
    model, watcher = samples.compiled(keras), samples.watch(keras)
    samples.fit(model, [watcher, Cluster(num_clusters=6, begin_step=8)])
    assert all(count > 6 for count in watcher.seen[:7])
    assert all(count == 6 for count in watcher.seen[7:])


def test_begin_step_after_the_training(keras):
    model = samples.compiled(keras)
    with pytest.raises(ValueError, match="begin_step=13; training ends at step 12"):
        samples.fit(model, [Cluster(num_clusters=6, begin_step=13)])


@pytest.mark.parametrize("policy", ["mixed_float16", "float16"])
def test_low_precision(keras, policy):
    model, watcher = (
        samples.compiled(keras, samples.dense(keras, dtype=policy)),
        samples.watch(keras),
    )
    cluster = Cluster(num_clusters=6)
    samples.fit(model, [watcher, cluster])
    assert set(watcher.seen) == {6}
    cluster.finalize(model)


def test_own_constraint_is_kept_and_restored(keras):
    constraint = keras.constraints.MaxNorm(0.5)
    model = samples.dense(keras, kernel_constraint=constraint)
    model = samples.compiled(keras, model, optimizer=keras.optimizers.SGD(0.5))
    kernel = model.get_layer("first").kernel
    cluster = Cluster(num_clusters=6)
    samples.fit(model, [cluster])
    assert kernel.constraint is constraint
    # Means of what the norm allows are near it, as clustering has the last word.
    assert np.linalg.norm(kernel.numpy(), axis=0).max() < 0.6
    cluster.finalize(model)


def test_moving_averages_are_clustered(keras):
    optimizer = keras.optimizers.Adam(0.01, use_ema=True, ema_momentum=0.5)
    model = samples.compiled(keras, optimizer=optimizer)
    cluster = Cluster(num_clusters=6)
    samples.fit(model, [cluster])
    cluster.finalize(model)


def test_weights_from_elsewhere_are_clustered_again(keras):
    class Noise(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            kernel = self.model.get_layer("first").kernel
            kernel.assign(np.random.default_rng(epoch).normal(size=kernel.shape))

    model = samples.compiled(keras)
    cluster = Cluster(num_clusters=6)
    with pytest.warns(UserWarning, match=r"'first/kernel'\] were written past"):
        samples.fit(model, [Noise(), cluster], epochs=1)
    cluster.finalize(model)


def test_a_second_fit_and_an_interrupted_one(keras):
    model, watcher = samples.compiled(keras), samples.watch(keras)

    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 2:
                raise KeyboardInterrupt

    cluster = Cluster(num_clusters=6)
    samples.fit(model, [watcher, cluster])
    kernel = model.get_layer("first").kernel
    before = np.unique(kernel.numpy())
    with pytest.raises(KeyboardInterrupt):
        samples.fit(model, [watcher, cluster, Stop()])
    # It went on from the values that there were.
    assert np.abs(np.unique(kernel.numpy()) - before).max() < 0.02
    for another in (cluster, Cluster(num_clusters=6)):
        with pytest.raises(KeyboardInterrupt):
            samples.fit(model, [watcher, cluster, Stop()])
        samples.fit(model, [watcher, another], epochs=1)
        assert all(v.constraint is None for v in model.trainable_weights)
        another.finalize(model)
    assert set(watcher.seen) == {6}


def test_resumed_and_reloaded(keras, tmp_path):
    model = samples.compiled(keras)
    backup = keras.callbacks.BackupAndRestore(
        str(tmp_path / "backup"), delete_checkpoint=False
    )
    path = str(tmp_path / "{epoch}.keras")
    checkpoint = keras.callbacks.ModelCheckpoint(path)
    samples.fit(model, [checkpoint, backup, Cluster(num_clusters=6)], epochs=2)
    expected = {"first/kernel": 6, "second/kernel": 6}
    for epoch in (1, 2):
        loaded = keras.models.load_model(path.format(epoch=epoch))
        assert samples.distinct(loaded) == expected
    again, watcher = samples.compiled(keras), samples.watch(keras)
    cluster = Cluster(num_clusters=6)
    samples.fit(again, [backup, watcher, cluster], epochs=3)
    assert len(watcher.seen) == 6  # the third epoch only
    assert set(watcher.seen) == {6}
    assert samples.distinct(cluster.finalize(again)) == expected


def test_two_instances(keras):
    model = samples.compiled(keras)
    first = Cluster(num_clusters=4, include="first")
    second = Cluster(num_clusters=7, exclude="first")
    samples.fit(model, [first, second])
    assert samples.distinct(second.finalize(first.finalize(model))) == {
        **{"first/kernel": 4, "second/kernel": 7}
    }
    with pytest.raises(TfoptError, match=r"one Cluster callback.*'first/kernel'"):
        samples.fit(model, [first, Cluster(num_clusters=4)])


def test_report_and_strict(keras):
    model = samples.dense(keras)
    model.get_layer("second").trainable = False
    model = samples.compiled(keras, model)
    cluster = Cluster(num_clusters=6)
    samples.fit(model, [cluster])
    assert cluster.report[0] == {
        **{"name": "first/kernel", "shape": (12, 16), "size": 192},
        **{"clustered": True, "reason": "", "clusters": 6, "distinct": 6},
    }
    assert [row["reason"] for row in cluster.report[1:]] == [
        *("not a kernel", "not trainable", "not a kernel")
    ]
    with pytest.raises(TfoptError, match=r"strict.*\['second/kernel'\]"):
        samples.fit(model, [Cluster(num_clusters=6, strict=True)])
    samples.fit(model, [Cluster(num_clusters=6, strict=True, include="first")])
    few = Cluster(num_clusters=200, include="first")
    samples.fit(model, [few])
    assert few.report[0]["reason"] == "only 192 values"


def test_diverged_training(keras):
    model = samples.compiled(keras)
    kernel = model.get_layer("first").kernel
    kernel.assign(np.full(kernel.shape, np.nan))
    with pytest.raises(TfoptError, match=r"not finite.*'first/kernel'"):
        samples.fit(model, [Cluster(num_clusters=6)])


@pytest.mark.parametrize(
    "arguments",
    [
        *({"num_clusters": 1}, {"num_clusters": 2.0}, {"num_clusters": 1 << 17}),
        *({"initialization": "kmeans"}, {"per_channel": 1}, {"channel_scales": "yes"}),
        *({"preserve_zeros": "never"}, {"begin_step": -1}, {"frequency": 0}),
        {"end_step": 1.5},
        *({"seed": -1}, {"strict": None}, {"include": 3}, {"exclude": [""]}),
    ],
    ids=str,
)
def test_bad_arguments(arguments):
    (name,) = arguments
    with pytest.raises(ValueError, match=f"`{name}` must be .*Received: {name}="):
        Cluster(**arguments)
    assert Cluster(num_clusters=3).get_config()["num_clusters"] == 3


def test_arguments_that_do_not_go_together(keras):
    with pytest.raises(ValueError, match="not True with `per_channel`"):
        Cluster(per_channel=True, channel_scales=True)
    model = samples.compiled(keras)
    with pytest.raises(ValueError, match="at least 3 with channel scales"):
        samples.fit(model, [Cluster(num_clusters=2, channel_scales=True)])
    with pytest.raises(ValueError, match="include='nowhere'"):
        samples.fit(model, [Cluster(include="nowhere")])


@pytest.mark.parametrize("initialization", ["kmeans++", "linear", "density", "random"])
def test_config_round_trip(initialization):
    cluster = Cluster(num_clusters=9, initialization=initialization, frequency=None)
    copy = Cluster.from_config(cluster.get_config())
    assert copy.get_config() == cluster.get_config()
