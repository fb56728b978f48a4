"""The checksum of TensorFlow's table and checkpoint files: masked CRC-32C."""

from __future__ import annotations

import google_crc32c

_DELTA = 0xA282EAD8
_WORD = 0xFFFFFFFF


def extend(crc: int, data: bytes) -> int:
    """Returns the CRC-32C of what `crc` covers followed by `data`; start with 0."""
    return google_crc32c.extend(crc, data)


def mask(crc: int) -> int:
    """Returns the form that is stored in files.

    A CRC over bytes that contain CRCs loses strength, so it is rotated and shifted.

    Reference:
        LevelDB `util/crc32c.h`, TensorFlow `tsl/lib/hash/crc32c.h`.

    Example:
        >>> hex(mask(extend(0, b"123456789")))
        '0xc78ab0e5'
    """
    return (((crc >> 15) | (crc << 17)) + _DELTA) & _WORD


def unmask(masked: int) -> int:
    """Returns the CRC that `mask` was given."""
    rotated = (masked - _DELTA) & _WORD
    return ((rotated >> 17) | (rotated << 15)) & _WORD
