"""Schedules: values, update steps, validation, configs."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfopt import schedules
from tfopt.schedules import ConstantSparsity, PolynomialDecay


@st.composite
def ramps(draw):
    low, high = sorted(draw(st.lists(st.floats(0, 0.999), min_size=2, max_size=2)))
    begin = draw(st.integers(0, 300))
    return PolynomialDecay(
        low,
        high,
        begin,
        begin + draw(st.integers(1, 300)),
        draw(st.floats(0.1, 8)),
        draw(st.integers(1, 400)),
    )


@st.composite
def constants(draw):
    begin = draw(st.integers(0, 300))
    length = draw(st.none() | st.integers(1, 300))
    end = None if length is None else begin + length
    frequency = draw(st.integers(1, 400))
    return ConstantSparsity(draw(st.floats(0, 0.999)), begin, end, frequency)


def updates(schedule, last):
    """All steps up to `last` that update the masks, straight from the definition."""
    end = last if schedule.end_step is None else schedule.end_step
    grid = set(range(schedule.begin_step, end + 1, schedule.frequency))
    ends = set() if schedule.end_step is None else {schedule.end_step}
    return sorted(step for step in grid | ends if step <= last)


def test_polynomial_values():
    schedule = PolynomialDecay(0.2, 0.8, 10, 20, power=3, frequency=2)
    steps = [0, 10, 11, 15, 19, 20, 99]
    expected = [0.2, 0.2, 0.8 - 0.6 * 0.9**3, 0.8 - 0.6 / 8, 0.8 - 0.6e-3, 0.8, 0.8]
    np.testing.assert_allclose([schedule(step) for step in steps], expected, rtol=1e-12)


def test_power_one_is_a_straight_line():
    schedule = PolynomialDecay(0.0, 0.5, 0, 10, power=1)
    values = [schedule(step) for step in range(11)]
    np.testing.assert_allclose(values, np.linspace(0, 0.5, 11), atol=1e-15)
    curve = [PolynomialDecay(0.0, 0.5, 0, 10)(step) for step in range(11)]
    assert not np.allclose(curve, np.linspace(0, 0.5, 11))


@given(ramps())
def test_polynomial_grows_from_initial_to_final(schedule):
    steps = range(schedule.begin_step, schedule.end_step + 1)
    values = [schedule(step) for step in steps]
    assert values == sorted(values)
    assert abs(values[0] - schedule.initial_sparsity) < 1e-12
    assert values[-1] == schedule.final_sparsity
    assert schedule(schedule.end_step + 1000) == schedule.final_sparsity


@given(st.one_of(ramps(), constants()))
def test_update_steps(schedule):
    expected = updates(schedule, 1200)
    assert [s for s in range(1000) if schedule.updates_at(s)] == [
        s for s in expected if s < 1000
    ]
    for step in range(0, 800, 7):
        before = [s for s in expected if s <= step]
        after = [s for s in expected if s > step]
        assert schedule.last_update(step) == (before[-1] if before else None)
        assert schedule.next_update(step) == (after[0] if after else None)


def test_end_step_off_the_grid_updates():
    schedule = PolynomialDecay(0.0, 0.8, 0, 150, frequency=100)
    assert [s for s in range(400) if schedule.updates_at(s)] == [0, 100, 150]


def test_constant_without_end_updates_for_ever():
    schedule = ConstantSparsity(0.5, 3, frequency=10)
    assert schedule.next_update(10**9) == 10**9 + 3
    assert schedule(10**9) == 0.5


@given(st.one_of(ramps(), constants()))
def test_config_round_trip(schedule):
    assert type(schedule).from_config(schedule.get_config()) == schedule
    data = json.loads(json.dumps(schedules.serialize(schedule)))
    assert schedules.deserialize(data) == schedule


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"begin_step": 5, "end_step": 5}, "begin_step=5, end_step=5"),
        ({"begin_step": 6, "end_step": 5}, "begin_step=6, end_step=5"),
        ({"begin_step": -1}, "begin_step=-1"),
        ({"begin_step": 1.5}, "begin_step=1.5"),
        ({"end_step": None}, "end_step=None"),
        ({"end_step": -1}, "end_step=-1"),
        ({"frequency": 0}, "frequency=0"),
        ({"power": 0}, "power=0"),
        ({"power": "3"}, "power='3'"),
        ({"final_sparsity": 1.0}, "final_sparsity=1.0"),
        ({"final_sparsity": 80}, "final_sparsity=80"),
        ({"final_sparsity": float("nan")}, "final_sparsity=nan"),
        ({"initial_sparsity": -0.1}, "initial_sparsity=-0.1"),
        ({"initial_sparsity": 0.9}, "initial_sparsity=0.9, final_sparsity=0.8"),
    ],
)
def test_wrong_polynomial(arguments, message):
    good = {
        "initial_sparsity": 0.0,
        "final_sparsity": 0.8,
        "begin_step": 0,
        "end_step": 10,
    }
    PolynomialDecay(**good)
    with pytest.raises(ValueError, match=f"Received: .*{message}"):
        PolynomialDecay(**{**good, **arguments})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"begin_step": 5, "end_step": 5}, "begin_step=5, end_step=5"),
        ({"begin_step": -2}, "begin_step=-2"),
        ({"end_step": -1}, "end_step=-1"),
        ({"frequency": -3}, "frequency=-3"),
        ({"final_sparsity": 1}, "final_sparsity=1"),
    ],
)
def test_wrong_constant(arguments, message):
    with pytest.raises(ValueError, match=f"Received: .*{message}"):
        ConstantSparsity(**{"final_sparsity": 0.5, **arguments})


@pytest.mark.parametrize(
    "data", [{}, {"class_name": "Linear", "config": {}}, {"class_name": "x"}]
)
def test_deserialize_unknown(data):
    with pytest.raises(ValueError, match="PolynomialDecay"):
        schedules.deserialize(data)


def test_schedules_are_immutable():
    with pytest.raises(AttributeError):
        ConstantSparsity(0.5).final_sparsity = 0.6


@given(st.integers(0, 1000), st.integers(1, 10**6))
def test_default_end_step_is_inside_the_training(begin, length):
    end = schedules.default_end_step(begin, begin + length)
    assert begin < end <= begin + length
    assert abs(end - begin - 0.75 * length) <= 0.5 or length == 1


def test_default_frequency():
    assert [schedules.default_frequency(10, 10 + n) for n in (1, 49, 100, 5000)] == [
        *(1, 1, 2, 100)
    ]
