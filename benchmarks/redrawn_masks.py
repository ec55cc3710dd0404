"""What random masks cost a training: one mask for all steps, or a new one in each.

    python benchmarks/redrawn_masks.py          # two minutes on a busy core

The training of the embedded comparison (its digits, network, steps and seeds) through
random pruning and dropout: held-out accuracy lost against the undefended training, mean
over the seeds. "frozen" keeps the masks from one calibration to the next.
"""

from __future__ import annotations

import argparse
from statistics import fmean
from unittest import mock

import torch

import exhume
from exhume.compare import CompareSettings
from exhume.compare.run import _prepared
from exhume.trials.utility import UtilityResult, measure


def kept(mechanism: object, plans: tuple, key: int) -> tuple:
    del mechanism, key
    return plans


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--ratio", type=float, nargs="+", default=[0.5, 0.9, 0.95])
    options = parser.parse_args()
    utility, _ = _prepared(CompareSettings.shipped())

    def trained(stack: tuple) -> list[UtilityResult]:
        return [measure(spec) for spec in utility.specs(stack)]

    plain = trained(())
    print("ratio   defense          frozen   redrawn")
    for ratio in options.ratio:
        for defense in (
            {"name": "pruning", "kind": "random", "ratio": ratio},
            {"name": "dropout", "ratio": ratio},
        ):
            with mock.patch.object(
                exhume.Mechanism, "redraw", lambda _, plans, key: plans
            ):
                frozen = fmean(utility.losses(plain, trained((defense,))))
            redrawn = fmean(utility.losses(plain, trained((defense,))))
            print(
                f"{ratio:<7g} {defense['name']:<16} {frozen:<8.3f} {redrawn:.3f}",
                flush=True,
            )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
