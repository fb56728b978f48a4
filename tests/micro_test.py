"""C source for TFLite Micro: compiled, linked and compared."""

import shutil
import subprocess

import numpy as np
import pytest

import tfopt
from tfopt import micro
from tfopt.types import TfoptError


@pytest.fixture(scope="module")
def content():
    import tensorflow as tf

    model = tf.keras.Sequential(
        [
            tf.keras.Input((8, 8, 1)),
            tf.keras.layers.Conv2D(2, 3, activation="relu"),
            tf.keras.layers.MaxPooling2D(),
            tf.keras.layers.Flatten(),
            tf.keras.layers.Dense(3, activation="softmax"),
        ]
    )
    images = np.random.default_rng(0).random((32, 8, 8, 1), np.float32)
    return tfopt.convert(model, quantization="int8", representative_dataset=images)


@pytest.mark.parametrize(
    ("compiler", "suffix", "standard"),
    [("cc", ".c", "c99"), ("cc", ".c", "c11"), ("c++", ".cc", "c++11")],
)
def test_the_compiled_array_is_the_file(compiler, suffix, standard, content, tmp_path):
    if shutil.which(compiler) is None:
        pytest.skip(f"no compiler {compiler}")
    source, header = micro.c_array(content, name="digits").write(
        tmp_path / f"model{suffix}"
    )
    assert header.endswith("model.h")
    main = tmp_path / f"main{suffix}"
    main.write_text(
        '#include <stdint.h>\n#include <stdio.h>\n#include "model.h"\n'
        "int main(void) {\n"
        "  fwrite(digits, 1, digits_len, stdout);\n"
        "  return ((uintptr_t)digits) % 16 != 0;\n}\n"
    )
    program = tmp_path / "program"
    command = [compiler, f"-std={standard}", "-Wall", "-Wextra", "-pedantic", "-Werror"]
    subprocess.run([*command, source, str(main), "-o", program], check=True)
    result = subprocess.run([program], capture_output=True, check=True)
    assert result.stdout == content


def test_the_text_depends_on_the_content_alone(content):
    first, second = micro.c_array(content), micro.c_array(content)
    assert first == second
    assert micro.c_array(content, name="other") != first
    assert max(map(len, first.source.splitlines())) <= 80


@pytest.mark.parametrize("name", ["2x", "a-b", "", "class", "a b", "x;y"])
def test_names_that_are_no_identifiers(name, content):
    with pytest.raises(ValueError, match="identifier"):
        micro.c_array(content, name=name)


def test_what_is_no_model_is_refused(content, tmp_path):
    with pytest.raises(TfoptError):
        micro.c_array(content[:100])
    with pytest.raises(ValueError, match=r"model\.txt"):
        micro.c_array(content).write(tmp_path / "model.txt")


def test_the_resolver_has_exactly_the_operators(content):
    needed = micro.operators(content)
    assert needed["CONV_2D"] == {"int8": 1}
    code = micro.op_resolver(content, name="digits")
    for method in ("AddConv2D", "AddMaxPool2D", "AddFullyConnected", "AddSoftmax"):
        assert code.count(f"resolver.{method}()") == 1
    assert code.count("resolver.Add") == len(needed)
    assert f"MicroMutableOpResolver<{len(needed)}>" in code
    arena = tfopt.inspect(content).arena_bytes
    assert f"digits_arena_estimate = {arena};" in code


def test_operators_without_a_kernel_are_named():
    import tensorflow as tf

    largest = tf.function(
        lambda x: tf.math.top_k(x)[0], input_signature=[tf.TensorSpec([1, 4])]
    )
    with pytest.raises(TfoptError, match="TOPK_V2"):
        micro.op_resolver(tfopt.convert(largest))
