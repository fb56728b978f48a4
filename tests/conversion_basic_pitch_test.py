"""A network of the real world in every mode, beside the file that its authors ship.

basic-pitch (Spotify, ICASSP 2022): audio to notes, a SavedModel of TensorFlow 2.4's
time. Its first part computes a spectrogram, whose values span many orders of magnitude:
what the modes of few bits cannot hold stays float.
"""

import pathlib

import numpy as np
import pytest

from tfopt import conversion
from tfopt.runner import Runner

FOLDER = pathlib.Path(__file__).parent.parent / "testdata" / "basic_pitch"
SPECTROGRAM = ["*cq_t2010v2*", "*normalized_log*"]
# Mode, what else it takes, and the lowest signal-to-noise ratio in dB, about 6 dB below
# what it reaches.
MODES = [
    ("none", {}, 110),
    ("float16", {"min_sqnr": 25}, 25),
    ("dynamic", {}, 16),
    ("int8", {"keep_float": SPECTROGRAM}, 24),
    ("int16x8", {"allow_float_fallback": True, "min_sqnr": 5}, 5),
]


def clips(count):
    """Decaying tones in a little noise: float32 [count, 43844, 1]."""
    generator = np.random.default_rng(0)
    time = np.arange(43844) / 22050
    sounds = []
    for _ in range(count):
        sound = generator.normal(size=time.size) * 0.005
        for pitch in generator.uniform(80, 1500, 4):
            since = (time - generator.uniform(0, 1.5)) % 1
            loud = generator.uniform(0.05, 0.3)
            sound += loud * np.sin(2 * np.pi * pitch * time) * np.exp(-3 * since)
        sounds.append(sound)
    return np.array(sounds, np.float32)[..., np.newaxis]


@pytest.fixture(scope="module")
def sounds():
    return clips(2)


def run(model, sounds):
    with Runner(model, num_workers=1, num_threads=2, batch_size=1) as runner:
        return runner.run(sounds)


@pytest.fixture(scope="module")
def reference(sounds):
    return run(FOLDER / "reference.tflite", sounds)


def convert(sounds, quantization, **options):
    return conversion.convert_with_report(
        FOLDER / "saved_model",
        quantization=quantization,
        representative_dataset=sounds,
        **options,
    )


@pytest.mark.parametrize(
    ("mode", "options", "limit"),
    [
        pytest.param(*case, id=case[0], marks=[pytest.mark.slow] * (case is MODES[-1]))
        for case in MODES
    ],
)
def test_every_mode_is_verified(sounds, reference, mode, options, limit):
    check(convert(sounds, mode, **options), sounds, reference, limit)


def check(done, sounds, reference, limit):
    assert done.signature.inputs[0].name == "input_2"
    outputs = done.report["verification"]["outputs"]
    assert set(outputs) == {"note", "onset", "contour"}
    found = run(done.content, sounds)
    for name, expected in reference.items():
        assert outputs[name]["sqnr_db"] > limit
        noise = np.mean((found[name] - expected) ** 2) + 1e-20
        assert 10 * np.log10(np.mean(expected**2) / noise) > limit, name
        if done.report["quantization"] == "none":
            np.testing.assert_allclose(found[name], expected, rtol=0, atol=1e-5)
    # The control: another output of the same shape is far away.
    assert np.abs(found["note"] - reference["onset"]).max() > 0.1


def test_layers_have_the_names_of_the_saved_model():
    """Its function checks shapes, which keeps TensorFlow from inlining it."""
    done = conversion.convert_with_report(
        str(FOLDER / "saved_model"),
        quantization="dynamic",
        keep_float="model_1/conv2d_1",
        verify=False,
    )
    assert done.report["kept_float"]["layers"] == ["model_1/conv2d_1/Conv2D"]
