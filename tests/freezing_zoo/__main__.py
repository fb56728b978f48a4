"""Builds the zoo of models in a folder: `python tests/freezing_zoo FOLDER PART...`.

Parts are the modules beside this one. Each model becomes `FOLDER/NAME/model`, and
`FOLDER/NAME/case.pickle` holds what to expect of it: inputs, and the outputs that
TensorFlow itself gave, call by call.
"""

import importlib
import os
import pathlib
import pickle
import sys
import tempfile

import tensorflow as tf

CALLS = 3
IS_KERAS_3 = tf.keras.Model.__module__.startswith("keras.")
PREFIXES = {
    "modules": "module",
    "graphs": "graph",
    "networks": "keras3" if IS_KERAS_3 else "tf_keras",
}


def main(folder, parts):
    # Grappler folds and fuses where there are constants: without it, equal models give
    # equal bits. Functions keep this option in the SavedModel.
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    for part in parts:
        for name, build in importlib.import_module(part).MODELS.items():
            target = pathlib.Path(folder) / f"{PREFIXES[part]}_{name}"
            target.mkdir(parents=True)
            case = {"tags": ["serve"], "kept": [], "source": "model"}
            case |= build(str(target / "model"))
            if "outputs" not in case:
                case["outputs"] = {
                    key: run(target / "model", case["tags"], key, inputs)
                    for key, inputs in case["inputs"].items()
                }
            (target / "case.pickle").write_bytes(pickle.dumps(case))


def run(path, tags, key, inputs):
    """Returns output -> values by call, from a fresh session."""
    config = tf.compat.v1.ConfigProto()
    config.graph_options.rewrite_options.disable_meta_optimizer = True
    config.graph_options.optimizer_options.opt_level = -1
    with tf.Graph().as_default(), tf.compat.v1.Session(config=config) as session:
        meta_graph = tf.compat.v1.saved_model.load(session, tags, str(path))
        signature = meta_graph.signature_def[key]
        feed = {signature.inputs[name].name: value for name, value in inputs.items()}
        fetch = {name: info.name for name, info in signature.outputs.items()}
        calls = [session.run(fetch, feed) for _ in range(CALLS)]
    return {name: [call[name] for call in calls] for name in fetch}


if __name__ == "__main__":
    destination = os.path.abspath(sys.argv[1])
    with tempfile.TemporaryDirectory() as scratch:
        # Vocabulary files lie here and go, so that models have to bring them along.
        os.chdir(scratch)
        main(destination, sys.argv[2:])
