"""The types that cross module borders."""

import dataclasses

import numpy as np
import pytest

from tfopt import types

IMAGE = types.TensorInfo("image", np.dtype(np.uint8), (None, 28, 28), (0.5,), (3,))
CLASSES = types.TensorInfo("classes", np.dtype(np.float32), None)


def test_tensors_and_signatures_are_readable():
    assert str(IMAGE) == "image: uint8 [?, 28, 28]"
    assert str(CLASSES) == "classes: float32 [?]"
    signature = types.Signature("serve", (IMAGE,), (CLASSES,))
    assert str(signature) == (
        "serve(image: uint8 [?, 28, 28]) -> (classes: float32 [?])"
    )


def test_a_tensor_knows_whether_it_is_quantized():
    assert IMAGE.is_quantized
    assert not CLASSES.is_quantized


def test_an_artifact_is_printed_as_one_line():
    artifact = types.Artifact("a.pb", "graph_def", 12_345, 678, "0" * 64)
    assert str(artifact) == "a.pb: graph_def, 12,345 bytes, 678 after gzip"


@pytest.mark.parametrize("value", [IMAGE, types.Signature("serve", (), ())])
def test_values_cannot_change(value):
    name = dataclasses.fields(value)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(value, name, "other")
    assert value == dataclasses.replace(value)


def test_every_error_is_a_tfopt_error():
    errors = [
        value
        for value in vars(types).values()
        if isinstance(value, type) and issubclass(value, Exception)
    ]
    assert len(errors) >= 3
    assert all(issubclass(error, types.TfoptError) for error in errors)
