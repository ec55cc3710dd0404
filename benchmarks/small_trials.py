"""A fixed table of small trials that together run every registered name once.

Plain data: each row is a label with the fields of a trial, of a measurement of utility
or of a point of theory, options as a user gives them. ``compare_checkouts.py`` runs the
table in two checkouts, and says which registered attacks, bounds and defenses have no
row.
"""

from __future__ import annotations

from typing import Any

__all__ = ["POINTS", "TRAININGS", "trials"]

Options = dict[str, Any]

DIGITS = {"name": "digits"}
ODD = {
    "name": "relabelled",
    "source": DIGITS,
    "classes": [[0, 2, 4, 6, 8], [1, 3, 5, 7, 9]],
}
SMOOTH = {"name": "mlp", "hidden": [16], "activation": "tanh"}
TRANSFER = {
    "name": "transfer",
    "backbone": {"name": "mlp", "hidden": [80], "activation": "tanh"},
    "head": {"name": "mlp", "hidden": [16], "activation": "tanh"},
}
BINARY = {"data": ODD, "loss": "logistic", "dtype": "float64", "prior": None}
#: what an attack faces, by a name that rows refer to
WORLDS: dict[str, Options] = {
    "gradient": {},
    "pair": {"batch_size": 2},
    "float64": {"dtype": "float64"},
    "no prior": {"prior": None},
    "unknown labels": {"threat": "data-enhanced"},
    "update": {
        "batch_size": 2,
        "observation": {"name": "update", "epochs": 2, "batch_size": 1, "rate": 0.05},
    },
    "one step": {"observation": {"name": "update", "rate": 0.1}},
    "momentum": {
        "batch_size": 2,
        "observation": {"name": "update", "epochs": 2, "momentum": 0.9, "clip": 1.0},
    },
    "adam": {
        "batch_size": 2,
        "observation": {"name": "update", "epochs": 2, "optimiser": "adam"},
    },
    "two-layer": {
        "model": {"name": "two-layer", "width": 1000, "output_constant": 1.0},
        "dtype": "float64",
        "batch_size": 2,
    },
    "fine-tuning": {
        **BINARY,
        "model": {"name": "tangent-mlp", "hidden": [60]},
        "batch_size": 3,
        "observation": {"name": "fine-tuning", "target_loss": 0.05},
    },
    "linearised": {
        **BINARY,
        "model": {"name": "tangent-mlp", "hidden": [60]},
        "batch_size": 3,
        "observation": {"name": "fine-tuning", "linearised": True},
    },
    "weights": {
        **BINARY,
        "model": {"name": "homogeneous-mlp", "hidden": [40], "mean": [0.3]},
        "batch_size": 4,
        "observation": {"name": "weights", "target_loss": 0.05},
    },
    "head": {"model": TRANSFER, "dtype": "float64", "batch_size": 2},
    "head update": {
        "model": TRANSFER,
        "dtype": "float64",
        "batch_size": 2,
        "observation": {"name": "update", "epochs": 2, "rate": 0.05},
    },
    "batch norm": {
        "model": {"name": "resnet18", "width": 2},
        "mode": "train",
        "threat": "statistics-known",
        "prior": {"name": "batch-norm-statistics"},
        "batch_size": 2,
    },
    "noise": {
        "dtype": "float64",
        "defenses": [{"name": "gaussian-noise", "std": 0.01}],
    },
    "laplace": {"defenses": [{"name": "laplace-noise", "std": 0.01}]},
    "clipped noise": {
        "dtype": "float64",
        "defenses": [
            {"name": "clipping", "max_norm": 0.1},
            {"name": "gaussian-noise", "std": 0.05},
        ],
    },
    "private scale": {
        "dtype": "float64",
        "defenses": [
            {
                "name": "optimal-gradient-noise",
                "std": 0.3,
                "scale_source": "private",
                "probes": 2,
                "samples": 2,
            }
        ],
    },
    "faces": {
        "data": {"name": "faces"},
        "model": {"name": "lenet-zhu"},
        "classes": 10,
        "prior": {"name": "total-variation"},
    },
}
TANGENT = {"iterations": 40, "polish": 10, "newton": 5, "rounds": 1}
#: (attack, worlds): every attack on every observation that it inverts
ATTACKS: list[tuple[Options, tuple[str, ...]]] = [
    ({"name": "analytic-linear"}, ("gradient", "pair", "unknown labels")),
    (
        {"name": "covariance-aware", "iterations": 1, "evaluations": 9, "restarts": 1},
        ("private scale",),
    ),
    ({"name": "dlg", "iterations": 4}, ("gradient", "pair", "one step", "faces")),
    (
        {"name": "dlg", "iterations": 4, "labels": "idlg", "line_search": False},
        ("unknown labels",),
    ),
    (
        {
            "name": "embedding",
            "head_options": TANGENT,
            "image_options": {"iterations": 4, "inner_iterations": 20},
        },
        ("head", "head update"),
    ),
    ({"name": "fedavg-epochs", "iterations": 6}, ("update", "momentum", "pair")),
    (
        {"name": "fedavg-epochs", "iterations": 6, "invariant": "convolution"},
        ("update",),
    ),
    (
        {"name": "gauss-newton", "iterations": 4, "restarts": 2},
        ("gradient", "pair", "update", "momentum", "noise", "clipped noise", "laplace"),
    ),
    (
        {"name": "gauss-newton", "iterations": 3, "restarts": 1, "labels": "joint"},
        ("unknown labels", "no prior", "faces"),
    ),
    (
        {"name": "gradinversion", "iterations": 8, "restarts": 2},
        ("pair", "batch norm", "update"),
    ),
    ({"name": "idlg", "iterations": 4}, ("gradient", "one step")),
    (
        {"name": "inverting-gradients", "iterations": 10, "restarts": 2},
        ("gradient", "pair", "unknown labels", "update", "adam", "batch norm", "faces"),
    ),
    *(
        ({"name": "inverting-gradients", "iterations": 4, "start": start}, ("update",))
        for start in ("prior-mean", "uniform", "public", "surrogate")
    ),
    (
        {"name": "inverting-gradients", "iterations": 4, "start": "analytic"},
        ("gradient", "one step"),
    ),
    (
        {
            "name": "inverting-gradients",
            "iterations": 6,
            "parametrisation": "box",
            "signed": False,
            "labels": "joint",
        },
        ("unknown labels", "no prior"),
    ),
    ({"name": "kkt", "iterations": 40, "restarts": 2}, ("weights",)),
    *(
        ({"name": "kkt", "iterations": 30, "restarts": 1, **more}, ("weights",))
        for more in (
            {"solver": "sgd", "misfit": "plain"},
            {"span": False, "project": 5, "keep": "all"},
        )
    ),
    ({"name": "nearest-public", "gradients": 20}, ("gradient", "update", "noise")),
    ({"name": "pca"}, ("two-layer",)),
    ({"name": "prior-mean"}, ("gradient", "update", "fine-tuning", "weights")),
    ({"name": "public-centres"}, ("gradient", "update", "fine-tuning", "weights")),
    (
        {"name": "sample-splitting", "iterations": 20, "rounds": 1, "restarts": 1},
        ("weights",),
    ),
    (
        {"name": "sample-splitting", "inner": "tangent-kernel", "options": TANGENT},
        ("fine-tuning",),
    ),
    (
        {"name": "sample-splitting", "inner": "subspace", "options": TANGENT},
        ("fine-tuning", "gradient"),
    ),
    (
        {"name": "subspace", "options": TANGENT},
        ("gradient", "update", "fine-tuning", "linearised"),
    ),
    (
        {
            "name": "subspace",
            "inner": "inverting-gradients",
            "options": {"iterations": 6},
        },
        ("pair",),
    ),
    ({"name": "surrogate-model", "iterations": 6}, ("update", "momentum", "pair")),
    *(
        ({"name": "surrogate-model", "iterations": 4, "path": path}, ("update",))
        for path in ("bezier", "midpoint", "initial")
    ),
    (
        {"name": "tangent-kernel", **TANGENT},
        ("gradient", "update", "fine-tuning", "linearised"),
    ),
    (
        {"name": "tangent-kernel", **TANGENT, "escape": "split"},
        ("fine-tuning", "linearised"),
    ),
    *(
        ({"name": "tensor", "restarts": 10, "starts": 2, **more}, ("two-layer",))
        for more in ({}, {"subspace": "moments", "polish": 0}, {"subspace": "svd"})
    ),
    (
        {"name": "unrolled", "iterations": 4, "rounds": 2, "exchanges": 4},
        ("update", "momentum", "adam", "pair"),
    ),
]
FEW = {"samples": 2, "probes": 2, "batch_size": 2}
MATRIX = {"name": "matrix-optimal-noise", "std": 0.1, "rank": 3, "samples": 2}
#: stacks; each is attacked by what reads the release and what reads its likelihood
DEFENSES: list[list[Options]] = [
    [{"name": "censor", "trials": 2}],
    [{"name": "clipping", "max_norm": 0.1}],
    [{"name": "coordinate-clipping", "max_abs": 0.02}],
    [{"name": "dp-sgd", "max_norm": 0.1, "noise_multiplier": 0.5, "batch_size": 2}],
    [{"name": "dropout", "ratio": 0.3}],
    [{"name": "example-clipping", "max_norm": 0.1}],
    [{"name": "gaussian-noise", "std": 0.01}],
    [{"name": "laplace-noise", "std": 0.01}],
    [{"name": "local-aggregation", "steps": 3, "rate": 0.1}],
    [{**MATRIX, "batch_size": 2}],
    [{**MATRIX, "batch_size": 2, "form": "kronecker"}],
    [{"name": "optimal-gradient-noise", "std": 0.1, **FEW}],
    [{"name": "optimal-gradient-noise", "std": 0.1, "metric": "curvature", **FEW}],
    [{"name": "optimal-gradient-pruning", "ratio": 0.4, **FEW}],
    [{"name": "precode", "latent": 3}],
    [{"name": "pruning", "ratio": 0.5}],
    [{"name": "pruning", "ratio": 0.5, "kind": "random", "per_tensor": True}],
    [{"name": "quantisation", "kind": "sign"}],
    [{"name": "quantisation", "kind": "int8"}],
    [{"name": "quantisation", "kind": "stochastic", "bits": 3}],
    [{"name": "secure-aggregation", "clients": 2}],
    [{"name": "soteria", "ratio": 0.5}],
    [{"name": "clipping", "max_norm": 1.0}, {"name": "gaussian-noise", "std": 0.01}],
]
READERS: list[Options] = [
    {"name": "inverting-gradients", "iterations": 3},
    {"name": "gauss-newton", "iterations": 2, "restarts": 1, "inner_iterations": 20},
]
BOUNDS: list[tuple[Options, tuple[str, ...]]] = [
    ({"name": "bayes-security"}, ("clipped noise",)),
    ({"name": "bayesian-cramer-rao", "draws": 2}, ("noise", "gradient", "weights")),
    ({"name": "bayesian-trace", "draws": 2, "probes": 2}, ("noise", "clipped noise")),
    ({"name": "cramer-rao", "draws": 2}, ("noise", "clipped noise")),
    ({"name": "fisher-information-leakage", "draws": 2}, ("noise", "clipped noise")),
    ({"name": "hammersley-chapman-robbins", "diameter": 1.0}, ("clipped noise",)),
    ({"name": "no-prior-gaussian", "radius": 0.1}, ("clipped noise", "noise")),
    ({"name": "reconstruction-robustness", "radius": 0.1}, ("clipped noise",)),
]
#: fields of a trial, tried with the first reader
SETTINGS: dict[str, Options] = {
    **{
        f"model {name}": {"model": {"name": name, **more}}
        for name, more in (
            ("leaky-convnet", {"width": 4}),
            ("lenet-zhu", {}),
            ("resnet18", {"width": 2}),
            ("homogeneous-mlp", {"hidden": [16]}),
            ("tangent-mlp", {"hidden": [16]}),
            ("two-layer", {"width": 64}),
        )
    },
    "model convnet": {**WORLDS["faces"], "model": {"name": "convnet", "width": 4}},
    **{
        f"data {name}": {
            "data": {"name": name},
            "model": {"name": "mlp", "hidden": [8]},
            "prior": {"name": "total-variation"},
        }
        for name in ("faces", "medical", "photos")
    },
    **{
        f"threat {name}": {"threat": name, "batch_size": 2}
        for name in ("eavesdropper", "parameter-aware", "data-enhanced")
    },
    "threat defense-unknown": {
        "threat": "defense-unknown",
        "defenses": [{"name": "gaussian-noise", "std": 0.01}],
    },
    **{
        f"threat {name}": {**WORLDS["update"], "threat": name}
        for name in ("rate-unknown", "order-known")
    },
    "public examples": {"defenses": [MATRIX], "public_examples": 20},
    "low-rank prior": {"prior": {"name": "gaussian", "covariance": "low-rank"}},
}
_TRAINING: Options = {
    "data": DIGITS,
    "model": {"name": "mlp", "hidden": [8]},
    "loss": "cross-entropy",
    "mode": "eval",
    "dtype": "float32",
    "classes": 0,
    "observation": {"name": "gradient"},
    "batch_size": 4,
    "defenses": [],
    "seed": 0,
    "kind": "training",
    "steps": 6,
    "optimiser": "adam",
    "learning_rate": 0.01,
    "held_out": 50,
    "public_examples": 20,
    "recalibrate": 0,
}
#: measurements of utility
TRAININGS: dict[str, Options] = {
    f"utility {label}": {**_TRAINING, **more}
    for label, more in (
        ("plain", {}),
        ("one step", {"kind": "one-step"}),
        ("sgd", {"optimiser": "sgd", "schedule": "constant", "order": "fixed"}),
        ("nesterov", {"optimiser": "nesterov", "examples": 16, "loss_batch": 4}),
        ("noise", {"defenses": [{"name": "gaussian-noise", "std": 0.1}]}),
        ("pruning", {"defenses": [{"name": "pruning", "ratio": 0.9}]}),
        (
            "recalibrated",
            {"defenses": [{**MATRIX, "batch_size": 4}], "recalibrate": 3},
        ),
        (
            "one step, noise",
            {
                "kind": "one-step",
                "defenses": [{"name": "gaussian-noise", "std": 0.1}],
            },
        ),
    )
}
_POINT: Options = {
    "row": "none",
    "width": 300,
    "dimension": 8,
    "batch_size": 2,
    "activation": "quadratic-cubic",
    "layer": "hidden",
    "bias": 30.0,
    "noise": 1.0,
    "arms": ["moments", "svd", "polished"],
    "seed": 0,
}
#: points of theory
POINTS: dict[str, Options] = {
    f"point {label}": {**_POINT, **more}
    for label, more in (
        ("none", {}),
        ("tanh", {"activation": "tanh", "arms": ["svd", "auto"], "noise": 0.1}),
        ("output layer", {"layer": "output"}),
        ("local-aggregation", {"row": "local-aggregation", "count": 2}),
        ("gradient-noise", {"row": "gradient-noise", "noise": 3.0}),
        ("dp-sgd", {"row": "dp-sgd", "clip": 100.0}),
        ("clipping", {"row": "clipping", "clip": 30.0, "noise": 0.01}),
        ("dropout", {"row": "dropout", "ratio": 0.5}),
        ("random pruning", {"row": "pruning", "ratio": 0.5}),
        ("pruning", {"row": "pruning", "ratio": 0.5, "kind": "magnitude"}),
        ("secure-aggregation", {"row": "secure-aggregation", "count": 2}),
    )
}


def trials() -> dict[str, Options]:
    """List the fields of every trial by its label."""
    base: Options = {
        "data": DIGITS,
        "model": SMOOTH,
        "prior": {"name": "gaussian"},
        "observation": {"name": "gradient"},
    }
    rows: dict[str, Options] = {}
    for kind, listed in (("attack", ATTACKS), ("bound", BOUNDS)):
        for options, worlds in listed:
            for world in worlds:
                more = _told(options)
                label = f"{options['name']}{more} on {world}"
                rows[label] = {**base, **WORLDS[world], kind: options}
    for stack in DEFENSES:
        for reader in READERS:
            behind = " + ".join(f"{o['name']}{_told(o)}" for o in stack)
            given = {"batch_size": 2, "defenses": stack, "attack": reader}
            rows[f"{reader['name']} behind {behind}"] = {**base, **given}
    for label, fields in SETTINGS.items():
        rows[label] = {**base, "attack": READERS[0], **fields}
    return rows


def _told(options: Options) -> str:
    """Write the options that tell rows of one name apart: words and switches."""
    words = [
        f"{key} {value}"
        for key, value in options.items()
        if key != "name" and isinstance(value, str | bool)
    ]
    return f" ({', '.join(words)})" if words else ""
