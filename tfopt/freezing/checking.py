"""Checking a frozen model: its structure, its bytes, and what it computes."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tfopt import _processes
from tfopt.freezing import flow as flows
from tfopt.freezing import restore
from tfopt.freezing.flow import attr, producer
from tfopt.freezing.rewrite import Constant
from tfopt.savedmodel import crc32c, dtypes, extents, protos, reader, wire
from tfopt.savedmodel.bundle import BundleReader
from tfopt.savedmodel.extents import Extent
from tfopt.types import VerificationError

_VARIABLE_OPS = restore.RESOURCE_VARIABLES | restore.REF_VARIABLES
_CHECKPOINT_OPS = frozenset({"RestoreV2", "SaveV2", "MergeV2Checkpoints"})

# Results may differ by this many units in the last place of the largest output when
# TensorFlow's optimizer sees constants instead of variables (it folds and fuses more).
_ULPS = 1000


@dataclasses.dataclass
class Written:
    """A written graph, read back without its large tensors.

    Attributes:
        graph: The GraphDef.
        large: (Function or `""`, node) -> where a large constant's bytes lie.
    """

    graph: Any
    large: dict[tuple[str, str], Extent]


def read_back(path: pathlib.Path, message: str) -> Written:
    """Scans a written file, trusting nothing of the code that wrote it.

    Args:
        path: A binary file.
        message: `"GraphDef"` or `"SavedModel"`.
    """
    skeleton = wire.read_skeleton(path, message)
    parsed = protos.message_class(message).FromString(skeleton.data)
    large = {}
    for content in skeleton.contents:
        function = protos.message_class("OpDef").FromString(content.function)
        node = protos.message_class("NodeDef").FromString(content.node)
        large[function.name, node.name] = content.extent
    is_model = message == "SavedModel"
    return Written(parsed.meta_graphs[0].graph_def if is_model else parsed, large)


def check_structure(
    graph: Any,
    *,
    kept: Iterable[str],
    tensors: Iterable[str],
    has_checkpoint: bool,
) -> None:
    """Checks that a GraphDef is complete and free of what was frozen.

    Args:
        graph: The GraphDef; values of constants may be missing.
        kept: Variables that may be left.
        tensors: Tensors and nodes that loaders will ask for.
        has_checkpoint: Whether it may read and write a checkpoint.

    Raises:
        VerificationError: Lists what is wrong.
    """
    names = {node.name for node in graph.node}
    faults = [f"{name} is missing" for name in tensors if producer(name) not in names]
    library = {f.signature.name: f for f in graph.library.function}
    faults += _body_faults("", graph.node, (), set(kept), has_checkpoint)
    called = _called(graph.node, library)
    for name, function in library.items():
        arguments = [argument.name for argument in function.signature.input_arg]
        nodes = function.node_def
        faults += _body_faults(name, nodes, arguments, set(kept), has_checkpoint)
        called |= _called(nodes, library)
    faults += [f"function {name} is missing" for name in called - set(library)]
    faults += [f"function {name} isn't used" for name in set(library) - called]
    if faults:
        listed = "; ".join(sorted(faults)[:10])
        raise VerificationError(
            "The frozen graph isn't what freezing promises. Expected complete edges "
            "and functions, and no variables except those kept; this is a bug in "
            f"tfopt, please report it. Received: {listed}"
        )


def _called(nodes: Iterable[Any], library: Mapping[str, Any]) -> set[str]:
    """Returns the functions that nodes name, whether or not they exist."""
    called = set()
    for node in nodes:
        called |= {node.op} & set(library)
        for value in node.attr.values():
            called |= {function.name for function in flows.functions_of(value)}
    return called


def _body_faults(
    function: str,
    nodes: Iterable[Any],
    arguments: Iterable[str],
    kept: set[str],
    has_checkpoint: bool,
) -> list[str]:
    known = {node.name for node in nodes} | set(arguments)
    faults = []
    for node in nodes:
        where = f"{function}/{node.name}" if function else node.name
        faults += _faults(node, where, known, kept, has_checkpoint)
    return faults


def _faults(
    node: Any, where: str, known: set[str], allowed: set[str], has_checkpoint: bool
) -> list[str]:
    faults = [
        f"{where} needs {producer(ref)}, which is missing"
        for ref in node.input
        if producer(ref) not in known
    ]
    if node.op in _VARIABLE_OPS and restore.identity(node) not in allowed:
        faults.append(f"{where} is still a variable")
    if node.op in _CHECKPOINT_OPS and not has_checkpoint:
        faults.append(f"{where} uses a checkpoint")
    faults += [
        f"{where} is colocated with a missing node"
        for place in attr(node, "_class").list.s
        if place.startswith(b"loc:@") and place[5:].decode() not in known
    ]
    return faults


def check_bytes(
    written: Written, constants: Sequence[Constant], checkpoint: BundleReader
) -> int:
    """Compares each constant in a written file with the checkpoint.

    Args:
        written: The file, read back.
        constants: What should be in it.
        checkpoint: The model's checkpoint.

    Returns:
        The number of bytes compared.

    Raises:
        TfoptError: The checkpoint is damaged, so the constants are.
        VerificationError: A constant is missing or differs.
    """
    graph = written.graph
    small = {("", node.name): node for node in graph.node}
    for function in graph.library.function:
        for node in function.node_def:
            small[function.signature.name, node.name] = node
    total = 0
    for constant in constants:
        key = (constant.function, constant.node)
        total += constant.value.size_bytes
        node, extent = small.get(key), written.large.get(key)
        if node is None or not _same(constant, node, extent, checkpoint):
            # Whose fault is it? Raises if the checkpoint itself is damaged.
            checkpoint.verify([constant.value.saved.key])
            raise VerificationError(
                "A constant in the frozen graph differs from the checkpoint. Expected "
                "the same bytes; this is a bug in tfopt, please report it. Received: "
                f"node={constant.node!r}, key={constant.value.saved.key!r}"
            )
    return total


def _same(
    constant: Constant, node: Any, extent: Extent | None, checkpoint: BundleReader
) -> bool:
    value, tensor = constant.value, attr(node, "value").tensor
    saved = value.saved
    if value.dtype == dtypes.STRING:
        array = checkpoint.read(saved.key, saved.part)
        return list(tensor.string_val) == array.reshape(-1).tolist()
    if extent is None:
        written = crc32c.mask(crc32c.extend(0, tensor.tensor_content))
    else:
        written = extents.checksum(extent)
    return written == _expected(value, checkpoint)


def _expected(value: Any, checkpoint: BundleReader) -> int:
    saved = value.saved
    ranges = checkpoint.extents(saved.key, saved.part)
    if ranges is None:
        content = checkpoint.read(saved.key, saved.part).tobytes()
        return crc32c.mask(crc32c.extend(0, content))
    if len(ranges) == 1 and ranges[0].masked_crc is not None:
        return ranges[0].masked_crc
    crc = 0
    for extent in ranges:
        for chunk in extents.read(extent):
            crc = crc32c.extend(crc, chunk)
    return crc32c.mask(crc)


def check_execution(
    original: Mapping[str, Any],
    frozen: Mapping[str, Any],
    signatures: Mapping[str, Any],
    *,
    data: str | None,
) -> dict[str, Any]:
    """Runs both models in a child process, three calls in a row, and compares.

    Args:
        original: `{"kind": "saved_model", "path", "tags"}` or `{"kind": "meta_graph",
            "path", "checkpoint"}`.
        frozen: The same, or `{"kind": "graph_def" | "text", "path", "init_op",
            "asset_feeds"}`.
        signatures: Key -> SignatureDef.
        data: A `.npz` file with an array per input; by default made up.

    Returns:
        By signature and output: whether equal, and the largest differences.

    Raises:
        VerificationError: They differ, or cannot be run.
    """
    findings = compare_execution(original, frozen, signatures, data=data)
    for key, outputs in findings.items():
        for name, found in outputs.items():
            _judge(f"{key}/{name}", found)
    return findings


def compare_execution(
    original: Mapping[str, Any],
    frozen: Mapping[str, Any],
    signatures: Mapping[str, Any],
    *,
    data: str | None,
) -> dict[str, Any]:
    """Returns the findings of `check_execution`, whatever they are.

    Raises:
        VerificationError: A model cannot be run.
    """
    request = {
        "original": dict(original),
        "frozen": dict(frozen),
        "data": data,
        "signatures": {
            key: describe_signature(signature, key)
            for key, signature in signatures.items()
        },
    }
    return _run_child(request)


def describe_signature(signature: Any, key: str) -> dict[str, Any]:
    """Returns what running a signature takes, as plain data.

    Raises:
        VerificationError: An input isn't a plain tensor.
    """
    return {
        "inputs": _describe(signature.inputs, key),
        "outputs": {
            name: reader.tensor_names(info)[0]
            for name, info in signature.outputs.items()
        },
    }


def _describe(inputs: Mapping[str, Any], key: str) -> dict[str, Any]:
    described = {}
    for name, info in inputs.items():
        if info.WhichOneof("encoding") != "name":
            raise VerificationError(
                "Inputs of several tensors (sparse, ragged) cannot be made up. "
                'Expected plain tensors; freeze with verify="bytes", and compare '
                "yourself. "
                f"Received: input {name!r} of signature {key!r}"
            )
        shape = info.tensor_shape
        described[name] = {
            "tensor": info.name,
            "dtype": dtypes.name_of(info.dtype),
            "shape": None if shape.unknown_rank else [d.size for d in shape.dim],
        }
    return described


def _run_child(request: Mapping[str, Any]) -> dict[str, Any]:
    settings = {"TF_CPP_MIN_LOG_LEVEL": "2"}
    try:
        return _processes.ask("tfopt.freezing._execution", request, settings=settings)
    except _processes.Death as death:
        raise VerificationError(
            "The models cannot be run for comparison. Expected inputs made up from the "
            "signature to work; give real ones with `verify_data` (an .npz file). "
            f"Received: {death}"
        ) from None


def _judge(name: str, found: Mapping[str, Any]) -> None:
    limit = _ULPS * found["epsilon"] * max(1.0, found["scale"])
    if not found["deterministic"]:
        # The original differs from itself (random numbers): nothing to compare with.
        good = found["same_shapes"]
    else:
        good = found["equal"] and found["optimized_difference"] <= limit
    if not good:
        raise VerificationError(
            "The frozen model computes something else. Expected equal results without "
            f"TensorFlow's optimizer, and within {limit:.3g} with it; this is a bug in "
            f"tfopt, please report it. Received: output {name!r}, {dict(found)}"
        )
