"""Files on disk: at a path stands the old content or the whole new one, always."""

import dataclasses
import errno
import gzip
import hashlib
import json
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap

import numpy as np
import pytest

from tfopt import artifacts
from tfopt._writing import _claims
from tfopt.types import Signature, TensorInfo, TfoptError

ROOT = pathlib.Path(__file__).parent.parent


def names(folder):
    return sorted(entry.name for entry in folder.iterdir())


def make_directory(path, content, *, extra=False):
    path.mkdir(parents=True)
    (path / "saved_model.pb").write_bytes(content)
    (path / "variables").mkdir()
    (path / "variables" / "data").write_bytes(content * 2)
    if extra:
        (path / "assets").write_bytes(b"old only")


def read_directory(path):
    return {
        file.relative_to(path).as_posix(): file.read_bytes()
        for file in path.rglob("*")
        if file.is_file()
    }


def run_child(code, **settings):
    """Runs code with `atomic_path`, `write_bytes` and `target` in a child process."""
    prelude = "import os, pathlib, sys\nfrom tfopt.artifacts import *\n"
    return subprocess.run(
        [sys.executable, "-c", prelude + textwrap.dedent(code)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        **settings,
    )


def test_a_file_is_created_with_its_folders_and_replaced(tmp_path):
    target = tmp_path / "deep" / "er" / "model.tflite"
    for content in (b"one", b"two", b""):
        artifacts.write_bytes(target, content)
        assert target.read_bytes() == content
        assert names(target.parent) == ["model.tflite"]


def test_the_temporary_has_the_suffix_and_the_folder_of_the_target(tmp_path):
    with artifacts.atomic_path(tmp_path / "model.keras") as temporary:
        assert temporary.suffix == ".keras"
        assert os.stat(temporary.parent).st_dev == os.stat(tmp_path).st_dev
        temporary.write_bytes(b"x")
        assert not (tmp_path / "model.keras").exists()


def test_a_directory_is_created_and_replaced_as_a_whole(tmp_path):
    target = tmp_path / "saved_model"
    for content, extra in ((b"one", True), (b"two", False)):
        with artifacts.atomic_path(target) as temporary:
            make_directory(temporary, content, extra=extra)
    assert read_directory(target) == {
        "saved_model.pb": b"two",
        "variables/data": b"twotwo",
    }
    assert names(tmp_path) == ["saved_model"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_exception_leaves_the_old_file_and_directory(tmp_path, error):
    file, folder = tmp_path / "a.pb", tmp_path / "folder"
    file.write_bytes(b"old")
    make_directory(folder, b"old")

    def fail(target, write):
        with artifacts.atomic_path(target) as temporary:
            write(temporary)
            raise error("stop")

    with pytest.raises(error):
        fail(file, lambda path: path.write_bytes(b"new"))
    with pytest.raises(error):
        fail(folder, lambda path: make_directory(path, b"new"))
    assert file.read_bytes() == b"old"
    assert read_directory(folder)["saved_model.pb"] == b"old"
    assert names(tmp_path) == ["a.pb", "folder"]


def test_writing_nothing_is_an_error_and_leaves_the_old_file(tmp_path):
    target = tmp_path / "a.pb"
    target.write_bytes(b"old")
    with pytest.raises(TfoptError, match=r"a\.pb"), artifacts.atomic_path(target):
        pass
    assert target.read_bytes() == b"old"


def test_a_file_never_takes_the_place_of_a_directory_or_the_reverse(tmp_path):
    file, folder = tmp_path / "a.pb", tmp_path / "folder"
    file.write_bytes(b"old")
    make_directory(folder, b"old")
    with pytest.raises(TfoptError, match="a file in the place of a directory"):
        artifacts.write_bytes(folder, b"new")
    with (
        pytest.raises(TfoptError, match="a directory in the place of a file"),
        artifacts.atomic_path(file) as temporary,
    ):
        make_directory(temporary, b"new")
    assert file.read_bytes() == b"old"
    assert len(read_directory(folder)) == 2
    assert names(tmp_path) == ["a.pb", "folder"]


def test_a_directory_with_other_things_is_never_replaced(tmp_path):
    target = tmp_path / "home"
    make_directory(target, b"old")
    (target / "thesis.tex").write_bytes(b"years of work")

    def write():
        with artifacts.atomic_path(target) as temporary:
            make_directory(temporary, b"new")

    with pytest.raises(TfoptError, match=r"thesis\.tex"):
        write()
    assert read_directory(target)["thesis.tex"] == b"years of work"
    assert read_directory(target)["saved_model.pb"] == b"old"
    (target / "thesis.tex").unlink()
    write()
    assert read_directory(target)["saved_model.pb"] == b"new"
    for entry in (target / "variables", target):
        for file in entry.iterdir():
            if file.is_file():
                file.unlink()
    (target / "variables").rmdir()
    write()  # into an empty directory
    assert len(read_directory(target)) == 2


def test_a_link_stays_and_its_target_is_replaced(tmp_path):
    (tmp_path / "real").mkdir()
    target, link = tmp_path / "real" / "v1.tflite", tmp_path / "latest.tflite"
    target.write_bytes(b"old")
    link.symlink_to(target)
    artifacts.write_bytes(link, b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"
    target.unlink()
    artifacts.write_bytes(link, b"through a dangling link")
    assert target.read_bytes() == b"through a dangling link"
    assert names(tmp_path) == ["latest.tflite", "real"]


KILL = """
    with atomic_path(sys.argv[1]) as temporary:
        if sys.argv[2] == "file":
            temporary.write_bytes(b"half")
        else:
            temporary.mkdir()
            (temporary / "saved_model.pb").write_bytes(b"half")
        os.kill(os.getpid(), 9)
"""


def run_killed(target, kind):
    code = textwrap.dedent(KILL).replace("sys.argv[1]", repr(str(target)))
    done = run_child(code.replace("sys.argv[2]", repr(kind)))
    assert done.returncode == -signal.SIGKILL, done.stderr


def test_a_killed_process_leaves_the_old_file_and_the_next_one_cleans_up(tmp_path):
    target = tmp_path / "a.pb"
    target.write_bytes(b"old")
    run_killed(target, "file")
    assert target.read_bytes() == b"old"
    assert len(names(tmp_path)) == 2  # the leftover is there
    artifacts.write_bytes(target, b"new")
    assert names(tmp_path) == ["a.pb"]
    assert target.read_bytes() == b"new"


def test_a_killed_process_leaves_the_old_directory(tmp_path):
    target = tmp_path / "model"
    make_directory(target, b"old")
    run_killed(target, "directory")
    assert read_directory(target)["saved_model.pb"] == b"old"
    with artifacts.atomic_path(target) as temporary:
        make_directory(temporary, b"new")
    assert read_directory(target)["saved_model.pb"] == b"new"
    assert names(tmp_path) == ["model"]


def test_killed_between_two_renames_the_old_directory_comes_back(tmp_path):
    # The way of file systems that cannot exchange two names.
    target = tmp_path / "model"
    make_directory(target, b"old")
    done = run_child(f"""
        from tfopt._writing import _replacing
        _replacing._renameat2 = lambda: None
        rename = os.rename
        def rename_and_die(source, destination):
            rename(source, destination)
            os.kill(os.getpid(), 9)
        os.rename = rename_and_die
        with atomic_path({str(target)!r}) as temporary:
            temporary.mkdir()
            (temporary / "saved_model.pb").write_bytes(b"new")
    """)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not target.exists()
    # The next run fails, and yet the old one is back.
    with pytest.raises(ValueError, match="stop"), artifacts.atomic_path(target):
        raise ValueError("stop")
    assert read_directory(target)["saved_model.pb"] == b"old"
    assert names(tmp_path) == ["model"]


def leftover(folder, name, machine=None):
    """Makes a temporary folder as a process leaves it that was killed."""
    prefix = _claims.prefix_for(name)
    if machine is not None:
        prefix = prefix.replace(_claims._machine(), machine)
    place = folder / f"{prefix}abcdefgh"
    place.mkdir()
    (place / name).write_bytes(b"half")
    return place


def test_only_leftovers_of_the_same_target_and_of_dead_processes_go(tmp_path):
    goes = leftover(tmp_path, "a.pb")
    stays = [
        leftover(tmp_path, "b.pb"),
        leftover(tmp_path, "a.pb", machine="0" * 8),  # another machine, just now
    ]
    with artifacts.atomic_path(tmp_path / "a.pb") as alive:
        alive.write_bytes(b"first")
        artifacts.write_bytes(tmp_path / "a.pb", b"second")
        assert alive.read_bytes() == b"first"
    assert not goes.exists()
    assert names(tmp_path) == sorted([*(item.name for item in stays), "a.pb"])
    # After a day, what another machine has left is a leftover.
    for place in (stays[1] / "a.pb", stays[1]):
        os.utime(place, (0, 0))
    artifacts.write_bytes(tmp_path / "a.pb", b"third")
    assert names(tmp_path) == sorted([stays[0].name, "a.pb"])


def test_a_link_with_the_name_of_a_leftover_is_not_followed(tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.tex").write_bytes(b"years of work")
    link = tmp_path / f"{_claims.prefix_for('a.pb')}abcdefgh"
    link.symlink_to(tmp_path / "precious")
    artifacts.write_bytes(tmp_path / "a.pb", b"x")
    assert (tmp_path / "precious" / "thesis.tex").exists()


@pytest.mark.parametrize("folder", ["file", "file/deeper", "/proc/absent"])
def test_a_folder_that_cannot_be_made_is_one_line(tmp_path, folder):
    (tmp_path / "file").write_bytes(b"")
    target = tmp_path / folder / "a.pb"
    with pytest.raises(TfoptError, match="Cannot write the output") as caught:
        artifacts.write_bytes(target, b"x")
    assert "a.pb" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == ["file"]


def test_a_read_only_folder_is_one_line():
    # Root may write everywhere, so a child that has given that up tries; hence a
    # folder that other users can reach.
    folder = pathlib.Path(tempfile.mkdtemp())
    try:
        artifacts.write_bytes(folder / "a.pb", b"old")
        folder.chmod(0o555)
        done = run_child(f"""
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
            try:
                write_bytes({str(folder / "a.pb")!r}, b"new")
            except Exception as error:
                print(type(error).__name__, error)
        """)
        assert done.stdout.startswith("TfoptError Cannot write the output: Permission")
        assert (folder / "a.pb").read_bytes() == b"old"
        assert names(folder) == ["a.pb"]
    finally:
        folder.chmod(0o755)
        shutil.rmtree(folder)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_one_line_and_leaves_the_old_file(tmp_path):
    target = tmp_path / "a.pb"
    target.write_bytes(b"old")

    def write():
        with artifacts.atomic_path(target) as temporary:
            temporary.symlink_to("/dev/full")
            temporary.write_bytes(b"new")

    with pytest.raises(TfoptError, match="No space left on device") as caught:
        write()
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.ENOSPC
    assert target.read_bytes() == b"old"
    assert names(tmp_path) == ["a.pb"]


def test_a_limit_on_file_sizes_is_one_line_and_leaves_the_old_file(tmp_path):
    target = tmp_path / "a.pb"
    target.write_bytes(b"old")

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    done = run_child(
        f"""
        try:
            write_bytes({str(target)!r}, bytes(5000))
        except Exception as error:
            print(type(error).__name__, error)
        """,
        preexec_fn=limit,
    )
    assert done.stdout.startswith("TfoptError Cannot write the output: File too large")
    assert target.read_bytes() == b"old"
    assert names(tmp_path) == ["a.pb"]


def test_errors_of_other_files_keep_their_own_words(tmp_path):
    with (
        pytest.raises(FileNotFoundError, match="absent"),
        artifacts.atomic_path(tmp_path / "a.pb"),
    ):
        open(tmp_path / "absent")  # noqa: SIM115


def test_a_new_file_has_the_permissions_of_any_new_file(tmp_path):
    (tmp_path / "plain").write_bytes(b"")
    artifacts.write_bytes(tmp_path / "a.pb", b"")
    with artifacts.atomic_path(tmp_path / "folder") as temporary:
        make_directory(temporary, b"")
    (tmp_path / "plain folder").mkdir()
    mode = {name: (tmp_path / name).stat().st_mode for name in names(tmp_path)}
    assert mode["a.pb"] == mode["plain"]
    assert mode["folder"] == mode["plain folder"]


def test_writers_at_the_same_time_leave_one_whole_file(tmp_path):
    target = tmp_path / "a.pb"
    code = f"""
        for _ in range(50):
            write_bytes({str(target)!r}, sys.argv[1].encode() * 100_000)
    """
    prelude = "import os, pathlib, sys\nfrom tfopt.artifacts import *\n"
    command = [sys.executable, "-c", prelude + textwrap.dedent(code)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    children = [subprocess.Popen([*command, name], env=environment) for name in "ab"]
    assert [child.wait(60) for child in children] == [0, 0]
    assert target.read_bytes() in (b"a" * 100_000, b"b" * 100_000)
    assert names(tmp_path) == ["a.pb"]


def test_sizes_and_digests_of_a_file(tmp_path):
    file = tmp_path / "a.bin"
    content = np.random.default_rng(0).integers(0, 4, 10_000, np.uint8).tobytes()
    file.write_bytes(content)
    assert artifacts.raw_size(file) == 10_000
    assert artifacts.gzip_size(file) == artifacts.gzip_size(content)
    assert artifacts.gzip_size(content) == len(gzip.compress(content, 9, mtime=0))
    assert 2_000 < artifacts.gzip_size(content) < 5_000
    assert artifacts.sha256(file) == hashlib.sha256(content).hexdigest()


def test_sizes_and_digests_of_a_directory(tmp_path):
    make_directory(tmp_path / "one", b"abc")
    make_directory(tmp_path / "two", b"abc")
    assert artifacts.raw_size(tmp_path / "one") == 9
    assert artifacts.gzip_size(tmp_path / "one") == sum(
        artifacts.gzip_size(content) for content in (b"abc", b"abcabc")
    )
    digest = artifacts.sha256(tmp_path / "one")
    assert digest == artifacts.sha256(tmp_path / "two")
    (tmp_path / "two" / "saved_model.pb").rename(tmp_path / "two" / "renamed.pb")
    assert digest != artifacts.sha256(tmp_path / "two")


def test_describe_and_manifest(tmp_path):
    file = tmp_path / "a.tflite"
    file.write_bytes(b"TFL3" * 100)
    info = TensorInfo("x", np.dtype(np.int8), (None, 4), scale=(0.5,), zero_point=(3,))
    artifact = artifacts.describe(
        file,
        "tflite",
        signature=Signature("serving_default", (info,), (info,)),
        history=[{"op": "convert", "quantization": "int8"}],
        details={"worst": np.float32(0.25), "shape": np.array([1, 2])},
    )
    assert (artifact.size_bytes, artifact.format) == (400, "tflite")
    assert artifact.gzip_bytes == artifacts.gzip_size(file)
    artifacts.write_manifest(tmp_path / "a.json", artifact)
    manifest = artifacts.read_manifest(tmp_path / "a.json")
    assert set(manifest) == {item.name for item in dataclasses.fields(artifact)}
    assert manifest["sha256"] == artifacts.sha256(file)
    assert manifest["details"] == {"worst": 0.25, "shape": [1, 2]}
    assert manifest["signature"]["inputs"][0] == {
        "name": "x",
        "dtype": "int8",
        "shape": [None, 4],
        "scale": [0.5],
        "zero_point": [3],
    }
    with pytest.raises(TfoptError, match="Nothing to describe"):
        artifacts.describe(tmp_path / "absent", "tflite")


@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b'{"path": 1}', b"\xff"])
def test_what_is_no_manifest_is_refused(tmp_path, content):
    path = tmp_path / "m.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(TfoptError, match=r"m\.json"):
        artifacts.read_manifest(path)


def test_json_of_what_results_hold():
    class WithMethod:
        def to_json(self):
            return {"inner": np.int64(3)}

    content = {
        1: (np.float32(0.5), float("nan"), float("-inf"), float("inf")),
        "path": pathlib.Path("a") / "b",
        "set": {"b", "a"},
        "none": None,
        "flag": np.bool_(True),
        "array": np.arange(4).reshape(2, 2),
        "method": WithMethod(),
        "dtype": np.dtype("float32"),
        "text": "café ×",
    }
    assert json.loads(artifacts.to_json(content)) == {
        "1": [0.5, "NaN", "-Infinity", "Infinity"],
        "path": "a/b",
        "set": ["a", "b"],
        "none": None,
        "flag": True,
        "array": [[0, 1], [2, 3]],
        "method": {"inner": 3},
        "dtype": "float32",
        "text": "café ×",
    }
    with pytest.raises(TypeError, match="object"):
        artifacts.to_json({"a": object()})
