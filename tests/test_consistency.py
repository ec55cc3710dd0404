"""The consistency check names a wrong payload before an attack runs (S12, S19, S20)."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from exhume.errors import Inconsistent
from exhume.keys import generator
from exhume.observations.gradient import Gradient
from exhume.problem.batch import Batch
from exhume.problem.consistency import check_observation, weights_sha256
from exhume.problem.event import EventSpec
from exhume.problem.fingerprints import output_bias, scale_invariance
from exhume.problem.knowledge import UNKNOWN, Problem
from exhume.problem.law import Law
from exhume.problem.task import Normalisation, Task

SPEC = EventSpec.image(3, 8, 8)
CLASSES = 10


class Net(nn.Module):
    """A small convolutional network, with BatchNorm if asked for."""

    def __init__(self, batch_norm: bool = False, key: int = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4) if batch_norm else nn.Identity()
        self.head = nn.Linear(4 * 64, CLASSES)
        rng = generator(key, "net")
        for p in self.parameters():
            p.data = (torch.rand(p.shape, generator=rng) - 0.5) / p.shape[-1] ** 0.5

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.norm(self.conv(x))).flatten(1))


def make_batch(size: int = 4, key: int = 5) -> Batch:
    x = torch.rand((size, *SPEC.shape), generator=generator(key, "x"))
    return Batch(x, torch.arange(size) % 7, SPEC)


def make_problem(
    task: Task | None = None,
    *,
    factor: float = 1.0,
    batch: Batch | None = None,
    **facts,
) -> Problem:
    """Observe ``factor`` times the gradient; no defense, labels and size known."""
    task = task or Task(Net())
    batch = batch or make_batch()
    gradient = task.gradient(batch.inputs, batch.targets)
    known = {
        "targets": batch.targets,
        "batch_size": len(batch),
        "observation_model": Gradient(),
        "law": Law(),
    }
    observed = {name: factor * t for name, t in gradient.items()}
    return Problem(observed=observed, spec=SPEC, task=task, **(known | facts))


def errors(problem: Problem, **options) -> str:
    with pytest.raises(Inconsistent) as caught:
        check_observation(problem, **options)
    return str(caught.value)


def warnings(problem: Problem, **options) -> list[str]:
    found = check_observation(problem, **options)
    return [f.sentence for f in found if f.severity == "warning"]


def test_a_right_payload_passes_with_and_without_the_batch():
    problem = make_problem()
    assert not warnings(problem)
    notes = check_observation(problem, own=make_batch())
    assert [f.severity for f in notes] == ["note"]
    assert "agrees" in notes[0].sentence


def test_every_difference_in_names_and_shapes_is_listed_at_once():
    problem = make_problem()
    observed = dict(problem.observed)
    del observed["conv.bias"]
    observed["head.weight"] = observed["head.weight"].T
    observed["conv.weight"] = observed["conv.weight"].flatten(1)
    observed["extra"] = torch.ones(2)
    text = errors(replace(problem, observed=observed))
    assert "4 problems" in text
    assert "'conv.bias' is missing" in text
    assert "'head.weight' has shape [256, 10], not [10, 256]; it looks transpos" in text
    assert "'conv.weight' has shape [4, 27]" in text
    assert "'extra' is not a trainable parameter" in text


def test_a_prefix_is_one_problem_with_its_reason():
    problem = make_problem()
    observed = {f"module.{n}": t for n, t in problem.observed.items()}
    text = errors(replace(problem, observed=observed))
    assert "1 problem\n" in text
    assert "starts with 'module.'" in text


def test_positional_tensors_are_not_matched_by_order():
    problem = make_problem()
    observed = {str(i): t for i, t in enumerate(problem.observed.values())}
    assert "order alone is not trusted" in errors(replace(problem, observed=observed))


def test_reordered_tensors_are_matched_by_name():
    problem = make_problem()
    observed = dict(reversed(problem.observed.items()))
    assert not warnings(replace(problem, observed=observed), own=make_batch())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_values_are_counted(bad):
    problem = make_problem()
    problem.observed["head.bias"][3] = bad
    assert "'head.bias': 1 of 10 values are NaN or inf" in errors(problem)


def test_integers_zeros_and_coarse_types_are_named():
    problem = make_problem()
    integers = {n: t.to(torch.int32) for n, t in problem.observed.items()}
    assert "a gradient is floating" in errors(replace(problem, observed=integers))
    zeros = {n: torch.zeros_like(t) for n, t in problem.observed.items()}
    assert "exactly zero" in errors(replace(problem, observed=zeros))
    halves = {n: t.to(torch.bfloat16) for n, t in problem.observed.items()}
    assert any("bfloat16" in w for w in warnings(replace(problem, observed=halves)))
    widened = {n: t.float() for n, t in halves.items()}
    assert any("bfloat16" in w for w in warnings(replace(problem, observed=widened)))


def test_buffers_and_frozen_parameters_are_told_apart():
    net = Net(batch_norm=True)
    net.conv.bias.requires_grad_(False)
    problem = make_problem(Task(net))
    more = {"conv.bias": torch.ones(4), "norm.running_mean": torch.ones(4)}
    text = errors(replace(problem, observed={**problem.observed, **more}))
    assert "'conv.bias' is not a trainable parameter of the model; it is frozen" in text
    assert "it is a buffer there" in text


def test_other_weights_are_told_by_their_hash():
    problem = make_problem()
    right = weights_sha256(problem.task)
    assert right == weights_sha256(Task(Net()))
    assert not warnings(problem, reference_sha256=right)
    other = weights_sha256(Task(Net(key=1)))
    assert "load the checkpoint" in errors(problem, reference_sha256=other)


def test_labels_must_be_as_many_as_examples():
    assert "4 labels, but the batch size is 8" in errors(make_problem(batch_size=8))


# --- against the client's own batch ------------------------------------------------


@pytest.mark.parametrize(
    ("factor", "reason"),
    [
        (-1.0, "the sign is flipped"),
        (-0.1, "one step of SGD with learning rate 0.1"),
        (4.0, "summed over the 4 examples"),
        (0.25, "averaged over the 4 examples twice"),
        (0.5, "scaled by a constant"),
    ],
)
def test_a_factor_is_explained(factor, reason):
    text = errors(make_problem(factor=factor), own=make_batch())
    assert f"{factor:.4g} × the gradient" in text
    assert reason in text
    assert f"--scale {factor:.4g}" in text


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_the_other_mode_is_explained(mode):
    net = Net(batch_norm=True)
    other = "train" if mode == "eval" else "eval"
    truth = make_problem(Task(net, mode=mode))
    text = errors(replace(truth, task=Task(net, mode=other)), own=make_batch())
    assert f"computed with the model in {mode} mode" in text


def test_normalisation_bytes_and_channels_are_explained():
    net, batch = Net(), make_batch()
    normalise = Normalisation((0.4, 0.5, 0.6), (0.2, 0.2, 0.3))
    declared = Task(net, normalise=normalise)
    plain = make_problem(Task(net))
    text = errors(replace(plain, task=declared), own=batch)
    assert "without the declared normalisation" in text
    free = EventSpec("image", SPEC.shape)
    for batch_, words in (
        (Batch(batch.inputs * 255, batch.targets, free), "inputs in 0–255"),
        (Batch(batch.inputs.flip(1), batch.targets, SPEC), "blue, green, red"),
    ):
        assert words in errors(make_problem(batch=batch_), own=batch)


def test_two_reasons_at_once_are_explained():
    net = Net(batch_norm=True)
    truth = make_problem(Task(net, mode="train"), factor=-0.05)
    text = errors(replace(truth, task=Task(net)), own=make_batch())
    assert "-0.05 × the gradient computed with the model in train mode" in text


def test_other_data_has_no_explanation_and_says_where_it_differs():
    text = errors(make_problem(), own=make_batch(key=6))
    assert "explains it; look for other weights, other data" in text
    assert "4 of 4 tensors" in text
    doubtful = make_problem(law=UNKNOWN)
    assert any("other data" in w for w in warnings(doubtful, own=make_batch(key=6)))


def test_declared_noise_is_expected_and_more_is_not():
    problem = make_problem()
    law = Law(variance={n: torch.tensor(1e-4) for n in problem.observed})
    for std, agrees in ((1e-2, True), (1e-1, False)):
        rng = generator(8, "noise")
        observed = {
            n: t + std * torch.randn(t.shape, generator=rng)
            for n, t in problem.observed.items()
        }
        noisy = replace(problem, observed=observed, law=law)
        if agrees:
            assert not warnings(noisy, own=make_batch())
        else:
            assert "differs" in errors(noisy, own=make_batch())


# --- without private data ----------------------------------------------------------


def test_a_step_is_told_from_a_gradient_by_its_sign():
    text = errors(make_problem(factor=-1.0))
    assert "that of a step, weights after minus before" in text
    without_labels = make_problem(factor=-0.1, targets=UNKNOWN)
    assert "that of a step" in errors(without_labels)


def test_a_sum_is_told_from_a_mean():
    batch = make_batch(8)
    text = errors(make_problem(factor=8.0, batch=batch))
    assert "the mean cross-entropy gives at most 2" in text
    assert "--scale 8" in text


def test_wrong_labels_and_batch_size_contradict_the_output_bias():
    batch = make_batch()
    wrong = make_problem(targets=torch.tensor([0, 0, 8, 9]))
    assert "class 1, 2, 3 must be in the batch" in errors(wrong)
    small = make_problem(targets=UNKNOWN, batch_size=1, batch=batch)
    assert "more than the batch of 1 can hold" in errors(small)


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("factor", [1.0, -0.1])
def test_the_mode_shows_in_the_update(mode, factor):
    net = Net(batch_norm=True)
    other = "train" if mode == "eval" else "eval"
    truth = make_problem(Task(net, mode=mode), factor=factor)
    if factor > 0:
        assert not warnings(truth)
    text = errors(replace(truth, task=Task(net, mode=other)))
    assert f"looks like one in {mode} mode, not {other}" in text


def test_very_small_and_very_large_updates_are_warned_of():
    small = warnings(make_problem(factor=1e-3))
    assert any("nearly fitted" in w and "not mean privacy" in w for w in small)
    large = make_problem(factor=1e4, law=UNKNOWN)
    assert any("very large" in w for w in warnings(large))


def test_without_knowing_the_defense_contradictions_are_warnings():
    found = warnings(make_problem(factor=-1.0, law=UNKNOWN))
    assert any("not declared" in w for w in found)


def test_under_noise_only_the_norm_is_checked():
    problem = make_problem(factor=-1.0)
    law = Law(variance={n: torch.tensor(1.0) for n in problem.observed})
    notes = check_observation(replace(problem, law=law))
    assert any("only the norm was checked" in f.sentence for f in notes)


def test_output_bias_is_found_by_its_gradient():
    task, batch = Task(Net()), make_batch()
    assert output_bias(task, batch.inputs, batch.targets) == "head.bias"
    net = Net()
    net.head = nn.Linear(256, CLASSES, bias=False)
    assert output_bias(Task(net), batch.inputs, batch.targets) is None


def test_scale_invariance_is_zero_before_batch_norm_in_train_mode():
    batch = make_batch(8)
    net = Net(batch_norm=True).double()
    values = {}
    for mode in ("train", "eval"):
        task = Task(net, mode=mode)
        gradient = task.gradient(batch.inputs.double(), batch.targets)
        weight = task.parameters()["conv.weight"]
        values[mode] = scale_invariance(weight, gradient["conv.weight"])
    # Not exactly zero: BatchNorm adds 1e-5 to the variance.
    assert values["train"] < 1e-3 < 1e-1 < values["eval"]
    assert scale_invariance(torch.ones(2, 3), torch.ones(2, 3)) == pytest.approx(1.0)
    assert scale_invariance(torch.ones(2, 3), torch.zeros(2, 3)) == 0.0
