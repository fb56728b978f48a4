"""Measures latency, throughput, memory and start of models of any format, in turn.

Each model runs in a process of its own; rounds go from one model to the next, and every
round says how long it had to wait for a core.

Example:
    python tools/benchmark_model.py --model=float=model.keras --model=model.tflite
"""

from tfopt import _flags


def run() -> None:
    """Parses the flags, measures and prints the tables."""
    options = _flags.define("tfopt.benchmark.command:benchmark_model")
    _flags.main(options, module=__name__)


if __name__ == "__main__":
    run()
