"""A linear decoder of faces as a relaxation: four attacks recover codes with it."""

from __future__ import annotations

from functools import lru_cache

import pytest
import torch
from torch import Tensor

import exhume
from exhume.attacks.relaxations.linear import (
    Linear,
    LinearDecoder,
    principal_components,
)
from exhume.attacks.unknowns import fit_relaxation
from exhume.config import build
from exhume.errors import InvalidInput, MissingKnowledge
from exhume.keys import generator
from exhume.observations.fine_tuning import FineTuning
from exhume.observations.gradient import Gradient
from exhume.observations.weights import Weights
from exhume.problem.batch import Batch
from exhume.problem.knowledge import Problem
from exhume.problem.mechanism import Mechanism
from exhume.problem.observation import ObservationModel
from exhume.problem.relaxation import Units
from exhume.problem.task import Task
from exhume.problem.world import World
from toys import GRAY, make_world, reveal

DECODER = {"name": "linear", "components": 20}


def test_principal_components_are_those_of_the_covariance():
    x = torch.randn(30, 1, 2, 3, generator=generator(0)).double()
    x = x * torch.arange(1.0, 7).double().reshape(1, 2, 3)
    mean, components = principal_components(x, 4)
    rows = x.flatten(1)
    torch.testing.assert_close(mean, x.mean(dim=0))
    values, vectors = torch.linalg.eigh(torch.cov(rows.T))
    values, vectors = values.flip(0)[:4], vectors.flip(1)[:, :4]
    flat = components.flatten(1)
    torch.testing.assert_close(flat @ flat.T, torch.diag(values))
    torch.testing.assert_close((flat @ vectors).abs(), torch.diag(values.sqrt()))
    # Codes of the examples are uncorrelated, with variance 1.
    codes = LinearDecoder(mean, components).encode(x)
    torch.testing.assert_close(torch.cov(codes.T), torch.eye(4).double())
    assert torch.equal(principal_components(-x, 4)[1], components)


def test_a_decoder_of_any_components_encodes_by_least_squares():
    mean = torch.randn(5, generator=generator(0)).double()
    components = torch.randn(2, 5, generator=generator(1)).double()
    x = torch.randn(3, 5, generator=generator(2)).double()
    found = LinearDecoder(mean, components).encode(x)
    wanted = torch.linalg.lstsq(components.T, (x - mean).T).solution.T
    torch.testing.assert_close(found, wanted)


def test_too_few_public_examples_for_the_components_are_told():
    problem = reveal(make_world(GRAY, public=5))
    with pytest.raises(InvalidInput, match="5 public examples vary in 4 directions"):
        Linear(components=5).fit(problem, Units())
    with pytest.raises(InvalidInput, match="components is 0"):
        Linear(components=0)
    with pytest.raises(MissingKnowledge, match="public examples"):
        Linear().fit(reveal(make_world(GRAY, public=0)), Units())


@lru_cache
def faces() -> tuple[LinearDecoder, Batch, Tensor]:
    """Return the decoder of public faces, these, and the codes of private ones.

    Private images are real faces, moved to the nearest decoded one.
    """
    whole = exhume.dataset("faces", include="faces").load()
    public = Batch(whole.inputs[:80].double(), whole.targets[:80], whole.spec)
    decoder = LinearDecoder(*principal_components(public.inputs, 20))
    codes = decoder.encode(whole.inputs[80:].double())
    x = decoder.decode(codes)
    inside = (whole.spec.clamp(x) == x).flatten(1).all(dim=1)
    return decoder, public, codes[inside]


def observed(count: int, observation: ObservationModel, loss: str, **model) -> Problem:
    """Return what an attacker sees of faces in the span of public ones."""
    decoder, public, codes = faces()
    y = torch.arange(count) % 2
    net = build("model", model).build(
        public.spec, 2 if loss == "cross-entropy" else 1, 0
    )
    y = 2.0 * y.double() - 1 if loss == "mse" else y
    own = Batch(decoder.decode(codes[:count]), y, public.spec)
    task, mechanism = Task(net.double(), loss=loss), Mechanism(observation)
    return reveal(World(task, own, mechanism, public))


def gradient(count: int, width: int) -> Problem:
    return observed(
        count,
        Gradient(),
        "cross-entropy",
        name="mlp",
        hidden=[width],
        activation="tanh",
    )


def fine_tuning(count: int, width: int) -> Problem:
    return observed(
        count,
        FineTuning(linearised=True),
        "mse",
        name="tangent-mlp",
        hidden=[width],
        activation="softplus",
    )


def trained_weights(count: int, width: int) -> Problem:
    mean = float(faces()[1].inputs.mean())
    return observed(
        count,
        Weights(),
        "logistic",
        name="homogeneous-mlp",
        hidden=[width],
        mean=[mean],
    )


def nearest(codes: Tensor, found: Tensor) -> tuple[Tensor, Tensor]:
    """Return ‖ẑ − z‖/‖z‖ of the nearest code found, and its correlation with z."""
    distance, index = torch.cdist(codes, found).min(dim=1)
    both = torch.stack([codes, found[index]], dim=1)
    correlation = torch.stack([torch.corrcoef(pair)[0, 1] for pair in both])
    return distance / torch.linalg.vector_norm(codes, dim=1), correlation


def test_the_named_decoder_is_that_of_the_public_faces():
    decoder, _, codes = faces()
    fitted = fit_relaxation(DECODER, gradient(1, 4), Units())
    torch.testing.assert_close(fitted.decode(codes), decoder.decode(codes))
    assert fitted.size == 20


@pytest.mark.parametrize(
    ("name", "problem", "options", "error", "correlation"),
    [
        ("gauss-newton", lambda: gradient(4, 32), {"restarts": 1}, 1e-6, 0.999),
        (
            "inverting-gradients",
            lambda: gradient(2, 16),
            {"iterations": 2000, "total_variation": 0.0},
            0.01,
            0.999,
        ),
        (
            "tangent-kernel",
            lambda: fine_tuning(4, 100),
            {"iterations": 300, "polish": 50, "newton": 50, "rounds": 0, "spread": 1.0},
            0.05,
            0.998,
        ),
        (
            "kkt",
            lambda: trained_weights(2, 50),
            {"iterations": 2000, "restarts": 2, "rate": 0.05},
            0.5,
            0.95,
        ),
    ],
)
def test_four_attacks_recover_the_codes_of_faces(
    name, problem, options, error, correlation
):
    """One relaxation in first- and second-order engines, whatever was shared.

    Weights trained to a small loss satisfy the equation of ``kkt`` to a few percent, so
    its codes are the direction of the true ones rather than their size.
    """
    decoder, _, codes = faces()
    seen = problem()
    answer = exhume.attack(name, relaxation=DECODER, **options)(seen, key=0)
    count = len(answer.inputs)
    found, true, others = decoder.encode(answer.inputs), codes[:count], codes[count:]
    errors, correlations = nearest(true, found)
    assert float(errors.max()) < error
    assert float(correlations.min()) > correlation
    # Each face has been found once, and no other private face is as near to one.
    assert torch.cdist(true, found).argmin(dim=1).unique().numel() == count
    assert bool((errors < 0.6 * nearest(true, others)[0]).all())
