"""A share of the fuzzing; tests/benchmarks/fuzz_benchmark.py does all of it."""

import pytest
from fuzz import driver, readers

CASES = {
    **dict.fromkeys(readers.NAMES, 150),
    **{"saved_model": 60, "transform": 60, "keras": 25, "runner": 60},
}
LIMITS = driver.Limits(seconds=20.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("samples")


@pytest.fixture(scope="module")
def results(folder):
    """All readers, one after the other in one process."""
    found = driver.fuzz(readers.NAMES, cases=CASES, samples=folder, limits=LIMITS)
    return {result.reader: result for result in found}


@pytest.mark.parametrize("name", readers.NAMES)
def test_damaged_files_are_named_errors(results, name):
    result = results[name]
    assert not result.failures, result.findings
    assert sum(result.counts.values()) == CASES[name]
    # Damage that nobody notices tests nothing.
    assert result.counts["named error"] > 0.1 * result.cases


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("raises", "wrong exception"),
        ("nameless", "wrong exception"),
        ("hangs", "hang"),
        ("grows", "memory"),
        ("allocates", "memory"),
        ("aborts", "crash"),
    ],
)
def test_the_driver_notices_a_broken_reader(results, folder, name, kind):
    limits = driver.Limits(seconds=1.0, memory_bytes=64 << 20)
    (found,) = driver.fuzz([name], cases=10, samples=folder, limits=limits)
    assert list(found.failures) == [kind]
    # Each failing case is counted, and the cases after it are run.
    assert sum(found.counts.values()) == 10
    assert found.counts[kind] == len({item["case"] for item in found.findings})


def test_a_case_is_the_same_again(results, folder):
    errors = [driver.replay("npz", 7, samples=folder) for _ in range(2)]
    assert str(errors[0]).split("(")[1:] == str(errors[1]).split("(")[1:]
