"""The observation file: what goes in comes out, and nothing private is in it."""

import json

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from conformance.closeness import assert_close_to_scale
from exhume.defenses.gaussian_noise import GaussianNoise
from exhume.defenses.pruning import Pruning
from exhume.errors import InvalidInput
from exhume.files import read_header
from exhume.keys import generator
from exhume.observations.file import load, save
from exhume.observations.gradient import Gradient
from exhume.observations.shared import share
from exhume.problem.batch import Batch
from exhume.problem.consistency import weights_sha256
from exhume.problem.event import EventSpec
from exhume.problem.knowledge import UNKNOWN
from exhume.problem.mechanism import Mechanism
from exhume.problem.task import Normalisation, Task
from exhume.problem.world import World

SPEC = EventSpec.image(1, 4, 4)


class Net(nn.Module):
    """A tiny convolutional network with BatchNorm, weights from a fixed key."""

    def __init__(self, key: int = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3)
        self.norm = nn.BatchNorm2d(3)
        self.head = nn.Linear(12, 5)
        rng = generator(key, "net")
        for p in self.parameters():
            p.data = torch.rand(p.shape, generator=rng) - 0.5

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.sigmoid(self.norm(self.conv(x))).flatten(1))


def make_world(batch_size: int = 2, mode: str = "eval") -> World:
    x = torch.rand((batch_size, 1, 4, 4), generator=generator(1, "x"))
    y = torch.arange(batch_size).flip(0) % 5
    task = Task(Net(), mode=mode, normalise=Normalisation((0.5,), (0.25,)))
    return World(task, Batch(x, y, SPEC), Mechanism(Gradient()))


def write(path, **options):
    world = make_world()
    observation = world.observe(key=3)
    shared = share(observation.values, world.task, SPEC, **options)
    return world, observation, save(path, shared)


def test_round_trip_keeps_every_bit(tmp_path):
    world = make_world()
    observation = world.observe(key=3)
    shared = share(
        observation.values,
        world.task,
        SPEC,
        batch_size=2,
        targets=world.batch.targets,
        batch_statistics=observation.batch_statistics,
        mechanism=world.mechanism,
        plans=observation.plans,
    )
    again = load(save(tmp_path / "o.safetensors", shared))
    assert again.spec == SPEC
    assert (again.loss, again.mode, again.batch_size) == ("cross-entropy", "eval", 2)
    assert again.normalise == world.task.normalise
    assert torch.equal(again.targets, torch.tensor([0, 1]))
    assert again.defenses == ()
    assert again.values.keys() == observation.values.keys()
    assert all(torch.equal(again.values[n], t) for n, t in observation.values.items())
    for layer, pair in observation.batch_statistics.items():
        for ours, theirs in zip(again.batch_statistics[layer], pair, strict=True):
            assert torch.equal(ours, theirs)


def test_defenses_and_their_plans_keep_the_law(tmp_path):
    world = make_world()
    stack = (Pruning(ratio=0.5, kind="random"), GaussianNoise(std=0.01, only=("h*",)))
    mechanism = Mechanism(Gradient(), stack)
    observation = mechanism.sample(world.task, world.batch, key=4)
    shared = share(
        observation.values,
        world.task,
        SPEC,
        mechanism=mechanism,
        plans=observation.plans,
    )
    path = save(tmp_path / "o.safetensors", shared)
    again = load(path)
    assert again.defenses == stack
    theirs = mechanism.law(observation.plans, observation.values)
    ours = again.law
    exact = world.observe(key=0).values
    for tree, other in (
        (ours.mean(exact), theirs.mean(exact)),
        (ours.variance, theirs.variance),
    ):
        assert tree.keys() == other.keys()
        assert all(torch.equal(tree[n], other[n]) for n in tree)
    record = json.loads(read_header(path).metadata["exhume"])
    assert record["released_in_clear"] == []
    assert "defense" in record["facts"]


def test_reference_in_float64_makes_the_task_float64(tmp_path):
    net = Net().double()
    task, batch = Task(net), make_world().batch
    gradient = task.gradient(batch.inputs.double(), batch.targets)
    path = save(tmp_path / "o.safetensors", share(gradient, task, SPEC))
    problem = load(path).problem(Net(key=4))
    assert problem.task.dtype == torch.float64
    assert weights_sha256(problem.task) == load(path).reference_sha256


def test_reference_weights_turn_any_net_into_the_client_s(tmp_path):
    world, observation, path = write(tmp_path / "o.safetensors")
    other = Net(key=99)
    before = {n: t.clone() for n, t in other.state_dict().items()}
    problem = load(path).problem(other)
    ours = problem.task.gradient(world.batch.inputs, world.batch.targets)
    # The weights lie elsewhere in memory now, which a kernel may notice.
    assert_close_to_scale(ours, observation.values, 1e-5)
    assert all(torch.equal(before[n], t) for n, t in other.state_dict().items())


def test_what_is_not_given_is_unknown(tmp_path):
    _, _, path = write(tmp_path / "o.safetensors", reference=False)
    problem = load(path).problem(Net())
    for fact in ("targets", "batch_size", "batch_statistics", "law", "prior", "public"):
        assert getattr(problem, fact) is UNKNOWN
    assert not load(path).reference


def test_private_inputs_and_order_of_labels_are_not_in_the_file(tmp_path):
    world, _, path = write(tmp_path / "o.safetensors", targets=torch.tensor([4, 1]))
    raw = path.read_bytes()
    assert world.batch.inputs.numpy().tobytes()[:64] not in raw
    assert torch.equal(load(path).targets, torch.tensor([1, 4]))
    families = {name.split("/")[0] for name in read_header(path).tensors}
    assert families == {"gradient", "reference", "buffer", "known"}


def test_bytes_depend_on_content_alone(tmp_path):
    _, _, one = write(tmp_path / "a.safetensors")
    _, _, two = write(tmp_path / "b.safetensors")
    assert one.read_bytes() == two.read_bytes()


def test_plain_tensors_load_and_ask_for_what_they_lack(tmp_path):
    values = make_world().observe(key=0).values
    save_file(values, tmp_path / "g.safetensors")
    shared = load(tmp_path / "g.safetensors")
    assert shared.values.keys() == values.keys()
    with pytest.raises(InvalidInput, match="what one example looks like"):
        shared.problem(Net())


def rewrite(path, **changes):
    """Change the metadata of a file and write it again."""
    from safetensors.torch import load_file

    record = json.loads(read_header(path).metadata["exhume"]) | changes
    save_file(load_file(path), path, metadata={"exhume": json.dumps(record)})


def noise(**options):
    """Record a defense with an empty plan."""
    return {
        "options": {"name": "gaussian-noise", **options},
        "covers": [],
        "numbers": {},
    }


PRUNING = {"options": {"name": "pruning", "ratio": 0.5}, "covers": [], "numbers": {}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 7}, "format 7, this version reads format 1"),
        ({"kind": "weights"}, "kind: Input should be 'gradient' or 'update'"),
        ({"sign": "after-minus-before"}, "sign: Input should be 'gradient'"),
        ({"colour": "red"}, "no option 'colour'"),
        ({"task": {"loss": "cross-entropy"}}, "task.mode: Field required"),
        ({"defense": [{"name": "x"}]}, "defense.0.options: Field required"),
        (
            {"defense": [{"options": 1, "covers": [], "numbers": {}}]},
            r"defense.0.options: Input should be a valid dictionary \(got 1\)",
        ),
        (
            {"defense": [{"options": {}, "covers": [], "numbers": {"removed": 1e999}}]},
            "number 'removed' is inf; expected a finite one",
        ),
        (
            {"defense": [{"options": {}, "covers": [], "numbers": {}}]},
            "defense 0 in 'o.safetensors': a defense is given by its name and options",
        ),
        (
            {"defense": [noise(std="wide"), noise()]},
            r"defense 0 .* 'gaussian-noise': std: .* \(got 'wide'\)",
        ),
        (
            {"defense": [noise(std=0.1, colour="w" * 10**6)]},
            r"defense 0 .* has no option 'colour'.{,300}$",
        ),
        (
            {"defense": [noise(std="w" * 10**6)]},
            r"std: Input should be a valid number.{,300}$",
        ),
        ({"defense": [noise(name="w" * 10**6)]}, r"no defense is called 'ww.{,900}$"),
        (
            {"defense": [PRUNING]},
            r"the plan of a defense .* does not fit it \(KeyError: 'removed'\)",
        ),
        ({"observation": {"name": "update"}}, "holds a gradient, .* describes update"),
        ({"observation": {"epochs": 3}}, "a observation is given by its name"),
        ({"observation": {"name": "gradient", "a": 1}}, "has no option 'a'"),
        ({"batch_size": 0}, "batch_size is 0; expected at least 1"),
        ({"batch_size": "all"}, "batch_size: Input should be a valid integer"),
        (
            {"defense": [{"options": {}, "covers": ["elsewhere"], "numbers": {}}]},
            "covers 'elsewhere', which it does not hold",
        ),
    ],
)
def test_a_wrong_record_is_one_sentence(tmp_path, changes, message):
    _, _, path = write(tmp_path / "o.safetensors")
    rewrite(path, **changes)
    with pytest.raises(InvalidInput, match=message):
        load(path)


def test_no_gradient_in_the_file_is_said(tmp_path):
    _, _, path = write(tmp_path / "o.safetensors")
    metadata = read_header(path).metadata
    save_file({"other": torch.ones(2)}, path, metadata=dict(metadata))
    with pytest.raises(InvalidInput, match="holds no gradient; it has: other"):
        load(path)


def test_a_failed_write_keeps_the_earlier_file(tmp_path):
    world, observation, path = write(tmp_path / "o.safetensors")
    before = path.read_bytes()
    shared = share(observation.values, world.task, SPEC)
    object.__setattr__(shared, "mode", None)
    with pytest.raises(InvalidInput, match="set spec and mode"):
        save(path, shared)
    assert path.read_bytes() == before
