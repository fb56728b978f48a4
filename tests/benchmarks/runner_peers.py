"""Other runtimes on the same models, for runner_benchmark.py: extra [benchmark]."""

import itertools
import threading

import numpy as np


def onnx_of(model, *specs):
    """Returns the ONNX file of a Keras model."""
    import tensorflow as tf
    import tf2onnx

    function = tf.function(lambda *inputs: model(*inputs, training=False))
    proto, _ = tf2onnx.convert.from_function(function, list(specs), opset=17)
    return proto.SerializeToString()


def onnx_of_tflite(path):
    """Returns the ONNX file of a `.tflite` model, quantized operators as QDQ."""
    import tf2onnx

    proto, _ = tf2onnx.convert.from_tflite(str(path), opset=17)
    return proto.SerializeToString()


def onnxruntime_of(content, images, batch, *, sessions, threads):
    """ONNX Runtime: several sessions, each with its thread, share the batches."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    workers = [
        onnxruntime.InferenceSession(
            content, options, providers=["CPUExecutionProvider"]
        )
        for _ in range(sessions)
    ]
    name = workers[0].get_inputs()[0].name

    def run():
        outputs = [None] * -(-len(images) // batch)
        turn = itertools.count()

        def work(session):
            while (index := next(turn)) < len(outputs):
                piece = images[index * batch : (index + 1) * batch]
                outputs[index] = session.run(None, {name: piece})[0]

        others = [threading.Thread(target=work, args=(w,)) for w in workers[1:]]
        for thread in others:
            thread.start()
        work(workers[0])
        for thread in others:
            thread.join()
        return np.concatenate(outputs)

    return run


def openvino_of(path, images, batch, **config):
    """OpenVINO in its throughput mode: as many requests in flight as it likes."""
    import openvino

    core = openvino.Core()
    model = core.read_model(str(path))
    shape = [batch, *images.shape[1:]]
    model.reshape({model.inputs[0]: shape})
    settings = {"PERFORMANCE_HINT": "THROUGHPUT", **config}
    compiled = core.compile_model(model, "CPU", settings)
    queue = openvino.AsyncInferQueue(compiled)
    results = None

    def keep(request, place):
        start, rows = place
        results[start : start + rows] = request.get_output_tensor(0).data[:rows]

    queue.set_callback(keep)
    out = compiled.outputs[0]
    kind = out.element_type.to_dtype()

    def run():
        nonlocal results
        results = np.empty((len(images), *list(out.shape)[1:]), kind)
        for start in range(0, len(images), batch):
            piece = images[start : start + batch]
            rows = len(piece)
            if rows < batch:
                piece = np.concatenate([piece, np.repeat(piece[-1:], batch - rows, 0)])
            queue.start_async({0: piece}, (start, rows))
        queue.wait_all()
        return results

    return run
