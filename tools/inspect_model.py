"""Shows what is inside a model, or how two models differ.

Works on .tflite files, SavedModels, frozen graphs, Keras files and checkpoints: what
can be called, operations, layers, weights, number types, zeros, multiplications.

Example:
    python tools/inspect_model.py --model=model.tflite --against=smaller.tflite
"""

from tfopt import _flags


def run() -> None:
    """Parses the flags, inspects and prints what was found."""
    options = _flags.define("tfopt.inspection.command:inspect_model")
    _flags.main(options, module=__name__)


if __name__ == "__main__":
    run()
