"""Putting constants in the place of variables, in a graph and in its functions."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from tfopt.freezing import flow as flows
from tfopt.freezing import restore
from tfopt.freezing.flow import Atoms, Context, Flow, Variable, attr, producer
from tfopt.freezing.plan import Value
from tfopt.savedmodel import dtypes, protos

# Attributes that say something about training or about what was replaced.
_DROPPED_NODE_ATTRS = ("_gradient_op_type",)
_DROPPED_FUNCTION_ATTRS = (
    "api_implements",
    "api_preferred_device",
    "backward_function_name",
    "forward_function_name",
)
_COLOCATION = "_class"
_COLOCATION_PREFIX = b"loc:@"


@dataclasses.dataclass(frozen=True)
class Constant:
    """A node `Const` whose value is still to be filled in.

    Attributes:
        function: The function it is in, `""` for the graph.
        node: Its name.
        value: Its content.
    """

    function: str
    node: str
    value: Value


@dataclasses.dataclass
class Rewritten:
    """The graph without the frozen variables.

    Attributes:
        nodes: NodeDefs of the graph; the values of `constants` are missing.
        functions: FunctionDefs that it needs.
        constants: The constants that stand for variables.
    """

    nodes: list[Any]
    functions: list[Any]
    constants: list[Constant]


class _Type:
    """What stands in the place of a handle: a tensor of this type and shape."""

    def __init__(self, dtype: int, shape: tuple[int, ...] | None):
        self.dtype = dtype
        self.shape = shape

    @property
    def key(self) -> tuple[int, tuple[int, ...] | None]:
        return self.dtype, self.shape

    def shape_proto(self) -> Any:
        return shape_proto(self.shape)


def rewrite(
    nodes: Sequence[Any],
    library: dict[str, Any],
    frozen: Mapping[str, Value],
    *,
    clear_devices: bool,
) -> Rewritten:
    """Rewrites copies of the nodes and of the functions they call.

    A function that is called with different variables frozen appears once for each
    combination; functions that nothing calls are left out.

    Args:
        nodes: NodeDefs to rewrite.
        library: FunctionDefs by name.
        frozen: Variable -> its value.
        clear_devices: Whether nodes lose their device.
    """
    flow = Flow(nodes, library, restore.handles)
    rewriter = _Rewriter(flow, frozen, clear_devices)
    main, _ = rewriter.body(flow.main, "")
    return Rewritten(main, list(rewriter.functions.values()), rewriter.constants)


def shape_proto(shape: Sequence[int] | None) -> Any:
    """Returns a TensorShapeProto; `None` is unknown rank."""
    proto = protos.message_class("TensorShapeProto")()
    if shape is None:
        proto.unknown_rank = True
    for size in shape or ():
        proto.dim.add(size=size)
    return proto


def drop_dangling_colocation(nodes: Sequence[Any]) -> None:
    """Drops the wish of nodes to be on the device of a node that isn't there."""
    names = {node.name for node in nodes}
    for node in nodes:
        places = attr(node, _COLOCATION).list.s
        kept = [
            place
            for place in places
            if not place.startswith(_COLOCATION_PREFIX)
            or place.removeprefix(_COLOCATION_PREFIX).decode() in names
        ]
        if kept:
            node.attr[_COLOCATION].list.s[:] = kept
        else:
            node.attr.pop(_COLOCATION, None)


class _Rewriter:
    def __init__(self, flow: Flow, frozen: Mapping[str, Value], clear_devices: bool):
        self._flow = flow
        self._frozen = frozen
        self._clear_devices = clear_devices
        self._names: dict[tuple[Any, ...], str] = {}
        self.functions: dict[str, Any] = {}
        self.constants: list[Constant] = []

    def body(self, context: Context, name: str) -> tuple[list[Any], dict[str, str]]:
        """Returns the rewritten nodes of a graph or function, and renamed tensors."""
        edit = _Edit(context, name)
        for node in context.body.nodes.values():
            copy = type(node)()
            copy.CopyFrom(node)
            edit.nodes.append(copy)
            self._rewrite(edit, node, copy)
        for node in edit.nodes:
            node.input[:] = [edit.renamed.get(ref, ref) for ref in node.input]
        edit.nodes += edit.added
        self._clean(edit.nodes)
        self.constants += edit.constants
        return edit.nodes, edit.renamed

    def _type(self, atoms: Atoms) -> _Type | None:
        """Returns what stands for a handle, `None` if it stays (or is no handle)."""
        names = {atom.name for atom in atoms if isinstance(atom, Variable)}
        if not names or not all(name in self._frozen for name in names):
            return None
        values = [self._frozen[name] for name in sorted(names)]
        shapes = {value.shape for value in values}
        return _Type(values[0].dtype, shapes.pop() if len(shapes) == 1 else None)

    def _rewrite(self, edit: _Edit, node: Any, copy: Any) -> None:
        if self._flow.call(node) is not None:
            self._rewrite_call(edit, node, copy)
        elif node.op in restore.RESOURCE_VARIABLES | restore.REF_VARIABLES:
            self._rewrite_variable(edit, node, copy)
        else:
            for name in self._flow.attached(node):
                arguments = self._flow.unknown_arguments(name)
                self._specialize(name, arguments, [None] * len(arguments))
            types = [self._type(atoms) for atoms in edit.context.inputs(node)]
            handle = next((found for found in types if found is not None), None)
            if handle is not None:
                _rewrite_use(edit, node, copy, handle, types)

    def _rewrite_variable(self, edit: _Edit, node: Any, copy: Any) -> None:
        value = self._frozen.get(restore.identity(node))
        if value is None:
            return
        _become(copy, "Const", dtype=value.dtype)
        edit.rename_output(node, "resource" if node.op == "VarHandleOp" else "ref")
        first = edit.first_constant.setdefault(value.name, node.name)
        if first == node.name:
            edit.constants.append(Constant(edit.name, node.name, value))
        else:
            # A second handle of the same variable must not repeat its content.
            _become(copy, "Identity", T=value.dtype)
            copy.input.insert(0, f"{first}:output:0" if edit.name else first)

    def _rewrite_call(self, edit: _Edit, node: Any, copy: Any) -> None:
        call = self._flow.call(node)
        if call is None:
            return
        arguments = self._flow.arguments(edit.context, node)
        results = self._flow.results(edit.context, node)
        types = [self._type(atoms) for atoms in arguments]
        if node.op in self._flow.library:
            copy.op = self._specialize(node.op, arguments, types)
            return
        for name in call.functions:
            for function in flows.functions_of(copy.attr[name]):
                function.name = self._specialize(function.name, arguments, types)
        if not any(types):
            return
        _set_types(copy, call.input_types, types)
        found = [self._type(atoms) for atoms in results]
        if call.output_types not in call.input_types:
            _set_types(copy, (call.output_types,), found)
        _set_shapes(copy, "output_shapes", found)
        _set_shapes(copy, "_output_shapes", found)
        reads = "_read_only_resource_inputs"
        if reads in copy.attr:
            positions = [
                position
                for position in copy.attr[reads].list.i
                if position < call.first or types[position - call.first] is None
            ]
            copy.attr[reads].list.i[:] = positions

    def _specialize(
        self, name: str, arguments: tuple[Atoms, ...], types: Sequence[_Type | None]
    ) -> str:
        """Returns the name of the function, rewritten for these arguments."""
        key = (name, *(None if kind is None else kind.key for kind in types))
        if not any(key[1:]):
            key = (name,)
        if key in self._names:
            return self._names[key]
        new_name = name
        while new_name in self.functions or (
            new_name != name and new_name in self._flow.library
        ):
            new_name = f"{name}_frozen{len(self._names)}"
        self._names[key] = new_name
        definition = self._flow.library[name]
        copy = type(definition)()
        # Registered before it is complete: callees come later, names are taken now.
        self.functions[new_name] = copy
        copy.CopyFrom(definition)
        copy.signature.name = new_name
        context = self._flow.context(name, arguments)
        del copy.node_def[:]
        nodes, renamed = self.body(context, new_name)
        copy.node_def.extend(nodes)
        for result in copy.ret:
            copy.ret[result] = renamed.get(copy.ret[result], copy.ret[result])
        _set_arguments(copy, types)
        for argument, atoms in zip(
            copy.signature.output_arg, context.returns(), strict=True
        ):
            kind = self._type(atoms)
            if kind is not None:
                argument.type = kind.dtype
                del argument.handle_data[:]
        for attribute in _DROPPED_FUNCTION_ATTRS:
            copy.attr.pop(attribute, None)
        return new_name

    def _clean(self, nodes: Sequence[Any]) -> None:
        """Drops devices, gradients, and colocation with nodes that are gone."""
        for node in nodes:
            if self._clear_devices:
                node.device = ""
            for name in _DROPPED_NODE_ATTRS:
                node.attr.pop(name, None)
        drop_dangling_colocation(nodes)


class _Edit:
    """One body while it is rewritten."""

    def __init__(self, context: Context, name: str):
        self.context = context
        self.name = name
        self.nodes: list[Any] = []
        self.added: list[Any] = []
        self.renamed: dict[str, str] = {}
        self.constants: list[Constant] = []
        self.first_constant: dict[str, str] = {}

    def rename_output(self, node: Any, old: str) -> None:
        """Notes that a node's first output is now called `output` in a function."""
        if self.context.body.is_function:
            self.renamed[f"{node.name}:{old}:0"] = f"{node.name}:output:0"
            self.renamed[f"{node.name}:{old}"] = f"{node.name}:output:0"

    def add_const(self, name: str, dtype: int, near: str) -> Any:
        """Adds a scalar constant in the frame of the tensor `near`; returns its node.

        A node without inputs belongs to the outermost frame, so one that is used in a
        loop (of TF1's Enter and Exit) needs a control input from inside the loop.
        """
        while name in self.context.body.nodes:
            name += "_"
        node = protos.message_class("NodeDef")(name=name, op="Const")
        node.attr["dtype"].type = dtype
        tensor = node.attr["value"].tensor
        tensor.dtype = dtype
        tensor.tensor_shape.SetInParent()
        if near not in self.context.body.arguments:
            node.input.append("^" + producer(near))
        self.added.append(node)
        return node


def _rewrite_use(
    edit: _Edit, node: Any, copy: Any, handle: _Type, types: Sequence[_Type | None]
) -> None:
    """Rewrites an operation that takes a handle, which now is a tensor."""
    op = node.op
    if op == "ReadVariableOp":
        _become(copy, "Identity", T=handle.dtype)
        edit.rename_output(node, "value")
    elif op == "ResourceGather":
        indices = attr(node, "Tindices").type
        batch_dims = attr(node, "batch_dims").i
        near = edit.context.body.inputs(node)[1]
        axis = edit.add_const(f"{node.name}/axis", dtypes.INT32, near)
        axis.attr["value"].tensor.int_val.append(batch_dims)
        _become(
            copy, "GatherV2", Tparams=handle.dtype, Tindices=indices, Taxis=dtypes.INT32
        )
        copy.attr["batch_dims"].i = batch_dims
        data = len(edit.context.body.inputs(node))
        copy.input.insert(data, f"{axis.name}:output:0" if edit.name else axis.name)
    elif op == "ResourceGatherNd":
        indices = attr(node, "Tindices").type
        _become(copy, "GatherNd", Tparams=handle.dtype, Tindices=indices)
    elif op == "VariableShape":
        out_type = attr(node, "out_type").type or dtypes.INT32
        _become(copy, "Shape", T=handle.dtype, out_type=out_type)
    elif op in ("VarIsInitializedOp", "IsVariableInitialized"):
        # In its place; the handle becomes a control input, see `add_const`.
        _become(copy, "Const", dtype=dtypes.BOOL)
        tensor = copy.attr["value"].tensor
        tensor.dtype = dtypes.BOOL
        tensor.tensor_shape.SetInParent()
        tensor.bool_val.append(True)
        _data_to_control(edit, copy)
        edit.rename_output(node, "is_initialized")
    elif op == "DisableCopyOnRead":
        _become(copy, "NoOp")
        _data_to_control(edit, copy)
    elif op in flows.PASS_THROUGH:
        copy.op = op.removeprefix("Ref")
        copy.attr.pop("_output_shapes", None)
        if op == "IdentityN":
            _set_types(copy, ("T",), types)
        else:
            copy.attr["T"].type = handle.dtype


def _become(copy: Any, op: str, **types: int) -> None:
    """Makes a node another operation with these type attributes."""
    places = attr(copy, _COLOCATION).list.s[:]
    copy.op = op
    copy.attr.clear()
    for name, dtype in types.items():
        copy.attr[name].type = dtype
    if places:
        copy.attr[_COLOCATION].list.s.extend(places)


def _data_to_control(edit: _Edit, copy: Any) -> None:
    """Turns all inputs into control inputs; arguments of a function need none."""
    arguments = edit.context.body.arguments
    producers = [producer(ref) for ref in copy.input if ref not in arguments]
    copy.input[:] = ["^" + name for name in dict.fromkeys(producers)]


def _set_types(
    copy: Any, attributes: Sequence[str], types: Sequence[_Type | None]
) -> None:
    """Replaces entries of type lists (several are taken as one) where types are new."""
    position = 0
    for name in attributes:
        listed = copy.attr[name].list.type
        for index in range(len(listed)):
            kind = types[position + index]
            if kind is not None:
                listed[index] = kind.dtype
        position += len(listed)


def _set_shapes(copy: Any, attribute: str, types: Sequence[_Type | None]) -> None:
    if attribute not in copy.attr:
        return
    shapes = copy.attr[attribute].list.shape
    for index, kind in enumerate(types[: len(shapes)]):
        if kind is not None:
            shapes[index].CopyFrom(kind.shape_proto())


def _set_arguments(definition: Any, types: Sequence[_Type | None]) -> None:
    """Gives a function's arguments their new types and shapes."""
    for index, kind in enumerate(types):
        if kind is None:
            continue
        argument = definition.signature.input_arg[index]
        argument.type = kind.dtype
        del argument.handle_data[:]
        definition.resource_arg_unique_id.pop(index, None)
        shapes = definition.arg_attr[index].attr["_output_shapes"].list
        del shapes.shape[:]
        shapes.shape.append(kind.shape_proto())
    if "_input_shapes" in definition.attr:
        _set_shapes(definition, "_input_shapes", types)
