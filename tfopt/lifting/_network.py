"""A frozen graph as a network: what depends on the inputs, and constant values."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfopt.lifting import _sizes
from tfopt.types import TfoptError

# Operations whose result is their input (IdentityN: inputs).
_TRANSPARENT = frozenset(
    (
        *("Identity", "IdentityN", "StopGradient", "PreventGradient", "Snapshot"),
        *("CheckNumerics", "PlaceholderWithDefault", "EnsureShape"),
    )
)
# Operations that ask only for a shape, so they don't keep a tensor alive.
SHAPE_QUERIES = frozenset(("Shape", "ShapeN", "Size", "Rank"))

_CONTROL_FLOW = frozenset(
    (
        *("If", "StatelessIf", "Case", "StatelessCase", "While", "StatelessWhile"),
        *("Enter", "Exit", "Merge", "Switch", "NextIteration", "LoopCond"),
        *("For", "PartitionedCall", "StatefulPartitionedCall", "SymbolicGradient"),
    )
)


class Network:
    """The part of a frozen graph between a signature's inputs and outputs.

    Attributes:
        where: Where it came from, for messages.
        graph: The tf.Graph.
        inputs: Input name -> tensor.
        outputs: Output name -> tensor.
        variables: Nodes of constants that were variables; `None`: not known.
    """

    def __init__(
        self,
        graph_def: Any,
        inputs: Mapping[str, str],
        outputs: Mapping[str, str],
        *,
        where: str,
        variables: frozenset[str] | None,
    ) -> None:
        self.where = where
        self.variables = variables
        self.graph = tf.Graph()
        with self.graph.as_default():
            tf.graph_util.import_graph_def(graph_def, name="")
        self.inputs = self._tensors(inputs, "input")
        self.outputs = self._tensors(outputs, "output")
        self._live = self._reachable()
        self._dynamic = self._depending_on_inputs()
        self._values: dict[str, np.ndarray] = {}
        self._is_folded = False
        self._check()

    def _tensors(self, names: Mapping[str, str], kind: str) -> dict[str, tf.Tensor]:
        found = {}
        for key, name in names.items():
            full = name if ":" in name else f"{name}:0"
            try:
                found[key] = self.graph.get_tensor_by_name(full)
            except (KeyError, ValueError) as error:
                raise TfoptError(
                    f"The graph has no such tensor. Expected the name of an {kind}. "
                    f"Received: {name!r} for {self.where}"
                ) from error
        return found

    def source(self, tensor: tf.Tensor) -> tf.Tensor:
        """Returns the tensor that operations like Identity hand on as `tensor`."""
        while tensor.op.type in _TRANSPARENT and tensor.name not in self._input_names:
            tensor = tensor.op.inputs[tensor.value_index]
        return tensor

    def operands(self, operation: tf.Operation) -> list[tf.Tensor]:
        """Returns the sources of an operation's inputs."""
        return [self.source(tensor) for tensor in operation.inputs]

    def is_input(self, tensor: tf.Tensor) -> bool:
        """Returns whether a tensor is one of the signature's inputs."""
        return tensor.name in self._input_names

    def is_constant(self, tensor: tf.Tensor) -> bool:
        """Returns whether a tensor does not depend on the inputs."""
        return self.source(tensor).op.name not in self._dynamic

    def value(self, tensor: tf.Tensor) -> np.ndarray | None:
        """Returns a constant's value; of what depends on inputs `None`.

        Sizes of tensors are constants where the graph's shapes tell them.
        """
        tensor = self.source(tensor)
        if tensor.name not in self._values:
            if self.is_constant(tensor):
                self._values[tensor.name] = self._constant(tensor)
            else:
                known = _sizes.known(tensor) if tensor.dtype.is_integer else None
                if known is None:
                    return None
                self._values[tensor.name] = known
        return self._values[tensor.name]

    def _constant(self, tensor: tf.Tensor) -> np.ndarray:
        if tensor.op.type == "Const":
            return tf.make_ndarray(tensor.op.get_attr("value"))
        if not self._is_folded:
            # All at once, since each run of a session takes about 10 ms.
            self._is_folded = True
            found = {
                operand.name: operand
                for operation in self._live
                if operation.name in self._dynamic
                for operand in self.operands(operation)
                if self.is_constant(operand) and operand.op.type != "Const"
            }
            self._values |= self._session.run(found)
        if tensor.name not in self._values:
            self._values[tensor.name] = self._session.run(tensor)
        return self._values[tensor.name]

    def is_trainable(self, tensors: Iterable[tf.Tensor]) -> bool:
        """Returns whether a variable is among what constants were computed from."""
        return self.variables is None or bool(self.leaves(tensors) & self.variables)

    def leaves(self, tensors: Iterable[tf.Tensor]) -> frozenset[str]:
        """Returns the arrays of floats that constants are computed from."""
        waiting, found = [self.source(tensor).op for tensor in tensors], set()
        while waiting:
            operation = waiting.pop()
            if not operation.inputs and operation.outputs:
                tensor = operation.outputs[0]
                if tensor.dtype.is_floating and tensor.shape.rank != 0:
                    found.add(operation.name)
            waiting += [tensor.op for tensor in operation.inputs]
        return frozenset(found)

    def consumers(self, tensor: tf.Tensor) -> list[tf.Operation]:
        """Returns what takes a tensor (through Identity too) in the live graph."""
        return self._consumers.get(tensor.name, [])

    def run(
        self, names: Sequence[str], arrays: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """Returns tensors by name for inputs by name."""
        feeds = {self.inputs[name].name: array for name, array in arrays.items()}
        return dict(zip(names, self._session.run(names, feeds), strict=True))

    def release(self) -> None:
        """Frees the session."""
        self._session.close()

    @functools.cached_property
    def output_sources(self) -> frozenset[str]:
        """Names of the tensors that the outputs are."""
        return frozenset(self.source(t).name for t in self.outputs.values())

    @functools.cached_property
    def _session(self) -> Any:
        config = tf.compat.v1.ConfigProto()
        # What optimizes the graph would take out tensors that are asked for.
        config.graph_options.rewrite_options.disable_meta_optimizer = True
        return tf.compat.v1.Session(graph=self.graph, config=config)

    @functools.cached_property
    def _input_names(self) -> frozenset[str]:
        return frozenset(tensor.name for tensor in self.inputs.values())

    @functools.cached_property
    def _consumers(self) -> dict[str, list[tf.Operation]]:
        found: dict[str, list[tf.Operation]] = {}
        for operation in self._live:
            if operation.type not in _TRANSPARENT:
                for tensor in self.operands(operation):
                    found.setdefault(tensor.name, []).append(operation)
        return found

    def _reachable(self) -> list[tf.Operation]:
        """Returns the operations that the outputs need, in the graph's order."""
        waiting = [tensor.op for tensor in self.outputs.values()]
        seen: dict[str, tf.Operation] = {}
        stop = {tensor.op.name for tensor in self.inputs.values()}
        while waiting:
            operation = waiting.pop()
            if operation.name not in seen:
                seen[operation.name] = operation
                if operation.name not in stop:
                    waiting += [tensor.op for tensor in operation.inputs]
        return [op for op in self.graph.get_operations() if op.name in seen]

    def _depending_on_inputs(self) -> frozenset[str]:
        dynamic = {tensor.op.name for tensor in self.inputs.values()}
        # Edges lead back in loops of TF1 only, and those are refused anyway.
        for operation in self._live:
            inner = any(tensor.op.name in dynamic for tensor in operation.inputs)
            if inner or _is_stateful(operation):
                dynamic.add(operation.name)
        return frozenset(dynamic)

    def _check(self) -> None:
        fed = {tensor.op.name for tensor in self.inputs.values()}
        # Loops first: what is wrong with their parts follows from that.
        loops = [each for each in self._live if each.type in _CONTROL_FLOW]
        for operation in [*loops, *self._live]:
            if operation.name in fed:
                continue
            problem = _problem(operation, operation.name in self._dynamic)
            if problem:
                raise TfoptError(
                    f"The graph cannot become a Keras model: {problem}. Expected "
                    "plain operations on dense numeric tensors. Received: "
                    f"{operation.type} {operation.name!r} in {self.where}"
                )


def _problem(operation: tf.Operation, is_dynamic: bool) -> str:
    """Returns why an operation cannot be lifted, `""` if it can."""
    kind = operation.type
    types = [tensor.dtype for tensor in [*operation.inputs, *operation.outputs]]
    if kind in _CONTROL_FLOW:
        return (
            "branches, loops (such as those of recurrent layers that are not "
            "unrolled) and calls are not lifted"
        )
    if kind == "Placeholder":
        return "an input is missing in the signature"
    if not is_dynamic:
        return ""
    if any(dtype in (tf.resource, tf.variant) for dtype in types):
        return "it uses a table, a variable that it writes, or another resource"
    if any(dtype == tf.string for dtype in types):
        return "text is not lifted"
    if _is_stateful(operation):
        return "it has a state or is random"
    if operation.outputs and operation.outputs[0].shape.rank is None:
        return (
            "the rank of its result is unknown; `input_shapes` may tell it, where "
            "inputs have unknown shapes"
        )
    return ""


def _is_stateful(operation: tf.Operation) -> bool:
    definition = operation.op_def
    return definition.is_stateful and operation.type not in ("Placeholder", "Assert")
