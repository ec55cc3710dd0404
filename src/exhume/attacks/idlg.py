"""Improved DLG: read the label of one example off its gradient, then L-BFGS."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Self

from exhume.attacks.engine.driver import Design, Limits, MatchingAttack
from exhume.attacks.engine.lbfgs import LBFGS
from exhume.attacks.engine.objective import make_objective
from exhume.attacks.engine.start import StartKind
from exhume.attacks.unknowns import RelaxationChoice, fit_relaxation
from exhume.config import chosen
from exhume.problem.attack import check_options
from exhume.problem.knowledge import Problem
from exhume.problem.relaxation import Units

__all__ = ["ImprovedDeepLeakage"]


@dataclass(frozen=True, kw_only=True)
class ImprovedDeepLeakage(MatchingAttack):
    """Zhao et al. (2020): read the label off, then min ‖F(x, y) − O‖² over x.

    The sign rule holds for one example; a larger batch is counted class by class
    instead.

    Deviations:
        * The line search satisfies strong Wolfe conditions; the published code takes
          every step (``line_search=False``).
        * Labels that are known are used; the paper always infers them.
        * Batches of more than one example, which the paper leaves out, use the
          ``bias-corrected`` counts; labels that cannot be inferred are optimised.
        * The best iterate is returned, not the last one.
        * A known defense is used: h(F(x)) is matched, under Gaussian noise by its
          likelihood.

    Attributes:
        iterations: L-BFGS iterations of 20 inner steps each (published: 300).
        restarts: random starts; the one with the smallest objective wins.
        seconds: CPU seconds over all restarts; None for no limit.
        start: kind of start; ``raw-normal`` is the published N(0, 1) in data units.
        relaxation: what is varied, x = g(z): ``identity`` (published), ``box``,
            ``projection`` or any other one, by name, with options, or as an object.
        step_size: of L-BFGS (published: 1).
        line_search: satisfy strong Wolfe conditions.
        patience: iterations without progress that end a restart.
        stall: progress lowers the objective by more than this fraction.
    """

    iterations: int = 300
    restarts: int = 1
    seconds: float | None = None
    start: StartKind = "raw-normal"
    relaxation: RelaxationChoice = field(
        default="identity", metadata=chosen("relaxation", formerly="parametrisation")
    )
    step_size: float = 1.0
    line_search: bool = True
    patience: int = 5
    stall: float = 1e-3

    bibtex: ClassVar[str] = """
@article{zhao2020idlg,
  title = {{iDLG}: Improved Deep Leakage from Gradients},
  author = {Zhao, Bo and Mopuri, Konda Reddy and Bilen, Hakan},
  journal = {arXiv preprint arXiv:2001.02610},
  year = {2020}
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
        )

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        """Return a run that barely begins, and one that ends near a small image."""
        return (cls(iterations=1), cls(iterations=20))

    def design(self, problem: Problem) -> Design:
        """Return the parts of the attack for a problem."""
        return Design(
            objective=make_objective(problem, "euclidean"),
            relaxation=fit_relaxation(self.relaxation, problem, Units()),
            solver=LBFGS(step_size=self.step_size, line_search=self.line_search),
            limits=Limits(
                iterations=self.iterations,
                restarts=self.restarts,
                seconds=self.seconds,
                patience=self.patience,
                stall=self.stall,
            ),
            start=self.start,
            labels=("idlg", "bias-corrected", "joint"),
        )
