"""Interoperability with TensorFlow Model Optimization; the only importer of TFMOT.

Importing TFMOT sets TF_USE_LEGACY_KERAS=1 for the whole process, and all its methods
need tf_keras models. So nothing here runs on `import`, and callers that must keep
Keras 3 for themselves call these functions in a child process.
"""

from __future__ import annotations

import importlib
import warnings
from typing import Any

from tfopt import _keras
from tfopt.types import TfoptError


def prune_low_magnitude(
    model: Any,
    *,
    initial_sparsity: float,
    final_sparsity: float,
    begin_step: int,
    end_step: int,
    frequency: int = 100,
) -> tuple[Any, list[Any]]:
    """Wraps a tf_keras model in TFMOT's pruning layers.

    Args:
        model: A built tf_keras Sequential or Functional model; it shares its
            variables with the result and ends up pruned too.
        initial_sparsity: Fraction of zeros at `begin_step`.
        final_sparsity: Fraction of zeros at `end_step`.
        begin_step: First step of TFMOT's PolynomialDecay.
        end_step: Last step of the schedule.
        frequency: Steps between two updates of the masks.

    Returns:
        The wrapped model, to be compiled and trained, and the callbacks that
        training it needs.

    Raises:
        TfoptError: The model is not a tf_keras model that TFMOT supports.

    Example:
        >>> wrapped, callbacks = prune_low_magnitude(
        ...     model, initial_sparsity=0.5, final_sparsity=0.8,
        ...     begin_step=0, end_step=1000)  # doctest: +SKIP
    """
    tfmot = _import_for(model)
    schedule = tfmot.sparsity.keras.PolynomialDecay(
        initial_sparsity=initial_sparsity,
        final_sparsity=final_sparsity,
        begin_step=begin_step,
        end_step=end_step,
        frequency=frequency,
    )
    wrapped = _call(
        "prune_low_magnitude",
        tfmot.sparsity.keras.prune_low_magnitude,
        model,
        pruning_schedule=schedule,
    )
    return wrapped, [tfmot.sparsity.keras.UpdatePruningStep()]


def strip_pruning(model: Any) -> Any:
    """Returns the model inside TFMOT's pruning wrappers.

    Raises:
        TfoptError: The model is not one that `prune_low_magnitude` wrapped.
    """
    tfmot = _import_for(model)
    return _call("strip_pruning", tfmot.sparsity.keras.strip_pruning, model)


def quantize_model(model: Any, *, preserve_sparsity: bool = False) -> Any:
    """Makes a tf_keras model quantization aware through TFMOT.

    Args:
        model: A built tf_keras Sequential or Functional model; not changed.
        preserve_sparsity: Keep the zeros of an already pruned model while training
            (TFMOT's "PQAT" scheme).

    Returns:
        The model to compile and train.

    Raises:
        TfoptError: The model is not a tf_keras model that TFMOT supports.
    """
    tfmot = _import_for(model)
    quantization = tfmot.quantization.keras
    if not preserve_sparsity:
        return _call("quantize_model", quantization.quantize_model, model)
    annotated = _call(
        "quantize_annotate_model", quantization.quantize_annotate_model, model
    )
    scheme = tfmot.experimental.combine.Default8BitPrunePreserveQuantizeScheme()
    return _call("quantize_apply", quantization.quantize_apply, annotated, scheme)


def write_plain(path: str, output: str) -> None:
    """Writes a model file without TFMOT's wrappers; meant for a child process.

    Args:
        path: A `.keras` or `.h5` file, or SavedModel, with TFMOT's wrappers.
        output: An `.h5` file for a model in pruning, whose wrappers are stripped; a
            directory, written as SavedModel with the signature `serving_default`, for
            one in quantization-aware training.

    Raises:
        TfoptError: TFMOT cannot load it.
    """
    tfmot, tf_keras = _import(), importlib.import_module("tf_keras")
    try:
        with (
            tfmot.sparsity.keras.prune_scope(),
            tfmot.quantization.keras.quantize_scope(),
        ):
            model = tf_keras.models.load_model(path, compile=False)
    except Exception as error:
        raise TfoptError(
            "TFMOT cannot load its own model. Expected an intact file; a model in "
            "quantization-aware training must be saved as .h5 or as SavedModel, since "
            f"TFMOT cannot read it back from .keras. Received: path={path!r} "
            f"({' '.join(str(error).split())[:300]})"
        ) from error
    if not output.endswith(".h5"):
        _export(model, output)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of an outdated format, which serves here
        _keras.save(strip_pruning(model), output)


def _export(model: Any, folder: str) -> None:
    import tensorflow as tf

    specs = [tf.TensorSpec(x.shape, x.dtype, name=x.name) for x in model.inputs]

    @tf.function(input_signature=[specs])
    def serve(inputs: Any) -> dict[str, Any]:
        outputs = model(inputs[0] if len(inputs) == 1 else inputs, training=False)
        return dict(zip(model.output_names, tf.nest.flatten(outputs), strict=True))

    tf.saved_model.save(model, folder, signatures={"serving_default": serve})


def _import_for(model: Any) -> Any:
    _keras.check_model(model)
    if _keras.is_keras3(model):
        raise TfoptError(
            "TFMOT works on tf_keras models only. Expected a tf_keras model; for "
            "Keras 3 use tfopt.Prune and tfopt.QuantizeAware. "
            f"Received: a Keras 3 model, name={model.name!r}"
        )
    return _import()


def _import() -> Any:
    try:
        return importlib.import_module("tensorflow_model_optimization")
    except ImportError as error:
        raise TfoptError(
            "Cannot import tensorflow_model_optimization. Expected it beside tfopt: "
            f"`pip install tensorflow-model-optimization`. Received: {error}"
        ) from error


def _call(name: str, function: Any, *args: Any, **kwargs: Any) -> Any:
    try:
        return function(*args, **kwargs)
    except Exception as error:
        raise TfoptError(
            f"TFMOT's {name} refused the model. Expected a model of layers that TFMOT "
            f"supports; tfopt's own methods take more. Received: {error}"
        ) from error
