"""What holds for every transform in the folder, on graphs of all kinds."""

import functools
import inspect
import json
import re
import typing

import pytest
from hypothesis import HealthCheck, given, settings
from transforms_samples import (
    OPTIONS,
    RANDOM_STEPS,
    SAMPLES,
    build,
    checked,
    copy_of,
    custom,
    empty,
    keeps_outputs,
    options_for,
)
from transforms_structure_samples import run

from tfopt import _signatures, artifacts
from tfopt.transforms import _base, _checking, _options, _registry

NAMES = _registry.names()
RANDOM = settings(
    max_examples=20,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)


@functools.cache
def sample(kind):
    """A graph and its outputs; not to be changed."""
    model = SAMPLES[kind]()
    _checking.clean(model)
    return model, run(model)


def check_findings(findings):
    json.loads(artifacts.to_json(findings))
    for entry in findings.get("skipped", ()):
        assert set(entry) == {"node", "reason"}
        assert entry["reason"]


@pytest.mark.parametrize("name", NAMES)
def test_it_is_documented(name):
    transform = _registry.get(name)
    doc = inspect.getdoc(transform.function)
    assert re.match(r"\S.*\.$", transform.summary)
    assert re.search(r"^    graph:", doc, re.MULTILINE)
    assert "\nReturns:\n" in doc
    for option, parameter in transform.options.items():
        assert parameter.help, option
        assert parameter.annotation is not _signatures.Unknown, option
    parameters = list(inspect.signature(transform.function).parameters.values())
    kinds = {parameter.kind for parameter in parameters[1:]}
    assert kinds <= {inspect.Parameter.KEYWORD_ONLY}
    needed = [
        option
        for option, parameter in transform.options.items()
        if parameter.default is _signatures.Required
    ]
    assert set(needed) <= set(OPTIONS.get(name, {})), "add an example to OPTIONS"


@pytest.mark.parametrize("name", NAMES)
def test_defaults_fit_their_types(name):
    for parameter in _registry.get(name).options.values():
        if parameter.default is not _signatures.Required:
            _options.check(name, parameter, parameter.default)


@pytest.mark.parametrize("name", NAMES)
def test_wrong_options_are_named(name):
    transform = _registry.get(name)
    with pytest.raises(ValueError, match=r"no such option.*nonsense"):
        _registry.resolve([(name, {"nonsense": 1})])
    for option, parameter in transform.options.items():
        given_options = dict(OPTIONS.get(name, {}))
        with pytest.raises(ValueError, match=f"{option} of {name}"):
            _registry.resolve([(name, {**given_options, option: object()})])
        takes_text = str in _options.members(parameter.annotation) or any(
            str in typing.get_args(kind)
            for kind in _options.members(parameter.annotation)
        )
        if not takes_text:
            with pytest.raises(ValueError, match=f"{option} of {name}"):
                _registry.resolve(f"{name}({option}=nonsense)")


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_graph_stays_empty(name):
    if name == "rename_node":
        with pytest.raises(ValueError, match="old_node_name"):
            checked(name, empty())
        return
    model = empty()
    check_findings(checked(name, model))
    assert model.num_nodes == 0


@pytest.mark.parametrize("kind", SAMPLES)
@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_as_promised(name, kind):
    original, expected = sample(kind)
    model = copy_of(original)
    promise = _registry.get(name).promise
    check_findings(checked(name, model))
    assert keeps_outputs(promise, expected, run(model))
    assert set(original.main.kept) <= set(model.main.nodes)
    if promise.is_idempotent and name != "rename_node":
        once = model.to_graph_def()
        checked(name, model)
        assert model.to_graph_def() == once


@pytest.mark.parametrize("name", NAMES)
def test_unknown_operations_stay(name):
    model = custom()
    before = {"op": "NobodyKnowsThis", "mode": b"fast"}
    check_findings(checked(name, model))
    found = [n for n in model.main if n.op == before["op"]]
    assert [node.attr["mode"].s for node in found] == [before["mode"]]
    (source,) = (model.main.producer(one) for one in model.main.inputs(found[0]))
    assert source is not None


def test_transforms_that_commute_give_the_same_graph_in_any_order():
    pairs = [
        (name, other)
        for name in NAMES
        for other in _registry.get(name).promise.commutes_with
    ]
    assert pairs
    for first, second in pairs:
        assert second in NAMES
        results = []
        for order in ((first, second), (second, first)):
            model = copy_of(sample("flat")[0])
            for name in order:
                checked(name, model)
            results.append(model.to_graph_def())
        assert results[0] == results[1], (first, second)


@RANDOM
@given(RANDOM_STEPS)
def test_random_graphs_keep_their_outputs(steps):
    original = build(steps)
    expected = run(original)
    for name in NAMES:
        model = copy_of(original)
        check_findings(checked(name, model))
        promise = _registry.get(name).promise
        assert keeps_outputs(promise, expected, run(model)), name


@RANDOM
@given(RANDOM_STEPS)
def test_random_graphs_survive_the_preset(steps):
    model = build(steps)
    expected = run(model)
    for step in _registry.resolve("deploy"):
        checked(step.transform.name, model, step.options)
    close = _base.Promise(outputs="close", tolerance=1e-4)
    assert keeps_outputs(close, expected, run(model))


# The checks of this file are of no use if they cannot fail.


def drop_relu(graph):
    """Breaks the graph's meaning."""
    for body in graph.bodies:
        for node in body:
            if node.op == "Relu":
                node.op = "Identity"
    return {}


def drop_input(graph):
    """Breaks the graph's structure."""
    for node in graph.main:
        if node.op == "Relu":
            del node.input[:]
    return {}


@pytest.mark.parametrize("broken", [drop_relu, drop_input])
def test_the_checks_notice(broken, monkeypatch):
    transform = _registry.Transform("broken", broken, _base.Promise(), {}, "")
    monkeypatch.setattr(_registry, "get", lambda name: transform)
    original, expected = sample("flat")
    model = copy_of(original)
    if broken is drop_input:
        with pytest.raises(AssertionError, match="takes 0 inputs"):
            checked("broken", model)
    else:
        checked("broken", model)
        assert not keeps_outputs(transform.promise, expected, run(model))


def test_every_sample_gives_the_transforms_work():
    idle = {"add_default_attributes", "rename_attribute", "rename_op"}
    for name in set(NAMES) - idle:
        kinds = [kind for kind in SAMPLES if _changes(name, SAMPLES[kind]())]
        assert kinds, f"no sample has anything for {name}"


def _changes(name, model):
    before = model.to_graph_def()
    _registry.get(name).function(model, **options_for(name, model))
    return model.to_graph_def() != before
