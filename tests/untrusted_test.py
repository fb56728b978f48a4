"""What comes with models: names, assets, archives, recipes; none of them is obeyed."""

import io
import logging
import os
import pathlib
import sys
import tarfile

import numpy as np
import pytest

import tfopt
from tfopt import _flags, _text, _trust, micro, packing
from tfopt.recipe import Recipe
from tfopt.report import Column, Report, Table
from tfopt.savedmodel import assets
from tfopt.types import TfoptError


def test_assets_are_below_the_model(tmp_path):
    model = tmp_path / "model"
    (model / "assets" / "inner").mkdir(parents=True)
    (model / "assets" / "inner" / "a.txt").write_text("a")
    (tmp_path / "secret").write_text("s")
    (model / "assets" / "link").symlink_to(tmp_path / "secret")
    (model / "assets" / "within").symlink_to(model / "assets" / "inner" / "a.txt")
    assert assets.locate(model, "inner/a.txt").read_text() == "a"
    assert assets.locate(model, "within").read_text() == "a"
    names = ("../../secret", "inner/../../../secret", "/etc/passwd", "C:/x", "", "link")
    for name in (*names, "..\\..\\secret", "a\0b"):
        with pytest.raises(TfoptError, match="outside of the model"):
            assets.locate(model, name)
    (model / "assets.extra").mkdir()
    (model / "assets.extra" / "x").symlink_to("/etc")
    with pytest.raises(TfoptError, match="outside of the model"):
        assets.copy_extra(model, tmp_path / "out")
    with _trust.scope(safe_mode=False):
        assert assets.locate(model, "link").read_text() == "s"
        with pytest.raises(TfoptError, match="outside of the model"):
            assets.locate(model, "../../secret")


def test_asset_names_of_a_model_do_not_lead_out(tmp_path):
    import tensorflow as tf

    from tfopt.savedmodel import outside, reader

    (tmp_path / "words.txt").write_text("a\n")
    table = tf.lookup.StaticHashTable(
        tf.lookup.TextFileInitializer(
            str(tmp_path / "words.txt"), tf.string, -2, tf.int64, -1
        ),
        -1,
    )
    module = tf.Module()
    module.table = table
    spec = tf.TensorSpec([None], tf.string)
    served = tf.function(lambda x: {"y": table.lookup(x)}, input_signature=[spec])
    folder = tmp_path / "model"
    tf.saved_model.save(module, str(folder), served.get_concrete_function())
    outside.check_file(folder, "run")
    message = reader.read_saved_model(folder)
    (tmp_path / "secret").write_text("s\n")
    for meta_graph in message.meta_graphs:
        meta_graph.asset_file_def[0].filename = "../../secret"
    (folder / "saved_model.pb").write_bytes(message.SerializeToString())
    for output in ("frozen", "frozen.pb"):
        form = "graph_def" if output.endswith(".pb") else "saved_model"
        with pytest.raises(TfoptError, match=r"outside of the model.*\.\./\.\./secret"):
            tfopt.freeze(folder, tmp_path / output, output_format=form)
        assert not (tmp_path / output).exists()
    with pytest.raises(TfoptError, match="outside of the model"):
        tfopt.transform_graph(folder, tmp_path / "t.pb", ["deploy"])


def test_vocabularies_of_tensorflow_1_are_assets_too(tmp_path):
    import tensorflow as tf

    from tfopt.savedmodel import outside, reader

    v1 = tf.compat.v1
    (tmp_path / "words.txt").write_text("a\nb\n")
    with tf.Graph().as_default(), v1.Session() as session:
        words = v1.placeholder(tf.string, [None])
        table = tf.lookup.StaticHashTable(
            tf.lookup.TextFileInitializer(
                str(tmp_path / "words.txt"), tf.string, -2, tf.int64, -1
            ),
            -1,
        )
        codes = table.lookup(words)
        session.run(v1.tables_initializer())
        v1.saved_model.simple_save(
            session,
            str(tmp_path / "model"),
            {"words": words},
            {"codes": codes},
            legacy_init_op=v1.tables_initializer(),
        )
    meta_graph = reader.read_saved_model(tmp_path / "model").meta_graphs[0]
    assert not meta_graph.asset_file_def
    assert [asset.filename for asset in assets.listed(meta_graph)] == ["words.txt"]
    outside.check_file(tmp_path / "model", "run")
    frozen = tmp_path / "frozen"
    tfopt.freeze(
        tmp_path / "model", frozen, output_format="saved_model", verify="bytes"
    )
    assert (frozen / "assets" / "words.txt").read_text() == "a\nb\n"
    # One that is no asset is read from wherever the graph says.
    meta_graph.collection_def.pop("saved_model_assets")
    assert outside.in_meta_graph(meta_graph)


def test_unpacking_is_bounded(tmp_path):
    zstandard = pytest.importorskip("zstandard")
    bomb = tmp_path / "bomb.zst"
    bomb.write_bytes(zstandard.ZstdCompressor().compress(bytes(1 << 22)))
    assert bomb.stat().st_size < 1000
    with pytest.raises(TfoptError, match=r"at most 1,048,576 bytes.*max_bytes"):
        packing.unpack(bomb, max_bytes=1 << 20)
    assert not (tmp_path / "bomb").exists()
    assert os.path.getsize(packing.unpack(bomb)) == 1 << 22
    with pytest.raises(ValueError, match="max_bytes=0"):
        packing.unpack(bomb, max_bytes=0)
    # An entry that says it is a terabyte of holes.
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("holes")
        info.pax_headers = {
            "GNU.sparse.major": "0",
            "GNU.sparse.minor": "1",
            "GNU.sparse.name": "holes",
            "GNU.sparse.size": str(1 << 40),
            "GNU.sparse.map": "",
        }
        archive.addfile(info)
    sparse = tmp_path / "model.tar.zst"
    sparse.write_bytes(zstandard.ZstdCompressor().compress(content.getvalue()))
    with pytest.raises(TfoptError, match=r"takes more|damaged"):
        packing.unpack(sparse)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"safe_mode": False},
        {"optimizer": {"class_name": "Evil", "module": "evil", "config": {}}},
        {"loss": {"class_name": "function", "module": "os", "config": "system"}},
        {"metrics": ["os:system"]},
        {"data": "os:system"},
        {"teacher": "evil.keras"},
        {"output_dir": "/tmp/x"},
        {"methods": [{"name": "distill", "teacher": "evil.keras"}]},
        {"methods": [{"name": "distill", "log_dir": "/tmp/x"}]},
        {"methods": [{"name": "os.system"}]},
        {"methods": [{"name": "../../evil"}]},
    ],
    ids=str,
)
def test_recipes_bring_no_code_and_no_paths(change):
    steps = [{"do": "train", "epochs": 1}, {"do": "convert"}]
    assert Recipe.from_json(recipe(steps))
    steps[0] |= change
    with pytest.raises((ValueError, TfoptError)):
        Recipe.from_json(recipe(steps))
    with pytest.raises((ValueError, TfoptError)):
        Recipe.from_json(recipe([{"do": "convert", "safe_mode": False}]))
    with pytest.raises((ValueError, TfoptError)):
        Recipe.from_json(recipe([{"do": "os:system"}]))


def recipe(steps):
    return {**Recipe([{"do": "convert"}]).to_json(), "steps": steps}


def test_a_loss_in_a_recipe_is_looked_up_and_not_imported(tmp_path, keras):
    (tmp_path / "tfopt_evil.py").write_text("raise SystemExit('imported')\n")
    sys.path.insert(0, str(tmp_path))
    try:
        for name in ("tfopt_evil:loss", "tfopt_evil.loss", "os.system"):
            with pytest.raises(ValueError, match=name):
                keras.losses.get(name)
            with pytest.raises(ValueError, match=name):
                keras.optimizers.get(name)
        assert "tfopt_evil" not in sys.modules
    finally:
        sys.path.remove(str(tmp_path))


def test_names_do_not_reach_the_terminal_as_commands(capsys):
    name = "layer\x1b[2J\x1b]0;owned\x07\x9b31m\u202egnp\r"
    shown = _text.printable(name)
    assert shown == r"layer\x1b[2J\x1b]0;owned\x07\x9b31m\u202egnp\r"
    assert _text.printable("Grüße 日本\n\t| ─ é\udc80") == "Grüße 日本\n\t| ─ é\udc80"
    table = Table(
        title=name, columns=[Column(key="[red]x")], rows={name: {"[red]x": 1}}
    )
    for result in (name, Report(title="[bold]t", tables=[table], notes=[name])):
        _flags._show(result)
        out = capsys.readouterr().out
        assert "\x1b" not in out
        assert "\x9b" not in out
        assert "\\x1b[2J" in out
    assert "[bold]t" in out
    _flags._print_rich(Report(title="[bold]t", tables=[table], notes=[name]))
    out = capsys.readouterr().out
    assert "\x1b[2J" not in out
    assert "\x9b" not in out
    assert "[bold]t" in out
    with pytest.raises(SystemExit):
        _flags._fail("tool", f"bad {name}", 1)
    assert capsys.readouterr().err == f"tool: bad {shown[:-2]}\n"
    record = logging.LogRecord("x", 30, "f", 1, "bad %s", (name,), None)
    assert "\x1b" not in _flags._Printable("%(message)s").format(record)


def test_names_are_no_html_in_markdown():
    name = "<script>alert(1)</script>|x"
    table = Table(title=name, columns=[Column(key="size")], rows={name: {"size": 1}})
    text = Report(title=name, tables=[table], notes=[name]).markdown()
    assert "<script" not in text
    assert "\\|x" in text


@pytest.mark.parametrize("name", ["x; system()", "a\nb", "int", "", "x]={0};//", "é"])
def test_names_in_generated_code_are_identifiers(name):
    content = (pathlib.Path(__file__).parent.parent / "testdata").rglob("*.tflite")
    model = next(iter(content)).read_bytes()
    for function in (micro.c_array, micro.op_resolver):
        with pytest.raises(ValueError, match="identifier"):
            function(model, name=name)


def test_names_of_custom_operators_are_one_word():
    from tfopt.conversion import _products

    assert (
        _products._word("ADD\n#include <evil>") == r"ADD\x0a\x23include\x20\x3cevil\x3e"
    )
    assert _products._word("FlexErf:2") == "FlexErf:2"


def test_arrays_with_objects_are_refused(tmp_path):
    path = tmp_path / "data.npz"
    np.savez(path, x_train=np.array([{}], dtype=object), y_train=np.zeros(1))
    with pytest.raises(TfoptError, match=r"data\.npz"):
        tfopt.load_data(path)
    np.save(tmp_path / "x.npy", np.array([{}], dtype=object))
    with pytest.raises(TfoptError, match=r"x\.npy"):
        tfopt.load_examples(tmp_path / "x.npy")


def test_no_pickle_is_read():
    root = pathlib.Path(tfopt.__file__).parent
    for path in root.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert "allow_pickle=True" not in text, path
        for word in ("pickle.load", "marshal", "yaml.", "exec(", "extractall"):
            # The Runner's own processes get what the Runner itself sends.
            assert word not in text or path.name == "_port.py", (path, word)


def test_tools_import_from_the_current_folder_only_what_a_flag_names():
    from absl import flags

    values = flags.FlagValues()
    flags.DEFINE_string("data", None, "", flag_values=values)
    flags.DEFINE_list("metric", [], "", flag_values=values)
    values(["tool"])
    assert not _flags._names_function(values)
    for text in ("model.keras", "C:\\x", "a=b.tflite", "gs://x", "/a:b", "x,1,2:y"):
        values.data = text
        assert not _flags._names_function(values), text
    values.data = "my.module:function"
    assert _flags._names_function(values)
    values.data = None
    values.metric = ["accuracy", "module:f"]
    assert _flags._names_function(values)


def test_a_trial_has_its_file_in_its_own_folder(tmp_path):
    from tfopt import artifacts
    from tfopt.optimizing import _trials

    made = Recipe([{"do": "convert"}])
    content = {
        "key": made.digest(),
        "recipe": made,
        "parent": None,
        "path": "/etc/passwd",
        "figures": None,
        "error": None,
        "seconds": 1.0,
        "reports": [],
        "seed": 0,
    }
    artifacts.write_json(tmp_path / "trial.json", content)
    trial = _trials._read(tmp_path)
    assert trial.path == str(tmp_path / "model.tflite")


def test_a_checkpoint_state_leads_nowhere_else(tmp_path):
    from tfopt.checkpoint import sources

    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
        (folder / "ckpt-1.index").touch()
        (folder / "ckpt-2.index").touch()
    for name in ("../there/ckpt-2", str(there / "ckpt-2"), "ckpt-2"):
        (here / "checkpoint").write_text(f'model_checkpoint_path: "{name}"\n')
        assert sources.resolve(str(here)) == str(here / "ckpt-2")
