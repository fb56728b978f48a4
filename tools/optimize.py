r"""Finds the smallest or fastest file of a model that keeps an accuracy budget.

Tries quantization, layers kept in float, pruning and, with training examples, training
for all of these; writes best.tflite, recipe.json and a report with every candidate and
the reason for its verdict. Interrupted, even killed, the same command goes on.

Example:
    python tools/optimize.py --model=quickstart_output/base.keras \
        --data=testdata/mnist.npz --input_scale=0.00392156863 --objective=size \
        --max_accuracy_drop=0.01 --output_dir=optimized
"""

from tfopt import _flags


def run() -> None:
    """Parses the flags, searches and prints the candidates and the best one."""
    options = _flags.define("tfopt.optimizing.command:optimize_model")
    _flags.main(options, module=__name__)


if __name__ == "__main__":
    run()
