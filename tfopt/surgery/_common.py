"""What the rules for layers share."""

from __future__ import annotations

from tfopt._keras.flatten import Call, Value
from tfopt.surgery._structure import Layout, Refusal, Structure

# Activation functions that compute each value from itself alone.
_ELEMENTWISE = frozenset(
    {
        *("linear", "relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu"),
        *("silu", "swish", "sigmoid", "hard_sigmoid", "hard_silu", "hard_swish"),
        *("tanh", "hard_tanh", "tanh_shrink", "softplus", "softsign", "mish"),
        *("exponential", "log_sigmoid", "squareplus", "sparse_plus"),
        *("sparse_sigmoid", "soft_shrink", "hard_shrink", "threshold"),
    }
)


def single(call: Call) -> Value:
    """Returns the only tensor that a call takes."""
    if len(call.inputs) != 1:
        raise Refusal("is called with several tensors")
    return call.inputs[0]


def layout_of(structure: Structure, value: Value) -> Layout:
    """Returns where the channels of a value are."""
    if value not in structure.layouts:
        raise Refusal("takes a value without channels")
    return structure.layouts[value]


def channel_axis(call: Call) -> int:
    """Returns the axis that a layer's `data_format` says, of what it takes."""
    if call.layer.config.get("data_format") == "channels_first":
        return 1
    return len(call.inputs[0].shape or ()) - 1


def expect_weights(call: Call, *names: str) -> None:
    """Refuses a layer that has other weights than these, such as adapters."""
    others = set(call.layer.weight_names) - set(names)
    if others:
        raise Refusal(f"has weights of another kind, {sorted(others)}")


def check_elementwise(structure: Structure, call: Call) -> None:
    """Refuses an activation function that may look at several channels."""
    activation = call.layer.config["activation"]
    try:
        function = structure.graph.keras.activations.get(activation)
        name, module = function.__name__, function.__module__.split(".", 1)[0]
    except (ValueError, TypeError, AttributeError):
        name, module = "", ""
    if module not in ("keras", "tf_keras", "tensorflow") or name not in _ELEMENTWISE:
        raise Refusal(f"has the activation {activation!r}, which may mix channels")
