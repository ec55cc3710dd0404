"""Conformance of attacks: nothing of the truth helps them but the observation."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn

import exhume
from exhume.config import build, describe
from exhume.defenses.gaussian_noise import GaussianNoise
from exhume.problem.event import EventSpec
from exhume.problem.knowledge import Problem
from exhume.problem.world import World

from .attacks import CLASSES, NAMES, brief, class_of, events_of, setting, shared_with
from .toys import DeadPixels, make_world, reveal, seeded, smooth, smooth_mlp

every_attack = pytest.mark.parametrize("name", NAMES)

_ELSEWHERE = """
import pickle, sys
import torch
from exhume.config import build
torch.set_num_threads(1)
answers = {}
for name, (problem, options) in pickle.loads(sys.stdin.buffer.read()).items():
    guess = build("attack", options)(problem, key=4)
    answers[name] = (guess.inputs.numpy(), guess.targets.numpy(), guess.objective)
sys.stdout.buffer.write(pickle.dumps(answers))
"""


def answers_elsewhere(problems: Mapping[str, Problem]) -> dict[str, Any]:
    """Attack problems in a fresh process, by the name of the attack."""
    given = {n: (p, describe(brief(n))) for n, p in problems.items()}
    done = subprocess.run(
        [sys.executable, "-c", _ELSEWHERE],
        input=pickle.dumps(given),
        capture_output=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr.decode()
    return pickle.loads(done.stdout)


def assert_same_bits(name: str, problem: Problem, answer: Any) -> None:
    """Attack a problem in this process, and compare with an answer elsewhere."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        here = brief(name)(problem, key=4)
    finally:
        torch.set_num_threads(threads)
    inputs, targets, objective = answer
    assert inputs.tobytes() == here.inputs.numpy().tobytes()
    assert targets.tolist() == here.targets.tolist()
    assert objective == here.objective


@cache
def noisy_problem(name: str) -> Problem:
    """Return a problem with a declared noise, and a prior beside it."""
    made = setting(name, events_of(name)[0], (3, 1))
    assert made.public is not None
    noise = replace(made.mechanism, defenses=(GaussianNoise(std=1e-3),))
    prior = exhume.prior("gaussian").fit(made.public, made.task)
    return reveal(replace(made, mechanism=noise, prior=prior))


@pytest.fixture(scope="module")
def elsewhere():
    return answers_elsewhere({name: noisy_problem(name) for name in NAMES})


@every_attack
def test_a_pickled_problem_gives_the_same_bits_in_a_fresh_process(name, elsewhere):
    """Nothing hides in the process: not the truth, not a global random state."""
    assert_same_bits(name, noisy_problem(name), elsewhere[name])


def blind_network(name: str, event: EventSpec, *, convolution: bool) -> nn.Module:
    """Make a network that never reads the first half of an example."""
    mask = torch.ones(event.dimension)
    mask[: event.dimension // 2] = 0
    dead = DeadPixels(mask.reshape(event.shape))
    own = class_of(name).small_world.get("model")
    built = own and build("model", own).build(event, CLASSES, key=0)
    frozen = built and not all(p.requires_grad for p in built.parameters())
    if built and not frozen:
        return nn.Sequential(dead, built)
    # Trained weights tell their data in homogeneous networks.
    free = shared_with(name)["name"] != "weights"
    if convolution:
        assert event.grid is not None
        channels, height, width = event.grid
        body = [
            nn.Conv2d(channels, 4, 3, padding=1),
            nn.Sigmoid() if free else nn.ReLU(),
        ]
        body += [nn.Flatten(), nn.Linear(4 * height * width, CLASSES, bias=free)]
    else:
        body = [nn.Flatten(), nn.Linear(event.dimension, 24)]
        body += [nn.Tanh() if free else nn.ReLU(), nn.Linear(24, CLASSES, bias=free)]
    model = seeded(nn.Sequential(dead, *body), 0)
    if not frozen:
        return model
    head = smooth_mlp(EventSpec.vector(CLASSES))
    return nn.Sequential(model.requires_grad_(requires_grad=False), head)


def twin_worlds(name: str, *, convolution: bool) -> tuple[World, World]:
    """Make two worlds whose secrets differ in what the network never reads."""
    event = events_of(name)[0]
    if convolution and event.grid is None:
        pytest.skip("reconstructs nothing on a grid")
    world = make_world(
        event,
        labels=(3, 1),
        model=blind_network(name, event, convolution=convolution),
        observation=build("observation", shared_with(name)),
        key=2,
    )
    seen = torch.arange(event.dimension).reshape(event.shape) >= event.dimension // 2
    other = torch.where(seen, world.batch.inputs, smooth(event, 2, 77))
    return world, replace(world, batch=replace(world.batch, inputs=other))


@every_attack
@pytest.mark.parametrize("convolution", [False, True], ids=["linear", "convolution"])
def test_swapping_the_secret_behind_an_equal_observation_changes_no_bit(
    name, convolution
):
    world, twin = twin_worlds(name, convolution=convolution)
    assert not torch.equal(world.batch.inputs, twin.batch.inputs)
    mine, theirs = reveal(world), reveal(twin)
    assert all(torch.equal(mine.observed[n], theirs.observed[n]) for n in mine.observed)
    attack = brief(name)
    a, b = attack(mine, key=3), attack(theirs, key=3)
    assert torch.equal(a.inputs, b.inputs)
    assert torch.equal(a.targets, b.targets)
    assert a.objective == b.objective


@every_attack
def test_garbage_in_place_of_the_truth_changes_no_bit(name):
    """Once the observation is made, the private batch may burn (S15)."""
    world = setting(name, events_of(name)[0], (3, 1))
    first = brief(name)(reveal(world), key=2)
    problem = reveal(world)
    world.batch.inputs.fill_(0.123)
    world.batch.targets.fill_(0)
    second = brief(name)(problem, key=2)
    assert torch.equal(first.inputs, second.inputs)
    assert torch.equal(first.targets, second.targets)
    assert first.objective == second.objective
