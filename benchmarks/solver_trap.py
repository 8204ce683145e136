"""Programmes from MPS files through the guarded path, beside what the solver says by itself: one JSON line a file.

    python -m benchmarks.solver_trap FILE...

`objective` and `bound` are those of `planner.optimize.guard`; `solver_alone` is what the solver alone calls optimal.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import pulp

from benchmarks.published import gap, print_timed, run
from planner.optimize.guard import certified
from planner.optimize.solve import minimise
from specs.errors import InputError, NoPlanError


def read_programme(path: Path) -> Any:
    """The PuLP problem of a free MPS file that minimises; integer bounds UI and LI are read as UP and LO."""
    try:
        text = re.sub(r"(?m)^ ([UL])I ", lambda bound: {"U": " UP ", "L": " LO "}[bound[1]], path.read_text("utf-8"))
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder, "programme.mps")
            copy.write_text(text, encoding="utf-8")
            _, problem = pulp.LpProblem.fromMPS(str(copy), sense=pulp.LpMinimize)
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", file=str(path)) from None
    except (ValueError, KeyError, IndexError, pulp.PulpError) as error:
        raise InputError(f"is no MPS file: {error}", file=str(path)) from None
    if re.search(r"(?mi)^\s*OBJSENSE\s*(\n\s*)?MAX", text):
        raise InputError("maximises; only files that minimise are read", file=str(path))
    if not problem.variables():
        raise InputError("is no MPS file: it has no columns", file=str(path))
    return problem


def answer(path: Path, problem: Any, time_limit_s: float) -> dict[str, Any]:
    found = certified(problem, time_limit_s=time_limit_s)
    if found.status == "infeasible":
        raise NoPlanError(f"{path.name}: no plan satisfies every row")
    minimise(problem, time_limit_s)
    return {
        "file": path.name,
        "status": found.status,
        "objective": found.value,
        "bound": found.bound,
        "gap": gap(found.value, found.bound),
        "refused": list(found.refused),
        "solver": found.solver,
        "solver_alone": float(pulp.value(problem.objective)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--time-limit", type=float, default=120.0, help="seconds for each of three solves")
    options = parser.parse_args()
    for path, problem in [(path, read_programme(path)) for path in options.files]:
        print_timed(partial(answer, path, problem, options.time_limit))


if __name__ == "__main__":
    run(main)
