"""Turns a model's variables into constants, without loading TensorFlow.

Reads a SavedModel of TF1 or TF2, a TF1 graph with its checkpoint, or a Keras file, and
writes a frozen GraphDef or a frozen SavedModel. Variables that the model writes stay
variables and are listed.

Example:
    python tools/freeze_graph.py --input_saved_model_dir=model --output_graph=frozen.pb
"""

from tfopt import _flags


def run() -> None:
    """Parses the flags, freezes and prints what was written."""
    options = _flags.define("tfopt.freezing.command:freeze_graph")
    _flags.main(options, module=__name__)


if __name__ == "__main__":
    run()
