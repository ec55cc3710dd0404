"""Stacks of defenses are named in words, without importing torch."""

import subprocess
import sys

import pytest

from exhume.defenses.pruning import Pruning
from exhume.report.words import (
    defense_family,
    defense_label,
    defense_strength,
    label_without,
)

NOISE = {"name": "gaussian-noise", "std": 0.001}
CLIP = {"name": "clipping", "max_norm": 1.0}
LARGEST = {"name": "pruning", "ratio": 0.9}
RANDOM = {"name": "pruning", "ratio": 0.29, "kind": "random"}


@pytest.mark.parametrize(
    ("stack", "label", "family", "strength"),
    [
        ([], "no defense", "", None),
        ([NOISE], "Gaussian noise, std 0.001", "Gaussian noise", ("std", 0.001)),
        (
            [{**NOISE, "std": 1e-5}],
            "Gaussian noise, std 1e-5",
            "Gaussian noise",
            ("std", 1e-5),
        ),
        ([CLIP], "clipping 1", "clipping", ("max_norm", 1.0)),
        (
            [CLIP, {**NOISE, "std": 0.01}],
            "clipping 1 + Gaussian noise, std 0.01",
            "clipping 1 + Gaussian noise",
            ("std", 0.01),
        ),
        ([LARGEST], "magnitude pruning 90 %", "magnitude pruning", ("ratio", 0.9)),
        ([RANDOM], "random pruning 29 %", "random pruning", ("ratio", 0.29)),
        (
            [{**NOISE, "only": ["fc.*"]}],
            "Gaussian noise on fc.*, std 0.001",
            "Gaussian noise on fc.*",
            ("std", 0.001),
        ),
        (
            [{"name": "top-secret", "flag": True, "way": "x"}],
            "top secret, flag True, way x",
            "top secret, flag True, way x",
            None,
        ),
        (
            [{"name": "soft-noise", "b_two": 2, "a": 1}],
            "soft noise, a 1, b two 2",
            "soft noise, a 1",
            ("b_two", 2.0),
        ),
        (
            [NOISE, {"name": "quiet"}],
            "Gaussian noise, std 0.001 + quiet",
            "Gaussian noise + quiet",
            ("std", 0.001),
        ),
    ],
)
def test_names(stack, label, family, strength):
    assert defense_label(stack) == label
    assert defense_family(stack) == family
    assert defense_strength(stack) == strength


def test_spelled_out_defaults_do_not_change_the_name():
    spelled = {**LARGEST, "kind": "magnitude", "only": ["*"]}
    assert defense_label([spelled]) == defense_label([LARGEST])
    assert Pruning(ratio=0.9).kind == "magnitude"
    assert Pruning(ratio=0.9).only == ("*",)


def test_only_what_is_not_the_default_is_told():
    cautious = {"name": "dropout", "ratio": 0.5, "rescale": True, "layers": []}
    assert defense_label([cautious]) == "dropout 50 %"
    assert defense_label([{**cautious, "rescale": False}]) == (
        "dropout 50 %, rescale False"
    )
    # The strength is told even where it is the default.
    rounded = {"name": "quantisation", "kind": "stochastic", "bits": 8}
    assert defense_label([rounded]) == "stochastic quantisation, bits 8"


def test_the_strength_may_be_left_out_of_a_name():
    stack = [{"name": "dp-sgd", "max_norm": 1.0, "noise_multiplier": 2.0}]
    assert label_without(stack, 0, "noise_multiplier") == "DP SGD 1"
    assert label_without(stack, 0, "max_norm") == "DP SGD, noise multiplier 2"


def test_stacks_of_one_family_and_strength_are_equal():
    a, b = [CLIP, NOISE], [{**CLIP, "max_norm": 2.0}, NOISE]
    assert defense_strength(a) == defense_strength(b)
    assert defense_family(a) != defense_family(b)


def test_naming_does_not_import_torch():
    code = "import sys, exhume.report.words; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
