"""Events: one kind of example each, with its checks, distance, picture and record."""

import json
import pickle
import subprocess
import sys
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
import torch

from exhume import Batch, EventSpec
from exhume.config import build
from exhume.errors import InvalidInput, NotImported, UnknownName, Unsuited
from exhume.keys import generator
from exhume.problem.attack import Attack
from exhume.registry import find, names
from toys import GRAY, VECTOR, make_world, reveal


@pytest.fixture(params=names("event"))
def event(request):
    kind = find("event", request.param)
    return kind((6,) * kind.axes, *kind.usual or (None, None))


def examples(event, count, key=0):
    local = generator(key, "test-events")
    return torch.rand((count, *event.shape), generator=local)


# Conformance: rows are the registry.


def test_an_event_is_plain_frozen_data(event):
    assert pickle.loads(pickle.dumps(event)) == event
    assert hash(event) == hash(replace(event))
    assert event.kind in names("event")
    with pytest.raises(FrozenInstanceError):
        event.low = 0.5


def test_a_record_is_json_and_gives_the_event_back(event):
    wide = replace(event, low=-1.0, high=3.5)
    for spec in (event, wide, replace(event, low=None, high=None)):
        assert EventSpec.from_record(json.loads(json.dumps(spec.record()))) == spec


def test_examples_pass_and_others_do_not(event):
    x = examples(event, 3)
    event.check(x)
    for wrong, message in [
        (x.long(), "convert them to float"),
        (x[:0], "B ≥ 1"),
        (x[..., 1:], "inputs have shape"),
        (x / 0, "NaN or infinity"),
    ]:
        with pytest.raises(InvalidInput, match=message):
            event.check(wrong)
    with pytest.raises(InvalidInput, match=r"outside the declared range \[0, 1\]"):
        replace(event, low=0.0, high=1.0).check(2 * x)


def test_the_distance_is_zero_at_the_example_alone(event):
    x = examples(event, 4)
    cost = event.distance(x[:3], x)
    assert cost.shape == (3, 4)
    assert cost.dtype == torch.float64
    assert cost.diagonal().tolist() == [0.0] * 3
    assert bool((cost + torch.eye(3, 4) > 0).all())


def test_the_headline_is_an_error_that_is_least_at_the_truth(event):
    metric = build("metric", event.error)
    assert not metric.higher_is_better
    x = examples(event, 4)
    exact, wrong = metric(x, x, event), metric(x.flip(0), x, event)
    assert exact.shape == (4,)
    assert bool((exact < wrong).all())


def test_an_example_is_drawn_with_and_without_an_estimate(event):
    x, guess = examples(event, 2).numpy()
    own, other = event.draw(x, x), event.draw(guess, x)
    assert own.drawn
    assert other.drawn
    assert own != other == event.draw(guess, x)
    assert event.draw(np.zeros_like(x), np.zeros_like(x)).drawn


def test_events_do_not_import_torch():
    code = (
        "import sys; from exhume.problem.event import EventSpec\n"
        "EventSpec.vector(3).record(); EventSpec.image(1, 2, 2).grid\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# The doors, and what is asked of an event.


def test_every_door_leads_to_the_same_event():
    image = EventSpec.image(1, 4, 5)
    assert image == EventSpec("image", (1, 4, 5), 0.0, 1.0)
    assert image == EventSpec.of("image", (1, 4, 5), low=0.0, high=1.0)
    assert image == find("event", "image")((1, 4, 5), 0.0, 1.0)
    assert image != EventSpec("image", (1, 4, 5))
    assert EventSpec.vector(4) == EventSpec("vector", (4,)) != EventSpec.vector(5)
    assert EventSpec.of_shape((1, 4, 5), 0.0, 1.0) == image
    assert EventSpec.of_shape((4,)) == EventSpec.vector(4)
    with pytest.raises(InvalidInput, match=r"\[4, 5\] does not tell.*image"):
        EventSpec.of_shape((4, 5))


def test_records_of_files_are_written_as_ever():
    assert EventSpec.image(1, 4, 5).record() == {
        "kind": "image", "shape": [1, 4, 5], "range": [0.0, 1.0]
    }  # fmt: skip
    assert EventSpec.vector(3).record() == {
        "kind": "vector", "shape": [3], "range": None
    }  # fmt: skip


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"shape": [3]}, "event is given by its name and options"),
        ({"kind": "vectr", "shape": [3]}, "did you mean 'vector'"),
        ({"kind": "vector"}, "shape: Field required"),
        ({"kind": "vector", "shape": "wide"}, "shape: Input should be"),
        ({"kind": "vector", "shape": [3], "range": 5}, "is 5; give two numbers"),
        ({"kind": "vector", "shape": [3], "range": [0, 1e999]}, "two finite numbers"),
        ({"kind": "vector", "shape": [3], "range": [1, 0]}, "range .* is empty"),
        ({"kind": "vector", "shape": [3], "colour": "red"}, "no option 'colour'"),
    ],
)
def test_a_wrong_record_is_one_sentence(record, message):
    with pytest.raises((InvalidInput, UnknownName), match=message):
        EventSpec.from_record(record)


def test_a_record_never_imports_a_module(tmp_path, monkeypatch):
    (tmp_path / "evil.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for own in ("refused", "loaded"):
        with pytest.raises(NotImported, match=r"'evil\.py' is a module"):
            EventSpec.from_record({"kind": "evil.py", "shape": [3]}, own=own)


def test_pixels_are_asked_for_by_what_an_event_has():
    assert GRAY.grid == (1, 8, 8)
    assert VECTOR.grid is None
    image = GRAY.draw(np.zeros((1, 8, 8)), np.zeros((1, 8, 8)))
    assert image.png
    assert image.width == 8


def test_an_attack_may_declare_for_which_examples_it_is():
    class OnlyVectors(Attack):
        needs = frozenset()
        events = frozenset({"vector"})

        def run(self, problem, key):
            return problem.spec.kind

    image, vector = reveal(make_world()), reveal(make_world(spec=VECTOR))
    assert OnlyVectors()(vector) == "vector"
    with pytest.raises(Unsuited, match="of kind vector, and these are of kind image"):
        OnlyVectors()(image)


def test_a_batch_asks_its_event():
    with pytest.raises(InvalidInput, match=r"expected \[B, 12\] with B ≥ 1"):
        Batch(torch.zeros(2, 11), torch.tensor([0, 1]), VECTOR)
