"""The README's code runs as it stands; its commands, flags and names exist."""

import ast
import functools
import inspect
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys

import pytest
from tools_test import TOOLS, flags_of, run_tool, unknown_flags

import tfopt

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
# Runs the blocks in one namespace, one after the other; line numbers in a traceback
# are the README's.
RUNNER = """
import json, pathlib, sys
for line, text in json.loads(pathlib.Path(sys.argv[1]).read_text()):
    exec(compile("\\n" * line + text, "README.md", "exec"), globals())
"""
FENCED = re.compile(r"^(`{3,})([\w+-]*)[^\n]*\n(.*?)^\1`*[ ]*$", re.M | re.S)
# A block whose first line names a file is that file.
FILE_NAME = re.compile(r"(?:# |/\* )([\w.]+?)(?: \*/)?")


def blocks(text, *languages):
    """Returns (line number of the fence, text) of the fenced blocks of a language."""
    return [
        (text[: match.start()].count("\n") + 1, match[3])
        for match in FENCED.finditer(text)
        if match[2] in languages
    ]


def files(text, *languages):
    """Returns the content of each block that is a file, by the file's name."""
    found = {}
    for _, block in blocks(text, *languages):
        name = FILE_NAME.fullmatch(block.splitlines()[0])
        if name:
            found[name[1]] = block
    return found


def run_blocks(text, folder):
    """Executes the Python blocks of a text in a folder that has testdata/."""
    (folder / "testdata").symlink_to(ROOT / "testdata")
    named = files(text, "python", "py")
    for name, content in named.items():
        (folder / name).write_text(content)
    code = [
        item for item in blocks(text, "python", "py") if item[1] not in named.values()
    ]
    script, listed = folder / ".blocks.py", folder / ".blocks.json"
    script.write_text(RUNNER)
    listed.write_text(json.dumps(code))
    return subprocess.run(
        [sys.executable, str(script), str(listed)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def inline_code(text):
    """Returns the pieces of inline code; of "Coming from" the new side."""
    text = FENCED.sub("", text)
    if "\n## Coming from" in text:
        before, after = text.split("\n## Coming from")
        coming, *rest = re.split(r"\n(?=## )", after, maxsplit=1)
        coming = re.sub(r"^\|(?:[^|\\]|\\.)*\|", "|", coming, flags=re.M)
        text = "\n".join([before, coming, *rest])
    return [" ".join(found.split()) for found in re.findall(r"`([^`]+)`", text)]


def commands(text):
    """Returns (tool, its flags as written) of each command of this project."""
    lines = []
    for _, block in blocks(text, "sh", "bash", "shell", "console"):
        for line in re.sub(r"\\\n", " ", block).splitlines():
            lines.append(line.removeprefix("$ "))
    lines += [block.replace("\n", " ") for _, block in blocks(text, "cmake")]
    lines += [code for code in inline_code(text) if code.startswith("tfopt-")]
    return [found for line in lines for found in commands_of_line(line)]


def commands_of_line(line):
    parser = shlex.shlex(line, posix=True, punctuation_chars="&|;")
    parser.whitespace_split = True
    found, words = [], []
    for word in [*parser, ";"]:
        if set(word) <= set("&|;"):
            found += command(words)
            words = []
        else:
            words.append(word)
    return found


def command(words):
    for index, word in enumerate(words):
        match = re.fullmatch(r"(?:.*/)?(?:tools/(\w+)\.py|tfopt-([a-z-]+))", word)
        if match:
            name = match[1] or match[2].replace("-", "_")
            flags = [item for item in words[index + 1 :] if item.startswith("--")]
            return [(name, [item[2:] for item in flags])]
    return []


@functools.cache
def help_of(tool):
    """Returns flag -> help of a tool."""
    return flags_of(run_tool(tool, "--helpshort", folder=ROOT).stdout)


def wrong_values(flags, known):
    """Returns those flags, written `name=value`, that have no such value."""
    wrong = []
    for flag in flags:
        name, equals, value = flag.partition("=")
        text = " ".join(known.get(name, "").split())
        choices = re.search(
            r"\((?:.*each )?one of ([^()]*?)(?:; may be repeated)?\)$", text
        )
        if (
            equals
            and choices
            and not set(value.split(","))
            <= {choice.strip() for choice in choices[1].split(",")}
        ):
            wrong.append(flag)
    return wrong


def wrong_calls(code):
    """Returns what is wrong about the names and arguments in code of `tfopt.…`."""
    wrong = []
    tree = ast.parse(code.replace("…", "..."), mode="eval")
    for node in ast.walk(tree):
        named = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
        if named and node.value.id == "tfopt" and not hasattr(tfopt, node.attr):
            wrong.append(f"no tfopt.{node.attr}")
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and not wrong:
            function = ast.unparse(node.func)
            if function.startswith("tfopt."):
                called = eval(function, {"tfopt": tfopt})
                options = {keyword.arg: None for keyword in node.keywords}
                try:
                    inspect.signature(called).bind_partial(*node.args, **options)
                except TypeError as error:
                    wrong.append(f"{function}: {error}")
    return wrong


@pytest.mark.slow
def test_the_python_blocks_run(tmp_path):
    done = run_blocks(README, tmp_path)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("tool", sorted({tool for tool, _ in commands(README)}))
def test_the_commands_exist_with_their_flags(tool):
    assert tool in TOOLS
    flags = [flag for name, used in commands(README) if name == tool for flag in used]
    assert not unknown_flags([flag.split("=")[0] for flag in flags], help_of(tool))
    assert not wrong_values(flags, help_of(tool))


def test_flags_in_the_text_are_flags_of_a_tool():
    words = [code.split() for code in inline_code(README) if code.startswith("--")]
    flags = {
        word[2:].split("=")[0] for line in words for word in line if word[:2] == "--"
    }
    known = {name for tool in TOOLS for name in help_of(tool)}
    assert not unknown_flags(flags, known)


def test_names_and_arguments_in_the_text_exist():
    codes = [code for code in inline_code(README) if re.match(r"tfopt\.\w", code)]
    assert len(codes) > 20
    assert not [problem for code in codes for problem in wrong_calls(code)]


def test_links_lead_to_files_and_headings():
    links = re.findall(r"\]\((?!https?://)([^)\s]+)", README)
    headings = re.findall(r"^#+ (.+)$", FENCED.sub("", README), re.M)
    anchors = {
        "#" + re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        for heading in headings
    }
    wrong = [
        link
        for link in links
        if not (link in anchors if link[0] == "#" else (ROOT / link).exists())
    ]
    assert not wrong


SAMPLE = """# Sample

See `tfopt-optimize --model=a
--objective=size`, `tfopt.Prune(final_sparsity=0.5)` and `--report`.

```python
import pathlib
value = 20
assert pathlib.Path("testdata/mnist.npz").exists()
```

```text
1 / 0
```

````markdown
```python
raise SystemExit("in a quotation")
```
````

```python
# other.py
offset = 1
```

```python
from other import offset
from tfopt.artifacts import write_bytes
write_bytes("out.bin", bytes(value + offset))
```

```c
/* main.c */
int main(void) { return 0; }
```

```sh
# tools/comment.py --nothing
python3 -m venv .venv && .venv/bin/pip install . && .venv/bin/python tools/quickstart.py
$ tfopt-freeze-graph --input_saved_model_dir=a \\
    --output_graph "b c.pb" --noverify  # tools/comment.py
ls; cat report.json | python tools/inspect_model.py --model="x;y"
```

## Coming from elsewhere

| before | now |
| --- | --- |
| `--old_flag` | `--model`, `tfopt.prune_once(model)` |

## End

`ls`
"""


def test_blocks_run_in_order_and_in_one_namespace(tmp_path):
    done = run_blocks(SAMPLE, tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.bin").stat().st_size == 21


def test_a_failing_block_fails_with_the_line_of_the_text(tmp_path):
    text = SAMPLE.replace("bytes(value + offset)", "undefined")
    done = run_blocks(text, tmp_path)
    assert done.returncode == 1
    line = text.splitlines().index('write_bytes("out.bin", undefined)') + 1
    assert f'"README.md", line {line}' in done.stderr
    assert "NameError" in done.stderr


def test_commands_code_and_files_are_found():
    assert commands(SAMPLE) == [
        ("quickstart", []),
        ("freeze_graph", ["input_saved_model_dir=a", "output_graph", "noverify"]),
        ("inspect_model", ["model=x;y"]),
        ("optimize", ["model=a", "objective=size"]),
    ]
    assert inline_code(SAMPLE)[1:] == [
        "tfopt.Prune(final_sparsity=0.5)",
        *("--report", "--model", "tfopt.prune_once(model)", "ls"),
    ]
    assert list(files(SAMPLE, "python", "c")) == ["other.py", "main.c"]


def test_the_checks_can_fail():
    known = {"size": "Of it.\n    (one of small,\n    large)", "model": "A file."}
    assert wrong_values(["size=small", "model=x"], known) == []
    assert wrong_values(["size=smal"], known) == ["size=smal"]
    assert wrong_calls("tfopt.prepare(model, [tfopt.Prune(final_sparsity=0)])") == []
    assert wrong_calls("tfopt.Prun(0.5)") == ["no tfopt.Prun"]
    assert "sparsity" in wrong_calls("[tfopt.Prune(sparsity=0.5)]")[0]
