"""TF1 checkpoints by `tf.train.Saver`: which tensors are weights.

They hold bare names. Slots of optimizers are named after their variable:
`dense/kernel/Adam` belongs to `dense/kernel`. The graph beside the checkpoint
(`.meta`), if there is one, says which variables are trainable.

Reference:
    TensorFlow `python/training/slot_creator.py`; `core/framework/variable.proto`.
"""

from __future__ import annotations

import os
import re

from tfopt.savedmodel import protos, reader
from tfopt.savedmodel.bundle import BundleReader

_TRAINABLE = "trainable_variables"
_STEP = re.compile(r"(.*/)?(global_step|beta[12]_power(_\d+)?)")
_AVERAGE = "ExponentialMovingAverage"  # these are weights for inference


def trainable_names(prefix: str) -> set[str] | None:
    """Returns the names in the collection `trainable_variables` of the graph.

    Partitioned variables appear by the name of the whole.

    Args:
        prefix: Path of the checkpoint without suffix.

    Returns:
        The names; `None` without a `.meta` file, or without that collection in it.

    Raises:
        TfoptError: The `.meta` file is damaged.
    """
    path = prefix + ".meta"
    if not os.path.isfile(path):
        return None
    meta = reader.read_message(path, "MetaGraphDef")
    if _TRAINABLE not in meta.collection_def:
        return None
    names = set()
    for data in meta.collection_def[_TRAINABLE].bytes_list.value:
        variable = protos.message_class("VariableDef").FromString(data)
        whole = variable.save_slice_info_def.full_name
        names.add(whole or variable.variable_name.rsplit(":", 1)[0])
    return names


def optimizer_keys(found: BundleReader, trainable: set[str] | None) -> list[str]:
    """Returns the tensors that only training needs: slots, powers, the step.

    A slot is named `<other tensor>/<slot>` and has that tensor's shape, or is smaller
    (factored moments). A variable known as trainable is no slot.
    """
    keys = found.keys()
    return [
        key
        for key in keys
        if key not in (trainable or ())
        and (
            (_STEP.fullmatch(key) and found.entry(key).shape == ())
            or _is_slot(key, found)
        )
    ]


def _is_slot(key: str, found: BundleReader) -> bool:
    owner, _, last = key.rpartition("/")
    # Slots of nested optimizers: "kernel/adam/m" belongs to "kernel", too.
    while owner and owner not in found:
        owner = owner.rpartition("/")[0]
    if not owner or last.startswith(_AVERAGE):
        return False
    slot, whole = found.entry(key).shape, found.entry(owner).shape
    return slot == whole or (len(slot) <= len(whole) and set(slot) <= {*whole, 1})
