"""Does an audit call a leak a leak, and a guess a guess?

    python benchmarks/planted_leaks.py
    python benchmarks/planted_leaks.py --audits 40 --pool 60

Audits of 40 digits are drawn from a pool of trials. Planted are leaks: an attack that
is exact on 5, 20 or 50 % of the examples, and answers with the negative on the others.
And there are attacks that read nothing: recognition on the release of other examples of
the same classes (a placebo), centres of slightly other public examples, the prior mean
with noise, and draws around it. Each faces the guesses of an audit, `prior-mean` and
`public-centres`. Prints how often each verdict comes; a leak is ``leak`` or ``slight``.
"""

from __future__ import annotations

import argparse
import os
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from typing import get_args

import numpy as np

from exhume.runs.records import TrialResult, TrialSpec
from exhume.trials.gain import Level, gain
from exhume.trials.trial import run_trial

EXAMPLES = 40
LEAKS = {"exact on 5 %": 0.05, "exact on 20 %": 0.2, "exact on 50 %": 0.5}
NULLS = ("placebo", "centres", "noisy mean", "draw")
GUESSES = ("prior-mean", "public-centres")


_Seed = dict[str, TrialResult]


def trial(
    attack: str, batch_size: int, seed: int, *, placebo: bool = False
) -> TrialResult:
    """Run one trial on digits."""
    result = run_trial(
        TrialSpec(
            data={"name": "digits"},
            model={"name": "mlp", "hidden": [16], "activation": "tanh"},
            prior={"name": "gaussian"},
            attack={"name": attack},
            batch_size=batch_size,
            seed=seed,
            placebo=placebo,
        )
    )
    if result.status != "done":
        raise SystemExit(f"{attack}, seed {seed}: {result.reason}")
    return result


def scored(result: TrialResult, answer: np.ndarray) -> TrialResult:
    """Return a result as if the attack had answered so, in the order of the truth."""
    error = np.square(answer - result.arrays["truth"])
    errors = error.reshape(len(answer), -1).mean(1)
    return replace(result, scores={"mse": [float(e) for e in errors]})


def one_seed(given: tuple[int, int]) -> _Seed:
    """Run everything of one seed."""
    batch_size, seed = given
    random = np.random.default_rng(seed)
    found = {name: trial(name, batch_size, seed) for name in GUESSES}
    mean = found["prior-mean"].arrays
    truth = mean["truth"]
    found["exact"] = scored(found["prior-mean"], truth)
    found["negative"] = scored(found["prior-mean"], 1 - truth)
    found["placebo"] = trial("nearest-public", batch_size, seed, placebo=True)
    found["centres"] = trial("public-centres", batch_size, seed, placebo=True)
    noise = 0.05 * random.standard_normal(truth.shape)
    found["noisy mean"] = scored(found["prior-mean"], mean["guess"] + noise)
    drawn = 0.26 * random.standard_normal(truth.shape)
    found["draw"] = scored(found["prior-mean"], np.clip(mean["guess"] + drawn, 0, 1))
    return found


def planted(
    pool: list[dict[str, TrialResult]], share: float, random: np.random.Generator
) -> list[TrialResult]:
    """Return an attack that is exact on a share of the examples, chosen at random."""
    size = len(pool[0]["exact"].scores["mse"])
    hit = random.permutation(len(pool) * size) < round(share * len(pool) * size)
    rows = []
    for seed, of_seed in zip(pool, hit.reshape(len(pool), size), strict=True):
        pairs = zip(
            of_seed,
            seed["exact"].scores["mse"],
            seed["negative"].scores["mse"],
            strict=True,
        )
        errors = [exact if leaks else wrong for leaks, exact, wrong in pairs]
        rows.append(replace(seed["exact"], scores={"mse": errors}))
    return rows


def levels(
    pool: list[_Seed], name: str, audits: int, random: np.random.Generator
) -> Counter[str]:
    """Return how often each verdict comes in audits of an attack."""
    size = len(pool[0]["exact"].scores["mse"])
    found = Counter[str]()
    for _ in range(audits):
        picked = random.choice(len(pool), EXAMPLES // size, replace=False)
        chosen = [pool[i] for i in picked]
        attack = (
            planted(chosen, LEAKS[name], random)
            if name in LEAKS
            else [seed[name] for seed in chosen]
        )
        guesses = [[seed[guess] for seed in chosen] for guess in GUESSES]
        own = gain(attack, guesses, tests=3)
        assert own is not None
        found[own.level] += 1
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--audits", type=int, default=200)
    parser.add_argument("--pool", type=int, default=160, help="seeds of the pool")
    arguments = parser.parse_args()
    words = get_args(Level)[:4]
    print(f"B  {'attack':14}{''.join(f'{w:>8}' for w in words)}  called a leak")
    for batch_size in (1, 4):
        seeds = [(batch_size, s) for s in range(arguments.pool)]
        with ProcessPoolExecutor(os.cpu_count()) as workers:
            pool = list(workers.map(one_seed, seeds))
        random = np.random.default_rng(batch_size)
        for name in (*LEAKS, *NULLS):
            found = levels(pool, name, arguments.audits, random)
            share = {word: found[word] / arguments.audits for word in words}
            told = "".join(f"{share[word]:8.3f}" for word in words)
            called = share["leak"] + share["slight"]
            print(f"{batch_size}  {name:14}{told}{called:15.3f}", flush=True)


if __name__ == "__main__":
    main()
