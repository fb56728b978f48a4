"""Every public name resolves and is documented in full."""

import ast
import dataclasses
import inspect
import pathlib
import re
import textwrap

import pytest

import tfopt

ROOT = pathlib.Path(__file__).parent.parent
MODULES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in sorted(ROOT.glob("tfopt/**/*.py"))
    if not any(part.startswith("_") and part != "__init__.py" for part in path.parts)
}


def lacks(value):
    """Returns what the docstring of a public function or class lacks."""
    doc = inspect.getdoc(value) or ""
    if not re.match(r"\S.*[.?!]$", doc.split("\n\n")[0], re.DOTALL):
        return ["a first sentence"]
    if inspect.isclass(value):
        return class_lacks(value, doc)
    missing = [name for name in parameter_names(value) if not has_entry(doc, name)]
    returned = inspect.signature(value).return_annotation
    if returned not in (None, "None", inspect.Signature.empty) and not re.search(
        r"^(Returns|Yields):$|^Returns |^Yields |^Whether ", doc, re.MULTILINE
    ):
        missing.append("Returns")
    if raises(value) and "\nRaises:\n" not in doc:
        missing.append("Raises")
    if "\nExample:\n" not in doc:
        missing.append("Example")
    return missing


def class_lacks(cls, doc):
    if issubclass(cls, Exception):
        return []
    if dataclasses.is_dataclass(cls):
        names = [field.name for field in dataclasses.fields(cls)]
        return [name for name in names if not has_entry(doc, name)]
    missing = [name for name in parameter_names(cls) if not has_entry(doc, name)]
    return missing + (["Example"] if "\nExample:\n" not in doc else [])


def parameter_names(value):
    return [name for name in inspect.signature(value).parameters if name != "self"]


def has_entry(doc, name):
    names = rf"(?:[\w*]+, )*\*{{0,2}}{name}(?:, [\w*]+)*"
    return re.search(rf"^    {names}(?: \(.*\))?:", doc, re.MULTILINE)


def raises(function):
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    return any(isinstance(node, ast.Raise) and node.exc for node in ast.walk(tree))


@pytest.mark.parametrize("name", tfopt.__all__)
def test_a_public_name_resolves_and_is_documented(name):
    value = getattr(tfopt, name)
    assert name in dir(tfopt)
    if inspect.isclass(value) or inspect.isroutine(value):
        assert value.__name__ == name
        assert not lacks(value)


def documented(size, *, fast: bool = True, **more) -> int:
    """Documents itself.

    Args:
        size: In bytes, or
            so.
        fast: How.
        **more: Further things.

    Returns:
        A number.

    Raises:
        ValueError: Always.

    Example:
        >>> documented(1)
    """
    raise ValueError


@pytest.mark.parametrize(
    ("old", "new", "missing"),
    [
        ("", "", []),
        ("size: In", "sizes: In", ["size"]),
        ("fast: How.", "size, fast: How.", []),
        ("fast: How.", "", ["fast"]),
        ("**more:", "many:", ["more"]),
        ("Returns:", "Gives:", ["Returns"]),
        ("Raises:", "Gives:", ["Raises"]),
        ("Example:", "For example:", ["Example"]),
        ("Documents itself.", "Documents", ["a first sentence"]),
    ],
)
def test_the_check_finds_what_is_missing(monkeypatch, old, new, missing):
    monkeypatch.setattr(documented, "__doc__", documented.__doc__.replace(old, new))
    assert lacks(documented) == missing


def undocumented(text):
    """Returns the public functions, classes and methods without a docstring."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)

    def visit(body):
        for node in body:
            if isinstance(node, kinds) and not node.name.startswith("_"):
                if not ast.get_docstring(node):
                    yield node.name
                if isinstance(node, ast.ClassDef):
                    yield from visit(node.body)

    tree = ast.parse(text)
    missing = [] if ast.get_docstring(tree) else ["module"]
    return missing + list(visit(tree.body))


@pytest.mark.parametrize("module", MODULES)
def test_nothing_public_in_a_public_module_lacks_a_docstring(module):
    assert not undocumented(MODULES[module])


def test_the_scan_finds_missing_docstrings():
    text = (
        "def _private(): pass\n"
        "def f(): pass\n"
        "class C:\n"
        '    """Doc."""\n'
        "    def m(self): pass\n"
        "    def _p(self): pass\n"
        "    def __len__(self): pass\n"
        "class _P:\n"
        "    def q(self): pass\n"
    )
    assert undocumented(text) == ["module", "f", "m"]
