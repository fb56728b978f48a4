""".npz and .npy files: zip records, NumPy headers and contents."""

import io
import struct
import zipfile

from fuzz import bits

HEADERS = (
    "{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776,), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (4294967296, 4294967296), }",
    "{'descr': '<f4', 'fortran_order': True, 'shape': (3, 4), }",
    "{'descr': '|O', 'fortran_order': False, 'shape': (3,), }",
    "{'descr': '<U1000000000', 'fortran_order': False, 'shape': (3,), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (2.5,), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': [3], }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (0, 9223372036854775807), }",
    "{'descr': [('a', '<f4'), ('b', '|O')], 'fortran_order': False, 'shape': (2,), }",
    "{'descr': [('a', '<i4'), ('a', '<i4')], 'fortran_order': False, 'shape': (2,), }",
    "{'descr': '<f4', 'fortran_order': 1, 'shape': (3,), }",
    "{'descr': None, 'fortran_order': False, 'shape': (3,), }",
    "{'descr': '<M8[ns]', 'fortran_order': False, 'shape': (3,), }",
    "{'descr': '<V8', 'fortran_order': False, 'shape': (3,), }",
    "{'shape': (3,), }",
    "[" * 90,
    "(" * 9000,
    "{'descr': '<f4', 'fortran_order': False, 'shape': " + "(1," * 60 + ")" * 60 + "}",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (" + "1," * 100 + "), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (9**9**9,), }",
    "__import__('os').system('true')",
    "-" * 9000 + "1",
    "{" * 50 + "}" * 50,
    "\x00" * 60,
    "{'descr': '<f4', 'fortran_order': False, 'shape': (1" + "0" * 5000 + ",), }",
)


class ArrayReader:
    """All of `tfopt.data`, and the arrays of `run_tflite`."""

    def __init__(self, folder, work):
        import numpy as np

        from tfopt import data, types
        from tfopt.runner import _files

        self._data, self._files, self._np = data, _files, np
        rng = np.random.default_rng(0)
        self._arrays = {
            "x_train": rng.normal(size=(6, 4)).astype(np.float32),
            "y_train": rng.integers(0, 9, 6),
            "x_test": rng.normal(size=(3, 4)).astype(np.float32),
            "y_test": rng.integers(0, 9, 3),
        }
        self._members = {name: _npy(np, array) for name, array in self._arrays.items()}
        info = types.TensorInfo("x_test", np.dtype(np.float32), (None, 4))
        self._signature = types.Signature("main", (info,), ())
        self._work = work

    def mutate(self, rng):
        if rng.random() < 0.25:
            path = self._work / "data.npy"
            path.write_bytes(self._member(rng, rng.choice(sorted(self._members)), 0.95))
            return path
        path = self._work / "data.npz"
        content = self._archive(rng)
        if rng.random() < 0.4:
            content = damage_zip(rng, content)
        if rng.random() < 0.1:
            content = bits.damage(rng, content)
        path.write_bytes(content)
        return path

    def names(self, given):
        return [str(given)]

    def read(self, given):
        path = str(given)
        done = []
        works = [
            lambda: self._data.load_representative(path),
            lambda: self._files.read_inputs([path], self._signature),
        ]
        if path.endswith(".npz"):
            works += [
                lambda: self._data.load_data(path),
                lambda: self._data.load_examples(path),
                lambda: self._data.has_training_part(path),
            ]
        for work in works:
            try:
                work()
            except Exception as error:
                done.append(error)
        from fuzz import driver

        done.sort(key=lambda error: driver.judge(error, [path])[0] == "named error")
        if done:
            raise done[0]

    def _archive(self, rng):
        out = io.BytesIO()
        method = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
        with zipfile.ZipFile(out, "w", method) as archive:
            for name in self._members:
                if rng.random() < 0.05:
                    continue
                stored = name
                if rng.random() < 0.05:
                    stored = rng.choice(("../x", "x_train/a", "", "/x", "x_test", "é"))
                archive.writestr(stored + ".npy", self._member(rng, name, 0.2))
        return out.getvalue()

    def _member(self, rng, name, share):
        content = self._members[name]
        if rng.random() > share:
            return content
        kind = rng.random()
        if kind < 0.3:
            return bits.damage(rng, content)
        if kind < 0.4:
            return _npy(self._np, rng.choice(self._odd()))
        header = rng.choice(HEADERS).encode("latin1", "replace")
        if kind < 0.6:
            text = content[10 : 10 + struct.unpack_from("<H", content, 8)[0]]
            header = bits.damage(rng, text)
        version = rng.choice((1, 1, 2, 3, 9))
        size = len(header) if rng.random() < 0.9 else bits.integer(rng, 16)
        code = "<H" if version == 1 else "<I"
        return (
            b"\x93NUMPY"
            + bytes([version, 0])
            + struct.pack(code, size % 65536)
            + header
            + content[80:]
        )

    def _odd(self):
        np = self._np
        return [
            np.zeros(()),
            np.zeros((0, 4), np.float32),
            np.zeros((3, 0)),
            np.array(["a", "b"]),
            np.array([b"a"]),
            np.zeros(3, "V4"),
            np.zeros((3, 4), np.complex64),
            np.asfortranarray(np.zeros((3, 4), np.float32)),
            np.zeros(3, [("a", np.float32), ("b", np.int8)]),
            np.array(["2020-01-01"], "M8[D]"),
        ]


def _npy(np, array):
    out = io.BytesIO()
    np.save(out, array, allow_pickle=False)
    return out.getvalue()


def damage_zip(rng, content):
    """Changes a field of a local or central record, or of the end."""
    data = bytearray(content)
    marks = [b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06"]
    for _ in range(rng.choice((1, 1, 2, 4))):
        mark = rng.choice(marks)
        places = []
        at = data.find(mark)
        while at >= 0:
            places.append(at)
            at = data.find(mark, at + 1)
        if not places:
            continue
        at = rng.choice(places) + 4 + 2 * rng.randrange(19)
        code, bits_ = rng.choice((("<H", 16), ("<I", 32)))
        if at + 4 <= len(data):
            struct.pack_into(code, data, at, bits.integer(rng, bits_))
    return bytes(data)
