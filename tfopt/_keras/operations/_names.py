"""The TensorFlow functions that a saved operation may name, and their names.

A model file is data, so what it names is looked up here and never evaluated: array,
neural network and arithmetic functions without state, files, strings or Python code.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

from tfopt.types import TfoptError

_TOP = """
    argsort batch_to_space bitcast boolean_mask broadcast_dynamic_shape
    broadcast_static_shape broadcast_to cast clip_by_norm clip_by_value concat cumsum
    einsum ensure_shape expand_dims eye fill gather gather_nd grad_pass_through
    identity identity_n linspace meshgrid norm one_hot ones ones_like pad range rank
    repeat reshape reverse reverse_sequence roll scatter_nd searchsorted
    sequence_mask shape shape_n size slice sort space_to_batch split squeeze stack
    stop_gradient strided_slice tensor_scatter_nd_add tensor_scatter_nd_max
    tensor_scatter_nd_min tensor_scatter_nd_sub tensor_scatter_nd_update tensordot
    tile transpose unique unstack where zeros zeros_like
"""
_MATH = """
    abs accumulate_n acos acosh add add_n angle argmax argmin asin asinh atan atan2
    atanh bincount ceil conj cos cosh count_nonzero cumprod cumsum
    cumulative_logsumexp divide divide_no_nan equal erf erfc erfinv exp expm1 floor
    floordiv floormod greater greater_equal imag in_top_k invert_permutation
    is_finite is_inf is_nan is_non_decreasing is_strictly_increasing l2_normalize
    less less_equal lgamma log log1p log_sigmoid log_softmax logical_and logical_not
    logical_or logical_xor maximum minimum mod multiply multiply_no_nan ndtri negative
    nextafter not_equal pow real reciprocal reciprocal_no_nan reduce_all reduce_any
    reduce_euclidean_norm reduce_logsumexp reduce_max reduce_mean reduce_min
    reduce_prod reduce_std reduce_sum reduce_variance rint round rsqrt scalar_mul
    segment_max segment_mean segment_min segment_prod segment_sum sigmoid sign sin
    sinh sobol_sample softmax softplus softsign sqrt square squared_difference
    subtract tan tanh top_k truediv unsorted_segment_max unsorted_segment_mean
    unsorted_segment_min unsorted_segment_prod unsorted_segment_sqrt_n
    unsorted_segment_sum xdivy xlog1py xlogy zero_fraction
"""
_NN = """
    atrous_conv2d atrous_conv2d_transpose avg_pool avg_pool1d avg_pool2d avg_pool3d
    batch_norm_with_global_normalization batch_normalization bias_add conv1d
    conv1d_transpose conv2d conv2d_transpose conv3d conv3d_transpose conv_transpose
    convolution crelu depth_to_space depthwise_conv2d dilation2d elu embedding_lookup
    erosion2d gelu l2_loss leaky_relu local_response_normalization log_softmax
    max_pool max_pool1d max_pool2d max_pool3d moments normalize_moments pool relu
    relu6 selu separable_conv2d sigmoid silu softmax softplus softsign space_to_depth
    sufficient_statistics swish tanh weighted_moments with_space_to_batch
    zero_fraction
"""
_LINALG = """
    adjoint band_part cross det diag diag_part einsum eye global_norm
    l2_normalize matmul matrix_transpose matvec norm normalize set_diag tensordot
    trace
"""
_IMAGE = """
    adjust_brightness adjust_contrast central_crop convert_image_dtype
    crop_to_bounding_box extract_patches flip_left_right flip_up_down
    grayscale_to_rgb image_gradients pad_to_bounding_box per_image_standardization
    resize resize_with_crop_or_pad resize_with_pad rgb_to_grayscale rot90
    sobel_edges transpose
"""
_QUANTIZATION = """
    fake_quant_with_min_max_args fake_quant_with_min_max_vars
    fake_quant_with_min_max_vars_per_channel quantize_and_dequantize_v2
"""
_SIGNAL = "dct fft fft2d frame hann_window idct irfft mdct overlap_and_add rfft"
_OPERATORS = "add getitem"
_RAW = """
    Abs Acos Acosh Add AddN AddV2 All Angle Any ArgMax ArgMin Asin Asinh Atan Atan2
    Atanh AvgPool AvgPool3D BatchMatMul BatchMatMulV2 BatchMatMulV3 BatchToSpace
    BatchToSpaceND Betainc BiasAdd BiasAddV1 Bincount Bitcast BitwiseAnd BitwiseOr
    BitwiseXor BroadcastArgs BroadcastTo Bucketize Cast Ceil Cholesky ClipByValue
    CombinedNonMaxSuppression Complex ComplexAbs Concat ConcatOffset ConcatV2 Conj
    ConjugateTranspose Conv2D Conv2DBackpropInput Conv3D Conv3DBackpropInputV2 Cos
    Cosh CropAndResize Cross Cumprod Cumsum CumulativeLogsumexp DataFormatDimMap
    DataFormatVecPermute DenseBincount DepthToSpace DepthwiseConv2dNative
    DepthwiseConv2dNativeBackpropInput Dequantize Diag DiagPart Digamma Dilation2D
    Div DivNoNan DynamicPartition DynamicStitch Einsum Elu EnsureShape Equal Erf Erfc
    Erfinv EuclideanNorm Exp ExpandDims Expm1 ExtractImagePatches
    ExtractVolumePatches FFT FFT2D FFT3D FakeQuantWithMinMaxArgs
    FakeQuantWithMinMaxVars FakeQuantWithMinMaxVarsPerChannel Fill Floor FloorDiv
    FloorMod FusedBatchNorm FusedBatchNormV2 FusedBatchNormV3 Gather GatherNd
    GatherV2 Greater GreaterEqual HSVToRGB IFFT IFFT2D IFFT3D IRFFT IRFFT2D IRFFT3D
    Identity IdentityN Igamma Igammac Imag InTopKV2 Inv Invert InvertPermutation
    IsFinite IsInf IsNan L2Loss LRN LeakyRelu LeftShift Less LessEqual Lgamma
    LinSpace ListDiff Log Log1p LogSoftmax LogicalAnd LogicalNot LogicalOr LowerBound
    MatMul MatrixBandPart MatrixDeterminant MatrixDiag MatrixDiagPart
    MatrixDiagPartV2 MatrixDiagPartV3 MatrixDiagV2 MatrixDiagV3 MatrixInverse
    MatrixSetDiag MatrixSetDiagV2 MatrixSetDiagV3 MatrixSolve Max MaxPool MaxPool3D
    MaxPoolV2 MaxPoolWithArgmax Maximum Mean Min Minimum MirrorPad Mod Mul MulNoNan
    Ndtri Neg NextAfter NonMaxSuppression NonMaxSuppressionV2 NonMaxSuppressionV3
    NonMaxSuppressionV4 NonMaxSuppressionV5 NotEqual NthElement OneHot OnesLike Pack
    Pad PadV2 ParallelConcat ParallelDynamicStitch PlaceholderWithDefault Polygamma
    PopulationCount Pow PreventGradient Prod QuantizeAndDequantizeV2
    QuantizeAndDequantizeV3 QuantizeAndDequantizeV4 QuantizeV2 RFFT RFFT2D RFFT3D
    RGBToHSV Range Rank Real RealDiv Reciprocal Relu Relu6 Reshape ResizeArea
    ResizeBicubic ResizeBilinear ResizeNearestNeighbor Reverse ReverseSequence
    ReverseV2 RightShift Rint Roll Round Rsqrt ScatterNd SegmentMax SegmentMean
    SegmentMin SegmentProd SegmentSum Select SelectV2 Selu Shape ShapeN Sigmoid Sign
    Sin Sinh Size Slice Snapshot Softmax Softplus Softsign SpaceToBatch
    SpaceToBatchND SpaceToDepth Split SplitV Sqrt Square SquaredDifference Squeeze
    StopGradient StridedSlice Sub Sum Tan Tanh TensorScatterAdd TensorScatterMax
    TensorScatterMin TensorScatterSub TensorScatterUpdate TensorStridedSliceUpdate
    Tile TopKV2 Transpose TruncateDiv TruncateMod Unique UniqueV2 UniqueWithCounts
    Unpack UnravelIndex UnsortedSegmentMax UnsortedSegmentMin UnsortedSegmentProd
    UnsortedSegmentSum UpperBound Where Xdivy Xlog1py Xlogy ZerosLike Zeta
"""
# What KerasTensors call a tensor's own operators.
_ALIASES = {"__operators__.add": "math.add"}

_NAMES = {
    "": _TOP,
    "math.": _MATH,
    "nn.": _NN,
    "linalg.": _LINALG,
    "image.": _IMAGE,
    "quantization.": _QUANTIZATION,
    "signal.": _SIGNAL,
    "__operators__.": _OPERATORS,
    "raw_ops.": _RAW,
}
# Functions of TensorFlow 1 that those of TensorFlow 2 call, and KerasTensors see.
_V1 = "compat.v1."


@functools.cache
def allowed() -> frozenset[str]:
    """Returns the names of all functions that an operation may name."""
    names = {prefix + name for prefix, text in _NAMES.items() for name in text.split()}
    old = {name for name in names if not name.startswith(("raw_ops.", "__"))}
    # `tf.abs` is `tf.math.abs`; the old functions are found under either name.
    short = {name.split(".")[-1] for name in old}
    return frozenset(
        names | {_V1 + name for name in old} | {_V1 + name for name in short}
    )


def function_of(name: str) -> Callable[..., Any]:
    """Returns the TensorFlow function of a name such as "nn.relu" or "raw_ops.Relu".

    Raises:
        TfoptError: The name isn't one that an operation may have.
    """
    found = find(name) if isinstance(name, str) and name in allowed() else None
    if found is None:
        raise TfoptError(
            "Expected the name of a TensorFlow function without state or side "
            'effects, such as "nn.relu", "math.add" or "raw_ops.Relu". '
            f"Received: function={name!r}"
        )
    return found


def name_of(function: Any) -> str | None:
    """Returns the name of a TensorFlow function, `None` if it has none here."""
    for each in _unwrapped(function):
        if id(each) in _by_identity():
            return _by_identity()[id(each)]
    code = getattr(function, "__code__", None)
    return _raw_by_code().get(code)


def find(name: str) -> Callable[..., Any] | None:
    """Returns what TensorFlow has under a name, whether it is allowed or not."""
    found: Any = tf
    for part in name.split("."):
        found = getattr(found, part, None)
    return found if callable(found) else None


def _unwrapped(function: Any) -> Iterator[Any]:
    while function is not None:
        yield function
        function = getattr(function, "__wrapped__", None)


@functools.cache
def _by_identity() -> dict[int, str]:
    found: dict[int, str] = {}
    # Short names last so that they win over compat.v1's for the same function.
    for name in sorted(allowed(), key=lambda name: (name.startswith(_V1), name)):
        function = find(name)
        if function is not None and not name.startswith("raw_ops."):
            found.setdefault(id(function), _ALIASES.get(name, name))
    for name in sorted(allowed(), key=lambda name: (name.startswith(_V1), name)):
        function = find(name)
        if function is not None and not name.startswith("raw_ops."):
            for inner in _unwrapped(function):
                found.setdefault(id(inner), _ALIASES.get(name, name))
    return found


@functools.cache
def _raw_by_code() -> dict[Any, str]:
    # Functions of tf.raw_ops wrap copies of the functions that other code calls.
    found = {}
    for name in _RAW.split():
        function = find(f"raw_ops.{name}")
        for inner in _unwrapped(inspect.unwrap(function) if function else None):
            if hasattr(inner, "__code__"):
                found[inner.__code__] = f"raw_ops.{name}"
    return found


def check_tensors(name: str, tensors: list[Any]) -> None:
    """Raises unless an operation has a tensor to compute from.

    Raises:
        TfoptError: It has none, so it is a constant.
    """
    if not tensors:
        raise TfoptError(
            "An operation of a Keras model takes at least one tensor; compute "
            f"constants beforehand. Received: function={name!r} without tensors"
        )
