"""Relaxations x = g(z): each by itself, and as an option of an attack."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import exhume
from exhume.attacks.inverting_gradients import InvertingGradients
from exhume.attacks.relaxations.box import Box, Logistic, logistic_box
from exhume.attacks.relaxations.identity import Identity, InUnits
from exhume.attacks.relaxations.projection import Clamped, Projection
from exhume.attacks.unknowns import RelaxationChoice, Unknowns
from exhume.config import build, chosen, default_options, describe, validate
from exhume.errors import InvalidInput, UnknownName
from exhume.keys import generator
from exhume.problem.event import EventSpec
from exhume.problem.relaxation import Relaxation, Units
from toys import COLOUR, GRAY, make_world, reveal

UNITS = Units(torch.tensor(0.3).double(), torch.tensor(0.7).double())


# --- bounded ones --------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(low=st.floats(-3, 0), width=st.floats(0.1, 5), seed=st.integers(0, 99))
def test_bounded_relaxations_stay_inside_of_any_range(low, width, seed):
    spec = EventSpec.image(1, 2, 3, low, low + width)
    x = low + width * torch.rand(
        (2, 1, 2, 3), generator=generator(seed), dtype=torch.float64
    ).clamp(1e-3, 1 - 1e-3)
    for relaxation in (Clamped(spec, UNITS), Logistic(spec), InUnits(spec, UNITS)):
        back = relaxation.decode(relaxation.encode(x))
        assert torch.allclose(back, x, atol=1e-9)
        far = relaxation.project(100 * torch.ones(2, 6).double())
        if type(relaxation) is not InUnits:
            inside = spec.clamp(relaxation.decode(far))
            assert torch.allclose(relaxation.decode(far), inside)


def test_without_a_range_every_bounded_relaxation_is_the_identity():
    z = torch.tensor([-40.0, 0.0, 40.0], dtype=torch.float64)
    assert torch.allclose(
        logistic_box(z, -1.0, 3.0), torch.tensor([-1.0, 1.0, 3.0]).double()
    )
    free = reveal(make_world(EventSpec.vector(5)))
    bounded = reveal(make_world(EventSpec.vector(5, -1, 1)))
    for source, kind in ((Box(), Logistic), (Projection(), Clamped)):
        assert type(source.fit(free, UNITS)) is InUnits
        assert type(source.fit(bounded, UNITS)) is kind
    assert type(Identity().fit(bounded, UNITS)) is InUnits


def test_the_units_of_the_data_change_no_bit():
    x = torch.randn(3, 4, generator=generator(0))
    assert Units().to_data(x) is x
    assert Units().from_data(x) is x
    spec = EventSpec.vector(4)
    assert torch.equal(InUnits(spec, Units()).decode(x), x)


# --- as an option --------------------------------------------------------------------


def test_the_option_is_recorded_as_it_was_before_relaxations_had_a_name():
    for name, default in (("inverting-gradients", "projection"), ("dlg", "identity")):
        record = describe(exhume.attack(name))
        assert record["parametrisation"] == default
        assert "relaxation" not in record
        assert default_options(type(exhume.attack(name)))["parametrisation"] == default
    old = build("attack", {"name": "dlg", "parametrisation": "box"})
    assert old == exhume.attack("dlg", relaxation="box")
    assert describe(old)["parametrisation"] == "box"
    assert build("attack", describe(old)) == old
    with pytest.raises(InvalidInput, match="its former name; give relaxation"):
        exhume.attack("dlg", relaxation="box", parametrisation="box")


@dataclass(frozen=True)
class Later:
    """Something with an option that came later."""

    old: int = 1
    relaxation: RelaxationChoice = field(
        default="identity", metadata=chosen("relaxation")
    )


def test_an_option_that_came_later_is_left_out_at_its_default():
    assert "relaxation" not in describe(Later())
    assert "relaxation" not in describe(Later(relaxation={"name": "identity"}))
    assert describe(Later(relaxation="box"))["relaxation"] == "box"
    assert describe(Later(relaxation={"name": "box"}))["relaxation"] == "box"


def test_a_wrong_relaxation_is_told_when_the_attack_is_made():
    with pytest.raises(UnknownName, match=r"no relaxation is called 'bax'.*'box'"):
        exhume.attack("dlg", relaxation="bax")
    with pytest.raises(InvalidInput, match="'box' has no option 'low'"):
        exhume.attack("dlg", relaxation={"name": "box", "low": 0})
    with pytest.raises(InvalidInput, match="relaxation"):
        exhume.attack("dlg", relaxation=3)
    with pytest.raises(InvalidInput, match="given by its name"):
        validate(Later, {"relaxation": {}}, what="it")


@dataclass(frozen=True, eq=False)
class Gray(Relaxation):
    """One grey level for all pixels."""

    shape: tuple[int, ...] = GRAY.shape

    @property
    def size(self) -> int:
        return 1

    def decode(self, z: Tensor) -> Tensor:
        return z.reshape(-1, *[1] * len(self.shape)).expand(-1, *self.shape)

    def encode(self, x: Tensor) -> Tensor:
        return x.flatten(1).mean(dim=1, keepdim=True)


def test_an_object_of_ones_own_is_a_relaxation_that_has_no_record():
    attack = exhume.attack("inverting-gradients", relaxation=Gray(), iterations=5)
    answer = attack(reveal(make_world(GRAY, labels=(1, 2))), key=0)
    flat = answer.inputs.flatten(1)
    torch.testing.assert_close(flat, flat[:, :1].expand_as(flat))
    with pytest.raises(InvalidInput, match="object of the class Gray, which cannot"):
        describe(attack)
    with pytest.raises(InvalidInput, match=r"decodes to examples of shape \[1, 8, 8\]"):
        attack(reveal(make_world(COLOUR)))
    again = replace(InvertingGradients(iterations=5), relaxation=Gray())
    assert torch.equal(
        again(reveal(make_world(GRAY, labels=(1, 2))), key=0).inputs, answer.inputs
    )


# --- unknowns ------------------------------------------------------------------------


def test_leaves_and_the_flat_vector_are_the_same_point():
    spec = EventSpec.vector(3, 0, 1)
    unknowns = Unknowns(
        Clamped(spec, Units()), spec, outputs=2, hidden={"noise": (2, 4)}
    )
    z = torch.tensor([[0.5, -1.0, 2.0], [0.1, 0.2, 0.3]]).double()
    leaves = unknowns.leaves(z, generator(0))
    leaves[2] = torch.arange(8.0).double().reshape(2, 4)
    flat = unknowns.flat(leaves)
    assert len(flat) == unknowns.numbers(2) == 18
    assert unknowns.hidden_size == 8
    for one, other in zip(unknowns.split(flat), leaves, strict=True):
        assert torch.equal(one, other)
    for point in (leaves, flat):
        found, answer = unknowns.candidate(point), unknowns.answer(point)
        assert torch.equal(found.inputs, z)
        assert torch.equal(unknowns.inputs(point), z)
        torch.testing.assert_close(found.targets, leaves[1].softmax(-1))
        assert torch.equal(found.nuisance["noise"], leaves[2])
        assert torch.equal(answer.inputs, z.clamp(0, 1))
        assert torch.equal(answer.targets, leaves[1].argmax(-1))
    projected = unknowns.split(unknowns.project(flat))
    assert torch.equal(projected[0], z.clamp(0, 1))
    assert torch.equal(projected[1], leaves[1])
    assert torch.equal(projected[2], leaves[2])
