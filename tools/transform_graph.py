r"""Rewrites a graph by a list of transforms, and checks that it computes the same.

Takes the Graph Transform Tool's own syntax, on a frozen GraphDef, or on a SavedModel or
Keras file, which it freezes on the way. After every transform the graph is run beside
the original; a transform that breaks its promise is named, and nothing is written.

Example:
    python tools/transform_graph.py --saved_model_dir=model --out_graph=small.pb \
        --transforms="deploy quantize_weights(minimum_size=1024)"
"""

from tfopt import _flags


def run() -> None:
    """Parses the flags, transforms and prints what every transform did."""
    options = _flags.define("tfopt.transforms._command:transform_graph")
    _flags.main(options, module=__name__)


if __name__ == "__main__":
    run()
