"""Two checkpoints as an observation: what changed, and what the command line says."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner

from exhume.cli import app
from exhume.errors import Inconsistent, InvalidInput
from exhume.keys import generator
from exhume.observations.checkpoints import difference
from exhume.observations.file import load, save
from exhume.observations.shared import share
from exhume.observations.update import Update
from exhume.problem.event import EventSpec
from exhume.problem.knowledge import UNKNOWN, Fact
from exhume.problem.mechanism import Mechanism
from exhume.problem.observation import Candidate
from exhume.problem.task import Task
from toys import seeded

SPEC = EventSpec.vector(6)


def net() -> nn.Module:
    """Return a small network with BatchNorm; also called by the command line."""
    layers = [nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3)]
    return seeded(nn.Sequential(*layers), 3)


def plain() -> nn.Module:
    """Return one without; also called by the command line."""
    return seeded(nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)), 3)


def examples(count: int = 4):
    local = generator(1, "checkpoints")
    return torch.randn(count, 6, generator=local), torch.arange(count) % 3


def trained(model: nn.Module, steps: int = 5, rate: float = 0.1) -> dict:
    inputs, labels = examples()
    optimiser = torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad], lr=rate
    )
    for _ in range(steps):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimiser.step()
    return {name: t.clone() for name, t in model.state_dict().items()}


def state(model: nn.Module) -> dict:
    return {name: t.clone() for name, t in model.state_dict().items()}


def test_buffers_and_counters_are_reported_and_never_part_of_the_update():
    before = state(net())
    after = trained(net())
    found = difference(before, after, net(), Update(rate=None, order="unknown"))
    # A bias before BatchNorm has no gradient, so it may stand still.
    rest = {n for n, _ in net().named_parameters()} - set(found.shared.values)
    assert rest <= {"0.bias"}
    words = " ".join(f.sentence for f in found.findings)
    assert "'1.num_batches_tracked' grew by 5: the client took 5 steps" in words
    assert "'1.running_mean', '1.running_var' changed: running statistics" in words
    assert {f.severity for f in found.findings} == {"note", "warning"}


def test_layers_that_stood_still_count_as_frozen():
    tuned = plain()
    tuned[0].requires_grad_(False)
    before, after = state(plain()), trained(tuned)
    found = difference(before, after, plain(), Update(rate=0.1, order="given"))
    assert list(found.shared.values) == ["2.weight", "2.bias"]
    assert "count as frozen" in found.findings[0].sentence
    shared = replace(found.shared, spec=SPEC, mode="eval", batch_size=4)
    problem = shared.problem(plain())
    assert list(problem.task.parameters()) == ["2.weight", "2.bias"]
    assert problem.learning_rate == 0.1
    model = problem.require(Fact.LOCAL_SCHEDULE)
    assert (model.rate, model.order) == (0.1, "given")


def test_checkpoints_of_two_architectures_or_of_one_moment_are_refused():
    wide = seeded(nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 3)), 3)
    open_schedule = Update(rate=None, order="unknown")
    with pytest.raises(Inconsistent, match="different architectures") as caught:
        difference(state(plain()), state(wide), plain(), open_schedule)
    assert len(caught.value.problems) == 3
    with pytest.raises(Inconsistent, match="do not fit the model"):
        difference(state(wide), trained(wide), plain(), open_schedule)
    with pytest.raises(InvalidInput, match="nothing was learned"):
        difference(state(plain()), state(plain()), plain(), open_schedule)


@pytest.mark.parametrize("known", [True, False])
def test_an_update_survives_its_file(tmp_path, known):
    observation = Update(
        epochs=3,
        batch_size=2,
        rate=0.1 if known else None,
        order="shuffled" if known else "unknown",
        order_key=7 if known else 0,
    )
    task, (inputs, labels) = Task(plain()), examples()
    values = observation.forward(task, Candidate(inputs, labels))
    mechanism = Mechanism(observation)
    shared = share(values, task, SPEC, batch_size=4, mechanism=mechanism)
    read = load(save(tmp_path / "update.safetensors", shared))
    assert read.observation == observation
    assert all(torch.equal(t, values[n]) for n, t in read.values.items())
    problem = read.problem(plain())
    assert (problem.learning_rate is UNKNOWN) == (not known)
    assert (problem.batch_order is UNKNOWN) == (not known)
    assert problem.require(Fact.LOCAL_SCHEDULE) == observation


def run(*arguments: str):
    return CliRunner().invoke(app, ["attack", *arguments])


def test_the_command_line_attacks_the_change_between_two_checkpoints(tmp_path):
    before, after = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_file(state(plain()), before)
    save_file(trained(plain(), steps=1), after)
    result = run(
        "gauss-newton",
        *("--model", "test_checkpoints:plain", "--mode", "eval", "--shape", "6"),
        *("--before", str(before), "--after", str(after), "--labels", "0,1,2,0"),
        *("--schedule", "rate=0.1", "--out", str(tmp_path / "answer")),
        *("--option", "iterations=5", "--no-defense"),
    )
    assert result.exit_code == 0, result.output
    assert "answer:" in result.output


def test_the_command_line_explains_what_it_lacks(tmp_path):
    before = tmp_path / "a.safetensors"
    save_file(state(plain()), before)
    common = ("--model", "test_checkpoints:plain", "--mode", "eval", "--shape", "6")
    alone = run("gauss-newton", *common, "--before", str(before))
    assert alone.exit_code == 2
    assert "--before and --after" in alone.output
    nothing = run("gauss-newton", *common)
    assert "nothing to attack" in nothing.output


def pair(tmp_path, after: dict) -> tuple[str, ...]:
    save_file(state(plain()), tmp_path / "a.safetensors")
    save_file(after, tmp_path / "b.safetensors")
    files = (str(tmp_path / f"{name}.safetensors") for name in "ab")
    return (
        *("surrogate-model", "--model", "test_checkpoints:plain", "--mode", "eval"),
        *("--shape", "6", "--labels", "0,1,2,0", "--option", "iterations=2"),
        *("--no-defense", "--out", str(tmp_path / "answer")),
        *(x for flag in zip(("--before", "--after"), files, strict=True) for x in flag),
    )


def test_the_command_line_says_what_it_assumes_of_a_schedule(tmp_path):
    arguments = pair(tmp_path, trained(plain()))
    nothing = run(*arguments)
    assert nothing.exit_code == 0, nothing.output
    assert "does not say epochs and batch_size" in nothing.output
    assert "assume one epoch" in nothing.output
    shutil.rmtree(tmp_path / "answer")
    said = run(*arguments, "--schedule", "epochs=5", "--schedule", "batch_size=4")
    assert said.exit_code == 0, said.output
    assert "does not say" not in said.output


def test_the_command_line_tells_frozen_layers(tmp_path):
    tuned = plain()
    tuned[0].requires_grad_(False)
    found = run(*pair(tmp_path, trained(tuned)), "--schedule", "epochs=5")
    assert found.exit_code == 0, found.output
    assert "'0.bias', '0.weight' did not change and count as frozen" in found.output


@pytest.mark.parametrize(
    ("schedule", "sentence"),
    [
        ("rates=0.1", "has no option 'rates'; did you mean 'rate'?"),
        ("rate", "--schedule is 'rate'; expected key=value, like epochs=5"),
        ("rate=-1", "expected a learning rate above 0"),
        ("optimiser=rmsprop", "'sgd', 'adam' or 'adamw' (got 'rmsprop')"),
    ],
)
def test_a_schedule_that_makes_no_sense_is_explained(tmp_path, schedule, sentence):
    found = run(*pair(tmp_path, trained(plain())), "--schedule", schedule)
    assert found.exit_code == 2
    assert sentence in " ".join(found.output.split())


def test_checkpoints_that_fit_no_more_are_explained(tmp_path):
    wide = seeded(nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 3)), 3)
    found = run(*pair(tmp_path, trained(wide)))
    assert found.exit_code == 2
    assert "different architectures (3 tensors differ)" in found.output
    broken = trained(plain())
    broken["0.weight"][0, 0] = float("nan")
    found = run(*pair(tmp_path, broken))
    assert found.exit_code == 2
    assert "1 of 48 values are NaN or inf" in found.output
