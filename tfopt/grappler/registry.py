"""Which optimizers Grappler knows by name, beside the toggles of RewriterConfig.

`RewriterConfig.optimizers` and `custom_optimizers` take names, and TensorFlow ignores
those that it doesn't know. What it does know it says only in its log, so a child
process with that log switched on is asked about names that aren't listed here.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from tfopt.grappler import child, fields
from tfopt.types import TfoptError

# Name in `optimizers` -> field of RewriterConfig that switches the same optimizer, and
# the value that switches it off (MetaOptimizer::MakeNewOptimizer in TensorFlow's
# core/grappler/optimizers/meta_optimizer.cc).
SWITCHES = {
    "pruning": ("disable_model_pruning", True),
    "function": ("function_optimization", "off"),
    "common_subgraph_elimination": ("common_subgraph_elimination", "off"),
    "debug_stripper": ("debug_stripper", "off"),
    "constfold": ("constant_folding", "off"),
    "shape": ("shape_optimization", "off"),
    "auto_mixed_precision": ("auto_mixed_precision", "off"),
    "auto_mixed_precision_cpu": ("auto_mixed_precision_cpu", "off"),
    "auto_mixed_precision_mkl": ("auto_mixed_precision_mkl", "off"),
    "auto_mixed_precision_onednn_bfloat16": (
        "auto_mixed_precision_onednn_bfloat16",
        "off",
    ),
    "pin_to_host": ("pin_to_host_optimization", "off"),
    "arithmetic": ("arithmetic_optimization", "off"),
    "layout": ("layout_optimizer", "off"),
    "remap": ("remapping", "off"),
    "loop": ("loop_optimization", "off"),
    "dependency": ("dependency_optimization", "off"),
    "memory": ("memory_optimization", "no_mem_opt"),
    "autoparallel": ("auto_parallel", {"enable": False}),
    "scoped_allocator": ("scoped_allocator_optimization", "off"),
}

# They make values of lower precision, on purpose.
REDUCED_PRECISION = frozenset(
    name for name in SWITCHES if name.startswith("auto_mixed_precision")
)

_VERDICT = re.compile(
    r"(Registered default|Registered custom|Can't register).*? optimizer"
    r"(?: by name)?: (\S+)"
)
# Option -> what TensorFlow says of the names that it takes there.
_GOOD = {
    "optimizers": ("Registered default", "Registered custom"),
    "custom_optimizers": ("Registered custom",),
}
_TIMEOUT_S = 120.0
_ANSWERS: dict[str, str] = {}


def check_names(names: Collection[str], option: str) -> None:
    """Checks names of optimizers.

    Args:
        names: For `optimizers` or `custom_optimizers`.
        option: Which of the two, for messages.

    Raises:
        ValueError: TensorFlow knows no such optimizer.
        TfoptError: TensorFlow doesn't tell whether it does.
    """
    verdicts = ask([name for name in names if name not in SWITCHES])
    for name in names:
        if verdicts.get(name, "Registered default") in _GOOD[option]:
            continue
        # The name of the field is the usual mistake.
        fit = [key for key, (field, _) in SWITCHES.items() if field == name]
        listed = f"Expected {fit[0]!r}." if fit else fields.expected(name, SWITCHES)
        if option == "custom_optimizers":
            listed = "Expected a custom optimizer that is registered in TensorFlow"
            listed += "; use `optimizers` for this one." if name in SWITCHES else "."
        raise ValueError(
            "TensorFlow has no such optimizer, and would ignore the name. "
            f"{listed} Received: {option}={list(names)}"
        )


def unknown_names(log: str) -> list[str]:
    """Returns the optimizers that a run of Grappler ignored, from its log."""
    return [name for verdict, name in _VERDICT.findall(log) if verdict[0] == "C"]


def ask(names: Collection[str]) -> dict[str, str]:
    """Returns what TensorFlow says of each name; it is asked once in a process.

    Raises:
        TfoptError: It says nothing.
    """
    new = [name for name in dict.fromkeys(names) if name not in _ANSWERS]
    for name in new:
        if not name or re.search(r"\s", name):
            _ANSWERS[name] = "Can't register"
    new = [name for name in new if name not in _ANSWERS]
    if new:
        jobs = [{"task": "register", "name": name} for name in new]
        outcomes = child.run_all(jobs, timeout_s=_TIMEOUT_S)
        for name, outcome in zip(new, outcomes, strict=True):
            said = {found: verdict for verdict, found in _VERDICT.findall(outcome.log)}
            if name not in said:
                raise TfoptError(
                    "Whether TensorFlow knows an optimizer is unclear, as its log "
                    f"doesn't say. Expected one of: {', '.join(sorted(SWITCHES))}. "
                    f"Received: {name!r} ({outcome})"
                )
            _ANSWERS[name] = said[name]
    return {name: _ANSWERS[name] for name in names}
