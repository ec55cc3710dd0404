"""Plans: nothing is lost, nothing is computed twice, and the time left is told."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field

import pytest

from exhume.runs.carry_out import FixedPlan, Known, Plan, Remaining, carry_out
from exhume.runs.executor import Executor, Job


@dataclass(frozen=True)
class Number:
    value: int
    kind: str = ""

    @property
    def id(self):
        return f"{self.kind}{self.value}"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    spec: Number
    status: str = "done"
    reason: str = ""
    seconds: float = 0.0
    versions: dict = field(default_factory=dict)


class Memory:
    """Results in memory, with a count of how often each was put."""

    def __init__(self, *results):
        self.results = {r.spec.id: r for r in results}
        self.puts = []

    def finished(self):
        return {i for i, r in self.results.items() if r.status != "failed"}

    def get(self, spec_id):
        return self.results.get(spec_id)

    def put(self, result):
        self.results[result.spec.id] = result
        self.puts.append(result.spec.id)


@dataclass(frozen=True, kw_only=True)
class Here(Executor):
    parallel: int = 1  # type: ignore[assignment]

    def map(self, job, queue):
        while queue:
            yield job.run(queue.popleft())


def job(seconds=lambda spec: 1.0, status=lambda spec: "done"):
    def run(spec):
        return Outcome(spec=spec, status=status(spec), seconds=seconds(spec))

    return Job(run, Outcome)


def recorded():
    told = []

    def tell(phase, done, total, what, seconds_left):
        told.append((phase, done, total, what, seconds_left))

    return told, tell


def numbered(*values, **options):
    return FixedPlan("counting", map(Number, values), label=str_of, **options)


def str_of(spec):
    return f"number {spec.value}"


def test_what_is_missing_runs_once_and_in_order():
    kept = Memory(
        Outcome(spec=Number(2)), Outcome(spec=Number(3), status="failed", reason="why")
    )
    told, tell = recorded()
    bad = job(status=lambda spec: "failed" if spec.value == 3 else "done")
    carry_out(numbered(1, 2, 3, 4, 1), bad, kept, where=Here(), tell=tell)
    # What failed earlier is tried again, once; what was finished is not.
    assert kept.puts == ["1", "3", "4"]
    assert told == [
        ("counting", 1, 4, "", None),
        ("counting", 2, 4, "number 1", 2.0),
        ("counting", 3, 4, "number 3 (failed)", 1.0),
        ("counting", 4, 4, "number 4", 0.0),
    ]
    told.clear()
    carry_out(numbered(1, 2, 4), job(), kept, where=Here(), tell=tell)
    assert kept.puts == ["1", "3", "4"]
    assert told == [("counting", 3, 3, "", None)]


class Doubling(Plan):
    """Asks for twice of what it got, up to a limit."""

    phase = "doubling"

    def __init__(self, limit):
        self.limit = limit

    def remaining(self, known):
        value, done = 1, 0
        while str(value) in known:
            value, done = 2 * value, done + 1
        if value > self.limit:
            return Remaining({}, done)
        return Remaining({str(value): Number(value)}, done, later=2)

    def label(self, spec):
        return str(spec.value)


def test_a_plan_may_grow_as_results_come():
    kept, (told, tell) = Memory(), recorded()
    carry_out(Doubling(8), job(), kept, where=Here(), tell=tell)
    assert kept.puts == ["1", "2", "4", "8"]
    assert told[0] == ("doubling", 0, 3, "", None)
    # One waits and two will follow, of a second each.
    assert told[1] == ("doubling", 1, 4, "1", 3.0)
    assert told[-1] == ("doubling", 4, 4, "8", 0.0)


def test_an_interrupt_keeps_what_has_ended_and_the_run_goes_on():
    kept = Memory()

    def stop(phase, done, total, what, seconds_left):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        carry_out(Doubling(8), job(), kept, where=Here(), tell=stop)
    assert kept.puts == ["1", "2"]
    carry_out(Doubling(8), job(), kept, where=Here())
    assert kept.puts == ["1", "2", "4", "8"]


def test_the_time_left_follows_weights_kinds_and_workers():
    told, tell = recorded()
    specs = [Number(1, "a"), Number(2, "b"), Number(4, "b"), Number(3, "c")]
    plan = FixedPlan(
        "timing",
        specs,
        label=str_of,
        weight=lambda spec: spec.value,
        kind=lambda spec: spec.kind,
    )
    costs = {"a": 2.0, "b": 5.0, "c": 1.0}
    work = job(seconds=lambda spec: costs[spec.kind] * spec.value)
    carry_out(plan, work, Memory(), where=Here(parallel=2), tell=tell)
    left = [seconds for *_, seconds in told]
    # Kinds that have not run are as slow as the slowest that has; two run at a time.
    assert left[1] == (2 + 4 + 3) * 2 / 2
    assert left[2] == (4 * 5 + 3 * 5) / 2
    # The last one is alone, whatever the number of workers.
    assert left[3] == 3 * 5
    assert left[4] == 0


def test_known_results_are_read_when_they_are_asked_for():
    kept = Memory(Outcome(spec=Number(1)), Outcome(spec=Number(2)))
    known = Known(kept, {"1"})
    assert dict(known) == {"1": kept.get("1")}
    assert "2" not in known
    with pytest.raises(KeyError):
        known["2"]
    known.ids.add("2")
    assert known["2"] is kept.get("2")
    assert len(known) == 2


def test_the_engine_of_runs_is_loaded_without_torch_and_without_any_room():
    code = (
        "import sys, pkgutil, importlib, exhume.runs\n"
        "for m in pkgutil.walk_packages(exhume.runs.__path__, 'exhume.runs.'):\n"
        "    importlib.import_module(m.name)\n"
        "rooms = {m.split('.')[1] for m in sys.modules if m.startswith('exhume.')}\n"
        "print('torch' in sys.modules, sorted(rooms))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    found = done.stdout.strip()
    assert found == "False ['config', 'errors', 'member', 'registry', 'runs']"
