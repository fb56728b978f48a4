"""Packed archives (.zst, .tar.zst) and Keras files (.keras, .h5)."""

import io
import shutil
import tarfile
import zipfile

from fuzz import array_files, bits, json_files


class ArchiveReader:
    """`tfopt.unpack`."""

    def __init__(self, folder, work):
        import zstandard

        from tfopt import packing

        self._unpack, self._zstandard = packing.unpack, zstandard
        self._folder = work / "archives"
        self._folder.mkdir()
        self._packed = {
            suffix: (folder / name).read_bytes()
            for suffix, name in (
                (".tar.zst", "saved_model.tar.zst"),
                (".zst", "float.tflite.zst"),
            )
        }
        reader = zstandard.ZstdDecompressor().stream_reader(
            io.BytesIO(self._packed[".tar.zst"])
        )
        self._tar = reader.read()
        self._outside = work / "outside"

    def mutate(self, rng):
        suffix = rng.choice((".tar.zst", ".tar.zst", ".zst"))
        path = self._folder / f"model{suffix}"
        if suffix == ".tar.zst" and rng.random() < 0.75:
            tar = self._damaged_tar(rng)
            content = self._zstandard.ZstdCompressor(level=1).compress(tar)
        else:
            content = bits.damage(rng, self._packed[suffix])
        path.write_bytes(content)
        return path

    def _damaged_tar(self, rng):
        """Changes fields of headers, whose checksums stay right, or adds entries."""
        if rng.random() < 0.3:
            return bits.damage(rng, self._tar)
        out = io.BytesIO()
        with tarfile.open(fileobj=io.BytesIO(self._tar)) as archive:
            members = [(m, archive.extractfile(m)) for m in archive.getmembers()]
            members = [(m, f.read() if f else b"") for m, f in members]
        for _ in range(rng.choice((1, 2))):
            at = rng.randrange(len(members))
            info, data = members[at]
            kind = rng.randrange(7)
            if kind == 0:
                info.name = rng.choice(
                    ("../outside", "/tmp/outside", "a/../../outside", "", ".", "..")
                )
            elif kind == 1:
                info.name = rng.choice(("x" * 300, "a/" * 200 + "b", "\udcff", "a\0b"))
            elif kind == 2:
                info.type = rng.choice(
                    (
                        *(tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE),
                        *(tarfile.FIFOTYPE, tarfile.DIRTYPE, tarfile.GNUTYPE_SPARSE),
                    )
                )
                info.linkname = "../outside"
            elif kind == 3:
                members.insert(at, (info, data))
            elif kind == 4:
                members[at] = (info, data[: rng.randrange(len(data) + 1)])
            elif kind == 5:
                del members[at]
                if not members:
                    break
            else:
                info.pax_headers = {
                    rng.choice(("size", "path", "GNU.sparse.realsize", "mtime")): (
                        rng.choice(("-1", "99999999999999", "x", "../outside", ""))
                    )
                }
        style = rng.choice((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT))
        for info, data in members:
            header = bytearray(info.tobuf(style, "utf-8", "surrogateescape"))
            if rng.random() < 0.1:
                header[124:136] = rng.choice(
                    (b"77777777777\0", b"\x80" + b"\xff" * 11, b"-0000000001\0")
                )
                _correct_sum(header)
            out.write(bytes(header) + data + bytes(-len(data) % 512))
        out.write(bytes(1024))
        return out.getvalue()

    def names(self, given):
        return [str(given)]

    def read(self, given):
        try:
            self._unpack(given, self._folder / "result" / "model")
        finally:
            assert not self._outside.exists()
            shutil.rmtree(self._folder / "result", ignore_errors=True)


def _correct_sum(header):
    block = header[:512]
    block[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(block)


class KerasReader:
    """`_keras.load` of `.keras` and `.h5` files, of either Keras.

    A child process that tries each file first takes longer than all else, so most cases
    do without: then HDF5's own hangs and crashes are counted here, where `replay` with
    the child shows what users see of them.
    """

    PROBED = 0.002

    def __init__(self, folder, work):
        import h5py  # noqa: F401
        import tensorflow  # noqa: F401 (before memory is limited)

        from tfopt import _keras
        from tfopt._keras import safety

        self._load, self._work, self._note = _keras.load, work, safety.note
        names = ("keras3.keras", "keras3.h5", "legacy.keras", "legacy.h5")
        self._contents = {name: (folder / name).read_bytes() for name in names}
        for name in names:
            self._load(folder / name)

    def mutate(self, rng):
        name = rng.choice(sorted(self._contents))
        path = self._work / name
        content = self._contents[name]
        choice = rng.random()
        if name.endswith(".h5"):
            content = bits.damage(rng, content)
        elif choice < 0.5:
            content = self._damaged_members(rng, content)
        elif choice < 0.8:
            content = array_files.damage_zip(rng, content)
        else:
            content = bits.damage(rng, content)
        path.write_bytes(content)
        if rng.random() > self.PROBED:
            self._note(path)
        return path

    def _damaged_members(self, rng, content):
        out = io.BytesIO()
        with (
            zipfile.ZipFile(io.BytesIO(content)) as archive,
            zipfile.ZipFile(out, "w") as target,
        ):
            for info in archive.infolist():
                data = archive.read(info)
                if rng.random() < 0.05:
                    continue
                if info.filename.endswith(".json") and rng.random() < 0.6:
                    data = json_files.damage_text(rng, data.decode()).encode(
                        "utf-8", "surrogateescape"
                    )
                elif rng.random() < 0.3:
                    data = bits.damage(rng, data)
                target.writestr(info.filename, data)
        return out.getvalue()

    def names(self, given):
        return [str(given)]

    def read(self, given):
        self._load(given)
