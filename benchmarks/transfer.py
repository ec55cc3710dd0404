"""What does a head trained on a frozen backbone tell of its 20 training images?

    python benchmarks/transfer.py --mnist PATH                              # every row
    python benchmarks/transfer.py --mnist PATH --backbone deep --shared weights
    python benchmarks/transfer.py --mnist PATH --seed 1      # other images and networks

MNIST test images averaged to 14 x 14. A network learns the ten digits on 5000 of them,
loses its last layer and is frozen: the backbone. A head learns odd against even on what
the backbone makes of 20 other images. The attacker holds the backbone and 1000 of its
images (with the Gaussian prior fitted to them), and sees of the head its gradient, its
change by fine-tuning, or its weights alone. Every row prints

    embeddings  training images whose embedding correlates with the nearest
                reconstructed one above .9 / .8 / .7
    images      the same of the images themselves, and the median
    null        the same share of 1995 images that nobody trained on, in per cent
    time        of the attack, in CPU seconds

"true embeddings" inverts the true ones: what is lost there is lost to the backbone or
to the inversion. "direct" gives the attack on the head the whole network, so that it
searches images through the backbone, without embeddings in between.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import exhume
from exhume.attacks.engine.embedding_problems import (
    head_view,
    image_problem,
    probe_task,
)
from exhume.attacks.engine.frozen_split import FrozenSplit, frozen_split
from exhume.config import build
from exhume.keys import fold
from exhume.problem.knowledge import Problem
from exhume.trials.memorised import best_correlations
from rows import counts, percentages

PER_CLASS, UNSEEN, TAUGHT, PUBLIC, ERROR = 10, 1995, 5000, 1000, 0.1
#: backbone → the network that it is without its last layer
BACKBONES: dict[str, dict[str, object]] = {
    "dense": {"name": "mlp", "hidden": [400], "activation": "relu"},
    "deep": {"name": "mlp", "hidden": [400, 400], "activation": "relu"},
    "convolutions": {"name": "lenet-zhu", "activation": "silu"},
}
WIDE: dict[str, object] = {"name": "tangent-mlp", "hidden": [1000]}
SMALL_START: dict[str, object] = {"name": "homogeneous-mlp", "hidden": [500]}
TUNED = {"name": "fine-tuning", "target_loss": 1e-3}
#: what is shared → (head, observation, attack on the head)
SHARED = {
    "gradient": (WIDE, {"name": "gradient"}, {"name": "tangent-kernel"}),
    "fine-tuning": (WIDE, TUNED, {"name": "tangent-kernel"}),
    "weights": (SMALL_START, {"name": "weights"}, {"name": "kkt", "restarts": 4}),
}
WAYS = ("embedding", "direct", "true embeddings")


@dataclass(frozen=True)
class Pictures:
    """Images of the head, images that nobody trains on, and those of the backbone."""

    own: exhume.Batch
    unseen: Tensor
    taught: exhume.Batch
    public: exhume.Batch

    @property
    def mean(self) -> Tensor:
        return self.public.inputs.mean(dim=0)


def pictures(path: str, seed: int) -> Pictures:
    """Return sets of images that have none in common, but the public ones."""
    source = {"name": "mnist", "path": path}
    whole = exhume.dataset("relabelled", source=source, pool=2).load()
    if seed:
        random = torch.Generator().manual_seed(seed)
        whole = whole.select(torch.randperm(len(whole), generator=random))
    parity = whole.targets % 2
    chosen = torch.cat([(parity == c).nonzero().flatten()[:PER_CLASS] for c in (0, 1)])
    others = torch.ones(len(whole), dtype=torch.bool)
    others[chosen] = False
    own = exhume.Batch(whole.inputs[chosen].double(), parity[chosen], whole.spec)
    taught = whole.select(range(len(whole) - TAUGHT, len(whole)))
    rows = slice(0, PUBLIC)
    public = exhume.Batch(
        taught.inputs[rows].double(), taught.targets[rows] % 2, whole.spec
    )
    return Pictures(own, whole.inputs[others][:UNSEEN].double(), taught, public)


def learned(options: dict[str, object], batch: exhume.Batch, seed: int) -> nn.Module:
    """Train a network on the ten digits, by five epochs of Adam."""
    net = build("model", options).build(batch.spec, 10, seed)
    descent = torch.optim.Adam(net.parameters(), 1e-3)
    random = torch.Generator().manual_seed(seed)
    for _ in range(5):
        for rows in torch.randperm(len(batch), generator=random).split(64):
            outputs = net(batch.inputs[rows])
            loss = nn.functional.cross_entropy(outputs, batch.targets[rows])
            descent.zero_grad()
            loss.backward()
            descent.step()
    return net


def victim(
    of: Pictures, backbone: str, net: nn.Module, shared: str, seed: int
) -> Problem:
    """Train or differentiate a head over a frozen network; return what is seen."""
    options, observation, _ = SHARED[shared]
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "backbone.safetensors")
        save_file(net.state_dict(), path)
        whole = {"name": "transfer", "backbone": BACKBONES[backbone], "weights": path}
        bare = build("model", {**whole, "head": {"name": "mlp"}})
        body = bare.build(of.own.spec, 1, seed).get_submodule("backbone")
        embedded = body(of.taught.inputs)
        head = {**options, "mean": embedded.mean(dim=0).tolist()}
        if options is WIDE:
            head["std"] = [float(embedded.std(dim=0).square().mean().sqrt())] * len(
                head["mean"]
            )
        network = build("model", {**whole, "head": head}).build(of.own.spec, 1, seed)
    task = exhume.Task(network.double(), loss="logistic")
    prior = exhume.prior("gaussian").fit(of.public, task)
    mechanism = exhume.Mechanism(build("observation", observation))
    world = exhume.World(task, of.own, mechanism, of.public, prior)
    return exhume.ThreatModel("labels-known").reveal(world, world.observe(0))


def inverted(problem: Problem, split: FrozenSplit, embeddings: Tensor) -> Tensor:
    """Return an image for every embedding, as the attack ``embedding`` does."""
    probe, attack = probe_task(split), exhume.attack("gauss-newton")
    return torch.cat(
        [
            attack(image_problem(problem, probe, z, ERROR), fold(0, "image", i)).inputs
            for i, z in enumerate(embeddings)
        ]
    )


def rows(
    of: Pictures,
    backbone: str,
    net: nn.Module,
    shared: str,
    asked: Sequence[str],
    seed: int,
) -> None:
    """Attack in several ways, and print a line for each."""
    problem = victim(of, backbone, net, shared, seed)
    assert isinstance(problem.task, exhume.Task)
    split = frozen_split(problem.task, problem.spec)
    own = split.embed(of.own.inputs)
    attack = build("attack", SHARED[shared][2])

    def two_stages() -> tuple[Tensor, Tensor]:
        view = head_view(problem, split)
        found = view.embeddings(attack(view.problem, fold(0, "head")).inputs)
        return found, inverted(problem, split, found)

    def direct() -> tuple[Tensor, Tensor]:
        images = attack(problem, fold(0, "head")).inputs
        return split.embed(images), images

    def true_ones() -> tuple[Tensor, Tensor]:
        return own, inverted(problem, split, own)

    ways = {"embedding": two_stages, "direct": direct, "true embeddings": true_ones}
    middle = split.embed(of.public.inputs).mean(dim=0)
    for way in asked:
        if way == "true embeddings" and shared != "gradient":
            continue  # they do not depend on what is shared
        begun = time.process_time()
        embeddings, images = ways[way]()
        seconds = time.process_time() - begun
        near = best_correlations(own, embeddings, middle)
        seen = best_correlations(of.own.inputs, images, of.mean)
        null = best_correlations(of.unseen, images, of.mean)
        print(
            f"| {backbone} ({split.dimension}) | {shared} | {way} | {counts(near)} | "
            f"{counts(seen)} | {float(seen.median()):.2f} | {percentages(null, 1)} | "
            f"{seconds:.0f} s |",
            flush=True,
        )


def main() -> None:
    """Print the rows as they are measured."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--mnist", required=True, help="folder of the IDX files")
    parser.add_argument("--backbone", action="append", choices=list(BACKBONES))
    parser.add_argument("--shared", action="append", choices=list(SHARED))
    parser.add_argument("--attack", action="append", choices=WAYS)
    parser.add_argument("--seed", type=int, default=0, help="0: the first images")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    asked = arguments.attack or WAYS
    of = pictures(arguments.mnist, arguments.seed)
    print(
        "| backbone (size) | shared | attack | embeddings > .9 / .8 / .7 of 20 | "
        "images | median | null in % | time |\n|---|---|---|---|---|---|---|---|"
    )
    for backbone in arguments.backbone or BACKBONES:
        net = learned(BACKBONES[backbone], of.taught, arguments.seed)
        for shared in arguments.shared or SHARED:
            rows(of, backbone, net, shared, asked, arguments.seed)


if __name__ == "__main__":
    main()
