"""Entry of the child process of `engine="tfmot"`."""

import sys

from tfopt.quickstart import run_child

run_child(*sys.argv[1:])
