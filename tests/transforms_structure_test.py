"""Transforms that change how a graph is written, not what it computes."""

import numpy as np
import pytest
import tensorflow as tf
import transforms_structure_samples as samples
from transforms_structure_samples import X, apply, model_of, run, same, v1

from tfopt.transforms.add_default_attributes import add_default_attributes
from tfopt.transforms.obfuscate_names import obfuscate_names
from tfopt.transforms.remove_attribute import remove_attribute
from tfopt.transforms.remove_control_dependencies import remove_control_dependencies
from tfopt.transforms.remove_nodes import remove_nodes
from tfopt.transforms.rename_attribute import rename_attribute
from tfopt.transforms.rename_node import rename_node
from tfopt.transforms.rename_op import rename_op
from tfopt.transforms.set_device import set_device
from tfopt.transforms.sort_by_execution_order import sort_by_execution_order
from tfopt.transforms.strip_unused_nodes import strip_unused_nodes
from tfopt.types import TfoptError


@pytest.fixture
def small():
    """x -> Identity -> Mul -> Relu `out`, and a branch that nothing needs."""
    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, [None, 3], "x")
        y = tf.multiply(tf.identity(x, name="pass"), tf.constant(2.0), name="product")
        tf.nn.relu(y, name="out")
        tf.exp(y, name="unused")
    return model_of(graph, ["out"])


@pytest.fixture
def branching():
    """Calls, a branch and a loop in functions."""

    @tf.function
    def helper(y):
        return tf.identity(y) * 2.0, tf.identity(y)

    def function(x):
        y, same_x = helper(x)
        z = tf.cond(tf.reduce_sum(x) > 0, lambda: tf.identity(y), lambda: y + 1.0)
        (_, w) = tf.while_loop(
            lambda i, _: i < 3, lambda i, w: (i + 1, tf.identity(w) + y), (0, z)
        )
        return tf.identity(w) + same_x

    return samples.traced(function)


class TestStripUnusedNodes:
    def test_drops_what_outputs_do_not_need(self, small):
        before = run(small)
        findings = apply(small, strip_unused_nodes)
        assert findings == {"removed": 1, "placeholders": [], "skipped": []}
        assert "unused" not in small.main.nodes
        assert same(before, run(small))

    def test_functions_that_nothing_calls_go(self, branching):
        names = set(branching.functions)
        branching.main.kept |= {"x"}
        (output,) = (t.split(":")[0] for t in branching.outputs)
        branching.main.kept -= {output}
        branching.outputs = ("x:0",)
        apply(branching, strip_unused_nodes)
        assert names
        assert not branching.functions
        assert samples.ops(branching) == ["Placeholder"]

    @pytest.mark.parametrize("given", [{}, {"type": "float", "shape": "2,3"}])
    def test_an_input_in_the_middle_becomes_a_placeholder(self, small, given):
        cut = model_of(small.to_graph_def(), ["out"], inputs=["pass"])
        findings = apply(cut, strip_unused_nodes, **given)
        assert findings["placeholders"] == ["pass"]
        assert samples.ops(cut) == ["Const", "Mul", "Placeholder", "Relu"]
        (found,) = run(cut, {"pass:0": X})
        np.testing.assert_array_equal(found, np.maximum(2 * X, 0))
        shape = cut.main.nodes["pass"].attr["shape"].shape
        sizes = [dim.size for dim in shape.dim]
        assert sizes == ([2, 3] if given else [])
        assert shape.unknown_rank == (not given)

    def test_types_and_shapes_by_name(self, small):
        cut = model_of(small.to_graph_def(), ["out"], inputs=["product", "x"])
        options = {
            "name": ["product:0", "x"],
            "type_for_name": ["float32", "float"],
            "shape_for_name": ["-1, 3", "1,3"],
        }
        findings = strip_unused_nodes(cut, **options)
        assert [dim.size for dim in cut.main.nodes["product"].attr["shape"].shape.dim]
        assert findings["skipped"] == [
            {"node": "x", "reason": "is a placeholder already"}
        ]

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"type": "int32"}, "type int32 for 'pass'"),
            ({"type": "floaty"}, "type='floaty'"),
            ({"shape": "1,two"}, "shape='1,two'"),
            ({"shape": "1,-7"}, "shape='1,-7'"),
            ({"name": ["out"]}, "name='out'"),
            ({"name": ["pass"], "type_for_name": ["float"] * 2}, "type_for_name="),
        ],
    )
    def test_wrong_options(self, small, options, message):
        cut = model_of(small.to_graph_def(), ["out"], inputs=["pass"])
        with pytest.raises(ValueError, match=message):
            strip_unused_nodes(cut, **options)

    def test_one_of_several_outputs_cannot_be_fed(self):
        with tf.Graph().as_default() as graph:
            x = v1.placeholder(tf.float32, [None, 3], "x")
            a, b, _ = tf.split(x, 3, axis=1, name="parts")
            tf.add(a, b, name="out")
        model = model_of(graph, ["out"], inputs=["parts:1"])
        with pytest.raises(ValueError, match="one output"):
            strip_unused_nodes(model)

    def test_an_unknown_operation_needs_a_type(self, small):
        small.main.nodes["pass"].op = "NobodysOp"
        cut = model_of(small.to_graph_def(), ["out"], inputs=["pass"])
        with pytest.raises(ValueError, match="type_for_name"):
            strip_unused_nodes(cut)
        strip_unused_nodes(cut, type="float")
        np.testing.assert_array_equal(run(cut, {"pass:0": X})[0], np.maximum(2 * X, 0))

    def test_functions_wait_only_for_effects(self, tmp_path):
        table = tf.Variable(X)
        count = tf.Variable(0.0)

        def function(x):
            count.assign_add(1.0)
            return x + table

        graph = tf.function(
            lambda x: tf.function(function)(x),
            input_signature=[tf.TensorSpec([None, 3], tf.float32, "x")],
        )
        concrete = graph.get_concrete_function()
        names = [t.name for t in concrete.graph.outputs]
        model = model_of(concrete.graph, names)
        (body,) = model.functions.values()
        # As freezing leaves it: reading is a constant now.
        read = next(n for n in body if n.op == "ReadVariableOp" and n.name in body.kept)
        reads = {name for name in body.kept if body.nodes[name].op == read.op}
        for name in reads:
            node = body.nodes[name]
            node.op = "Identity"
            node.attr["T"].type = node.attr.pop("dtype").type
        apply(model, strip_unused_nodes)
        left = {body.nodes[name].op for name in body.kept}
        assert left == {"AssignAddVariableOp"}
        assert len(body.function.signature.control_output) == len(body.kept)


class TestRemoveNodes:
    def test_consumers_take_the_input(self, small):
        before = run(small)
        findings = apply(small, remove_nodes, op=["Identity"])
        assert findings == {"removed": 1, "skipped": []}
        assert samples.ops(small) == ["Const", "Mul", "Placeholder", "Relu"]
        assert same(before, run(small))

    def test_what_is_removed_shows(self, small):
        # Negative control: the comparison sees a node that mattered.
        before = run(small)
        small.main.kept -= {"out"}
        small.outputs = ("unused:0",)
        small.main.kept |= {"unused"}
        small.main.nodes["unused"].input[:] = ["out"]
        exponential = run(small)
        assert apply(small, remove_nodes, op=["Relu"])["removed"] == 1
        np.testing.assert_allclose(exponential, np.exp(before), rtol=1e-6)
        assert not same(exponential, run(small))

    def test_inputs_and_outputs_stay(self):
        with tf.Graph().as_default() as graph:
            x = tf.identity(v1.placeholder(tf.float32, [None, 3], "raw"), name="x")
            tf.identity(tf.identity(x, name="between"), name="out")
        model = model_of(graph, ["out"])
        findings = apply(model, remove_nodes, op=["Identity"])
        assert findings["removed"] == 1
        assert {one["node"] for one in findings["skipped"]} == {"x", "out"}
        assert same(run(model), [X])

    def test_what_it_waited_for_its_consumers_wait_for(self):
        with tf.Graph().as_default() as graph:
            x = v1.placeholder(tf.float32, [None, 3], "x")
            count = v1.Variable(0.0, use_resource=True, trainable=False)
            with tf.control_dependencies([count.assign_add(1.0)]):
                y = tf.identity(x, name="waits")
            with tf.control_dependencies([y.op]):
                n = count.read_value()
            tf.add(y, n, name="out")
            init = v1.global_variables_initializer().name
        model = model_of(graph, ["out"], kept=[init])
        before = run(model, session_runs=3, setup=[init])
        findings = apply(model, remove_nodes, op=["Identity"])
        assert findings["removed"] >= 1
        assert "waits" not in model.main.nodes
        assert same(before, run(model, session_runs=3, setup=[init]))
        np.testing.assert_array_equal(before[0], X + 3)

    def test_identity_n_output_by_output(self):
        with tf.Graph().as_default() as graph:
            x = v1.placeholder(tf.float32, [None, 3], "x")
            a, b = tf.identity_n([x, tf.constant(3.0)])
            tf.subtract(b, a, name="out")
        model = model_of(graph, ["out"])
        apply(model, remove_nodes, op=["IdentityN"])
        assert "IdentityN" not in samples.ops(model)
        np.testing.assert_array_equal(run(model)[0], 3 - X)

    def test_more_inputs_and_other_types(self):
        with tf.Graph().as_default() as graph:
            x = v1.placeholder(tf.float32, [None, 3], "x")
            y = tf.add(x, 1.0, name="sum")
            z = tf.cast(y, tf.int32, name="cast")
            tf.negative(z, name="out")
        model = model_of(graph, ["out"])
        findings = apply(model, remove_nodes, op=["AddV2", "Cast"])
        reasons = {one["node"]: one["reason"] for one in findings["skipped"]}
        assert "2 inputs" in reasons["sum"]
        assert "another type" in reasons["cast"]
        assert apply(model, remove_nodes, op=["AddV2"], max_inputs=2)["removed"] == 1
        np.testing.assert_array_equal(run(model)[0], -X.astype(np.int32))

    def test_branches_and_loops_of_tf1(self):
        model = samples.looping()
        before = [run(model), run(model, {"x:0": X + 9})]
        findings = apply(model, remove_nodes, op=["Identity"])
        assert findings["removed"] > 2
        assert any("Switch" in one["reason"] for one in findings["skipped"])
        assert same(before[0], run(model))
        assert same(before[1], run(model, {"x:0": X + 9}))

    def test_functions(self, branching):
        before = [run(branching), run(branching, {"x:0": X + 9})]
        apply(branching, strip_unused_nodes)
        findings = apply(branching, remove_nodes, op=["Identity", "IdentityN"])
        assert findings["removed"] > 5
        left = [n.name for b in branching.functions.values() for n in b]
        assert not [name for name in left if name.startswith("Identity")]
        assert same(before[0], run(branching))
        assert same(before[1], run(branching, {"x:0": X + 9}))

    def test_references_of_tf1_are_read_where_they_were(self):
        with tf.Graph().as_default() as graph:
            x = v1.placeholder(tf.float32, [None, 3], "x")
            ref = v1.Variable(1.0, use_resource=False)
            before = tf.identity(ref._variable, name="before")
            with tf.control_dependencies([before]):
                after = v1.assign_add(ref, 1.0, use_locking=True)
            tf.add(x, before + after, name="out")
            init = v1.global_variables_initializer().name
        model = model_of(graph, ["out"], kept=[init])
        findings = apply(model, remove_nodes, op=["Identity"])
        assert "before" in model.main.nodes
        assert any("TF1" in one["reason"] for one in findings["skipped"])

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"op": []}, r"op=\[\]"),
            ({"op": "Identity"}, "op='Identity'"),
            ({"op": ["Identity"], "max_inputs": 0}, "max_inputs=0"),
        ],
    )
    def test_wrong_options(self, small, options, message):
        with pytest.raises(ValueError, match=message):
            remove_nodes(small, **options)


class TestAttributes:
    def test_devices(self, small):
        apply(small, set_device, device="/device:CPU:0")
        assert {node.device for node in small.main} == {"/device:CPU:0"}
        small.main.nodes["pass"].device = ""
        assert apply(small, set_device, device="/cpu:1", if_default=True) == {
            "assigned": 1
        }
        assert small.main.nodes["out"].device == "/device:CPU:0"
        apply(small, set_device, device="")
        assert {node.device for node in small.main} == {""}
        with pytest.raises(ValueError, match="device='gpu'"):
            set_device(small, device="gpu")

    def test_removing_and_adding_defaults(self, small):
        with tf.Graph().as_default() as graph:
            x = v1.placeholder(tf.float32, [2, 4, 4, 3], "x")
            w = tf.ones([1, 1, 3, 2])
            tf.nn.conv2d(x, w, 1, "SAME", name="out")
        model = model_of(graph, ["out"])
        node = model.main.nodes["out"]
        full = dict(node.attr)
        for name in ("dilations", "use_cudnn_on_gpu", "data_format"):
            assert apply(model, remove_attribute, attribute_name=name)["removed"] == 1
        assert "dilations" not in node.attr
        assert apply(model, add_default_attributes)["added"] == 3
        assert {name: full[name] for name in full} == dict(node.attr)
        assert remove_attribute(model, attribute_name="T", op_name="Relu") == {
            "removed": 0
        }
        with pytest.raises(ValueError, match="attribute_name=''"):
            remove_attribute(model, attribute_name="")

    def test_unknown_operations_are_reported(self, small):
        small.main.nodes["pass"].op = "NobodysOp"
        (skipped,) = add_default_attributes(small)["skipped"]
        assert skipped["node"] == "pass"
        assert "NobodysOp" in skipped["reason"]

    def test_renaming(self, small):
        options = {"old_attribute_name": "T", "new_attribute_name": "U"}
        assert rename_attribute(small, **options, op_name="Relu")["renamed"] == 1
        assert "U" in small.main.nodes["out"].attr
        assert "T" in small.main.nodes["product"].attr
        small.main.nodes["out"].attr["T"].type = 1
        (skipped,) = rename_attribute(small, **options, op_name="Relu")["skipped"]
        assert skipped["node"] == "out"
        with pytest.raises(ValueError, match="new_attribute_name=''"):
            rename_attribute(small, old_attribute_name="T", new_attribute_name="")


class TestRenaming:
    def test_one_node(self, small):
        before = run(small)
        small.main.nodes["out"].attr["_class"].list.s.append(b"loc:@product")
        rename_node(small, old_node_name="product", new_node_name="twice/x")
        assert small.main.nodes["out"].input[0] == "twice/x"
        assert small.main.nodes["out"].attr["_class"].list.s[0] == b"loc:@twice/x"
        assert small.main.nodes["twice/x"].name == "twice/x"
        assert same(before, run(small))

    @pytest.mark.parametrize(
        ("old", "new", "message"),
        [
            ("nowhere", "y", "old_node_name='nowhere'"),
            ("x", "y", "by name"),
            ("out", "y", "by name"),
            ("product", "pass", "new_node_name='pass'"),
            ("product", "no name", "new_node_name='no name'"),
        ],
    )
    def test_names_that_cannot_be(self, small, old, new, message):
        with pytest.raises(ValueError, match=message):
            rename_node(small, old_node_name=old, new_node_name=new)

    def test_operations(self, small):
        apply(small, rename_op, old_op_name="Relu", new_op_name="Relu6")
        (found,) = run(small, {"x:0": 9 * X})
        np.testing.assert_array_equal(found, np.clip(18 * X, 0, 6))
        with pytest.raises(ValueError, match="old_op_name=''"):
            rename_op(small, old_op_name="", new_op_name="Relu")

    def test_operations_in_functions(self, branching):
        before = run(branching)
        apply(branching, rename_op, old_op_name="AddV2", new_op_name="Add")
        assert "AddV2" not in samples.all_ops(branching)
        assert same(before, run(branching))
        with pytest.raises(TfoptError, match="different names"):
            rename_op(branching, old_op_name="Identity", new_op_name="Relu")

    def test_obfuscation(self, branching):
        before = [run(branching), run(branching, {"x:0": X + 9})]
        functions = set(branching.functions)
        size = branching.to_graph_def().ByteSize()
        findings = apply(branching, obfuscate_names)
        assert findings["functions"] == len(functions)
        assert not functions & set(branching.functions)
        assert branching.to_graph_def().ByteSize() < size
        kept = {t.split(":")[0] for t in (*branching.inputs, *branching.outputs)}
        assert kept <= set(branching.main.nodes)
        longest = max(len(n) for n in branching.main.nodes.keys() - kept)
        assert longest <= 2
        assert same(before[0], run(branching))
        assert same(before[1], run(branching, {"x:0": X + 9}))


class TestRemoveControlDependencies:
    def test_assertions_go_with_them(self):
        with tf.Graph().as_default() as graph:
            x = v1.placeholder(tf.float32, [None, 3], "x")
            check = v1.assert_less(x, 100.0)
            with tf.control_dependencies([check]):
                tf.add(x, tf.constant(1.0), name="out")
        model = model_of(graph, ["out"])
        findings = apply(model, remove_control_dependencies)
        assert findings["removed"] >= 1
        assert findings["skipped"] == []
        assert samples.ops(model) == ["AddV2", "Const", "Placeholder"]
        assert same(run(model), [X + 1])

    def test_state_keeps_its_order(self):
        with tf.Graph().as_default() as graph:
            x = v1.placeholder(tf.float32, [None, 3], "x")
            count = v1.Variable(0.0, use_resource=True, trainable=False)
            with tf.control_dependencies([count.assign_add(1.0)]):
                tf.add(x, count.read_value(), name="out")
            init = v1.global_variables_initializer().name
        model = model_of(graph, ["out"], kept=[init])
        findings = apply(model, remove_control_dependencies)
        assert findings["skipped"]
        found = run(model, session_runs=3, setup=[init])
        np.testing.assert_array_equal(found[0], X + 3)
        # Negative control: without any, the counter isn't even counted up.
        for node in model.main:
            if node.name != init:
                model.main.set_inputs(node, model.main.inputs(node), ())
        found = run(model, session_runs=3, setup=[init])
        assert not np.array_equal(found[0], X + 3)

    def test_branches_and_loops_of_tf1(self):
        model = samples.looping()
        before = [run(model), run(model, {"x:0": X + 9})]
        apply(model, remove_control_dependencies)
        assert same(before[0], run(model))
        assert same(before[1], run(model, {"x:0": X + 9}))


class TestSortByExecutionOrder:
    @pytest.mark.parametrize("seed", range(3))
    def test_any_order(self, branching, seed):
        before = run(branching)
        random = np.random.default_rng(seed)
        for body in branching.bodies:
            names = random.permutation(list(body.nodes))
            body.nodes = {name: body.nodes[name] for name in names}
        assert not all(_is_sorted(body) for body in branching.bodies)
        assert apply(branching, sort_by_execution_order)["moved"] > 0
        assert all(_is_sorted(body) for body in branching.bodies)
        assert same(before, run(branching))

    def test_loops_of_tf1(self):
        model = samples.looping()
        before = run(model)
        names = list(model.main.nodes)[::-1]
        model.main.nodes = {name: model.main.nodes[name] for name in names}
        apply(model, sort_by_execution_order)
        assert _is_sorted(model.main)
        assert same(before, run(model))


def _is_sorted(body):
    seen = set(body.arguments)
    for name, node in body.nodes.items():
        sources = {ref.removeprefix("^").split(":")[0] for ref in node.input}
        if node.op == "Merge":
            sources = {s for s in sources if body.nodes[s].op != "NextIteration"}
        if not sources <= seen:
            return False
        seen.add(name)
    return True
