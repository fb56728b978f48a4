"""tf.Modules with tf.functions: control flow, tables, state, types."""

import functools
import os

import numpy as np
import tensorflow as tf

MODELS = {}
RANDOM = np.random.default_rng(0)
INPUTS = {
    "ids": np.array([[3, 0, 2], [1, 4, 4]], np.int32),
    "words": np.array([b"b", b"x", b"a", b"c"], object),
    "x": RANDOM.standard_normal((2, 4)).astype(np.float32),
}
ID_SPEC = tf.TensorSpec([None, 3], tf.int32, "ids")
WORDS_SPEC = tf.TensorSpec([None], tf.string, "words")
X_SPEC = tf.TensorSpec([None, 4], tf.float32, "x")


def weights(*shape):
    return tf.Variable(RANDOM.standard_normal(shape).astype(np.float32))


def model(kept=()):
    """Registers a function that fills a tf.Module and returns its functions.

    Args:
        kept: The operations that make a variable stay one.
    """

    def register(build):
        @functools.wraps(build)
        def save(path):
            module = tf.Module()
            functions = build(module)
            if not isinstance(functions, dict):
                functions = {"serving_default": functions}
            tf.saved_model.save(module, path, signatures=functions)
            inputs = {
                key: {spec.name: INPUTS[spec.name] for spec in made.input_signature}
                for key, made in functions.items()
            }
            return {"kept": list(kept), "inputs": inputs}

        MODELS[build.__name__] = save
        return build

    return register


def function(*specs):
    return tf.function(input_signature=list(specs))


@model()
def dense(module):
    module.w, module.b = weights(4, 3), weights(3)
    return function(X_SPEC)(lambda x: {"y": tf.nn.relu(x @ module.w + module.b)})


@model()
def multi_signature(module):
    module.w, module.b, module.other = weights(4, 3), weights(3), weights(4, 2)
    return {
        "serving_default": function(X_SPEC)(lambda x: {"y": x @ module.w + module.b}),
        "other": function(X_SPEC)(lambda x: {"z": x @ module.other, "x": x + 1.0}),
    }


@model()
def every_type(module):
    kinds = "float16 float64 int8 uint8 int16 uint16 int32 int64 uint32 uint64 bool"
    kinds += " complex64 complex128 bfloat16 float8_e4m3fn"
    values = RANDOM.integers(0, 2, (2, 3))
    module.variables_ = {
        kind: tf.Variable(tf.constant(values.astype(tf.as_dtype(kind).as_numpy_dtype)))
        for kind in kinds.split()
    }

    def call(x):
        # Bit casts and copies: some of the types have no arithmetic.
        del x
        return {
            name: tf.identity(variable) for name, variable in module.variables_.items()
        }

    return function(X_SPEC)(call)


@model()
def strings(module):
    module.names = tf.Variable([b"a", b"", b"\xff\x00long" * 50, "ü".encode(), b"e"])
    return function(ID_SPEC)(lambda ids: {"names": tf.gather(module.names, ids)})


@model()
def scalars_and_empty(module):
    module.scalar, module.empty = tf.Variable(2.5), tf.Variable(tf.zeros([0, 4]))

    def call(x):
        return {"y": tf.concat([x * module.scalar, module.empty], 0)}

    return function(X_SPEC)(call)


@model()
def embedding(module):
    module.table = weights(5, 4)
    return function(ID_SPEC)(lambda ids: {"y": tf.gather(module.table, ids)})


@model()
def embedding_in_while(module):
    module.table = weights(5, 4)

    def call(ids):
        def body(step, total):
            return step + 1, total + tf.gather(module.table, ids[:, step])

        total = tf.zeros([tf.shape(ids)[0], 4])
        return {"y": tf.while_loop(lambda step, _: step < 3, body, (0, total))[1]}

    return function(ID_SPEC)(call)


@model()
def embedding_in_cond(module):
    module.table = weights(5, 4)

    def call(ids):
        return {
            "y": tf.cond(
                tf.reduce_sum(ids) > 3,
                lambda: tf.gather(module.table, ids),
                lambda: tf.zeros([2, 3, 4]),
            )
        }

    return function(ID_SPEC)(call)


@model()
def embedding_in_switch_case(module):
    module.tables = [weights(5, 4), weights(6, 4)]

    def call(ids):
        branches = [
            lambda table=table: tf.gather(table, ids) for table in module.tables
        ]
        return {"y": tf.switch_case(ids[0, 0] % 2, branches)}

    return function(ID_SPEC)(call)


@model()
def cond_in_while_in_function(module):
    module.table, module.w = weights(5, 4), weights(4, 4)

    @tf.function
    def inner(ids, step):
        if step % 2 == 0:
            return tf.gather(module.table, ids[:, step])
        return tf.gather(module.table, ids[:, step]) @ module.w

    def call(ids):
        total = tf.zeros([tf.shape(ids)[0], 4])
        for step in tf.range(3):
            total += inner(ids, step)
        return {"y": total}

    return function(ID_SPEC)(call)


@model()
def gather_batch_dims(module):
    module.table = weights(2, 5, 4)
    return function(ID_SPEC)(
        lambda ids: {"y": tf.gather(module.table, ids, batch_dims=1)}
    )


@model()
def resource_gather_batch_dims(module):
    module.table = weights(2, 5, 4)

    def call(ids):
        return {
            "y": tf.raw_ops.ResourceGather(
                resource=module.table.handle,
                indices=ids,
                dtype=tf.float32,
                batch_dims=1,
            )
        }

    return function(ID_SPEC)(call)


@model()
def gather_nd(module):
    module.table = weights(5, 5, 4)
    return function(ID_SPEC)(
        lambda ids: {"y": module.table.gather_nd(ids[:, :2]), "s": ids}
    )


@model()
def shape_and_is_initialized(module):
    module.w = weights(4, 3)

    def call(x):
        handle = module.w.handle
        shape = tf.raw_ops.VariableShape(input=handle, out_type=tf.int64)
        ready = tf.raw_ops.VarIsInitializedOp(resource=handle)
        return {"shape": shape, "ready": ready, "y": x @ module.w}

    return function(X_SPEC)(call)


@model()
def map_fn(module):
    module.w = weights(4, 4)

    def call(x):
        rows = tf.map_fn(lambda row: tf.linalg.matvec(module.w, row), x)
        return {"y": rows, "z": tf.vectorized_map(lambda row: row * module.w[0], x)}

    return function(X_SPEC)(call)


@model()
def custom_gradient(module):
    module.w = weights(4, 3)

    @tf.custom_gradient
    def doubled(x):
        return x * 2, lambda upstream: upstream

    return function(X_SPEC)(lambda x: {"y": doubled(x @ module.w)})


@model()
def deep_calls(module):
    module.w = weights(4, 4)

    def nest(depth):
        if not depth:
            return tf.function(lambda x: x @ module.w)
        inner = nest(depth - 1)
        return tf.function(lambda x: inner(x) + depth)

    return function(X_SPEC)(lambda x: {"y": nest(6)(x)})


@model()
def one_function_two_variables(module):
    module.first, module.second = weights(4, 3), weights(4, 3)

    @tf.function(input_signature=[X_SPEC, tf.TensorSpec([], tf.bool)])
    def pick(x, which):
        return tf.cond(which, lambda: x @ module.first, lambda: x @ module.second)

    return function(X_SPEC)(lambda x: {"y": pick(x, True) - pick(x, False)})


@model()
def static_table(module):
    module.table = tf.lookup.StaticHashTable(
        tf.lookup.KeyValueTensorInitializer(
            [b"a", b"b"], tf.constant([1, 2], tf.int64)
        ),
        default_value=-1,
    )
    module.w = weights(4)

    def call(words):
        return {"ids": module.table.lookup(words), "w": module.w + 0.0}

    return function(WORDS_SPEC)(call)


@model(kept=["AssignVariableOp"])
def vocabulary_file(module):
    path = os.path.abspath("vocabulary.txt")
    with open(path, "w", encoding="utf-8") as file:
        file.write("c\nb\na\n")
    module.table = tf.lookup.StaticVocabularyTable(
        tf.lookup.TextFileInitializer(
            path,
            tf.string,
            tf.lookup.TextFileIndex.WHOLE_LINE,
            tf.int64,
            tf.lookup.TextFileIndex.LINE_NUMBER,
        ),
        num_oov_buckets=2,
    )
    module.embedding = weights(5, 2)

    def call(words):
        return {"y": tf.gather(module.embedding, module.table.lookup(words))}

    return function(WORDS_SPEC)(call)


@model()
def mutable_table(module):
    module.table = tf.lookup.experimental.MutableHashTable(tf.string, tf.float32, -1.0)
    module.table.insert([b"a", b"b"], [10.0, 20.0])

    def call(words):
        return {"y": module.table.lookup(words), "size": module.table.size()}

    return function(WORDS_SPEC)(call)


@model()
def dense_table(module):
    module.table = tf.lookup.experimental.DenseHashTable(
        tf.int32, tf.float32, default_value=-1.0, empty_key=-2, deleted_key=-3
    )
    module.table.insert([0, 3], [10.0, 20.0])
    return function(ID_SPEC)(lambda ids: {"y": module.table.lookup(ids[0])})


@model(kept=["AssignAddVariableOp"])
def counter(module):
    module.count, module.w = tf.Variable(41, dtype=tf.int64), weights(4, 3)

    def call(x):
        return {"count": module.count.assign_add(1), "y": x @ module.w}

    return function(X_SPEC)(call)


@model(kept=["RngReadAndSkip"])
def random_generator(module):
    module.random, module.w = tf.random.Generator.from_seed(7), weights(4, 3)

    def call(x):
        y = x @ module.w
        return {"y": y + module.random.normal(tf.shape(y)), "plain": y}

    return function(X_SPEC)(call)


@model(kept=["AssignAddVariableOp"])
def written_in_loop(module):
    module.count, module.w = tf.Variable(0.0), weights(4, 4)

    def call(x):
        for _ in tf.range(3):
            module.count.assign_add(tf.reduce_sum(x @ module.w))
        return {"count": module.count.read_value(), "y": x @ module.w}

    return function(X_SPEC)(call)


@model(kept=["ResourceScatterUpdate"])
def scatter(module):
    module.memory, module.table = weights(5, 4), weights(5, 4)

    def call(ids):
        seen = tf.gather(module.memory, ids[0])
        module.memory.scatter_update(tf.IndexedSlices(seen + 1.0, ids[0]))
        return {"seen": seen, "y": tf.gather(module.table, ids)}

    return function(ID_SPEC)(call)


@model(kept=["AssignVariableOp"])
def written_by_one_caller(module):
    """One function called with two variables, of which one is written elsewhere."""
    module.state, module.w = weights(4, 4), weights(4, 4)

    @tf.function
    def product(x, w):
        return x @ w

    def call(x):
        y = product(x, module.w) + product(x, module.state)
        module.state.assign(module.state * 0.5)
        return {"y": y}

    return function(X_SPEC)(call)


@model(kept=["MapDataset"])
def dataset_in_function(module):
    module.w, module.scale = weights(4, 4), tf.Variable(3.0)

    def call(x):
        dataset = tf.data.Dataset.range(3).map(
            lambda step: tf.cast(step, tf.float32) * module.scale
        )
        total = dataset.reduce(0.0, lambda old, new: old + new)
        return {"y": x @ module.w + total}

    return function(X_SPEC)(call)


@model()
def signature_without_variables(module):
    module.unused = weights(4, 3)
    return function(X_SPEC)(lambda x: {"y": x * 2.0})


@model()
def many_variables(module):
    module.layers = [weights(4, 4) for _ in range(40)]

    def call(x):
        for layer in module.layers:
            x = tf.tanh(x @ layer)
        return {"y": x}

    return function(X_SPEC)(call)


@model()
def batching(module):
    module.w = weights(4, 3)

    @tf.nondifferentiable_batch_function(1, 8, 10)
    def product(x):
        return x @ module.w

    return function(X_SPEC)(lambda x: {"y": product(x)})


@model()
def compiled(module):
    module.w, module.table = weights(4, 3), weights(5, 3)

    @tf.function(jit_compile=True)
    def product(x):
        return x @ module.w + tf.gather(module.table, [1, 4])

    return function(X_SPEC)(lambda x: {"y": product(x)})


@model(kept=["AssignVariableOp"])
def handle_through_branches(module):
    """One branch writes what the other only reads."""
    module.state, module.w = weights(4, 3), weights(4, 3)

    def call(x):
        def write():
            module.state.assign(module.state + 1.0)
            return x @ module.state

        y = tf.cond(tf.reduce_sum(x) > 1e9, write, lambda: x @ module.state)
        return {"y": y + x @ module.w}

    return function(X_SPEC)(call)
