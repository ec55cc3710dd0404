"""Executors: equal bits, and nothing lost to a death, a defect or an interrupt."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import deque
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from exhume import audit
from exhume.audit import AuditSettings, TrialResult, TrialSpec, run_trial
from exhume.audit.settings import expand
from exhume.errors import InvalidInput, UnknownName
from exhume.runs.executor import executor_named, measured, single_threaded
from exhume.runs.store import Store
from exhume.trials.trial import TRIAL

TESTS = Path(__file__).parent
DIGITS = TrialSpec(
    data={"name": "digits"},
    model={"name": "mlp", "hidden": [8], "activation": "tanh"},
    attack={"name": "audit_lab.guesses"},
)


def with_attack(name, **changes):
    return replace(DIGITS, attack={"name": f"audit_lab.{name}"}, **changes)


def run(specs, executor, workers=2):
    return executor_named(executor, workers).map(TRIAL, deque(specs))


def test_trials_run_on_one_thread_and_the_number_is_restored():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with single_threaded():
            assert torch.get_num_threads() == 1
            assert os.environ["OMP_NUM_THREADS"] == "1"
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_dying_worker_costs_one_failed_row():
    specs = [
        with_attack("sleeps", seed=0),
        with_attack("dies", seed=1),
        with_attack("guesses", seed=2),
    ]
    found = {r.spec.seed: r for r in run(specs, "processes")}
    assert {seed: r.status for seed, r in found.items()} == {
        0: "done",
        1: "failed",
        2: "done",
    }
    assert "died twice" in found[1].reason


def test_a_defect_becomes_a_row_with_its_type_message_and_place():
    result = run_trial(with_attack("raises"))
    assert result.status == "failed"
    assert result.reason.startswith("ZeroDivisionError: integer division")
    assert "raises.py, line" in result.reason


def test_what_ends_a_program_does_not_end_a_sweep():
    result = run_trial(with_attack("exits"))
    assert result.status == "failed"
    assert result.reason.startswith("SystemExit: 3 (exits.py, line")
    assert result.versions["torch"] == torch.__version__

    @measured(TrialResult)
    def interrupted(spec):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted(DIGITS)


def test_an_unknown_executor_is_refused():
    with pytest.raises(UnknownName, match=r"'serail'; did you mean 'serial'\? known"):
        executor_named("serail")
    with pytest.raises(InvalidInput, match=r"'dask'; known: processes, serial"):
        AuditSettings(executor="dask")
    with pytest.raises(InvalidInput, match="workers is -1; it must be at least 0"):
        executor_named("processes", -1)
    # One process is one worker, whatever the settings say.
    assert executor_named("serial", 4).parallel == 1
    assert executor_named("processes", 4).parallel == 4
    assert executor_named("processes").parallel >= 1


def test_an_executor_of_one_s_own_is_a_module(tmp_path):
    settings = AuditSettings(
        data="digits",
        model={"name": "mlp", "hidden": [8]},
        attacks=[],
        prior=None,
        executor="audit_lab.backwards",
    )
    done = audit.run(settings, out=tmp_path)
    assert [r.status for r in done.results] == ["done", "done", "done"]
    with Store(tmp_path / "results.sqlite") as store:
        order = [r.spec.id for r in store.results()]
    assert order == [spec.id for spec in reversed(expand(settings))]


SWEEP = """
import sys
from exhume.audit import AuditSettings, run
def tell(phase, done, total, what, seconds_left):
    print(done, total, flush=True)
if __name__ == "__main__":
    run(
        AuditSettings(
            data="digits", model={"name": "mlp", "hidden": [8]}, prior=None,
            attacks=[{"name": "audit_lab.sleeps", "seconds": 0.2}], seeds=12,
            executor=sys.argv[1], workers=2,
        ),
        out=sys.argv[2], progress=tell,
    )
"""
TRIALS = 48


def hears_ctrl_c():
    """Undo what a shell does to a job in the background: it ignores SIGINT."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start(folder, executor):
    script = folder / "sweep.py"
    script.write_text(SWEEP)
    return subprocess.Popen(
        [sys.executable, str(script), executor, str(folder / "run")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(TESTS)},
        start_new_session=True,
        preexec_fn=hears_ctrl_c,
    )


def read_until(process, done):
    """Read the progress until so many trials ended."""
    assert process.stdout is not None
    for line in process.stdout:
        if int(line.split()[0]) >= done:
            return
    pytest.fail(f"the sweep ended early: {process.stderr.read()}")


def group_is_gone(group, seconds=10.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


def test_a_killed_sweep_resumes_without_losing_or_repeating(tmp_path):
    process = start(tmp_path, "processes")
    read_until(process, 27)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert group_is_gone(process.pid), "worker processes outlived their parent"
    with Store(tmp_path / "run" / "results.sqlite") as store:
        kept = {r.spec.id: r for r in store.results()}
    assert 27 <= len(kept) < TRIALS

    again = start(tmp_path, "serial")
    out, err = again.communicate(timeout=60)
    assert again.returncode == 0, err
    assert out.split("\n")[0] == f"{len(kept)} {TRIALS}"
    with Store(tmp_path / "run" / "results.sqlite") as store:
        assert list(store.runs().values()) == [1] * TRIALS
        for spec_id, before in kept.items():
            after = store.get(spec_id)
            assert after is not None
            assert (after.cost, after.seconds) == (before.cost, before.seconds)
            assert np.array_equal(after.arrays["guess"], before.arrays["guess"])


@pytest.mark.parametrize("executor", ["serial", "processes"])
def test_ctrl_c_keeps_what_is_finished_and_writes_the_report(tmp_path, executor):
    process = start(tmp_path, executor)
    read_until(process, 27)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode != 0
    assert err.rstrip().endswith("KeyboardInterrupt")
    assert group_is_gone(process.pid)
    with Store(tmp_path / "run" / "results.sqlite") as store:
        assert 27 <= len(store.finished()) < TRIALS
    assert (tmp_path / "run" / "report.html").is_file()


def test_a_script_without_guard_gets_a_sentence(tmp_path):
    script = tmp_path / "unguarded.py"
    script.write_text(
        "from audit_lab_specs import SPECS\n"
        "from collections import deque\n"
        "from exhume.runs.executor import executor_named\n"
        "from exhume.trials.trial import TRIAL\n"
        "executor = executor_named('processes', 2)\n"
        "print(len(list(executor.map(TRIAL, deque(SPECS)))))\n"
    )
    (tmp_path / "audit_lab_specs.py").write_text(
        f"from exhume.audit import TrialSpec\nSPECS = [{DIGITS!r}]\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": f"{TESTS}{os.pathsep}{tmp_path}"},
        check=False,
    )
    assert done.returncode != 0
    assert '`if __name__ == "__main__":`' in done.stderr.splitlines()[-1]
