"""Sparsity schedules: training step -> fraction of zero weights.

A schedule answers two questions: which sparsity belongs to a step (calling it) and at
which steps the masks are computed anew (`updates_at`, `last_update`, `next_update`).
The values are those of TFMOT's schedules of the same names. Three things are done
better than there: the masks are always updated at `end_step`, also when it is not on
the `frequency` grid; `begin_step == end_step` is an error (TFMOT: NaN); and a config
round trip gives back an equal schedule.

Steps are optimizer steps. Step `t` is the state after `t` weight updates, so step 0 is
the untrained model. Sparsities are fractions in [0, 1).
"""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Mapping
from typing import Any


class _Schedule:
    """What the schedules share: which steps update the masks, and configs."""

    begin_step: int
    end_step: int | None
    frequency: int

    def updates_at(self, step: int) -> bool:
        """Returns whether the masks are computed anew at `step`.

        That is every `frequency` steps from `begin_step` on, and at `end_step`.
        """
        return self.last_update(step) == step

    def last_update(self, step: int) -> int | None:
        """Returns the last step <= `step` that updates the masks, or None."""
        if step < self.begin_step:
            return None
        if self.end_step is not None and step >= self.end_step:
            return self.end_step
        return step - (step - self.begin_step) % self.frequency

    def next_update(self, step: int) -> int | None:
        """Returns the first step > `step` that updates the masks, or None."""
        if step < self.begin_step:
            return self.begin_step
        grid = step + self.frequency - (step - self.begin_step) % self.frequency
        if self.end_step is None:
            return grid
        return min(grid, self.end_step) if step < self.end_step else None

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments as a dictionary of plain values."""
        return dataclasses.asdict(self)  # type: ignore[call-overload]

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Any:
        """Makes a schedule from `get_config`'s dictionary."""
        return cls(**config)


@dataclasses.dataclass(frozen=True)
class ConstantSparsity(_Schedule):
    """The same sparsity from `begin_step` on.

    Args:
        final_sparsity: Fraction of zero weights, in [0, 1).
        begin_step: First step at which masks are computed.
        end_step: Last step at which masks are computed; later they stay as they
            are. `None` (default): there is no last one.
        frequency: Masks are computed every `frequency` steps.

    Raises:
        ValueError: A value is out of range; the message names it.

    Example:
        >>> schedule = ConstantSparsity(0.5, begin_step=100)
        >>> schedule(250), schedule.updates_at(99), schedule.updates_at(100)
        (0.5, False, True)
    """

    final_sparsity: float
    begin_step: int = 0
    end_step: int | None = None
    frequency: int = 100

    def __post_init__(self) -> None:
        _check_sparsity("final_sparsity", self.final_sparsity)
        _check_steps(self.begin_step, self.end_step, self.frequency)

    def __call__(self, step: int) -> float:
        """Returns the sparsity at `step`, which is in force from `begin_step` on."""
        del step
        return float(self.final_sparsity)


@dataclasses.dataclass(frozen=True)
class PolynomialDecay(_Schedule):
    """A sparsity that grows fast at first, then ever slower, up to the final one.

    With `p = (step - begin_step) / (end_step - begin_step)`, clipped to [0, 1]:

        sparsity = final_sparsity
                   + (initial_sparsity - final_sparsity) * (1 - p) ** power

    Args:
        initial_sparsity: Fraction of zero weights at `begin_step`, in [0, 1).
        final_sparsity: Fraction of zero weights from `end_step` on, in [0, 1).
        begin_step: First step at which masks are computed.
        end_step: Step of the final sparsity, after which masks stay as they are.
        power: Exponent, > 0; 1 is a straight line.
        frequency: Masks are computed every `frequency` steps, and at `end_step`.

    Raises:
        ValueError: A value is out of range; the message names it.

    Reference:
        Zhu and Gupta, "To prune, or not to prune", equation (1),
        https://arxiv.org/abs/1710.01878; TFMOT's `PolynomialDecay`.

    Example:
        >>> schedule = PolynomialDecay(0.5, 0.8, begin_step=0, end_step=150)
        >>> [round(schedule(step), 4) for step in (0, 75, 150)]
        [0.5, 0.7625, 0.8]
        >>> [step for step in range(200) if schedule.updates_at(step)]
        [0, 100, 150]
    """

    initial_sparsity: float
    final_sparsity: float
    begin_step: int
    end_step: int
    power: float = 3
    frequency: int = 100

    def __post_init__(self) -> None:
        _check_sparsity("initial_sparsity", self.initial_sparsity)
        _check_sparsity("final_sparsity", self.final_sparsity)
        if self.initial_sparsity > self.final_sparsity:
            raise ValueError(
                "`initial_sparsity` must not be above `final_sparsity`: pruned "
                "weights do not grow back. "
                f"Received: initial_sparsity={self.initial_sparsity}, "
                f"final_sparsity={self.final_sparsity}"
            )
        if self.end_step is None:
            raise ValueError("`end_step` must be a step. Received: end_step=None")
        _check_steps(self.begin_step, self.end_step, self.frequency)
        if not isinstance(self.power, numbers.Real) or not float(self.power) > 0:
            raise ValueError(f"`power` must be > 0. Received: power={self.power!r}")

    def __call__(self, step: int) -> float:
        """Returns the sparsity at `step`, which is in force from `begin_step` on."""
        length = self.end_step - self.begin_step
        progress = min(1.0, max(0.0, (step - self.begin_step) / length))
        drop = self.initial_sparsity - self.final_sparsity
        return float(self.final_sparsity + drop * (1 - progress) ** self.power)


Schedule = ConstantSparsity | PolynomialDecay

_CLASSES = {cls.__name__: cls for cls in (ConstantSparsity, PolynomialDecay)}


def serialize(schedule: Schedule) -> dict[str, Any]:
    """Returns a schedule as plain values, for JSON.

    Example:
        >>> serialize(ConstantSparsity(0.5))["class_name"]
        'ConstantSparsity'
    """
    return {"class_name": type(schedule).__name__, "config": schedule.get_config()}


def deserialize(data: Mapping[str, Any]) -> Schedule:
    """Makes a schedule from what `serialize` returned.

    Raises:
        ValueError: The class is unknown or the mapping has another form.
    """
    if set(data) != {"class_name", "config"} or data["class_name"] not in _CLASSES:
        raise ValueError(
            'A schedule as a mapping has the keys "class_name", one of '
            f'{sorted(_CLASSES)}, and "config". Received: schedule={dict(data)!r}'
        )
    return _CLASSES[data["class_name"]].from_config(data["config"])


def adapt(schedule: Any) -> Any:
    """Returns a schedule of TFMOT, or one as a mapping, as one of this module.

    Anything else is returned as it is. TFMOT itself isn't imported: its schedules are
    known by their class.

    Raises:
        ValueError: The schedule is of a class that tfopt lacks, or its values are not
            valid here.

    Example:
        >>> adapt("polynomial")
        'polynomial'
    """
    if isinstance(schedule, Mapping):
        return deserialize(schedule)
    if not type(schedule).__module__.startswith("tensorflow_model_optimization."):
        return schedule
    data = schedule.get_config()
    config = dict(data["config"])
    if data["class_name"] == "ConstantSparsity":
        config["final_sparsity"] = config.pop("target_sparsity")
    if config.get("end_step") == -1:  # TFMOT's way to say: never
        config["end_step"] = None
    return deserialize({"class_name": data["class_name"], "config": config})


def default_end_step(begin_step: int, last_step: int) -> int:
    """Returns where a ramp ends if nobody says: at 3/4 of the training.

    The last quarter trains the remaining weights under the final masks.

    Args:
        begin_step: Where the ramp begins.
        last_step: The last step of the training, > `begin_step`.
    """
    return begin_step + max(1, round(0.75 * (last_step - begin_step)))


def default_frequency(begin_step: int, end_step: int) -> int:
    """Returns how often masks are computed if nobody says: about 50 times a ramp.

    Fifty small cuts follow the polynomial closely, and their cost does not grow with
    the length of the training.
    """
    return max(1, (end_step - begin_step) // 50)


def _check_sparsity(name: str, value: Any) -> None:
    if not isinstance(value, numbers.Real) or not 0 <= float(value) < 1:
        raise ValueError(
            f"`{name}` must be a fraction of zero weights, 0 <= {name} < 1 "
            f"(0.8 stands for 80 %). Received: {name}={value!r}"
        )


def _check_steps(begin_step: Any, end_step: Any, frequency: Any) -> None:
    _check_integer("begin_step", begin_step, 0)
    _check_integer("frequency", frequency, 1)
    if end_step is None:
        return
    _check_integer("end_step", end_step, 0)
    if end_step <= begin_step:
        raise ValueError(
            "`end_step` must be greater than `begin_step`; for one sparsity from a "
            "step on use ConstantSparsity(final_sparsity, begin_step). "
            f"Received: begin_step={begin_step}, end_step={end_step}"
        )


def _check_integer(name: str, value: Any, lowest: int) -> None:
    if not isinstance(value, numbers.Integral) or value < lowest:
        raise ValueError(
            f"`{name}` must be an integer >= {lowest}. Received: {name}={value!r}"
        )
