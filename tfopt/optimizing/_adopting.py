"""Candidates that earlier searches with other budgets or objectives have left."""

from __future__ import annotations

from collections.abc import Iterator

from tfopt.optimizing._search import Search
from tfopt.recipe import Recipe, Step


def adopt(search: Search) -> None:
    """Takes over the trials on disk that this search could have made."""

    def is_wanted(recipe: Recipe) -> bool:
        same = recipe.target == search.study.baseline.recipe.target
        return same and set(_methods(recipe)) <= search.methods

    count = search.study.adopt(is_wanted)
    if count:
        search.note(f"{count} candidates are taken over from earlier searches.")


def _methods(recipe: Recipe) -> Iterator[str]:
    """Yields the methods of `tfopt.optimize` that a recipe makes use of."""
    if any(rule.precision for rule in recipe.rules):
        yield "mixed"
    aware = False
    for step in recipe.steps:
        if step.do == "train":
            named = {item["name"]: item for item in step.options["methods"]}
            aware = aware or "quantize_aware" in named
            if named.get("quantize_aware", {}).get("weight_bits", 8) < 8:
                yield "low_bit"
            yield from named
        elif step.do == "convert":
            yield from _converted(step, aware)
        else:
            yield step.do


def _converted(step: Step, aware: bool) -> Iterator[str]:
    options = step.options
    quantization = options.get("quantization", "none")
    # What was trained for int8 is converted so, whether int8 itself is wanted or not.
    if quantization != "none" and not (aware and quantization == "int8"):
        yield quantization
    if options.get("equalize") or options.get("correct_bias"):
        yield "equalize"
