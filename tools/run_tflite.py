"""Runs a .tflite model on arrays in files, on all cores, without TensorFlow.

Reads .npz or .npy files (the latter memory-mapped), runs the model with as many
interpreters as pay, and writes the outputs in order. Interpreters run in processes of
their own, so a model that crashes them is an error like any other.

Example:
    python tools/run_tflite.py --model=digits.tflite --input=images.npy --output=out.npz
"""

from tfopt import _flags


def run() -> None:
    """Parses the flags, runs the model and prints what was written, and how fast."""
    _flags.main(_flags.define("tfopt.runner.command:run_tflite"), module=__name__)


if __name__ == "__main__":
    run()
