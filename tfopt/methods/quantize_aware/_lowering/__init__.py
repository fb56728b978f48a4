"""Turns a finalized graph into what the TFLite converter makes int8 kernels of.

The graph computes the same before and after, up to float rounding. Training keeps
Keras's own layers; here, those go whose int8 form the converter does not find by
itself (TensorFlow 2.21):

* Dense with time steps, EinsumDense: a matrix product between reshapes, as a bias
  that is added after a reshape stays float;
* dilated Conv1D and DepthwiseConv1D, and unequal dilation: a convolution with
  `dilations`, which Keras spells out as SPACE_TO_BATCH_ND on all of them;
* Conv3D: a Conv2D on neighbouring frames, stacked as channels;
* BatchNormalization, Rescaling and Normalization that stand alone: a depthwise
  convolution of size 1, which is exact with a scale per channel;
* UnitNormalization: L2_NORMALIZATION;
* ReLU with a `max_value` other than 6: the range clips.
"""

from __future__ import annotations

from collections.abc import Collection

from tfopt._keras.flatten import Call, Graph, LayerSpec
from tfopt.methods.quantize_aware._building import Builder
from tfopt.methods.quantize_aware._lowering import _affine, _clipping, _units


def lower(graph: Graph, weighted: Collection[LayerSpec]) -> None:
    """Rewrites a graph in place.

    Args:
        graph: Its weights and ranges are final.
        weighted: The layers with fake-quantized weights.
    """
    build = Builder(graph)
    _clipping.let_ranges_clip(graph, build)
    units = _units.find(graph, weighted)
    inside = {call for unit in units.values() for call in unit.others}
    chains = _affine.find(graph, weighted)
    calls: list[Call] = []
    for call in graph.calls:
        if call in inside:
            continue
        made = None
        if call in units:
            made = _units.lowered(build, units[call])
        elif call in chains:
            made = build.replace(_affine.lowered, call)
        calls += [call] if made is None else made
    graph.calls = calls
