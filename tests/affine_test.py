import hypothesis
import hypothesis.extra.numpy
import numpy as np
import pytest
from hypothesis import strategies

from tfopt import affine

finite = strategies.floats(-1e6, 1e6, width=32)
bit_counts = strategies.integers(2, 8)


@strategies.composite
def kernels(draw, min_dims=1, max_dims=4):
    shapes = hypothesis.extra.numpy.array_shapes(
        min_dims=min_dims, max_dims=max_dims, max_side=5
    )
    return draw(hypothesis.extra.numpy.arrays(np.float32, shapes, elements=finite))


@strategies.composite
def ranges(draw):
    low, high = draw(strategies.floats(-1e4, 0)), draw(strategies.floats(0, 1e4))
    hypothesis.assume(high - low > 1e-3)
    return low, high


@hypothesis.given(kernels(min_dims=2), bit_counts)
def test_quantize_weights_matches_a_loop_over_channels(kernel, bits):
    codes, scale = affine.quantize_weights(kernel, bits=bits, channel_axes=(-1,))
    levels = 2 ** (bits - 1) - 1
    for channel in range(kernel.shape[-1]):
        weights = kernel[..., channel].astype(np.float64)
        peak = np.abs(weights).max()
        if peak == 0:
            assert not codes[..., channel].any()
        if peak < 1e-30:  # scales below float32's normal range
            continue
        exact = weights / peak * levels
        expected = np.round(np.round(exact) * 127 / levels)
        # Where float32 may round a tie the other way, either is right.
        clear = np.abs(np.abs(exact - np.trunc(exact)) - 0.5) > 1e-4
        assert np.array_equal(codes[..., channel][clear], expected[clear])
        np.testing.assert_allclose(scale[..., channel], peak / 127, rtol=1e-6)


@hypothesis.given(kernels(), bit_counts)
def test_weights_keep_zeros_signs_and_few_codes(kernel, bits):
    codes, scale = affine.quantize_weights(kernel, bits=bits)
    allowed = set(affine.symmetric_codes(bits).tolist())
    assert set(codes.ravel().tolist()) <= allowed
    assert len(allowed) == 2**bits - 1
    assert -128 not in allowed
    assert not codes[kernel == 0].any()
    assert np.all(codes * kernel >= 0)
    assert (scale > 0).all()


@hypothesis.given(kernels(), bit_counts)
def test_weight_error_is_at_most_half_a_step(kernel, bits):
    peak = float(np.abs(kernel).max())
    step = peak / (2 ** (bits - 1) - 1)
    rounded = affine.fake_quantize_weights(kernel, bits=bits)
    # Below 8 bits, a step lies up to half an int8 code off its place.
    slack = 0 if bits == 8 else peak / 127 / 2
    assert np.abs(rounded - kernel).max() <= step / 2 + slack + 1e-5 * peak + 1e-30


@hypothesis.given(kernels(), bit_counts)
def test_weights_on_the_grid_stay_there(kernel, bits):
    """What the TFLite converter does to baked weights: scale and codes again."""
    hypothesis.assume(np.abs(kernel).max() > 1e-30)
    codes, scale = affine.quantize_weights(kernel, bits=bits)
    baked = affine.dequantize(codes, scale)
    again, same_scale = affine.quantize_weights(baked)
    assert np.array_equal(again, codes)
    np.testing.assert_allclose(same_scale, scale, rtol=1e-6)


def test_depthwise_kernels_have_a_scale_per_output_channel():
    kernel = np.random.default_rng(0).normal(size=(3, 3, 4, 2)).astype(np.float32)
    scale = affine.symmetric_scale(kernel, channel_axes=(-2, -1))
    assert scale.shape == (1, 1, 4, 2)
    np.testing.assert_allclose(
        scale[0, 0], np.abs(kernel).max(axis=(0, 1)) / 127, rtol=1e-6
    )


@hypothesis.given(ranges())
def test_asymmetric_range_has_zero_and_covers_all_but_a_nudge(bounds):
    low, high = bounds
    scale, zero_point = affine.asymmetric_scale(low, high)
    assert -128 <= zero_point <= 127
    assert affine.quantize(0.0, scale, zero_point) == zero_point
    got_low, got_high = affine.representable_range(low, high)
    assert abs(got_low - low) <= scale * 0.501
    assert abs(got_high - high) <= scale * 0.501
    np.testing.assert_allclose(got_high - got_low, high - low, rtol=1e-6)


@hypothesis.given(ranges())
def test_a_nudged_range_is_a_fixed_point(bounds):
    nudged = affine.representable_range(*bounds)
    assert affine.asymmetric_scale(*nudged)[1] == affine.asymmetric_scale(*bounds)[1]
    np.testing.assert_allclose(affine.representable_range(*nudged), nudged, rtol=1e-6)


@hypothesis.given(ranges(), kernels())
def test_fake_quantize_matches_five_lines_of_numpy(bounds, values):
    low, high = bounds
    scale = (high - low) / 255
    zero_point = np.floor(-low / scale + 0.5) - 128
    exact = values.astype(np.float64) / scale + zero_point
    codes = np.clip(np.round(exact), -128, 127)
    clear = np.abs(np.abs(exact - np.trunc(exact)) - 0.5) > 1e-3
    got = affine.fake_quantize(values, minimum=low, maximum=high)
    np.testing.assert_allclose(
        got[clear], (scale * (codes - zero_point))[clear], rtol=1e-5, atol=scale * 1e-3
    )


def test_fake_quantize_check_notices_another_zero_point():
    """Negative control of the test above."""
    values = np.linspace(-1, 1, 50, dtype=np.float32)
    scale, zero_point = affine.asymmetric_scale(-1, 1)
    codes = affine.quantize(values, scale, zero_point)
    right = affine.fake_quantize(values, minimum=-1, maximum=1)
    assert np.array_equal(affine.dequantize(codes, scale, zero_point), right)
    wrong = affine.dequantize(codes, scale, zero_point + 1)
    assert np.abs(wrong - right).max() > float(scale) / 2


def test_dequantize_does_not_overflow_int8():
    assert affine.dequantize(np.int8([127]), 1.0, np.int8(-128)) == 255.0


@pytest.mark.parametrize(
    ("minimum", "maximum", "dtype"),
    [(-127, 127, np.int8), (0, 255, np.uint8), (-32767, 32767, np.int16)],
)
def test_quantize_clips_to_the_asked_codes(minimum, maximum, dtype):
    codes = affine.quantize([-1e9, 1e9], 1.0, minimum=minimum, maximum=maximum)
    assert codes.dtype == dtype
    assert codes.tolist() == [minimum, maximum]


def test_per_channel_round_trip_as_tflite_stores_it():
    kernel = np.random.default_rng(0).normal(size=(5, 2, 3)).astype(np.float32)
    codes, scale = affine.quantize_weights(kernel, channel_axes=(0,))
    broadcast = affine.broadcast_channels(scale.ravel(), 0, kernel.ndim)
    assert np.array_equal(broadcast, scale)
    assert np.abs(affine.dequantize(codes, broadcast) - kernel).max() <= scale.max() / 2


@pytest.mark.parametrize("bits", [1, 9, 4.0, "8"])
def test_bad_bits(bits):
    with pytest.raises(ValueError, match="bits="):
        affine.quantize_weights([1.0], bits=bits)


@pytest.mark.parametrize(
    "bounds", [(0, 0), (1, -1), (np.nan, 1), (0, np.inf), (0, 1e-60)]
)
def test_bad_range(bounds):
    with pytest.raises(ValueError, match="minimum="):
        affine.asymmetric_scale(*bounds)


def test_bad_weights_axes_and_scales():
    with pytest.raises(ValueError, match="1 of 2 infinite or NaN"):
        affine.quantize_weights([1.0, np.nan])
    with pytest.raises(ValueError, match="channel_axes="):
        affine.symmetric_scale(np.ones((2, 2)), channel_axes=(2,))
    with pytest.raises(ValueError, match="scale="):
        affine.quantize([1.0], 0.0)
    with pytest.raises(ValueError, match="minimum=5"):
        affine.quantize([1.0], 1.0, minimum=5, maximum=4)
