"""Every case of the Hopper kernels in Pallas' interpreter, of which the tests run a pairwise sample.

    python benchmarks/mosaic_interpreter_grid.py [--json FILE] [--seconds 3600]

Block shapes x dtypes x {empty column, single block, full column, all empty, ragged tokens} x designs x epilogues:
values against the reference, and races; no GPU needed, about two seconds a case. The file (default
benchmarks/results/mosaic_interpreter_grid.json) is replaced after each case, and what it holds is not run again.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

import jax

from tests.kernels.mosaic_cases import FACTORS, compare, label, small_size, takes
from tests.kernels.pairwise import allowed_cases


def outcome(case):
    try:
        compare(case, *small_size(case))
    except AssertionError as error:
        return f"wrong: {error}"[:300]
    except Exception as error:  # whatever the interpreter raises is the case's result
        return f"{type(error).__name__}: {error}"[:300]
    return "ok"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/mosaic_interpreter_grid.json"))
    parser.add_argument("--seconds", type=float, default=3600.0)
    options = parser.parse_args()
    found = json.loads(options.json.read_text()) if options.json.exists() else {"jax": jax.__version__, "cases": {}}
    if found["jax"] != jax.__version__:
        sys.exit(f"{options.json} is of jax {found['jax']}, this is {jax.__version__}: give another --json")
    cases = [case for case in allowed_cases(FACTORS, takes) if label(case) not in found["cases"]]
    end = time.monotonic() + options.seconds
    for number, case in enumerate(cases, 1):
        if time.monotonic() > end:
            break
        found["cases"][label(case)] = result = outcome(case)
        written = options.json.with_suffix(".part")
        written.write_text(json.dumps(found, indent=1) + "\n")
        os.replace(written, options.json)
        print(f"{number}/{len(cases)} {label(case)} {result}", flush=True)
    bad = sum(result != "ok" for result in found["cases"].values())
    print(f"{len(found['cases'])} cases, {bad} not ok")
    return 1 if bad else 0


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_disable_most_optimizations", True)  # each thread is compiled anew and run once
    sys.exit(main())
