"""Checkpoints: the index table with right checksums, its entries, and data files."""

import struct

from fuzz import bits, messages

MAGIC = struct.pack("<Q", 0xDB4775248B80FB57)
PREFIXES = ("parts", "trained")


class _Checkpoints:
    """Copies of the sample checkpoints, for a damaged one."""

    def __init__(self, folder, work):
        from tfopt.savedmodel import bundle, bundle_writing, protos, table

        self._bundle, self._table, self._protos = bundle, table, protos
        self._writing = bundle_writing
        self._prefix = work / "model"
        self._data = work / "model.data-00000-of-00001"
        self._index = work / "model.index"
        self._indices = [(folder / f"{p}.index").read_bytes() for p in PREFIXES]
        self._pairs = [table.read_table(folder / f"{p}.index") for p in PREFIXES]
        self._shards = [
            (folder / f"{p}.data-00000-of-00001").read_bytes() for p in PREFIXES
        ]

    def names(self, given):
        return [str(given)]

    def read(self, given):
        from tfopt.checkpoint import objects

        reader = self._bundle.BundleReader(given)
        errors = []
        # Each tensor by itself: a damaged one must not hide the next.
        for key in reader.keys():  # noqa: SIM118 (no mapping)
            for work in (
                reader.entry,
                reader.extents,
                reader.raw_extents,
                reader.read,
                lambda key: self._read_part(reader, key),
                lambda key: reader.verify([key]),
            ):
                try:
                    work(key)
                except Exception as error:
                    errors.append(error)
        objects.read_graph(reader)
        wrong = [error for error in errors if not self._is_ours(error)]
        if wrong or errors:
            raise (wrong or errors)[0]

    def _read_part(self, reader, key):
        shape = reader.entry(key).shape
        if shape and all(2 <= size < 1000 for size in shape):
            reader.read(key, tuple((size // 2, 1) for size in shape))

    def _is_ours(self, error):
        from fuzz import driver

        return driver.judge(error, [str(self._prefix)])[0] == "named error"


class IndexReader(_Checkpoints):
    """`variables.index`: blocks, handles, restarts, entries; checksums are right."""

    def mutate(self, rng):
        number = rng.randrange(len(PREFIXES))
        self._data.write_bytes(self._shards[number])
        choice = rng.random()
        if choice < 0.15:
            content = bits.damage(rng, self._indices[number])
        elif choice < 0.45:
            content = self._damaged_table(rng, self._pairs[number])
        else:
            pairs = self._damaged_pairs(rng, self._pairs[number])
            self._table.write_table(self._index, pairs)
            return self._prefix
        self._index.write_bytes(content)
        return self._prefix

    def _damaged_pairs(self, rng, pairs):
        """Changes entries: shapes, slices, shards, offsets, sizes, types, keys."""
        changed = dict(pairs)
        for _ in range(rng.choice((1, 1, 2, 4))):
            key = rng.choice(sorted(changed) or [b""])
            value = changed.get(key, b"")
            choice = rng.random()
            if choice < 0.1:
                changed.pop(key, None)
            elif choice < 0.2:
                changed[bits.damage(rng, key)] = value
            elif choice < 0.3:
                changed[key] = changed[rng.choice(sorted(changed) or [key])]
            elif choice < 0.4:
                changed[key] = messages.damage_wire(rng, value)
            else:
                kind = "BundleEntryProto" if key else "BundleHeaderProto"
                entry = self._protos.message_class(kind).FromString(
                    pairs.get(key, b"")  # as it was before it was damaged
                )
                if rng.random() < 0.3 and key:
                    self._damage_entry(rng, entry)
                else:
                    messages.damage(rng, entry)
                changed[key] = entry.SerializeToString()
        return changed

    def _damage_entry(self, rng, entry):
        """Makes an entry ask for more than there is, in a way that agrees."""
        kind = rng.randrange(4)
        size = rng.choice((0, 1, 1 << 20, 1 << 33, 1 << 40, 1 << 61, -1))
        if kind == 0:
            del entry.shape.dim[:]
            entry.shape.dim.add(size=size)
            entry.size = max(-(1 << 62), min(4 * size, (1 << 63) - 1))
        elif kind == 1:
            entry.offset = size
        elif kind == 2:
            entry.dtype = 7  # strings
            del entry.shape.dim[:]
            entry.shape.dim.add(size=size)
        else:
            part = entry.slices.add()
            for _ in range(rng.randrange(4)):
                part.extent.add(
                    start=rng.randrange(-2, 6), length=rng.choice((2, size))
                )

    def _damaged_table(self, rng, pairs):
        """Writes the blocks with another layout, and checksums that fit."""
        entries = sorted(pairs.items())
        body = bytearray()
        previous = b""
        for key, value in entries:
            shared = 0
            while (
                shared < min(len(key), len(previous))
                and key[shared] == previous[shared]
            ):
                shared += 1
            numbers = [shared, len(key) - shared, len(value)]
            if rng.random() < 0.1:
                numbers[rng.randrange(3)] = bits.integer(rng, 64)
            body += b"".join(map(bits.varint, numbers)) + key[shared:] + value
            previous = key
        restarts = rng.choice(([0], [0, 1 << 31], [], [0] * 500))
        count = rng.choice((len(restarts), len(restarts), bits.integer(rng, 32)))
        body += struct.pack(f"<{len(restarts) + 1}I", *restarts, count)
        content = bytearray()
        handle = self._block(rng, content, bytes(body))
        meta = self._block(rng, content, struct.pack("<II", 0, 1))
        if rng.random() < 0.2:
            handle = bits.varint(bits.integer(rng, 64)) + bits.varint(
                rng.choice((len(body), bits.integer(rng, 64)))
            )
        pair = b"".join(map(bits.varint, (0, 1, len(handle)))) + b"z" + handle
        repeated = pair * rng.choice((1, 1, 1, 2, 3000))
        index = self._block(rng, content, repeated + struct.pack("<II", 0, 1))
        if rng.random() < 0.1:
            index = bits.varint(bits.integer(rng, 64)) + bits.varint(20)
        footer = (meta + index)[:40].ljust(40, b"\0")
        return bytes(content) + footer + MAGIC

    def _block(self, rng, content, body):
        from tfopt.savedmodel import crc32c

        at = len(content)
        if rng.random() < 0.1:
            body = bits.damage(rng, body)
        stored = body + bytes([rng.choice((0,) * 20 + (1, 2, 255))])
        content += stored
        content += struct.pack("<I", crc32c.mask(crc32c.extend(0, stored)))
        return bits.varint(at) + bits.varint(len(body))


class ShardReader(_Checkpoints):
    """Data files: cut, longer, changed; of half the cases with right checksums."""

    def mutate(self, rng):
        number = rng.randrange(len(PREFIXES))
        content = bits.damage(rng, self._shards[number])
        pairs = dict(self._pairs[number])
        if rng.random() < 0.7:
            self._correct(rng, pairs, content)
        self._data.write_bytes(content)
        self._table.write_table(self._index, pairs)
        return self._prefix

    def _correct(self, rng, pairs, content):
        """Records the checksums of the damaged bytes, of strings as TensorFlow does."""
        from tfopt.savedmodel import crc32c

        cls = self._protos.message_class("BundleEntryProto")
        for key, value in pairs.items():
            if not key:
                continue
            entry = cls.FromString(value)
            data = content[entry.offset : entry.offset + entry.size]
            if entry.dtype == 7:
                data = self._as_checked(data, entry) or data
            entry.crc32c = crc32c.mask(crc32c.extend(0, data))
            pairs[key] = entry.SerializeToString()

    def _as_checked(self, data, entry):
        """Returns the bytes that the checksum of strings covers."""
        count = 1
        for dim in entry.shape.dim:
            count *= dim.size
        words, position = b"", 0
        try:
            for _ in range(count):
                length, position = self._table.read_varint(data, position)
                words += struct.pack("<I" if length < 1 << 32 else "<Q", length)
        except IndexError:
            return None
        return words + data[position:]


class SlimReader(IndexReader):
    """`slim_checkpoint`: the object graph, slots and metadata of a checkpoint."""

    def __init__(self, folder, work):
        super().__init__(folder, work)
        from tfopt import checkpoint
        from tfopt.checkpoint import objects

        self._slim, self._objects = checkpoint.slim_checkpoint, objects
        self._output = work / "slim"
        source = folder / "trained"
        self._reader = self._bundle.BundleReader(source)
        checkpoint.slim_checkpoint(source, work / "first")
        self._readers = [self._reader, self._bundle.BundleReader(work / "first")]

    def mutate(self, rng):
        if rng.random() < 0.3:
            return super().mutate(rng)
        reader = rng.choice(self._readers)
        with self._writing.BundleWriter(self._prefix) as writer:
            for key in reader.keys():  # noqa: SIM118 (no mapping)
                if key == self._objects.GRAPH_KEY and rng.random() < 0.8:
                    graph = self._objects.read_graph(reader)
                    self._damage_objects(rng, graph)
                    value = [graph.SerializeToString()]
                    if rng.random() < 0.1:
                        value = [messages.damage_wire(rng, value[0])]
                    writer.add(key, _strings(value))
                elif key.startswith("tfopt") or "METADATA" in key.upper():
                    writer.add(key, _strings([self._metadata(rng, reader, key)]))
                elif rng.random() < 0.97:
                    writer.copy(reader, key)
        return self._prefix

    def _metadata(self, rng, reader, key):
        from fuzz import json_files

        return json_files.damage_text(rng, reader.read(key).item().decode()).encode()

    def _damage_objects(self, rng, graph):
        for _ in range(rng.choice((1, 2, 5))):
            node = graph.nodes[rng.randrange(len(graph.nodes))] if graph.nodes else None
            if node is None or not node.children or rng.random() < 0.4:
                messages.damage(rng, graph)
                continue
            edge = node.children[rng.randrange(len(node.children))]
            edge.node_id = rng.choice(
                (0, rng.randrange(len(graph.nodes)), len(graph.nodes), 1 << 30, -1)
            )

    def read(self, given):
        self._slim(given, self._output)


def _strings(values):
    import numpy as np

    array = np.empty((), object)
    array[()] = values[0]
    return array
