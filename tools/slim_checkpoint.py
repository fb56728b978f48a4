"""Writes a checkpoint with a model's weights only, without loading TensorFlow.

Optimizer slots, counters, metrics and the TF1 graph are left out; in float32 that is a
third of a checkpoint of Adam, in float16 a sixth. The result is an ordinary TensorFlow
checkpoint. Keras files, and --model, do load TensorFlow.

Example:
    python tools/slim_checkpoint.py --input_checkpoint=ckpt-7 --output_checkpoint=light
"""

from tfopt import _flags


def run() -> None:
    """Parses the flags, slims and prints what was written."""
    options = _flags.define("tfopt.checkpoint.command:slim_checkpoint")
    _flags.main(options, module=__name__)


if __name__ == "__main__":
    run()
