"""GrapplerConfig: names and values, and its use in this process."""

import inspect
import json
import os
import subprocess
import sys

import pytest
import tensorflow as tf
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from tensorflow.core.protobuf import rewriter_config_pb2

from tfopt import GrapplerConfig
from tfopt.grappler import fields, registry

RewriterConfig = rewriter_config_pb2.RewriterConfig
CUSTOM = ("map_fusion", "noop_elimination")
# TensorFlow has the selector as a toggle alone.
UNKNOWN = ("implementation_selector", "remapper", "constant_folding", "NoSuch")


@pytest.fixture(scope="module", autouse=True)
def _answers():
    """Asks TensorFlow once for all names of these tests."""
    registry.ask([*registry.SWITCHES, *CUSTOM, *UNKNOWN])


def parameters():
    found = inspect.signature(GrapplerConfig).parameters.values()
    return [item for item in found if item.kind is item.KEYWORD_ONLY]


def test_the_keywords_are_the_fields_of_tensorflow():
    names = {item.name for item in parameters()}
    assert names == {field.name for field in RewriterConfig.DESCRIPTOR.fields}


@pytest.mark.parametrize("item", parameters(), ids=lambda item: item.name)
def test_the_annotations_list_the_values_of_tensorflow(item):
    field = RewriterConfig.DESCRIPTOR.fields_by_name[item.name]
    text = str(inspect.get_annotations(GrapplerConfig.__init__)[item.name])
    if field.enum_type is None:
        assert not text.startswith(("Toggle", "Memory", "CpuLayout", "Iterations"))
        return
    alias = text.split(" |")[0]
    listed = getattr(sys.modules["tfopt.grappler.config"], alias).__args__
    assert set(listed) == {value.name.lower() for value in field.enum_type.values}


def test_every_value_of_every_enum_is_taken_and_written():
    for field in RewriterConfig.DESCRIPTOR.fields:
        if field.enum_type is None:
            continue
        for value in field.enum_type.values:
            config = GrapplerConfig(**{field.name: value.name.lower()})
            assert getattr(config.to_proto(), field.name) == value.number


def test_a_full_configuration_survives_json_and_protos():
    config = GrapplerConfig(
        remapping="OFF",
        min_graph_nodes=-1,
        disable_model_pruning=True,
        memory_optimization="no_mem_opt",
        memory_optimizer_target_node_name_scope="gradients/",
        optimizers=["constfold", "pruning"],
        auto_parallel={"enable": True, "num_replicas": 3},
        scoped_allocator_opts='{"enable_op": ["CollectiveReduce"]}',
        custom_optimizers=[
            {"name": "map_fusion", "parameter_map": {"a": 1, "b": "x", "c": True}},
            "noop_elimination",
        ],
    )
    again = GrapplerConfig.from_config(json.loads(json.dumps(config.get_config())))
    assert again == config
    assert hash(again) == hash(config)
    assert GrapplerConfig.from_proto(config.to_proto()) == config
    assert eval(repr(config)) == config
    proto = config.to_proto()
    assert proto.remapping == RewriterConfig.OFF
    assert proto.custom_optimizers[0].parameter_map["b"].s == b"x"
    assert proto.auto_parallel.num_replicas == 3
    assert config != config.replace(remapping="on")
    assert config != "config"


def test_defaults_say_nothing():
    assert GrapplerConfig(remapping="default") == GrapplerConfig()
    assert GrapplerConfig().get_config() == {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"remaping": "on"}, "Did you mean remapping.*remaping='on'"),
        ({"remapping": "onn"}, "Did you mean on.*remapping='onn'"),
        ({"remapping": True}, "aggressive.*remapping=True"),
        ({"disable_model_pruning": "on"}, "True or False.*disable_model_pruning"),
        ({"min_graph_nodes": 1 << 40}, "2147483647.*min_graph_nodes"),
        ({"min_graph_nodes": 2.5}, "an integer.*min_graph_nodes"),
        ({"meta_optimizer_timeout_ms": True}, "an integer.*timeout_ms"),
        ({"memory_optimizer_target_node_name_scope": 3}, "a string.*scope"),
        ({"optimizers": "pruning"}, "a list.*optimizers"),
        ({"optimizers": ["remapper"]}, r"Did you mean remap.*\['remapper'\]"),
        ({"optimizers": ["constant_folding"]}, "Expected 'constfold'"),
        ({"optimizers": [""]}, "no such optimizer"),
        ({"custom_optimizers": ["remap"]}, "use `optimizers`.*custom_optimizers"),
        ({"custom_optimizers": ["NoSuch"]}, "no such optimizer.*NoSuch"),
        ({"custom_optimizers": [3]}, "a dictionary.*custom_optimizers=3"),
        ({"auto_parallel": {"enabled": True}}, "Did you mean enable.*auto_parallel"),
        ({"auto_parallel": "{x"}, "JSON.*auto_parallel"),
        (
            {"custom_optimizers": [{"name": "map_fusion", "parameter_map": {"a": []}}]},
            r"AttrValue.*parameter_map.a=\[\]",
        ),
    ],
)
def test_what_tensorflow_would_ignore_raises(options, message):
    with pytest.raises(ValueError, match=message):
        GrapplerConfig(**options)


def test_names_of_optimizers_are_those_of_tensorflow():
    verdicts = registry.ask([*registry.SWITCHES, *CUSTOM, *UNKNOWN])
    for names, verdict in (
        (registry.SWITCHES, "Registered default"),
        (CUSTOM, "Registered custom"),
        (UNKNOWN, "Can't register"),
    ):
        assert {name: verdicts[name] for name in names} == dict.fromkeys(names, verdict)
    for name, (field, off) in registry.SWITCHES.items():
        assert GrapplerConfig(**{field: off}).get_config() or name == "autoparallel"


def test_a_field_of_a_newer_tensorflow_needs_no_edit():
    pool = descriptor_pool.DescriptorPool()
    file = descriptor_pb2.FileDescriptorProto(name="new.proto", package="new")
    message = file.message_type.add(name="Config")
    enum = message.enum_type.add(name="Kind")
    for number, name in enumerate(("DEFAULT", "BRAND_NEW")):
        enum.value.add(name=name, number=number)
    message.field.add(
        name="new_kind", number=1, type=14, label=1, type_name=".new.Config.Kind"
    )
    message.field.add(name="new_size", number=2, type=13, label=1)
    pool.AddSerializedFile(file.SerializeToString())
    cls = message_factory.GetMessageClass(pool.FindMessageTypeByName("new.Config"))
    config = cls()
    fields.write(config, "new_kind", "brand_new")
    fields.write(config, "new_size", fields.parse(config, "new_size", "7"))
    assert fields.read(config) == {"new_kind": "brand_new", "new_size": 7}
    with pytest.raises(ValueError, match="from 0 to 4294967295"):
        fields.write(config, "new_size", -1)


def test_presets():
    assert GrapplerConfig.preset("default") == GrapplerConfig()
    assert GrapplerConfig.preset("bfloat16").reduces_precision
    assert not GrapplerConfig.preset("lossless").reduces_precision
    assert GrapplerConfig(optimizers=["auto_mixed_precision_cpu"]).reduces_precision
    assert not GrapplerConfig(auto_mixed_precision_mkl="off").reduces_precision
    with pytest.raises(ValueError, match="Did you mean lossless"):
        GrapplerConfig.preset("losless")


def test_session_config():
    config = GrapplerConfig(constant_folding="aggressive", optimizers=["pruning"])
    options = config.to_session_config().graph_options.rewrite_options
    assert options == config.to_proto()
    assert options.constant_folding == RewriterConfig.AGGRESSIVE


def executed_ops(function, *arguments):
    """Returns the operations that a call of a tf.function ran."""
    from tensorflow.python.eager import context

    context.enable_run_metadata()
    try:
        function(*arguments)
        metadata = context.export_run_metadata()
    finally:
        context.disable_run_metadata()
    return [node.op for graph in metadata.partition_graphs for node in graph.node]


def test_apply_optimizes_functions_and_restores():
    @tf.function
    def function(x):
        return tf.nn.relu(x * tf.constant(2.0) * tf.constant(3.0) + 1.0)

    x = tf.ones([3])
    before = tf.config.optimizer.get_experimental_options()
    with GrapplerConfig(disable_meta_optimizer=True).apply():
        plain = executed_ops(function, x)
    with GrapplerConfig(remapping="off", min_graph_nodes=-1).apply():
        now = tf.config.optimizer.get_experimental_options()
        folded = executed_ops(function, x)
    assert now["remapping"] is False
    assert now["min_graph_nodes"] == -1
    assert plain.count("Mul") == 2
    assert folded.count("Mul") == 1
    assert tf.config.optimizer.get_experimental_options() == before


def fail_inside(config, seen):
    with config.apply():
        seen.update(tf.config.optimizer.get_experimental_options())
        raise ZeroDivisionError


def test_apply_restores_the_users_options_after_an_error():
    user = {"constant_folding": False, "disable_meta_optimizer": True}
    clean = tf.config.optimizer.get_experimental_options()
    try:
        tf.config.optimizer.set_experimental_options(user)
        before = tf.config.optimizer.get_experimental_options()
        inside = {}
        with pytest.raises(ZeroDivisionError):
            fail_inside(GrapplerConfig(remapping="on"), inside)
        assert tf.config.optimizer.get_experimental_options() == before
    finally:
        reset = dict.fromkeys(user)
        tf.config.optimizer.set_experimental_options(reset)
    # Inside, it was this configuration and nothing else.
    assert inside["remapping"] is True
    assert "constant_folding" not in inside
    assert inside["disable_meta_optimizer"] is False
    assert tf.config.optimizer.get_experimental_options() == clean


@pytest.mark.parametrize(
    "options",
    [
        {"optimizers": ["pruning"]},
        {"remapping": "aggressive"},
        {"meta_optimizer_iterations": "two"},
        {"common_subgraph_elimination": "off"},
    ],
)
def test_apply_names_what_tf_config_cannot_express(options):
    before = tf.config.optimizer.get_experimental_options()
    config = GrapplerConfig(constant_folding="off", **options)
    with pytest.raises(ValueError, match=f"to_session_config.*{next(iter(options))}"):
        config.apply().__enter__()
    assert tf.config.optimizer.get_experimental_options() == before


def test_a_configuration_needs_no_tensorflow():
    code = (
        "import sys\nfor n in ('tensorflow', 'keras'): sys.modules[n] = None\n"
        "from tfopt.grappler.config import GrapplerConfig\n"
        "print(GrapplerConfig(remapping='off', optimizers=['pruning']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "remapping='off'" in done.stdout
