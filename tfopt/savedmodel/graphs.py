"""Whether a graph is complete, and errors that say which file they are about."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from tfopt.types import ConversionError, TfoptError, UsageError, VerificationError

# Errors that are made of a message alone.
_PLAIN = (ValueError, TfoptError, ConversionError, VerificationError, UsageError)
# What contradictions within a file lead to.
_CONTRADICTIONS = (LookupError, OverflowError, RecursionError, TypeError)
_MOST_FAULTS = 5


def check(graph: Any, where: str | os.PathLike[str]) -> None:
    """Checks that all nodes of a graph and its functions are there, each once.

    Args:
        graph: A GraphDef.
        where: Its file, for messages.

    Raises:
        TfoptError: Lists what is wrong.
    """
    faults = list(_body_faults("", graph.node, ()))
    seen: set[str] = set()
    for function in graph.library.function:
        name = function.signature.name
        if name in seen:
            faults.append(f"function {name!r} is there twice")
        seen.add(name)
        faults += _function_faults(function)
    if faults:
        more = f" and {len(faults) - _MOST_FAULTS} more"
        raise TfoptError(
            "The graph is damaged. Expected each node and function once, and every "
            f"edge to lead to a node. Received: {os.fspath(where)} in which "
            f"{'; '.join(faults[:_MOST_FAULTS])}"
            f"{more if len(faults) > _MOST_FAULTS else ''}"
        )


@contextlib.contextmanager
def errors_of(where: Any) -> Iterator[None]:
    """Lets errors about a model on disk name it, and contradictions in it be such.

    Args:
        where: The path; anything else changes nothing.
    """
    if not isinstance(where, (str, os.PathLike)):
        yield
        return
    path = os.fspath(where)
    try:
        yield
    except _PLAIN as error:
        if path in str(error):
            raise
        if type(error) in _PLAIN:
            raise type(error)(f"{error} (in {path})") from error
        if isinstance(error, TfoptError):
            raise
        # UnicodeDecodeError and the like.
        raise _contradictory(path, error) from error
    except _CONTRADICTIONS as error:
        raise _contradictory(path, error) from error


def _contradictory(path: str, error: Exception) -> TfoptError:
    words = " ".join(str(error).split())[:200]
    return TfoptError(
        "The model contradicts itself. Expected an intact one; if TensorFlow can use "
        "it, please report this as a bug of tfopt. "
        f"Received: {path} ({type(error).__name__}: {words})"
    )


def _function_faults(function: Any) -> Iterator[str]:
    signature = function.signature
    arguments = [argument.name for argument in signature.input_arg]
    yield from _body_faults(signature.name, function.node_def, arguments)
    known = {*arguments, *(node.name for node in function.node_def)}
    for result in signature.output_arg:
        ref = function.ret.get(result.name)
        if ref is None or ref.split(":", 1)[0] not in known:
            yield f"result {result.name!r} of {signature.name!r} is missing"


def _body_faults(
    function: str, nodes: Iterable[Any], arguments: Iterable[str]
) -> Iterator[str]:
    place = f" of {function!r}" if function else ""
    counts = Counter(node.name for node in nodes)
    known = {*counts, *arguments}
    twice = next((name for name, count in counts.items() if count > 1), None)
    if twice is not None:
        yield f"node {twice!r}{place} is there twice"
    for node in nodes:
        for ref in node.input:
            if ref.removeprefix("^").split(":", 1)[0] not in known:
                yield f"node {node.name!r}{place} needs {ref!r}, which is missing"
