"""Keras files from elsewhere: none of them runs code, reads or deletes a file."""

import io
import json
import os
import pathlib
import sys
import zipfile

import h5py
import numpy as np
import pytest

from tfopt import _keras, _trust
from tfopt._keras import safety
from tfopt._keras.safety import _config
from tfopt.types import TfoptError

REFUSED = "not safe to open"


def kerases():
    import keras
    import tf_keras

    return {"keras": keras, "tf_keras": tf_keras}


@pytest.fixture(params=["keras", "tf_keras"])
def either(request):
    return kerases()[request.param]


@pytest.fixture
def marker(tmp_path):
    return tmp_path / "marker"


def dense(keras):
    given = keras.Input((4,))
    return keras.Model(given, keras.layers.Dense(2, name="dense")(given))


def with_lambda(keras, marker):
    def make(path):
        return lambda x: (__import__("pathlib").Path(path).touch(), x)[1]

    given = keras.Input((4,))
    layer = keras.layers.Lambda(make(str(marker)), output_shape=(4,), name="evil")
    return keras.Model(given, layer(given))


def forged(source, target, change=None, members=()):
    """Writes a copy of a `.keras` file with another configuration or more members."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name == "config.json" and change is not None:
                config = json.loads(content)
                change(config)
                content = json.dumps(config).encode()
            if name not in dict(members):
                new.writestr(name, content)
        for name, content in members:
            new.writestr(name, content)
    return target


def layer_of(config, name="dense"):
    return next(x for x in config["config"]["layers"] if x["config"]["name"] == name)


@pytest.mark.parametrize("suffix", [".keras", ".h5", ".hdf5"])
@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5:UserWarning")
def test_lambda_layers_are_named_and_refused(either, suffix, marker, tmp_path, capsys):
    path = tmp_path / f"model{suffix}"
    with_lambda(either, marker).save(path)
    marker.unlink(missing_ok=True)
    with pytest.raises(TfoptError, match=r"'evil' holds Python code.*safe_mode=False"):
        _keras.load(path)
    assert not marker.exists()
    with _trust.scope(safe_mode=False):
        model = _keras.load(path)
    model(np.zeros((1, 4), np.float32))
    assert marker.exists()  # the control: it would have run
    assert not _trust.is_trusted()


def test_files_without_code_load(either, tmp_path):
    given = either.Input((6,))
    x = either.layers.Dense(4, activation="gelu", kernel_regularizer="l2")(given)
    x = either.layers.BatchNormalization()(x)
    x = either.layers.Reshape((2, 2))(x)
    x = either.layers.LSTM(3)(x)
    model = either.Model(given, either.layers.Softmax()(x))
    model.compile("adam", "mse", metrics=["mae"])
    model.save(tmp_path / "model.keras")
    data = np.ones((2, 6), np.float32)
    loaded = _keras.load(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded(data), model(data), rtol=1e-6)


def test_operations_of_tf_keras_load_if_they_compute(tmp_path):
    import tensorflow as tf

    keras = kerases()["tf_keras"]
    given = keras.Input((4,))
    x = tf.nn.relu(tf.math.add(given, 1.0))[:, :2]
    x = tf.cast(tf.image.resize(tf.reshape(x, (-1, 1, 2, 1)), (2, 2)), tf.float32)
    model = keras.Model(given, tf.concat([x, x], axis=1))
    path = tmp_path / "model.keras"
    model.save(path)
    data = np.ones((2, 4), np.float32)
    np.testing.assert_array_equal(_keras.load(path)(data), model(data))

    victim = tmp_path / "victim"
    for name in ("io.gfile.remove", "io.gfile.rmtree", "load_op_library"):
        victim.touch()

        def change(config, name=name):
            for layer in config["config"]["layers"]:
                if layer["config"].get("function") == "math.add":
                    layer["config"]["function"] = name
                    constant = ["_CONSTANT_VALUE", -1, str(victim), {}]
                    layer["inbound_nodes"] = [constant]

        with pytest.raises(TfoptError, match=rf"calls tf\.{name}"):
            _keras.load(forged(path, tmp_path / "forged.keras", change))
        assert victim.exists()


def test_modules_that_a_file_names_are_not_imported(tmp_path, marker, monkeypatch):
    (tmp_path / "tfopt_evil.py").write_text(
        f"import pathlib; pathlib.Path({str(marker)!r}).touch()\n"
        "def f(x): return x\nclass C: pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    path = tmp_path / "model.keras"
    dense(kerases()["tf_keras"]).save(path)

    evil = {"class_name": "C", "module": "tfopt_evil", "registered_name": "C"}

    def as_class(config):
        layer_of(config).update(evil)

    def as_model(config):
        config.update(evil)

    def as_function(config):
        layer_of(config)["config"]["activation"] = {
            "class_name": "function",
            "config": "f",
            "module": "tfopt_evil",
            "registered_name": "f",
        }

    for change in (as_class, as_function, as_model):
        forged_path = forged(path, tmp_path / "forged.keras", change)
        with pytest.raises(TfoptError, match=r"the layer .*tfopt_evil.*register"):
            _keras.load(forged_path)
        assert not marker.exists()
        assert "tfopt_evil" not in sys.modules
    # The control: tf_keras by itself runs the module.
    with pytest.raises(TypeError):
        kerases()["tf_keras"].models.load_model(
            forged(path, tmp_path / "forged.keras", as_model), compile=False
        )
    assert marker.exists()
    del sys.modules["tfopt_evil"]


def reference(name, module, config=None, **more):
    return {"class_name": name, "module": module, "config": config or {}, **more}


@pytest.mark.parametrize(
    "item",
    [
        reference("function", "keras.utils", "get_file"),
        reference("function", "keras.src.utils.file_utils", "get_file"),
        reference("function", "keras.models", "load_model"),
        reference("function", "keras.config", "enable_unsafe_deserialization"),
        reference("function", "builtins", "eval"),
        reference("function", "builtins", "__import__"),
        reference("function", "os", "system"),
        reference("function", "subprocess", "Popen"),
        reference("function", "keras.src.activations.activations", "__builtins__"),
        reference("function", "keras.activations", 3),
        reference("function", None, "f"),
        reference("get_file", "keras.utils"),
        reference("load_model", "keras.models"),
        reference("VGG16", "keras.applications"),
        reference("system", "os"),
        reference("Popen", "subprocess"),
        reference("Path", "pathlib"),
        reference("Dense", "keras.layers.."),
        reference("Dense", 5),
        reference(["Dense"], "keras.layers"),
        reference("Path", "tensorflow_model_optimization.python.core.api"),
        reference("os", "tensorflow_model_optimization.python.core.sparsity.x"),
        reference("TFSMLayer", "keras.layers", {"name": "x", "filepath": "/x"}),
        reference("TFSMLayer", None, {"name": "x", "filepath": "/x"}),
        reference("TorchModuleWrapper", "keras.layers"),
        reference("StringLookup", "keras.layers", {"vocabulary": "/etc/passwd"}),
        reference("TextVectorization", None, {"idf_weights": "/etc/passwd"}),
        reference("__lambda__", None, {"code": "4wAAAA"}),
        reference("Lambda", None, {"function": ["code", None, None]}),
        reference("ResidualWrapper", None, {"residual_fn_type": "lambda"}),
        reference("TFOpLambda", None, {"function": "io.write_file"}),
        reference("TFOpLambda", None, {"function": "raw_ops.WriteFile"}),
        reference("TFOpLambda", None, {"function": "keras.utils.get_file"}),
        reference("TFOpLambda", None, {"function": "print"}),
        reference("TFOpLambda", None, {"function": "py_function"}),
        reference("TFOpLambda", None, {"function": "io.decode_proto"}),
        reference("TFOpLambda", None, {"function": "keras.backend.set_floatx"}),
        reference("SlicingOpLambda", None, {"function": "saved_model.load"}),
        reference("ClassMethod", None, {"cls_symbol": "io.gfile.GFile"}),
        reference("InstanceMethod", None, {"attr_name": "__init__"}),
        reference("TensorFlowOpLayer", None, {"node_def": {"op": "ReadFile"}}),
        reference("TensorFlowOpLayer", None, {"node_def": "bytes"}),
        {
            **reference("__typespec__", "subprocess", []),
            "spec_name": "Popen",
            "registered_name": None,
        },
    ],
    ids=lambda item: f"{item['class_name']}-{item['module']}-{item['config']}"[:60],
)
def test_what_no_model_needs_is_refused(either, item):
    hidden = {"class_name": "Wrapper", "config": {"name": "w", "list": [{"x": item}]}}
    assert _config.objection(hidden, either)


@pytest.mark.parametrize(
    "item",
    [
        reference("function", "builtins", "relu"),
        reference("function", "keras.activations", "relu"),
        reference("function", "keras.losses", "mean_squared_error"),
        reference("Dense", "keras.layers"),
        reference("Dense", None),
        reference("StringLookup", "keras.layers", {"vocabulary": ["a", "b"]}),
        reference("TFOpLambda", None, {"function": "math.add"}),
        reference("TFOpLambda", None, {"function": "compat.v1.nn.conv2d"}),
        reference("TFOpLambda", None, {"function": "convert_to_tensor"}),
        reference("TFOpLambda", None, {"function": "io.decode_jpeg"}),
        reference("TFOpLambda", None, {"function": "keras.backend.mean"}),
        reference("TFOpLambda", None, {"function": "strings.lower"}),
        reference("TensorFlowOpLayer", None, {"node_def": {"op": "AddV2"}}),
        reference(
            "PruneLowMagnitude",
            "tensorflow_model_optimization.python.core.sparsity.keras.pruning_wrapper",
        ),
        {
            **reference("__typespec__", "tensorflow.python.framework.tensor", []),
            "spec_name": "TensorSpec",
            "registered_name": None,
        },
    ],
    ids=lambda item: f"{item['class_name']}-{item['module']}-{item['config']}"[:60],
)
def test_what_models_need_is_not(either, item):
    assert _config.objection({"config": {"name": "m", "layers": [item]}}, either) == ""


def test_own_classes_are_allowed_if_they_are_registered(either, tmp_path):
    class Twice(either.layers.Layer):
        def call(self, x):
            return x * 2

    def bent(x):
        return x

    given = either.Input((4,))
    model = either.Model(given, Twice(name="twice", activity_regularizer=None)(given))
    path = tmp_path / "model.keras"
    model.save(path)
    with pytest.raises(TfoptError):
        _keras.load(path)
    item = reference("function", "builtins", "bent")
    assert _config.objection(item, either)
    with either.utils.custom_object_scope({"Twice": Twice, "bent": bent}):
        assert _keras.load(path).name == model.name
        assert _config.objection(item, either) == ""
    # Registered in the Keras that opens the file, not in the other one.
    other = kerases()["keras" if either.__name__ == "tf_keras" else "tf_keras"]
    evil = reference("Twice", "os", registered_name="Twice")
    with either.utils.custom_object_scope({"Twice": Twice}):
        assert _config.objection(evil, either) == ""
        assert _config.objection(evil, other)


def test_pickled_weights_are_refused(tmp_path, marker):
    class Evil:
        def __reduce__(self):
            return pathlib.Path.touch, (marker,)

    content = io.BytesIO()
    np.savez(content, weights=np.array([Evil()], dtype=object))
    marker.unlink(missing_ok=True)
    path = tmp_path / "model.keras"
    dense(kerases()["tf_keras"]).save(path)
    forged(
        path, tmp_path / "f.keras", members=[("model.weights.npz", content.getvalue())]
    )
    with pytest.raises(TfoptError, match="pickled objects"):
        _keras.load(tmp_path / "f.keras")
    assert not marker.exists()


@pytest.mark.parametrize("name", ["../escaped", "/tmp/escaped", "a/../../b", "C:\\x"])
def test_members_that_lead_out_of_the_archive_are_refused(tmp_path, name):
    path = tmp_path / "model.keras"
    dense(kerases()["keras"]).save(path)
    forged(path, tmp_path / "forged.keras", members=[(name, b"x")])
    with pytest.raises(TfoptError, match="leads out of the archive"):
        _keras.load(tmp_path / "forged.keras")
    link = zipfile.ZipInfo("assets/link")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(link, "/etc")
    with pytest.raises(TfoptError, match="symbolic link"):
        _keras.load(path)


def test_bombs_are_refused(tmp_path, monkeypatch):
    from tfopt._keras.safety import _archives

    monkeypatch.setattr(_archives, "_SMALL_BYTES", 1 << 16)
    path = tmp_path / "model.keras"
    dense(kerases()["keras"]).save(path)
    bomb = tmp_path / "bomb.keras"
    forged(path, bomb)
    with zipfile.ZipFile(bomb, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("assets/zeros", bytes(1 << 20))
    with pytest.raises(TfoptError, match=r"'assets/zeros'.*1,048,576 bytes of memory"):
        _keras.load(bomb)
    weights = tmp_path / "weights.h5"
    with h5py.File(weights, "w") as file:
        file.create_dataset("huge", shape=(1 << 40,), dtype="f4", chunks=(1 << 10,))
    forged(path, bomb, members=[("model.weights.h5", weights.read_bytes())])
    with pytest.raises(TfoptError, match=r"'/huge' would take 4,398,046,511,104"):
        _keras.load(bomb)


def test_weights_that_are_elsewhere_are_refused(tmp_path):
    keras = kerases()["tf_keras"]
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(64))
    changes = {
        "link to somewhere": lambda file: file.update(x=h5py.SoftLink("/etc")),
        "link to somewhere else": lambda file: file.update(
            x=h5py.ExternalLink(str(secret), "/")
        ),
        "in another file": lambda file: file.create_dataset(
            "x", (4,), "f4", external=[(str(secret), 0, 16)]
        ),
    }
    for reason, change in changes.items():
        path = tmp_path / "model.h5"
        with pytest.warns(UserWarning, match="HDF5"):
            dense(keras).save(path)
        assert _keras.load(path)
        with h5py.File(path, "a") as file:
            change(file["model_weights"])
        with pytest.raises(TfoptError, match=reason):
            _keras.load(path)


def test_what_cannot_be_checked_is_not_loaded(tmp_path):
    path = tmp_path / "model.keras"
    dense(kerases()["keras"]).save(path)
    deep = '{"a":' * 100_000 + "1" + "}" * 100_000
    broken = forged(path, tmp_path / "b.keras", members=[("config.json", deep)])
    with pytest.raises(TfoptError, match="Cannot load the model"):
        _keras.load(broken)


def test_metadata_beside_a_saved_model_is_checked(tmp_path):
    from tf_keras.protobuf import saved_metadata_pb2

    message = saved_metadata_pb2.SavedMetadata()
    config = {"name": "evil", "function_type": "lambda", "function": ["code", 0, 0]}
    message.nodes.add(metadata=json.dumps({"class_name": "Lambda", "config": config}))
    (tmp_path / "keras_metadata.pb").write_bytes(message.SerializeToString())
    with pytest.raises(TfoptError, match="holds Python code"):
        safety.check(tmp_path, kerases()["tf_keras"])
    assert os.listdir(tmp_path) == ["keras_metadata.pb"]


def test_encrypted_files_and_endless_configurations_are_named_errors(tmp_path, keras):
    good = tmp_path / "good.keras"
    keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]).save(good)
    encrypted = bytearray(good.read_bytes())
    place = encrypted.find(b"PK\x01\x02")
    while place >= 0:  # the flag of each member
        encrypted[place + 8] |= 1
        place = encrypted.find(b"PK\x01\x02", place + 1)
    endless = bytearray(good.read_bytes())
    place = endless.index(b"config.json", endless.index(b"PK\x01\x02"))
    endless[place - 22 : place - 18] = (1 << 30).to_bytes(4, "little")
    for content, reason in ((encrypted, "encrypted"), (endless, "bytes of memory")):
        (tmp_path / "bad.keras").write_bytes(content)
        with pytest.raises(TfoptError, match=reason):
            _keras.load(tmp_path / "bad.keras")
    assert _keras.load(good).count_params() == 15
