"""Honest timing: candidates in turn, medians, and a gauge of the machine's noise."""

from tfopt.benchmark._timing import Timing, interleave, run_queue_delays

__all__ = ["Timing", "interleave", "run_queue_delays"]
