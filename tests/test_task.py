"""The task: gradients by both routes, second derivatives layer by layer, no effects."""

import copy
import pickle
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from exhume import Normalisation, Task
from exhume.errors import InvalidInput
from exhume.keys import generator
from exhume.observations.gradient import Gradient
from exhume.problem.losses import LOSSES, Loss
from exhume.problem.observation import Candidate

CLASSES = 3


def seeded(net, dtype=torch.float64):
    """Give a network reproducible weights, without a global seed."""
    g = generator(0, "test-task")
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.empty(p.shape, dtype=dtype).uniform_(-0.6, 0.6, generator=g))
        for name, buffer in net.named_buffers():
            # Spectral norm draws its singular vectors when the layer is made.
            if name.endswith(("._u", "._v")):
                drawn = torch.randn(buffer.shape, generator=g, dtype=dtype)
                buffer.copy_(F.normalize(drawn, dim=0))
    return net.to(dtype)


def image_batch(dtype=torch.float64, size=3):
    g = generator(1, "test-task")
    inputs = torch.rand((size, 2, 8, 8), generator=g, dtype=dtype)
    return inputs, torch.arange(size) % CLASSES


def on_image(*layers, features):
    """Put layers between a convolution and a head."""
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), *layers, nn.Flatten(), nn.Linear(features, CLASSES)
    )


class Sequence(nn.Module):
    """Read an image [2, 8, 8] as a sequence of 16 tokens of width 8."""

    def __init__(self, core):
        super().__init__()
        self.core = core
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x):
        out = self.core(x.reshape(len(x), 16, 8))
        return self.head((out[0] if isinstance(out, tuple) else out).mean(dim=1))


class SelfAttention(nn.Module):
    def __init__(self, dropout=0.0):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, dropout, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0]


class ScaledDotProduct(nn.Module):
    def __init__(self):
        super().__init__()
        self.query = nn.Linear(8, 8)

    def forward(self, x):
        return F.scaled_dot_product_attention(self.query(x), x, x)


class SoftEmbedding(nn.Module):
    """Look tokens up by probabilities, as text attacks do."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(8, 8)

    def forward(self, x):
        return x.softmax(dim=-1) @ self.table.weight


def encoder_layer(dropout=0.0):
    return nn.TransformerEncoderLayer(8, 2, 16, dropout, batch_first=True)


def pointwise(layer):
    return lambda: on_image(layer(), features=144)


#: every layer whose second derivative an attack meets; [B, 4, 6, 6] after the stem
LAYERS = {
    "conv1d": lambda: nn.Sequential(
        nn.Flatten(2), nn.Conv1d(2, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(248, 3)
    ),
    "conv2d": lambda: on_image(nn.Tanh(), nn.Conv2d(4, 2, 3), features=32),
    "conv-transposed": lambda: on_image(
        nn.Tanh(), nn.ConvTranspose2d(4, 1, 2), features=49
    ),
    "conv-dilated-grouped": lambda: on_image(
        nn.Tanh(), nn.Conv2d(4, 4, 3, dilation=2, groups=2), features=16
    ),
    "linear": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(128, 5), nn.Tanh(), nn.Linear(5, 3)
    ),
    "sigmoid": pointwise(nn.Sigmoid),
    "relu": pointwise(nn.ReLU),
    "relu-in-place": pointwise(lambda: nn.ReLU(inplace=True)),
    "gelu": pointwise(nn.GELU),
    "silu": pointwise(nn.SiLU),
    "hardswish": pointwise(nn.Hardswish),
    "mish": pointwise(nn.Mish),
    "softplus": pointwise(nn.Softplus),
    "max-pool": lambda: on_image(nn.MaxPool2d(2), features=36),
    "average-pool": lambda: on_image(nn.AvgPool2d(2), nn.Tanh(), features=36),
    "adaptive-pool": lambda: on_image(nn.AdaptiveAvgPool2d(2), nn.Tanh(), features=16),
    "batch-norm": lambda: on_image(nn.BatchNorm2d(4), nn.Tanh(), features=144),
    "batch-norm-without-statistics": lambda: on_image(
        nn.BatchNorm2d(4, track_running_stats=False), nn.Tanh(), features=144
    ),
    "group-norm": lambda: on_image(nn.GroupNorm(2, 4), nn.Tanh(), features=144),
    "instance-norm": lambda: on_image(
        nn.InstanceNorm2d(4, affine=True), nn.Tanh(), features=144
    ),
    "instance-norm-with-statistics": lambda: on_image(
        nn.InstanceNorm2d(4, track_running_stats=True), nn.Tanh(), features=144
    ),
    "layer-norm": lambda: on_image(nn.LayerNorm([4, 6, 6]), nn.Tanh(), features=144),
    "local-response-norm": lambda: on_image(nn.LocalResponseNorm(2), features=144),
    "weight-norm": lambda: nn.Sequential(
        nn.Flatten(),
        nn.utils.parametrizations.weight_norm(nn.Linear(128, 5)),
        nn.Tanh(),
        nn.Linear(5, 3),
    ),
    "spectral-norm": lambda: nn.Sequential(
        nn.Flatten(),
        nn.utils.parametrizations.spectral_norm(nn.Linear(128, 5)),
        nn.Tanh(),
        nn.Linear(5, 3),
    ),
    "upsampling": lambda: on_image(
        nn.Upsample(scale_factor=2, mode="bilinear"), nn.Tanh(), features=576
    ),
    "embedding": lambda: Sequence(SoftEmbedding()),
    "dropout-switched-off": lambda: on_image(nn.Dropout(0.0), nn.Tanh(), features=144),
    "scaled-dot-product": lambda: Sequence(ScaledDotProduct()),
    "attention": lambda: Sequence(SelfAttention()),
    "transformer": lambda: Sequence(
        nn.TransformerEncoder(encoder_layer(), 1, enable_nested_tensor=False)
    ),
    "rnn": lambda: Sequence(nn.RNN(8, 8, batch_first=True)),
    "gru": lambda: Sequence(nn.GRU(8, 8, batch_first=True)),
    "lstm": lambda: Sequence(nn.LSTM(8, 8, batch_first=True)),
}


@pytest.fixture(params=sorted(LAYERS))
def layer(request):
    return request.param


@pytest.fixture(params=["eval", "train"])
def mode(request):
    return request.param


def inner(a, b):
    return sum(float((a[n] * b[n]).sum()) for n in a)


def noise_like(tree, key):
    g = generator(key, "test-task-noise")
    return {
        n: torch.empty_like(t).normal_(generator=g).detach() for n, t in tree.items()
    }


def test_both_routes_give_the_gradient_of_the_plain_model(layer, mode):
    net = seeded(LAYERS[layer]())
    inputs, targets = image_batch()
    task = Task(net, mode=mode)
    plain = copy.deepcopy(net).train(mode == "train")
    F.cross_entropy(plain(inputs), targets).backward()
    expected = {n: p.grad for n, p in plain.named_parameters()}
    for found in (task.gradient(inputs, targets), task.gradient_func(inputs, targets)):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-12)


def test_derivatives_of_the_gradient(layer, mode):
    task = Task(seeded(LAYERS[layer]()), mode=mode)
    inputs, targets = image_batch()
    candidate, model = Candidate(inputs, targets), Gradient()
    tangent = noise_like({"x": inputs}, 0)["x"]
    forward = model.jvp(task, candidate, tangent)
    cotangent = noise_like(forward, 1)
    backward = model.vjp(task, candidate, cotangent)
    left, right = inner(forward, cotangent), float((backward * tangent).sum())
    scale = inner(forward, forward) ** 0.5 * inner(cotangent, cotangent) ** 0.5
    assert abs(left - right) <= 1e-12 * scale
    assert scale > 0
    step = 1e-6
    ahead = task.gradient(inputs + step * tangent, targets)
    behind = task.gradient(inputs - step * tangent, targets)
    slope = {n: (ahead[n] - behind[n]) / (2 * step) for n in forward}
    gap = {n: slope[n] - forward[n] for n in forward}
    assert inner(gap, gap) ** 0.5 <= 1e-5 * inner(forward, forward) ** 0.5


@pytest.mark.parametrize("name", ["lstm", "attention", "conv2d", "batch-norm"])
def test_forward_derivative_exists_in_single_precision(name, mode):
    task = Task(seeded(LAYERS[name](), torch.float32), mode=mode)
    inputs, targets = image_batch(torch.float32)
    tangent = noise_like({"x": inputs}, 0)["x"]
    found = Gradient().jvp(task, Candidate(inputs, targets), tangent)
    assert all(t.dtype == torch.float32 for t in found.values())
    double = Candidate(inputs.double(), targets)
    exact = Gradient().jvp(task.to(torch.float64), double, tangent.double())
    gap = {n: found[n] - exact[n] for n in exact}
    assert inner(gap, gap) ** 0.5 <= 1e-4 * inner(exact, exact) ** 0.5


def test_nothing_of_the_users_model_changes(layer, mode):
    net = seeded(LAYERS[layer]())
    before = copy.deepcopy(net.state_dict())
    was_training = [m.training for m in net.modules()]
    task = Task(net, mode=mode)
    snapshot = copy.deepcopy(task.model.state_dict())
    global_state = torch.get_rng_state()
    inputs, targets = image_batch()
    inputs.requires_grad_()
    first = task.gradient(inputs, targets)
    task.batch_statistics(inputs)
    again = task.gradient(inputs, targets)
    assert all(torch.equal(first[n], again[n]) for n in first)
    assert torch.equal(global_state, torch.get_rng_state())
    assert [m.training for m in net.modules()] == was_training
    assert all(p.grad is None for p in net.parameters())
    assert inputs.grad is None
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]), name
    for name, value in task.model.state_dict().items():
        assert torch.equal(value, snapshot[name]), name


def test_tied_weights_move_together():
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    net[1].weight = net[0].weight
    task = Task(net, "mse")
    given = {n: torch.zeros_like(p) for n, p in task.parameters().items()}
    assert task.predict(torch.ones(1, 3), given).abs().max() == 0


def test_later_changes_of_the_users_model_do_not_matter():
    net = seeded(LAYERS["linear"]())
    inputs, targets = image_batch()
    task = Task(net)
    before = task.gradient(inputs, targets)
    with torch.no_grad():
        for p in net.parameters():
            p.zero_()
    after = task.gradient(inputs, targets)
    assert all(torch.equal(before[n], after[n]) for n in before)


def test_a_pickled_task_gives_the_same_bits(mode):
    task = Task(seeded(LAYERS["batch-norm"]()), mode=mode)
    inputs, targets = image_batch()
    copied = pickle.loads(pickle.dumps(task))
    a, b = task.gradient(inputs, targets), copied.gradient(inputs, targets)
    assert all(torch.equal(a[n], b[n]) for n in a)


def test_gradient_is_the_mean_over_examples():
    task = Task(seeded(LAYERS["conv2d"]()))
    inputs, targets = image_batch(size=4)
    together = task.gradient(inputs, targets)
    alone = [task.gradient(inputs[i : i + 1], targets[i : i + 1]) for i in range(4)]
    for name, value in together.items():
        mean = torch.stack([g[name] for g in alone]).mean(dim=0)
        torch.testing.assert_close(value, mean, rtol=1e-10, atol=1e-14)


def test_per_example_gradients_by_vmap():
    task = Task(seeded(LAYERS["conv2d"]()))
    inputs, targets = image_batch(size=4)
    stacked = torch.func.vmap(task.gradient_func)(inputs[:, None], targets[:, None])
    for i in range(4):
        one = task.gradient(inputs[i : i + 1], targets[i : i + 1])
        for name, value in one.items():
            torch.testing.assert_close(stacked[name][i], value, rtol=1e-9, atol=1e-12)


def test_frozen_parameters_are_not_part_of_the_gradient():
    net = seeded(LAYERS["linear"]())
    net[1].weight.requires_grad_(False)
    task = Task(net)
    assert list(task.gradient(*image_batch())) == ["1.bias", "3.weight", "3.bias"]


def test_a_parameter_without_influence_has_gradient_zero():
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.used = nn.Linear(128, 3)
            self.idle = nn.Linear(2, 2)

        def forward(self, x):
            return self.used(x.flatten(1))

    inputs, targets = image_batch()
    task = Task(seeded(Idle()))
    for found in (task.gradient(inputs, targets), task.gradient_func(inputs, targets)):
        assert float(found["idle.weight"].abs().max()) == 0


def test_train_mode_uses_the_batch_and_eval_mode_the_running_statistics():
    net = seeded(LAYERS["batch-norm"]())
    inputs, _ = image_batch()
    with torch.no_grad():
        features = net[0](inputs)
        net[1].running_mean.fill_(0.3)
        net[1].running_var.fill_(2.0)
        weight, bias = (p[:, None, None] for p in net[1].parameters())

        def by_hand(mean, var):
            normed = (features - mean) / (var + net[1].eps).sqrt() * weight + bias
            return net[4](normed.tanh().flatten(1))

        axes = (0, 2, 3)
        mean = features.mean(axes, keepdim=True)
        var = features.var(axes, correction=0, keepdim=True)
        expected = {
            "train": by_hand(mean, var),
            "eval": by_hand(torch.tensor(0.3), torch.tensor(2.0)),
        }
        for mode, value in expected.items():
            task = Task(net, mode=mode)
            found = task.predict(inputs, task.parameters())
            torch.testing.assert_close(found, value)
            (found_mean, found_var), *rest = task.batch_statistics(inputs).values()
            torch.testing.assert_close(found_mean, mean.flatten())
            torch.testing.assert_close(found_var, var.flatten())
            assert not rest
            running_mean, running_var = task.running_statistics["1"]
            assert running_mean.unique().item() == pytest.approx(0.3)
            assert running_var.unique().item() == pytest.approx(2.0)


def test_running_statistics_survive_a_change_of_precision(mode):
    net = seeded(LAYERS["batch-norm"](), torch.float32)
    net[1].running_mean.fill_(0.3)
    task = Task(net, mode=mode).to(torch.float64)
    assert task.dtype == torch.float64
    mean, var = task.running_statistics["1"]
    assert mean.dtype == var.dtype == torch.float64
    assert mean.unique().item() == pytest.approx(0.3)


class FunctionalDropout(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(128, CLASSES)

    def forward(self, x):
        return self.head(F.dropout(x.flatten(1), 0.5))


@pytest.mark.parametrize(
    "net",
    [
        nn.Sequential(nn.Flatten(), nn.Dropout(0.1), nn.Linear(128, 3)),
        nn.Sequential(nn.Dropout2d(0.1), nn.Flatten(), nn.Linear(128, 3)),
        nn.Sequential(nn.Flatten(), nn.AlphaDropout(0.1), nn.Linear(128, 3)),
        nn.Sequential(nn.Flatten(), nn.Linear(128, 3), nn.RReLU()),
        Sequence(encoder_layer(dropout=0.1)),
        Sequence(SelfAttention(dropout=0.1)),
        Sequence(nn.LSTM(8, 8, num_layers=2, dropout=0.1, batch_first=True)),
    ],
    ids=lambda net: (
        type(net[1] if isinstance(net, nn.Sequential) else net.core).__name__
    ),
)
def test_hidden_randomness_is_refused_in_train_mode_only(net):
    Task(net, mode="eval")
    with pytest.raises(InvalidInput, match="train mode"):
        Task(net, mode="train")


def test_functional_randomness_is_refused_when_it_is_met(mode):
    task = Task(seeded(FunctionalDropout()), mode=mode)
    state = torch.get_rng_state()
    with pytest.raises(InvalidInput, match="draws random numbers"):
        task.gradient(*image_batch())
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("channels", [1, 2])
def test_normalisation_equals_normalising_by_hand(channels):
    net = seeded(LAYERS["conv2d"]())
    inputs, targets = image_batch()
    mean, std = (0.4, 0.1)[:channels], (0.2, 0.5)[:channels]
    shift, factor = (inputs.new_tensor(v)[:, None, None] for v in (mean, std))
    by_hand = (inputs - shift) / factor
    a = Task(net, normalise=Normalisation(mean, std)).gradient(inputs, targets)
    b = Task(net).gradient(by_hand, targets)
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-12, atol=1e-14)
    assert torch.allclose(
        Normalisation(mean, std).undo(Normalisation(mean, std)(inputs)), inputs
    )


def test_normalisation_must_fit():
    with pytest.raises(InvalidInput, match="positive"):
        Normalisation((0.1,), (0.0,))
    with pytest.raises(InvalidInput, match="as many"):
        Normalisation((0.1, 0.2), (1.0,))
    task = Task(
        seeded(LAYERS["linear"]()), normalise=Normalisation((0.1,) * 3, (1,) * 3)
    )
    with pytest.raises(InvalidInput, match="2 channels"):
        task.gradient(*image_batch())


@given(
    logits=st.lists(
        st.lists(st.floats(-20, 20), min_size=4, max_size=4), min_size=1, max_size=5
    )
)
@settings(max_examples=50, deadline=None)
def test_cross_entropy_of_probabilities_equals_that_of_classes(logits):
    outputs = torch.tensor(logits, dtype=torch.float64)
    classes = torch.arange(len(outputs)) % 4
    hard = LOSSES["cross-entropy"](outputs, classes)
    soft = LOSSES["cross-entropy"](outputs, F.one_hot(classes, 4).double())
    by_hand = (outputs.logsumexp(1) - outputs[range(len(outputs)), classes]).mean()
    torch.testing.assert_close(hard, soft)
    torch.testing.assert_close(hard, by_hand)


def test_single_precision_probabilities_work_in_double_precision():
    task = Task(seeded(LAYERS["linear"]()))
    inputs, targets = image_batch()
    soft = F.one_hot(targets, CLASSES).float()
    a, b = task.gradient(inputs, targets), task.gradient(inputs, soft)
    for name in a:
        torch.testing.assert_close(a[name], b[name])


def test_gradient_is_differentiable_in_soft_targets():
    task = Task(seeded(LAYERS["linear"]()))
    inputs, _ = image_batch()
    targets = torch.full((3, 3), 1 / 3, dtype=torch.float64, requires_grad=True)
    value = sum(g.square().sum() for g in task.gradient(inputs, targets).values())
    (slope,) = torch.autograd.grad(value, targets)
    assert float(slope.abs().max()) > 0


def test_mean_squared_error_of_a_regression():
    net = nn.Sequential(nn.Flatten(), nn.Linear(128, 1))
    task = Task(seeded(net), loss="mse")
    inputs, _ = image_batch()
    targets = torch.tensor([0.5, -1.0, 2.0])
    residual = task.predict(inputs, task.parameters())[:, 0] - targets
    expected = 2 * (residual[:, None] * inputs.flatten(1)).mean(dim=0)
    torch.testing.assert_close(task.gradient(inputs, targets)["1.weight"][0], expected)
    with pytest.raises(InvalidInput, match="value by value"):
        LOSSES["mse"](torch.zeros(3, 2), torch.zeros(3))


def test_output_size_in_both_modes(mode):
    task = Task(seeded(LAYERS["batch-norm"]()), mode=mode)
    assert task.output_size(image_batch()[0]) == CLASSES


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "hinge"}, "cross-entropy"),
        ({"mode": "test"}, "'eval' or 'train'"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(InvalidInput, match=message):
        Task(nn.Linear(2, 2), **options)


@dataclass(frozen=True)
class Huber(Loss):
    name: ClassVar[str] = "huber"
    real: ClassVar[bool] = True

    def __call__(self, outputs, targets):
        return F.huber_loss(outputs.reshape(targets.shape), targets)


def test_a_loss_of_the_user_s_own_is_taken_as_it_is():
    task = Task(seeded(nn.Sequential(nn.Flatten(), nn.Linear(128, 1))), loss=Huber())
    inputs, _ = image_batch()
    targets = torch.tensor([0.5, -9.0, 2.0])
    parameters = task.parameters()
    expected = F.huber_loss(task.predict(inputs, parameters)[:, 0], targets)
    torch.testing.assert_close(
        task.loss_value(inputs, targets, parameters), expected.to(inputs)
    )
    other = replace(task, mode="train").to(torch.float32)
    assert str(other.loss) == "huber"
    assert other.criterion == pickle.loads(pickle.dumps(task)).criterion == Huber()
    with pytest.raises(InvalidInput, match="'huber' has no random score"):
        task.criterion.random_score(targets, generator(0))


def test_losses_say_what_their_outputs_and_targets_are():
    soft, one, real = (LOSSES[n] for n in ("cross-entropy", "logistic", "mse"))
    assert [loss.real for loss in (soft, one, real)] == [False, False, True]
    assert [loss.class_count(1) for loss in (soft, one)] == [1, 2]
    assert [loss.outputs_for(0, 2) for loss in (soft, one, real)] == [2, 1, 2]
    with pytest.raises(InvalidInput, match="labels up to 4; set classes to at least 5"):
        soft.outputs_for(3, 5)
    outputs = torch.randn(4, 3, generator=generator(0)).requires_grad_()
    targets = torch.tensor([2, 0, 1, 1])
    (residuals,) = torch.autograd.grad(soft(outputs, targets), outputs)
    assert soft.classes_of_residuals(residuals).tolist() == targets.tolist()
    single = outputs[:, :1].detach().requires_grad_()
    (residuals,) = torch.autograd.grad(one(single, targets % 2), single)
    assert one.classes_of_residuals(residuals).tolist() == (targets % 2).tolist()
    assert real.classes_of_residuals(residuals) is None


def test_a_model_without_parameters_is_refused():
    with pytest.raises(InvalidInput, match="no trainable parameters"):
        Task(nn.Flatten())
