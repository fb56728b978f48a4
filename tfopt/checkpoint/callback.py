"""LightCheckpoint: slim checkpoints while a model trains."""

from __future__ import annotations

import math
import os
import pathlib
import re
from typing import Any, Literal

from tfopt import _json_files, _keras, artifacts
from tfopt import checkpoint as checkpoints
from tfopt.checkpoint import writing
from tfopt.checkpoint.writing import StoredDtype
from tfopt.types import TfoptError

_Callback: Any = _keras.callback_class()

STATE_FILE = "light_checkpoint.json"
_VERSION = 1
_ENTRY = dict[str, int | float | None]
_STATE: dict[str, Any] = {
    "version": int,
    "next_number": int,
    "monitor": list[str] | None,
    "checkpoints": list[_ENTRY],
    "best": _ENTRY | None,
    "removing": list[int],
}
# Of metrics by name: which way is better. Others need `mode`.
_UP = re.compile(r"acc|auc|precision|recall|f1|iou|dice|r2|top_?k|map\b")
_DOWN = re.compile(r"loss|error|mse|mae|rmse|perplexity|divergence")


class LightCheckpoint(_Callback):
    """Saves slim checkpoints during `fit`: every N epochs or steps, the best, the last.

    Checkpoints are `directory/ckpt-1`, `ckpt-2`, ...; numbering goes on where a former
    run stopped. Each is complete or absent whenever the process is killed. What there
    is stands in `directory/light_checkpoint.json`, and in TensorFlow's `checkpoint`,
    so that `tf.train.latest_checkpoint(directory)` works. Optimizer state is not
    saved: use it for weights to keep, not to resume training exactly.

    Works with models of Keras 3 and tf_keras.

    Args:
        directory: Folder of the checkpoints; made if needed.
        every_epochs: Save after each so many epochs. By default 1, if `every_steps`
            isn't given.
        every_steps: Save after each so many training steps instead.
        monitor: Name in the logs by which checkpoints are compared, for example
            `"val_loss"`. `None`: there is no best one.
        mode: Whether `"min"` or `"max"` of it is best; `"auto"` goes by the name.
        save_best_only: Save only what is better than all before. Needs `monitor`.
        max_to_keep: How many recent checkpoints stay; the best one stays in addition.
            `None`: all.
        keep: See `tfopt.slim_checkpoint`.
        dtype: See `tfopt.slim_checkpoint`.

    Raises:
        ValueError: An option is out of range, or `mode` cannot be told from the name.
        TfoptError: The state file is damaged.

    Example:
        >>> light = LightCheckpoint("light", monitor="loss", max_to_keep=2)
        >>> _ = model.fit(images, labels, epochs=3, verbose=0, callbacks=[light])
        >>> light.latest
        'light/ckpt-3'
    """

    # tf_keras asks its callbacks for these; Keras 3's base class lacks them.
    _supports_tf_logs = True
    _chief_worker_only = True

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        every_epochs: int | None = None,
        every_steps: int | None = None,
        monitor: str | None = None,
        mode: Literal["auto", "min", "max"] = "auto",
        save_best_only: bool = False,
        max_to_keep: int | None = 5,
        keep: checkpoints.Keep = "inference",
        dtype: StoredDtype = "float32",
    ):
        super().__init__()
        if every_epochs is not None and every_steps is not None:
            raise ValueError(
                "Expected either `every_epochs` or `every_steps`. Received: "
                f"every_epochs={every_epochs}, every_steps={every_steps}"
            )
        for name, value in (
            ("every_epochs", every_epochs),
            ("every_steps", every_steps),
            ("max_to_keep", max_to_keep),
        ):
            if value is not None and value < 1:
                raise ValueError(
                    f"`{name}` must be at least 1, or None. Received: {name}={value}"
                )
        if save_best_only and monitor is None:
            raise ValueError(
                "What is best is unknown. Expected `monitor` with save_best_only=True. "
                "Received: monitor=None"
            )
        checkpoints.check_options(keep, dtype)
        self.directory = os.fspath(directory)
        self._place = os.path.abspath(directory)  # also after a change of folder
        by_default = 1 if every_steps is None else None
        self.every_epochs = by_default if every_epochs is None else every_epochs
        self.every_steps = every_steps
        self.monitor = monitor
        self.mode = mode if monitor is None else _mode(monitor, mode)
        self.save_best_only = save_best_only
        self.max_to_keep = max_to_keep
        self.keep = keep
        self.dtype: StoredDtype = dtype
        self._state = read_state(self._place)
        self._step = self._saved_step = self._batch = self._epoch = 0
        self._last_logs: Any = None

    @property
    def latest(self) -> str | None:
        """Prefix of the newest checkpoint, `None` if there is none."""
        saved = read_state(self._place)["checkpoints"]
        return self._prefix(saved[-1]["number"]) if saved else None

    @property
    def best(self) -> str | None:
        """Prefix of the best checkpoint, `None` if none was compared."""
        best = read_state(self._place)["best"]
        return None if best is None else self._prefix(best["number"])

    def on_train_begin(self, logs: Any = None) -> None:
        """Reads the state that a former run left."""
        self._state = read_state(self._place)
        known = self._state["monitor"]
        if self.monitor is not None and known not in (None, [self.monitor, self.mode]):
            raise ValueError(
                "The directory holds checkpoints compared by something else. Expected "
                f"monitor={known[0]!r}, mode={known[1]!r}, or another directory. "
                f"Received: monitor={self.monitor!r}, mode={self.mode!r}"
            )
        for number in self._state["removing"]:
            writing.remove(self._placed(number))
        saved = self._state["checkpoints"]
        self._step = self._saved_step = saved[-1]["step"] if saved else 0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Notes where the epoch starts."""
        self._batch, self._epoch = -1, epoch

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Counts steps, and saves after each `every_steps`."""
        # One call may stand for several steps (steps_per_execution).
        before = self._step
        self._step += batch - self._batch
        self._batch = batch
        if self.every_steps and self._step // self.every_steps > (
            before // self.every_steps
        ):
            self._consider(logs)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Saves after each `every_epochs`."""
        self._last_logs = logs
        if self.every_epochs and (epoch + 1) % self.every_epochs == 0:
            self._consider(logs)

    def on_train_end(self, logs: Any = None) -> None:
        """Saves the final weights, if they are not saved yet."""
        if not self.save_best_only and self._step > self._saved_step:
            self._consider(self._last_logs)

    def _consider(self, logs: Any) -> None:
        artifacts.make_folder(self._place)
        # Another training may save there, too: numbers come from the file.
        with artifacts.locked(self._place):
            self._state = read_state(self._place)
            self._save_if_wanted(logs)

    def _save_if_wanted(self, logs: Any) -> None:
        value = None if self.monitor is None else self._value(logs or {})
        best = self._state["best"]
        # NaN is never better; the first number is always.
        better = (
            value is not None
            and not math.isnan(value)
            and (
                best is None
                or best["value"] is None  # it was infinite
                or self._is_better(value, best["value"])
            )
        )
        if self.save_best_only and not better:
            return
        number = self._state["next_number"]
        checkpoints._slim(
            self.model,
            self._placed(number),
            keep=self.keep,
            dtype=self.dtype,
            model=None,
            measure=False,
        )
        entry = {
            "number": number,
            "epoch": self._epoch + 1,
            "step": self._step,
            "value": None if value is None or not math.isfinite(value) else value,
        }
        self._saved_step = self._step
        self._record(entry, is_best=better)

    def _record(self, entry: dict[str, Any], *, is_best: bool) -> None:
        state = self._state
        state["next_number"] = entry["number"] + 1
        state["monitor"] = state["monitor"] or (
            None if self.monitor is None else [self.monitor, self.mode]
        )
        previous = state["best"]
        saved = [*state["checkpoints"], entry]
        kept = saved if self.max_to_keep is None else saved[-self.max_to_keep :]
        state["checkpoints"] = kept
        state["best"] = entry if is_best else previous
        numbers = {item["number"] for item in [*saved, previous or entry]}
        numbers -= {item["number"] for item in [*kept, state["best"] or entry]}
        # Named before they are removed, so that the next run removes what is left.
        state["removing"] = sorted(numbers)
        artifacts.write_json(os.path.join(self._place, STATE_FILE), state)
        latest = f'model_checkpoint_path: "{_name(entry["number"])}"\n'
        listed = "".join(
            f'all_model_checkpoint_paths: "{_name(item["number"])}"\n' for item in kept
        )
        artifacts.write_bytes(
            os.path.join(self._place, "checkpoint"), (latest + listed).encode()
        )
        for number in state["removing"]:
            writing.remove(self._placed(number))

    def _value(self, logs: Any) -> float:
        if self.monitor not in logs:
            raise ValueError(
                "The monitored value isn't in the logs. Expected one of "
                f"{sorted(logs)} (those with val_ need validation data, and come at "
                f"the end of epochs only). Received: monitor={self.monitor!r}"
            )
        return float(logs[self.monitor])

    def _is_better(self, value: float, best: float) -> bool:
        return value < best if self.mode == "min" else value > best

    def _placed(self, number: int) -> str:
        return os.path.join(self._place, _name(number))

    def _prefix(self, number: int) -> str:
        return os.path.join(self.directory, _name(number))


def read_state(directory: str | os.PathLike[str]) -> dict[str, Any]:
    """Returns the state of a directory of light checkpoints; of a new one, empty.

    Without a state file, numbering starts after the checkpoints that are there.

    Raises:
        TfoptError: The state file is damaged.
    """
    path = pathlib.Path(directory) / STATE_FILE
    if not path.exists():
        found = pathlib.Path(directory).glob("ckpt-*.index")
        numbers = [re.fullmatch(r"ckpt-(\d+)\.index", entry.name) for entry in found]
        return {
            "version": _VERSION,
            "next_number": 1 + max((int(m[1]) for m in numbers if m), default=0),
            "monitor": None,
            "checkpoints": [],
            "best": None,
            "removing": [],
        }
    try:
        state = _json_files.make(dict[str, Any], _json_files.read(path))
        if state.get("version") != _VERSION:
            raise _json_files.Damaged(f"version {state.get('version')!r:.80}")
        state = {
            name: _json_files.make(kind, state.get(name), where=f".{name}")
            for name, kind in _STATE.items()
        }
        saved = [*state["checkpoints"], *([state["best"]] if state["best"] else [])]
        if any(not {"number", "step", "value"} <= set(entry) for entry in saved):
            raise _json_files.Damaged("a checkpoint without number, step or value")
        return state
    except (FileNotFoundError, _json_files.Damaged) as error:
        raise TfoptError(
            "Cannot read the state of the light checkpoints. Expected a file written "
            "by LightCheckpoint; remove it to start anew (numbering goes on). "
            f"Received: {path} ({error})"
        ) from error


def _name(number: int) -> str:
    return f"ckpt-{number}"


def _mode(monitor: str, mode: str) -> Literal["min", "max"]:
    if mode not in ("auto", "min", "max"):
        raise ValueError(f"Expected mode auto, min or max. Received: mode={mode!r}")
    if mode == "min" or (mode == "auto" and _DOWN.search(monitor)):
        return "min"
    if mode == "max" or _UP.search(monitor):
        return "max"
    raise ValueError(
        "Whether higher or lower is better is unknown. Expected mode='min' or 'max' "
        f"with this name. Received: monitor={monitor!r}, mode='auto'"
    )
