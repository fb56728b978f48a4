"""The options of tf.functions in this process, for the time of a block."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import tensorflow as tf

_TOGGLES = {"on": True, "off": False}


@contextlib.contextmanager
def applied(options: Mapping[str, Any]) -> Iterator[None]:
    """Sets the optimizer's options, all others to TensorFlow's defaults, and back.

    Args:
        options: As `GrapplerConfig.get_config` returns them.

    Raises:
        ValueError: `tf.config` cannot express some; nothing is changed then.
    """
    before = tf.config.optimizer.get_experimental_options()
    wanted = {
        name: _TOGGLES.get(value, value) if isinstance(value, str) else value
        for name, value in options.items()
    }
    try:
        # TensorFlow says nothing of options that it doesn't use here; what it returns
        # afterwards tells.
        now = _set({**_reset(before), **wanted})
        lost = [
            f"{name}={value!r}"
            for name, value in options.items()
            if name not in now or now[name] != wanted[name]
        ]
        if lost:
            raise ValueError(
                "tf.config has no way to set some options, or only on and off. "
                "Expected options that tf.config.optimizer takes; use optimize_graph, "
                "or a session with to_session_config(), for the others. "
                f"Received: {', '.join(lost)}"
            )
        yield
    finally:
        _set({**dict.fromkeys(wanted), **_reset(before), **before})


def _set(options: Mapping[str, Any]) -> dict[str, Any]:
    """Sets options, None for TensorFlow's default; returns all that are set."""
    tf.config.optimizer.set_experimental_options(dict(options))
    return tf.config.optimizer.get_experimental_options()


def _reset(before: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options that take back whatever is set now."""
    now = tf.config.optimizer.get_experimental_options()
    return dict.fromkeys({**before, **now})
