"""Which transforms there are: this folder lists them.

Every module here without a leading underscore is a transform and defines a function of
its own name, marked with `@transform`. Adding a file is all it takes to add one.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import pathlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tfopt import _signatures
from tfopt.transforms import _options, _presets, _syntax
from tfopt.transforms._base import Findings, Promise

_PACKAGE = "tfopt.transforms"


@dataclasses.dataclass(frozen=True)
class Transform:
    """A registered transform.

    Attributes:
        name: Its name.
        function: Rewrites a graph in place and returns its findings.
        promise: What it keeps.
        options: Its keyword-only parameters by name.
        summary: What it does, in one line.
    """

    name: str
    function: Callable[..., Findings]
    promise: Promise
    options: Mapping[str, _signatures.Parameter]
    summary: str


@dataclasses.dataclass(frozen=True)
class Step:
    """A transform to be applied with these options."""

    transform: Transform
    options: Mapping[str, Any]

    def __str__(self) -> str:
        if not self.options:
            return self.transform.name
        listed = ", ".join(
            f"{name}={one}"
            for name, value in self.options.items()
            for one in (value if isinstance(value, tuple) else (value,))
        )
        return f"{self.transform.name}({listed})"


@functools.cache
def names() -> tuple[str, ...]:
    """Returns the names of all transforms, sorted."""
    folder = str(pathlib.Path(__file__).parent)
    return tuple(
        sorted(
            module.name
            for module in pkgutil.iter_modules([folder])
            if not module.name.startswith("_")
        )
    )


@functools.cache
def aliases() -> dict[str, str]:
    """Returns further names of transforms, each with the name it stands for."""
    return {alias: name for name in names() for alias in _load(name).promise.aliases}


def get(name: str) -> Transform:
    """Returns a transform by its name or one of its aliases.

    Raises:
        ValueError: There is none; the message lists what there is.
    """
    if name in names():
        return _load(name)
    if name in aliases():
        return _load(aliases()[name])
    known = [*names(), *aliases(), *_presets.PRESETS]
    raise ValueError(
        f"Unknown transform.{_options.close_to(name, known)} Expected one of "
        f"{', '.join(sorted(known))}. Received: {name!r}"
    )


def resolve(transforms: Any) -> list[Step]:
    """Returns the steps that a user's list of transforms means, presets expanded.

    Args:
        transforms: A text as `_syntax` describes it, or a sequence of such texts and of
            pairs `(name, options)`.

    Raises:
        ValueError: A text cannot be read, or a transform or option is unknown.
    """
    if isinstance(transforms, str):
        transforms = [transforms]
    if not isinstance(transforms, Sequence):
        raise ValueError(
            "Expected a text such as 'fold_constants quantize_weights', or a list of "
            f"names and of pairs (name, options). Received: transforms={transforms!r}"
        )
    return [step for item in transforms for step in _resolve_item(item)]


def _resolve_item(item: Any) -> list[Step]:
    if isinstance(item, str):
        return [
            step
            for written in _syntax.parse(item)
            for step in _make(written.name, written.options, _options.from_text)
        ]
    if (
        isinstance(item, Sequence)
        and len(item) == 2
        and isinstance(item[0], str)
        and isinstance(item[1], Mapping)
    ):
        return _make(item[0], item[1], _options.check)
    raise ValueError(
        "Expected the text of a transform, or a pair of its name and its options, for "
        "example ('quantize_weights', {'bits': 4}). "
        f"Received: transforms with {item!r}"
    )


def _make(
    name: str, options: Mapping[str, Any], read: Callable[..., Any]
) -> list[Step]:
    if name in _presets.PRESETS:
        if options:
            raise ValueError(
                "A preset takes no options. Expected its transforms one by one: "
                f"{' '.join(_presets.PRESETS[name].transforms)!r}. "
                f"Received: {name} with {dict(options)}"
            )
        return resolve(_presets.PRESETS[name].transforms)
    found = get(name)
    for option in options:
        if option not in found.options:
            valid = ", ".join(found.options) or "none"
            close = _options.close_to(option, found.options)
            raise ValueError(
                f"{found.name} has no such option.{close} Expected some of: "
                f"{valid}. Received: {option}={options[option]!r}"
            )
    values = {
        option: read(found.name, found.options[option], value)
        for option, value in options.items()
    }
    missing = [
        option
        for option, parameter in found.options.items()
        if parameter.default is _signatures.Required and option not in values
    ]
    if missing:
        raise ValueError(
            f"{found.name} lacks an option. Expected {', '.join(missing)}, for example "
            f"'{found.name}({missing[0]}=...)'. Received: {dict(options)}"
        )
    return [Step(found, values)]


@functools.cache
def _load(name: str) -> Transform:
    module = importlib.import_module(f"{_PACKAGE}.{name}")
    function = getattr(module, name, None)
    promise = getattr(function, "promise", None)
    if function is None or promise is None:
        raise TypeError(
            f"The module {module.__name__} must define a function {name!r} marked with "
            f"@transform. Received: {function!r}"
        )
    parameters = _signatures.parameters(f"{module.__name__}:{name}")
    summary = (inspect.getdoc(function) or "").split("\n\n")[0].replace("\n", " ")
    options = {parameter.name: parameter for parameter in parameters}
    return Transform(name, function, promise, options, summary)
