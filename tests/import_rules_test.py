"""Who may import whom: the table of DESIGN section 2, read from the source."""

import ast
import dataclasses
import importlib.metadata
import os
import pathlib
import re
import subprocess
import sys
import textwrap

import pytest

ROOT = pathlib.Path(__file__).parent.parent
HEAVY = frozenset({"tensorflow", "keras", "tf_keras", "tensorflow_model_optimization"})
KERAS = frozenset({"keras", "tf_keras"})


@dataclasses.dataclass(frozen=True)
class Rule:
    """What a module or package directly below tfopt may import, beside the stdlib.

    `packages` are third-party ones, `lazy` those that only functions may import,
    `tfopt` the other parts of tfopt; a package may always import its own modules.
    """

    packages: str = ""
    lazy: str = ""
    tfopt: str = ""

    def allows(self, found):
        if found.part is not None:
            return found.part in self.tfopt.split()
        allowed = self.packages.split() + (self.lazy.split() if found.is_lazy else [])
        return found.package in allowed


# Parts that are not listed, and those that compose everything, meet only BANS.
RULES = {
    "__init__": Rule(),
    "types": Rule("numpy"),
    "artifacts": Rule("", "", "types _writing _json_files"),
    "_writing": Rule("", "", "types"),
    "schedules": Rule("", "", "types"),
    "packing": Rule("", "zstandard", "types artifacts"),
    "masks": Rule("numpy", "", "types"),
    "affine": Rule("numpy", "", "types"),
    "runner": Rule(
        "numpy ai_edge_litert",
        "rich",
        "types artifacts tflite_file tflite_schema _array_files _json_files _processes"
        " _progress",
    ),
    "benchmark": Rule(
        "numpy",
        "tensorflow",
        "types artifacts tflite_file runner data report _keras savedmodel _trust"
        " _processes _progress",
    ),
    "comparison": Rule("numpy", "", "types artifacts data benchmark report _trust"),
    "tflite_file": Rule(
        "numpy flatbuffers ai_edge_litert", "", "types affine tflite_schema"
    ),
    "tflite_schema": Rule(),
    "sparse_inference": Rule("numpy", "", "types tflite_file"),
    "report": Rule("numpy", "rich matplotlib", "types artifacts runner benchmark"),
    "data": Rule("numpy", "tensorflow", "types _array_files"),
    "_array_files": Rule("numpy"),
    "_json_files": Rule(),
    "savedmodel": Rule(
        "numpy google google_crc32c", "ml_dtypes", "types artifacts _trust"
    ),
    "methods": Rule(
        "numpy tensorflow",
        "",
        # Teachers may be `.tflite` files.
        "_keras _samples schedules masks affine types runner tflite_file savedmodel",
    ),
    "_keras": Rule(
        "numpy tensorflow",
        "h5py keras tf_keras",
        "types artifacts affine _child _trust savedmodel",
    ),
    "freezing": Rule(
        "numpy tensorflow",
        "google ml_dtypes",
        "types artifacts savedmodel _keras _trust _processes _progress",
    ),
    "grappler": Rule(
        "numpy tensorflow",
        "google",
        "types artifacts savedmodel freezing benchmark report _trust _processes"
        " _progress",
    ),
    "checkpoint": Rule(
        "numpy tensorflow",
        "google ml_dtypes",
        "types artifacts savedmodel _keras _trust _json_files",
    ),
    "transforms": Rule(
        "numpy tensorflow",
        "google ml_dtypes rich",
        "types artifacts affine masks savedmodel freezing _signatures _trust"
        " _processes _progress",
    ),
    "conversion": Rule(
        "numpy tensorflow ai_edge_litert",
        "",
        "types artifacts affine tflite_file runner savedmodel freezing data inspection"
        " micro _keras _samples _trust _processes _progress",
    ),
    "finetuning": Rule(
        "numpy",
        "rich",
        "types artifacts data report runner analysis training methods conversion"
        " tfmot _keras _child lifting recipe _trust _json_files _progress",
    ),
    "recipe": Rule(
        "numpy",
        "",
        "types artifacts _signatures _json_files _keras conversion finetuning grappler"
        " lifting methods pruning surgery transforms",
    ),
    "optimizing": Rule(
        "numpy tensorflow",
        "",
        "types artifacts data report runner benchmark comparison inspection recipe"
        " quantization finetuning lifting training methods conversion _keras"
        " surgery savedmodel _trust _json_files _progress",
    ),
    "surgery": Rule("numpy tensorflow", "", "types masks _keras"),
    "lifting": Rule(
        "numpy tensorflow", "google", "types freezing _keras _trust savedmodel"
    ),
    "training": Rule("", "", "types _keras lifting methods"),
    "pruning": Rule(
        "numpy", "", "types artifacts masks _keras methods _json_files _progress"
    ),
    "micro": Rule("numpy", "", "types artifacts inspection tflite_file"),
    "inspection": Rule(
        "numpy",
        "tensorflow rich",
        "types artifacts report tflite_file savedmodel freezing _keras analysis data"
        " _trust _progress",
    ),
    "analysis": Rule(
        "numpy",
        "tensorflow",
        "types artifacts tflite_file _keras pruning quantization _trust",
    ),
    "quantization": Rule(
        "numpy",
        "matplotlib",
        "types artifacts affine report tflite_file conversion data _keras _samples"
        " _json_files _progress",
    ),
    "tfmot": Rule(
        "",
        "tensorflow tf_keras tensorflow_model_optimization",
        "types _keras artifacts",
    ),
    "_flags": Rule(
        "absl", "rich", "_progress _quiet _signatures _text artifacts types"
    ),
    "_child": Rule("absl", "", "types artifacts _trust _processes"),
    "_progress": Rule("", "rich", "_text"),
    "_quiet": Rule(),
    "_text": Rule(),
    "_trust": Rule(),
    "_signatures": Rule(),
    "_samples": Rule("numpy", "", "types data"),
    "_processes": Rule("", "", "artifacts"),
    "tools": Rule("absl", "", "_flags"),
}
# Modules that work where there is no TensorFlow.
LIGHT = (
    *("types", "artifacts", "schedules", "masks", "affine", "runner", "benchmark"),
    *(
        "packing",
        "tflite_file",
        "report",
        "data",
        "savedmodel",
        "_flags",
        "_array_files",
        "_json_files",
        "_processes",
        "_quiet",
        "_samples",
        "_signatures",
    ),
)


@dataclasses.dataclass(frozen=True)
class Import:
    """One import statement, of a third-party package or of a part of tfopt."""

    module: str
    line: int
    is_lazy: bool
    package: str = ""
    part: str | None = None
    is_relative: bool = False

    @property
    def owner(self):
        return self.module.split(".")[1]


def name_of(path, root=ROOT):
    parts = path.relative_to(root).with_suffix("").parts
    if parts[0] == "tools":
        parts = ("tfopt", *parts)
    if parts[-1] == "__init__" and len(parts) > 2:
        parts = parts[:-1]
    return ".".join(parts)


def sources():
    found = [*ROOT.glob("tfopt/**/*.py"), *ROOT.glob("tools/*.py")]
    return {name_of(path): path.read_text(encoding="utf-8") for path in sorted(found)}


SOURCES = sources()


def imports(module, text):
    """Yields an `Import` for each name that a source imports."""
    typing_only = set()
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            typing_only |= {id(item) for part in node.body for item in ast.walk(part)}
    lazy = {
        id(item)
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for item in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        for name, is_relative in imported_names(node):
            top = name.split(".")[0]
            if top in sys.stdlib_module_names and not is_relative:
                continue
            ours = top == "tfopt" and not is_relative
            yield Import(
                module=module,
                line=node.lineno,
                is_lazy=id(node) in lazy,
                package="" if ours else top,
                part=[*name.split("."), "__init__"][1] if ours else None,
                is_relative=is_relative,
            )


def imported_names(node):
    """Returns (dotted name, is it relative) of all that a node imports."""
    if isinstance(node, ast.Import):
        return [(alias.name, False) for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        if node.level:
            return [(node.module or ".", True)]
        return [(f"{node.module}.{alias.name}", False) for alias in node.names]
    # importlib.import_module("name") is an import too.
    if (
        isinstance(node, ast.Call)
        and ast.unparse(node.func).endswith("import_module")
        and node.args
        and isinstance(node.args[0], ast.Constant)
    ):
        return [(node.args[0].value, False)]
    return []


def breaches(module, text):
    """Returns what a source does against the rules, one line each."""
    found = []
    owner = [*module.split("."), "__init__"][1]
    for item in imports(module, text):
        what = item.package or f"tfopt.{item.part}"
        rule = RULES.get(owner)
        if item.is_relative:
            found.append(f"{module}:{item.line} imports relatively")
        elif item.part == owner:
            continue
        elif rule is not None and not rule.allows(item):
            late = " at the top" if what in rule.lazy.split() else ""
            found.append(f"{module}:{item.line} imports {what}{late}")
        elif rule is None and is_banned(item, owner):
            found.append(f"{module}:{item.line} imports {what}")
    found += keras_breaches(owner, module, text) + method_breaches(module, text)
    return list(dict.fromkeys(found))


def is_banned(item, owner):
    return (
        item.part in ("_flags", "_quiet", "tools")
        or item.package in {*KERAS, "tensorflow_model_optimization", "absl"}
        or (item.part == "quickstart" and owner != "quickstart")
    )


def keras_breaches(owner, module, text):
    """Only `_keras` asks which Keras there is; so `tf.keras` is its word alone."""
    if owner == "_keras":
        return []
    return [
        f"{module}:{node.lineno} uses tf.keras"
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Attribute)
        and node.attr == "keras"
        and ast.unparse(node.value) in ("tf", "tensorflow")
    ]


def method_breaches(module, text):
    """No method knows another one."""
    parts = module.split(".")
    if parts[1] != "methods" or len(parts) < 3:
        return []
    found = []
    for node in ast.walk(ast.parse(text)):
        for name, _ in imported_names(node):
            target = name.split(".")
            is_method = target[:2] == parts[:2] and not target[2].startswith("_")
            if is_method and target[2] != parts[2]:
                found.append(f"{module}:{node.lineno} imports {name}")
    return found


@pytest.mark.parametrize("module", SOURCES)
def test_a_module_imports_only_what_the_table_allows(module):
    assert not breaches(module, SOURCES[module])


@pytest.mark.parametrize(
    ("module", "text", "breach"),
    [
        ("tfopt.types", "import tensorflow as tf", "imports tensorflow"),
        ("tfopt.types", "import numpy\nimport os.path", ""),
        ("tfopt.masks", "from tfopt import schedules", "imports tfopt.schedules"),
        ("tfopt.runner._x", "import keras", "imports keras"),
        ("tfopt.runner._x", "from tfopt.runner import _y", ""),
        ("tfopt.runner._x", "def f():\n  import tensorflow", "imports tensorflow"),
        ("tfopt.report._x", "import rich", "imports rich at the top"),
        ("tfopt.report._x", "def f():\n  from rich import box", ""),
        ("tfopt.types", "from .masks import x", "relatively"),
        ("tfopt.methods.a", "from tfopt.methods.b import B", "methods.b"),
        ("tfopt.methods.a", "from tfopt.methods import b", "methods.b"),
        ("tfopt.methods._a", "import tfopt.methods.b", "methods.b"),
        ("tfopt.methods.a._x", "from tfopt.methods.a import _y, _z", ""),
        ("tfopt.methods.a", "from tfopt.methods._base import Method", ""),
        ("tfopt.methods.a", "from tfopt import conversion", "tfopt.conversion"),
        ("tfopt.conversion._x", "import keras", "imports keras"),
        ("tfopt.conversion._x", "x = tf.keras.Model", "uses tf.keras"),
        ("tfopt.conversion", "import tensorflow_model_optimization", "optimization"),
        ("tfopt.conversion", "import_module('tf_keras')", "imports tf_keras"),
        ("tfopt.conversion", "from tfopt import quickstart", "tfopt.quickstart"),
        ("tfopt.unlisted", "from tfopt import _flags", "tfopt._flags"),
        ("tfopt.unlisted", "import tfopt.tools.x", "tfopt.tools"),
        ("tfopt.unlisted", "import keras", "imports keras"),
        ("tfopt.unlisted", "import tensorflow\nfrom tfopt import conversion", ""),
        ("tfopt.conversion", "import tensorflow as tf\nfrom tfopt import affine", ""),
        ("tfopt.tools.x", "import numpy", "imports numpy"),
        ("tfopt.tools.x", "from tfopt import _flags", ""),
        ("tfopt.__init__", "import numpy", "imports numpy"),
    ],
)
def test_the_scan_finds_breaches_and_nothing_else(module, text, breach):
    found = breaches(module, text)
    assert len(found) == bool(breach)
    assert all(breach in line for line in found)


def test_typing_imports_are_no_imports():
    text = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n  import tensorflow"
    assert not breaches("tfopt.types", text)
    assert breaches("tfopt.types", text.replace("if TYPE_CHECKING", "if True"))


def in_child(code):
    """Runs code where importing TensorFlow or a Keras fails; returns its output."""
    poison = f"import sys\nfor name in {sorted(HEAVY)}: sys.modules[name] = None\n"
    return subprocess.run(
        [sys.executable, "-c", poison + textwrap.dedent(code)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_light_modules_import_without_tensorflow():
    modules = [name for name in SOURCES if name.split(".")[1] in LIGHT]
    assert "tfopt.types" in modules
    done = in_child(f"""
        import importlib
        for name in {modules}:
            importlib.import_module(name)
        print("imported")
    """)
    assert done.stdout == "imported\n", done.stderr


@pytest.mark.parametrize("name", sorted(HEAVY))
def test_the_trap_fires(name):
    done = in_child(f"import {name}")
    assert done.returncode == 1
    assert "ModuleNotFoundError" in done.stderr


def test_a_bare_import_loads_nothing_heavy():
    done = in_child("""
        import tfopt
        third_party = {name.split(".")[0] for name in sys.modules}
        third_party -= {*sys.stdlib_module_names, "tensorflow", "keras", "tf_keras"}
        print(sorted(name for name in third_party if not name.startswith("_")))
        print(sorted(name for name in sys.modules if name.startswith("tfopt")))
        dir(tfopt)
        try:
            tfopt.no_such_name
        except AttributeError as error:
            print(error)
        print("numpy" in sys.modules)
    """)
    packages, modules, error, has_numpy = done.stdout.splitlines()
    assert modules == "['tfopt']"
    assert not {"numpy", "absl", "rich", "ai_edge_litert"} & set(
        ast.literal_eval(packages)
    )
    assert "no_such_name" in error
    assert has_numpy == "False"


def distribution(requirement):
    return re.split(r"[^\w.-]", requirement)[0].lower().replace("_", "-")


def undeclared(packages):
    """Returns the packages that neither setup.py nor TensorFlow itself asks for."""
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    texts = [
        node.value
        for node in ast.walk(ast.parse(setup))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    asked = {*map(distribution, texts + importlib.metadata.requires("tensorflow"))}
    providers = importlib.metadata.packages_distributions()
    return [
        package
        for package in sorted(packages)
        if not asked & {*map(distribution, providers.get(package, []))}
    ]


def test_every_imported_package_is_a_declared_dependency():
    packages = {
        item.package
        for module, text in SOURCES.items()
        for item in imports(module, text)
        if item.package
    }
    assert {"numpy", "absl"} <= packages
    assert not undeclared(packages)
    assert undeclared({"pygments", "not_installed"}) == ["not_installed", "pygments"]
