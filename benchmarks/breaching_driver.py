"""Run breaching on one frozen case; executed inside its own virtual environment.

Reads a case written by ``parity_breaching.py`` and prints one JSON line. Nothing of
exhume is imported here, and breaching is never a dependency of exhume.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time

import numpy as np
import torch
from torch import nn

torch.set_num_threads(1)

operators = None
try:
    import torchvision  # noqa: F401
except RuntimeError:
    # The torchvision wheel lacks its operators beside a CPU torch; declare them.
    operators = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        operators.define(
            name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        )

import breaching  # noqa: E402


class Meta:
    shape, classes = (3, 32, 32), 10
    modality, task, name, normalize = "vision", "classification", "case", True
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


def lenet() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 12, 5, padding=2, stride=2),
        nn.Sigmoid(),
        nn.Conv2d(12, 12, 5, padding=2, stride=2),
        nn.Sigmoid(),
        nn.Conv2d(12, 12, 5, padding=2, stride=1),
        nn.Sigmoid(),
        nn.Flatten(),
        nn.Linear(768, 10),
    )


def main(path: str, iterations: int) -> dict[str, float]:
    case = np.load(path, allow_pickle=False)
    Meta.mean = tuple(case["mean"].tolist())
    Meta.std = tuple(case["std"].tolist())
    net = lenet()
    names = [name for name, _ in net.named_parameters()]
    net.load_state_dict({n: torch.tensor(case[f"w::{n}"]) for n in names})
    gradients = [torch.tensor(case[f"g::{n}"]) for n in names]
    labels, x0 = torch.tensor(case["y"]), torch.tensor(case["x0"])
    setup = {"device": torch.device("cpu"), "dtype": torch.float}
    overrides = [
        f"optim.max_iterations={iterations}",
        "optim.callback=1000000",
        "restarts.num_trials=1",
    ]
    config = breaching.get_attack_config("invertinggradients", overrides=overrides)
    attacker = breaching.attacks.prepare_attack(
        net, nn.CrossEntropyLoss(), config, setup
    )
    payload = [
        {"parameters": list(net.parameters()), "buffers": [], "metadata": Meta},
    ]
    metadata = {
        "num_data_points": len(labels),
        "labels": labels.clone(),
        "local_hyperparams": None,
    }
    shared = [{"gradients": gradients, "buffers": None, "metadata": metadata}]
    cpu, wall = time.process_time(), time.perf_counter()
    answer, stats = attacker.reconstruct(payload, shared, {}, initial_data=x0)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    mean, std = (torch.tensor(v).reshape(1, -1, 1, 1) for v in (Meta.mean, Meta.std))
    image = (answer["data"].detach() * std + mean).clamp(0, 1)
    truth = (torch.tensor(case["x"]) * std + mean).clamp(0, 1)
    return {
        "objective": float(stats["Trial_0_Val"][-1]),
        "cpu_seconds": cpu,
        "wall_seconds": wall,
        "mse": float((image - truth).square().mean()),
    }


if __name__ == "__main__":
    # breaching prints; the one JSON line goes to the real standard output.
    with contextlib.redirect_stdout(sys.stderr):
        result = main(sys.argv[1], int(sys.argv[2]))
    print(json.dumps(result))
