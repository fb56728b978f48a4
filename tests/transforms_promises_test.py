"""What transform_graph checks after every transform."""

import numpy as np
import pytest
import tensorflow as tf
from transforms_samples import flat, quick
from transforms_structure_samples import X

import tfopt
from tfopt.transforms import _base, _checking, _constants, _ops, _registry, _verifier
from tfopt.transforms._graph import Tensor

pytest_plugins = ["transforms_fixtures"]
pytestmark = pytest.mark.usefixtures("shared")
v1 = tf.compat.v1
FLOAT = _ops.Type(1)


@pytest.fixture
def fake(monkeypatch):
    """Registers a function as the transform `fake`."""
    real = _registry.get

    def register(function, **promise):
        made = _registry.Transform(
            "fake", function, _base.Promise(**promise), {}, "Does harm."
        )
        monkeypatch.setattr(
            _registry, "get", lambda name: made if name == "fake" else real(name)
        )

    return register


def relus(graph):
    return [node for node in graph.main if node.op == "Relu"]


def to_op(op, **attributes):
    def change(graph):
        for node in relus(graph):
            node.op = op
            _ops.set_attributes(node, **attributes)
        return {}

    return change


def add_node(graph):
    graph.main.add("NoOp", "extra", controls=["x"])
    return {}


def lose_input(graph):
    for node in relus(graph):
        node.input[:] = ["nobody"]
    graph.main.changed()
    return {}


def go_round(graph):
    (relu,) = relus(graph)
    (user,) = (use.node for use in graph.main.uses((relu.name, 0)))
    relu.input.append(f"^{user.name}")
    graph.main.changed()
    return {}


def lose_output(graph):
    graph.main.remove(["y"])
    return {}


def call_nobody(graph):
    for node in relus(graph):
        node.attr["f"].func.name = "nobody"
    return {}


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (add_node, "extra is new"),
        (lose_input, "needs nobody, which is missing"),
        (go_round, "nodes wait for each other"),
        (lose_output, "y, which must stay, is missing"),
        (call_nobody, "calls nobody, which is missing"),
    ],
)
def test_broken_structure_is_noticed(function, message, fake, graph, tmp_path):
    fake(function)
    with pytest.raises(tfopt.VerificationError, match=message) as caught:
        quick(graph, tmp_path / "o.pb", "remove_device fake", outputs=["y"])
    assert str(caught.value).startswith("fake broke the graph; nothing is written.")
    assert "Applied before: remove_device." in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_promises_about_nodes_and_types_are_checked(fake, graph, tmp_path):
    def rename(model):
        model.main.add(
            "Relu", "other", model.main.inputs(relus(model)[0]), T=np.dtype("f4")
        )
        (old, new) = relus(model)
        model.main.redirect((old.name, 0), Tensor(new.name))
        model.main.remove([old.name])
        return {}

    fake(rename, keeps_nodes=True, adds_nodes=True)
    with pytest.raises(tfopt.VerificationError, match="Relu is gone"):
        quick(graph, tmp_path / "o.pb", "fake", outputs=["y"])
    to_half = to_op("Cast", SrcT=np.dtype("f4"), DstT=np.dtype("f2"))
    fake(to_half)
    with pytest.raises(tfopt.VerificationError, match="Relu has another type"):
        quick(graph, tmp_path / "o.pb", "fake", outputs=["y"])

    def output_to_half(model):
        node = model.main.nodes["y"]
        node.attr["T"].type = 19
        return {}

    fake(output_to_half, keeps_dtypes=False)
    with pytest.raises(tfopt.VerificationError, match="y:0, an input or output"):
        quick(graph, tmp_path / "o.pb", "fake", outputs=["y"])


def test_the_last_check_of_structure_knows_operations(fake, graph, tmp_path):
    fake(to_op("Add"))
    with pytest.raises(tfopt.VerificationError, match="takes 1 inputs, not 2"):
        quick(graph, tmp_path / "o.pb", "fake", outputs=["y"])


def test_outputs_are_checked_after_every_step(fake, graph, tmp_path):
    fake(to_op("Elu"))
    text = "remove_nodes(op=Identity) fake sort_by_execution_order"
    with pytest.raises(tfopt.VerificationError, match="output y differs by") as caught:
        tfopt.transform_graph(graph, tmp_path / "o.pb", text, outputs=["y"])
    assert str(caught.value).startswith("fake broke")
    assert "Applied before: remove_nodes(op=Identity)." in str(caught.value)
    # At the end nobody knows which it was.
    with pytest.raises(tfopt.VerificationError, match=r"The transforms broke.*differs"):
        tfopt.transform_graph(
            graph, tmp_path / "o.pb", text, outputs=["y"], verify="final"
        )
    fake(to_op("Elu"), outputs="close", tolerance=1e-3)
    with pytest.raises(tfopt.VerificationError, match=r"more than 0\.00"):
        tfopt.transform_graph(graph, tmp_path / "o.pb", "fake", outputs=["y"])
    assert not list(tmp_path.iterdir())
    fake(to_op("Elu"), outputs="reported")
    artifact = tfopt.transform_graph(graph, tmp_path / "o.pb", "fake", outputs=["y"])
    assert 0.1 < artifact.details["outputs"]["y"]["max_error"] <= 1.0


def test_graphs_that_kill_their_process_do_not_kill_ours(
    own_child, fake, graph, tmp_path
):
    def abort(model):
        body = model.main
        (relu,) = relus(model)
        body.add("Abort", "abort")
        body.set_inputs(relu, body.inputs(relu), ["abort"])
        return {}

    fake(abort, adds_nodes=True)
    with pytest.raises(tfopt.VerificationError, match=r"died .SIGABRT.") as caught:
        tfopt.transform_graph(graph, tmp_path / "o.pb", "fake", outputs=["y"])
    assert str(caught.value).startswith("fake broke")


def test_graphs_that_hang_are_stopped(own_child, fake, graph, tmp_path, monkeypatch):
    def hang(model):
        body = model.main
        (relu,) = relus(model)
        queue = body.add("FIFOQueueV2", "queue", component_types=[FLOAT])
        node = body.add(
            "QueueDequeueV2",
            "never",
            [Tensor(queue.name)],
            component_types=[FLOAT],
        )
        body.set_inputs(relu, body.inputs(relu), [node.name])
        return {}

    fake(hang, adds_nodes=True)
    real = _verifier.Verifier.start

    def start(self, *args):
        random = real(self, *args)
        self._limit = 3.0
        return random

    monkeypatch.setattr(_verifier.Verifier, "start", start)
    with pytest.raises(tfopt.VerificationError, match="did not end within 3 s"):
        tfopt.transform_graph(graph, tmp_path / "o.pb", "fake", outputs=["y"])


def test_a_transform_that_raises_is_named(fake, graph, tmp_path):
    def refuse(model):
        raise ValueError("Expected more. Received: size=1")

    fake(refuse)
    with pytest.raises(ValueError, match=r"^fake: Expected more.*Applied before: noth"):
        quick(graph, tmp_path / "o.pb", "fake", outputs=["y"])

    def fail(model):
        raise KeyError("relu")

    fake(fail)
    with pytest.raises(
        tfopt.TfoptError, match=r"^fake failed.*KeyError: 'relu' .fail:"
    ):
        quick(graph, tmp_path / "o.pb", "fake", outputs=["y"])


def test_random_outputs_have_only_their_shape_checked(fake, tmp_path):
    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, [None, 3], "x")
        tf.add(x, tf.random.uniform([3]), name="random")
        tf.nn.relu(x, name="y")
    names = ["random", "y"]
    artifact = tfopt.transform_graph(
        graph, tmp_path / "o.pb", "remove_device", outputs=names
    )
    assert artifact.details["outputs"]["random"]["random"]
    assert not artifact.details["outputs"]["y"]["random"]

    def reduce(model):
        body = model.main
        node = body.nodes["random"]
        zero = body.add("Shape", "axes", body.inputs(node)[:1], T=FLOAT)
        node.op = "Max"
        body.set_inputs(node, [body.input(node, 0), Tensor(zero.name)])
        node.attr["Tidx"].type = 3
        return {}

    fake(reduce, adds_nodes=True, outputs="reported")
    with pytest.raises(tfopt.VerificationError):
        tfopt.transform_graph(graph, tmp_path / "p.pb", "fake", outputs=names)


def test_verify_data_is_used(graph, tmp_path):
    file = tmp_path / "data.npz"
    np.savez(file, x=np.full([4, 3], 100.0, np.float32))
    options = {"outputs": ["y"], "verify_data": str(file)}
    artifact = tfopt.transform_graph(graph, tmp_path / "o.pb", "deploy", **options)
    assert artifact.details["outputs"]["y"]["scale"] > 50.0
    np.savez(file, z=X)
    with pytest.raises(tfopt.VerificationError, match="verify_data lacks x; it has z"):
        tfopt.transform_graph(graph, tmp_path / "o.pb", "deploy", **options)


def test_a_source_that_cannot_run_is_an_error_with_a_way_out(tmp_path):
    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, [None, 3], "x")
        with tf.control_dependencies([v1.debugging.assert_greater(x, 1e9)]):
            tf.identity(x, name="y")
    with pytest.raises(tfopt.VerificationError, match="even before it is") as caught:
        tfopt.transform_graph(graph, tmp_path / "o.pb", "deploy", outputs=["y"])
    assert "verify_data" in str(caught.value)
    quick(graph, tmp_path / "o.pb", "deploy", outputs=["y"])


def test_a_transform_that_fixes_the_batch_size_is_noticed(fake, tmp_path):
    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, [None, 3], "x")
        tf.reshape(tf.nn.relu(x), [-1, 3], name="y")

    def fix(model):
        shape = np.array([2, 3], np.int32)
        node = model.main.nodes["y"]
        model.main.set_input(node, 1, _constants.add_constant(model.main, "s", shape))
        return {}

    fake(fix, adds_nodes=True)
    with pytest.raises(tfopt.VerificationError, match="cannot be run"):
        tfopt.transform_graph(graph, tmp_path / "o.pb", "fake", outputs=["y"])


def test_dead_nodes_functions_and_colocation_are_cleaned():
    model = flat()
    body = model.main
    body.add("NoOp", "idle")
    body.nodes["w"].attr["_class"].list.s.extend([b"loc:@idle", b"loc:@table"])
    assert _checking.clean(model) > 0
    assert "idle" not in body.nodes
    assert list(body.nodes["w"].attr["_class"].list.s) == [b"loc:@table"]
    assert _checking.clean(model) == 0


def test_the_index_of_consumers_stays_right():
    """After random edits it is what a new index would be."""
    model = flat()
    body = model.main
    random = np.random.default_rng(0)
    names = list(body.nodes)
    for _ in range(200):
        body.uses(Tensor(names[0]))
        name, other = random.choice(names, 2)
        node = body.nodes[name]
        kind = random.integers(5)
        inputs = body.inputs(node)
        if kind == 0 and inputs:
            body.set_input(node, int(random.integers(len(inputs))), Tensor(other))
        elif kind == 1:
            body.redirect(Tensor(name), Tensor(other))
        elif kind == 2:
            body.set_inputs(node, inputs, [other])
        elif kind == 3:
            body.add("Identity", "new", [Tensor(other)], controls=[name])
        elif not body.uses(Tensor(name)) and not body.is_kept(name) and name in names:
            body.remove([name])
            names.remove(name)
        found = index_of(body)
        body.changed()
        body.uses(Tensor(names[0]))
        assert found == index_of(body)


def index_of(body):
    uses = {
        tensor: sorted((use.node.name, use.position) for use in found)
        for tensor, found in body._uses.items()
    }
    controls = {
        name: sorted(user.name for user in found)
        for name, found in body._controls.items()
    }
    return [{k: v for k, v in one.items() if v} for one in (uses, controls)]
