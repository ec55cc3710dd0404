"""A frozen backbone and a trained head: the split, the two problems, the attack."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import exhume
from conformance.closeness import assert_close_to_scale
from exhume.attacks.embedding import Embedding
from exhume.attacks.engine.embedding_problems import (
    head_view,
    image_problem,
    probe_task,
)
from exhume.attacks.engine.frozen_split import frozen_split, typical_embeddings
from exhume.config import build
from exhume.errors import Inconsistent, InvalidInput, Unsuited
from exhume.observations.fine_tuning import FineTuning
from exhume.observations.gradient import Gradient
from exhume.observations.update import Update
from exhume.observations.weights import Weights
from exhume.priors.gaussian import GaussianDensity
from exhume.problem.event import EventSpec
from exhume.problem.knowledge import UNKNOWN
from exhume.problem.law import Law
from exhume.problem.observation import Candidate
from exhume.problem.reconstruction import Outcome
from exhume.problem.task import Normalisation, Task
from exhume.trials.memorised import best_correlations
from toys import GRAY, homogeneous, make_world, mlp, reveal, seeded, smooth, transfer

QUICK_HEAD = {"iterations": 200, "polish": 50, "newton": 20}
HALF = Normalisation((0.5,), (0.25,))


def frozen(*layers):
    return nn.Sequential(*layers).requires_grad_(requires_grad=False)


def over_conv(*, train_head=True):
    """Convolutions that keep their three axes, under a head that flattens them."""
    body = seeded(nn.Sequential(nn.Conv2d(1, 3, 3, stride=2, padding=1), nn.Tanh()), 0)
    body.requires_grad_(requires_grad=False)
    head = nn.Sequential(nn.Flatten(), seeded(nn.Linear(48, 5), 1))
    return nn.Sequential(OrderedDict(body=body, top=head.requires_grad_(train_head)))


class Skips(nn.Module):
    """Names a backbone and a head, and may add something beside them."""

    def __init__(self, beside: float) -> None:
        super().__init__()
        self.backbone = frozen(nn.Flatten(), seeded(nn.Linear(64, 7), 0), nn.Tanh())
        self.head = seeded(nn.Linear(7, 5), 1)
        self.beside = beside

    def forward(self, x):
        return self.head(self.backbone(x)) + self.beside * x.mean()


# --- the split -----------------------------------------------------------------------


@pytest.mark.parametrize("normalise", [None, HALF], ids=["plain", "normalised"])
@pytest.mark.parametrize(
    ("model", "dimension", "names"),
    [
        (transfer(GRAY), 80, ["1.bias", "1.weight", "3.bias", "3.weight"]),
        (over_conv(), 48, ["top.1.bias", "top.1.weight"]),
        (Skips(0.0), 7, ["head.bias", "head.weight"]),
    ],
    ids=["dense", "convolution", "attributes"],
)
def test_the_head_of_the_embeddings_is_the_network(model, dimension, names, normalise):
    task = Task(model.double(), normalise=normalise)
    split = frozen_split(task, GRAY)
    x = smooth(GRAY, 3, 1).double()
    z = split.embed(x)
    assert z.shape == (3, dimension) == (3, split.dimension)
    assert not any(p.requires_grad for p in split.backbone.parameters())
    head = Task(split.head)
    assert sorted(head.parameters()) == sorted(task.parameters()) == names
    torch.testing.assert_close(
        head.predict(z, head.parameters()), task.predict(x, task.parameters())
    )


def test_layers_without_weights_belong_to_what_comes_before_them():
    """The longest frozen prefix, so that the head sees what its first layer reads."""
    layers = [nn.Flatten(), frozen(nn.Linear(64, 6)), nn.ReLU(), nn.Linear(6, 5)]
    split = frozen_split(Task(seeded(nn.Sequential(*layers), 0)), GRAY)
    assert [n for n, _ in split.backbone.named_children()] == ["0", "1", "2"]
    assert [n for n, _ in split.head.named_children()] == ["3"]
    assert bool((split.embed(smooth(GRAY, 4, 0)) >= 0).all())


def late():
    layers = [nn.Flatten(), nn.Linear(64, 6), nn.Tanh(), nn.Linear(6, 5)]
    layers[3].requires_grad_(requires_grad=False)
    return seeded(nn.Sequential(*layers), 0)


class Plain(nn.Module):
    """A module of another make."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp(GRAY)

    def forward(self, x):
        return self.body(x)


def normed():
    body = frozen(nn.Flatten(), nn.Linear(64, 6), nn.BatchNorm1d(6))
    return nn.Sequential(body, nn.Linear(6, 5))


@pytest.mark.parametrize(
    ("model", "mode", "sentence"),
    [
        (mlp(GRAY), "eval", "no frozen backbone.*set requires_grad to False"),
        (late(), "eval", "the first layer with weights is trained"),
        (Plain(), "eval", "a Plain cannot be cut.*'backbone' and 'head'"),
        (Skips(1.0), "eval", "not its head applied to its backbone"),
        (normed(), "train", "BatchNorm in train mode.*use mode = 'eval'"),
    ],
    ids=["nothing frozen", "frozen last", "no parts", "skip", "batch norm"],
)
def test_what_cannot_be_split_is_told(model, mode, sentence):
    world = make_world(GRAY, labels=(3, 0), model=model, mode=mode)
    with pytest.raises(Unsuited, match=sentence):
        exhume.attack("embedding")(reveal(world))


# --- the two problems ----------------------------------------------------------------


@pytest.mark.parametrize("normalise", [None, HALF], ids=["plain", "normalised"])
def test_the_gradient_of_the_probe_is_the_embedding(normalise):
    """∇_w (⟨w, g(x)⟩ − y)² = g(x) at w = 0 and y = −1/2."""
    task = Task(transfer(GRAY).double(), normalise=normalise)
    split = frozen_split(task, GRAY)
    x = smooth(GRAY, 1, 2).double()
    probe = probe_task(split)
    assert list(probe.parameters()) == ["probe.weight"]
    found = probe.gradient(x, torch.tensor([-0.5], dtype=torch.float64))
    assert_close_to_scale(found["probe.weight"], split.embed(x), 1e-13)


@pytest.mark.parametrize("threat", ["labels-known", "defense-unknown"])
def test_the_problem_of_an_image_holds_at_the_image(threat):
    world = make_world(GRAY, model=transfer(GRAY), dtype=torch.float64)
    problem = reveal(world, threat)
    split = frozen_split(world.task, GRAY)
    inner = image_problem(
        problem, probe_task(split), split.embed(world.batch.inputs)[0], 0.1
    )
    assert isinstance(inner.task, Task)
    assert isinstance(inner.targets, torch.Tensor)
    again = Gradient().forward(inner.task, Candidate(world.batch.inputs, inner.targets))
    torch.testing.assert_close(again, inner.observed)
    assert inner.spec == GRAY
    # Errors of a tenth of the root mean square, whatever the units of the embedding.
    z = inner.observed["probe.weight"]
    assert isinstance(inner.law, Law)
    share = inner.law.variance["probe.weight"] / z.square().mean()
    assert float(share) == pytest.approx(0.01)


@pytest.mark.parametrize("threat", ["labels-known", "parameter-aware"])
@pytest.mark.parametrize("model", [transfer(GRAY), over_conv()], ids=["dense", "conv"])
def test_the_problem_of_the_head_holds_at_the_embeddings(model, threat):
    """The observation is the head's gradient at g(x), whatever the units of z."""
    world = make_world(GRAY, labels=(3, 0, 1), model=model, dtype=torch.float64)
    problem = reveal(world, threat)
    split = frozen_split(world.task, GRAY)
    view = head_view(problem, split)
    z = split.embed(world.batch.inputs)
    torch.testing.assert_close(view.embeddings(view.standard(z)), z)
    assert isinstance(view.problem.task, Task)
    again = Gradient().forward(
        view.problem.task, Candidate(view.standard(z), world.batch.targets)
    )
    torch.testing.assert_close(again, dict(problem.observed))
    assert view.problem.spec.kind == "vector"
    assert view.problem.spec.shape == (split.dimension,)


def test_public_examples_give_the_range_of_embeddings():
    world = make_world(GRAY, model=transfer(GRAY), dtype=torch.float64)
    problem, split = reveal(world, "data-enhanced"), frozen_split(world.task, GRAY)
    view = head_view(problem, split)
    assert (view.problem.spec.low, view.problem.spec.high) == (0.0, 1.0)
    assert isinstance(view.problem.public, exhume.Batch)
    assert world.public is not None
    torch.testing.assert_close(
        view.embeddings(view.problem.public.inputs), split.embed(world.public.inputs)
    )
    unknown = replace(problem, public=UNKNOWN)
    assert head_view(unknown, split).problem.spec == EventSpec.vector(80)


def test_units_come_from_what_is_known_of_the_data():
    """From public examples, else from draws of the prior, else from any inputs."""
    world = make_world(GRAY, model=transfer(GRAY), dtype=torch.float64)
    dark = torch.full(GRAY.shape, 0.1, dtype=torch.float64)
    prior = GaussianDensity.from_covariance(dark, 1e-3 * torch.eye(64))
    split = frozen_split(world.task, GRAY)
    known = replace(reveal(world), prior=prior)
    no_public = replace(known, public=UNKNOWN)
    nothing = replace(no_public, prior=UNKNOWN)
    assert world.public is not None
    public, drawn, any_ = (
        typical_embeddings(split, p) for p in (known, no_public, nothing)
    )
    assert_close_to_scale(public, split.embed(world.public.inputs), 1e-13)
    middle = split.embed(dark[None])[0]
    assert float((drawn.mean(dim=0) - middle).norm()) < 0.1
    assert float((any_.mean(dim=0) - middle).norm()) > 0.5


def test_where_a_rectifier_ends_the_range_ends():
    """Units that are off for several public examples have exactly 0 as their bound."""
    body = frozen(nn.Flatten(), seeded(nn.Linear(64, 30), 0), nn.ReLU())
    model = nn.Sequential(body, seeded(nn.Linear(30, 5), 1))
    world = make_world(GRAY, model=model, dtype=torch.float64)
    split = frozen_split(world.task, GRAY)
    view = head_view(reveal(world, "data-enhanced"), split)
    assert world.public is not None
    z = split.embed(world.public.inputs)
    off = (z == 0).sum(dim=0) > 1
    assert bool(off.any())
    assert not bool(off.all())
    assert bool((view.shift[off] == 0).all())
    assert bool((view.shift[~off] < z.amin(dim=0)[~off]).all())
    dead = (z == 0).all(dim=0)
    assert bool((view.scale > 0).all())
    assert bool((view.scale[~dead] >= (z.amax(dim=0) - view.shift)[~dead]).all())


# --- the attack ----------------------------------------------------------------------


def attacked(observation, model, labels, **options):
    """Attack three examples; return correlations of images and of embeddings."""
    world = make_world(
        GRAY,
        labels=labels,
        model=model,
        observation=observation,
        dtype=torch.float64,
        public=40,
    )
    problem = reveal(world)
    guess = Embedding(**options)(problem, key=0)
    split = frozen_split(world.task, GRAY)
    assert world.public is not None
    public = world.public.inputs
    middle = public.mean(dim=0)
    z = split.embed(public)
    return (
        guess,
        best_correlations(world.batch.inputs, guess.inputs, middle),
        best_correlations(
            split.embed(world.batch.inputs), split.embed(guess.inputs), z.mean(dim=0)
        ),
        best_correlations(world.batch.inputs, public, middle),
        world,
    )


def wide():
    """A smooth wide head, the kind whose change is a combination of tangents."""
    source = build(
        "model",
        {
            "name": "transfer",
            "backbone": {"name": "mlp", "hidden": [80], "activation": "tanh"},
            "head": {"name": "tangent-mlp", "hidden": [200]},
        },
    )
    return source.build(GRAY, 5, 0)


@pytest.mark.parametrize(
    ("observation", "model"),
    [(Gradient(), transfer(GRAY)), (FineTuning(linearised=True), wide())],
    ids=["gradient", "fine-tuning"],
)
def test_images_come_back_through_their_embeddings(observation, model):
    guess, images, embeddings, chance, world = attacked(
        observation, model, (3, 0, 1), head_options=QUICK_HEAD
    )
    assert int((images > 0.9).sum()) >= 2
    assert int((embeddings > 0.9).sum()) >= 2
    # Forty public images, nearest by the truth, show what typical images reach.
    assert int((chance > 0.9).sum()) == 0
    assert guess.targets.sort().values.tolist() == [0, 1, 3]
    assert set(world.task.parameters()) == set(reveal(world).observed)
    assert any(n.startswith("Embeddings: ") for n in guess.notes)
    assert any("maps 64 numbers of an example to 80" in n for n in guess.notes)


def test_without_the_second_stage_nothing_comes_back():
    """The image is in the inversion: the centre has the misfit that the note tells."""
    options = {"head_options": QUICK_HEAD, "image": "prior-mean"}
    guess, images, *_ = attacked(Gradient(), transfer(GRAY), (3, 0, 1), **options)
    assert float(images.max()) < 0.9
    said = next(n for n in guess.notes if "differ from the reconstructed" in n)
    assert float(said.split("embeddings by ")[1].split(" ")[0]) > 0.05


def test_trained_weights_of_a_head_are_attacked_by_their_own_attack():
    body = frozen(nn.Flatten(), seeded(nn.Linear(64, 80), 0), nn.Tanh())
    head = homogeneous(EventSpec.vector(80), width=60)
    model = nn.Sequential(body, *head.children())
    options: dict[str, Any] = {
        "head_options": {"iterations": 300, "restarts": 1, "rate": 0.05}
    }
    guess, *_, world = attacked(Weights(), model, (3, 0), **options)
    assert guess.inputs.shape == (2, 1, 8, 8)
    assert guess.objective is not None
    assert 0 < guess.objective < 0.5
    assert any("homogeneous" in note for note in guess.notes)
    problem = reveal(world)
    attack = Embedding(**options)
    oracle = attack.objective(problem, world.batch.inputs, world.batch.targets)
    other = attack.objective(problem, smooth(GRAY, 2, 9).double(), world.batch.targets)
    assert oracle is not None
    assert other is not None
    assert oracle < 0.5 * other


def test_a_head_that_is_not_homogeneous_is_refused_for_weights():
    observation = Weights(iterations=5)
    with pytest.raises(Unsuited, match="not homogeneous"):
        attacked(observation, transfer(GRAY), (3, 0))


def test_an_update_of_several_steps_reaches_an_attack_that_knows_the_schedule():
    observation = Update(epochs=2, rate=0.1)
    options = {"head": "surrogate-model", "head_options": {"iterations": 3}}
    guess, *_ = attacked(observation, transfer(GRAY), (3, 0), **options)
    assert guess.outcome is not Outcome.NOT_APPLICABLE
    assert guess.inputs.shape == (2, 1, 8, 8)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"image": "embedding"}, "must be others than itself"),
        ({"head": "embedding"}, "must be others than itself"),
        ({"image": "kkt"}, "'kkt', which does not invert gradients"),
        ({"error": 1.0}, "error is 1.0; expected at least 0 and below 1"),
        ({"error": -0.1}, "error is -0.1"),
        ({"head": "kkt", "head_options": {"speed": 1}}, "no option 'speed'"),
        ({"image_options": {"speed": 1}}, "no option 'speed'"),
        ({"head": "nobody"}, "no attack is called 'nobody'"),
    ],
    ids=str,
)
def test_bad_options_are_told(options, sentence):
    with pytest.raises(exhume.errors.ExhumeError, match=sentence):
        Embedding(**options)


# --- the model -----------------------------------------------------------------------

SOURCE = {
    "name": "transfer",
    "backbone": {"name": "mlp", "hidden": [12, 10]},
    "head": {"name": "mlp", "hidden": [8]},
}


def test_only_the_head_is_trained():
    net = build("model", SOURCE).build(GRAY, 3, 0)
    assert sorted(Task(net).parameters()) == [
        "head.fc1.bias", "head.fc1.weight", "head.fc2.bias", "head.fc2.weight"
    ]  # fmt: skip
    x = smooth(GRAY, 2, 0)
    body = build("model", SOURCE["backbone"]).build(GRAY, 1, 0)
    assert net.backbone(x).shape == (2, 10)
    assert bool((net.backbone(x) >= 0).all())
    assert len(list(net.backbone.parameters())) == len(list(body.parameters())) - 2


@pytest.mark.parametrize("backbone", ["convnet", "lenet-zhu", "resnet18", "two-layer"])
def test_any_model_becomes_a_backbone(backbone):
    spec = EventSpec.image(1, 14, 14)
    net = build("model", {**SOURCE, "backbone": {"name": backbone}}).build(spec, 3, 0)
    split = frozen_split(Task(net), spec)
    assert split.embed(smooth(spec, 2, 0)).shape == (2, split.dimension)
    assert net(smooth(spec, 2, 0)).shape == (2, 3)


def test_a_seed_fixes_the_backbone_and_not_the_head():
    source = build("model", {**SOURCE, "seed": 4})
    one, two = (source.build(GRAY, 3, key).state_dict() for key in (0, 1))
    same = {n: torch.equal(one[n], two[n]) for n in one}
    assert all(same[n] for n in same if n.startswith("backbone"))
    assert not any(same[n] for n in same if n.startswith("head"))


def test_weights_of_a_backbone_come_from_a_file(tmp_path):
    body = build("model", SOURCE["backbone"]).build(GRAY, 7, 5)
    path = tmp_path / "body.safetensors"
    save_file(body.state_dict(), path)
    net = build("model", {**SOURCE, "weights": str(path)}).build(GRAY, 3, 0)
    x = smooth(GRAY, 2, 0)
    torch.testing.assert_close(net.backbone(x), body[:-1](x))

    tensors = body.state_dict()
    save_file({"fc1.weight": tensors["fc1.weight"][:5].contiguous()}, path)
    with pytest.raises(Inconsistent) as caught:
        build("model", {**SOURCE, "weights": str(path)}).build(GRAY, 3, 0)
    assert "'fc1.weight' has shape [5, 64], expected [12, 64]" in str(caught.value)
    assert "'fc2.bias' is missing" in str(caught.value)


def test_a_backbone_without_weights_is_refused():
    source = build("model", {**SOURCE, "backbone": {"name": "mlp", "hidden": []}})
    with pytest.raises(InvalidInput, match=r"'mlp' has no weights.*hidden layer"):
        source.build(GRAY, 3, 0)
    with pytest.raises(InvalidInput, match="no option 'depth'"):
        build("model", {**SOURCE, "head": {"name": "mlp", "depth": 3}})
