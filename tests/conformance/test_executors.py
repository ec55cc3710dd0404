"""Conformance of executors: the bits of one process, wherever the jobs run."""

from __future__ import annotations

import math
from collections import Counter, deque
from typing import Any

import torch

from exhume.audit import AuditSettings, TrialResult
from exhume.audit.settings import expand
from exhume.runs.executor import Job
from exhume.runs.executors.serial import Serial
from exhume.trials.trial import TRIAL

from .rows import every


def bits(result: TrialResult) -> tuple[Any, ...]:
    """Return everything in a result but how long it took."""
    return (
        result.status,
        result.reason,
        result.outcome,
        result.objective,
        result.objective_at_truth,
        tuple(row[:2] + row[3:] for row in result.trace),
        result.scores,
        result.guessed_labels,
        result.facts,
        result.bound,
        {name: a.tobytes() for name, a in result.arrays.items()},
    )


@every("executor")
def test_every_executor_gives_the_bits_of_one_process(executor):
    settings = AuditSettings(
        data="digits",
        model={"name": "mlp", "hidden": [8], "activation": "tanh"},
        attacks=[{"name": "gauss-newton", "iterations": 4, "seconds": None}],
        defenses=[[], {"name": "gaussian-noise", "std": 0.01}],
        bounds=[{"name": "bayesian-cramer-rao", "draws": 3}],
        seeds=1,
        batch_size=2,
    )
    specs = expand(settings)
    expected = {r.spec.id: bits(r) for r in Serial().map(TRIAL, deque(specs))}
    found = {r.spec.id: bits(r) for r in executor.map(TRIAL, deque(specs))}
    assert expected.keys() == {spec.id for spec in specs}
    assert Counter(value[0] for value in expected.values()) == {
        "done": len(specs) - 1,
        "not-applicable": 1,  # no noise, no bound
    }
    assert found == expected


def threads(_: int) -> int:
    return torch.get_num_threads()


def failed(spec: int, reason: str) -> str:
    return f"{spec}: {reason}"


@every("executor")
def test_every_job_has_one_thread(executor):
    before = torch.get_num_threads()
    assert list(executor.map(Job(threads, failed), deque([0, 1]))) == [1, 1]
    assert torch.get_num_threads() == before


@every("executor")
def test_a_queue_may_grow_while_it_is_worked_off(executor):
    queue, seen = deque([3]), []
    for result in executor.map(Job(math.factorial, failed), queue):
        seen.append(result)
        if result < 700:
            queue.append(result)
    assert seen == [6, 720]
    assert not queue


@every("executor")
def test_a_generator_that_is_closed_leaves_the_rest(executor):
    queue = deque(range(50))
    results = executor.map(Job(math.factorial, failed), queue)
    next(results)
    results.close()
    assert queue


@every("executor")
def test_it_says_how_many_jobs_run_at_once(executor):
    assert executor.parallel >= 1
