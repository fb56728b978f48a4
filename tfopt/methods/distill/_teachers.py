"""Teachers of every kind as functions that run inside a training step."""

from __future__ import annotations

import dataclasses
import logging
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfopt import _keras
from tfopt._keras import foreign, inference
from tfopt.savedmodel import outside
from tfopt.types import TfoptError

_log = logging.getLogger(__name__)

# Half of the smallest positive number that a float of the type can be, or so.
_FLOORS = {"float16": 2.0**-25, "float64": 1e-30, "float32": 1e-30, "bfloat16": 1e-30}
_NUMBERED = re.compile(r"output_\d+")


@dataclasses.dataclass(frozen=True)
class Outputs:
    """Tensors that a model returned.

    Attributes:
        tensors: In order; a dictionary's in the order of its sorted keys.
        names: One each; None where the model names none.
        by_name: Whether only the names say which is which.
    """

    tensors: list[Any]
    names: list[str] | None
    by_name: bool

    @classmethod
    def of(cls, structure: Any, names: Sequence[str] | None = None) -> Outputs:
        """Takes a structure apart.

        Args:
            structure: A tensor, or a list or dictionary of them.
            names: Those of a list.
        """
        if isinstance(structure, Mapping):
            keys = sorted(structure)
            if all(not tf.nest.is_nested(structure[key]) for key in keys):
                return cls([structure[key] for key in keys], keys, True)
        tensors = tf.nest.flatten(structure)
        known = list(names) if names and len(names) == len(tensors) else None
        return cls(tensors, known, False)

    def matched(self, other: Outputs, wanted: Sequence[int]) -> list[Any]:
        """Returns another model's tensors for some of these, in their order.

        Raises:
            TfoptError: Neither names nor positions say which they are.
        """
        if len(self.tensors) == len(other.tensors) == 1:
            return list(other.tensors)
        same_count = len(self.tensors) == len(other.tensors)
        numbered = all(_NUMBERED.fullmatch(name) for name in other.names or ("",))
        if same_count and not self.by_name and (not other.by_name or numbered):
            return [_numbered_order(other)[index] for index in wanted]
        if self.names is not None and other.names is not None:
            found = dict(zip(other.names, other.tensors, strict=True))
            names = [self.names[index] for index in wanted]
            if all(name in found for name in names):
                return [found[name] for name in names]
        raise TfoptError(
            "The outputs of the teacher and of the student cannot be matched. Expected "
            "as many, in lists; or the same names, in dictionaries. Received: "
            f"teacher's outputs {other.names or len(other.tensors)}, "
            f"student's outputs {self.names or len(self.tensors)}"
        )


class KerasTeacher:
    """A Keras model of either version, in inference mode.

    Attributes:
        label: What reports call it.
        model: The model.
        floor: Half of the smallest positive probability that it gives.
        is_compilable: Whether XLA can compile it.
    """

    is_compilable = True

    def __init__(self, model: Any, label: str = ""):
        _keras.check_model(model)
        self.model = model
        keras = _keras.module_of(model).__name__
        which = "Keras 3" if keras == "keras" else keras
        self._structure = _input_structure(model)
        self.label = f"{label or model.name} ({which} model)"
        self.floor = _FLOORS.get(str(model.compute_dtype), 1e-30)

    def __call__(self, x: Any, input_names: Sequence[str | None]) -> Outputs:
        """Returns the outputs for one batch."""
        names = getattr(self.model, "output_names", None)
        x = _in_structure(x, self._structure, input_names)
        return Outputs.of(self.model(x, training=False), names)

    @property
    def variables(self) -> list[Any]:
        """The variables that must not be the student's."""
        return list(self.model.variables)


class SavedModelTeacher:
    """A SavedModel directory's signature."""

    is_compilable = True
    floor = 1e-30
    model: Any = None

    def __init__(self, path: pathlib.Path):
        self.label = f"{path} (SavedModel)"
        outside.check_file(path, "run")
        with foreign.plain(path) as plain:
            try:
                self._loaded = tf.saved_model.load(os.fspath(plain))
            except Exception as error:
                raise TfoptError(
                    "Cannot load the teacher. Expected a SavedModel directory. "
                    f"Received: teacher={os.fspath(path)!r} ({error})"
                ) from error
        signatures = dict(self._loaded.signatures)
        key = next(iter(signatures)) if len(signatures) == 1 else "serving_default"
        if key not in signatures:
            raise TfoptError(
                'The teacher has no signature "serving_default". Expected one. '
                f"Received: teacher={os.fspath(path)!r} with {sorted(signatures)}"
            )
        self._signature = signatures[key]
        self.specs: dict[str, tf.TensorSpec] = dict(
            self._signature.structured_input_signature[1]
        )

    def __call__(self, x: Any, input_names: Sequence[str | None]) -> Outputs:
        """Returns the outputs for one batch."""
        given = _by_name(x, list(self.specs), input_names, self.label)
        tensors = {
            name: tf.cast(value, self.specs[name].dtype)
            for name, value in given.items()
        }
        return Outputs.of(self._signature(**tensors))

    @property
    def variables(self) -> list[Any]:
        """None that a Keras model could share."""
        return []


class TfliteTeacher:
    """A `.tflite` file, run by LiteRT outside of TensorFlow's graph."""

    is_compilable = False
    model: Any = None

    def __init__(self, path: pathlib.Path):
        from tfopt.runner import Runner  # only here is LiteRT needed

        self.label = f"{path} (.tflite)"
        self._runner = Runner(path)
        signature = self._runner.signature
        self.specs = {
            info.name: tf.TensorSpec(
                info.shape, tf.float32 if info.is_quantized else info.dtype, info.name
            )
            for info in signature.inputs
        }
        self._outputs = sorted(signature.outputs, key=lambda info: info.name)
        # Integer kernels give probabilities in steps of 1/256.
        self.floor = 2.0**-9 if _is_integer(path) else 1e-30

    def __call__(self, x: Any, input_names: Sequence[str | None]) -> Outputs:
        """Returns the outputs for one batch."""
        given = _by_name(x, list(self.specs), input_names, self.label)
        tensors = [tf.cast(given[name], self.specs[name].dtype) for name in self.specs]
        # Runner's threads need the interpreter's lock while this one waits for them;
        # waiting gives it up.
        found = tf.numpy_function(
            self._run, tensors, [tf.float32] * len(self._outputs), stateful=False
        )
        found = tf.nest.flatten(found)  # eagerly, one comes as it is
        batch = tensors[0].shape[0]
        for tensor, info in zip(found, self._outputs, strict=True):
            shape = info.shape and (batch, *info.shape[1:])
            tensor.set_shape(shape)
        names = [info.name for info in self._outputs]
        return Outputs.of(dict(zip(names, found, strict=True)))

    def _run(self, *arrays: np.ndarray) -> list[np.ndarray]:
        found = self._runner.run(dict(zip(self.specs, arrays, strict=True)))
        if not isinstance(found, Mapping):
            found = {self._outputs[0].name: found}
        return [np.asarray(found[info.name], np.float32) for info in self._outputs]

    @property
    def variables(self) -> list[Any]:
        """None."""
        return []


Teacher = KerasTeacher | SavedModelTeacher | TfliteTeacher


def load(teacher: Any) -> Teacher:
    """Returns the teacher that a model is, or a path names.

    Args:
        teacher: A built Keras model, or the path of a `.keras` or `.h5` file, of a
            SavedModel directory or of a `.tflite` file.

    Raises:
        TfoptError: It cannot be loaded.
    """
    if _keras.is_model(teacher):
        return KerasTeacher(teacher)
    path = pathlib.Path(teacher)
    if path.is_dir():
        return SavedModelTeacher(path)
    if path.suffix == ".tflite":
        return TfliteTeacher(path)
    if path.suffix in _keras.SUFFIXES:
        return KerasTeacher(_keras.load(path), str(path))
    raise TfoptError(
        "Unknown kind of teacher. Expected a Keras model, or the path of a .keras, .h5 "
        f"or .tflite file or of a SavedModel directory. Received: teacher={teacher!r}"
    )


def probe(teacher: Teacher) -> Outputs | None:
    """Returns for each output what values for random inputs show it to be.

    In place of tensors, there is `"softmax"` where all sum to one, `"sigmoid"` where
    they stay within 0 and 1, else None. None as a whole where nothing could be run.
    """
    try:
        with tf.init_scope():  # also from within a function that is being traced
            seen = [_run_randomly(teacher, scale) for scale in (0.1, 1.0, 10.0)]
    except Exception as error:
        _log.info("Cannot try %s on random inputs: %s", teacher.label, error)
        return None
    rows = [
        np.concatenate([_as_rows(tensor) for tensor in tensors])
        for tensors in zip(*(outputs.tensors for outputs in seen), strict=True)
    ]
    return dataclasses.replace(seen[0], tensors=[_form_of(each) for each in rows])


def _run_randomly(teacher: Teacher, scale: float) -> Outputs:
    rng = np.random.default_rng(0)

    def random(spec: tf.TensorSpec) -> tf.Tensor:
        return _random(rng, spec, scale)

    if isinstance(teacher, KerasTeacher):
        arguments = inference.inference_call(teacher.model).arguments
        (x,) = tf.nest.map_structure(random, arguments)
        return teacher(x, ())
    return teacher({name: random(spec) for name, spec in teacher.specs.items()}, ())


def _as_rows(tensor: Any) -> np.ndarray:
    values = np.asarray(tensor, np.float32)
    return values.reshape(-1, values.shape[-1] if values.ndim > 1 else 1)


def _random(rng: np.random.Generator, spec: tf.TensorSpec, scale: float) -> tf.Tensor:
    shape = [16 if size is None else size for size in spec.shape]
    if spec.dtype.is_floating:
        return tf.constant(scale * rng.normal(size=shape), spec.dtype)
    return tf.cast(tf.constant(rng.integers(0, 2, shape)), spec.dtype)


def _form_of(rows: np.ndarray) -> str | None:
    if not np.isfinite(rows).all() or rows.min() < -1e-3 or rows.max() > 1 + 1e-3:
        return None
    sums = rows.sum(1)
    # Of 8-bit values each may be off by half a step.
    if rows.shape[1] > 1 and np.abs(sums - 1).max() < 2e-3 * (rows.shape[1] + 1):
        return "softmax"
    return "sigmoid"


def _input_structure(model: Any) -> Any:
    """Returns what a model takes as its first argument; None where not known."""
    try:
        return inference.inference_call(model).arguments[0]
    except ValueError:
        return None


def _in_structure(x: Any, structure: Any, names: Sequence[str | None]) -> Any:
    """Returns a student's inputs as a Keras model declares its own."""
    leaves = tf.nest.flatten(x)
    if structure is None or len(leaves) != len(tf.nest.flatten(structure)):
        return x
    if len(leaves) == 1:
        return tf.nest.pack_sequence_as(structure, leaves)
    named = isinstance(structure, Mapping) and not isinstance(x, Mapping)
    if named and set(names) == set(structure):
        return dict(zip(names, leaves, strict=True))
    return x  # Keras takes a dictionary where a list is declared


def _by_name(
    x: Any, wanted: list[str], names: Sequence[str | None], label: str
) -> dict[str, Any]:
    """Returns the tensors of a student's inputs by a teacher's names."""
    leaves = tf.nest.flatten(x)
    if len(wanted) == len(leaves) == 1:
        return {wanted[0]: leaves[0]}
    if isinstance(x, Mapping):
        found = dict(x)
    elif len(names) == len(leaves):
        found = dict(zip(names, leaves, strict=True))
    else:
        found = {}
    if not set(wanted) <= set(found):
        raise TfoptError(
            "The teacher's inputs have other names than the student's. Expected the "
            f"same. Received: {wanted} of teacher={label}, "
            f"{sorted(map(str, found)) or len(leaves)} of the student"
        )
    return {name: found[name] for name in wanted}


def _numbered_order(outputs: Outputs) -> list[Any]:
    """Returns tensors in order, `output_10` after `output_9`."""
    if not outputs.by_name or outputs.names is None:
        return outputs.tensors
    named = dict(zip(outputs.names, outputs.tensors, strict=True))
    return [named[name] for name in sorted(named, key=lambda n: int(n[7:]))]


def _is_integer(path: pathlib.Path) -> bool:
    """Whether the kernels of a file compute on 8-bit integers."""
    from tfopt import tflite_file

    file = tflite_file.read(path)
    return any(
        operator.name in ("SOFTMAX", "LOGISTIC")
        and subgraph.tensors[operator.outputs[0]].type in ("INT8", "UINT8")
        for subgraph in file.subgraphs
        for operator in subgraph.operators
    )
