"""Prune's arguments: what goes with what, before there is a model."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

from tfopt import masks, schedules
from tfopt._keras import variables
from tfopt.methods import _penalty, _ramp, _scores, _targets


def check(arguments: Mapping[str, Any]) -> None:
    """Raises unless the arguments of `Prune` are valid and go together.

    Args:
        arguments: All of them, by name; a schedule as an object, not as a mapping.

    Raises:
        ValueError: One is not; the message names it.
    """
    if arguments["scope"] not in masks.SCOPES:
        raise ValueError(
            f"`scope` must be one of {masks.SCOPES}. "
            f"Received: scope={arguments['scope']!r}"
        )
    for name in ("include", "exclude"):
        variables.as_patterns(name, arguments[name])
    for name in ("keep_existing_zeros", "strict"):
        if not isinstance(arguments[name], bool):
            raise ValueError(
                f"`{name}` must be True or False. Received: {name}={arguments[name]!r}"
            )
    structure = masks.Structure.parse(arguments["structure"])
    _targets.check_per_layer(arguments["per_layer"], structure)
    check_numbers(arguments)
    _scores.check(arguments["score"], arguments["data"])
    _penalty.check(arguments["sparsity_penalty"])
    _check_rewind(arguments["rewind_step"])
    _check_threshold(arguments, structure)
    _check_schedule(arguments)


def check_numbers(arguments: Mapping[str, Any]) -> None:
    """Raises unless `block_pooling`, `min_density` and `seed` are valid.

    Raises:
        ValueError: One is not; the message names it.
    """
    if arguments["block_pooling"] not in ("avg", "max"):
        raise ValueError(
            '`block_pooling` must be "avg" or "max". '
            f"Received: block_pooling={arguments['block_pooling']!r}"
        )
    density = arguments["min_density"]
    if not isinstance(density, numbers.Real) or not 0 <= float(density) <= 1:
        raise ValueError(
            "`min_density` must be a fraction of kept weights in [0, 1]. "
            f"Received: min_density={density!r}"
        )
    if not isinstance(arguments["seed"], int) or arguments["seed"] < 0:
        raise ValueError(
            f"`seed` must be an integer >= 0. Received: seed={arguments['seed']!r}"
        )


def final_sparsity(arguments: Mapping[str, Any]) -> float | None:
    """Returns the final sparsity, which the structure m:n and schedules may say.

    Args:
        arguments: As for `check`; with a schedule object, the schedule's counts.
    """
    structure = masks.Structure.parse(arguments["structure"])
    if isinstance(arguments["schedule"], schedules.Schedule):
        given: float | None = arguments["schedule"].final_sparsity
    else:
        given = arguments["final_sparsity"]
    idle = arguments["keep_existing_zeros"] or arguments["threshold"] is not None
    return given if given is None and idle else implied_sparsity(given, structure)


def implied_sparsity(given: float | None, structure: masks.Structure) -> float | None:
    """Returns the final sparsity, which is that of the structure if that is m:n.

    Raises:
        ValueError: Another one is given with m:n.
    """
    if structure.kind != "m:n":
        return given
    if given is not None and not math.isclose(given, structure.limit, abs_tol=1e-3):
        raise ValueError(
            f"The sparsity must be {structure.limit:.4g}, which the structure "
            f'"{structure.first}:{structure.second}" means, or be left out. '
            f"Received: sparsity={given!r}"
        )
    return structure.limit


def _check_threshold(arguments: Mapping[str, Any], structure: masks.Structure) -> None:
    threshold = arguments["threshold"]
    if threshold is None:
        return
    if not isinstance(threshold, numbers.Real) or not 0 < float(threshold) < math.inf:
        raise ValueError(
            f"`threshold` must be a number > 0. Received: threshold={threshold!r}"
        )
    if structure.kind == "m:n":
        raise ValueError(
            "`threshold` must not be given: the structure m:n says how many zeros "
            f"there are. Received: threshold={threshold!r}"
        )
    if arguments["score"] != "magnitude":
        raise ValueError(
            '`score` must be "magnitude" with a threshold. '
            f"Received: score={arguments['score']!r}"
        )
    for name in ("per_layer", "rewind_step"):
        if arguments[name] is not None:
            raise ValueError(
                f"`{name}` must not be given: with a threshold no sparsity is final. "
                f"Received: {name}={arguments[name]!r}"
            )


def _check_rewind(step: Any) -> None:
    if step is not None and (not isinstance(step, int) or step < 0):
        raise ValueError(
            f"`rewind_step` must be a step >= 0. Received: rewind_step={step!r}"
        )


def _check_schedule(arguments: Mapping[str, Any]) -> None:
    given = {
        "final_sparsity": arguments["final_sparsity"] is not None,
        "initial_sparsity": arguments["initial_sparsity"] != 0,
        "begin_step": arguments["begin_step"] != 0,
        "end_step": arguments["end_step"] is not None,
        "frequency": arguments["frequency"] is not None,
        "power": arguments["power"] != 3,
    }
    schedule, final = arguments["schedule"], final_sparsity(arguments)
    idle: Sequence[str] = list(given)
    if isinstance(schedule, schedules.Schedule):
        why = "the schedule object says it"
        if arguments["threshold"] is not None:
            raise ValueError(
                "`schedule` must not be an object: with a threshold there is no "
                f"sparsity to follow. Received: schedule={schedule!r}"
            )
    elif schedule not in ("polynomial", "constant"):
        raise ValueError(
            '`schedule` must be "polynomial", "constant" or an object of '
            f"tfopt.schedules. Received: schedule={schedule!r}"
        )
    elif arguments["threshold"] is not None:
        why = "a threshold stands instead of a sparsity"
        idle = ["final_sparsity", "initial_sparsity", "power"]
        make(arguments, 0.0, arguments["begin_step"], arguments["end_step"])
    elif final is None and arguments["per_layer"] is None:
        why = "without `final_sparsity` there is no schedule"
        if not arguments["keep_existing_zeros"]:
            raise ValueError(
                "`final_sparsity` must be given, unless with a schedule object, "
                "`per_layer`, `threshold` or keep_existing_zeros=True. "
                "Received: final_sparsity=None"
            )
    else:
        why = "a constant schedule has none"
        idle = ["initial_sparsity", "power"] if schedule == "constant" else []
        end_step = arguments["end_step"]
        if end_step is None and schedule == "polynomial":
            end_step = 2**63  # any valid one: its time has not come
        make(arguments, highest(arguments), arguments["begin_step"], end_step)
    for name in idle:
        if given[name]:
            raise ValueError(
                f"`{name}` must not be given: {why}. "
                f"Received: {name}={arguments[name]!r}"
            )


def highest(arguments: Mapping[str, Any]) -> float:
    """Returns the highest final sparsity of a layer."""
    final = final_sparsity(arguments)
    others = (arguments["per_layer"] or {}).values()
    return max([*others, *([] if final is None else [final])], default=0.0)


def make(
    arguments: Mapping[str, Any], final: float, begin_step: int, end_step: int | None
) -> schedules.Schedule:
    """Makes the schedule that the arguments describe, of a begin and an end step."""
    kind = "constant" if arguments["threshold"] is not None else arguments["schedule"]
    return _ramp.make(
        kind,
        final_sparsity=final,
        initial_sparsity=arguments["initial_sparsity"],
        begin_step=begin_step,
        end_step=end_step,
        power=arguments["power"],
        frequency=arguments["frequency"],
    )
