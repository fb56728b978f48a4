"""Functions around a model's own training step, put on and taken off again.

They sit on the one model object, past its class: the model stays what it was, nothing
of them is saved with it, and evaluation and prediction are not concerned.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

from tfopt import _keras

_MISSING = object()


def override(thing: Any, name: str, replacement: Any) -> Callable[[], None]:
    """Gives one object a method of its own; returns a function that undoes it."""
    before = thing.__dict__.get(name, _MISSING)
    # Past Keras's own bookkeeping of attributes.
    object.__setattr__(thing, name, replacement)

    def undo() -> None:
        if thing.__dict__.get(name) is not replacement:
            return
        if before is _MISSING:
            object.__delattr__(thing, name)
        else:
            object.__setattr__(thing, name, before)

    return undo


def overrides(model: Any, name: str) -> bool:
    """Whether a model has a method of the user's instead of Keras's own."""
    method = getattr(model, name)
    module = getattr(getattr(method, "__func__", method), "__module__", None) or ""
    return module.split(".", 1)[0] != _keras.module_of(model).__name__


class Taps:
    """Shows what layers return, wherever in a model they are called.

    Args:
        layers: The layers by name.
    """

    def __init__(self, layers: dict[str, Any]):
        self._thread = threading.local()
        self._undo = [
            override(layer, "call", self._tapped(name, layer.call))
            for name, layer in layers.items()
        ]

    def _tapped(self, name: str, own: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            outputs = own(*args, **kwargs)
            found = getattr(self._thread, "found", None)
            if found is not None:
                found.setdefault(name, []).append(outputs)
            return outputs

        return call

    @contextlib.contextmanager
    def listening(self) -> Iterator[dict[str, list[Any]]]:
        """Yields the outputs of each call in this thread by layer, as they come."""
        before = getattr(self._thread, "found", None)
        found: dict[str, list[Any]] = {}
        self._thread.found = found
        try:
            yield found
        finally:
            self._thread.found = before

    def remove(self) -> None:
        """Gives the layers their own methods back."""
        for undo in self._undo:
            undo()


def listening(taps: Taps | None) -> Any:
    """Returns `taps.listening()`; without taps, a context in which nothing is found."""
    return contextlib.nullcontext({}) if taps is None else taps.listening()


def find_layer(model: Any, path: str) -> tuple[str, Any] | None:
    """Returns the layer of a name or path, and where it was found; None: nowhere.

    A method that rewrites models leaves a layer's name, or, where nested models become
    one, what is after the last `/`, or `outer_inner`.

    Args:
        model: Any built model.
        path: `"layer"`, or `"outer/inner"` for a layer inside of another.
    """
    layers = dict(named_layers(model))
    if path in layers:
        return path, layers[path]
    last = path.rsplit("/", 1)[-1]
    for fits in (
        lambda name: name == path.replace("/", "_"),
        lambda name: name.rsplit("/", 1)[-1] == last,
    ):
        found = [name for name in layers if fits(name)]
        if len(found) == 1:
            return found[0], layers[found[0]]
    return None


def named_layers(layer: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields all layers inside a layer or model, the outer ones first, by path."""
    for inner in layer._flatten_layers(include_self=False, recursive=False):
        yield prefix + inner.name, inner
        yield from named_layers(inner, f"{prefix}{inner.name}/")
