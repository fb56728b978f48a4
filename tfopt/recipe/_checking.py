"""What a recipe may hold: plain values under the names of options, nothing else."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tfopt import _signatures, methods

_PRECISIONS = ("float", "quantized")
# The conversions that can leave layers in float.
DIVIDED_MODES = ("int8", "dynamic", "float16", "int4")
_HEEDED = {
    "precision": f"converts to one of {list(DIVIDED_MODES)}, or trains with "
    '"quantize_aware"',
    "sparsity": 'is "prune_once", or trains with "prune"',
}
# The function behind each step, and the options that a recipe does not decide: models,
# data and places are given when it is applied, and layers are divided by rules.
_STEPS: dict[str, tuple[str, frozenset[str]]] = {
    "remove_channels": (
        "tfopt.surgery:remove_channels",
        frozenset({"data", "verify", "seed", "channels"}),
    ),
    "prune_once": (
        "tfopt.pruning:prune_once",
        frozenset({"data", "in_place", "seed", "per_layer"}),
    ),
    "train": (
        "tfopt.finetuning:finetune",
        frozenset({"quantization", "seed", "resume", "metrics"}),
    ),
    "transform_graph": (
        "tfopt.transforms:transform_graph",
        frozenset({"verify_data", "output_format", "asset_feeds", "init_op", "verify"}),
    ),
    "optimize_graph": (
        "tfopt.grappler:optimize_graph",
        frozenset({"verify_data", "output_format", "verify", "timeout_s"}),
    ),
    "convert": (
        "tfopt.conversion:convert",
        frozenset({"representative_dataset", "keep_float", "verify"}),
    ),
}
# Positional arguments that are plain data.
_POSITIONAL = {
    "prune_once": {"sparsity"},
    "transform_graph": {"transforms"},
    "optimize_graph": {"config"},
}
_GRAPH_STEPS = ("transform_graph", "optimize_graph")
# Options of methods that hold models, data or places.
_METHOD_EXTRAS = frozenset({"teacher", "representative_dataset", "data", "log_dir"})
# What the user decides, and no file.
_NEVER = frozenset({"safe_mode"})
# A Keras object in JSON, which could name any module.
_OBJECT = "class_name"
_MAX_DEPTH = 8


@dataclasses.dataclass(frozen=True)
class Step:
    """One step of a recipe.

    Attributes:
        do: Which function of tfopt.
        options: Its options, by name.
    """

    do: str
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Returns it as a recipe writes it."""
        return {"do": self.do, **self.options}

    def __str__(self) -> str:
        shown = {key: value for key, value in self.options.items() if key != "methods"}
        words = [f"{key}={value}" for key, value in shown.items()]
        for item in self.options.get("methods", ()):
            options = ", ".join(f"{k}={v}" for k, v in item.items() if k != "name")
            words.append(f"{item['name']}({options})")
        return " ".join([self.do, *words])


@dataclasses.dataclass(frozen=True)
class Rule:
    """What is special about some layers.

    Attributes:
        layers: Glob for names of layers.
        precision: `"float"` or `"quantized"`; None: not decided here.
        sparsity: Fraction of zeros of their weights; None: not decided here.
    """

    layers: str
    precision: str | None = None
    sparsity: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns it as a recipe writes it."""
        fields = dataclasses.asdict(self)
        return {name: value for name, value in fields.items() if value is not None}

    def __str__(self) -> str:
        words = [] if self.precision is None else [self.precision]
        words += [] if self.sparsity is None else [f"sparsity {self.sparsity:g}"]
        return f"{self.layers}: {', '.join(words)}"


def checked_steps(steps: Any) -> tuple[Step, ...]:
    """Returns steps that are possible in this order.

    Raises:
        ValueError: One is unknown, has an unknown option or value, or stands where it
            cannot stand.
    """
    if not _is_list(steps) or not steps:
        raise ValueError(
            f"Expected a list of steps, at least one. Received: steps={steps!r:.200}"
        )
    made = tuple(
        step if isinstance(step, Step) else _step(step, f"steps[{index}]")
        for index, step in enumerate(steps)
    )
    kinds = [step.do for step in made]
    converts = kinds.count("convert")
    graphs = [kind in _GRAPH_STEPS for kind in kinds]
    ends = kinds[-1] == "convert" or graphs[-1]
    if converts > 1 or not ends or graphs != sorted(graphs[:-1]) + graphs[-1:]:
        raise ValueError(
            "Expected steps on Keras models first, then steps on graphs, and at the "
            f'end "convert" or one of {list(_GRAPH_STEPS)}. Received: steps={kinds}'
        )
    return made


def checked_rules(rules: Any, steps: Sequence[Step]) -> tuple[Rule, ...]:
    """Returns rules.

    Args:
        rules: The rules.
        steps: Those of the recipe.

    Raises:
        ValueError: One is none, or decides what no step asks for.
    """
    if not _is_list(rules):
        raise ValueError(f"Expected a list of rules. Received: rules={rules!r:.200}")
    made = tuple(
        rule if isinstance(rule, Rule) else _rule(rule, f"rules[{index}]")
        for index, rule in enumerate(rules)
    )
    heeded = {field for step in steps for field in _heeds(step)}
    for index, rule in enumerate(made):
        idle = sorted(rule.to_json().keys() - heeded - {"layers"})
        if idle:
            raise ValueError(
                f"No step heeds this rule. Expected a step that {_HEEDED[idle[0]]}. "
                f"Received: rules[{index}]={rule.to_json()}, "
                f"steps={[step.do for step in steps]}"
            )
    return made


def _heeds(step: Step) -> Iterator[str]:
    """What a step takes from rules."""
    trained = {item["name"] for item in step.options.get("methods", ())}
    divides = step.options.get("quantization") in DIVIDED_MODES
    if (step.do == "convert" and divides) or "quantize_aware" in trained:
        yield "precision"
    if step.do == "prune_once" or "prune" in trained:
        yield "sparsity"


def checked_name(name: Any) -> str:
    """Returns the name if it is one."""
    if not isinstance(name, str) or len(name) > 200:
        raise ValueError(f"Expected a short text. Received: name={name!r:.200}")
    return name


def checked_seed(seed: Any) -> int:
    """Returns the seed if it is one."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**31:
        raise ValueError(
            f"Expected an integer from 0 to 2**31 - 1. Received: seed={seed!r:.200}"
        )
    return seed


def _step(content: Any, where: str) -> Step:
    if not isinstance(content, Mapping) or content.get("do") not in list(_STEPS):
        raise ValueError(
            f'Expected an object with "do", one of {list(_STEPS)}. '
            f"Received: {where}={content!r:.200}"
        )
    do = content["do"]
    options = {key: value for key, value in content.items() if key != "do"}
    target, given_later = _STEPS[do]
    known = {parameter.name for parameter in _signatures.parameters(target)}
    known = (known | _POSITIONAL.get(do, set())) - given_later - _NEVER
    _check_options(options, known, where)
    if do == "train":
        named = options.get("methods", [])
        if not _is_list(named):
            raise ValueError(f"Expected a list. Received: {where}.methods={named!r}")
        options["methods"] = [
            _method(item, f"{where}.methods[{index}]")
            for index, item in enumerate(named)
        ]
    missing = _POSITIONAL.get(do, set()) - set(options) - {"sparsity"}
    if missing:
        raise ValueError(f"Expected {sorted(missing)} in {where}. Received: {options}")
    return Step(do, options)


def _method(content: Any, where: str) -> dict[str, Any]:
    names = methods.names()
    if not isinstance(content, Mapping) or content.get("name") not in names:
        raise ValueError(
            f'Expected an object with "name", one of {names}. '
            f"Received: {where}={content!r:.200}"
        )
    options = {key: value for key, value in content.items() if key != "name"}
    name = content["name"]
    cls = name.title().replace("_", "")
    target = f"tfopt.methods.{name}:{cls}"
    known = {parameter.name for parameter in _signatures.parameters(target)}
    _check_options(options, known - _METHOD_EXTRAS, where)
    return {"name": name, **options}


def _rule(content: Any, where: str) -> Rule:
    fields = {field.name for field in dataclasses.fields(Rule)}
    if not isinstance(content, Mapping) or not {"layers"} < set(content) <= fields:
        raise ValueError(
            'Expected "layers", and "precision" or "sparsity". '
            f"Received: {where}={content!r:.200}"
        )
    rule = Rule(**content)
    if not isinstance(rule.layers, str) or not rule.layers:
        raise ValueError(f"Expected a glob. Received: {where}.layers={rule.layers!r}")
    if rule.precision not in (None, *_PRECISIONS):
        raise ValueError(
            f"Expected one of {_PRECISIONS}. "
            f"Received: {where}.precision={rule.precision!r}"
        )
    share = rule.sparsity
    is_number = isinstance(share, (int, float)) and not isinstance(share, bool)
    if share is not None and not (is_number and 0 <= share < 1):
        raise ValueError(
            f"Expected a fraction in [0, 1). Received: {where}.sparsity={share!r}"
        )
    return rule


def _check_options(options: Mapping[str, Any], known: set[str], where: str) -> None:
    unknown = sorted((name for name in options if name not in known), key=str)
    if unknown:
        raise ValueError(
            f"No such options for a recipe. Expected some of {sorted(known)}. "
            f"Received: {where} with {unknown}"
        )
    for name, value in options.items():
        _check_plain(value, f"{where}.{name}", _MAX_DEPTH)


def _check_plain(value: Any, where: str, depth: int) -> None:
    """Raises unless a value is JSON of a sensible depth."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"Expected a finite number. Received: {where}={value}")
    if value is None or isinstance(value, (bool, int, float, str)):
        return
    items: list[Any]
    if isinstance(value, Mapping) and _OBJECT in value:
        raise ValueError(
            "Expected names of Keras's losses, optimizers and the like, as a recipe "
            f"holds no objects. Received: {where} with {_OBJECT!r}"
        )
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        items = list(value.values())
    elif _is_list(value):
        items = list(value)
    else:
        raise ValueError(
            "Expected numbers, texts, lists and objects only. "
            f"Received: {where}, a {type(value).__name__}"
        )
    if depth == 0:
        raise ValueError(f"Expected less nested values. Received: {where}")
    for item in items:
        _check_plain(item, where, depth - 1)


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))
