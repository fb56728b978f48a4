r"""Trains a model with pruning, quantization-aware training and their like.

Takes a .keras or .h5 file and data, trains with the methods in the order given, and
writes the optimized model with a report: accuracy before and after, zeros, sizes.
With --methods=distill it learns from a larger model, too, which --teacher names.
Interrupted (Ctrl-C, or killed), the same command goes on after the last whole epoch.

Example:
    python tools/finetune.py --model=base.keras --data=testdata/mnist.npz \
        --input_scale=0.00392156863 --methods=prune,quantize_aware \
        --prune.final_sparsity=0.8 --epochs=3 --quantization=int8 --output_dir=small
"""

from tfopt import _flags


def run() -> None:
    """Parses the flags, trains and prints what came out."""
    methods = _flags.define_methods()
    options = _flags.define(
        "tfopt.finetuning.command:finetune_model", exclude=["method_options"]
    )
    _flags.main(
        lambda: options(
            method_options={name: given.values() for name, given in methods.items()}
        ),
        module=__name__,
    )


if __name__ == "__main__":
    run()
