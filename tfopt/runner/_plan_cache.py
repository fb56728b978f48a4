"""Plans that were measured before: of this process, and in a file on request."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import logging
import os
import platform
import threading
from typing import Any

from tfopt import _json_files, artifacts
from tfopt.runner import _planning
from tfopt.runner._engine import Engine
from tfopt.runner._layout import Layout
from tfopt.runner._model_file import Entry
from tfopt.runner._opening import Opener
from tfopt.runner._options import Options
from tfopt.runner._planning import Plan
from tfopt.runner._tuning import available_cores
from tfopt.types import TfoptError

_FORMAT = "tfopt tuning cache 1"
_MOST = 4096  # workers or threads

_logger = logging.getLogger(__name__)
# A process that opens the same model again measures once.
_plans: dict[tuple, Plan] = {}
_lock = threading.Lock()


def measure_once(
    rule: Plan,
    options: Options,
    entry: Entry,
    layout: Layout,
    opener: Opener,
    limit: int | None,
    engine: Engine,
) -> tuple[Plan, list[Engine]]:
    """Measures, unless the choice is known from this process or from the file.

    Args:
        rule: The plan without measuring.
        options: What was given, the path of the file included.
        entry: The signature.
        layout: How rows may be cut.
        opener: Opens engines.
        limit: The most workers that the memory allows.
        engine: One with the rule's number of threads; it is returned or closed.

    Returns:
        The plan, and engines that fit it.

    Raises:
        TfoptError: The file is something else, or cannot be written.
    """
    path = options.tuning_cache
    cores = available_cores()
    asked = (
        f"workers {options.num_workers}, threads {options.num_threads}, "
        f"batch {options.batch_size}, {opener}, {cores} cores, "
        f"{min(limit or cores, cores)} workers at most"
    )
    key = (opener.source, opener.file.fingerprint, entry.signature.key, asked)
    name = _name(opener.source, entry, asked) if path else ""
    with _lock:
        found = _plans.get(key)
    if path and (kept := load(path, name)) is not None:
        found = kept
    engines = [engine]
    if found is None:
        found, engines = _planning.measure(
            rule, options, entry, layout, opener.open, limit, engine
        )
        _logger.debug("%s", found)  # also in `Runner.plan`
    elif found.num_threads != rule.num_threads:
        engines = []
        engine.close()
    with _lock:
        _plans[key] = found
    if path and found.origin == "measured":
        store(path, name, found)
    return found, engines


def load(path: str, name: str) -> Plan | None:
    """Returns a plan from a file; None if it isn't there, or there is no file.

    Args:
        path: The file.
        name: The name of the entry.

    Raises:
        TfoptError: The file is something else.
    """
    found = _read(path).get(name)
    if found is None:
        return None
    try:
        plan = _json_files.make(Plan, found)
        least = min(plan.num_workers, plan.num_threads, plan.batch_rows or 1)
        if not 1 <= least <= _MOST or max(plan.num_workers, plan.num_threads) > _MOST:
            raise _json_files.Damaged("numbers that no Runner has")
    except _json_files.Damaged as error:
        raise _no_cache(path, f"a damaged entry: {error}") from error
    return dataclasses.replace(plan, origin="cache")


def store(path: str, name: str, plan: Plan) -> None:
    """Adds a plan to a file, which is made if need be.

    Processes that write at once wait for each other, so that no entry gets lost.

    Raises:
        TfoptError: The file is something else, or cannot be written.
    """
    folder = os.path.dirname(os.path.realpath(path))
    artifacts.make_folder(folder)
    with artifacts.locked(folder):
        plans = _read(path)
        plans[name] = plan
        artifacts.write_json(path, {"format": _FORMAT, "plans": plans})


def _name(source: str | bytes, entry: Entry, asked: str) -> str:
    content = artifacts.sha256(source) if isinstance(source, str) else _digest(source)
    library = importlib.metadata.version("ai-edge-litert")
    return (
        f"model {content}, signature {entry.signature.key}, {asked}, {_processor()}, "
        f"ai-edge-litert {library}"
    )


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _read(path: str) -> dict[str, Any]:
    try:
        content = _json_files.read(path)
        if not isinstance(content, dict) or content.get("format") != _FORMAT:
            raise _json_files.Damaged("another format")
        return _json_files.make(dict[str, Any], content.get("plans", {}))
    except FileNotFoundError:
        return {}
    except _json_files.Damaged as error:
        raise _no_cache(path, str(error)) from error


def _no_cache(path: str, what: str) -> TfoptError:
    return TfoptError(
        "Not a tuning cache. Expected a file that a Runner wrote, or a path that is "
        f"free; remove it or choose another. Received: tuning_cache={path!r} ({what})"
    )
