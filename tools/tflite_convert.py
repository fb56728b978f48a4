r"""Converts a model to a TFLite file that was run and compared with it.

Takes a SavedModel, a Keras file or a frozen graph. Writes, beside the file, what builds
for devices need of it: a manifest, C source, the operators. `--if_changed` leaves what
is the same as before alone, for build systems that look at times.

Example:
    python tools/tflite_convert.py --saved_model_dir=model --output_file=model.tflite \
        --quantization=int8 --representative_data=digits.npz --c_array=model.c
"""

from tfopt import _flags


def run() -> None:
    """Parses the flags, converts and prints what was written."""
    options = _flags.define("tfopt.conversion.command:tflite_convert")
    _flags.main(options, module=__name__)


if __name__ == "__main__":
    run()
