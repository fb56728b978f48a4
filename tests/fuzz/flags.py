"""Command lines: mutated values of every flag of every tool.

The tools' own `main` parses them, in this process; of tools that start with reading a
file, the work is done as well, on files that are not there.
"""

import contextlib
import importlib
import io
import pathlib
import sys

from fuzz import bits

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
TOOLS = sorted(path.stem for path in (ROOT / "tools").glob("[a-z]*.py"))
VALUES = (
    *("", "0", "1", "-1", "1e3", "1e999", "nan", "-inf", "0x10", "1_000", "٣", "³"),
    *("true", "false", "none", "None", "auto", "on", "int8", "float32", "a,b", "a,,b"),
    *('"a', "'a'", '"a","b"', ",", "a=b", "x" * 5000, "1" * 5000, "--x", "-", "--"),
    *("\ud800", "\x01", "\n", "\r", "a\nb", "/nowhere/x", "/dev/null", ".", "~", "%s"),
    *("nowhere.npz", "nowhere:function", "os:getcwd", "x" * 300 + ".pb", "1" * 30),
)


class Wrong(Exception):
    """A tool did not end as it should; never an error that is expected."""


class FlagsReader:
    """`_flags.main` with the flags of every tool."""

    def __init__(self, folder, work):
        del folder
        from absl import flags

        from tfopt import _flags

        self._flags_module, self._absl = _flags, flags
        self._work = work
        self._known = {tool: self._flags_of(tool) for tool in TOOLS}

    def _flags_of(self, tool):
        values = self._absl.FlagValues()
        self._defined(tool, values)
        return sorted(name for name in values if name not in ("debug", "report"))

    def _defined(self, tool, values):
        """Runs the tool's module with other flag values; returns what it would do."""
        module = importlib.import_module(f"tools.{tool}")
        found = {}

        class Recorder:
            def define(self, target, **options):
                return flags_module.define(target, flag_values=values, **options)

            def define_methods(self):
                return flags_module.define_methods(flag_values=values)

            def main(self, work, *, module):
                found["work"], found["module"] = work, module

        flags_module = self._flags_module
        module._flags, original = Recorder(), module._flags
        try:
            module.run()
        finally:
            module._flags = original
        return found["work"], found["module"]

    def mutate(self, rng):
        tool = rng.choice(TOOLS)
        arguments = []
        for _ in range(rng.choice((0, 1, 1, 2, 3, 6, 12))):
            name = rng.choice(self._known[tool])
            if rng.random() < 0.05:
                name = rng.choice(("x", "", "help", "flagfile", "undefok", "no" + name))
            value = rng.choice(VALUES)
            if rng.random() < 0.2:
                value = str(bits.integer(rng, 64, signed=True))
            form = rng.random()
            if form < 0.8:
                arguments.append(f"--{name}={value}")
            elif form < 0.9:
                arguments += [f"--{name}", value]
            else:
                arguments.append(rng.choice((value, f"-{name}", f"--no{name}")))
        return tool, arguments

    def names(self, given):
        del given
        return [""]

    def read(self, given):
        tool, arguments = given
        values = self._absl.FlagValues()
        _, module = self._defined(tool, values)
        old = sys.argv, list(sys.path)
        sys.argv = [f"{tool}.py", *arguments]
        out, error = io.StringIO(), io.StringIO()
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
                self._flags_module.main(lambda: None, module=module, flag_values=values)
        except SystemExit as ended:
            self._check(ended.code, error.getvalue(), arguments)
        finally:
            sys.argv, sys.path[:] = old
        if error.getvalue():
            raise ValueError(error.getvalue())

    def _check(self, code, text, arguments):
        if code not in (0, 1, 2):
            raise Wrong(f"exit code {code}")
        if code == 0 and text:
            raise Wrong(f"exit code 0 with {text[:100]!r}")
        lines = text.splitlines()
        if code and len(lines) != 1:
            raise Wrong(f"{len(lines)} lines: {text[:200]!r}")
        if code == 1 and not any("report" in argument for argument in arguments):
            raise Wrong(f"exit code 1 of bad flags: {text[:200]!r}")
        if "Traceback" in text:
            raise Wrong(text[:200])
