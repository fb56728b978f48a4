"""`obfuscate_names`: short names without meaning."""

from __future__ import annotations

import itertools
import string
from collections.abc import Collection, Iterator

from tfopt.transforms import _naming
from tfopt.transforms._base import Findings, GraphModel, transform


# A name may come to mean another node, of another type.
@transform(adds_nodes=True, keeps_dtypes=False, aliases=("obsfucate_names",))
def obfuscate_names(graph: GraphModel) -> Findings:
    """Gives nodes and functions short names that tell nothing.

    Makes files smaller and their architecture harder to read. Inputs, outputs and init
    operations keep their names, as do arguments and results of functions.

    Args:
        graph: The graph.

    Returns:
        `nodes` and `functions`: how many were renamed.
    """
    num_nodes = 0
    for body in graph.bodies:
        names = _short_names(body.nodes, {*body.kept, *body.arguments})
        _naming.rename_nodes(body, names)
        num_nodes += len(names)
    functions = _short_names(graph.functions, ())
    _naming.rename_functions(graph, functions)
    return {"nodes": num_nodes, "functions": len(functions)}


def _short_names(old: Collection[str], taken: Collection[str]) -> dict[str, str]:
    """Returns short names in place of those that aren't taken, by their order.

    The order alone decides, so that doing it again changes nothing.
    """
    free = (name for name in _candidates() if name not in taken)
    pairs = ((name, next(free)) for name in old if name not in taken)
    return {name: short for name, short in pairs if name != short}


def _candidates() -> Iterator[str]:
    """Yields a, b, ..., z, aa, ab, ...; operations have capital letters."""
    for length in itertools.count(1):
        for letters in itertools.product(string.ascii_lowercase, repeat=length):
            yield "".join(letters)
