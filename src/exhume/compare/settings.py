"""A comparison as one dataclass: the schema of its TOML file."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from typing import Literal

from exhume.errors import InvalidInput
from exhume.runs.records import Options
from exhume.runs.settings import (
    RunSettings,
    check_least,
    check_positive,
    seed_list,
)

__all__ = ["CompareSettings", "Utility"]

Utility = Literal["accuracy", "loss", "u1", "u2"]


@dataclass(frozen=True, kw_only=True)
class CompareSettings(RunSettings):
    """Families of defenses, each brought to the same utility and then attacked.

    In every entry of ``defenses`` one option is a range instead of a number,
    ``{name = "gaussian-noise", std = {weakest = 0.01, strongest = 10}}``: the strength
    that is calibrated. Its ``scale`` is ``log`` (the default), ``linear``, ``integer``,
    or ``remainder`` for fractions, the logarithm of what 1 − value leaves.

    Attributes:
        title: of the report.
        data: one data source.
        model: the network.
        defenses: families; a stack is a list, and one defense needs no list.
        budgets: utility losses to compare at, ascending, in units of ``utility``.
        utility: what a defense costs. ``accuracy``: held-out accuracy after training
            (0.03 is three points of a hundred); ``loss``: mean loss on the training
            data after training. Without training, for one step at the initial weights:
            ``u1``, the share of the first-order decrease of the loss that is lost;
            ``u2``, the standard deviation of isotropic noise of the same second-order
            cost.
        tolerance: how far from a budget a utility loss may be and still count as equal.
        evaluations: strengths to try per family at most.
        training_seeds: seeds of utility, or how many; each has its own weights, split,
            order of batches and noise, the same for every strength and every defense.
        steps: of training; in each, one client's batch passes the mechanism.
        optimiser: of the server: ``adam``, ``sgd`` or ``nesterov``, see :func:`train`.
        learning_rate: at the first step.
        schedule: of the rate: ``falling`` linearly to 0, or ``constant``.
        held_out: examples that accuracy is measured on.
        public_examples: that defenses are calibrated on, in training and under attack.
        recalibrate: steps between two calibrations of a defense; 0 calibrates once.
        attacks: the attack set; chance levels are added.
        bounds: bounds to stand beside the attacks.
        seeds: seeds of the attacks, or how many.
        batch_size: B, of the attacked client and of every client in training.
        classes: number K of outputs; 0 takes it from the labels.
        observation: what a client computes.
        loss: name of the training loss.
        mode: ``eval`` or ``train``.
        dtype: ``float32`` or ``float64``.
        threat: name of a threat model.
        prior: prior fitted to the public examples, or None.
        executor: where trainings and trials run, as in an audit.
        workers: number of processes; 0 takes one per core.
        out: folder of the run; "" makes ``runs/<title>``.

    Raises:
        InvalidInput: a value is out of range, or there is nothing to compare.
    """

    title: str = "Comparison"
    data: Options | str = "digits"
    model: Options | str = "lenet-zhu"
    defenses: list[list[Options | str] | Options] = field(default_factory=list)
    budgets: list[float] = field(default_factory=lambda: [0.01, 0.03, 0.1])
    utility: Utility = "accuracy"
    tolerance: float = 0.005
    evaluations: int = 12
    training_seeds: list[int] | int = 3
    steps: int = 500
    optimiser: Literal["adam", "sgd", "nesterov"] = "adam"
    learning_rate: float = 3e-3
    schedule: Literal["falling", "constant"] = "falling"
    held_out: int = 500
    public_examples: int = 200
    recalibrate: int = 0
    attacks: list[Options | str] = field(default_factory=lambda: ["gauss-newton"])
    bounds: list[Options | str] = field(default_factory=lambda: ["bayesian-cramer-rao"])
    seeds: list[int] | int = 5
    batch_size: int = 1
    classes: int = 0
    observation: Options | str = "gradient"
    loss: str = "cross-entropy"
    mode: Literal["eval", "train"] = "eval"
    dtype: Literal["float32", "float64"] = "float32"
    threat: str = "labels-known"
    prior: Options | str | None = "gaussian"
    executor: str = "processes"
    workers: int = 0
    out: str = ""

    def __post_init__(self) -> None:
        self.check_run()
        check_least(
            self,
            evaluations=2,
            steps=1,
            held_out=1,
            public_examples=1,
            recalibrate=0,
            batch_size=1,
            classes=0,
        )
        check_positive(self, "tolerance", "learning_rate")
        if not self.training_seed_list:
            msg = f"training_seeds is {self.training_seeds!r}; give how many, or a list"
            raise InvalidInput(msg)
        self._check_budgets()

    def _check_budgets(self) -> None:
        given = self.budgets
        rising = all(a < b for a, b in itertools.pairwise(given))
        if not given or not rising or not 0 < given[0] <= given[-1] < math.inf:
            msg = f"budgets is {given}; expected positive numbers, each above the last"
            raise InvalidInput(msg)
        if not self.defenses:
            msg = "defenses is empty, so there is nothing to compare"
            raise InvalidInput(msg)

    @property
    def training_seed_list(self) -> list[int]:
        """The seeds of utility, without repetition."""
        return seed_list(self.training_seeds)
