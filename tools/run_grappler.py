r"""Rewrites a model by TensorFlow's graph optimizer, Grappler, and verifies the result.

Each option of RewriterConfig is a flag of the same name. Takes a SavedModel or a frozen
graph, and writes either; --explain shows instead what each optimizer does to the model.

Example:
    python tools/run_grappler.py --saved_model_dir=model --out_graph=fast.pb \
        --preset=default --remapping=off
"""

from tfopt import _flags


def run() -> None:
    """Parses the flags, optimizes and prints what was written."""
    options = _flags.define("tfopt.grappler.config:GrapplerConfig")
    work = _flags.define("tfopt.grappler.command:run_grappler")
    _flags.main(lambda: work(options=options.values()), module=__name__)


if __name__ == "__main__":
    run()
