"""JSON is read as what it was written from, or the place of the difference is named."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

import pytest

from tfopt import _json_files, artifacts
from tfopt._json_files import Damaged


@dataclasses.dataclass(frozen=True)
class Inner:
    size: int
    kind: Literal["a", "b"] = "a"


@dataclasses.dataclass(frozen=True)
class Outer:
    name: str
    share: float
    inner: Inner | None
    pairs: tuple[tuple[int, float], ...] = ()
    more: Mapping[str, list[Inner]] = dataclasses.field(default_factory=dict)
    rest: Any = None


OUTER = Outer("x", 0.5, Inner(3), ((1, 2.0),), {"k": [Inner(4, "b")]}, [None])


def test_what_was_written_is_read(tmp_path):
    artifacts.write_json(tmp_path / "x.json", OUTER)
    assert _json_files.make(Outer, _json_files.read(tmp_path / "x.json")) == OUTER


def test_numbers_that_json_lacks_come_back(tmp_path):
    artifacts.write_json(tmp_path / "x.json", [math.inf, -math.inf, math.nan])
    found = _json_files.make(list[float], _json_files.read(tmp_path / "x.json"))
    assert found[:2] == [math.inf, -math.inf]
    assert math.isnan(found[2])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": 3}, "expected str at .name, found 3"),
        ({"share": True}, "expected float at .share, found True"),
        ({"share": 10**400}, "a number of 401 digits at .share"),
        ({"inner": {"size": "3"}}, "expected int at .inner.size, found '3'"),
        ({"inner": {"size": 3, "kind": "c"}}, "at .inner.kind, found 'c'"),
        ({"inner": {}}, "missing 1 required .* at .inner"),
        ({"inner": {"size": 1, "x": 2}}, "nothing is called 'x' at .inner"),
        ({"pairs": [[1]]}, r"expected 2 items at .pairs\[0\], found 1"),
        ({"pairs": {}}, "at .pairs, found a dict of 0 items"),
        ({"more": {"k": [None]}}, r"expected Inner at .more.k\[0\], found None"),
    ],
)
def test_differences_are_named_by_their_place(change, message):
    content = {"name": "x", "share": 1, "inner": None}
    assert _json_files.make(Outer, content) == Outer("x", 1.0, None)
    with pytest.raises(Damaged, match=message):
        _json_files.make(Outer, content | change)


@pytest.mark.parametrize(
    "text",
    [
        *('{"a": 1, "a": 2}', "[NaN]", "[" * 100_000, "{", "", "\ufeff{}", "1" * 9000),
    ],
)
def test_what_is_no_json_is_damaged(tmp_path, text):
    (tmp_path / "x.json").write_text(text, encoding="utf-8")
    with pytest.raises(Damaged, match="no JSON"):
        _json_files.read(tmp_path / "x.json")


def test_other_bytes_and_large_files_are_damaged(tmp_path):
    (tmp_path / "x.json").write_bytes(b'"\xff"')
    with pytest.raises(Damaged, match="utf-8"):
        _json_files.read(tmp_path / "x.json")
    with open(tmp_path / "y.json", "wb") as file:
        file.truncate((1 << 26) + 1)
    with pytest.raises(Damaged, match="more than 67,108,864 bytes"):
        _json_files.read(tmp_path / "y.json")
