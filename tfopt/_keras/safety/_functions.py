"""Which functions a Keras file may name: those that compute, none that act."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Mapping
from typing import Any

from tfopt.savedmodel import outside

# Modules of either Keras, without its name, whose functions a model may use.
_MODULES = (
    *("activations", "constraints", "initializers", "losses", "metrics"),
    *("ops", "random", "regularizers"),
)
# tf_keras writes a TensorFlow function by its public name. Beside those of
# `operations`, whose arguments tfopt itself understands, all of these only compute.
_NAMESPACES = frozenset(
    {
        *("__operators__", "audio", "bitwise", "dtypes", "image", "linalg", "math"),
        *("nn", "quantization", "ragged", "random", "sets", "signal", "sparse"),
        "strings",
    }
)
_TOP_LEVEL = frozenset({"as_string", "constant", "convert_to_tensor", "edit_distance"})
_CODECS = re.compile(r"io\.(decode|deserialize|encode|parse|serialize)_\w+")
_CHECKS = re.compile(r"debugging\.(assert_\w+|check_numerics)")
# Those of the backend that change the process are no part of a model.
_BACKEND = re.compile(
    r"keras\.(activations|losses|metrics)\.\w+"
    r"|keras\.backend\.(?!clear_|disable_|enable_|manual_|reset_|set_)\w+"
)
_VERSION = re.compile(r"^compat\.v[12]\.")
# They take the path of a file.
_READERS = re.compile(r"unigram_candidate_sampler|io\.(de|en)code_proto")
_TENSORS = frozenset({"RaggedTensor", "SparseTensor", "sparse.SparseTensor"})
_MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


def of_function(item: Mapping[str, Any], keras: Any, where: str) -> str:
    """Returns why a function that a configuration names must not be used, or ""."""
    name, module = item.get("config"), item.get("module")
    if registered(name, keras) is not None:
        return ""
    if isinstance(name, str) and _is_public(name) and isinstance(module, str):
        if module == "builtins":
            parts = (getattr(keras, part, None) for part in _MODULES)
            if any(inspect.isfunction(getattr(part, name, None)) for part in parts):
                return ""
            # Keras up to 3.6 left the package out of a registered function's name.
            if any(
                key.endswith(f">{name}") for key in keras.saving.get_custom_objects()
            ):
                return ""
        elif _is_of_keras(resolve(module, name, keras)):
            return ""
    return (
        f"the layer {where} calls {module}.{name}, which is no function of Keras "
        "that computes and is not registered (register one of your own by "
        "keras.saving.register_keras_serializable)"
    )


def of_operation(name: str, config: Mapping[str, Any], where: str) -> str:
    """Returns why an operation that is a layer must not be used, or ""."""
    if name in ("TFOpLambda", "SlicingOpLambda"):
        function = config.get("function")
        if not isinstance(function, str) or not _is_computing(function):
            return (
                f"the layer {where} calls tf.{function}, which may do more than compute"
            )
    elif name == "ClassMethod":
        method, owner = config.get("method_name"), config.get("cls_symbol")
        if owner not in _TENSORS or not _is_public(method):
            return f"the layer {where} calls {owner}.{method}, which is not a tensor's"
    elif name in ("InstanceMethod", "InstanceProperty"):
        if not _is_public(config.get("attr_name")):
            return f"the layer {where} reads {config.get('attr_name')!r} of a tensor"
    elif name == "TensorFlowOpLayer":
        node = config.get("node_def")
        op = node.get("op") if isinstance(node, dict) else None
        if not isinstance(op, str) or outside.kind_of(op):
            return f"the layer {where} runs the operation {op}"
    return ""


def registered(name: Any, keras: Any) -> Any:
    """Returns the class or function that is registered by a name, if one is."""
    if not isinstance(name, str):
        return None
    return keras.saving.get_registered_object(name)


def resolve(module: str, name: str, keras: Any) -> Any:
    """Returns what a name in a module of Keras is; None if there is nothing."""
    root, _, rest = module.partition(".")
    if root not in ("keras", "tf_keras") or not _MODULE.fullmatch(module):
        return None
    found = keras
    for part in filter(None, rest.split(".")):
        found = getattr(found, part, None)
    if getattr(found, name, None) is not None:
        return getattr(found, name)
    if rest.startswith("_legacy"):  # what only tf.keras shows, in Keras 3
        return _legacy(f"keras.{rest}.{name}")
    try:  # modules of Keras that it does not import itself do nothing
        home = importlib.import_module(".".join(filter(None, (keras.__name__, rest))))
    except ImportError:
        return None
    return getattr(home, name, None)


def _legacy(name: str) -> Any:
    """Returns what Keras 3 exports under a name that is no module; None if nothing."""
    try:
        exported = importlib.import_module("keras.src.api_export")
        return exported.get_symbol_from_name(name)
    except (ImportError, AttributeError):
        return None


def _is_of_keras(found: Any) -> bool:
    """Whether it is a function that one of the modules that compute defines."""
    home = (getattr(found, "__module__", None) or "").split(".")
    is_inside = len(home) > 2 and home[1] == "src" and home[2] in _MODULES
    return inspect.isfunction(found) and home[0] in ("keras", "tf_keras") and is_inside


def _is_computing(name: str) -> bool:
    """Whether a public name of TensorFlow is of a function without side effects."""
    from tfopt._keras.operations import allowed

    short = _VERSION.sub("", name)
    if name in allowed() or short in allowed() or short in _TOP_LEVEL:
        return True
    if _READERS.search(short):
        return False
    patterns = (_BACKEND, _CODECS, _CHECKS)
    if any(pattern.fullmatch(short) for pattern in patterns):
        return True
    top, _, rest = short.partition(".")
    return bool(rest) and top in _NAMESPACES


def _is_public(name: Any) -> bool:
    return isinstance(name, str) and name.isidentifier() and not name.startswith("_")
