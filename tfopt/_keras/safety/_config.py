"""What is wrong with a Keras model's configuration, as JSON: code in it, or by name.

Reference: `deserialize_keras_object` in keras/src/saving/serialization_lib.py and in
tf_keras/src/saving/serialization_lib.py, whose ways to find classes are followed.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from tfopt._keras.safety import _functions

_CODE = "the layer {} holds Python code"
# Layers that are a program by themselves.
_PROGRAMS = {
    "TFSMLayer": "opens a SavedModel of its own",
    "TorchModuleWrapper": "holds pickled objects",
    "FlaxLayer": "holds Python code",
    "JaxLayer": "holds Python code",
}
# Options of the lookup layers that are the path of a file, if they are a string.
_FILES = ("vocabulary", "idf_weights", "vocabulary_file")
_LOOKUPS = frozenset({"IndexLookup", "IntegerLookup", "StringLookup"}) | {
    "TextVectorization",
}
_ROOTS = ("keras", "tf_keras")
# Wrappers that are taken off where TFMOT is, which is not here.
_TFMOT = re.compile(
    r"tensorflow_model_optimization\.python\.core\."
    r"(sparsity|quantization|clustering)\.[\w.]+"
)
_CLASS = re.compile(r"[A-Z]\w*")
# Values that Keras writes as if they were objects.
_VALUES = frozenset(
    {
        *("__bytes__", "__ellipsis__", "__keras_tensor__", "__numpy__", "__slice__"),
        *("__tensor__", "__tuple__", "CompositeTensor", "TensorShape", "TypeSpec"),
    }
)


def objection(config: Any, keras: Any) -> str:
    """Returns why a configuration must not be made a model, or "".

    Args:
        config: What `config.json` of a `.keras` file, `model_config` of an `.h5` file
            or an entry of `keras_metadata.pb` holds.
        keras: The module that is going to open it.
    """
    for item, layer in _objects(config):
        reason = _of_object(item, keras, layer)
        if reason:
            return reason
    return ""


def _objects(config: Any) -> Iterator[tuple[Mapping[str, Any], str]]:
    """Yields each dict of a configuration with the name of the layer that it is in."""
    waiting = [(config, "")]
    while waiting:
        item, layer = waiting.pop()
        if isinstance(item, list):
            waiting += [(value, layer) for value in reversed(item)]
        if not isinstance(item, dict):
            continue
        inner = item.get("config")
        if isinstance(inner, dict) and isinstance(inner.get("name"), str):
            layer = inner["name"]
        yield item, layer
        waiting += [(value, layer) for value in reversed(list(item.values()))]


def _of_object(item: Mapping[str, Any], keras: Any, layer: str) -> str:
    where = repr(layer)
    if any(value == "lambda" and key.endswith("_type") for key, value in item.items()):
        return _CODE.format(where)
    name = item.get("class_name")
    if name is None:
        return ""
    if not isinstance(name, str):
        return f"the layer {where} has a class that is no name"
    if name == "__lambda__":
        return _CODE.format(where)
    if name == "function":
        return _functions.of_function(item, keras, where)
    if name == "__typespec__":
        return _of_typespec(item, keras, where)
    if name in _VALUES:
        return ""
    return _of_class(item, name, keras, where)


def _of_class(item: Mapping[str, Any], name: str, keras: Any, where: str) -> str:
    if _functions.registered(item.get("registered_name", name), keras) is not None:
        return ""
    module = item.get("module")
    if module is None:  # Keras knows it by name, or refuses.
        return _by_kind(item, name, where)
    if not isinstance(module, str):
        return f"the layer {where} has a module that is no name"
    if _TFMOT.fullmatch(module) and _CLASS.fullmatch(name):
        return ""
    root = module.split(".", 1)[0]
    found: Any = (
        _functions.resolve(module, name, keras)
        if root in _ROOTS
        else getattr(sys.modules.get(module), name, None)
    )
    if not _is_keras_class(found):
        return (
            f"the layer {where} needs {module}.{name}, which is no class of Keras and "
            "is not registered (register a class of your own by "
            "keras.saving.register_keras_serializable)"
        )
    for cls in found.__mro__:
        reason = _by_kind(item, cls.__name__, where)
        if reason:
            return reason
    return ""


def _by_kind(item: Mapping[str, Any], name: str, where: str) -> str:
    """Judges what layers of a class can do by their options."""
    config = item.get("config")
    if name in _PROGRAMS:
        return f"the layer {where} ({name}) {_PROGRAMS[name]}"
    if not isinstance(config, dict):
        return ""
    if name in _LOOKUPS:
        files = [key for key in _FILES if isinstance(config.get(key), str)]
        if files:
            return f"the layer {where} reads the file {config[files[0]]!r}"
    if name == "Lambda" and isinstance(config.get("function"), list):
        return _CODE.format(where)
    return _functions.of_operation(name, config, where)


def _of_typespec(item: Mapping[str, Any], keras: Any, where: str) -> str:
    if _functions.registered(item.get("registered_name"), keras) is not None:
        return ""
    name, module = item.get("spec_name"), item.get("module")
    if isinstance(name, str) and isinstance(module, str):
        found = getattr(sys.modules.get(module), name, None)
        base = importlib.import_module("tensorflow").TypeSpec
        if isinstance(found, type) and issubclass(found, base):
            return ""
    return f"the layer {where} needs {module}.{name}, which is no tf.TypeSpec"


def _is_keras_class(found: Any) -> bool:
    """Whether it is a class of Keras, or derived from one, that a file can describe."""
    if not isinstance(found, type) or not hasattr(found, "from_config"):
        return False
    roots = {cls.__module__.split(".", 1)[0] for cls in found.__mro__}
    return bool(roots.intersection(_ROOTS))
