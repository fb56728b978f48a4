"""Keyword-only parameters of a function or class, read from its source text.

A command must show its flags at once, but importing the function behind it would
load TensorFlow for seconds. So the source is parsed and never run; annotations and
defaults are evaluated with the standard library alone.
"""

from __future__ import annotations

import ast
import builtins
import dataclasses
import functools
import importlib
import importlib.util
import inspect
import pathlib
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

Function: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef


class _UnknownType(type):
    """Makes `Unknown` absorb whatever an annotation does with it."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return cls

    def __getitem__(cls, item: Any) -> Any:
        return cls

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        return cls


class Unknown(metaclass=_UnknownType):
    """Stands for anything that the standard library alone cannot evaluate."""


class Required:
    """Stands for the default of a parameter that has none."""


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One keyword-only parameter.

    Attributes:
        name: Its name.
        annotation: The evaluated annotation, in which `Unknown` stands for every
            type from outside the standard library.
        default: The evaluated default, `Unknown` where that takes an import, or
            `Required`.
        help: Its entry in the docstring's `Args:` section, as one line, or "".
    """

    name: str
    annotation: Any
    default: Any
    help: str


def parameters(target: str | Callable[..., Any]) -> tuple[Parameter, ...]:
    """Returns the keyword-only parameters of a function or class, in order.

    Of a class these are the ones of its own `__init__`; of a dataclass, its fields.

    Args:
        target: `"package.module:name"`, which is not imported, or a function or
            class at the top level of a module.

    Raises:
        TypeError: The source of `target` cannot be found.

    Example:
        >>> [item.name for item in parameters("tfopt.report:Report")][:3]
        ['title', 'tables', 'notes']
    """
    module_name, name = split(target)
    module, node = _module(module_name).find(name)
    if isinstance(node, ast.ClassDef):
        return _of_class(module, node)
    if isinstance(node, Function):
        return _of_function(module, node, ast.get_docstring(node))
    raise TypeError(
        "Expected a function or class defined at the top level of a module. "
        f"Received: target={target!r}"
    )


def split(target: str | Callable[..., Any]) -> tuple[str, str]:
    """Returns the module and the name of what `parameters` takes."""
    if not isinstance(target, str):
        return target.__module__, target.__qualname__
    module_name, colon, name = target.partition(":")
    if not (module_name and colon and name):
        raise TypeError(f"Expected 'module:name'. Received: target={target!r}")
    return module_name, name


def _of_class(module: _Module, node: ast.ClassDef) -> tuple[Parameter, ...]:
    text = ast.get_docstring(node)
    for item in node.body:
        if isinstance(item, Function) and item.name == "__init__":
            return _of_function(module, item, text)
    if not any("dataclass" in ast.unparse(item) for item in node.decorator_list):
        return ()
    described = _entries(text)
    return tuple(
        Parameter(
            name=item.target.id,
            annotation=module.annotation(item.annotation),
            default=_field_default(module, item.value),
            help=described.get(item.target.id, ""),
        )
        for item in node.body
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
    )


def _of_function(
    module: _Module, node: Function, text: str | None
) -> tuple[Parameter, ...]:
    described = _entries(text)
    return tuple(
        Parameter(
            name=item.arg,
            annotation=module.annotation(item.annotation),
            default=Required if default is None else module.evaluate(default),
            help=described.get(item.arg, ""),
        )
        for item, default in zip(
            node.args.kwonlyargs, node.args.kw_defaults, strict=True
        )
    )


def _field_default(module: _Module, node: ast.expr | None) -> Any:
    if node is None:
        return Required
    value = module.evaluate(node)
    if not isinstance(value, dataclasses.Field):
        return value
    if value.default is not dataclasses.MISSING:
        return value.default
    if value.default_factory is not dataclasses.MISSING:
        return value.default_factory()
    return Required


def _entries(text: str | None) -> dict[str, str]:
    """Returns name -> description from `Args:` and `Attributes:`, one line each."""
    found: dict[str, str] = {}
    names: list[str] = []
    inside, indent = False, 0
    for line in (text or "").splitlines():
        depth = len(line) - len(line.lstrip())
        if not line.strip():
            continue
        if depth == 0:
            inside, indent, names = line in ("Args:", "Attributes:"), 0, []
        elif inside:
            indent = indent or depth
            entry = re.match(r"([\w, *]+?)(?: \(.*?\))?:(?: |$)(.*)", line.strip())
            if depth == indent and entry:
                names = [name.strip(" *") for name in entry[1].split(",")]
                found.update(dict.fromkeys(names, entry[2].strip()))
            else:
                found.update({name: f"{found[name]} {line.strip()}" for name in names})
    return {name: description.strip() for name, description in found.items()}


class _Module(Mapping[str, Any]):
    """A parsed source file; as a mapping, its names evaluated on demand."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.path = _source_path(name)
        tree = ast.parse(self.path.read_text(encoding="utf-8"), str(self.path))
        self._nodes = dict(_definitions(tree.body))

    def __iter__(self):
        return iter(self._nodes)

    def __len__(self) -> int:
        return len(self._nodes)

    def __contains__(self, name: object) -> bool:
        return name in self._nodes

    def __getitem__(self, name: str) -> Any:
        node = self._nodes.get(name)
        if node is None:
            return getattr(builtins, name, Unknown)
        if isinstance(node, ast.Import):
            return self._imported(node, name)
        if isinstance(node, ast.ImportFrom):
            source = node.module or ""
            original = _original(node, name)
            if _is_standard(source):
                return getattr(importlib.import_module(source), original, Unknown)
            return _from_ours(source, original) if _is_ours(source) else Unknown
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None:
            return self.evaluate(node.value)
        return Unknown

    def find(self, name: str) -> tuple[_Module, ast.stmt | None]:
        """Returns the definition of `name`, through `from tfopt... import`."""
        node = self._nodes.get(name)
        if isinstance(node, ast.ImportFrom) and _is_ours(node.module or ""):
            return _module(node.module or "").find(_original(node, name))
        return self, node

    def evaluate(self, node: ast.expr | None) -> Any:
        """Returns the value of an expression, or `Unknown`."""
        if node is None:
            return Unknown
        code = compile(ast.Expression(node), str(self.path), "eval")
        try:
            # The names come from this mapping: as locals it is asked first.
            return eval(code, {"__builtins__": {}}, self)
        except Exception:
            return Unknown

    def annotation(self, node: ast.expr | None) -> Any:
        """Returns the type that an annotation means, quoted or not."""
        value = self.evaluate(node)
        if isinstance(value, str):
            return self.evaluate(ast.parse(value, mode="eval").body)
        return value

    def _imported(self, node: ast.Import, name: str) -> Any:
        original = _original(node, name)
        if not _is_standard(original):
            return Unknown
        module = importlib.import_module(original)
        # `import a.b` binds `a`.
        return module if "." not in original else sys.modules[original.split(".")[0]]


class _Attributes:
    """A parsed module as an expression sees it: `masks` in `masks.Scope`."""

    def __init__(self, module: _Module) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return self._module[name]


def _from_ours(source: str, name: str) -> Any:
    """Returns what `from source import name` binds, a submodule perhaps."""
    module = _module(source)
    if name in module:
        return module[name]
    try:
        return _Attributes(_module(f"{source}.{name}"))
    except TypeError:
        return Unknown


@functools.cache
def _module(name: str) -> _Module:
    return _Module(name)


def _definitions(body: list[ast.stmt]):
    """Yields (name, statement) of a module, conditional ones included."""
    for node in body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            for alias in node.names:
                bound = alias.asname or alias.name
                if isinstance(node, ast.Import) and alias.asname is None:
                    bound = alias.name.split(".")[0]
                yield bound, node
        elif isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node.name, node
        elif isinstance(node, ast.Assign):
            for item in node.targets:
                if isinstance(item, ast.Name):
                    yield item.id, node
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id, node
        elif isinstance(node, (ast.If, ast.Try)):
            yield from _definitions(node.body)
            yield from _definitions(node.orelse)


def _original(node: ast.Import | ast.ImportFrom, name: str) -> str:
    for alias in node.names:
        if name in (alias.asname, alias.name) or (
            isinstance(node, ast.Import) and alias.name.split(".")[0] == name
        ):
            return alias.name
    return name


def _is_standard(module_name: str) -> bool:
    return module_name.split(".")[0] in sys.stdlib_module_names


def _is_ours(module_name: str) -> bool:
    return module_name.split(".")[0] == __name__.split(".")[0]


def _source_path(name: str) -> pathlib.Path:
    loaded = sys.modules.get(name)
    if loaded is not None and getattr(loaded, "__file__", None):
        return pathlib.Path(inspect.getfile(loaded))
    # Only the top-level package is asked for its place: finding a submodule through
    # importlib would run the packages above it.
    top, *rest = name.split(".")
    spec = importlib.util.find_spec(top)
    if spec is not None and spec.origin is not None:
        path = pathlib.Path(spec.origin)
        if rest:
            path = path.parent.joinpath(*rest)
        for candidate in (path.with_suffix(".py"), path / "__init__.py"):
            if candidate.is_file():
                return candidate
    raise TypeError(f"Cannot find the source of the module {name!r}.")
