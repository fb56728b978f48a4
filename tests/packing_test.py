"""Packing: content comes back, archives are repeatable, damage is found."""

import io
import os
import subprocess
import sys
import tarfile

import numpy as np
import pytest
import zstandard

import tfopt
from tfopt import artifacts, packing


@pytest.fixture
def folder(tmp_path):
    model = tmp_path / "model"
    (model / "variables").mkdir(parents=True)
    (model / "assets").mkdir()
    (model / "saved_model.pb").write_bytes(b"graph" * 999)
    values = np.random.default_rng(0).normal(size=20_000).astype(np.float32)
    values[np.abs(values) < 1.5] = 0
    (model / "variables" / "variables.data").write_bytes(values.tobytes())
    return model


def test_a_file_comes_back_and_its_sizes_are_true(tmp_path, folder):
    file = folder / "variables" / "variables.data"
    packed = tfopt.pack(file, tmp_path / "weights.zst")
    assert packed.details["raw_bytes"] == 80_000
    assert packed.details["zstd_bytes"] == os.path.getsize(tmp_path / "weights.zst")
    assert packed.details["gzip_bytes"] == artifacts.gzip_size(file)
    assert packed.size_bytes < 40_000
    assert tfopt.unpack(packed.path, tmp_path / "back") == str(tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == file.read_bytes()


def test_a_folder_comes_back_with_empty_folders(tmp_path, folder):
    packed = packing.pack(folder)
    assert packed.path == str(tmp_path / "model.tar.zst")
    assert packed.format == "tar.zst"
    back = packing.unpack(packed.path, tmp_path / "back")
    assert artifacts.sha256(back) == artifacts.sha256(folder)
    assert (tmp_path / "back" / "assets").is_dir()


def test_equal_content_gives_equal_bytes(tmp_path, folder):
    first = packing.pack(folder, tmp_path / "a.tar.zst")
    for file in folder.rglob("*"):
        os.utime(file, (1, 1))
    assert packing.pack(folder, tmp_path / "b.tar.zst").sha256 == first.sha256
    (folder / "saved_model.pb").write_bytes(b"other")
    assert packing.pack(folder, tmp_path / "c.tar.zst").sha256 != first.sha256


def test_levels_differ(folder):
    assert packing.pack(folder, level=1).size_bytes > packing.pack(folder).size_bytes


@pytest.mark.parametrize("damage", ["flip", "cut", "other"])
def test_damage_is_found_and_nothing_is_written(tmp_path, folder, damage):
    archive = tmp_path / "model.tar.zst"
    packing.pack(folder, archive)
    content = bytearray(archive.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 64
    content = {"cut": content[: len(content) // 2], "other": b"PK\x03\x04"}.get(
        damage, content
    )
    archive.write_bytes(content)
    with pytest.raises(tfopt.TfoptError, match=r"damaged.*model\.tar\.zst"):
        packing.unpack(archive, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_a_cut_file_is_found(tmp_path, folder):
    archive = tmp_path / "weights.zst"
    packing.pack(folder / "variables" / "variables.data", archive)
    archive.write_bytes(archive.read_bytes()[:-100])
    with pytest.raises(tfopt.TfoptError, match="damaged"):
        packing.unpack(archive)
    assert not (tmp_path / "weights").exists()


@pytest.mark.parametrize("name", ["../outside", "/tmp/tfopt_outside", "link"])
def test_archives_cannot_write_elsewhere(tmp_path, name):
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as archive:
        info = tarfile.TarInfo(name)
        if name == "link":
            info.type, info.linkname = tarfile.SYMTYPE, "/etc"
        archive.addfile(info)
    file = tmp_path / "bad.tar.zst"
    file.write_bytes(zstandard.ZstdCompressor().compress(raw.getvalue()))
    with pytest.raises(tfopt.TfoptError, match="more than files"):
        packing.unpack(file, tmp_path / "a" / "b")
    assert not (tmp_path / "a" / "outside").exists()
    assert not os.path.exists("/tmp/tfopt_outside")


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda folder: packing.pack(folder / "none"), "none"),
        (lambda folder: packing.pack(folder, level=0), "level=0"),
        (lambda folder: packing.pack(folder, "x.zst"), r"x\.zst"),
        (lambda folder: packing.pack(folder / "saved_model.pb", "x.tar.zst"), "x.tar"),
        (lambda folder: packing.unpack(folder / "saved_model.pb"), "saved_model.pb"),
        (lambda folder: packing.unpack(folder / "none.zst"), "none.zst"),
    ],
)
def test_wrong_arguments_are_named(folder, call, named):
    with pytest.raises((ValueError, tfopt.TfoptError), match=named):
        call(folder)


def test_without_zstandard_the_error_says_what_to_install(folder):
    code = (
        "import sys; sys.modules['zstandard'] = None\n"
        "import tfopt\n"
        f"tfopt.pack({str(folder)!r})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert "pip install 'tfopt[zstd]'" in done.stderr


def test_an_archive_in_the_folder_that_it_packs_is_refused(tmp_path, folder):
    output = folder / "inner.tar.zst"
    with pytest.raises(ValueError, match="outside of it"):
        packing.pack(folder, output)
    assert not output.exists()
