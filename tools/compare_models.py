r"""Compares models of any formats: quality, agreement, size, speed and content.

Prints a table; with --output_dir it also writes markdown, JSON, PNG plots and an HTML
page that needs nothing else.

Example:
    python tools/compare_models.py --model=float=model.keras --model=int8=model.tflite \
        --data=digits.npz --metric=accuracy,top_5 --output_dir=report
"""

from tfopt import _flags


def run() -> None:
    """Parses the flags, compares and prints the table."""
    options = _flags.define("tfopt.comparison.command:compare_models")
    _flags.main(options, module=__name__)


if __name__ == "__main__":
    run()
