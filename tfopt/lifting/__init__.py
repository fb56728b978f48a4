"""Lifting: a SavedModel or frozen graph becomes a Keras model that can be trained."""

from __future__ import annotations

import logging
import os
import pathlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from tfopt import _keras, _trust
from tfopt._keras.flatten import to_model
from tfopt.lifting import _assembling, _checking, _covering, _opening
from tfopt.lifting._covering import Raw
from tfopt.types import TfoptError

_log = logging.getLogger(__name__)


def open_model(source: Any) -> Any:
    """Returns the Keras model that a model is, or is lifted to.

    Args:
        source: A Keras model, which is returned as it is; the path of a `.keras` or
            `.h5` file; or the path of a SavedModel directory, what
            `tf.saved_model.load` returns, or a function with a signature, which `lift`
            makes a Keras model.

    Raises:
        TfoptError: It is none of these, or cannot be read or lifted.
    """
    if _keras.is_model(source):
        return source
    if isinstance(source, (str, os.PathLike)) and not pathlib.Path(source).is_dir():
        if pathlib.Path(source).suffix in (".pb", ".pbtxt"):
            raise TfoptError(
                "A frozen graph doesn't say what its inputs and outputs are. Expected "
                "`tfopt.lift(path, inputs=[...], outputs=[...])`, and then the model "
                f"that it returns. Received: model={os.fspath(source)!r}"
            )
        return _keras.load(source)
    if isinstance(source, (str, os.PathLike)) or hasattr(source, "signatures"):
        return lift(source)
    if hasattr(source, "get_concrete_function"):  # a tf.function
        source = source.get_concrete_function()
    if hasattr(source, "structured_input_signature"):
        return lift(source)
    raise TfoptError(
        "Expected a Keras model of Keras 3 or tf_keras, the path of a .keras or .h5 "
        "file, or a SavedModel: its directory or what `tf.saved_model.load` returns. "
        f"Received: {type(source).__module__}.{type(source).__name__}"
    )


@_trust.with_safe_mode
def lift(
    source: Any,
    *,
    signature_key: str | None = None,
    tags: Collection[str] | None = None,
    inputs: Sequence[str] = (),
    outputs: Sequence[str] = (),
    input_shapes: Mapping[str, Sequence[int | None]] | None = None,
    keras: Any = None,
    verify_data: Mapping[str, Any] | None = None,
    safe_mode: bool = True,
) -> Any:
    """Makes a Keras model of a SavedModel or frozen graph, without its Python code.

    The model computes what the inference signature computes, which is checked, and
    can be trained, so that everything that works on Keras models (`prepare`, `Prune`,
    `QuantizeAware`, `remove_channels`, `convert`, ...) works on SavedModels. Groups of
    operations become the Keras layers that write them: convolutions, dense layers and
    their biases, normalizations, activations, pooling, and so on. Any other operation
    stays as it is, as a layer of its own.

    What the graph has forgotten stays forgotten: dropout, regularization and losses
    are not part of an inference graph. A BatchNormalization trains as usual: with the
    statistics of its batches, from which it goes on averaging its own. Where freezing
    has left only its factor and summand, the kernel before it has taken them up, or
    they are a layer that isn't trained. What was a variable is trainable, what
    was a constant of the graph isn't; in a frozen graph, which doesn't tell, kernels,
    biases, normalizations and tables are trainable. Layers are named after the graph's
    scopes, without what all have in common: `"block_conv"` for
    `"model/block/conv/Conv2D"`.

    Args:
        source: A SavedModel directory of TF1 or TF2, or the object that
            `tf.saved_model.load` returns; a ConcreteFunction; or a frozen GraphDef: the
            message, its bytes, a tf.Graph, or a `.pb` or `.pbtxt` file.
        signature_key: Signature of a SavedModel, by default `serving_default` or the
            only one.
        tags: Tag set of a SavedModel's graph, by default `{"serve"}`.
        inputs: Names of a GraphDef's input tensors.
        outputs: Names of a GraphDef's output tensors.
        input_shapes: Shapes of inputs by name, where the graph doesn't tell them or
            they should be others; `None` is a free size.
        keras: The module `keras` or `tf_keras`, by default what `tf.keras` is.
        verify_data: Arrays by input name on which model and graph are compared, by
            default random ones.
        safe_mode: Refuse model files that could run code, reach other files or the
            network. False opens and runs whatever they hold.

    Returns:
        Functional model, uncompiled. One input is taken as a tensor, several as a
        dictionary by the signature's names; so are the outputs returned.

    Raises:
        ValueError: An argument doesn't fit the source.
        TfoptError: The model cannot be read; or it has control flow, text, tables, a
            state, or channels first; the message names the operation.
        VerificationError: The model computes something else than the graph.

    Example:
        >>> student = lift("saved_model")
        >>> student.output_shape
        (None, 10)
    """
    network = _opening.open_network(
        source,
        signature_key=signature_key,
        tags=tags,
        inputs=inputs,
        outputs=outputs,
        input_shapes=input_shapes,
    )
    try:
        items = _covering.cover(network)
        assembled = _assembling.assemble(
            network, items, keras or _keras.preferred(), "lifted"
        )
        model = to_model(assembled.graph)
        _checking.check(network, assembled, model, verify_data)
    finally:
        network.release()
    raw = [item.operation for item in items if isinstance(item, Raw)]
    if raw:
        _log.info(
            "%d operations of the graph stay as they are: %s",
            len(raw),
            ", ".join(sorted({operation.type for operation in raw})),
        )
    return model
