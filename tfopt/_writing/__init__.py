"""Writing files so that kill -9, a full disk or another tool never leaves a mix.

`_sets` is what others use, through `tfopt.artifacts`: it writes beside the output and
then puts one or several files in place. `_claims` makes temporary folders that belong
to a process and removes those of dead ones, `_locks` keeps processes apart,
`_replacing` does the last step, `_errors` words what the system says.

What holds: each file or directory is at any moment the old or the whole new one. Of
several files that belong together, all are complete before the first is put in place;
a process that is killed in between leaves a note, by which the next one that writes
any of them completes the rest.
"""

from tfopt._writing._claims import temporary_folder
from tfopt._writing._locks import locked, work_lock
from tfopt._writing._sets import (
    AtomicSet,
    atomic_path,
    atomic_set,
    make_folder,
    prepare,
    remove,
)

__all__ = [
    "AtomicSet",
    "atomic_path",
    "atomic_set",
    "locked",
    "make_folder",
    "prepare",
    "remove",
    "temporary_folder",
    "work_lock",
]
