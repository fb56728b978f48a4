"""From a choice of channels to weights and graphs: masking, folding, cutting."""

from __future__ import annotations

import dataclasses

import numpy as np

from tfopt._keras.flatten import Graph, LayerSpec
from tfopt.surgery._constants import Constants, Taps, Weights, taps
from tfopt.surgery._structure import Contraction, Size, Structure


def masked_weights(structure: Structure, removed: np.ndarray) -> dict:
    """Returns all weights, zero wherever they make removed channels.

    Biases, and scale, offset and moving mean of BatchNormalization are zero as well,
    so that masked channels are zero up to the next activation function.

    Args:
        structure: The graph.
        removed: Bool [atoms].
    """
    weights: dict[LayerSpec, list[np.ndarray] | None] = {}
    for spec in structure.graph.layers():
        arrays = list(spec.weights or [])
        for cut in structure.cuts.get(spec, []):
            gone = removed[cut.atoms]
            variance = spec.weight_names[cut.weight] == "moving_variance"
            if cut.role != "in" and not variance and gone.any():
                arrays[cut.weight] = arrays[cut.weight].copy()
                np.moveaxis(arrays[cut.weight], cut.axis, 0)[gone] = 0
        weights[spec] = None if spec.weights is None else arrays
    return weights


def blocked(
    structure: Structure, constants: Constants, removed: np.ndarray
) -> tuple[np.ndarray, dict[int, str]]:
    """Returns which removed channels a layer still needs, and why.

    A channel can go if each layer that reads it has zeros for weights, or it is zero,
    or it is constant and the layer does not pad it.

    Args:
        structure: The graph.
        constants: Of the weights in question.
        removed: Bool [atoms].

    Returns:
        Bool [atoms], and by atom the reason in words where the channel is constant.
    """
    result = np.zeros(len(removed), bool)
    reasons: dict[int, str] = {}
    seen: dict[LayerSpec, np.ndarray] = {}
    for contraction in structure.contractions:
        spec, atoms = contraction.call.layer, contraction.atoms
        if not removed[atoms].any():
            continue
        layer = taps(spec, constants.weights(spec))
        used = layer.used[:, ~removed[contraction.into]].any(axis=1) & removed[atoms]
        given = _read(constants, contraction)
        varying = used & np.isnan(given)
        padded = used & (np.nan_to_num(given) != 0) & (not layer.uniform)
        # One bias cannot make up for different constants in different calls.
        first = seen.setdefault(spec, given)
        unequal = used & ~varying & (first != given)
        result[atoms[varying | padded | unequal]] = True
        for place in np.flatnonzero(padded | unequal):
            how = "pads them with zeros" if padded[place] else "is shared"
            reasons[int(atoms[place])] = (
                f"they are constant but not zero, and {spec.path!r} {how}"
            )
    return result, reasons


def cut(
    structure: Structure, weights: Weights, constants: Constants, removed: np.ndarray
) -> tuple[Graph, list[str]]:
    """Returns the graph without the removed channels.

    Args:
        structure: The graph with all channels.
        weights: Its weights.
        constants: Of these weights.
        removed: Bool [atoms]; none of them is `blocked`.

    Returns:
        The graph, and the paths of layers whose bias took up constants.
    """
    folded = _folded_biases(structure, constants, removed)
    specs = {}
    for spec in structure.graph.layers():
        arrays = None if weights[spec] is None else list(weights[spec] or [])
        config, names = dict(spec.config), list(spec.weight_names)
        if spec in folded and arrays is not None:
            _add_bias(config, names, arrays, folded[spec])
        for item in structure.cuts.get(spec, []):
            if arrays is not None:
                arrays[item.weight] = np.compress(
                    ~removed[item.atoms], arrays[item.weight], axis=item.axis
                )
        if spec in folded and arrays is not None and "bias" not in spec.weight_names:
            arrays[-1] = arrays[-1][~removed[_into(structure, spec)]]
        for size in structure.sizes.get(spec, []):
            _set_size(config, size, removed)
        specs[spec] = dataclasses.replace(
            spec, config=config, weights=arrays, weight_names=names
        )
    calls = [
        dataclasses.replace(call, layer=specs[call.layer])
        for call in structure.graph.calls
    ]
    graph = dataclasses.replace(structure.graph, calls=calls)
    return graph, [spec.path for spec in folded]


def with_weights(graph: Graph, weights: Weights) -> Graph:
    """Returns the same graph with other weights."""
    specs = {
        spec: dataclasses.replace(spec, weights=weights[spec])
        for spec in graph.layers()
    }
    calls = [dataclasses.replace(call, layer=specs[call.layer]) for call in graph.calls]
    return dataclasses.replace(graph, calls=calls)


def _read(constants: Constants, contraction: Contraction) -> np.ndarray:
    layout = constants.structure.layouts.get(contraction.value)
    if layout is None or len(layout.atoms) != len(contraction.atoms):
        return np.full(len(contraction.atoms), np.nan)
    return constants.of(contraction.value)


def _folded_biases(
    structure: Structure, constants: Constants, removed: np.ndarray
) -> dict[LayerSpec, np.ndarray]:
    """Returns what removed constants add to the layers that read them."""
    found: dict[LayerSpec, np.ndarray] = {}
    for contraction in structure.contractions:
        spec = contraction.call.layer
        given = np.nan_to_num(_read(constants, contraction))
        gone = removed[contraction.atoms] & (given != 0)
        if spec in found or not gone.any():
            continue
        layer: Taps = taps(spec, constants.weights(spec))
        if layer.used[gone].any():
            found[spec] = given[gone] @ layer.sums[gone]
    return found


def _add_bias(
    config: dict, names: list[str], arrays: list[np.ndarray], added: np.ndarray
) -> None:
    if "bias" in names:
        place = names.index("bias")
        arrays[place] = (arrays[place] + added).astype(arrays[place].dtype)
        return
    config["use_bias"] = True
    names.append("bias")
    arrays.append(added.astype(arrays[0].dtype))


def _into(structure: Structure, spec: LayerSpec) -> np.ndarray:
    for contraction in structure.contractions:
        if contraction.call.layer is spec:
            return contraction.into
    raise KeyError(spec.path)


def _set_size(config: dict, size: Size, removed: np.ndarray) -> None:
    left = int((~removed[size.atoms]).sum()) // size.divisor
    if size.index is None:
        config[size.key] = left
    else:
        entry = list(config[size.key])
        entry[size.index] = left
        config[size.key] = tuple(entry)
