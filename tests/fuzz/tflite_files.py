"""`.tflite` files: damaged offsets, lengths, vtables, and numbers of other things."""

import struct

from fuzz import bits, samples

NAMES = ("float.tflite", "int8.tflite", "loop.tflite")


class _Mutator:
    """Makes damaged `.tflite` files, by object or by offset."""

    def __init__(self, folder, work):
        self._path = work / "model.tflite"
        self._contents = [(folder / name).read_bytes() for name in NAMES]
        self._large = (samples.BASIC_PITCH / "reference.tflite").read_bytes()

    def mutate(self, rng):
        kind = rng.random()
        content = rng.choice(self._contents)
        if kind < 0.01:
            content = bits.damage(rng, self._large)
        elif kind < 0.5:
            content = _damage_objects(rng, content)
        elif kind < 0.9:
            content = _damage_offsets(rng, content)
        else:
            content = bits.damage(rng, content)
        self._path.write_bytes(content)
        return self._path

    def names(self, given):
        return [str(given)]


class TfliteReader(_Mutator):
    """`tflite_file.read`, `inspect`, and the facts that a `Runner` reads."""

    def __init__(self, folder, work):
        super().__init__(folder, work)
        from tfopt import inspection, tflite_file
        from tfopt.runner import _model_file

        self._inspect, self._file = inspection.inspect, tflite_file
        self._read_facts = _model_file.read_model_file

    def read(self, given):
        self._read_facts(str(given))
        self._file.float_operators(self._file.read(given))
        self._inspect(given)


class RunnerReader(_Mutator):
    """`Runner` in this process: what native code gets has been checked before.

    What is right to load may still not end, or fail on a batch: that is no damage of
    the file. So loops are only opened, and a batch may fail with any error of ours.
    """

    def __init__(self, folder, work):
        super().__init__(folder, work)
        self._contents = self._contents[:2]
        self._large = self._contents[0]  # to run the other takes seconds
        import numpy as np

        from tfopt import runner, types

        self._np, self._runner, self._types = np, runner.Runner, types

    def read(self, given):
        options = {"num_workers": 1, "num_threads": 1}
        with self._runner(str(given), **options) as runner:
            feeds = {
                info.name: self._np.zeros(
                    [n or 1 for n in info.shape or ()], info.dtype
                )
                for info in runner.signature.inputs
            }
            try:
                runner.run(feeds)
            except (self._types.TfoptError, ValueError) as error:
                raise self._types.TfoptError(f"{given}: {error}") from error


def _damage_objects(rng, content):
    """Changes fields of the unpacked model, and writes it again."""
    import flatbuffers
    import numpy as np
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(content)
    for _ in range(rng.choice((1, 1, 2, 4))):
        _damage_field(rng, model, np)
    builder = flatbuffers.Builder(len(content) + 1024)
    try:
        builder.Finish(model.Pack(builder), b"TFL3")
    except Exception:  # the change cannot be written: then bytes are changed
        return bits.damage(rng, content)
    return bytes(builder.Output())


def _damage_field(rng, model, np):
    owner, name = _some_field(rng, model)
    value = getattr(owner, name)
    if isinstance(value, (bool, int)):
        width = 8 if name.endswith("Type") or name == "type" else 32
        setattr(owner, name, rng.choice((*range(8), bits.integer(rng, width))))
    elif isinstance(value, float):
        setattr(owner, name, rng.choice((0.0, -1.0, 1e38, float("nan"))))
    elif isinstance(value, np.ndarray) and value.size:
        changed = value.copy()
        if value.dtype.kind == "f":
            number = rng.choice((0.0, -1.0, 1e30, float("nan"), float("inf")))
        else:
            size = value.dtype.itemsize * 8
            signed = value.dtype.kind == "i"
            number = rng.choice(
                (rng.randrange(20), bits.integer(rng, size, signed=signed))
            )
        changed[rng.randrange(value.size)] = number
        kind = rng.randrange(6)
        if kind == 0:
            changed = changed[: rng.randrange(value.size)]
        elif kind == 1:
            changed = np.repeat(changed, rng.choice((2, 3, 9)))
        setattr(owner, name, changed)
    elif isinstance(value, list) and value:
        items = list(value)
        at, other = rng.randrange(len(items)), rng.randrange(len(items))
        kind = rng.randrange(5)
        if kind == 0:
            del items[at]
        elif kind == 1:
            items.insert(at, items[other])
        elif kind == 2:
            items[at], items[other] = items[other], items[at]
        elif kind == 3:
            items *= rng.choice((2, 5))
        else:
            items = []
        setattr(owner, name, items)
    elif isinstance(value, bytes):
        setattr(owner, name, rng.choice((b"", b"\xff\xfe", b"a" * 1000, b"y")))
    else:
        setattr(owner, name, None)


def _some_field(rng, thing):
    """Walks down from the model at random; returns an object and a field of it."""
    while True:
        names = [name for name, value in vars(thing).items() if value is not None]
        name = rng.choice(names or list(vars(thing)) or ["none"])
        if name == "none":
            return thing, "none"
        value = getattr(thing, name)
        inner = value[rng.randrange(len(value))] if _is_list(value) else value
        if not hasattr(inner, "Pack") or rng.random() < 0.15 or not vars(inner):
            return thing, name
        thing = inner


def _is_list(value):
    return isinstance(value, list) and len(value) > 0


def _damage_offsets(rng, content):
    """Changes an offset, a length, a vtable or an index where it stands."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4))):
        places = _places(rng, data)
        kind, at = rng.choice(places)
        if kind == "H":
            value = rng.choice((0, 1, 4, 5, 6, 8, 100, 65535, bits.integer(rng, 16)))
            struct.pack_into("<H", data, at, value)
        else:
            (old,) = struct.unpack_from("<I", data, at)
            value = rng.choice(
                (
                    *(old + 1, old - 1, old + 4, old - 4, old * 2, 0, 1, len(data)),
                    *(len(data) - at, len(data) // 4, bits.integer(rng, 32)),
                    rng.choice(places)[1] - at,  # leads to something else
                )
            )
            struct.pack_into("<I", data, at, value % (1 << 32))
    return bytes(data)


def _places(rng, data):
    """Returns places of offsets (I) and of vtable entries (H), met on a random walk."""
    found = [("I", 0)]
    try:
        position = struct.unpack_from("<I", data, 0)[0]
        for _ in range(12):
            vtable = position - struct.unpack_from("<i", data, position)[0]
            size = struct.unpack_from("<H", data, vtable)[0]
            found += [("I", position), ("H", vtable), ("H", vtable + 2)]
            slots = []
            for at in range(vtable + 4, min(vtable + size, len(data) - 2), 2):
                offset = struct.unpack_from("<H", data, at)[0]
                if offset:
                    slots.append(position + offset)
                    found += [("H", at), ("I", position + offset)]
            place = rng.choice(slots)
            target = place + struct.unpack_from("<I", data, place)[0]
            found.append(("I", target))  # a length, if it is a vector
            length = struct.unpack_from("<I", data, target)[0]
            if 0 < length < 10_000:
                place = target + 4 + 4 * rng.randrange(length)
                found.append(("I", place))
                target = place + struct.unpack_from("<I", data, place)[0]
            position = target
    except (struct.error, IndexError):
        pass  # the walk met a number and not an offset
    return [(kind, at) for kind, at in found if 0 <= at <= len(data) - 4]
