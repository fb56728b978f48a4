"""What every training-time method is: a Keras callback with two extra hooks."""

from __future__ import annotations

import inspect
from typing import Any

from tfopt import _keras

_Callback: Any = _keras.callback_class()


class Method(_Callback):
    """A training-time optimization as a Keras callback.

    `prepare(model)` returns the model to train, the callback hooks act during
    `fit`, and `finalize(model)` returns the model to deploy. A method whose
    `prepare` has nothing to rewrite works with `fit(callbacks=[method])` alone.
    Methods combine by list order: `tfopt.prepare` goes left to right,
    `tfopt.finalize` right to left.

    Works with Keras 3 and tf_keras models alike, whichever of the two classes is the
    base. Subclasses take keyword-only arguments and store each one under its own
    name, so that `get_config` and `from_config` need no override.
    """

    # tf_keras asks its callbacks for these; Keras 3's base class lacks them.
    _supports_tf_logs = True
    _chief_worker_only = None

    def prepare(self, model: Any) -> Any:
        """Returns the model to train; by default the one given."""
        return model

    def finalize(self, model: Any) -> Any:
        """Returns the model to deploy; by default the one given."""
        return model

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments as a dictionary."""
        parameters = inspect.signature(type(self).__init__).parameters
        return {name: getattr(self, name) for name in parameters if name != "self"}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Method:
        """Makes a method from `get_config`'s dictionary."""
        return cls(**config)

    def _implements_train_batch_hooks(self) -> bool:
        return True

    def _implements_test_batch_hooks(self) -> bool:
        return False

    def _implements_predict_batch_hooks(self) -> bool:
        return False
