"""Unrolled local training: simulate the client step by step and match its update."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Self

from torch import Tensor

from exhume.attacks.engine.adam import Adam
from exhume.attacks.engine.driver import Design, Limits, MatchingAttack
from exhume.attacks.engine.local_steps import local_steps
from exhume.attacks.engine.objective import make_objective, mean_total_variation
from exhume.attacks.engine.rounds import reconstruct_in_rounds
from exhume.attacks.engine.start import StartKind
from exhume.attacks.unknowns import InferredLabels, RelaxationChoice, fit_relaxation
from exhume.config import chosen
from exhume.problem.attack import check_options
from exhume.problem.knowledge import Fact, Problem
from exhume.problem.reconstruction import Reconstruction
from exhume.problem.relaxation import Units

__all__ = ["Unrolled"]


@dataclass(frozen=True, kw_only=True)
class Unrolled(MatchingAttack):
    """Match 1 − cos(F(x), O) + 0.1 ‖F(x) − O‖²/‖O‖² + α TV(x), F all local steps.

    The forward model is the local training itself, of any known optimiser; Adam with
    cosine decay follows its derivative through all steps, from the answer of the
    cheaper attack ``surrogate-model``. A gradient is an update of one step.

    An order of the examples that is not known is guessed, sorted labels spread evenly
    over the steps, and improved between rounds: two examples of different steps of an
    epoch change places where that lowers the objective. A step size that is not known
    is one unknown more. At given inputs both are searched anew, so that the objective
    is a function of the candidate alone, the same for answer and truth.

    The first steps of a client with Adam are all but signs of the gradient, which show
    a descent no direction. The search begins with a client whose ε is half of a typical
    entry of the gradient, and divides it by ten twice before it takes the true one.

    Attributes:
        rounds: the order is searched between them and the step size of Adam halved;
            one is enough where the order is known. Four for clients with Adam.
        iterations: Adam steps per restart, divided among its rounds.
        exchanges: simulations at most for one search of the order; 0 keeps the guess.
        restarts: random starts; the one with the smallest objective wins.
        seconds: CPU seconds over all restarts; None for no limit. A search of the
            order is never cut short.
        start: kind of start.
        labels: for labels that are not known: ``bias-corrected``, ``idlg`` (both fall
            back on ``joint``) or ``joint``.
        relaxation: what is varied, x = g(z): ``projection``, ``box``, ``identity`` or
            any other relaxation, by name, with options, or as an object.
        total_variation: α, weight of the total variation; 0 leaves it out.
        step_size: of Adam in the first round, in normalised units.
        patience: iterations without progress that end a round in its last eighth.
        stall: progress lowers the objective by more than this fraction.

    References:
        Geiping et al. (NeurIPS 2020), section 6, attack several local steps by
        differentiating through them; Dimitrov et al. (TMLR 2022) guess the order. The
        length term, the start, the search of the order and the soft ε are ours.
    """

    rounds: int = 3
    iterations: int = 300
    exchanges: int = 500
    restarts: int = 1
    seconds: float | None = None
    start: StartKind = "surrogate"
    labels: InferredLabels = "bias-corrected"
    relaxation: RelaxationChoice = field(
        default="projection", metadata=chosen("relaxation", formerly="parametrisation")
    )
    total_variation: float = 0.001
    step_size: float = 0.2
    patience: int = 100
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
        check_options(
            at_least_one={
                "rounds": self.rounds,
                "iterations": self.iterations,
                "restarts": self.restarts,
                "patience": self.patience,
            },
            positive={"seconds": self.seconds, "step_size": self.step_size},
            not_negative={
                "exchanges": self.exchanges,
                "total_variation": self.total_variation,
            },
        )

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        """Return a run that barely begins, and one that ends near a small image."""
        return (cls(iterations=2, exchanges=0), cls())

    def design(self, problem: Problem) -> Design:
        """Return the parts of the attack for a problem."""
        units = Units.standard(problem.require(Fact.WEIGHTS), problem.spec)
        priors, notes = mean_total_variation(problem, self.total_variation)
        plain = make_objective(problem, "cosine-and-length", priors=priors)
        count: int = problem.require(Fact.BATCH_SIZE)
        return Design(
            objective=local_steps(plain, count, exchanges=self.exchanges),
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
            notes=notes,
        )

    def run_from(
        self, problem: Problem, key: int, inputs: Tensor | None
    ) -> Reconstruction:
        """Reconstruct with an explicit first start, shape [B, *event]."""
        design = self.design(problem)
        return reconstruct_in_rounds(problem, design, self.rounds, key, inputs)
