"""NumPy's files are read without evaluating them, and like NumPy reads them."""

import io
import zipfile

import numpy as np
import pytest

from tfopt import _array_files, data
from tfopt._array_files import Unreadable
from tfopt.types import TfoptError

ARRAYS = (
    np.arange(12, dtype=np.float32).reshape(3, 4),
    np.asfortranarray(np.arange(12).reshape(3, 4)),
    np.array(3.5),
    np.zeros((0, 4), np.int8),
    np.array(["a", "bc"]),
    np.array([b"a", b"bc"]),
    np.array([True, False]),
    np.array([1 + 2j]),
    np.arange(3, dtype=">i4"),
)


def npy(header, content=b"", version=1):
    text = header.encode()
    size = len(text).to_bytes(2 if version == 1 else 4, "little")
    return b"\x93NUMPY" + bytes([version, 0]) + size + text + content


@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: f"{array.dtype}")
@pytest.mark.parametrize("mapped", [False, True])
def test_arrays_are_those_that_were_saved(tmp_path, array, mapped):
    np.save(tmp_path / "x.npy", array)
    found = _array_files.load(tmp_path / "x.npy", mapped=mapped)
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)
    np.savez_compressed(tmp_path / "x.npz", x=array, y=array)
    with _array_files.opened(tmp_path / "x.npz") as file:
        assert list(file) == ["x", "y"]
        np.testing.assert_array_equal(file["y"], array)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (
            "{'descr': '<f4', 'fortran_order': False, 'shape': (1" + "0" * 12 + ",), }",
            "cut off",
        ),
        ("{'descr': '|O', 'fortran_order': False, 'shape': (3,), }", "object"),
        ("{'descr': [('a', '|O')], 'fortran_order': False, 'shape': (3,), }", "header"),
        ("{'descr': '<d4', 'fortran_order': False, 'shape': (3,), }", "d4"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }", "header"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (9**9**9,), }", "header"),
        ("{'descr': '<f4', 'shape': (3,), }", "header"),
        ("(" * 9000, "header"),
        ("-" * 9000 + "1", "header"),
        ("x" * 20_000, "20,000 bytes"),
        ("__import__('os').system('true')", "header"),
    ],
)
def test_headers_are_not_believed(tmp_path, header, message):
    path = tmp_path / "x.npy"
    path.write_bytes(npy(header, bytes(12)))
    with pytest.raises(Unreadable, match=message):
        _array_files.load(path)
    # What users see of it names the file.
    with pytest.raises(TfoptError, match=r"x\.npy.*" + message):
        data.load_representative(path)


def test_sizes_in_archives_are_not_believed(tmp_path):
    header = "{'descr': '|u1', 'fortran_order': False, 'shape': (4000000000,), }"
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("x.npy", npy(header))
    content = bytearray(out.getvalue())
    at = content.index(b"PK\x01\x02") + 24
    content[at : at + 4] = (0xFFFFFFF0).to_bytes(4, "little")  # its size, unpacked
    (tmp_path / "x.npz").write_bytes(content)
    with (
        _array_files.opened(tmp_path / "x.npz") as file,
        pytest.raises(Unreadable, match="4,294,967,280 bytes by its header"),
    ):
        file["x"]
