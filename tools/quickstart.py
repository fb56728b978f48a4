"""Makes an MNIST network small and fast in all the ways tfopt knows.

Trains the network of a published comparison, prunes it, makes it quantization aware,
converts it to .tflite, alone and combined, and prints three tables with accuracy, time
and size of each result.

Example:
    python tools/quickstart.py --epochs=5 --output_dir=quickstart_output
"""

from tfopt import _flags


def run() -> None:
    """Parses the flags, runs the quickstart and prints its report."""
    options = _flags.define("tfopt.quickstart:quickstart")
    _flags.main(options, module=__name__)


if __name__ == "__main__":
    run()
