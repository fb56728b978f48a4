"""Damage that fits any format: bytes, integers and texts."""

import struct

INTEGERS = (
    *(0, 1, 2, 3, 7, 8, 16, 31, 63, 64, 127, 128, 255, 256, 1000, 65535, 65536),
    *((1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, (1 << 63) - 1, (1 << 64) - 1),
    *(-1, -2, -128, -(1 << 31), -(1 << 63)),
)
TEXTS = (
    *("", "a", " ", ".", "..", "../../etc/passwd", "/", "x" * 300, "^a", "a:0", "a:b"),
    *(
        "a:-1",
        ":",
        "a:99999999999999999999",
        "\x00",
        "\u00e4\u6f22\U0001f600",
        "*",
        "[",
    ),
    *("\n", "%s%n", "{}", "None", "nan", "1e999", "-1", "true", "\\", "'\""),
)


def integer(rng, bits, *, signed=False):
    """Returns an integer that fits, often one at the border of something."""
    low, high = (-(1 << (bits - 1)), 1 << (bits - 1)) if signed else (0, 1 << bits)
    value = rng.choice(INTEGERS)
    if rng.random() < 0.3:
        value = rng.getrandbits(bits) if rng.random() < 0.5 else rng.randrange(100)
    return (value - low) % (high - low) + low


def damage(rng, data):
    """Returns bytes with some of them changed, gone, doubled or moved."""
    content = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        _damage_once(rng, content)
    return bytes(content)


def _damage_once(rng, content):
    size = len(content)
    if not size:
        content += rng.randbytes(rng.randrange(64))
        return
    at = rng.randrange(size)
    length = min(rng.choice((1, 2, 4, 8, 16, 64, 1024)), size - at)
    kind = rng.randrange(9)
    if kind == 0:
        content[at] ^= 1 << rng.randrange(8)
    elif kind == 1:
        content[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF))
    elif kind == 2:
        del content[at : at + length]
    elif kind == 3:
        content[at:at] = content[at : at + length] * rng.choice((1, 2, 50))
    elif kind == 4:
        content[at : at + length] = rng.randbytes(length)
    elif kind == 5:
        del content[at:]
    elif kind == 6:
        other = rng.randrange(size)
        content[at : at + length] = content[other : other + length]
    else:
        code, bits = rng.choice((("<H", 16), ("<I", 32), ("<Q", 64)))
        if at + bits // 8 <= size:
            struct.pack_into(code, content, at, integer(rng, bits))


def varint(value):
    """Returns the base-128 encoding, for integers of any size."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
