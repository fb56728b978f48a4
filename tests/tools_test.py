"""What every command line tool promises, checked on each file in tools/."""

import ast
import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
TOOLS = sorted(
    path.stem for path in (ROOT / "tools").glob("*.py") if path.stem != "__init__"
)
# Tools start where importing TensorFlow fails: whatever shows help or refuses a flag
# has not waited for it.
WITHOUT_TENSORFLOW = """
import runpy, sys
for name in ("tensorflow", "keras", "tf_keras"):
    sys.modules[name] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run_tool(name, *arguments, folder):
    path = ROOT / "tools" / f"{name}.py" if isinstance(name, str) else name
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_TENSORFLOW, str(path), *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def flags_of(text):
    """Returns flag -> help of a --helpshort output."""
    found = re.findall(r"^  --(?:\[no\])?([\w.]+):((?:.|\n    )*)", text, re.MULTILINE)
    return {name: description.strip() for name, description in found}


def example(text):
    """Returns the example of a help text."""
    return text.split("\nFlags:")[0].split("Example:\n")[1].strip()


def example_flags(text):
    """Returns the flags in the example of a help text."""
    return re.findall(r"--([\w.]+)", example(text))


def unknown_flags(flags, known):
    """Returns those of a command's flags that a tool does not have."""
    accepted = {*known, *(f"no{name}" for name in known)}
    accepted |= {"helpshort", "help", "flagfile"}
    return sorted(set(flags) - accepted)


@pytest.mark.parametrize("name", TOOLS)
def test_help_is_complete_with_an_example(name, tmp_path):
    done = run_tool(name, "--helpshort", folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    flags = flags_of(done.stdout)
    assert {"report", "debug"} <= set(flags)
    bare = [flag for flag, text in flags.items() if not re.match(r"[A-Z`\"]", text)]
    assert not bare, "flags without a sentence of help"
    assert f"tools/{name}.py" in done.stdout.split("Example:")[1]
    # A terminal runs it as it is copied, all lines.
    assert len(re.sub(r"\\\n", "", example(done.stdout)).splitlines()) == 1
    assert not unknown_flags(example_flags(done.stdout), flags)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", TOOLS)
@pytest.mark.parametrize("argument", ["--no_such_flag=1", "stray", "--debug=maybe"])
def test_bad_usage_is_one_line_and_exit_2(name, argument, tmp_path):
    done = run_tool(name, argument, folder=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(f"{name}: ")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", TOOLS)
def test_a_tool_holds_no_logic(name):
    """Its file is a docstring, imports, constants, `run` and the call of it."""
    tree = ast.parse((ROOT / "tools" / f"{name}.py").read_text(encoding="utf-8"))
    assert ast.get_docstring(tree)
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    assert [function.name for function in functions] == ["run"]
    branches = (ast.For, ast.While, ast.If, ast.Try, ast.With)
    assert not [node for node in ast.walk(functions[0]) if isinstance(node, branches)]


@pytest.mark.parametrize("name", TOOLS)
def test_a_tool_is_a_console_script(name):
    assert re.fullmatch(r"[a-z][a-z0-9_]*", name)
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    assert "=tfopt.tools.{name}:run" in setup


BAD_TOOL = '''
"""Does things.

Example:
    python tools/bad.py --size=3 --speed=1
"""
import tensorflow
'''


def test_the_checks_can_fail(tmp_path):
    bad = tmp_path / "bad.py"
    bad.write_text(BAD_TOOL)
    done = run_tool(bad, "--helpshort", folder=tmp_path)
    assert done.returncode == 1
    assert "ModuleNotFoundError" in done.stderr
    text = (
        "Example:\n    python tools/bad.py --size=3 --nofast\n\nFlags:\n"
        "  --[no]fast: Is quick.\n    (default: 'true')\n  --size:\n    (an integer)\n"
    )
    assert flags_of(text) == {
        "fast": "Is quick.\n    (default: 'true')",
        "size": "(an integer)",
    }
    assert example_flags(text) == ["size", "nofast"]
    assert unknown_flags(["size", "nofast", "help"], flags_of(text)) == []
    assert unknown_flags(["sizes", "nomore"], flags_of(text)) == ["nomore", "sizes"]
