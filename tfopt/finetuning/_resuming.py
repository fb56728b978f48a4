"""State of a training on disk, so that a killed one goes on where it was."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import pathlib
from collections.abc import Mapping
from typing import Any

from tfopt import _json_files, artifacts
from tfopt.methods._base import Method
from tfopt.types import TfoptError

_LOGGER = logging.getLogger(__name__)
_WEIGHTS = "training.weights.h5"
_STATE = "training.json"


@dataclasses.dataclass(frozen=True)
class _State:
    """What stands in the file: complete epochs, and the digest of the settings."""

    epochs: int
    settings: str


class Backup:
    """A folder with the state after the last complete epoch.

    Weights and optimizer state are written together and replace the older ones only
    when complete.

    Args:
        folder: Where it is; made when the first epoch ends.
        settings: What the training was asked to do; another training's state is not
            taken over.

    Attributes:
        folder: Where it is.
        epochs: The complete epochs that it holds.
    """

    def __init__(self, folder: pathlib.Path, settings: Mapping[str, Any]):
        self.folder = folder
        self.epochs = 0
        text = artifacts.to_json(settings)
        self._digest = hashlib.sha256(text.encode()).hexdigest()

    def restore(self, model: Any) -> int:
        """Loads the state into a compiled model; returns the epochs that are done.

        Raises:
            TfoptError: The state is damaged.
        """
        state = self._read()
        if state is None:
            return 0
        if state.settings != self._digest:
            _LOGGER.warning(
                "%s holds the state of a training with other settings; starting anew.",
                self.folder,
            )
            return 0
        try:
            model.optimizer.build(model.trainable_variables)
            model.load_weights(self.folder / _WEIGHTS)
        except (OSError, ValueError, LookupError, RuntimeError, TypeError) as error:
            raise self._damaged(error) from error
        self.epochs = state.epochs
        return self.epochs

    def _read(self) -> _State | None:
        try:
            state = _json_files.make(_State, _json_files.read(self.folder / _STATE))
            if state.epochs < 0:
                raise _json_files.Damaged(f"{state.epochs} epochs")
        except FileNotFoundError:
            return None
        except _json_files.Damaged as error:
            raise self._damaged(error) from error
        return state

    def _damaged(self, error: Exception) -> TfoptError:
        return TfoptError(
            "Cannot continue the interrupted training. Expected its state; delete "
            f"the folder to start anew. Received: {self.folder} ({error})"
        )

    def save(self, model: Any, epochs: int) -> None:
        """Writes the state after a number of epochs."""
        with artifacts.atomic_path(self.folder) as temporary:
            temporary.mkdir()
            model.save_weights(temporary / _WEIGHTS)
            state = {"epochs": epochs, "settings": self._digest}
            artifacts.write_json(temporary / _STATE, state)
        self.epochs = epochs

    def remove(self) -> None:
        """Deletes the state, of a training that is complete."""
        artifacts.remove(self.folder)

    def callback(self) -> Any:
        """Returns the Keras callback that saves after every epoch."""
        backup = self

        class Saver(Method):
            def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
                del logs
                backup.save(self.model, epoch + 1)

            def _implements_train_batch_hooks(self) -> bool:
                return False

        return Saver()
