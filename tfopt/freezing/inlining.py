"""Replacing function calls by the functions' bodies, done by TensorFlow's Grappler.

Grappler sees the frozen graph with placeholders where the variables' constants are, so
no weight is loaded. The one part of freezing that needs the TensorFlow runtime.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf
from tensorflow.python.grappler import tf_optimizer

from tfopt.freezing import functions, rewrite
from tfopt.freezing.flow import producer
from tfopt.freezing.rewrite import Constant, Rewritten, shape_proto
from tfopt.freezing.sources import Source
from tfopt.freezing.state import State
from tfopt.savedmodel import protos
from tfopt.types import ConversionError


def inline(source: Source, graph: Rewritten, first: State) -> Rewritten:
    """Returns the graph with all plain calls replaced by what they call.

    Branches and loops stay functional, as do functions that operations on datasets
    and the like take.

    Args:
        source: The model, for its signatures; their tensors keep their names.
        graph: The frozen graph.
        first: The nodes that initialise and restore it.

    Raises:
        ConversionError: A constant is inside a function, or Grappler fails.
    """
    inside = [constant for constant in graph.constants if constant.function]
    if inside:
        raise ConversionError(
            "Cannot inline functions that make a variable themselves. Expected all "
            "variables in the graph itself; freeze without inline_functions. "
            f"Received: {inside[0].node!r} in function {inside[0].function!r}"
        )
    constants = {constant.node: constant for constant in graph.constants}
    model = tf.compat.v1.MetaGraphDef.FromString(
        _meta_graph(source, graph, first, constants).SerializeToString()
    )
    config = tf.compat.v1.ConfigProto()
    options = config.graph_options.rewrite_options
    options.min_graph_nodes = -1
    options.fail_on_optimizer_errors = True
    options.optimizers.append("function")
    # The newer pass renames functions and nodes after every call on the way.
    options.disable_tfg_optimizer = True
    try:
        optimized = tf_optimizer.OptimizeGraph(config, model)
    except (RuntimeError, ValueError, tf.errors.OpError) as error:
        raise ConversionError(
            "TensorFlow cannot inline the functions. Freeze without inline_functions. "
            f"Received: {source.where}: {error}"
        ) from error
    result = protos.message_class("GraphDef").FromString(optimized.SerializeToString())
    return _restore(result, constants)


def _meta_graph(
    source: Source, graph: Rewritten, first: State, constants: dict[str, Constant]
) -> Any:
    meta = protos.message_class("MetaGraphDef")()
    meta.graph_def.versions.CopyFrom(source.graph.versions)
    meta.graph_def.node.extend(graph.nodes)
    meta.graph_def.library.function.extend(graph.functions)
    for node in meta.graph_def.node:
        if node.name in constants:
            node.op = "Placeholder"
            node.attr["shape"].shape.CopyFrom(
                shape_proto(constants[node.name].value.shape)
            )
    functions.set_lowering_aside(meta.graph_def)
    for key, signature in source.signatures.items():
        meta.signature_def[key].CopyFrom(signature)
    wanted = [*source.entry_nodes]
    if first.init_op is not None:
        wanted.append(first.init_op)
    if first.saver_def is not None:
        wanted += [
            producer(first.saver_def.save_tensor_name),
            producer(first.saver_def.restore_op_name),
        ]
    meta.collection_def["train_op"].node_list.value.extend(dict.fromkeys(wanted))
    return meta


def _restore(graph: Any, constants: dict[str, Constant]) -> Rewritten:
    functions.restore_lowering(graph)
    found = []
    for node in graph.node:
        if node.name in constants:
            constant = constants[node.name]
            node.op = "Const"
            node.attr.pop("shape", None)
            found.append(constant)
    for nodes in functions.bodies(graph):
        rewrite.drop_dangling_colocation(nodes)
    return Rewritten(list(graph.node), functions.used_functions(graph), found)
