"""What transforms and presets there are, as data and as tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tfopt import _signatures
from tfopt.transforms import _options, _presets, _registry


def content() -> dict[str, Any]:
    """Returns all transforms and presets as plain data."""
    return {
        "transforms": {name: _entry(_registry.get(name)) for name in _registry.names()},
        "presets": {
            name: {"summary": preset.summary, "transforms": list(preset.transforms)}
            for name, preset in _presets.PRESETS.items()
        },
    }


def render(listed: Mapping[str, Any]) -> Any:
    """Returns what `content` returns as tables for rich's console."""
    from rich.console import Group
    from rich.text import Text

    rows = []
    for name, entry in listed["transforms"].items():
        aliases = f" (also {', '.join(entry['aliases'])})" if entry["aliases"] else ""
        rows.append((name, f"{entry['summary']}{aliases} Outputs: {entry['outputs']}."))
        for option, found in entry["options"].items():
            default = "" if found["is_required"] else f" Default {found['default']}."
            text = f"{found['takes']}. {found['help']}{default}"
            rows.append((f"  {option}", text))
    presets = [
        (name, f"{entry['summary']}\n{' '.join(entry['transforms'])}")
        for name, entry in listed["presets"].items()
    ]
    return Group(
        table(("transform, option", "what it does"), rows),
        Text(),
        table(("preset", "what it does"), presets),
    )


def table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> Any:
    """Returns a table for rich's console."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for header in headers:
        shown.add_column(Text(header), overflow="fold")
    for row in rows:
        shown.add_row(*(Text(cell) for cell in row))
    return shown


def _entry(transform: _registry.Transform) -> dict[str, Any]:
    promise = transform.promise
    outputs = {
        "equal": "equal",
        "close": f"within {promise.tolerance:g} of the largest",
        "reported": "the difference is measured",
    }[promise.outputs]
    return {
        "summary": transform.summary,
        "aliases": list(promise.aliases),
        "outputs": outputs,
        "options": {
            name: {
                "takes": _options.in_words(parameter.annotation),
                "help": parameter.help,
                "is_required": parameter.default is _signatures.Required,
                "default": None
                if parameter.default is _signatures.Required
                else parameter.default,
            }
            for name, parameter in transform.options.items()
        },
    }
