"""Structural transforms one after the other, on real models; TensorFlow's as oracle."""

import json
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
import transforms_structure_samples as samples
from transforms_structure_samples import X, apply, model_of, run, same

import tfopt
from tfopt.transforms.add_default_attributes import add_default_attributes
from tfopt.transforms.fold_constants import fold_constants
from tfopt.transforms.merge_duplicate_nodes import merge_duplicate_nodes
from tfopt.transforms.obfuscate_names import obfuscate_names
from tfopt.transforms.remove_control_dependencies import remove_control_dependencies
from tfopt.transforms.remove_nodes import remove_nodes
from tfopt.transforms.sort_by_execution_order import sort_by_execution_order
from tfopt.transforms.strip_unused_nodes import strip_unused_nodes

HANDED_ON = ["Identity", "IdentityN", "StopGradient", "CheckNumerics"]
# One TensorFlow function call in a child process, since it can hang.
ORACLE = """
import json, sys
try:
    from tensorflow.python.util import _pywrap_transform_graph as tool
except ImportError:
    print(json.dumps(None))
    sys.exit()
path, inputs, outputs, transforms = sys.argv[1:]
with open(path, "rb") as file:
    found = tool.TransformGraphWithStringInputs(
        file.read(), inputs, outputs, transforms
    )
with open(path + ".out", "wb") as file:
    file.write(found)
print(json.dumps(len(found)))
"""


def shrink(model):
    apply(model, strip_unused_nodes)
    apply(model, remove_control_dependencies)
    apply(model, remove_nodes, op=HANDED_ON)
    apply(model, fold_constants)
    apply(model, merge_duplicate_nodes)
    apply(model, sort_by_execution_order)
    apply(model, add_default_attributes)
    apply(model, obfuscate_names)


@pytest.mark.parametrize(("inline", "most"), [(True, 310), (False, 330)])
def test_basic_pitch(testdata, tmp_path, inline, most):
    path, name, outputs, feeds = samples.frozen_basic_pitch(
        testdata, tmp_path, inline=inline
    )
    model = model_of(path, outputs, inputs=[name])
    before = run(model, feeds)
    nodes, size = model.num_nodes, path.stat().st_size
    shrink(model)
    assert nodes > 650
    assert model.num_nodes <= most
    assert model.to_graph_def().ByteSize() < size
    # Its own kernels round differently from run to run.
    for a, b in zip(before, run(model, feeds), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)


@pytest.mark.parametrize("inline", [True, False])
def test_keras(tmp_path, inline):
    layers = tf.keras.layers
    inputs = tf.keras.Input((8, 8, 3))
    y = layers.Conv2D(4, 3, padding="same")(inputs)
    y = layers.BatchNormalization()(y)
    y = layers.Activation("relu")(y)
    y = layers.Reshape((8, 32))(y)
    y = layers.LSTM(5)(y)
    outputs = layers.Dense(3, activation="softmax")(layers.Dropout(0.5)(y))
    artifact = tfopt.freeze(
        tf.keras.Model(inputs, outputs), tmp_path / "m.pb", inline_functions=inline
    )
    tensors = artifact.details["signatures"]["serving_default"]
    ((name,),) = tensors["inputs"].values()
    ((output,),) = tensors["outputs"].values()
    model = model_of(tmp_path / "m.pb", [output], inputs=[name])
    images = np.random.default_rng(0).random((2, 8, 8, 3), np.float32)
    before, nodes = run(model, {name: images}), model.num_nodes
    shrink(model)
    assert model.num_nodes < 0.75 * nodes
    assert same(before, run(model, {name: images}))


def test_branches_and_loops_of_tf1():
    model = samples.looping()
    before = [run(model), run(model, {"x:0": X + 9})]
    shrink(model)
    assert same(before[0], run(model))
    assert same(before[1], run(model, {"x:0": X + 9}))


def test_against_the_graph_transform_tool(tmp_path):
    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder(tf.float32, [None, 3], "x")
        parts = []
        for _ in range(3):
            w = tf.identity(tf.constant(np.eye(3), tf.float32))
            w = w * tf.math.rsqrt(tf.constant(4.0)) + tf.zeros([3, 3])
            parts.append(tf.nn.relu(tf.linalg.matmul(tf.identity(x), w)))
        tf.add_n(parts, name="out")
        tf.exp(x, name="unused")
    (tmp_path / "g.pb").write_bytes(graph.as_graph_def().SerializeToString())
    transforms = (
        "strip_unused_nodes remove_nodes(op=Identity) fold_constants "
        "merge_duplicate_nodes sort_by_execution_order"
    )
    command = [sys.executable, "-c", ORACLE, tmp_path / "g.pb", "x", "out", transforms]
    found = subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=True
    )
    if json.loads(found.stdout) is None:
        pytest.skip("this TensorFlow has no Graph Transform Tool")
    theirs = model_of(tmp_path / "g.pb.out", ["out"])
    ours = model_of(tmp_path / "g.pb", ["out"])
    apply(ours, strip_unused_nodes)
    apply(ours, remove_nodes, op=["Identity"])
    apply(ours, fold_constants)
    apply(ours, merge_duplicate_nodes)
    apply(ours, sort_by_execution_order)
    assert samples.ops(ours) == samples.ops(theirs)
    assert same(run(ours), run(theirs))
    assert samples.ops(ours) == ["AddN", "Const", "MatMul", "Placeholder", "Relu"]
