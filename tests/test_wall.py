"""The wall: nothing of the truth reaches an attack except through the observation."""

from __future__ import annotations

import ast
import hashlib
import io
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import exhume
from exhume.defenses.clipping import Clipping
from exhume.defenses.gaussian_noise import GaussianNoise
from exhume.defenses.pruning import Pruning
from exhume.problem.event import EventSpec
from exhume.problem.knowledge import UNKNOWN, Fact
from exhume.problem.threat import PRESETS, ThreatModel
from exhume.runs.records import SettingSpec
from exhume.trials.exact import exact_of, make_exact
from exhume.trials.setting import make_setting
from test_attacks import NAMES, QUICK, quick, shared_with
from toys import (
    GRAY,
    DeadPixels,
    make_world,
    mlp,
    network_for,
    observation_for,
    reveal,
    seeded,
    smooth,
    smooth_mlp,
)

every_attack = pytest.mark.parametrize("name", NAMES)
STACKS = {
    "none": (),
    "noise": (GaussianNoise(std=0.01),),
    "clipping": (Clipping(max_norm=0.1),),
    "magnitude pruning": (Pruning(ratio=0.5),),
    "all": (
        Clipping(max_norm=0.1),
        Pruning(ratio=0.3, kind="random"),
        GaussianNoise(std=0.01),
    ),
}


# --- (a) a fresh process sees what the attack sees -----------------------------------

_ELSEWHERE = """
import pickle, sys, warnings
import torch
import exhume
torch.set_num_threads(1)
quick = pickle.loads(sys.stdin.buffer.read())
answers = {}
for name, (problem, options) in quick.items():
    guess = exhume.attack(name, **options)(problem, key=4)
    answers[name] = (guess.inputs.numpy(), guess.targets.numpy(), guess.objective)
sys.stdout.buffer.write(pickle.dumps(answers))
"""


def _with_prior(shared):
    world = make_world(
        labels=(3, 1),
        model=network_for(shared, GRAY),
        observation=observation_for(shared),
        defenses=(GaussianNoise(std=1e-3),),
    )
    assert world.public is not None
    prior = exhume.prior("gaussian").fit(world.public, world.task)
    return reveal(replace(world, prior=prior))


def test_a_pickled_problem_gives_the_same_bits_in_a_fresh_process():
    """Nothing hides in the process: not the truth, not a global random state."""
    problems = {
        shared: _with_prior(shared) for shared in {shared_with(n) for n in NAMES}
    }
    assert_same_answers_elsewhere({n: problems[shared_with(n)] for n in NAMES})


def assert_same_answers_elsewhere(problems):
    """Attack problems here and in a fresh process, by the name of the attack."""
    given = {n: (problem, QUICK.get(n, {})) for n, problem in problems.items()}
    done = subprocess.run(
        [sys.executable, "-c", _ELSEWHERE],
        input=pickle.dumps(given),
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    elsewhere = pickle.loads(done.stdout)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for name, problem in problems.items():
            here = quick(name)(problem, key=4)
            inputs, targets, objective = elsewhere[name]
            assert inputs.tobytes() == here.inputs.numpy().tobytes(), name
            assert targets.tolist() == here.targets.tolist(), name
            assert objective == here.objective, name
    finally:
        torch.set_num_threads(threads)


# --- (b) another secret with the same observation ------------------------------------


def twin_worlds(first_layer, shared="gradient", threat_labels=(3, 1)):
    """Make two worlds whose secrets differ in pixels that the network never reads."""
    mask = torch.ones(1, 8, 8)
    mask[:, :, :4] = 0
    # Trained weights tell their data in homogeneous networks.
    free = shared != "weights"
    body = [nn.Flatten(), nn.Linear(64, 24), nn.Tanh() if free else nn.ReLU()]
    if first_layer == "convolution":
        body = [nn.Conv2d(1, 4, 3, padding=1), nn.Sigmoid() if free else nn.ReLU()]
        body.append(nn.Flatten())
    width = 256 if first_layer == "convolution" else 24
    body.append(nn.Linear(width, 5, bias=free))
    model = seeded(nn.Sequential(DeadPixels(mask), *body), 0)
    if shared == "head":
        model.requires_grad_(requires_grad=False)
        model = nn.Sequential(model, smooth_mlp(EventSpec.vector(5)))
    own = observation_for(shared)
    world = make_world(labels=threat_labels, model=model, observation=own, key=2)
    other = torch.where(mask.bool(), world.batch.inputs, smooth(GRAY, 2, 77))
    return world, replace(world, batch=replace(world.batch, inputs=other))


@every_attack
@pytest.mark.parametrize("first_layer", ["linear", "convolution"])
def test_swapping_the_secret_behind_an_equal_observation_changes_no_bit(
    name, first_layer
):
    world, twin = twin_worlds(first_layer, shared_with(name))
    assert not torch.equal(world.batch.inputs, twin.batch.inputs)
    mine, theirs = reveal(world), reveal(twin)
    assert all(torch.equal(mine.observed[n], theirs.observed[n]) for n in mine.observed)
    attack = quick(name)
    a, b = attack(mine, key=3), attack(theirs, key=3)
    assert torch.equal(a.inputs, b.inputs)
    assert torch.equal(a.targets, b.targets)
    assert a.objective == b.objective


# --- (c) walk everything a problem carries -------------------------------------------


class Walker(pickle._Pickler):  # type: ignore[name-defined]
    """Collects every tensor, array and list of numbers that a pickle would carry."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO())
        self.found: list[torch.Tensor] = []

    def save(self, obj, save_persistent_id=True):
        if isinstance(obj, torch.Tensor):
            self.found.append(obj.detach())
        elif isinstance(obj, np.ndarray) and obj.dtype.kind in "fiub":
            self.found.append(torch.as_tensor(obj))
        elif (
            isinstance(obj, list | tuple)
            and obj
            and all(isinstance(v, int | float) for v in obj)
        ):
            self.found.append(torch.tensor(obj, dtype=torch.float64))
        super().save(obj, save_persistent_id)


def carried(problem) -> list[torch.Tensor]:
    walker = Walker()
    walker.dump(problem)
    return [t.to(torch.float64) for t in walker.found]


def holds_labels(found: list[torch.Tensor], labels: torch.Tensor, classes: int) -> bool:
    """Look for the labels in any order, as one-hot rows, or as counts."""
    ordered = labels.sort().values.double()
    counts = torch.bincount(labels, minlength=classes).double()
    for t in found:
        flat = t.flatten()
        if flat.shape == ordered.shape and torch.equal(flat.sort().values, ordered):
            return True
        if flat.shape == counts.shape and torch.equal(flat, counts):
            return True
        if t.shape == (len(labels), classes) and torch.equal(t.sum(0), counts):
            return True
    return False


def holds_inputs(found: list[torch.Tensor], inputs: torch.Tensor) -> bool:
    rows = inputs.flatten(1).double()
    size = rows.shape[1]
    for t in found:
        if t.numel() % size == 0 and t.numel():
            candidates = t.reshape(-1, size)
            if any(bool((candidates == row).all(1).any()) for row in rows):
                return True
    return False


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("threat", sorted(PRESETS))
def test_a_problem_carries_neither_inputs_nor_unknown_labels(threat, stack):
    """Every object that a pickled problem reaches is looked at (S4)."""
    labels = (4, 0, 3, 3, 1, 0, 3)
    world = make_world(labels=labels, model=mlp(GRAY), defenses=STACKS[stack])
    problem = reveal(world, threat)
    found = carried(problem)
    assert len(found) > 4
    assert not holds_inputs(found, world.batch.inputs)
    known = Fact.LABELS in ThreatModel(threat).known
    assert holds_labels(found, world.batch.targets, 5) == known
    assert problem.knows(Fact.LABELS) == known


def test_the_walker_finds_what_is_hidden():
    """The control: a leak in the law, in a list, as counts, or as inputs is seen."""
    world = make_world(labels=(4, 0, 3, 3, 1, 0, 3))
    problem = reveal(world, "eavesdropper")
    y = world.batch.targets
    assert problem.task is not UNKNOWN
    for leak in (y, y.tolist(), torch.bincount(y), y.flip(0).numpy(), {"y": (y, 1)}):
        object.__setattr__(problem.spec, "_leak", leak)
        assert holds_labels(carried(problem), y, 5)
    object.__setattr__(problem.spec, "_leak", {"x": [world.batch.inputs]})
    assert holds_inputs(carried(problem), world.batch.inputs)
    object.__delattr__(problem.spec, "_leak")
    assert not holds_labels(carried(problem), y, 5)


def test_labels_are_revealed_sorted():
    world = make_world(labels=(4, 0, 3))
    targets = reveal(world).targets
    assert targets is not UNKNOWN
    assert targets.tolist() == [0, 3, 4]
    assert world.batch.targets.tolist() == [4, 0, 3]


# --- (e, f) the truth is neither changed nor used ------------------------------------


def digest(world) -> str:
    total = hashlib.sha256()
    state = world.task.model.state_dict()
    for t in (world.batch.inputs, world.batch.targets, *state.values()):
        total.update(t.detach().numpy().tobytes())
    return total.hexdigest()


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("stack", STACKS)
def test_a_mechanism_leaves_the_truth_alone(stack, mode):
    """The private batch and the model are the same bits before and after (S5)."""
    layers = [nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 5)]
    model = seeded(nn.Sequential(nn.Flatten(), *layers), 0)
    world = make_world(labels=(2, 4), model=model, mode=mode, defenses=STACKS[stack])
    before = digest(world)
    observation = world.observe(key=1)
    ThreatModel("statistics-known").reveal(world, observation)
    assert digest(world) == before
    again = world.observe(key=1)
    for name, value in observation.values.items():
        assert torch.equal(value, again.values[name])


@every_attack
def test_garbage_in_place_of_the_truth_changes_no_bit(name):
    """Once the observation is made, the private batch may burn (S15)."""
    shared = shared_with(name)
    world = make_world(
        labels=(3, 1),
        model=network_for(shared, GRAY),
        observation=observation_for(shared),
    )
    first = quick(name)(reveal(world), key=2)
    problem = reveal(world)
    world.batch.inputs.fill_(0.123)
    world.batch.targets.fill_(0)
    second = quick(name)(problem, key=2)
    assert torch.equal(first.inputs, second.inputs)
    assert torch.equal(first.targets, second.targets)
    assert first.objective == second.objective


def test_the_observation_is_a_copy():
    """An attack that wrote to its observation could not reach the evaluator's."""
    norm = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 5))
    world = make_world(labels=(2, 4), model=seeded(norm, 0), mode="train")
    observation = world.observe()
    threat = ThreatModel("all", frozenset(Fact))
    problem, again = (threat.reveal(world, observation) for _ in range(2))
    statistics = [t for pair in problem.require(_STATISTICS).values() for t in pair]
    for t in (*problem.observed.values(), *statistics, problem.require(Fact.LABELS)):
        t.fill_(7)
    after = threat.reveal(world, observation)
    assert carried_bytes(after) == carried_bytes(again) != carried_bytes(problem)
    assert world.batch.targets.tolist() == [2, 4]


def carried_bytes(problem) -> list[bytes]:
    return [t.numpy().tobytes() for t in carried(problem)]


# --- (g) a setting is made once, and shared by all attacks on it ---------------------

TRAINED = SettingSpec(
    data={"name": "digits"},
    model={"name": "homogeneous-mlp", "hidden": [8]},
    observation={"name": "weights", "iterations": 40},
    defenses=({"name": "gaussian-noise", "std": 1e-3},),
    batch_size=2,
)


def holds_tree(found: list[torch.Tensor], tree) -> bool:
    return any(
        t.shape == own.shape and torch.equal(t, own.double())
        for t in found
        for own in tree.values()
    )


@pytest.mark.parametrize("threat", sorted(PRESETS))
def test_a_problem_carries_nothing_of_the_exact_update(threat, tmp_path):
    """What a training left is on the evaluator's side: noise was added to it."""
    setting = make_setting(TRAINED, tmp_path)
    exact = exact_of(setting.world, TRAINED, tmp_path).whole
    assert holds_tree(carried(setting), setting.release.observation.values)
    problem = ThreatModel(threat).reveal(setting.world, setting.release.observation)
    found = carried(problem)
    assert holds_tree(found, problem.observed)
    assert not holds_tree(found, exact)
    assert not holds_inputs(found, setting.world.batch.inputs)


def test_a_problem_of_a_setting_from_a_file_gives_the_same_bits_elsewhere(tmp_path):
    """Neither the process that trained nor the file of the training is needed."""
    make_exact(TRAINED, tmp_path)
    fresh = TRAINED, tmp_path
    done = subprocess.run(
        [sys.executable, "-c", _REVEALS],
        input=pickle.dumps(fresh),
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    problem = pickle.loads(done.stdout)
    for file in (tmp_path / "exact").iterdir():
        file.unlink()
    setting = make_setting(TRAINED)
    own = ThreatModel("labels-known").reveal(setting.world, setting.release.observation)
    assert carried_bytes(problem) == carried_bytes(own)
    assert_same_answers_elsewhere({"kkt": own})


_REVEALS = """
import pickle, sys
import torch
from exhume.problem.threat import ThreatModel
from exhume.trials.setting import make_setting
torch.set_num_threads(1)
setting = make_setting(*pickle.loads(sys.stdin.buffer.read()))
problem = ThreatModel("labels-known").reveal(setting.world, setting.release.observation)
sys.stdout.buffer.write(pickle.dumps(problem))
"""
_STATISTICS = Fact.BATCH_NORM_STATISTICS


def test_attacks_and_priors_cannot_name_the_evaluators_side():
    """No file of these rooms imports the world, a threat model or an observation."""
    source = Path(exhume.__file__).parent
    forbidden = {"World", "ThreatModel", "Observation", "Mechanism"}
    for room in ("attacks", "priors", "models"):
        for path in (source / room).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ImportFrom | ast.Import):
                    names = {alias.name.split(".")[-1] for alias in node.names}
                    assert not names & forbidden, path
