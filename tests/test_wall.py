"""The wall: nothing of the truth reaches an attack except through the observation."""

from __future__ import annotations

import ast
import hashlib
import io
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import exhume
from conformance.test_wall import answers_elsewhere, assert_same_bits
from exhume.defenses.clipping import Clipping
from exhume.defenses.gaussian_noise import GaussianNoise
from exhume.defenses.pruning import Pruning
from exhume.problem.knowledge import UNKNOWN, Fact
from exhume.problem.threat import PRESETS, ThreatModel
from exhume.runs.records import SettingSpec
from exhume.trials.exact import exact_of, exact_spec, run_training
from exhume.trials.setting import make_setting
from toys import (
    GRAY,
    make_world,
    mlp,
    reveal,
    seeded,
)

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


# --- walk everything a problem carries -------------------------------------------


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


# --- the truth is neither changed nor used ------------------------------------


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
    run_training(exact_spec(TRAINED), tmp_path)
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
    run_training(exact_spec(TRAINED), tmp_path)
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
    assert_same_bits("kkt", own, answers_elsewhere({"kkt": own})["kkt"])


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
