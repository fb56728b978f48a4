"""Honest timing: candidates in turn, medians, and a gauge of the machine's noise.

`interleave` times functions of this process; `benchmark_models` measures model files
of any format, each in a process of its own.

How it is built: `_models` says what is to be measured, `_process` holds a child process
and `_worker` is what runs in it, on an `_engine` for each format (`_litert`,
`_tensorflow`); `_measuring` leads the rounds and `_results` keeps the figures.
"""

from tfopt.benchmark._measurement import Measurement, OpTime
from tfopt.benchmark._measuring import benchmark_models
from tfopt.benchmark._results import Benchmark
from tfopt.benchmark._timing import Timing, interleave, run_queue_delays

__all__ = [
    "Benchmark",
    "Measurement",
    "OpTime",
    "Timing",
    "benchmark_models",
    "interleave",
    "run_queue_delays",
]
