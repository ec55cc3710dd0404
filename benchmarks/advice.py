"""Does the interval of an advice hold, though the family was chosen for looking best?

    python benchmarks/advice.py
    python benchmarks/advice.py --runs 100

Twelve families of one cost and one true error; errors are log-normal, and half of their
variance in logs is common to a seed. Prints how often the 95 % interval of the family
that is recommended covers its error: for all families at once, as an advice has it, and
as if it had been the only one; and how often the advice is sure of a winner, where
there is none.
"""

from __future__ import annotations

import argparse
import math
from statistics import fmean

import numpy as np

from exhume.compare.advice import advise
from exhume.compare.family import Family
from exhume.compare.frontier import Floor, Frontier, Point, strongest

ERROR, FAMILIES = 0.05, 12
STACK = ({"name": "gaussian-noise", "std": 0.1},)
BARE = Point(None, 0.0, 0.0, (0.0, 0.0), None, Floor("", None))


def frontier(errors: list[float]) -> Frontier:
    """Return a family that was measured at one strength."""
    found = strongest({"gauss-newton": errors}, frozenset())
    family = Family(STACK, 0, "std", 0.01, 1.0, "log")
    at = Point(0.1, 0.5, 0.02, (0.02, 0.02), found, Floor("", None))
    return Frontier(family, (), (at,))


def covers(interval: tuple[float, float]) -> bool:
    return interval[0] <= ERROR <= interval[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--runs", type=int, default=400)
    runs = parser.parse_args().runs
    print("seeds  spread  covers (all at once)  covers (as if alone)  sure of a winner")
    for seeds in (3, 5, 10):
        for spread in (0.1, 0.5):
            random = np.random.default_rng(seeds)
            found = []
            for _ in range(runs):
                logs = random.normal(size=seeds) + random.normal(size=(FAMILIES, seeds))
                errors = ERROR * np.exp(spread * logs / math.sqrt(2) - spread**2 / 2)
                found.append(
                    advise(
                        BARE,
                        tuple(map(frontier, errors.tolist())),
                        min_error=1e-4,
                        max_loss=0.1,
                        utility="accuracy",
                        tolerance=0.01,
                        chance=None,
                    )
                )
            shares = (
                fmean(a.interval is not None and covers(a.interval) for a in found),
                fmean(a.place is not None and covers(a.place.interval) for a in found),
                fmean(not a.rivals for a in found),
            )
            row = "".join(f"{share:>22.3f}" for share in shares)
            print(f"{seeds:5} {spread:7}{row}")


if __name__ == "__main__":
    main()
