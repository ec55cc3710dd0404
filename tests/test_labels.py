"""Labels are read from the classification layer, repeated labels included."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from exhume.attacks.engine.label_counts import expected_bias_gradient, label_counts
from exhume.attacks.engine.labels import idlg_label, label_note, recover_labels
from exhume.attacks.engine.linear_layer import input_layer, output_layer
from exhume.errors import InvalidInput, MissingKnowledge
from exhume.models.convnet import Convnet
from exhume.models.lenet_zhu import LenetZhu
from exhume.models.mlp import Mlp
from exhume.problem.event import EventSpec
from exhume.problem.law import Law
from exhume.problem.task import Task
from exhume.problem.tree import scale
from toys import (
    COLOUR,
    GRAY,
    convolutional,
    make_world,
    mlp,
    reveal,
    seeded,
    smooth,
    smooth_mlp,
)

PHOTO = EventSpec.image(3, 32, 32)
DISTINCT, REPEATED = (1, 3, 5, 7), (3, 3, 5, 5)


def network(name, key):
    source = {
        "convnet": Convnet(width=8),
        "lenet-zhu": LenetZhu(),
        "mlp": Mlp(hidden=(64,)),
        "mlp without bias": Mlp(hidden=(64,), bias=False),
    }[name]
    return source.build(PHOTO, 10, key)


@pytest.mark.parametrize("public", [0, 30], ids=["no data", "public data"])
@pytest.mark.parametrize("labels", [DISTINCT, REPEATED], ids=["distinct", "repeated"])
@pytest.mark.parametrize("name", ["convnet", "lenet-zhu", "mlp", "mlp without bias"])
def test_counts_are_exact_with_random_weights(name, labels, public):
    for key in range(3):
        world = make_world(
            PHOTO,
            labels=labels,
            model=network(name, key),
            public=public,
            classes=10,
            key=key,
        )
        problem = reveal(world, "data-enhanced" if public else "eavesdropper")
        found = recover_labels(problem, "bias-corrected", 4)
        assert found.dtype == torch.int64
        assert found.tolist() == sorted(labels)


def test_counts_are_exact_when_batch_norm_couples_the_batch():
    for key in range(3):
        world = make_world(
            PHOTO, labels=REPEATED, model=network("convnet", key), mode="train",
            classes=10, key=key,
        )  # fmt: skip
        problem = reveal(world, "data-enhanced")
        assert recover_labels(problem, "bias-corrected", 4).tolist() == [3, 3, 5, 5]


@pytest.mark.parametrize("strategy", ["idlg", "bias-corrected"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_every_label_of_one_example_is_found(strategy, bias):
    for label in range(5):
        world = make_world(
            labels=(label,), model=mlp(GRAY, bias=bias, key=label), key=label
        )
        problem = reveal(world, "eavesdropper")
        assert recover_labels(problem, strategy, 1).tolist() == [label]


def test_idlg_without_bias_survives_a_confident_wrong_prediction():
    # p ≈ e_1 while y = 2: both rows of ∂L/∂W have the same norm to 1e-4.
    model = mlp(GRAY, bias=False, width=8)
    with torch.no_grad():
        model[1].weight.abs_()
        model[3].weight.fill_(-0.1)
        model[3].weight[1] = 2.0
    world = make_world(labels=(2,), model=model)
    assert recover_labels(reveal(world, "eavesdropper"), "idlg", 1).tolist() == [2]


def test_idlg_label_is_the_negative_entry():
    assert int(idlg_label(torch.tensor([0.2, -0.7, 0.5]))) == 1


def test_idlg_refuses_a_batch():
    problem = reveal(make_world(labels=(1, 2)), "eavesdropper")
    with pytest.raises(InvalidInput, match="one example, the batch has 2"):
        recover_labels(problem, "idlg", 2)


def test_known_labels_come_from_the_problem_or_are_missed_by_name():
    world = make_world(labels=(4, 1))
    assert recover_labels(reveal(world), "known", 2).tolist() == [1, 4]
    with pytest.raises(MissingKnowledge, match="the labels of the batch"):
        recover_labels(reveal(world, "eavesdropper"), "known", 2)


def test_unknown_strategy_is_refused():
    with pytest.raises(InvalidInput, match="'guess'; known: known, idlg"):
        recover_labels(reveal(make_world()), "guess", 1)  # type: ignore[arg-type]


def test_labels_from_noise_and_masks_and_clipping():
    right = {"noise": 0, "mask": 0, "clipping": 0}
    for key in range(10):
        world = make_world(
            PHOTO, labels=REPEATED, model=network("mlp", key), classes=10, key=key
        )
        problem = reveal(world, "data-enhanced", key)
        local = torch.Generator().manual_seed(key)
        noise = {
            n: 0.05 * torch.randn(t.shape, generator=local)
            for n, t in problem.observed.items()
        }
        mask = {n: torch.rand(t.shape, generator=local) > 0.5 for n, t in noise.items()}
        variants = {
            "noise": (
                {n: t + noise[n] for n, t in problem.observed.items()},
                Law(variance={n: torch.tensor(0.05**2) for n in noise}),
            ),
            "mask": (
                {n: t * mask[n] for n, t in problem.observed.items()},
                Law(mask=mask),
            ),
            "clipping": (
                {n: 0.03 * t for n, t in problem.observed.items()},
                Law(maps=(partial(scale, 0.03),)),
            ),
        }
        for name, (observed, law) in variants.items():
            hard = replace(problem, observed=observed, law=law)
            found = recover_labels(hard, "bias-corrected", 4)
            assert len(found) == 4
            right[name] += found.tolist() == sorted(REPEATED)
    assert right["noise"] >= 8
    assert right["mask"] >= 8
    assert right["clipping"] >= 9


def test_unlabelled_public_data_and_a_prior_serve_as_stand_ins():
    world = make_world(PHOTO, labels=REPEATED, model=network("mlp", 0), classes=10)
    problem = reveal(world, "data-enhanced")
    assert world.public is not None
    public = replace(world.public, targets=torch.zeros(len(world.public)))
    bare = replace(problem, public=public)
    assert recover_labels(bare, "bias-corrected", 4).tolist() == [3, 3, 5, 5]


def test_the_task_must_be_a_classification_seen_through_a_linear_layer():
    problem = reveal(make_world(), "eavesdropper")
    regression = replace(problem, task=Task(mlp(GRAY), loss="mse"))
    with pytest.raises(InvalidInput, match="cross-entropy"):
        recover_labels(regression, "bias-corrected", 1)
    convolution = seeded(nn.Sequential(nn.Conv2d(1, 5, 8), nn.Flatten()), 0)
    odd = reveal(make_world(model=convolution), "eavesdropper")
    with pytest.raises(InvalidInput, match=r"nn\.Linear"):
        recover_labels(odd, "idlg", 1)


def test_the_classifier_is_found_by_what_it_computes():
    class Backwards(nn.Module):
        """Defines its layers in the wrong order, with an idle one at the end."""

        def __init__(self):
            super().__init__()
            self.head = nn.Linear(6, 5)
            self.stem = nn.Linear(64, 6)
            self.idle = nn.Linear(6, 5)

        def forward(self, x):
            hidden = self.stem(x.flatten(1)).relu()
            self.idle(hidden)
            return self.head(hidden).log_softmax(-1)

    task = Task(Backwards())
    out, first = output_layer(task, GRAY), input_layer(task, GRAY)
    assert out is not None
    assert first is not None
    # `idle` runs before `head` and has as many outputs.
    assert (out.weight, out.bias) == ("head.weight", "head.bias")
    assert (first.module, first.weight) == ("stem", "stem.weight")
    problem = reveal(
        make_world(labels=(3,), model=seeded(Backwards(), 0)), "eavesdropper"
    )
    assert recover_labels(problem, "idlg", 1).tolist() == [3]


def test_no_layer_reads_the_input_of_a_convolutional_network():
    assert input_layer(Task(convolutional(COLOUR)), COLOUR) is None
    assert input_layer(Task(mlp(GRAY, bias=False)), GRAY) is None


def test_shared_layers_are_not_taken():
    shared = nn.Linear(64, 64)
    model = nn.Sequential(nn.Flatten(), shared, nn.Tanh(), shared, nn.Linear(64, 3))
    assert input_layer(Task(model), GRAY) is None


def test_the_note_says_when_there_is_no_bias():
    with_bias = reveal(make_world(model=smooth_mlp(GRAY)), "eavesdropper")
    without = reveal(make_world(model=mlp(GRAY, bias=False)), "eavesdropper")
    assert "layer's bias" in label_note(with_bias, "idlg")
    assert "no bias" in label_note(without, "bias-corrected")
    assert label_note(with_bias, "known") == "The labels are given."


def test_expected_bias_gradient_is_the_gradient_for_a_model_without_features():
    # With zero weights the softmax is softmax(b) for every input.
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    with torch.no_grad():
        model[1].weight.zero_()
        model[1].bias.copy_(torch.tensor([0.5, -1.0, 0.0, 2.0]))
    task = Task(model.double())
    labels = torch.tensor([0, 2, 2, 3, 2])
    inputs = smooth(GRAY, 5, 0).double()
    exact = task.gradient(inputs, labels)["1.bias"]
    p = model[1].bias.detach().softmax(-1).expand(4, 4)
    predicted = expected_bias_gradient(torch.bincount(labels, minlength=4), p)
    torch.testing.assert_close(predicted, exact)
    assert abs(float(predicted.sum())) < 1e-12


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=4),
    st.integers(0, 10**6),
    st.booleans(),
)
def test_counting_is_integer_least_squares(labels, seed, conditional):
    """The counts are a best one among all multisets (brute force)."""
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.ones(4), size=4 if conditional else 1)
    p = torch.tensor(0.25 * p + 0.75 * p.mean(0)).expand(4, 4).contiguous()
    truth = torch.bincount(torch.tensor(labels), minlength=4)
    noise = 0.02 * rng.standard_normal(4) / len(labels)
    residual = expected_bias_gradient(truth, p) + torch.tensor(noise)
    weights = torch.ones(4, dtype=torch.float64)
    found = label_counts(residual, p, len(labels), weights)

    def error(counts):
        return float((expected_bias_gradient(counts, p) - residual).square().sum())

    multisets = [
        torch.tensor(c)
        for c in np.ndindex(*[len(labels) + 1] * 4)
        if sum(c) == len(labels)
    ]
    assert int(found.sum()) == len(labels)
    assert error(found) <= min(map(error, multisets)) + 1e-9
