"""Command line tools: flags from signatures, and one way to run and to fail.

    # tools/freeze_graph.py
    def run() -> None:
        _flags.main(_flags.define("tfopt.freezing:freeze_graph"), module=__name__)

`define` makes one absl flag of each keyword-only parameter, without importing the
function; `main` parses, calls, prints the result, and turns failures into one line.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import io
import logging
import os
import pathlib
import pkgutil
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from absl import flags

from tfopt import _progress, _quiet, _signatures, _text, artifacts
from tfopt._flags import _values
from tfopt.types import TfoptError, UsageError

# Flags defined here belong to the tool that asked for them, so that its --helpshort
# lists them.
flags.disclaim_key_flags()

_HELP = ("--help", "-help", "--helpshort", "-helpshort", "--helpfull", "-h", "-?")
_FUNCTION = re.compile(r"(.*=)?[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_MAX_MESSAGE = 2000


class Options:
    """The flags made from one function; calling it calls the function.

    Attributes:
        skipped: Parameters without a flag, because a command line has no way to
            write their values.
    """

    def __init__(
        self,
        target: str | Callable[..., Any],
        made: dict[str, flags.Flag],
        skipped: tuple[str, ...],
    ) -> None:
        self._target = target
        self._made = made
        self.skipped = skipped

    def values(self) -> dict[str, Any]:
        """Returns the parameters given on the command line.

        The others are left to the function's own defaults.
        """
        return {name: flag.value for name, flag in self._made.items() if flag.present}

    def __call__(self, *operands: Any, **more: Any) -> Any:
        """Imports the function and calls it with the flags' values.

        Args:
            *operands: Positional arguments.
            **more: Further keyword arguments; they win over flags.
        """
        function = self._target
        if isinstance(function, str):
            module_name, name = _signatures.split(function)
            function = getattr(importlib.import_module(module_name), name)
        return function(*operands, **{**self.values(), **more})


def define(
    target: str | Callable[..., Any],
    *,
    prefix: str = "",
    required: Sequence[str] = (),
    exclude: Sequence[str] = (),
    optional: bool = False,
    flag_values: flags.FlagValues = flags.FLAGS,
) -> Options:
    """Defines a flag for each keyword-only parameter of a function or class.

    Type, choices, default and help come from the annotation, the default and the
    docstring. `bool` gives `--x` and `--nox`; `Literal` the named choices; a tuple,
    list or sequence a flag that takes commas and may be repeated; in a union every
    member that a command line can write is accepted. A parameter that has no such
    member, like a model or a callable, gets no flag.

    Args:
        target: `"module:name"`, imported only when called, or the function itself.
        prefix: With `"prune"` the flag of `end_step` is `--prune.end_step`.
        required: Parameters that must be given although they have a default; those
            without a default always must.
        exclude: Parameters that get no flag.
        optional: Whether no flag must be given: the function may not be called.
        flag_values: Where the flags are registered.

    Returns:
        The `Options` that hold their values and call the function.

    Raises:
        TypeError: A parameter without default has no form on a command line, or a
            name in `required` or `exclude` is not a parameter.
    """
    made: dict[str, flags.Flag] = {}
    needed, skipped = set(required), []
    parameters = _signatures.parameters(target)
    _check_names(target, parameters, {*required, *exclude})
    for parameter in parameters:
        if parameter.name in exclude:
            continue
        kinds = tuple(dict.fromkeys(_values.kinds_of(parameter.annotation)))
        if parameter.default is _signatures.Required and not optional:
            needed.add(parameter.name)
            if not kinds:
                raise TypeError(
                    "A required parameter has no form on a command line. Expected "
                    "str, int, float, bool, a path, Literal or a sequence of these, "
                    f"or `exclude`. Received: {target!r}, {parameter.name}"
                )
        if not kinds:
            skipped.append(parameter.name)
            continue
        flag = _values.make_flag(parameter, kinds, prefix, parameter.name in needed)
        flags.DEFINE_flag(flag, flag_values)
        if parameter.name in needed:
            flags.register_validator(
                flag.name,
                lambda value: value is not None,
                message="it is required",
                flag_values=flag_values,
            )
        made[parameter.name] = flag
    return Options(target, made, tuple(skipped))


def define_methods(
    *, flag_values: flags.FlagValues = flags.FLAGS
) -> dict[str, Options]:
    """Defines the flags of all training-time methods, as `--prune.final_sparsity`.

    The methods are the modules of `tfopt.methods`, which are not imported; each defines
    a class of its own name in camel case.

    Returns:
        The options by method name.
    """
    package = "tfopt.methods"
    spec = importlib.util.find_spec(package)
    folders = [] if spec is None else spec.submodule_search_locations
    names = [module.name for module in pkgutil.iter_modules(folders)]
    return {
        name: define(
            f"{package}.{name}:{name.title().replace('_', '')}",
            prefix=name,
            optional=True,
            flag_values=flag_values,
        )
        for name in sorted(names)
        if not name.startswith("_")
    }


def main(
    work: Callable[[], Any],
    *,
    module: str,
    flag_values: flags.FlagValues = flags.FLAGS,
) -> NoReturn:
    """Runs a command line tool from its arguments to its exit code.

    The result of `work` is printed on stdout; whatever is printed meanwhile goes to
    stderr. Exit codes: 0 done, 1 the work failed, 2 bad flags, 130 interrupted; each
    failure is one line, `tool: what`, on stderr.

    Args:
        work: What to do; mostly the `Options` of `define`. Its result has `to_json`,
            or is a dataclass, a mapping, a string or None.
        module: `__name__` of the tool; its docstring, with an example, is the help.
        flag_values: Where the flags are registered.
    """
    tool = pathlib.Path(sys.argv[0]).stem
    flags.DEFINE_string(
        "report",
        None,
        "File for the machine-readable result, as JSON.",
        flag_values=flag_values,
    )
    flags.DEFINE_bool(
        "debug",
        False,
        "Show all logs, TensorFlow's too, and the traceback of a failure.",
        flag_values=flag_values,
    )
    if any(argument in _HELP for argument in sys.argv[1:]):
        _show(_help(module, flag_values))
        sys.exit(0)
    try:
        _parse(flag_values)
    except flags.Error as error:
        _fail(tool, f"{error} (--helpshort lists the flags)", 2)
    debug = bool(flag_values["debug"].value)
    try:
        _set_up_process(tool, debug=debug, imports=_names_function(flag_values))
        place = flag_values["report"].value
        artifacts.prepare([place] if place else [])
        with _progress.shown(), contextlib.redirect_stdout(sys.stderr):
            result = work()
        if place:
            artifacts.write_json(place, result)
        _show(result)
    except KeyboardInterrupt:
        _fail(tool, "interrupted", 130)
    except UsageError as error:
        _fail(tool, f"{error} (--helpshort lists the flags)", 2)
    except Exception as error:
        if debug:
            traceback.print_exc()
        _fail(tool, _message(error), 1)
    sys.exit(0)


def _check_names(
    target: str | Callable[..., Any],
    parameters: Sequence[_signatures.Parameter],
    named: set[str],
) -> None:
    known = {parameter.name for parameter in parameters}
    if not parameters or named - known:
        raise TypeError(
            f"Expected keyword-only parameters {sorted(named) or ''} in {target!r}. "
            f"Received: {sorted(known)}"
        )


def _parse(flag_values: flags.FlagValues) -> None:
    rest = flag_values(sys.argv)[1:]
    if rest:
        raise flags.Error(f"unexpected argument {rest[0]!r}, expected only flags")


def _help(module: str, flag_values: flags.FlagValues) -> str:
    # absl files the flags of a script under the path it was started by.
    owner = sys.argv[0] if module == "__main__" else module
    listed = flag_values.module_help(owner).split("\n", 2)[-1]
    return (
        f"{inspect.getdoc(sys.modules[module])}\n\nFlags:\n{listed}\n\n"
        "--flagfile=FILE reads flags from a file, one a line. "
        "Exit codes: 0 done, 1 failed, 2 bad flags."
    )


def _show(result: Any) -> None:
    try:
        if isinstance(sys.stdout, io.TextIOWrapper):
            # Names of files are printed as the bytes that they are.
            sys.stdout.reconfigure(errors="surrogateescape")
        if hasattr(result, "__rich__") and sys.stdout.isatty():
            _print_rich(result)
        elif isinstance(result, (Mapping, list, tuple)):
            print(artifacts.to_json(result))
        elif result is not None:
            print(_text.printable(str(result)))
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader, such as `head`, has seen enough; a second attempt to flush at
        # exit would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print_rich(result: Any) -> None:
    console: Any = importlib.import_module("rich").get_console()
    segment: Any = importlib.import_module("rich.segment")
    console.print(
        segment.Segments(
            part._replace(text=_text.printable(part.text)) if not part.control else part
            for part in console.render(result)
        )
    )


def _message(error: Exception) -> str:
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        file = "" if error.filename is None else f": {error.filename}"
        text = f"{error.strerror}{file}"
    elif not isinstance(error, (TfoptError, ValueError, OSError)):
        text = f"{type(error).__name__}: {text} (--debug shows where)"
    return text or type(error).__name__


def _fail(tool: str, message: str, code: int) -> NoReturn:
    line = _text.printable(" ".join(message.split()))
    if len(line) > _MAX_MESSAGE:
        line = line[:_MAX_MESSAGE] + " ..."
    print(f"{tool}: {line}", file=sys.stderr, flush=True)
    sys.exit(code)


def _set_up_process(tool: str, *, debug: bool, imports: bool) -> None:
    """Sets what only the owner of a process may set: logs, warnings, import path."""
    if not debug:
        _quiet.quiet_cpp_logs()
        warnings.formatwarning = lambda message, *_: (
            f"{tool}: warning: {_text.printable(str(message))}\n"
        )
    handler = _Stderr()
    handler.setFormatter(_Printable(f"{tool}: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("tfopt").setLevel(logging.DEBUG if debug else logging.INFO)
    if imports:
        # `module:function` finds a module in the current folder, as with `python -m`.
        # Otherwise nothing there is imported: it may be that of a strange model.
        sys.path.append(os.getcwd())


def _names_function(flag_values: flags.FlagValues) -> bool:
    """Whether a flag has `module:function` as its value."""
    values = [flag_values[name].value for name in flag_values]
    texts = [
        text
        for value in values
        for text in (value if isinstance(value, (list, tuple)) else [value])
    ]
    return any(isinstance(text, str) and _FUNCTION.fullmatch(text) for text in texts)


class _Stderr(logging.StreamHandler):
    """Logs to what is stderr by then: above the progress while that is drawn."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)

    def emit(self, record: logging.LogRecord) -> None:
        """Writes a line."""
        self.stream = sys.stderr
        super().emit(record)


class _Printable(logging.Formatter):
    """Logs names of models so that a terminal does not obey them."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the line, or lines with a traceback."""
        return _text.printable(super().format(record))
