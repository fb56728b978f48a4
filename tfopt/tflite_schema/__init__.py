"""Checks of `.tflite` files, before anything that trusts them reads them.

A `.tflite` file is a FlatBuffer: offsets that lead from table to table. The interpreter
and the schema's generated classes follow them unchecked, so a damaged file ends the
process, or takes all its memory. `check` follows each of them once.
"""

from tfopt.tflite_schema._references import check_references
from tfopt.tflite_schema._table import Damaged, Table, root
from tfopt.tflite_schema._verifying import check_structure

__all__ = ["Damaged", "Table", "check", "root"]


def check(data: object) -> None:
    """Checks a file as far as that is possible without running it.

    All offsets lead to something inside the file that doesn't take more room there
    than it has, and all numbers of tensors, buffers, operators and subgraphs exist.

    Args:
        data: Content of a `.tflite` file, as bytes or a memory map.

    Raises:
        Damaged: It is none; says why.

    Example:
        >>> with open("model.tflite", "rb") as file:
        ...     content = file.read()
        >>> check(content)
        >>> try:
        ...     check(content[:500])
        ... except Damaged as error:
        ...     print(error)
        it is cut off: ...
    """
    check_structure(data)
    check_references(root(data))
