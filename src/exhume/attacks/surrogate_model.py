"""Surrogate model: one gradient between the weights before and after local training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Self

from exhume.attacks.engine.adam import Adam
from exhume.attacks.engine.driver import Design, Limits, MatchingAttack
from exhume.attacks.engine.objective import (
    Objective,
    make_objective,
    mean_total_variation,
)
from exhume.attacks.engine.start import StartKind
from exhume.attacks.engine.surrogate import SurrogatePath, surrogate
from exhume.attacks.unknowns import InferredLabels, RelaxationChoice, fit_relaxation
from exhume.config import chosen
from exhume.observations.update import Update
from exhume.problem.attack import check_options
from exhume.problem.knowledge import Fact, Problem
from exhume.problem.prior import Density
from exhume.problem.relaxation import Units

__all__ = ["SurrogateModel"]


@dataclass(frozen=True, kw_only=True)
class SurrogateModel(MatchingAttack):
    """Zhu, Yao and Blaschko (ICML 2023): min 1 − cos(−∇L(x, y; Θ̂), O) + α_TV TV(x).

    One gradient at Θ̂ = (1 − α) Θ_0 + α Θ_T, α in [0, 1] learned with x, stands for all
    local steps: an attacker who has O also has Θ_T = Θ_0 + O. Neither the order of the
    examples nor the step size nor the number of steps is needed, and the cost is that
    of an attack on one gradient. ``bezier`` lets the point lie on a curve with a
    learned control point (Xia et al., arXiv 2509.22082); ``midpoint`` and ``initial``
    fix it, the latter is the attack that takes the update for a gradient at Θ_0.

    At given inputs the objective is minimised over α by a search in [0, 1], and over
    the control point by 25 steps of Adam, so that it is a function of the candidate.

    Deviations:
        * Adam with cosine decay, 600 iterations, 0.4 in normalised units, 0.02 for α
          (as a logit); the authors take 1000, 1.0 and 0.001 with a tenfold decay at
          3/8, 5/8 and 7/8.
        * Weight decay: what it alone makes of Θ_0 is added if the step size is known,
          else ω Θ̂ to the gradient. The paper has none.
        * The control point is a deviation from the middle of the segment, whose square
          over ‖Θ_T − Θ_0‖² is penalised by ``stiffness``; the published regulariser
          and scaling differ.
        * The cosine needs no scaling of the update. A known defense is used.
        * A gradient has no Θ_T: it is matched at Θ_0.

    Attributes:
        path: ``linear`` (published), ``bezier``, ``midpoint`` or ``initial``.
        iterations: Adam steps per restart.
        restarts: random starts; the one with the smallest objective wins.
        seconds: CPU seconds over all restarts; None for no limit.
        start: kind of start.
        labels: for labels that are not known: ``bias-corrected``, ``idlg`` (both fall
            back on ``joint``) or ``joint``.
        relaxation: what is varied, x = g(z): ``projection``, ``box``, ``identity`` or
            any other relaxation, by name, with options, or as an object.
        total_variation: α_TV, weight of the total variation; 0 leaves it out.
        stiffness: weight of the bending of a ``bezier`` curve.
        step_size: of Adam, in normalised units.
        patience: iterations without progress that end a restart in the last eighth.
        stall: progress lowers the objective by more than this fraction.
    """

    path: SurrogatePath = "linear"
    iterations: int = 600
    restarts: int = 1
    seconds: float | None = None
    start: StartKind = "normal"
    labels: InferredLabels = "bias-corrected"
    relaxation: RelaxationChoice = field(
        default="projection", metadata=chosen("relaxation", formerly="parametrisation")
    )
    total_variation: float = 0.003
    stiffness: float = 0.01
    step_size: float = 0.4
    patience: int = 100
    stall: float = 1e-4

    bibtex: ClassVar[str] = """
@inproceedings{zhu2023surrogate,
  title = {Surrogate Model Extension ({SME}): A Fast and Accurate Weight Update Attack
           on Federated Learning},
  author = {Zhu, Junyi and Yao, Ruicong and Blaschko, Matthew B.},
  booktitle = {International Conference on Machine Learning (ICML)},
  year = {2023}
}
@article{xia2025nonlinear,
  title = {Non-Linear Trajectory Modeling for Multi-Step Gradient Inversion Attacks in
           Federated Learning},
  author = {Xia, Li and Yu, Jing and Liu, Zheng and Huang, Sili and Tang, Wei and
            Liu, Xuan},
  journal = {arXiv preprint arXiv:2509.22082},
  year = {2025}
}
"""

    def __post_init__(self) -> None:
        check_options(
            at_least_one={
                "iterations": self.iterations,
                "restarts": self.restarts,
                "patience": self.patience,
            },
            positive={"seconds": self.seconds, "step_size": self.step_size},
            not_negative={
                "total_variation": self.total_variation,
                "stiffness": self.stiffness,
            },
        )

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        """Return a run that barely begins, and one that ends near a small image."""
        return (cls(iterations=2), cls())

    def design(self, problem: Problem) -> Design:
        """Return the parts of the attack for a problem."""
        units = Units.standard(problem.require(Fact.WEIGHTS), problem.spec)
        priors, notes = mean_total_variation(problem, self.total_variation)
        return Design(
            objective=self._objective(problem, priors),
            relaxation=fit_relaxation(self.relaxation, problem, units),
            solver=Adam(step_size=self.step_size, schedule="cosine"),
            limits=Limits(
                iterations=self.iterations,
                restarts=self.restarts,
                seconds=self.seconds,
                patience=self.patience,
                stall=self.stall,
            ),
            start=self.start,
            labels=(self.labels, "joint"),
            notes=(*notes, *_notes(problem)),
        )

    def _objective(self, problem: Problem, priors: tuple[Density, ...]) -> Objective:
        plain = make_objective(problem, "cosine", priors=priors)
        size: int = problem.require(Fact.BATCH_SIZE)
        return surrogate(plain, problem.observed, size, self.path, self.stiffness)


def _notes(problem: Problem) -> tuple[str, ...]:
    model = problem.require(Fact.LOCAL_SCHEDULE)
    if not isinstance(model, Update):
        return ("One gradient has no path: it was matched at the weights it is of.",)
    if model.optimiser == "sgd":
        return ()
    decay = model.optimiser == "adamw" and model.weight_decay > 0
    more = ", nor its weight decay" if decay and model.rate is None else ""
    return (
        f"The client trained with {model.optimiser!r}: the update is a sum of steps "
        f"divided entry by entry by the size of the gradient, and a gradient is "
        f"compared with it as it is. That division is not modelled{more}.",
    )
