"""Fuzzes readers: damaged files must give a named error, in bounded time and memory.

    python tests/benchmarks/fuzz_benchmark.py            # every reader, 20,000 cases
    python tests/benchmarks/fuzz_benchmark.py tflite npz --cases=2000 --seed=1
    python tests/benchmarks/fuzz_benchmark.py tflite --case=1234    # one, its traceback

Prints a line for each reader: outcomes by class, the slowest case, the peak memory that
cases took beyond what was loaded before. Exits with 1 if there was any failure.
"""

import argparse
import collections
import concurrent.futures
import pathlib
import sys
import tempfile
import traceback

TESTS = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(TESTS), str(TESTS.parent)]

from fuzz import driver, readers, samples  # noqa: E402


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("readers", nargs="*", default=[])
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--case", type=int, help="run this one here")
    parser.add_argument("--seconds", type=float, default=driver.Limits.seconds)
    parser.add_argument(
        "--samples",
        default=pathlib.Path(tempfile.gettempdir()) / "tfopt-fuzz-samples",
        help="folder that keeps the files to be damaged",
    )
    given = parser.parse_args()
    unknown = set(given.readers) - {*readers.NAMES, *readers.BROKEN}
    if unknown:
        parser.error(f"expected some of {', '.join(readers.NAMES)}")
    samples.make_apart(given.samples)
    if given.case is not None:
        (name,) = given.readers
        error = driver.replay(name, given.case, samples=given.samples, seed=given.seed)
        if error is not None:
            traceback.print_exception(error)
        return
    limits = driver.Limits(seconds=given.seconds)
    print(driver.HEAD, flush=True)
    names = given.readers or list(readers.NAMES)

    def run(own):
        options = {"cases": given.cases, "seed": given.seed, "limits": limits}
        for result in driver.fuzz(own, samples=given.samples, **options):
            print(result.row(), flush=True)
            _show_findings(result)
            failures.update(result.failures)

    failures = collections.Counter()
    with concurrent.futures.ThreadPoolExecutor(given.jobs) as pool:
        try:
            parts = [names[first :: given.jobs] for first in range(given.jobs)]
            list(pool.map(run, filter(None, parts)))
        except RuntimeError as error:
            sys.exit(str(error))
    sys.exit(1 if failures else 0)


def _show_findings(result):
    groups = collections.defaultdict(list)
    for finding in result.findings:
        groups[finding["kind"], finding["what"]].append(finding["case"])
    for (kind, what), cases in groups.items():
        shown = " ".join(f"#{case}" for case in cases[:4])
        more = f" and {len(cases) - 4} more" if len(cases) > 4 else ""
        print(f"  {kind}: {what} ({shown}{more})", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
