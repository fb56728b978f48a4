"""SavedModels and GraphDefs: damaged fields, edges, functions and bytes."""

import shutil

from fuzz import bits, messages, samples

OPERATIONS = (
    *("Const", "Placeholder", "Identity", "VarHandleOp", "ReadVariableOp", "Nonsense"),
    *("PartitionedCall", "StatefulPartitionedCall", "While", "If", "Merge", "Switch"),
    *("NextIteration", "MatMul", "Conv2D", "Reshape", "VariableV2", "RestoreV2"),
    *("FusedBatchNormV3", "NoOp", "Assert", "IteratorGetNext", "Case", "Enter"),
)


def damage_graph(rng, graph):
    """Changes what makes a graph: edges, names, operations and functions."""
    bodies = [graph.node, *(f.node_def for f in graph.library.function)]
    bodies = [body for body in bodies if len(body)]
    functions = [f.signature.name for f in graph.library.function]
    names = [node.name for body in bodies for node in list(body)[:40]]
    texts = (*names, *functions, *OPERATIONS)
    if not bodies or rng.random() < 0.3:
        messages.damage(rng, graph, texts or bits.TEXTS)
        return
    for _ in range(rng.choice((1, 1, 2, 5))):
        body = rng.choice(bodies)
        if not len(body):  # its last node is gone
            continue
        node = body[rng.randrange(len(body))]
        other = body[rng.randrange(len(body))]
        _damage_node(rng, body, node, other, texts, functions, graph)


def _damage_node(rng, body, node, other, texts, functions, graph):
    kind = rng.randrange(11)
    if kind == 0 and node.input:  # often a cycle
        suffix = rng.choice(("", ":0", ":1", ":7", ":output:0", ":y:3", ":-1", ":x"))
        node.input[rng.randrange(len(node.input))] = other.name + suffix
    elif kind == 1:
        node.input.append(rng.choice(("^", "")) + rng.choice(texts))
    elif kind == 2 and node.input:
        del node.input[rng.randrange(len(node.input)) :]
    elif kind == 3:
        node.name = other.name
    elif kind == 4:
        node.op = rng.choice((*OPERATIONS, *functions))
    elif kind == 5 and functions:  # recursion, or one that is not there
        name = rng.choice((*functions, "missing"))
        key = rng.choice([*node.attr, "f", "body", "cond", "then_branch"])
        node.attr[key].func.name = name
    elif kind == 6:
        body.remove(node)
    elif kind == 7 and "value" in node.attr:
        tensor = node.attr["value"].tensor
        tensor.tensor_shape.dim.add(size=bits.integer(rng, 63))
    elif kind == 8:
        for attr in node.attr.values():
            messages.damage(rng, attr, texts)
    elif kind == 9 and functions:
        messages.damage(rng, rng.choice(graph.library.function), texts)
    else:
        messages.damage(rng, node, texts)


class _Messages:
    """Makes damaged files of one kind of message."""

    def __init__(self, folder, work):
        from tfopt.savedmodel import protos

        self._cls = protos.message_class
        self._folder, self._work = folder, work

    def _damaged(self, rng, data, kind, graphs_of):
        choice = rng.random()
        if choice < 0.15:
            return messages.damage_wire(rng, data)
        if choice < 0.2:
            return bits.damage(rng, data)
        message = self._cls(kind).FromString(data)
        if choice < 0.4:
            messages.damage(rng, message)
        else:
            for graph in graphs_of(message):
                damage_graph(rng, graph)
        return message.SerializeToString()

    def names(self, given):
        return [str(given)]


class SavedModelReader(_Messages):
    """`saved_model.pb`: reading, signatures, the skeleton, and freezing it."""

    def __init__(self, folder, work):
        super().__init__(folder, work)
        self._model = work / "model"
        shutil.copytree(folder / "saved_model", self._model)
        self._file = self._model / "saved_model.pb"
        self._content = self._file.read_bytes()
        self._large = (samples.BASIC_PITCH / "saved_model/saved_model.pb").read_bytes()
        from tfopt import freezing
        from tfopt.savedmodel import graphs, reader, wire

        self._freezing, self._reader, self._wire = freezing, reader, wire
        self._graphs = graphs

    def mutate(self, rng):
        if rng.random() < 0.005:
            content = messages.damage_wire(rng, self._large)
        else:
            content = self._damaged(
                rng,
                self._content,
                "SavedModel",
                lambda message: [meta.graph_def for meta in message.meta_graphs],
            )
        self._file.write_bytes(content)
        return self._model

    def read(self, given):
        self._wire.read_skeleton(given / "saved_model.pb", "SavedModel", limit=64)
        message = self._reader.read_saved_model(given)
        meta = self._reader.select_meta_graph(message, None, given)
        signatures = self._reader.select_signatures(meta, None, str(given))
        with self._graphs.errors_of(given):  # as all that calls it does
            for key, signature in signatures.items():
                self._reader.signature_of(key, signature)
        self._freezing.freeze(given, self._work / "frozen.pb", verify="structure")


class GraphReader(_Messages):
    """GraphDef files, binary and text: reading, the skeleton, and freezing."""

    def __init__(self, folder, work):
        super().__init__(folder, work)
        self._contents = {
            name: (folder / f"{name}.pb").read_bytes()
            for name in ("plain", "functions")
        }
        self._outputs = {
            name: outputs_of(self._cls("GraphDef").FromString(content))
            for name, content in self._contents.items()
        }
        self._text = (folder / "plain.pbtxt").read_bytes()
        from tfopt import freezing
        from tfopt.savedmodel import reader, wire

        self._freezing, self._reader, self._wire = freezing, reader, wire

    def mutate(self, rng):
        name = rng.choice(sorted(self._contents))
        if name == "plain" and rng.random() < 0.2:
            path = self._work / "graph.pbtxt"
            path.write_bytes(self._damaged_text(rng))
        else:
            path = self._work / "graph.pb"
            content = self._contents[name]
            path.write_bytes(
                self._damaged(rng, content, "GraphDef", lambda graph: [graph])
            )
        return path, self._outputs[name]

    def _damaged_text(self, rng):
        if rng.random() < 0.1:
            return b"node {\n" * rng.choice((20, 5000))
        lines = self._text.split(b"\n")
        for _ in range(rng.choice((1, 3))):
            at, other = rng.randrange(len(lines)), rng.randrange(len(lines))
            kind = rng.randrange(4)
            if kind == 0:
                del lines[at]
            elif kind == 1:
                lines.insert(at, lines[other])
            elif kind == 2:
                lines[at] = bits.damage(rng, lines[at])
            else:
                head = lines[at].split(b":")[0]
                value = rng.choice((*map(str, bits.INTEGERS), '"x"', "nan", "{", "[1]"))
                lines[at] = head + b": " + value.encode()
        return b"\n".join(lines)

    def names(self, given):
        return [str(given[0])]

    def read(self, given):
        path, outputs = given
        if path.suffix == ".pb":
            self._wire.read_skeleton(path, "GraphDef", limit=64)
        self._reader.read_message(path, "GraphDef")
        target = self._work / "frozen.pb"
        self._freezing.freeze(
            path, target, output_node_names=outputs, verify="structure"
        )


class TransformReader(GraphReader):
    """`transform_graph` on damaged graphs."""

    STEPS = (
        *("strip_unused_nodes", "remove_nodes(op=Identity)", "merge_duplicate_nodes"),
        *("sort_by_execution_order", "fold_batch_norms", "remove_device"),
        *("quantize_weights(minimum_size=1)", "round_weights(num_steps=16)"),
        *("sink_constants", "remove_control_dependencies", "obfuscate_names"),
        *("inline_functions", "fuse_pad_and_conv", "flatten_atrous_conv"),
        *("remove_attribute(attribute_name=T)", "prune_weights(sparsity=0.5)"),
    )

    def __init__(self, folder, work):
        super().__init__(folder, work)
        import tensorflow  # noqa: F401 (before memory is limited)

        from tfopt import transforms

        self._transform = transforms.transform_graph

    def mutate(self, rng):
        return *super().mutate(rng), rng.sample(self.STEPS, 2)

    def read(self, given):
        path, outputs, steps = given
        self._transform(
            path, self._work / "out.pb", steps, outputs=outputs, verify="structure"
        )


class InspectReader(GraphReader):
    """`inspect` of damaged graphs, for which TensorFlow finds the shapes."""

    def __init__(self, folder, work):
        super().__init__(folder, work)
        import tensorflow  # noqa: F401 (before memory is limited)

        from tfopt import inspection

        self._inspect = inspection.inspect

    def read(self, given):
        self._inspect(given[0])


def outputs_of(graph):
    """Returns the nodes that feed nothing."""
    fed = {name.split(":")[0].strip("^") for node in graph.node for name in node.input}
    return [node.name for node in graph.node if node.name not in fed][:4]
