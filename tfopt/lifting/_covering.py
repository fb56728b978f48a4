"""Covering a graph: every operation that the outputs need becomes part of a layer."""

from __future__ import annotations

import dataclasses

import tensorflow as tf

from tfopt.lifting import _rules
from tfopt.lifting._match import Match
from tfopt.lifting._network import Network
from tfopt.types import TfoptError


@dataclasses.dataclass
class Raw:
    """An operation that no rule knows; it stays what it is."""

    operation: tf.Operation
    inputs: list[tf.Tensor]

    @property
    def outputs(self) -> list[tf.Tensor]:
        """The tensors that it returns."""
        return list(self.operation.outputs)


Item = Match | Raw


def cover(network: Network) -> list[Item]:
    """Returns what computes the outputs, in an order in which it can be run.

    Raises:
        TfoptError: An output doesn't depend on the inputs.
    """
    for name, tensor in network.outputs.items():
        if network.is_constant(tensor) or network.is_input(network.source(tensor)):
            raise TfoptError(
                "An output isn't computed from the inputs. Expected a signature whose "
                "outputs are; choose other outputs, or another signature. "
                f"Received: output {name!r} of {network.where}"
            )
    kept: frozenset[str] = frozenset()
    while True:
        attempt = _Attempt(network, kept)
        if not attempt.torn:
            return attempt.items
        # Something needs a tensor inside of a match: it must be there by itself.
        kept |= attempt.torn


class _Attempt:
    """One walk from the outputs to the inputs.

    Attributes:
        items: What was found, inputs first.
        torn: Tensors that are needed and inside a match.
    """

    def __init__(self, network: Network, kept: frozenset[str]) -> None:
        self.items: list[Item] = []
        self.torn: set[str] = set()
        self._network = network
        self._kept = kept
        self._made: set[str] = set()
        self._inside: set[str] = set()
        self._run()

    def _run(self) -> None:
        waiting: list[tf.Tensor | Match | Raw] = [
            self._network.source(tensor) for tensor in self._network.outputs.values()
        ]
        while waiting:
            next_ = waiting.pop()
            if isinstance(next_, (Match, Raw)):
                self.items.append(next_)
                continue
            item = self._item(next_)
            if item is not None:
                waiting.append(item)
                waiting += item.inputs

    def _item(self, tensor: tf.Tensor) -> Item | None:
        network = self._network
        if network.is_input(tensor) or network.is_constant(tensor):
            return None
        if tensor.name in self._inside:
            self.torn.add(tensor.name)
        if tensor.name in self._made:
            return None
        match = _rules.find(network, tensor.op, self._kept)
        item = match or self._raw(tensor.op)
        self._made |= {output.name for output in item.outputs}
        if match is not None:
            for operation in match.operations[1:]:
                inside = {output.name for output in operation.outputs}
                self.torn |= inside & self._made
                self._inside |= inside
        return item

    def _raw(self, operation: tf.Operation) -> Raw:
        _rules.check_layout(self._network, operation)
        inputs = [
            tensor
            for tensor in self._network.operands(operation)
            if self._network.value(tensor) is None
        ]
        return Raw(operation, inputs)
