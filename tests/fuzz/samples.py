"""The intact files that are damaged: small models in every format, made once."""

import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
BASIC_PITCH = ROOT / "testdata" / "basic_pitch"
_MARK = "complete"


def make(folder):
    """Makes the samples in a folder, unless they are there."""
    folder = pathlib.Path(folder)
    if (folder / _MARK).exists():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    import tensorflow as tf

    _saved_models(tf, folder)
    _graphs(tf, folder)
    _checkpoints(tf, folder)
    _tflite_files(tf, folder)
    _keras_files(folder)
    _archives(folder)
    (folder / _MARK).touch()
    return folder


def module(tf, folder):
    """A model with variables, a vocabulary, a loop and a branch."""

    class Model(tf.Module):
        def __init__(self):
            rng = np.random.default_rng(0)
            self.kernel = tf.Variable(rng.normal(size=(4, 3)).astype(np.float32))
            self.bias = tf.Variable(np.zeros(3, np.float32))
            self.steps = tf.Variable(0, dtype=tf.int64)
            vocabulary = folder / "words.txt"
            vocabulary.write_text("a\nb\nc\n")
            self.table = tf.lookup.StaticHashTable(
                tf.lookup.TextFileInitializer(
                    os.fspath(vocabulary),
                    *(tf.string, tf.lookup.TextFileIndex.WHOLE_LINE),
                    *(tf.int64, tf.lookup.TextFileIndex.LINE_NUMBER),
                ),
                -1,
            )

        @tf.function(input_signature=[tf.TensorSpec([None, 4], tf.float32, name="x")])
        def serve(self, x):
            y = x @ self.kernel + self.bias
            _, y = tf.while_loop(
                lambda i, _: i < 2,
                lambda i, y: (i + 1, tf.nn.relu(y)),
                (tf.constant(0), y),
            )
            y = tf.cond(tf.size(y) > 5, lambda: y * 2.0, lambda: y + self.bias)
            return {"y": y, "double": 2.0 * y}

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="word")])
        def look_up(self, word):
            self.steps.assign_add(1)
            return {"index": self.table.lookup(word)}

    return Model()


def _saved_models(tf, folder):
    model = module(tf, folder)
    tf.saved_model.save(
        model,
        os.fspath(folder / "saved_model"),
        signatures={"serving_default": model.serve, "look_up": model.look_up},
    )


def _graphs(tf, folder):
    from tfopt import freezing

    freezing.freeze(folder / "saved_model", folder / "functions.pb")
    graph = tf.Graph()
    with graph.as_default():
        rng = np.random.default_rng(1)
        x = tf.compat.v1.placeholder(tf.float32, [None, 8, 8, 3], name="x")
        kernel = tf.constant(rng.normal(size=(3, 3, 3, 4)).astype(np.float32))
        y = tf.nn.conv2d(x, kernel, 1, "SAME", name="conv")
        ones = [tf.ones(4), tf.zeros(4), tf.zeros(4), tf.ones(4)]
        y, *_ = tf.compat.v1.nn.fused_batch_norm(y, *ones, is_training=False)
        y = tf.reshape(tf.nn.relu(y), [-1, 256], name="flat")
        y = tf.matmul(y, tf.constant(rng.normal(size=(256, 2)).astype(np.float32)))
        tf.identity(y + tf.constant([0.5, 0.5]), name="y")
    definition = graph.as_graph_def()
    (folder / "plain.pb").write_bytes(definition.SerializeToString())
    from google.protobuf import text_format

    text = text_format.MessageToString(definition)
    (folder / "plain.pbtxt").write_text(text)


def _checkpoints(tf, folder):
    import keras

    from tfopt.savedmodel.bundle_writing import BundleWriter

    model = keras.Sequential(
        [keras.layers.Input((4,)), keras.layers.Dense(3), keras.layers.Dense(2)]
    )
    model.compile("adam", "mse")
    model.fit(np.zeros([4, 4]), np.zeros([4, 2]), verbose=0)
    tf.train.Checkpoint(model=model, optimizer=model.optimizer).write(
        os.fspath(folder / "trained")
    )
    rng = np.random.default_rng(2)
    whole = rng.normal(size=(6, 4)).astype(np.float32)
    with BundleWriter(folder / "parts") as writer:
        writer.add("words", np.array([b"a", b"", b"long" * 20], object))
        writer.add_part("table", (6, 4), ((0, 2), (0, 4)), whole[:2])
        writer.add_part("table", (6, 4), ((2, 4), (0, 4)), whole[2:])
        writer.add("flags", np.array([True, False]))
        writer.add("half", rng.normal(size=(3, 5)).astype(np.float16))
        writer.add("step", np.int64(3))


def _tflite_files(tf, folder):
    rng = np.random.default_rng(3)
    kernel = rng.normal(size=(3, 3, 1, 4)).astype(np.float32)
    weights = rng.normal(size=(64, 5)).astype(np.float32)

    def network(image):
        x = tf.nn.relu(tf.nn.conv2d(image, kernel, 2, "SAME"))
        return {"y": tf.nn.softmax(tf.reshape(x, [-1, 64]) @ weights)}

    def loop(image):
        x = tf.reduce_mean(image, [2, 3])
        step = tf.constant(0)
        body = lambda i, x: (i + 1, tf.sin(x))  # noqa: E731
        return {"y": tf.while_loop(lambda i, x: i < 3, body, (step, x))[1]}

    def samples():
        for _ in range(4):
            yield [rng.normal(size=(1, 8, 8, 1)).astype(np.float32)]

    spec = tf.TensorSpec([None, 8, 8, 1], tf.float32, name="image")
    for name, function in (("float", network), ("int8", network), ("loop", loop)):
        traced = tf.function(function, input_signature=[spec]).get_concrete_function()
        converter = tf.lite.TFLiteConverter.from_concrete_functions([traced])
        if name == "int8":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            converter.representative_dataset = samples
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        (folder / f"{name}.tflite").write_bytes(converter.convert())


def _keras_files(folder):
    import keras
    import tf_keras

    from tfopt import _keras

    for name, module_ in (("keras3", keras), ("legacy", tf_keras)):
        layers = module_.layers
        model = module_.Sequential([layers.Dense(3, name="a"), layers.Dense(2)])
        model.build((None, 4))
        for suffix in ("keras", "h5"):
            _keras.save(model, folder / f"{name}.{suffix}")


def _archives(folder):
    from tfopt import packing

    packing.pack(folder / "saved_model", folder / "saved_model.tar.zst", level=3)
    packing.pack(folder / "float.tflite", folder / "float.tflite.zst", level=3)


def make_apart(folder):
    """Does `make` in a process of its own, whose chatter nobody sees."""
    if (pathlib.Path(folder) / _MARK).exists():
        return
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    done = subprocess.run(
        [sys.executable, "-m", "fuzz.samples", os.fspath(folder)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"no samples:\n{done.stderr[-4000:]}")


if __name__ == "__main__":
    make(sys.argv[1])
