"""Writing a slim checkpoint: casting, and data and index that appear together."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np

from tfopt import artifacts
from tfopt.checkpoint import objects
from tfopt.checkpoint.plan import METADATA_KEY, Item, Metadata, Plan, stored
from tfopt.savedmodel import dtypes
from tfopt.savedmodel.bundle import BundleReader
from tfopt.savedmodel.bundle_writing import BundleWriter
from tfopt.types import Artifact, TfoptError

StoredDtype = Literal["float32", "float16", "bfloat16"]

_DATA = re.compile(r"\.data-\d{5}-of-\d{5}")
_WIDE = ("float", "double")
# gzip and digest of more bytes take far longer than writing them.
_MEASURE_UP_TO = 1 << 27
_CHUNK = 1 << 20


def write(plan: Plan, output: str, *, keep: str, dtype: StoredDtype) -> dict[str, Any]:
    """Writes what a plan lists; returns counts and findings.

    Raises:
        TfoptError: The source is damaged, or the output cannot be written.
    """
    in_full: dict[str, str] = {}
    entries = []
    with _atomic_writer(output) as writer:
        for item in plan.items:
            value, reason = _content(plan, item, dtype)
            number = item.dtype if value is None else dtypes.from_numpy(value.dtype)
            if reason:
                in_full[item.name] = reason
            if value is not None:
                writer.add(item.key, value, dtype=number)
            elif plan.reader is not None:
                writer.copy(plan.reader, item.key)
            entries.append(stored(item, number))
        if plan.graph is not None:
            keys = [item.key for item in plan.items]
            graph = objects.keep_only(plan.graph, keys)
            writer.add(objects.GRAPH_KEY, _string(graph.SerializeToString()))
        metadata = Metadata(plan.kind, keep, plan.model_weights, tuple(entries))
        writer.add(METADATA_KEY, _string(metadata.to_text().encode()))
    return {
        "source": plan.kind,
        "keep": keep,
        "dtype": dtype,
        "tensors": len(entries),
        "converted": sum(entry.dtype != entry.stored_dtype for entry in entries),
        "kept_in_full": in_full,
        "dropped": {reason: len(keys) for reason, keys in plan.dropped.items()},
    }


def describe(
    prefix: str, *, details: dict[str, Any], source: str, measure: bool = True
) -> Artifact:
    """Returns the Artifact of a checkpoint: sizes and digest over all its files."""
    paths = files(prefix)
    size = sum(artifacts.raw_size(path) for path in paths)
    measure = measure and size <= _MEASURE_UP_TO
    digest = hashlib.sha256()
    for path in paths if measure else ():
        # By suffix, so that the digest doesn't depend on the checkpoint's name.
        suffix = path.removeprefix(prefix)
        digest.update(f"{suffix}\0{artifacts.sha256(path)}\n".encode())
    return Artifact(
        path=prefix,
        format="checkpoint",
        size_bytes=size,
        gzip_bytes=sum(map(artifacts.gzip_size, paths)) if measure else None,
        sha256=digest.hexdigest() if measure else None,
        history=({"operation": "slim_checkpoint", "source": source},),
        details=details,
    )


def files(prefix: str) -> list[str]:
    """Returns the paths of the index and of all data files of a checkpoint."""
    path = pathlib.Path(prefix)
    found = [
        str(entry)
        for entry in path.parent.glob("*")
        if _is_part(entry.name, path.name) and entry.is_file()
    ]
    return sorted(found, key=lambda name: (not name.endswith(".index"), name))


def remove(prefix: str) -> None:
    """Removes a checkpoint: its index first, so that it is never seen in part."""
    for path in files(prefix):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def _is_part(name: str, prefix: str) -> bool:
    suffix = name.removeprefix(prefix)
    return suffix != name and (
        suffix == ".index" or _DATA.fullmatch(suffix) is not None
    )


@contextlib.contextmanager
def _atomic_writer(prefix: str) -> Iterator[BundleWriter]:
    """Yields a writer whose checkpoint replaces the one at `prefix` on success.

    The rename of the index is the switch. Until then, the old index and its data files
    stand untouched: the new data file announces another number of shards than the old
    one, so that its name differs.
    """
    index = prefix + ".index"
    if os.path.islink(index):
        raise TfoptError(
            "Cannot replace a checkpoint through a symbolic link. Expected the path of "
            f"the files themselves. Received: path={prefix!r}"
        )
    shards = _free_shards(prefix)
    fresh = [f"{prefix}.data-{i:05d}-of-{shards:05d}" for i in range(shards)]
    with contextlib.ExitStack() as stack, artifacts.atomic_path(index) as temporary:
        inner = str(temporary).removesuffix(".index")
        with BundleWriter(inner, num_shards=shards) as writer:
            yield writer
        parts = [inner + path.removeprefix(prefix) for path in fresh]
        for part in parts:
            pathlib.Path(part).touch()
            with open(part, "rb") as file:
                os.fsync(file.fileno())
        # Until the index is in place, which is when the block of `temporary` ends.
        stack.enter_context(artifacts.locked(temporary.parent.parent))
        if _free_shards(prefix) != shards:
            raise TfoptError(
                "Another process has written the checkpoint meanwhile, which stays. "
                f"Expected to be the only one; run again. Received: path={prefix!r}"
            )
        stack.enter_context(_without_leftovers(prefix, fresh))
        for part, path in zip(parts, fresh, strict=True):
            os.replace(part, path)


@contextlib.contextmanager
def _without_leftovers(prefix: str, fresh: list[str]) -> Iterator[None]:
    """Removes data files that the index doesn't know; of a failure only the fresh."""
    done = False
    try:
        yield
        done = True
    finally:
        known = f"-of-{_num_shards(prefix):05d}"
        for path in files(prefix):
            is_data = not path.endswith((".index", known))
            if is_data and (done or path in fresh):
                os.unlink(path)


def _free_shards(prefix: str) -> int:
    """Returns a number of data files that the checkpoint at `prefix` doesn't have."""
    return 2 if _num_shards(prefix) == 1 else 1


def _num_shards(prefix: str) -> int:
    """Returns the number of data files at `prefix`, 0 if there is no checkpoint."""
    if not os.path.exists(prefix + ".index"):
        return 0
    try:
        return BundleReader(prefix).num_shards
    except TfoptError:
        # Damaged, so unreadable anyway; nobody loses by either choice.
        return 0


def _content(
    plan: Plan, item: Item, dtype: StoredDtype
) -> tuple[np.ndarray | None, str]:
    """Returns what to write, `None` to copy it; and why a tensor isn't cast."""
    wide = dtypes.name_of(item.dtype) in _WIDE
    if item.value is None and (dtype == "float32" or not wide):
        return None, ""
    if item.value is None:
        if plan.reader is None:
            raise TfoptError(f"No source for {item.name}; this is a bug in tfopt.")
        value = plan.reader.read(item.key)
    else:
        value = item.value()
    if dtype == "float32" or not wide:
        return value, ""
    return _narrow(value, dtype)


def _narrow(value: np.ndarray, dtype: StoredDtype) -> tuple[np.ndarray, str]:
    """Casts to 16 bits, unless the values leave the range of the type.

    float16 holds magnitudes up to 65504, and below 6.1e-5 it loses digits.
    """
    if dtype == "float16":
        kind: Any = np.dtype(np.float16)
        smallest = float(np.finfo(np.float16).tiny)
    else:
        import ml_dtypes

        kind = np.dtype(ml_dtypes.bfloat16)
        smallest = float(ml_dtypes.finfo(ml_dtypes.bfloat16).tiny)
    cast = np.empty(value.shape, kind)
    source, target = value.reshape(-1), cast.reshape(-1)
    largest, overflows = 0.0, False
    for start in range(0, source.size, _CHUNK):
        # By chunks, so that a large table takes no third copy.
        part = source[start : start + _CHUNK]
        finite = np.isfinite(part)
        with np.errstate(over="ignore", under="ignore"):
            narrow = part.astype(kind)
        target[start : start + _CHUNK] = narrow
        overflows |= bool((np.isinf(narrow) & finite).any())
        largest = max(largest, float(np.max(np.abs(part), where=finite, initial=0)))
    if overflows:
        return value, f"values up to {largest:.4g} are beyond {dtype}"
    if 0 < largest < smallest:
        return value, f"all values, up to {largest:.4g}, are too small for {dtype}"
    return cast, ""


def _string(data: bytes) -> np.ndarray:
    array = np.empty((), object)
    array[()] = data
    return array
