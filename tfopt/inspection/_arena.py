"""How much memory the activations of a `.tflite` model take."""

from __future__ import annotations

import math

import numpy as np

from tfopt.tflite_file import Subgraph, Tensor

_ALIGNMENT = 64
_BITS = {"INT4": 4, "BFLOAT16": 16, "BOOL": 8}


def tensor_bytes(tensor: Tensor) -> int:
    """Returns the size of a tensor at batch size 1; free sizes count as 1."""
    count = math.prod(1 if size is None else size for size in tensor.shape)
    if tensor.type in _BITS:
        return (count * _BITS[tensor.type] + 7) // 8
    if tensor.dtype is None or tensor.dtype == np.dtype(object):
        return 0
    return count * tensor.dtype.itemsize


def arena_bytes(subgraph: Subgraph) -> int:
    """Estimates the arena of a subgraph by TFLite's way of planning.

    Tensors are placed from the largest to the smallest, each into the lowest gap
    that is free during its life (Pisarchyk and Lee, Efficient Memory Management for
    Deep Neural Net Inference, 2020, https://arxiv.org/abs/2001.03288, "greedy by
    size"). Buffers that kernels ask for on their own come on top.
    """
    placed: list[tuple[int, int, int, int]] = []  # first, last, start, end
    lives = _lives(subgraph)
    for index in sorted(lives, key=lambda i: -tensor_bytes(subgraph.tensors[i])):
        first, last = lives[index]
        size = tensor_bytes(subgraph.tensors[index])
        size = -(-size // _ALIGNMENT) * _ALIGNMENT
        beside = sorted(
            (start, end)
            for begin, until, start, end in placed
            if begin <= last and first <= until
        )
        position = 0
        for start, end in beside:
            if position + size <= start:
                break
            position = max(position, end)
        placed.append((first, last, position, position + size))
    return max((end for *_, end in placed), default=0)


def _lives(subgraph: Subgraph) -> dict[int, tuple[int, int]]:
    """Returns the first and the last operator during which each tensor is needed."""
    end = len(subgraph.operators)
    lives: dict[int, tuple[int, int]] = {}

    def needed(index: int, when: int) -> None:
        tensor = subgraph.tensors[index]
        if tensor.is_constant and not tensor.is_variable:
            return
        first, last = lives.get(index, (when, when))
        lives[index] = (min(first, when), max(last, when))

    for index in subgraph.inputs:
        needed(index, 0)
    for when, operator in enumerate(subgraph.operators):
        for index in (*operator.inputs, *operator.outputs):
            needed(index, when)
            if subgraph.tensors[index].is_variable:
                needed(index, 0)
                needed(index, end)
    for index in subgraph.outputs:
        needed(index, end)
    return lives
