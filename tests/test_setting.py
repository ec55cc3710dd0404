"""A setting is made once for everything that faces it, and is the same each time."""

import os
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from exhume.audit import run as run_audit
from exhume.audit.settings import AuditSettings, expand
from exhume.bounds.regularity import information_maps
from exhume.defenses.gaussian_noise import GaussianNoise
from exhume.defenses.optimal_gradient_noise import OptimalGradientNoise
from exhume.defenses.pruning import Pruning
from exhume.errors import InvalidInput
from exhume.problem.bound import NotApplicable
from exhume.problem.mechanism import Mechanism
from exhume.runs.records import SettingSpec, TrialSpec
from exhume.trials import exact, setting
from exhume.trials.exact import (
    Memory,
    TrainingResult,
    Trainings,
    exact_of,
    exact_spec,
    run_training,
    training_specs,
)
from exhume.trials.setting import make_setting
from exhume.trials.trial import run_trial
from exhume.trials.world import calibrated, release_key
from exhume.trials.world import make_world as world_of
from toys import GRAY, make_world

NETWORK = {"name": "mlp", "hidden": [8], "activation": "tanh"}
SPEC = SettingSpec(data={"name": "digits"}, model=NETWORK, batch_size=2)


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch):
    """Begin as a fresh process does."""
    forget(monkeypatch)


def forget(monkeypatch, limit=2**28):
    monkeypatch.setattr(setting, "_KEPT", Memory(limit))
    monkeypatch.setattr(exact, "_KEPT", Memory(limit))


def counted(monkeypatch, name):
    """Count how often a mechanism does something."""
    calls, original = [], getattr(Mechanism, name)

    def counting(self, *given):
        calls.append(given)
        return original(self, *given)

    monkeypatch.setattr(Mechanism, name, counting)
    return calls


def audit(defense, **given):
    settings = AuditSettings(
        data="digits",
        model=NETWORK,
        defenses=[defense],
        attacks=["analytic-linear"],
        bounds=["bayesian-cramer-rao"],
        seeds=1,
        **given,
    )
    return expand(settings)


def same(first, second):
    return first.keys() == second.keys() and all(
        torch.equal(first[name], second[name]) for name in first
    )


# --- plans ---------------------------------------------------------------------------


def test_a_world_calibrates_once_per_key(monkeypatch):
    calibrations = counted(monkeypatch, "calibrate")
    world = make_world(GRAY, defenses=[GaussianNoise(std=0.1)])
    first, again = world.observe(3), world.observe(3)
    points = [world.batch.inputs.double(), 0.9 * world.batch.inputs.double()]
    assert not isinstance(information_maps(world, points, 3), NotApplicable)
    assert [key for _, _, key in calibrations] == [3]
    assert first.plans is again.plans
    world.observe(4)
    assert [key for _, _, key in calibrations] == [3, 4]


def test_another_mechanism_has_its_own_plans():
    world = make_world(GRAY, defenses=[GaussianNoise(std=0.1)])
    world.observe(3)
    other = replace(world, mechanism=Mechanism(world.mechanism.observation, ()))
    assert other.plans(3) == ()


def test_a_world_can_be_given_plans_and_stays_as_it_was():
    world = make_world(GRAY, defenses=[Pruning(ratio=0.5, kind="random")])
    own, given = world.plans(3), world.plans(4)
    other = world.with_plans(3, given)
    assert other.plans(3) is other.observe(3).plans is given
    assert world.plans(3) is own
    assert other.plans(4) is given


def test_a_bound_calibrates_as_the_attacks_saw_it():
    world = make_world(GRAY, defenses=[OptimalGradientNoise(std=0.1, samples=2)])
    seen = world.observe(5).plans
    fresh = world.mechanism.calibrate(world.task, world.public, 5)
    for a, b in zip(seen, fresh, strict=True):
        assert same(a.arrays, b.arrays)


# --- F(S) ----------------------------------------------------------------------------

STACKS = {
    "none": [],
    "noise": [{"name": "gaussian-noise", "std": 0.1}],
    "another noise": [{"name": "gaussian-noise", "std": 0.2}],
    "clipping": [{"name": "clipping", "max_norm": 0.1}],
    "censor": [{"name": "censor", "trials": 2}],
    "dropout": [{"name": "dropout", "ratio": 0.5}],
    "dropout, noise": [
        {"name": "dropout", "ratio": 0.5},
        {"name": "gaussian-noise", "std": 0.1},
    ],
    "precode": [{"name": "precode"}],
    "dp-sgd": [
        {"name": "dp-sgd", "max_norm": 0.1, "noise_multiplier": 1, "batch_size": 2}
    ],
    "aggregation": [{"name": "secure-aggregation", "clients": 2}],
    "noise, aggregation": [
        {"name": "gaussian-noise", "std": 0.1},
        {"name": "secure-aggregation", "clients": 2},
    ],
}


#: stacks that leave the update itself alone
STACKS_SHARED = ("none", "noise", "another noise", "clipping", "censor")


def with_stack(name):
    return replace(SPEC, defenses=tuple(STACKS[name]))


@pytest.mark.parametrize("name", STACKS)
def test_a_release_of_a_given_update_has_the_same_bits(name):
    world = world_of(with_stack(name))
    found = world.observe(3)
    assert same(found.values, world.observe(3, exact=world.exact(3)).values)
    again = world.mechanism.values(world.task, world.batch, 3, found.plans)
    assert same(found.values, again)


@pytest.mark.parametrize("name", STACKS)
def test_what_the_update_depends_on_gives_the_same_update(name):
    spec = with_stack(name)
    full, own = world_of(spec), world_of(exact_spec(spec))
    for a, b in zip(full.exact(3), own.exact(3), strict=True):
        assert same(a, b)


def test_settings_share_the_update_unless_a_defense_changes_it():
    keys = {name: exact_spec(with_stack(name)).id for name in STACKS}
    alone = [name for name in STACKS if keys[name] == keys["none"]]
    assert alone == list(STACKS_SHARED)
    assert keys["dropout"] == keys["dropout, noise"]
    assert keys["aggregation"] == keys["noise, aggregation"]
    assert len(set(keys.values())) == 5
    assert exact_spec(replace(SPEC, prior={"name": "gaussian"})).id == keys["none"]
    assert exact_spec(replace(SPEC, seed=1)).id != keys["none"]
    few = {n: replace(with_stack(n), public_examples=5) for n in ("noise", "dropout")}
    assert exact_spec(few["noise"]).id == keys["none"]
    assert exact_spec(few["dropout"]).id != keys["dropout"]


@pytest.mark.parametrize("name", STACKS)
def test_the_measure_of_noise_is_what_an_undefended_client_shares(name):
    spec = with_stack(name)
    found = exact_of(calibrated(world_of(spec), spec), spec).whole
    if "dropout" in name or name == "precode":  # the model itself is another one
        assert not same(found, world_of(SPEC).exact(release_key(spec))[0])
    else:
        assert same(found, world_of(SPEC).exact(release_key(spec))[0])


def test_stacks_of_a_seed_share_one_computation(monkeypatch):
    calls = counted(monkeypatch, "exact")
    for name in ("none", "noise", "clipping", "dropout", "dropout, noise"):
        make_setting(with_stack(name))
    assert len(calls) == 2


# --- trainings -----------------------------------------------------------------------


def training(log, **options):
    return {"name": "audit_lab.trains", "log": str(log), **options}


def trainings(log):
    return len(log.read_text().splitlines()) if log.exists() else 0


@pytest.mark.parametrize("name", ["none", "dropout, noise", "noise, aggregation"])
def test_a_training_is_read_from_its_file_with_the_same_bits(
    tmp_path, monkeypatch, name
):
    log = tmp_path / "log"
    spec = replace(with_stack(name), observation=training(log))
    world = calibrated(world_of(spec), spec)
    made = exact_of(world, spec)
    forget(monkeypatch)
    assert run_training(exact_spec(spec), tmp_path).status == "done"
    before = trainings(log)
    forget(monkeypatch)
    read = exact_of(world, spec, tmp_path)
    assert trainings(log) == before
    parts = [(*found.clients, found.whole) for found in (made, read)]
    for a, b in zip(*parts, strict=True):
        assert list(a) == list(b)
        assert same(a, b)
    alone = len(made.clients) == 1
    assert (read.whole is read.clients[0]) == (made.whole is made.clients[0]) == alone


def test_stacks_that_share_a_training_wait_for_one(tmp_path, monkeypatch):
    log = tmp_path / "log"
    # Without "censor", whose client tries its own update out.
    stacks = map(with_stack, STACKS_SHARED[:-1])
    trained = [replace(spec, observation=training(log)) for spec in stacks]
    (wanted,) = training_specs([*trained, SPEC])
    run_training(wanted, tmp_path)
    for spec in trained:
        forget(monkeypatch)
        make_setting(spec, tmp_path)
    assert trainings(log) == 1
    (file,) = (tmp_path / "exact").iterdir()
    assert file == Trainings(tmp_path).path(exact_spec(trained[0]).id)


def test_what_needs_no_training_is_not_written(tmp_path):
    make_setting(SPEC, tmp_path)
    assert training_specs([SPEC]) == []
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_file_is_named_with_what_to_do(tmp_path, monkeypatch):
    spec = replace(SPEC, observation=training(tmp_path / "log"))
    run_training(exact_spec(spec), tmp_path)
    path = Trainings(tmp_path).path(exact_spec(spec).id)
    for content in (b"", path.read_bytes()[:-1], b"no tensors at all"):
        path.write_bytes(content)
        forget(monkeypatch)
        with pytest.raises(InvalidInput, match=r"damaged .*remove it"):
            make_setting(spec, tmp_path)


def audit_of_trainings(log, executor="serial", **options):
    return AuditSettings(
        data="digits",
        model=NETWORK,
        observation=training(log, **options),
        defenses=[STACKS["none"], STACKS["noise"], STACKS["clipping"]],
        attacks=[],
        bounds=["cramer-rao"],
        prior=None,
        batch_size=2,
        seeds=2,
        executor=executor,
        workers=2,
    )


def statuses(done):
    return Counter(result.status for result in done.results)


@pytest.mark.parametrize("executor", ["serial", "processes"])
def test_an_audit_trains_once_per_seed(tmp_path, monkeypatch, executor):
    log, folder = tmp_path / "log", tmp_path / "run"
    done = run_audit(audit_of_trainings(log, executor), out=folder)
    assert statuses(done) == {"done": 12, "not-applicable": 12}
    assert trainings(log) == 2
    forget(monkeypatch)
    more = replace(audit_of_trainings(log, executor), bounds=["bayes-security"])
    assert statuses(run_audit(more, out=folder)) == statuses(done)
    assert trainings(log) == 2
    facts = {r.spec.id: r.facts for r in done.results}
    for result in map(run_trial, expand(audit_of_trainings(log))[::5]):
        assert result.facts == facts[result.spec.id]


def test_a_killed_audit_does_not_train_again(tmp_path):
    log, folder = tmp_path / "log", tmp_path / "run"
    script = tmp_path / "audit.py"
    script.write_text(
        "from exhume.audit import AuditSettings, run\n"
        "if __name__ == '__main__':\n"
        f"    run({audit_of_trainings(log)!r}, out={str(folder)!r})\n"
    )
    path = {"PYTHONPATH": str(Path(__file__).parent)}
    process = subprocess.Popen(
        [sys.executable, str(script)], env={**os.environ, **path}
    )
    end = time.monotonic() + 120
    while not list(folder.glob("exact/*.safetensors")) and time.monotonic() < end:
        time.sleep(0.01)
    process.kill()
    process.wait()
    kept = len(list(folder.glob("exact/*.safetensors")))
    before = trainings(log)
    assert kept
    done = run_audit(audit_of_trainings(log, "processes"), out=folder)
    assert statuses(done) == {"done": 12, "not-applicable": 12}
    assert trainings(log) == before + 2 - kept


def test_a_failing_training_fails_each_of_its_trials_and_is_tried_again(tmp_path):
    log, folder = tmp_path / "log", tmp_path / "run"
    settings = audit_of_trainings(log, most=1)
    for attempt in (1, 2):
        done = run_audit(settings, out=folder)
        assert {(r.status, r.reason) for r in done.results} == {
            ("failed", "training diverged on 2 examples")
        }
        assert len(done.results) == 24
        assert trainings(log) == 2 * attempt


def test_a_training_that_kills_its_worker_fails_its_trials(tmp_path):
    log = tmp_path / "log"
    settings = audit_of_trainings(log, "processes", dies=True)
    done = run_audit(settings, out=tmp_path / "run")
    assert statuses(done) == {"failed": 24}
    assert all("died twice" in result.reason for result in done.results)


def test_a_training_that_succeeds_at_last_forgets_why_it_failed(tmp_path):
    kept, spec = Trainings(tmp_path), replace(SPEC, observation=training("log"))
    kept.put(TrainingResult(spec=spec, status="failed", reason="no memory"))
    with pytest.raises(InvalidInput, match="no memory"):
        kept.read(spec.id)
    assert kept.finished() == set()
    kept.put(TrainingResult(spec=spec, status="done"))
    assert kept.read(spec.id) is None
    found = kept.get(spec.id)
    assert found is not None
    assert found.status == "done"


# --- trials --------------------------------------------------------------------------


def test_trials_of_one_setting_share_it_and_give_the_same_bits(monkeypatch):
    calibrations = counted(monkeypatch, "calibrate")
    computations = counted(monkeypatch, "exact")
    specs = audit({"name": "optimal-gradient-noise", "std": 0.1, "samples": 2})
    shared = [run_trial(spec) for spec in specs]
    assert (len(calibrations), len(computations)) == (1, 1)
    for spec, result in zip(specs, shared, strict=True):
        forget(monkeypatch, limit=0)
        alone = run_trial(spec)
        assert alone.status == result.status == "done"
        assert alone.scores == result.scores
        assert alone.bound == result.bound
        assert alone.facts == result.facts
    assert len(calibrations) == len(computations) == 1 + len(specs)


def test_other_options_and_seeds_have_settings_of_their_own(monkeypatch):
    calibrations = counted(monkeypatch, "calibrate")
    (first, *_) = audit({"name": "gaussian-noise", "std": 0.1})
    (second, *_) = audit({"name": "gaussian-noise", "std": 0.2})
    for spec in (first, second, replace(first, seed=1)):
        run_trial(spec)
    assert len(calibrations) == 3


def test_the_setting_of_a_trial_does_not_know_what_is_tried():
    spec = TrialSpec(**vars(SPEC), attack={"name": "prior-mean"}, threat="eavesdropper")
    assert spec.released == SPEC
    assert type(spec.released) is SettingSpec
    assert spec.released.id == SPEC.id not in (spec.id, spec.setting)


def test_a_failing_training_fails_each_of_its_trials_with_the_reason(tmp_path):
    spec = TrialSpec(
        **vars(replace(SPEC, observation=training(tmp_path / "log", most=1)))
    )
    for what in (
        {"attack": {"name": "prior-mean"}},
        {"bound": {"name": "bayes-security"}},
    ):
        result = run_trial(replace(spec, **what))
        assert result.status == "failed"
        assert result.reason == "training diverged on 2 examples"


def test_what_was_longest_unused_gives_way():
    memory = Memory[int](limit=100)
    for key, value in (("a", 1), ("b", 2)):
        memory.keep(key, value, [torch.zeros(10)])  # 40 bytes
    assert memory.get("a") == 1
    memory.keep("c", 3, [torch.zeros(6), torch.zeros(4)])
    assert (memory.get("a"), memory.get("b"), memory.get("c")) == (1, None, 3)
    memory.keep("d", 4, [torch.zeros(26)])
    assert [memory.get(key) for key in "acd"] == [None] * 3
