"""Public architectures: published sizes, laws of the weights, second derivatives."""

import copy
import math

import pytest
import torch
from torch import nn

from exhume import EventSpec, Task
from exhume.config import build, describe
from exhume.errors import InvalidInput, NotImported, UnknownName
from exhume.keys import generator
from exhume.models._activations import ACTIVATIONS, quadratic_cubic
from exhume.models._init import default_bound, fresh
from exhume.registry import find

COLOUR = EventSpec.image(3, 32, 32)
GRAY = EventSpec.image(1, 25, 25)
OBLONG = EventSpec.image(2, 11, 18)
VECTOR = EventSpec.vector(12)


def small(name, **options):
    """Return the narrow example of a network, with other options."""
    (example,) = find("model", name).examples()
    return build("model", {**describe(example), **options})


def size(net):
    return sum(p.numel() for p in net.parameters())


def draw(spec, count=2, dtype=torch.float64):
    g = generator(0, "test-models")
    return torch.rand((count, *spec.shape), generator=g, dtype=dtype)


@pytest.mark.parametrize(
    ("model", "spec", "parameters"),
    [
        ("lenet-zhu", COLOUR, 15_826),
        ("lenet-zhu", GRAY, 13_426),
        ("convnet", COLOUR, 2_904_970),
        # 32·9 + 32, 64·32·9 + 64, 32·64·7·7 + 32 and 10·32 + 10
        ("leaky-convnet", EventSpec.image(1, 28, 28), 119_530),
        # the width of ConvNet32: a quarter of the parameters, up to what is linear in w
        ({"name": "convnet", "width": 32}, COLOUR, 733_642),
        ("resnet18", COLOUR, 11_173_962),
        ("mlp", VECTOR, 12 * 256 + 256 + 256 * 10 + 10),
        ("two-layer", VECTOR, 12 * 256 + 256 * 10),
        ({"name": "mlp", "hidden": [], "bias": False}, VECTOR, 120),
        ({"name": "two-layer", "width": 5, "bias": True}, VECTOR, 12 * 5 + 5 + 50 + 10),
    ],
)
def test_published_parameter_counts(model, spec, parameters):
    assert size(build("model", model).build(spec, 10, key=0)) == parameters


IMAGE_ONLY = ["convnet", "leaky-convnet", "lenet-zhu", "resnet18"]
FLAT = ["homogeneous-mlp", "mlp", "tangent-mlp", "transfer", "two-layer"]


@pytest.mark.parametrize("spec", [COLOUR, GRAY, OBLONG], ids=str)
@pytest.mark.parametrize("classes", [1, 10])
@pytest.mark.parametrize("name", IMAGE_ONLY + FLAT)
def test_outputs_for_images_of_any_shape(name, spec, classes):
    net = small(name).build(spec, classes, key=0)
    assert net(draw(spec, dtype=torch.float32)).shape == (2, classes)


@pytest.mark.parametrize("name", FLAT)
def test_vectors_fit(name):
    net = small(name).build(VECTOR, 3, key=0)
    assert net(draw(VECTOR, dtype=torch.float32)).shape == (2, 3)


@pytest.mark.parametrize("name", IMAGE_ONLY)
def test_vectors_are_refused_with_an_alternative(name):
    with pytest.raises(InvalidInput, match=r"reads images.*'mlp'"):
        small(name).build(VECTOR, 3, key=0)


@pytest.mark.parametrize("side", [1, 2, 3, 8, 9, 28, 33])
@pytest.mark.parametrize("net", ["lenet-zhu", "resnet18", "mlp", "two-layer"])
def test_small_and_odd_images(net, side):
    spec = EventSpec.image(1, side, side)
    model = small(net).build(spec, 3, key=0).eval()
    assert model(draw(spec, dtype=torch.float32)).shape == (2, 3)


def test_an_image_that_is_too_small_is_refused():
    with pytest.raises(InvalidInput, match="at least 9 x 9 pixels, got 8 x 12"):
        small("convnet").build(EventSpec.image(1, 8, 12), 10, key=0)
    assert small("convnet").build(EventSpec.image(1, 9, 9), 10, key=0)


@pytest.mark.parametrize(
    "options",
    [
        {"name": "convnet", "width": 0},
        {"name": "convnet", "mean": [0.5], "std": []},
        {"name": "leaky-convnet", "width": 0},
        {"name": "leaky-convnet", "mean": [0.5], "std": [0.0]},
        {"name": "resnet18", "width": 0},
        {"name": "two-layer", "width": 0},
        {"name": "two-layer", "hidden_std": 0.0},
        {"name": "two-layer", "output_std": -1.0},
        {"name": "two-layer", "output_constant": float("inf")},
        {"name": "lenet-zhu", "weight_range": 0.0},
        {"name": "lenet-zhu", "weight_range": float("inf")},
        {"name": "lenet-zhu", "activation": "step"},
        {"name": "mlp", "hidden": [4, 0]},
    ],
    ids=str,
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(InvalidInput):
        build("model", options)


@pytest.mark.parametrize("net", ["convnet", "leaky-convnet"])
def test_a_normalising_network_is_the_plain_one_on_normalised_data(net):
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
    plain = small(net).build(COLOUR, 3, key=0).double().eval()
    own = small(net, mean=mean, std=std).build(COLOUR, 3, key=0).double().eval()
    x = draw(COLOUR)
    by_hand = torch.stack([(x[:, c] - mean[c]) / std[c] for c in range(3)], dim=1)
    assert own.state_dict().keys() == plain.state_dict().keys()
    torch.testing.assert_close(own(x), plain(by_hand))


def test_resnet_in_train_mode_equals_the_plain_network():
    net = small("resnet18").build(GRAY, 3, key=0).double()
    plain = copy.deepcopy(net).train()
    inputs, targets = draw(GRAY), torch.tensor([0, 2])
    nn.functional.cross_entropy(plain(inputs), targets).backward()
    found = Task(net, mode="train").gradient(inputs, targets)
    for key, parameter in plain.named_parameters():
        torch.testing.assert_close(found[key], parameter.grad, rtol=1e-8, atol=1e-12)
    assert not any(
        m.running_mean.any() for m in net.modules() if hasattr(m, "momentum")
    )


# Laws of the weights, within 4 standard errors.


def within_four_errors(sample, variance, fourth):
    """Check the mean and variance of independent draws of a centred law."""
    n = sample.numel()
    mean, second = float(sample.mean()), float(sample.square().mean())
    assert abs(mean) <= 4 * math.sqrt(variance / n)
    assert abs(second - variance) <= 4 * math.sqrt((fourth - variance**2) / n)


def uniform_law(sample, bound):
    assert float(sample.abs().max()) <= bound
    assert float(sample.abs().max()) > 0.9 * bound
    within_four_errors(sample.double(), bound**2 / 3, bound**4 / 5)


@pytest.mark.parametrize("weight_range", [0.5, 0.01])
def test_lenet_weights_are_uniform(weight_range):
    net = small("lenet-zhu", weight_range=weight_range).build(COLOUR, 10, key=0)
    uniform_law(nn.utils.parameters_to_vector(net.parameters()).detach(), weight_range)


@pytest.mark.parametrize("net", ["convnet", "resnet18", "mlp"])
def test_the_other_nets_have_the_default_law_of_pytorch(net):
    model = small(net, **{} if net == "mlp" else {"width": 8}).build(COLOUR, 10, key=0)
    seen = 0
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            bound = 1 / math.sqrt(module.weight[0].numel())
            if module.weight.numel() > 500:
                uniform_law(module.weight.detach(), bound)
                seen += 1
            if module.bias is not None:
                assert float(module.bias.detach().abs().max()) <= bound
        elif isinstance(module, nn.BatchNorm2d):
            assert bool((module.weight == 1).all() and (module.bias == 0).all())
            assert bool((module.running_var == 1).all())
            assert not module.running_mean.any()
            assert module.num_batches_tracked == 0
    assert seen


@pytest.mark.parametrize("layer", [nn.Linear(40, 50), nn.Conv2d(4, 50, 3)])
def test_default_bound_is_that_of_pytorch(layer):
    bound = default_bound(layer.weight[0].numel())
    largest = max(float(p.detach().abs().max()) for p in layer.parameters())
    assert 0.95 * bound < largest <= bound


@pytest.mark.parametrize("stds", [(None, None), (1.0, 0.25)])
def test_two_layer_weights_are_gaussian(stds):
    options = dict(zip(("hidden_std", "output_std"), stds, strict=True))
    net = small("two-layer", width=400, **options).build(VECTOR, 10, key=0)
    expected = stds[0] or 12**-0.5, stds[1] or 400**-0.5
    for layer, std in zip((net.hidden, net.output), expected, strict=True):
        within_four_errors(layer.weight.detach().double(), std**2, 3 * std**4)


def test_the_two_layer_net_is_the_formula():
    net = small("two-layer", activation="quadratic-cubic").build(VECTOR, 3, key=0)
    x = draw(VECTOR, dtype=torch.float32)
    z = x @ net.hidden.weight.T
    torch.testing.assert_close(net(x), (z**2 + z**3) @ net.output.weight.T)


@pytest.mark.parametrize("bias", [False, True])
def test_a_constant_of_the_last_layer_is_no_new_weight(bias):
    plain, moved = (
        small("two-layer", bias=bias, output_constant=c).build(VECTOR, 3, key=0)
        for c in (0.0, 30.0)
    )
    x = draw(VECTOR, dtype=torch.float32)
    torch.testing.assert_close(moved(x), plain(x) + 30)
    counts = [
        sum(p.numel() for p in net.parameters() if p.requires_grad)
        for net in (plain, moved)
    ]
    assert counts[0] == counts[1]


def test_quadratic_cubic_at_known_points():
    z = torch.tensor([-1.0, 0.0, 0.5, 2.0])
    assert quadratic_cubic(z).tolist() == [0.0, 0.0, 0.375, 12.0]


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_every_activation_can_be_chosen(activation):
    for name in ("lenet-zhu", "mlp", "two-layer"):
        net = small(name, activation=activation).build(GRAY, 3, key=0)
        assert bool(torch.isfinite(net(draw(GRAY, dtype=torch.float32))).all())


class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.empty(3))


class Position(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("offset", torch.arange(3.0))


@pytest.mark.parametrize("layer", [Scale, Position])
def test_a_layer_that_cannot_initialise_itself_is_not_left_empty(layer):
    with pytest.raises(TypeError, match=f"{layer.__name__}.*reset_parameters"):
        fresh(layer, generator(0, "x"))


@pytest.mark.parametrize(
    "layer",
    [
        lambda: nn.Conv1d(2, 3, 5),
        lambda: nn.GRU(3, 4, batch_first=True),
        lambda: nn.BatchNorm1d(3),
        lambda: nn.Embedding(5, 2),
        nn.PReLU,
    ],
)
def test_any_layer_of_pytorch_has_its_own_initialisation(layer):
    before = torch.get_rng_state()
    one, same, other = (fresh(layer, generator(key, "x")) for key in (0, 0, 1))
    assert torch.equal(before, torch.get_rng_state())
    for name, value in one.state_dict().items():
        assert bool(torch.isfinite(value.float()).all()), name
        assert torch.equal(value, same.state_dict()[name]), name
    drawn = isinstance(one, nn.Conv1d | nn.GRU | nn.Embedding)
    changed = [
        not torch.equal(v, other.state_dict()[n]) for n, v in one.state_dict().items()
    ]
    assert any(changed) == drawn
    with torch.random.fork_rng(devices=[]):
        plain = layer()
    assert {n: v.shape for n, v in plain.state_dict().items()} == {
        n: v.shape for n, v in one.state_dict().items()
    }


def test_a_function_of_one_s_own_is_a_model_that_draws_by_the_key():
    source = build("model", "audit_lab.nets:build")
    assert describe(source) == {"name": "audit_lab.nets:build"}
    before = torch.get_rng_state()
    spec = EventSpec.vector(64)
    one, same, other = (source.build(spec, 10, key)[1].weight for key in (0, 0, 1))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.parametrize(
    ("kind", "name", "sentence"),
    [
        ("model", "audit_lab.nets:missing", "has no function 'missing'"),
        ("model", "audit_lab.nets:WIDTH", "has no function 'WIDTH'"),
        ("model", "no_such_lab:build", "'no_such_lab' cannot be imported"),
        ("attack", "audit_lab.nets:build", "an own attack is a class"),
    ],
)
def test_what_is_no_function_of_a_model_is_refused(kind, name, sentence):
    with pytest.raises(UnknownName, match=sentence):
        find(kind, name)


def test_a_function_that_returns_no_network_is_told():
    source = build("model", "audit_lab.nets:forgotten")
    with pytest.raises(InvalidInput, match=r"returned NoneType; .*torch\.nn\.Module"):
        source.build(EventSpec.vector(64), 10, key=0)


def test_no_file_has_a_function_imported():
    name = "audit_lab.never_imported:build"
    for own in ("loaded", "refused"):
        with pytest.raises(NotImported):
            build("model", name, own=own)
