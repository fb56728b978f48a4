"""kill -9 of what writes without TensorFlow; the rest is in crash_benchmark.py."""

import contextlib
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import textwrap
import time

import crash_samples
import pytest

from tfopt import artifacts
from tfopt._writing import _replacing
from tfopt.types import TfoptError

ROOT = pathlib.Path(__file__).parent.parent
RUNS = 12
BIG = 4_000_000


def cases(out):
    """Returns writers by name; `naive` is what a test must catch."""

    def case(name, write, *outputs):
        return crash_samples.Case(
            name,
            lambda: write(b"old"),
            lambda: write(b"new"),
            tuple(out / output for output in outputs),
        )

    def file(content):
        artifacts.write_bytes(out / "model.tflite", content * 1000)

    def files(content):
        names = ("model.h", "model.c", "model.json", "model.tflite")
        artifacts.write_files({str(out / name): content * 1000 for name in names})

    def directory(content):
        with (
            artifacts.temporary_folder() as work,
            artifacts.atomic_path(out / "model") as temporary,
        ):
            (pathlib.Path(work) / "graph.pb").write_bytes(content)
            temporary.mkdir()
            (temporary / "saved_model.pb").write_bytes(content)
            (temporary / "variables").mkdir()
            (temporary / "variables" / "data").write_bytes(content * 1000)

    def naive(content):
        (out / "naive.bin").write_bytes(content * BIG)

    def naive_set(content):
        for name in ("a", "b"):
            artifacts.write_bytes(out / name, content)

    return {
        "file": case("file", file, "model.tflite"),
        "files": case(
            "files", files, "model.h", "model.c", "model.json", "model.tflite"
        ),
        "directory": case("directory", directory, "model"),
        "naive": case("naive", naive, "naive.bin"),
        "naive_set": case("naive_set", naive_set, "a", "b"),
    }


def main(folder):
    """Runs all in a process without threads, which may fork."""
    out, temporary = folder / "out", folder / "tmp"
    out.mkdir()
    temporary.mkdir()
    tempfile.tempdir = str(temporary)
    found = {}
    for name, case in cases(out).items():
        tally = crash_samples.crash(
            case, out, temporary, runs=RUNS, seed=1, recover=artifacts.prepare
        )
        found[name] = {**dataclasses.asdict(tally), "is_good": tally.is_good}
    print(json.dumps(found))


@pytest.fixture(scope="module")
def tallies():
    # In memory, if possible: what counts is what was begun, not the disk.
    with tempfile.TemporaryDirectory(dir=crash_samples.fast_place()) as folder:
        return run_all(folder)


def run_all(folder):
    done = subprocess.run(
        [sys.executable, __file__, folder],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", ["file", "files", "directory"])
def test_a_killed_writer_leaves_the_old_or_the_new_output(tallies, name):
    tally = tallies[name]
    assert tally["is_good"], tally
    assert tally["runs"] == RUNS
    assert tally["killed"] > RUNS / 2
    assert tally["old"]
    assert tally["new"]
    assert tally["left"]  # which the next run has removed


@pytest.mark.parametrize("name", ["naive", "naive_set"])
def test_a_naive_writer_is_caught(tallies, name):
    assert tallies[name]["broken"]


def child(code, **settings):
    prelude = "import os, pathlib, sys, time\nfrom tfopt.artifacts import *\n"
    return subprocess.Popen(
        [sys.executable, "-c", prelude + textwrap.dedent(code)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **settings,
    )


def test_two_processes_that_write_the_same_set_do_not_interleave(tmp_path):
    names = [str(tmp_path / name) for name in "abc"]
    code = f"""
        for _ in range(30):
            write_files({{name: sys.argv[1].encode() * 1000 for name in {names!r}}})
    """
    prelude = "import sys\nfrom tfopt.artifacts import *\n"
    command = [sys.executable, "-c", prelude + textwrap.dedent(code)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    children = [subprocess.Popen([*command, name], env=environment) for name in "xy"]
    assert [item.wait(60) for item in children] == [0, 0]
    assert len({(tmp_path / name).read_bytes() for name in "abc"}) == 1
    assert sorted(os.listdir(tmp_path)) == ["a", "b", "c"]


def test_directories_are_whole_for_readers_at_any_moment(tmp_path):
    if _replacing._renameat2() is None:
        pytest.skip("the system cannot exchange two names")
    target = tmp_path / "model"
    writer = child(f"""
        for number in range(60):
            with atomic_path({str(target)!r}) as temporary:
                temporary.mkdir()
                (temporary / "saved_model.pb").write_bytes(str(number).encode())
                if not number: print("ready", flush=True)
    """)
    with writer:
        assert writer.stdout.readline() == "ready\n"
        while not target.exists():
            time.sleep(0.001)
        seen = 0
        while writer.poll() is None:
            assert target.is_dir()
            seen += 1
    assert writer.returncode == 0
    assert seen > 100
    assert os.listdir(tmp_path) == ["model"]


def test_a_second_process_is_refused_where_one_works_until_that_is_dead(tmp_path):
    code = f"""
        with work_lock({str(tmp_path)!r}, name="trials_dir"):
            print("ready", flush=True)
            sys.stdin.read()
    """
    first = child(code)
    assert first.stdout.readline() == "ready\n"
    with (
        pytest.raises(TfoptError, match=rf"trials_dir=.*process {first.pid}\b"),
        artifacts.work_lock(tmp_path, name="trials_dir"),
    ):
        pass
    first.kill()
    first.communicate()
    with artifacts.work_lock(tmp_path, name="trials_dir"):
        assert os.listdir(tmp_path) == [".tfopt.lock"]
    assert os.listdir(tmp_path) == []


def test_a_fork_holds_no_lock_and_removes_nothing(tmp_path):
    done = child(f"""
        with work_lock({str(tmp_path)!r}, name="x"), temporary_folder() as folder:
            pid = os.fork()
            if pid == 0:
                sys.exit(0)  # through the `with` blocks
            os.waitpid(pid, 0)
            print(os.path.isdir(folder), os.listdir({str(tmp_path)!r}))
    """)
    assert done.communicate()[0] == "True ['.tfopt.lock']\n"


def test_a_set_that_cannot_be_put_in_place_changes_nothing(tmp_path):
    for name in "ac":
        (tmp_path / name).write_bytes(b"old")
    (tmp_path / "b").mkdir()
    paths = {str(tmp_path / name): b"new" for name in "abc"}
    with pytest.raises(TfoptError, match="file in the place of a directory"):
        put(paths)
    assert [(tmp_path / name).read_bytes() for name in "ac"] == [b"old", b"old"]
    assert sorted(os.listdir(tmp_path)) == ["a", "b", "c"]


def put(paths):
    with artifacts.atomic_set() as outputs:
        for path, content in paths.items():
            outputs.add(path).write_bytes(content)


def test_a_rename_that_fails_halfway_is_undone(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"old")
    (tmp_path / "gone").write_bytes(b"old")
    make = os.replace

    def fail(source, target):
        if pathlib.Path(target).name == "c":
            raise PermissionError(1, "Operation not permitted", str(target))
        make(source, target)

    monkeypatch.setattr(os, "replace", fail)

    def write():
        with artifacts.atomic_set() as outputs:
            outputs.remove(tmp_path / "gone")
            for name in "abc":
                outputs.add(tmp_path / name).write_bytes(b"new")

    with pytest.raises(TfoptError, match=r"not permitted.*Received: path='.*c'"):
        write()
    assert (tmp_path / "a").read_bytes() == b"old"
    assert sorted(os.listdir(tmp_path)) == ["a", "gone"]
    monkeypatch.undo()
    write()
    assert sorted(os.listdir(tmp_path)) == ["a", "b", "c"]


@pytest.mark.parametrize(
    "name",
    ["with space", "two\nlines", "ünï", "x" * 255, os.fsdecode(b"\xff\xfe")],
)
def test_any_file_name_works(tmp_path, name):
    for content in (b"old", b"new"):
        artifacts.write_bytes(tmp_path / name, content)
        assert (tmp_path / name).read_bytes() == content
    assert os.listdir(tmp_path) == [name]


def test_a_failure_leaves_no_folders_that_were_made_for_it(tmp_path):
    with (
        pytest.raises(ValueError, match="stop"),
        artifacts.atomic_path(tmp_path / "deep" / "er" / "a"),
    ):
        raise ValueError("stop")
    assert os.listdir(tmp_path) == []


def test_a_path_is_meant_from_the_folder_where_the_work_began(tmp_path, monkeypatch):
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    with artifacts.atomic_path("a.txt") as temporary:
        os.chdir(tmp_path / "other")
        temporary.write_bytes(b"x")
    assert sorted(os.listdir(tmp_path)) == ["a.txt", "other"]


def test_permissions_of_the_old_file_stay(tmp_path):
    target = tmp_path / "secret.tflite"
    artifacts.write_bytes(target, b"old")
    target.chmod(0o640)
    artifacts.write_bytes(target, b"new")
    assert target.stat().st_mode & 0o777 == 0o640


def test_devices_and_streams_are_written_not_replaced(tmp_path):
    before = os.stat(os.devnull).st_mode
    artifacts.write_bytes(os.devnull, b"x")
    assert os.stat(os.devnull).st_mode == before
    done = child('print("1", flush=True); write_bytes("/dev/stdout", b"2")')
    assert done.communicate()[0] == "1\n2"
    with pytest.raises(TfoptError, match=r"No space left.*path='/dev/full'"):
        artifacts.write_bytes("/dev/full", b"x")


@contextlib.contextmanager
def mounted(folder, *options):
    """A small file system of its own; skips where that is not allowed."""
    done = subprocess.run(
        ["mount", *options, str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"no mount: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_leaves_the_old_outputs(tmp_path):
    target = tmp_path / "disk"
    target.mkdir()
    with mounted(target, "-t", "tmpfs", "-o", "size=256k", "tmpfs"):
        paths = [str(target / name) for name in "ab"]
        artifacts.write_files(dict.fromkeys(paths, b"old"))
        with pytest.raises(
            TfoptError, match=r"No space left.*bytes are free"
        ) as caught:
            artifacts.write_files({paths[0]: b"new", paths[1]: bytes(1 << 20)})
        assert repr(paths[-1]) in str(caught.value)
        assert {path.read_bytes() for path in target.iterdir()} == {b"old"}
        assert sorted(os.listdir(target)) == ["a", "b"]


def test_a_read_only_disk_is_told_before_the_work(tmp_path):
    target = tmp_path / "disk"
    target.mkdir()
    with mounted(target, "-t", "tmpfs", "-o", "ro", "tmpfs"):
        for write in (
            lambda: artifacts.write_bytes(target / "a", b"x"),
            lambda: artifacts.prepare([target / "deep" / "a"]),
            lambda: artifacts.make_folder(target),
            lambda: artifacts.work_lock(target, name="x").__enter__(),
        ):
            with pytest.raises(TfoptError, match="Read-only file system"):
                write()


def test_what_cannot_be_written_is_told_before_the_work(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(TfoptError, match="its folder is a file"):
        artifacts.prepare([tmp_path / "file" / "a"])
    with pytest.raises(TfoptError, match="Is a directory"):
        artifacts.prepare([tmp_path])
    artifacts.prepare([tmp_path / "new" / "a", tmp_path / "file", os.devnull])
    assert os.listdir(tmp_path) == ["file"]


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
