"""The tables of the TFLite schema: which fields they have, slot by slot.

Read off the schema that ships with `ai_edge_litert`, whose classes take longer
to import than a model takes to open; a test compares the two.

Reference:
    https://github.com/google-ai-edge/LiteRT/blob/main/tflite/converter/schema/schema.fbs
"""

from __future__ import annotations

# One word for each slot: bytes of a number, `-` for an unused slot, `text`, a table's
# name, `<union>` (whose type is in the slot before), or `[...]` for a vector of these.
TABLES: dict[str, str] = {
    "ATan2Options": "",
    "AbsOptions": "",
    "AddNOptions": "",
    "AddOptions": "1 1",
    "ArgMaxOptions": "1",
    "ArgMinOptions": "1",
    "AssignVariableOptions": "",
    "BatchMatMulOptions": "1 1 1",
    "BatchToSpaceNDOptions": "",
    "BidirectionalSequenceLSTMOptions": "1 4 4 1 1 1",
    "BidirectionalSequenceRNNOptions": "1 1 1 1",
    "BitcastOptions": "",
    "BitwiseXorOptions": "",
    "BlockwiseQuantization": "4 4 4 [4]",
    "BroadcastToOptions": "",
    "BucketizeOptions": "[4]",
    "Buffer": "[1] 8 8",
    "CallOnceOptions": "4",
    "CallOptions": "4",
    "CastOptions": "1 1",
    "ConcatEmbeddingsOptions": "4 [4] [4]",
    "ConcatenationOptions": "4 1",
    "Conv2DOptions": "1 4 4 1 4 4 1",
    "Conv3DOptions": "1 4 4 4 1 4 4 4",
    "CosOptions": "",
    "CumsumOptions": "1 1",
    "CustomQuantization": "[1]",
    "DensifyOptions": "",
    "DepthToSpaceOptions": "4",
    "DepthwiseConv2DOptions": "1 4 4 4 1 4 4",
    "DequantizeOptions": "",
    "DilateOptions": "",
    "DimensionMetadata": "1 4 1 <SparseIndexVector> 1 <SparseIndexVector>",
    "DivOptions": "1",
    "DynamicUpdateSliceOptions": "",
    "EmbeddingLookupSparseOptions": "1",
    "EqualOptions": "",
    "ExpOptions": "",
    "ExpandDimsOptions": "",
    "ExternalBuffer": "4 4 8 8 text",
    "ExternalBufferGroup": "text",
    "FakeQuantOptions": "4 4 4 1",
    "FillOptions": "",
    "FloorDivOptions": "",
    "FloorModOptions": "",
    "FullyConnectedOptions": "1 1 1 1 1 [1]",
    "GatherNdOptions": "",
    "GatherOptions": "4 4",
    "GeluOptions": "1",
    "GreaterEqualOptions": "",
    "GreaterOptions": "",
    "HardSwishOptions": "",
    "HashtableFindOptions": "",
    "HashtableImportOptions": "",
    "HashtableOptions": "4 1 1",
    "HashtableSizeOptions": "",
    "IfOptions": "4 4",
    "Int32Vector": "[4]",
    "L2NormOptions": "1",
    "LSHProjectionOptions": "1",
    "LSTMOptions": "1 4 4 1 1",
    "LeakyReluOptions": "4",
    "LessEqualOptions": "",
    "LessOptions": "",
    "LocalResponseNormalizationOptions": "4 4 4 4",
    "LogSoftmaxOptions": "",
    "LogicalAndOptions": "",
    "LogicalNotOptions": "",
    "LogicalOrOptions": "",
    "MatrixDiagOptions": "",
    "MatrixSetDiagOptions": "",
    "MaximumMinimumOptions": "",
    "Metadata": "text 4",
    "MirrorPadOptions": "1",
    "Model": (
        "4 [OperatorCode] [SubGraph] text [Buffer] [4] [Metadata] [SignatureDef] "
        "[ExternalBufferGroup] [ExternalBuffer]"
    ),
    "MulOptions": "1",
    "MultiAxisQuantization": "4 4 4 [4]",
    "NegOptions": "",
    "NonMaxSuppressionV4Options": "",
    "NonMaxSuppressionV5Options": "",
    "NotEqualOptions": "",
    "OneHotOptions": "4",
    "Operator": "4 [4] [4] 1 <BuiltinOptions> [1] 1 [1] [4] 8 8 1 <BuiltinOptions2> 4",
    "OperatorCode": "1 text 4 4",
    "PackOptions": "4 4",
    "PadOptions": "",
    "PadV2Options": "",
    "Pool2DOptions": "1 4 4 4 4 1",
    "PowOptions": "",
    "QuantizationParameters": "[4] [4] [4] [8] 1 <QuantizationDetails> 4",
    "QuantizeOptions": "",
    "RNNOptions": "1 1",
    "RandomOptions": "8 8",
    "RangeOptions": "",
    "RankOptions": "",
    "ReadVariableOptions": "",
    "ReduceWindowOptions": "4",
    "ReducerOptions": "1",
    "ReshapeOptions": "[4]",
    "ResizeBilinearOptions": "- - 1 1",
    "ResizeNearestNeighborOptions": "1 1",
    "ReverseSequenceOptions": "4 4",
    "ReverseV2Options": "",
    "Rfft2dOptions": "",
    "RightShiftOptions": "",
    "SVDFOptions": "4 1 1",
    "ScatterNdOptions": "",
    "SegmentSumOptions": "",
    "SelectOptions": "",
    "SelectV2Options": "",
    "SequenceRNNOptions": "1 1 1",
    "ShapeOptions": "1",
    "SignOptions": "",
    "SignatureDef": "[TensorMap] [TensorMap] text - 4",
    "SkipGramOptions": "4 4 1",
    "SliceOptions": "",
    "SoftmaxOptions": "4",
    "SpaceToBatchNDOptions": "",
    "SpaceToDepthOptions": "4",
    "SparseToDenseOptions": "1",
    "SparsityParameters": "[4] [4] [DimensionMetadata]",
    "SplitOptions": "4",
    "SplitVOptions": "4",
    "SquareOptions": "",
    "SquaredDifferenceOptions": "",
    "SqueezeOptions": "[4]",
    "StableHLOCompositeOptions": "text 4 [1] 1 4",
    "StablehloBroadcastInDimOptions": "[8]",
    "StablehloCaseOptions": "[4]",
    "StablehloCompareOptions": "4 4",
    "StablehloConcatenateOptions": "8",
    "StablehloConvolutionOptions": (
        "[8] [8] [8] [8] [1] 8 8 [8] 8 8 [8] 8 8 [8] 8 8 [4]"
    ),
    "StablehloCustomCallOptions": "text 1 text 4 [4] [1]",
    "StablehloDotGeneralOptions": "[8] [8] [8] [8] [4]",
    "StablehloDynamicSliceOptions": "[8]",
    "StablehloGatherOptions": "[8] [8] [8] 8 [8] 1",
    "StablehloIotaOptions": "8",
    "StablehloPadOptions": "[8] [8] [8]",
    "StablehloReduceOptions": "[8] 4",
    "StablehloReduceWindowOptions": "[8] [8] [8] [8] [8] 4",
    "StablehloRngBitGeneratorOptions": "1",
    "StablehloScatterOptions": "1 [8] [8] [8] 8 1 4",
    "StablehloShiftLeftOptions": "",
    "StablehloSliceOptions": "[8] [8] [8]",
    "StablehloSortOptions": "8 1 4",
    "StablehloTransposeOptions": "[8]",
    "StablehloWhileOptions": "4 4",
    "StridedSliceOptions": "4 4 4 4 4 1",
    "SubGraph": "[Tensor] [4] [4] [Operator] text 4",
    "SubOptions": "1 1",
    "Tensor": (
        "[4] 1 4 text QuantizationParameters 1 SparsityParameters [4] 1 "
        "[VariantSubType] 4"
    ),
    "TensorMap": "text 4",
    "TileOptions": "",
    "TopKV2Options": "",
    "TransposeConvOptions": "1 4 4 1 1",
    "TransposeOptions": "",
    "Uint16Vector": "[2]",
    "Uint8Vector": "[1]",
    "UnidirectionalSequenceLSTMOptions": "1 4 4 1 1 1",
    "UniqueOptions": "1",
    "UnpackOptions": "4 4",
    "UnsortedSegmentMaxOptions": "",
    "UnsortedSegmentMinOptions": "",
    "UnsortedSegmentProdOptions": "",
    "UnsortedSegmentSumOptions": "",
    "VarHandleOptions": "text text",
    "VariantSubType": "[4] 1 1",
    "WhereOptions": "",
    "WhileOptions": "4 4",
    "ZerosLikeOptions": "",
}

# The tables of a union, by number.
UNIONS: dict[str, str] = {
    "BuiltinOptions": (
        "NONE Conv2DOptions DepthwiseConv2DOptions ConcatEmbeddingsOptions "
        "LSHProjectionOptions Pool2DOptions SVDFOptions RNNOptions "
        "FullyConnectedOptions SoftmaxOptions ConcatenationOptions AddOptions "
        "L2NormOptions LocalResponseNormalizationOptions LSTMOptions "
        "ResizeBilinearOptions CallOptions ReshapeOptions SkipGramOptions "
        "SpaceToDepthOptions EmbeddingLookupSparseOptions MulOptions PadOptions "
        "GatherOptions BatchToSpaceNDOptions SpaceToBatchNDOptions TransposeOptions "
        "ReducerOptions SubOptions DivOptions SqueezeOptions SequenceRNNOptions "
        "StridedSliceOptions ExpOptions TopKV2Options SplitOptions "
        "LogSoftmaxOptions CastOptions DequantizeOptions MaximumMinimumOptions "
        "ArgMaxOptions LessOptions NegOptions PadV2Options GreaterOptions "
        "GreaterEqualOptions LessEqualOptions SelectOptions SliceOptions "
        "TransposeConvOptions SparseToDenseOptions TileOptions ExpandDimsOptions "
        "EqualOptions NotEqualOptions ShapeOptions PowOptions ArgMinOptions "
        "FakeQuantOptions PackOptions LogicalOrOptions OneHotOptions "
        "LogicalAndOptions LogicalNotOptions UnpackOptions FloorDivOptions "
        "SquareOptions ZerosLikeOptions FillOptions "
        "BidirectionalSequenceLSTMOptions BidirectionalSequenceRNNOptions "
        "UnidirectionalSequenceLSTMOptions FloorModOptions RangeOptions "
        "ResizeNearestNeighborOptions LeakyReluOptions SquaredDifferenceOptions "
        "MirrorPadOptions AbsOptions SplitVOptions UniqueOptions ReverseV2Options "
        "AddNOptions GatherNdOptions CosOptions WhereOptions RankOptions "
        "ReverseSequenceOptions MatrixDiagOptions QuantizeOptions "
        "MatrixSetDiagOptions HardSwishOptions IfOptions WhileOptions "
        "DepthToSpaceOptions NonMaxSuppressionV4Options NonMaxSuppressionV5Options "
        "ScatterNdOptions SelectV2Options DensifyOptions SegmentSumOptions "
        "BatchMatMulOptions CumsumOptions CallOnceOptions BroadcastToOptions "
        "Rfft2dOptions Conv3DOptions HashtableOptions HashtableFindOptions "
        "HashtableImportOptions HashtableSizeOptions VarHandleOptions "
        "ReadVariableOptions AssignVariableOptions RandomOptions BucketizeOptions "
        "GeluOptions DynamicUpdateSliceOptions UnsortedSegmentProdOptions "
        "UnsortedSegmentMaxOptions UnsortedSegmentMinOptions "
        "UnsortedSegmentSumOptions ATan2Options SignOptions BitcastOptions "
        "BitwiseXorOptions RightShiftOptions"
    ),
    "BuiltinOptions2": (
        "NONE StablehloConcatenateOptions StablehloBroadcastInDimOptions "
        "StablehloSliceOptions StablehloConvolutionOptions "
        "StablehloCustomCallOptions StablehloReduceOptions StablehloScatterOptions "
        "StablehloCompareOptions StablehloDynamicSliceOptions StablehloPadOptions "
        "StablehloIotaOptions StablehloDotGeneralOptions "
        "StablehloReduceWindowOptions StablehloSortOptions StablehloWhileOptions "
        "StablehloGatherOptions StablehloTransposeOptions DilateOptions "
        "StablehloRngBitGeneratorOptions ReduceWindowOptions "
        "StableHLOCompositeOptions StablehloShiftLeftOptions StablehloCaseOptions"
    ),
    "QuantizationDetails": (
        "NONE CustomQuantization BlockwiseQuantization MultiAxisQuantization"
    ),
    "SparseIndexVector": "NONE Int32Vector Uint16Vector Uint8Vector",
}
