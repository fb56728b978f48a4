"""Flags from signatures, and the runner of tools: in child processes, as users do."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import textwrap

import pytest
from absl import flags

from tfopt import _flags, _signatures

ROOT = pathlib.Path(__file__).parent.parent

# Importing it fails, so whatever works has only read it.
WORK = '''
"""Work that tests run through flags."""
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal, Optional

import not_installed_anywhere as tf
from tfopt import masks
from tfopt import report as reports
from tfopt.methods import Method as Base

if TYPE_CHECKING:
    from not_installed_anywhere import Model

Mode = Literal["fast", "small"]
LIMIT = 2 * 8


def work(
    model: tf.Model,
    *,
    output: str | os.PathLike[str],
    mode: Mode = "fast",
    epochs: int = LIMIT,
    rate: Optional[float] = None,
    verify: bool = True,
    names: Sequence[str] = ("a", "b"),
    sizes: "list[int]" = (),
    shape: tuple[int, int] = (28, 28),
    threads: int | Literal["auto"] = "auto",
    limit: int | None = 3,
    folder: pathlib.Path | None = None,
    teacher: "Model | None" = None,
    progress: Callable[[str], None] | None = None,
    source: str | tf.Model = "here",
    scope: masks.Scope = "local",
    column: reports.Column | None = None,
    method: Base | None = None,
) -> dict:
    """Works.

    Args:
        model: Not a flag.
        output: Where the result goes.
        mode: What to look for: speed, or
            size in bytes.
        epochs, rate: How training goes.
        verify: Whether to look twice.
        names (sequence): Some names.
        sizes: Some sizes.
        shape: Height and width.
        threads: How many.
        limit: Or none.
        folder: A folder.
        teacher: Not a flag.
        progress: Not a flag.
        source: A model or its path.
        scope: A type of another module.
        column: Not a flag.
        method: Not a flag.

    Returns:
        output: not a description of it.
    """


class Method:
    """A method.

    Args:
        final_sparsity: Fraction of zeros.
    """

    def __init__(self, *, final_sparsity: float, begin_step: int = 0):
        pass


import dataclasses

@dataclasses.dataclass(frozen=True)
class Config:
    """A config.

    Attributes:
        remapping: Fuses.
    """

    remapping: Mode = "fast"
    passes: int = dataclasses.field(default=7)
    names: tuple[str, ...] = dataclasses.field(default_factory=tuple)


def no_options(model):
    """Has none."""


def needs_model(*, model: tf.Model):
    """Has one that no command line can write."""
'''


@pytest.fixture
def module(tmp_path, monkeypatch):
    name = f"work_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(WORK)
    monkeypatch.syspath_prepend(tmp_path)
    return name


def parse(target, *arguments, **settings):
    values = flags.FlagValues()
    options = _flags.define(target, flag_values=values, **settings)
    values(["tool", *arguments])
    return options


@pytest.mark.parametrize(
    ("argument", "name", "value"),
    [
        ("--mode=small", "mode", "small"),
        ("--epochs=3", "epochs", 3),
        ("--rate=1e-3", "rate", 1e-3),
        ("--verify", "verify", True),
        ("--noverify", "verify", False),
        ("--names=x", "names", ("x",)),
        ('--names=x,"y,z"', "names", ("x", "y,z")),
        ("--names=", "names", ()),
        ("--sizes=1,2", "sizes", [1, 2]),
        ("--shape=3,4", "shape", (3, 4)),
        ("--threads=2", "threads", 2),
        ("--threads=auto", "threads", "auto"),
        ("--limit=none", "limit", None),
        ("--limit=4", "limit", 4),
        ("--folder=a/b", "folder", pathlib.Path("a/b")),
        ("--source=none", "source", "none"),
        ("--scope=global", "scope", "global"),
    ],
)
def test_a_value_arrives_with_its_type(module, argument, name, value):
    options = parse(f"{module}:work", "--output=o", argument)
    assert options.values() == {"output": "o", name: value}
    assert type(options.values()[name]) is type(value)


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("--mode=tiny", "one of fast, small"),
        ("--epochs=many", "an integer"),
        ("--epochs=1.5", "an integer"),
        ("--rate=none", "a number"),
        ("--verify=perhaps", "bool"),
        ("--sizes=1,x", "an integer"),
        ("--shape=3", "2 values"),
        ("--shape=3,4,5", "2 values"),
        ("--threads=some", "an integer or auto"),
        ('--names="x', "a comma separated list"),
        ("--scope=x", "one of local, global"),
        ("--teacher=x", "Unknown command line flag"),
        ("--progress=x", "Unknown command line flag"),
        ("--model=x", "Unknown command line flag"),
    ],
)
def test_a_bad_value_is_refused_with_what_was_expected(module, argument, expected):
    with pytest.raises(flags.Error, match=expected):
        parse(f"{module}:work", "--output=o", argument)


def test_repeated_lists_add_up_and_others_take_the_last(module):
    options = parse(
        f"{module}:work",
        *("--output=o", "--output=p", "--names=x,y", "--names=z"),
        *("--shape=1,2", "--shape=3,4"),
    )
    assert options.values() == {
        "output": "p",
        "names": ("x", "y", "z"),
        "shape": (3, 4),
    }


def test_what_is_not_given_is_left_to_the_function(module):
    assert parse(f"{module}:work", "--output=o").values() == {"output": "o"}


def test_required_flags(module):
    with pytest.raises(flags.Error, match=r"output.*required"):
        parse(f"{module}:work")
    with pytest.raises(flags.Error, match=r"rate.*required"):
        parse(f"{module}:work", "--output=o", required=["rate"])
    options = parse(f"{module}:work", exclude=["output"])
    assert options.values() == {}


def test_parameters_without_a_command_line_form_are_named(module):
    skipped = parse(f"{module}:work", "--output=o").skipped
    assert skipped == ("teacher", "progress", "column", "method")
    with pytest.raises(TypeError, match="model"):
        parse(f"{module}:needs_model")


def test_prefix_and_classes(module):
    options = parse(f"{module}:Method", "--prune.final_sparsity=0.8", prefix="prune")
    assert options.values() == {"final_sparsity": 0.8}
    options = parse(f"{module}:Config", "--remapping=small")
    assert options.values() == {"remapping": "small"}


def test_wrong_names_are_the_developers_error(module):
    for settings in ({"exclude": ["typo"]}, {"required": ["typo"]}):
        with pytest.raises(TypeError, match="typo"):
            parse(f"{module}:work", **settings)
    for target in (f"{module}:no_options", f"{module}:absent", "absent:f", module):
        with pytest.raises(TypeError):
            parse(target)


def test_signatures_read_defaults_and_help_without_import(module):
    found = {item.name: item for item in _signatures.parameters(f"{module}:work")}
    assert "model" not in found
    assert found["epochs"].default == 16
    assert found["mode"].default == "fast"
    assert found["output"].default is _signatures.Required
    assert found["mode"].help == "What to look for: speed, or size in bytes."
    assert found["rate"].help == found["epochs"].help == "How training goes."
    assert found["names"].help == "Some names."
    assert found["output"].help == "Where the result goes."
    config = {item.name: item for item in _signatures.parameters(f"{module}:Config")}
    assert [item.default for item in config.values()] == ["fast", 7, ()]
    assert config["remapping"].help == "Fuses."
    assert module not in sys.modules


def test_signatures_of_live_and_of_reexported_functions():
    expected = [item.name for item in _signatures.parameters("tfopt._flags:define")]
    assert expected == ["prefix", "required", "exclude", "optional", "flag_values"]
    live = [item.name for item in _signatures.parameters(_flags.define)]
    assert live == expected
    through = _signatures.parameters("tfopt.report:Table")
    assert [item.name for item in through][:2] == ["title", "columns"]


# The runner, in processes.

TOOL = '''
"""Tries things.

Example:
    python tool.py --what=number
"""
import sys

from tfopt import _flags


def work(*, what: str, text: str = ""):
    """Does what it is told.

    Args:
        what: What to do.
        text: More about it.
    """
    import dataclasses, os, time, warnings
    import numpy as np
    from tfopt.types import TfoptError, VerificationError

    print("chat on the way")
    if what == "number":
        return {"number": np.float32(0.5), "names": ("a",), "worst": float("nan")}
    if what == "text":
        return "the result"
    if what == "nothing":
        return None
    if what == "tfopt":
        raise VerificationError(f"not the same:\\n  {text}")
    if what == "value":
        raise ValueError("bad value")
    if what == "os":
        open("/no/such/file")
    if what == "bug":
        return {}["missing key"]
    if what == "sleep":
        print("sleeping", file=sys.stderr, flush=True)
        time.sleep(60)
    if what == "warn":
        warnings.warn("mind the gap")
    if what == "abort":
        os.write(2, b"F0000 00:00:1795 1 x.cc:1] the reason\\n")
        os.abort()
    if what == "chatter":
        os.write(2, b"I0000 00:00:1795319290.566525 8204 port.cc:153] oneDNN\\n")
        os.write(2, b"INFO: Created TensorFlow Lite XNNPACK delegate for CPU.\\n")
        os.write(2, b"a real message\\n")
    if what == "many":
        return "line\\n" * 100_000
    if what == "data":
        from tfopt.data import load_data
        return load_data(text)


def run():
    """Runs."""
    _flags.main(_flags.define(work), module=__name__)


if __name__ == "__main__":
    run()
'''


@pytest.fixture
def tool(tmp_path):
    path = tmp_path / "tool.py"
    path.write_text(TOOL)
    return path


def run(tool, *arguments, **settings):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, str(tool), *arguments],
        env=environment,
        capture_output=not settings,
        text=True,
        timeout=60,
        check=False,
        cwd=tool.parent,
        **settings,
    )


def test_the_result_is_on_stdout_and_chat_on_stderr(tool):
    done = run(tool, "--what=text")
    assert (done.returncode, done.stdout) == (0, "the result\n")
    assert done.stderr == "chat on the way\n"


def test_report_is_written_beside_the_printed_result(tool, tmp_path):
    done = run(tool, "--what=number", "--report=out/r.json")
    expected = {"number": 0.5, "names": ["a"], "worst": "NaN"}
    assert done.returncode == 0
    assert json.loads(done.stdout) == expected
    assert json.loads((tmp_path / "out" / "r.json").read_text()) == expected
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["r.json"]
    done = run(tool, "--what=number", "--report=tool.py/r.json")
    assert done.returncode == 1
    assert done.stderr.startswith("tool: Cannot write the output")


@pytest.mark.parametrize("flag", ["--helpshort", "--help", "-h"])
def test_help_is_complete_and_succeeds(tool, flag):
    done = run(tool, "--what=value", flag)
    assert (done.returncode, done.stderr) == (0, "")
    for text in ("Tries things.", "Example:", "--what: What to do. (required)"):
        assert text in done.stdout
    for name in ("--text", "--report", "--[no]debug"):
        assert name in done.stdout


def test_help_of_a_console_script(tool):
    script = tool.parent / "tfopt-tool"
    script.write_text("import sys, tool\nsys.exit(tool.run())\n")
    done = run(script, "--helpshort")
    assert done.returncode == 0
    assert "Example:" in done.stdout
    assert "--what: What to do." in done.stdout
    assert run(script, "--what=value").stderr.endswith("tfopt-tool: bad value\n")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--whatt=x"], "tool: Unknown command line flag 'whatt'"),
        (["--what=text", "--debug=maybe"], "tool: flag --debug=maybe"),
        (["--text=x"], "tool: flag --what=None: it is required"),
        (["--what=text", "more"], "tool: unexpected argument 'more'"),
        (["--flagfile=absent"], "tool: "),
    ],
)
def test_bad_usage_exits_2_with_one_line(tool, arguments, line):
    done = run(tool, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(line)
    assert "--helpshort" in done.stderr


@pytest.mark.parametrize(
    ("what", "line"),
    [
        ("tfopt", "tool: not the same: of a and b"),
        ("value", "tool: bad value"),
        ("os", "tool: No such file or directory: /no/such/file"),
        ("bug", "tool: KeyError: 'missing key' (--debug shows where)"),
    ],
)
def test_failed_work_exits_1_with_one_line(tool, what, line):
    done = run(tool, f"--what={what}", "--text=of a\n  and b")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"chat on the way\n{line}\n"


def test_debug_shows_the_traceback(tool):
    done = run(tool, "--what=bug", "--debug")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("tool: KeyError")


def test_interrupt_exits_130_with_one_line(tool):
    process = subprocess.Popen(
        [sys.executable, str(tool), "--what=sleep"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        lines = [process.stderr.readline() for _ in range(2)]
        process.send_signal(signal.SIGINT)
        lines += process.stderr.readlines()
    assert process.returncode == 130
    assert lines == ["chat on the way\n", "sleeping\n", "tool: interrupted\n"]


def test_cpp_chatter_is_dropped_and_all_else_passes(tool):
    done = run(tool, "--what=chatter")
    assert sorted(done.stderr.splitlines()) == ["a real message", "chat on the way"]
    # Even what is written last before the process dies.
    done = run(tool, "--what=abort")
    assert done.returncode == -signal.SIGABRT
    assert "the reason" in done.stderr
    assert "oneDNN" in run(tool, "--what=chatter", "--debug").stderr


def test_a_closed_stderr_is_no_failure(tool):
    command = f'exec "{sys.executable}" "{tool}" --what=text 2>&-'
    done = subprocess.run(
        ["sh", "-c", command],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "the result\n")


def test_warnings_are_one_line(tool):
    done = run(tool, "--what=warn")
    assert done.stderr.splitlines()[1:] == ["tool: warning: mind the gap"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_full_disk_behind_stdout_is_a_failure(tool):
    with open("/dev/full", "w") as full:
        done = run(tool, "--what=text", stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 1
    assert done.stderr.splitlines()[1] == "tool: No space left on device"


def test_a_reader_that_stops_is_no_failure(tool):
    process = subprocess.Popen(
        [sys.executable, str(tool), "--what=many"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout.readline() == "line\n"
        process.stdout.close()
        errors = process.stderr.read()
    assert (process.returncode, errors) == (0, "chat on the way\n")


def test_a_data_module_in_the_current_folder_is_found(tool, tmp_path):
    (tmp_path / "mine.py").write_text(
        textwrap.dedent("""
            import numpy as np
            def load():
                pair = (np.zeros([3, 2]), np.arange(3))
                return {"train": pair, "test": pair}
        """)
    )
    done = run(tool, "--what=data", "--text=mine:load", "--report=r.json")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "r.json").read_text())["train"]["source"][1] == [
        *(0, 1, 2)
    ]


def test_flags_come_from_a_file_too(tool, tmp_path):
    (tmp_path / "flags.txt").write_text("--what=text\n")
    assert run(tool, "--flagfile=flags.txt").stdout == "the result\n"
