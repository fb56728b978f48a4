"""All readers that are fuzzed, by name."""

import importlib
import typing

# Name -> module and class.
NAMES = {
    "saved_model": "graph_files:SavedModelReader",
    "graph": "graph_files:GraphReader",
    "transform": "graph_files:TransformReader",
    "inspect_graph": "graph_files:InspectReader",
    "index": "checkpoint_files:IndexReader",
    "shards": "checkpoint_files:ShardReader",
    "slim_checkpoint": "checkpoint_files:SlimReader",
    "tflite": "tflite_files:TfliteReader",
    "runner": "tflite_files:RunnerReader",
    "npz": "array_files:ArrayReader",
    "recipe": "json_files:RecipeReader",
    "json": "json_files:JsonReader",
    "archive": "archive_files:ArchiveReader",
    "keras": "archive_files:KerasReader",
    "flags": "flags:FlagsReader",
}
# Deliberately wrong, to see that the driver notices.
BROKEN = ("raises", "nameless", "hangs", "grows", "allocates", "aborts")


class Reader(typing.Protocol):
    """What reads one kind of file."""

    def mutate(self, rng):
        """Writes a damaged file; returns what `read` takes."""

    def read(self, given):
        """Reads it."""

    def names(self, given):
        """Returns texts of which an error must have one."""


def find(name):
    """Returns the class of a reader; made with folders for samples and for cases."""
    module, colon, cls = NAMES.get(name, f"broken:{name.title()}").partition(":")
    del colon
    return getattr(importlib.import_module(f"fuzz.{module}"), cls)
