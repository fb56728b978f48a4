"""Sparsity per weight tensor as TensorBoard scalars."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf


class Log:
    """Writes scalars `sparsity/<weight>` and `sparsity/total`.

    Args:
        log_dir: Folder for event files.
        model: The model; of several workers, only the first one writes.
    """

    def __init__(self, log_dir: str, model: Any):
        resolver = model.distribute_strategy.cluster_resolver
        self._writer = (
            tf.summary.create_file_writer(log_dir)
            if resolver is None or not resolver.task_id
            else tf.summary.create_noop_writer()
        )

    def write(self, step: int, values: Mapping[str, np.ndarray]) -> None:
        """Writes the fractions of zeros.

        Args:
            step: The optimizer step.
            values: Weights by name.
        """
        zeros = {n: v.size - np.count_nonzero(v) for n, v in values.items()}
        total = sum(value.size for value in values.values())
        with self._writer.as_default():
            for name, value in values.items():
                _scalar(f"sparsity/{name}", zeros[name] / value.size, step)
            _scalar("sparsity/total", sum(zeros.values()) / total, step)
        self._writer.flush()

    def close(self) -> None:
        """Closes the event file."""
        self._writer.close()


def _scalar(tag: str, value: float, step: int) -> None:
    # `tf.summary.scalar` does just this, but not without TensorBoard installed.
    plugin = tf.compat.v1.SummaryMetadata.PluginData(plugin_name="scalars")
    metadata = tf.compat.v1.SummaryMetadata(plugin_data=plugin)
    tf.summary.write(tag, tf.constant(value, tf.float32), step=step, metadata=metadata)
