"""Lists of transforms: their text, options, names and presets."""

import numpy as np
import pytest

from tfopt.transforms import _options, _presets, _registry, _syntax

# The text form.


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        (" \n\t", []),
        ("a b", [("a", {}), ("b", {})]),
        ("a(x=1)b( y = 2 )", [("a", {"x": ("1",)}), ("b", {"y": ("2",)})]),
        ("a()", [("a", {})]),
        ("a(x=1, y=k/l:0)", [("a", {"x": ("1",), "y": ("k/l:0",)})]),
        ("a(x=1, y=3, x=2)", [("a", {"x": ("1", "2"), "y": ("3",)})]),
        ('a(shape="1,299, 3")', [("a", {"shape": ("1,299, 3",)})]),
        ("a(x='(', y=\"it's\")", [("a", {"x": ("(",), "y": ("it's",)})]),
        (r'a(x="a \"b\" \\")', [("a", {"x": (r'a "b" \\'[:-1],)})]),
        ("a \\\n  b", [("a", {}), ("b", {})]),
        ("a(x=-1e-3)", [("a", {"x": ("-1e-3",)})]),
    ],
)
def test_texts_are_read(text, expected):
    assert _syntax.parse(text) == expected


@pytest.mark.parametrize(
    ("text", "position", "expected", "found"),
    [
        ("a(", 3, "the name of an option", "the end"),
        ("a(x)", 4, "'=' and the option's value", "')'"),
        ("a(x=)", 5, "a value", "')'"),
        ("a(x=1", 6, "',' or ')'", "the end"),
        ("a(x=1 y=2)", 7, "',' or ')'", "'y'"),
        ("a(x=1,)", 7, "the name of an option", "')'"),
        ("a, b", 2, "a space before the next transform", "','"),
        ("a) b", 2, "a space before", "')'"),
        ('a(x="b)', 5, "a quoted value", "'\"'"),
        ("1a", 1, "the name of a transform", "'1'"),
        ("remove_nodes(op=Identity) (b)", 27, "the name of a transform", "'('"),
    ],
)
def test_faults_in_texts_are_located(text, position, expected, found):
    with pytest.raises(ValueError, match="Cannot read the list") as caught:
        _syntax.parse(text)
    message = str(caught.value)
    assert f"Expected {expected}" in message
    assert f"at character {position}," in message
    assert f"but found {found}." in message


@pytest.mark.parametrize(
    ("option", "annotation", "texts", "value"),
    [
        ("size", int, ["3"], 3),
        ("rate", float | None, ["0.5"], 0.5),
        ("rate", float | None, ["none"], None),
        ("flag", bool, ["true"], True),
        ("flag", bool, ["False"], False),
        ("name", str, ["12"], "12"),
    ],
)
def test_texts_become_values(option, annotation, texts, value):
    from tfopt._signatures import Parameter

    parameter = Parameter(option, annotation, None, "")
    assert _options.from_text("example", parameter, texts) == value
    assert _options.check("example", parameter, value) == value


def parameter(name, option):
    return _registry.get(name).options[option]


def test_choices_and_lists():
    bits = parameter("quantize_weights", "bits")
    assert _options.from_text("q", bits, ["4"]) == 4
    assert _options.from_text("q", bits, ["float16"]) == "float16"
    with pytest.raises(ValueError, match="Expected 8, 4, float16, bfloat16"):
        _options.from_text("q", bits, ["5"])
    with pytest.raises(ValueError, match="takes the option once"):
        _options.from_text("q", bits, ["8", "4"])
    with pytest.raises(ValueError, match=r"bits=8\.0"):
        _options.check("q", bits, 8.0)
    assert _options.check("q", bits, np.int64(8)) == 8
    op = parameter("remove_nodes", "op")
    assert _options.from_text("r", op, ["A", "B"]) == ("A", "B")
    assert _options.check("r", op, ["A"]) == ("A",)
    with pytest.raises(ValueError, match="Expected a text, may be repeated"):
        _options.check("r", op, [1])
    size = parameter("quantize_weights", "minimum_size")
    with pytest.raises(ValueError, match="Expected an integer"):
        _options.check("q", size, True)


# The registry.


def test_names_aliases_and_close_matches():
    assert "inline_functions" in _registry.names()
    assert not any(name.startswith("_") for name in _registry.names())
    alias = _registry.get("fold_old_batch_norms")
    assert alias.name == "fold_batch_norms"
    with pytest.raises(ValueError, match="Did you mean fold_batch_norms") as caught:
        _registry.get("fold_batchnorms")
    assert "deploy" in str(caught.value)
    with pytest.raises(ValueError, match=r"Did you mean minimum_size\? Expected some"):
        _registry.resolve("quantize_weights(min_size=3)")
    with pytest.raises(ValueError, match="remove_nodes lacks an option"):
        _registry.resolve("remove_nodes")


def test_lists_of_transforms():
    steps = _registry.resolve(
        [
            "remove_device sort_by_execution_order",
            ("quantize_weights", {"bits": 4}),
            "remove_nodes(op=Identity, op=Snapshot)",
        ]
    )
    assert [str(step) for step in steps] == [
        "remove_device",
        "sort_by_execution_order",
        "quantize_weights(bits=4)",
        "remove_nodes(op=Identity, op=Snapshot)",
    ]
    for wrong in (3, [3], [("remove_device",)], [("remove_device", 3)], None):
        with pytest.raises(ValueError, match="transforms"):
            _registry.resolve(wrong)


def test_presets_are_expanded():
    deploy = [step.transform.name for step in _registry.resolve("deploy")]
    small = [step.transform.name for step in _registry.resolve("small")]
    assert small[: len(deploy)] == deploy
    assert "quantize_weights" in small
    promises = [step.transform.promise for step in _registry.resolve("deploy")]
    assert {promise.outputs for promise in promises} == {"equal", "close"}
    assert max(promise.tolerance for promise in promises) <= 1e-4
    with pytest.raises(ValueError, match="preset takes no options"):
        _registry.resolve("small(bits=4)")
    assert all(preset.summary for preset in _presets.PRESETS.values())
