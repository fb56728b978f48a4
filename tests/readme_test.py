"""The README's code runs as it stands, and its commands exist."""

import json
import os
import pathlib
import re
import shlex
import subprocess
import sys

import pytest
from tools_test import TOOLS, flags_of, run_tool, unknown_flags

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
# Runs the blocks in one namespace, one after the other; line numbers in a traceback
# are the README's.
RUNNER = """
import json, pathlib, sys
for line, text in json.loads(pathlib.Path(sys.argv[1]).read_text()):
    exec(compile("\\n" * line + text, "README.md", "exec"), globals())
"""


def blocks(text, *languages):
    """Returns (line number of the fence, text) of the fenced blocks of a language."""
    found = []
    pattern = r"^(`{3,})([\w+-]*)[^\n]*\n(.*?)^\1`*[ ]*$"
    for match in re.finditer(pattern, text, re.MULTILINE | re.DOTALL):
        if match[2] in languages:
            found.append((text[: match.start()].count("\n") + 1, match[3]))
    return found


def run_blocks(text, folder):
    """Executes the Python blocks of a text in a folder that has testdata/."""
    (folder / "testdata").symlink_to(ROOT / "testdata")
    script, listed = folder / ".blocks.py", folder / ".blocks.json"
    script.write_text(RUNNER)
    listed.write_text(json.dumps(blocks(text, "python", "py")))
    return subprocess.run(
        [sys.executable, str(script), str(listed)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def commands(text):
    """Returns (tool, its flags) of each command of this project in shell blocks."""
    found = []
    for _, block in blocks(text, "sh", "bash", "shell", "console"):
        for line in re.sub(r"\\\n", " ", block).splitlines():
            for part in re.split(r"&&|\|\||[;|]", line.removeprefix("$ ")):
                found += command(shlex.split(part, comments=True))
    return found


def command(words):
    for index, word in enumerate(words):
        match = re.fullmatch(r"(?:.*/)?(?:tools/(\w+)\.py|tfopt-([\w-]+))", word)
        if match:
            name = match[1] or match[2].replace("-", "_")
            flags = [item for item in words[index + 1 :] if item.startswith("--")]
            return [(name, [item[2:].split("=")[0] for item in flags])]
    return []


@pytest.mark.slow
@pytest.mark.skipif(not blocks(README, "python"), reason="README has no Python yet")
def test_the_python_blocks_run(tmp_path):
    done = run_blocks(README, tmp_path)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize(("tool", "flags"), commands(README))
def test_the_commands_exist(tool, flags, tmp_path):
    assert tool in TOOLS
    known = flags_of(run_tool(tool, "--helpshort", folder=tmp_path).stdout)
    assert not unknown_flags(flags, known)


def test_links_lead_to_files():
    links = re.findall(r"\]\((?!https?://|#)([^)#\s]+)", README)
    assert not [link for link in links if not (ROOT / link).exists()]


SAMPLE = """# Sample

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
from tfopt.artifacts import write_bytes
write_bytes("out.bin", bytes(value + 1))
```

```sh
# tools/comment.py --nothing
python3 -m venv .venv && .venv/bin/pip install . && .venv/bin/python tools/quickstart.py
$ tfopt-freeze-graph --input_saved_model_dir=a \\
    --output_graph "b c.pb" --noverify  # tools/comment.py
ls; cat report.json | python tools/inspect_model.py --model=x
```
"""


def test_blocks_run_in_order_and_in_one_namespace(tmp_path):
    done = run_blocks(SAMPLE, tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.bin").stat().st_size == 21


def test_a_failing_block_fails_with_the_line_of_the_text(tmp_path):
    text = SAMPLE.replace("bytes(value + 1)", "undefined")
    done = run_blocks(text, tmp_path)
    assert done.returncode == 1
    line = text.splitlines().index('write_bytes("out.bin", undefined)') + 1
    assert f'"README.md", line {line}' in done.stderr
    assert "NameError" in done.stderr


def test_commands_are_found_with_their_flags():
    assert commands(SAMPLE) == [
        ("quickstart", []),
        ("freeze_graph", ["input_saved_model_dir", "output_graph", "noverify"]),
        ("inspect_model", ["model"]),
    ]
