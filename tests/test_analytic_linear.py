"""The closed form of a biased linear layer is exact where theory says so."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

import exhume
from exhume.attacks.analytic_linear import AnalyticLinear, regression_target
from exhume.attacks.engine.linear_inversion import (
    class_split,
    input_of_linear_layer,
    isolated_inputs,
    rank_one_input,
)
from exhume.attacks.engine.linear_layer import scale_is_unknown
from exhume.defenses.clipping import Clipping
from exhume.defenses.pruning import Pruning
from exhume.errors import InvalidInput
from exhume.observations.gradient import Gradient
from exhume.problem.batch import Batch
from exhume.problem.knowledge import UNKNOWN
from exhume.problem.law import Law
from exhume.problem.mechanism import Mechanism
from exhume.problem.reconstruction import Outcome
from exhume.problem.task import Normalisation, Task
from exhume.problem.threat import ThreatModel
from exhume.problem.tree import norm, scale
from exhume.problem.world import World
from toys import (
    COLOUR,
    GRAY,
    VECTOR,
    convolutional,
    make_world,
    mlp,
    reveal,
    seeded,
    smooth,
    smooth_mlp,
)


def errors(inputs, world):
    """Mean squared error of the best match of every private example."""
    gap = inputs[None].to(world.batch.inputs) - world.batch.inputs[:, None]
    return gap.square().flatten(2).mean(2).amin(1)


@pytest.mark.parametrize("spec", [GRAY, COLOUR, VECTOR], ids=["gray", "colour", "vec"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_one_example_is_exact(spec, dtype):
    world = make_world(spec, dtype=dtype)
    guess = AnalyticLinear()(reveal(world, "parameter-aware"))
    assert guess.inputs.dtype == dtype
    assert float(errors(guess.inputs, world)) < torch.finfo(dtype).eps ** 2 * 1e3
    assert guess.targets.tolist() == [2]
    assert guess.outcome is Outcome.CLOSED_FORM
    assert guess.objective is None
    assert guess.adaptive


def test_normalisation_is_undone():
    normalise = Normalisation((0.5, 0.4, 0.3), (0.2, 0.3, 0.25))
    world = make_world(COLOUR, normalise=normalise)
    guess = AnalyticLinear()(reveal(world))
    assert float(errors(guess.inputs, world)) < 1e-11
    x = world.batch.inputs
    torch.testing.assert_close(normalise.undo(normalise(x)), x)


@pytest.mark.parametrize("known", [True, False], ids=["law known", "law unknown"])
@pytest.mark.parametrize("kind", ["random", "magnitude"])
def test_half_pruned_gradient_still_gives_the_input(kind, known):
    """Half of every tensor is zeroed, and the input comes back to 1e-6 (S26)."""
    world = make_world(VECTOR, key=3)
    problem = reveal(world)
    local = torch.Generator().manual_seed(1)
    mask = {}
    for name, t in problem.observed.items():
        score = torch.rand(t.shape, generator=local) if kind == "random" else t.abs()
        mask[name] = score > score.flatten().median()
    pruned = {n: t * mask[n] for n, t in problem.observed.items()}
    law = Law(mask=mask, irregular=None if kind == "random" else "drops small entries")
    hard = replace(problem, observed=pruned, law=law if known else Law())
    guess = AnalyticLinear()(hard)
    assert guess.notes[1:] == ()
    assert float((guess.inputs - world.batch.inputs).abs().max()) < 1e-5
    assert float(errors(guess.inputs, world)) < 1e-6


@pytest.mark.parametrize(
    "stack",
    [
        (Pruning(ratio=0.5),),
        (Pruning(ratio=0.5, kind="random"),),
        (Clipping(max_norm=0.01),),
        (Clipping(max_norm=0.01), Pruning(ratio=0.5)),
    ],
    ids=["magnitude", "random", "clipping", "clipping, then pruning"],
)
@pytest.mark.parametrize("threat", ["labels-known", "defense-unknown"])
def test_deterministic_defenses_do_not_stop_a_closed_form(stack, threat):
    world = make_world(VECTOR, key=3, defenses=stack)
    guess = AnalyticLinear()(reveal(world, threat))
    assert float(errors(guess.inputs, world)) < 1e-6


def test_an_inactive_clip_leaves_the_scale_known():
    world = make_world(VECTOR, labels=(0, 1))
    observed = reveal(world).observed
    for limit, unknown in ((1e3, False), (0.9 * float(norm(observed)), True)):
        clipped = replace(
            world, mechanism=Mechanism(Gradient(), (Clipping(max_norm=limit),))
        )
        problem = reveal(clipped)
        assert problem.law is not UNKNOWN
        assert scale_is_unknown(problem.law, problem.observed) == unknown


def test_coordinates_without_an_entry_are_filled_and_counted():
    world = make_world(GRAY)
    problem = reveal(world)
    keep = torch.ones(24, 64, dtype=torch.bool)
    keep[:, :10] = False
    mask = {"1.weight": keep}
    pruned = Law(mask=mask).keep(problem.observed)
    guess = AnalyticLinear()(replace(problem, observed=pruned, law=Law(mask=mask)))
    assert "10 of 64 coordinates" in guess.notes[1]
    flat = guess.inputs.flatten()
    assert flat[:10].tolist() == [0.5] * 10
    torch.testing.assert_close(flat[10:], world.batch.inputs.flatten()[10:])


def test_clipping_cancels_in_the_quotient():
    world = make_world(GRAY)
    problem = reveal(world)
    clipped = {n: 1e-3 * t for n, t in problem.observed.items()}
    guess = AnalyticLinear()(replace(problem, observed=clipped))
    assert float(errors(guess.inputs, world)) < 1e-10


def test_noise_is_weighed_by_the_law():
    """The error falls as the square of the noise, and a noisy block weighs less."""
    world = make_world(VECTOR, dtype=torch.float64)
    problem = reveal(world)
    found = {}
    for std in (1e-2, 1e-3):
        total = torch.zeros(())
        for key in range(20):
            local = torch.Generator().manual_seed(key)
            noisy = {
                n: t + std * torch.randn(t.shape, generator=local, dtype=t.dtype)
                for n, t in problem.observed.items()
            }
            law = Law(variance={n: torch.tensor(std**2) for n in noisy})
            guess = AnalyticLinear()(replace(problem, observed=noisy, law=law))
            total += errors(guess.inputs, world)[0] / 20
        found[std] = float(total)
    assert 50 < found[1e-2] / found[1e-3] < 200


def test_maximum_likelihood_beats_the_plain_quotient_on_uneven_noise():
    local = torch.Generator().manual_seed(0)
    x, delta = torch.randn(30, generator=local), torch.randn(40, generator=local)
    std = torch.where(torch.arange(40) < 20, 0.01, 0.5)
    plain = weighted = 0.0
    for _ in range(20):
        weight = torch.outer(delta, x) + std[:, None] * torch.randn(
            40, 30, generator=local
        )
        bias = delta + std * torch.randn(40, generator=local)
        trust = (0.01 / std) ** 2
        fitted, known = rank_one_input(
            weight, bias, trust[:, None].expand(40, 30), trust
        )
        assert bool(known.all())
        plain += float((input_of_linear_layer(weight, bias) - x).square().mean())
        weighted += float((fitted - x).square().mean())
    assert weighted < 0.1 * plain


@pytest.mark.parametrize("classes", [2, 5], ids="{} classes".format)
@pytest.mark.parametrize("size", [2, 4])
def test_relu_rows_give_several_examples_exactly(size, classes):
    """With two classes mixtures repeat too; only true examples survive the check."""
    labels = tuple(i % classes for i in range(size))
    model = mlp(GRAY, classes, width=96)
    world = make_world(GRAY, labels=labels, model=model, classes=classes)
    guess = AnalyticLinear()(reveal(world))
    assert float(errors(guess.inputs, world).max()) < 1e-9
    assert f"{size} of {size} examples were isolated and verified" in guess.notes[1]
    # Every example carries its own label, not just any label of the batch.
    own = (guess.inputs[:, None] - world.batch.inputs[None]).flatten(2).norm(dim=2)
    assert guess.targets.tolist() == world.batch.targets[own.argmin(1)].tolist()


def test_a_clipped_batch_is_peeled_with_an_unknown_factor():
    world = make_world(GRAY, labels=(0, 3, 4), model=mlp(GRAY, width=96))
    problem = reveal(world)
    clipped = {n: 0.01 * t for n, t in problem.observed.items()}
    law = Law(maps=(shrink,))
    guess = AnalyticLinear()(replace(problem, observed=clipped, law=law))
    assert float(errors(guess.inputs, world).max()) < 1e-8


def shrink(tree):
    return scale(0.01, tree)


def test_a_smooth_network_gives_mixtures_and_says_so():
    world = make_world(GRAY, labels=(0, 3), model=smooth_mlp(GRAY))
    guess = AnalyticLinear()(reveal(world))
    assert "0 of 2" in guess.notes[1]
    assert float(guess.inputs.min()) >= 0
    assert float(guess.inputs.max()) <= 1


def test_batch_norm_in_train_mode_leaves_rows_unverified():
    layers = [nn.Linear(64, 96), nn.ReLU(), nn.BatchNorm1d(96), nn.Linear(96, 5)]
    model = seeded(nn.Sequential(nn.Flatten(), *layers), 0)
    world = make_world(GRAY, labels=(0, 3), model=model, mode="train")
    guess = AnalyticLinear()(reveal(world))
    assert "unverified" in guess.notes[1]
    assert float(errors(guess.inputs, world).min()) < 1e-8


def test_a_linear_classifier_is_split_by_class():
    model = seeded(nn.Sequential(nn.Flatten(), nn.Linear(64, 5)), 0)
    world = make_world(GRAY, labels=(0, 1, 4), model=model)
    guess = AnalyticLinear()(reveal(world))
    assert float(errors(guess.inputs, world).max()) < 1e-8
    same = make_world(GRAY, labels=(1, 1, 4), model=model)
    mean = same.batch.inputs[:2].mean(0)
    guess = AnalyticLinear()(reveal(same))
    assert float((guess.inputs[0] - mean).square().mean()) < 2e-3
    assert bool((guess.inputs[0] == guess.inputs[1]).all())


def test_class_split_solves_its_equations():
    local = torch.Generator().manual_seed(0)
    z, labels = torch.rand(3, 8, generator=local).double(), torch.tensor([3, 0, 2])
    weight, bias = torch.randn(4, 8, generator=local).double() / 3, torch.zeros(4)
    delta = (z @ weight.T).softmax(-1) - torch.eye(4, dtype=torch.float64)[labels]
    found = class_split(delta.T @ z / 3, delta.mean(0), labels, weight, bias.double())
    torch.testing.assert_close(found, z, atol=1e-7, rtol=0)


def test_isolated_inputs_finds_shared_rows():
    z = torch.tensor([[1.0, 2.0, 3.0], [0.0, 1.0, 0.5]])
    delta = torch.tensor([[0.2, 0.0], [0.5, 0.0], [0.0, -1.0], [0.1, 0.3], [0.0, 0.7]])
    groups = isolated_inputs(delta @ z, delta.sum(1))
    assert {tuple(sorted(g.rows.tolist())) for g in groups} == {(0, 1), (2, 4)}
    for group in groups:
        torch.testing.assert_close(group.input, z[0 if 0 in group.rows else 1])
    assert isolated_inputs((delta @ z)[:1], delta.sum(1)[:1]) == []


@pytest.mark.parametrize("known", [True, False], ids=["targets known", "unknown"])
def test_the_target_of_a_regression_is_exact_too(known):
    model = smooth_mlp(VECTOR, classes=2)
    inputs, targets = smooth(VECTOR, 1, 0), torch.tensor([[0.3, -1.4]])
    world = World(
        Task(model, loss="mse"), Batch(inputs, targets, VECTOR), Mechanism(Gradient())
    )
    threat = ThreatModel("labels-known" if known else "parameter-aware")
    guess = AnalyticLinear()(threat.reveal(world, world.observe()))
    torch.testing.assert_close(guess.inputs, inputs, atol=1e-5, rtol=0)
    torch.testing.assert_close(guess.targets, targets, atol=1e-5, rtol=0)


def test_regression_target_inverts_the_gradient_of_the_squared_error():
    f = torch.tensor([0.2, 1.0, -3.0], requires_grad=True)
    y = torch.tensor([1.0, 0.5, 0.0])
    (gradient,) = torch.autograd.grad((f - y).square().mean(), f)
    torch.testing.assert_close(regression_target(f.detach(), gradient), y)


@pytest.mark.parametrize("size", [1, 3])
def test_a_convolution_first_is_out_of_reach(size):
    world = make_world(COLOUR, labels=(1,) * size, model=convolutional(COLOUR))
    guess = AnalyticLinear()(reveal(world))
    assert guess.outcome is Outcome.NOT_APPLICABLE
    assert guess.inputs.shape == (size, 3, 8, 8)
    assert "convolution" in guess.notes[0]
    assert guess.inputs.unique().tolist() == [0.5]


def test_label_option_is_checked():
    with pytest.raises(InvalidInput, match="'all'"):
        AnalyticLinear(labels="all")  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="labels"):
        exhume.attack("analytic-linear", labels="all")
    world = make_world(labels=(1, 1), model=mlp(GRAY, width=96))
    guess = AnalyticLinear(labels="bias-corrected")(reveal(world, "eavesdropper"))
    assert guess.targets.tolist() == [1, 1]
