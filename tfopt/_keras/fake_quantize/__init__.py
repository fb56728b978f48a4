"""Layers of quantization-aware training, written once for Keras 3 and tf_keras.

`classes(keras)` gives those of one Keras; they are registered as serializable, so
that `.keras` files with them load once `tfopt.QuantizeAware` was imported
(`tfopt._keras.load` sees to that itself).

* `ActivationRange` follows the range of a tensor and fake-quantizes it;
* `FixedActivationRange` fake-quantizes with a range that is known;
* `BatchNormalization` can freeze its statistics;
* `Scheme` tells the converter what a finalized model was trained for;
* `KeepFloat` keeps the TFLite converter from quantizing what comes before it;
* `weighted[kind]`, a subclass of the Keras layer of that name, computes with
  fake-quantized weights while its variables stay float.

Reference:
    Jacob et al., Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference, CVPR 2018, section 3.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from tfopt._keras.fake_quantize import _activations, _weights

INT16_HEADROOM = _activations.INT16_HEADROOM
calibrating = _activations.calibrating
channel_axes = _weights.channel_axes
fake_quantize_weights = _weights.fake_quantize_weights
has_channel_scales = _weights.has_channel_scales
WEIGHTS = _weights.WEIGHTS

_PACKAGE = "tfopt"


@dataclasses.dataclass(frozen=True)
class Classes:
    """The layer classes of one Keras; `weighted` is by the name of the base class."""

    ActivationRange: type
    BatchNormalization: type
    FixedActivationRange: type
    KeepFloat: type
    Scheme: type
    weighted: Mapping[str, type]


@functools.cache
def classes(keras: Any) -> Classes:
    """Returns the layer classes for the module `keras` or `tf_keras`."""

    def make(name: str, *bases: type, **members: Any) -> type:
        made = type(name, bases, {"__module__": __name__, **members})
        return keras.saving.register_keras_serializable(_PACKAGE)(made)

    layers = keras.layers
    return Classes(
        **{
            name: make(name, getattr(_activations, name), layers.Layer)
            for name in (
                "ActivationRange",
                "FixedActivationRange",
                "KeepFloat",
                "Scheme",
            )
        },
        BatchNormalization=make(
            "QuantizedBatchNormalization",
            _activations.BatchNormalization,
            layers.BatchNormalization,
        ),
        weighted={
            kind: make(
                f"Quantized{kind}",
                _weights.QuantizedWeights,
                base := getattr(layers, kind),
                base_class=base,
                **{name: _weights.FakeQuantizedWeight(name) for name in names},
            )
            for kind, (names, _) in WEIGHTS.items()
        },
    )
