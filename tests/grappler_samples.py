"""Small models for the tests of Grappler."""

import numpy as np
import tensorflow as tf

v1 = tf.compat.v1


def values(seed, *shape):
    random = np.random.default_rng(seed)
    return random.standard_normal(shape).astype(np.float32)


class Network(tf.Module):
    """A convolution with batch normalization, and a constant sum that can be folded."""

    def __init__(self):
        super().__init__()
        self.kernel = tf.Variable(values(0, 3, 3, 2, 4))
        self.scale = tf.Variable(np.abs(values(1, 4)) + 0.5)
        self.shift = tf.Variable(values(2, 4))
        self.mean = tf.Variable(values(3, 4))
        self.variance = tf.Variable(np.abs(values(4, 4)) + 0.5)

    @tf.function(input_signature=[tf.TensorSpec([None, 8, 8, 2], name="x")])
    def serve(self, x):
        y = tf.nn.conv2d(x, self.kernel, 1, "SAME")
        y, *_ = v1.nn.fused_batch_norm(
            y, self.scale, self.shift, self.mean, self.variance, is_training=False
        )
        y = tf.identity(tf.nn.relu(y))
        same = tf.nn.relu(tf.nn.bias_add(y, self.shift))
        again = tf.nn.relu(tf.nn.bias_add(y, self.shift))
        return {"y": same + again * (self.scale * 2.0 + self.mean)}


class Stateful(tf.Module):
    """A vocabulary from a file, a counter, and a loop."""

    def __init__(self, vocabulary):
        super().__init__()
        init = tf.lookup.TextFileInitializer(
            vocabulary,
            tf.string,
            tf.lookup.TextFileIndex.WHOLE_LINE,
            tf.int64,
            tf.lookup.TextFileIndex.LINE_NUMBER,
        )
        self.table = tf.lookup.StaticHashTable(init, -1)
        self.count = tf.Variable(5, dtype=tf.int64)
        self.rows = tf.Variable(values(5, 4, 3))

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="words")])
    def serve(self, words):
        ids = self.table.lookup(words)
        rows = tf.gather(self.rows, tf.maximum(ids, 0))
        for _ in tf.range(tf.shape(words)[0]):
            rows = tf.tanh(rows)
        return {"ids": ids, "rows": rows, "count": self.count.assign_add(1)}


def save_network(folder):
    network = Network()
    tf.saved_model.save(network, str(folder), signatures=network.serve)
    return folder


def save_stateful(folder, vocabulary):
    vocabulary.write_text("a\nb\nthe\n")
    model = Stateful(str(vocabulary))
    tf.saved_model.save(model, str(folder), signatures=model.serve)
    # The asset is in the model now.
    vocabulary.unlink()
    return folder


def run_graph(path, feed, fetch):
    """Runs a GraphDef in a session without TensorFlow's optimizations."""
    graph_def = v1.GraphDef.FromString(path.read_bytes())
    config = v1.ConfigProto()
    config.graph_options.rewrite_options.disable_meta_optimizer = True
    config.graph_options.optimizer_options.opt_level = -1
    with tf.Graph().as_default(), v1.Session(config=config) as session:
        tf.import_graph_def(graph_def, name="")
        return session.run(fetch, feed)


def ops(path):
    graph = v1.GraphDef.FromString(path.read_bytes())
    nodes = [*graph.node, *(n for f in graph.library.function for n in f.node_def)]
    return [node.op for node in nodes]


def devices(path):
    graph = v1.GraphDef.FromString(path.read_bytes())
    return {node.device for node in graph.node}
