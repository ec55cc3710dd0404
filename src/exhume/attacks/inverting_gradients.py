"""Inverting Gradients: cosine distance and total variation by signed Adam in a box."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Self

from exhume.attacks.engine.adam import Adam
from exhume.attacks.engine.discrepancy import distance_named
from exhume.attacks.engine.driver import Design, Limits, MatchingAttack
from exhume.attacks.engine.objective import make_objective, mean_total_variation
from exhume.attacks.engine.start import StartKind
from exhume.attacks.unknowns import InferredLabels, RelaxationChoice, fit_relaxation
from exhume.config import chosen, later
from exhume.problem.attack import check_options
from exhume.problem.knowledge import Fact, Problem
from exhume.problem.relaxation import Units

__all__ = ["InvertingGradients"]


@dataclass(frozen=True, kw_only=True)
class InvertingGradients(MatchingAttack):
    """Geiping et al. (NeurIPS 2020): min 1 − cos(F(x, y), O) + α TV(x) in the range.

    Adam on the sign of the gradient, learning rate 0.1 in normalised units (the model's
    own normalisation, else a quarter of the range), a tenth of it after 3/8, 5/8 and
    7/8 of the run, a clamp to the range after each step.

    Deviations:
        * The weight of the total variation is 0.2, as in the authors' later framework;
          the paper tunes it per experiment. It is the mean over all entries, without
          jumps across the border and smoothed where neighbours are equal. Vectors have
          none.
        * One restart of 24,000 iterations; the paper also reports several restarts.
        * Labels that are not known are inferred (``bias-corrected``) or optimised.
        * The best iterate is returned, not the last one; a standstill after the last
          decay ends the run.
        * A known defense is used: the cosine is taken to h(F(x)), whitened by the
          declared noise.

    Attributes:
        iterations: Adam steps per restart (published: 24,000).
        restarts: random starts; the one with the smallest objective wins.
        seconds: CPU seconds over all restarts; None for no limit.
        start: kind of start; ``normal`` is the published one.
        labels: for labels that are not known: ``bias-corrected``, ``idlg`` (both fall
            back on ``joint``) or ``joint``.
        relaxation: what is varied, x = g(z): ``projection`` (published), ``box``,
            ``identity`` or any other one, by name, with options, or as an object.
        total_variation: α, weight of the total variation; 0 leaves it out.
        step_size: of Adam, in normalised units.
        signed: take the sign of the gradient.
        discrepancy: ``cosine`` (published), ``cosine-and-length``, ``euclidean``,
            ``layerwise-euclidean``, ``absolute``, or ``module:function`` of your own.
        patience: iterations without progress that end a restart after the last decay.
        stall: progress lowers the objective by more than this fraction.
    """

    iterations: int = 24_000
    restarts: int = 1
    seconds: float | None = None
    start: StartKind = "normal"
    labels: InferredLabels = "bias-corrected"
    relaxation: RelaxationChoice = field(
        default="projection", metadata=chosen("relaxation", formerly="parametrisation")
    )
    total_variation: float = 0.2
    step_size: float = 0.1
    signed: bool = True
    discrepancy: str = later("cosine")
    patience: int = 500
    stall: float = 1e-4

    bibtex: ClassVar[str] = """
@inproceedings{geiping2020inverting,
  title = {Inverting Gradients -- How Easy Is It to Break Privacy in Federated
           Learning?},
  author = {Geiping, Jonas and Bauermeister, Hartmut and Dr{\\"o}ge, Hannah and
            Moeller, Michael},
  booktitle = {Advances in Neural Information Processing Systems (NeurIPS)},
  year = {2020}
}
"""

    def __post_init__(self) -> None:
        distance_named(self.discrepancy)
        check_options(
            at_least_one={
                "iterations": self.iterations,
                "restarts": self.restarts,
                "patience": self.patience,
            },
            positive={"seconds": self.seconds, "step_size": self.step_size},
            not_negative={"total_variation": self.total_variation},
        )

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        """Return a run that barely begins, and one that ends near a small image."""
        return (cls(iterations=3), cls(iterations=100))

    def design(self, problem: Problem) -> Design:
        """Return the parts of the attack for a problem."""
        units = Units.standard(problem.require(Fact.WEIGHTS), problem.spec)
        priors, notes = mean_total_variation(problem, self.total_variation)
        return Design(
            objective=make_objective(problem, self.discrepancy, priors=priors),
            relaxation=fit_relaxation(self.relaxation, problem, units),
            solver=Adam(step_size=self.step_size, schedule="steps", signed=self.signed),
            limits=Limits(
                iterations=self.iterations,
                restarts=self.restarts,
                seconds=self.seconds,
                patience=self.patience,
                stall=self.stall,
            ),
            start=self.start,
            labels=(self.labels, "joint"),
            notes=notes,
        )
