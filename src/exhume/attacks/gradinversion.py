"""GradInversion: gradients, BatchNorm statistics and several seeds that must agree."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Self

from exhume.attacks.engine.adam import Adam
from exhume.attacks.engine.driver import (
    Design,
    Group,
    Limits,
    MatchingAttack,
)
from exhume.attacks.engine.objective import (
    EuclideanNorm,
    Objective,
    make_objective,
    mean_total_variation,
)
from exhume.attacks.engine.start import StartKind
from exhume.attacks.unknowns import InferredLabels, RelaxationChoice, fit_relaxation
from exhume.config import chosen
from exhume.priors.batch_norm_statistics import BatchNormStatisticsDensity
from exhume.problem.attack import check_options
from exhume.problem.knowledge import UNKNOWN, Fact, Problem
from exhume.problem.prior import Density
from exhume.problem.relaxation import Units

__all__ = ["GradInversion"]


@dataclass(frozen=True, kw_only=True)
class GradInversion(MatchingAttack):
    """Yin et al. (CVPR 2021): layer-wise matching, image priors, group consistency.

    Minimises α_G Σ_l ‖F(x, y)_l − O_l‖₂ + α_TV TV(x) + α_2 ‖x‖₂ + α_BN R_BN(x) by Adam
    with a warm-up, cosine decay and noise. Several seeds run side by side and every one
    is pulled to their mean by α_group R_group(x, E_g x_g). The objective that is
    reported and that picks the seed is the sum without the pull, a function of one
    candidate.

    Deviations:
        * Seeds are registered by whole-pixel translations (``align``) or, by default,
          not at all; the paper uses a dense registration (RANSAC-flow). Examples with
          equal labels are matched between seeds by distance before the mean is taken.
        * R_group is the mean square over entries in normalised units, from the first
          iteration; as a plain norm it outweighs the gradient distance for small nets.
        * Four seeds; the paper uses a larger group.
        * Labels that are not known are counted by ``bias-corrected``, which allows
          repeated ones; the paper's rule assumes that they are distinct.
        * TV is the mean over entries in normalised units; R_BN has squared norms and
          the statistics of the client's batch where the attacker has them, else the
          running ones. A model without BatchNorm has no R_BN, vectors have no TV.
        * Inputs are clamped to their range after each step; the best iterate of the
          best seed is returned; a standstill in the last eighth of the decay ends a
          seed.
        * A known defense is used: h(F(x)) is matched, under Gaussian noise by its
          likelihood.

    Attributes:
        iterations: Adam steps (published: 20,000).
        restarts: seeds of the group.
        seconds: CPU seconds over all seeds; None for no limit.
        start: kind of start; ``normal`` is the published one.
        labels: for labels that are not known: ``bias-corrected``, ``idlg`` (both fall
            back on ``joint``) or ``joint``.
        relaxation: what is varied, x = g(z): ``projection``, ``box``, ``identity`` or
            any other relaxation, by name, with options, or as an object.
        gradient: α_G, weight of the gradient distance.
        total_variation: α_TV.
        euclidean_norm: α_2.
        batch_norm: α_BN.
        group: α_group; 0 makes the seeds independent.
        align: register the seeds by translations, of images.
        step_size: of Adam, in normalised units.
        noise: standard deviation of the noise, in steps.
        warmup: iterations of the rise of the step size.
        patience: iterations without progress that end a seed in the last eighth.
        stall: progress lowers the objective by more than this fraction.
    """

    iterations: int = 20_000
    restarts: int = 4
    seconds: float | None = None
    start: StartKind = "normal"
    labels: InferredLabels = "bias-corrected"
    relaxation: RelaxationChoice = field(
        default="projection", metadata=chosen("relaxation", formerly="parametrisation")
    )
    gradient: float = 1e-3
    total_variation: float = 1e-4
    euclidean_norm: float = 1e-6
    batch_norm: float = 0.1
    group: float = 0.01
    align: bool = False
    step_size: float = 0.1
    noise: float = 0.2
    warmup: int = 50
    patience: int = 500
    stall: float = 1e-4

    uses: ClassVar[frozenset[Fact]] = MatchingAttack.uses | {Fact.BATCH_NORM_STATISTICS}
    bibtex: ClassVar[str] = """
@inproceedings{yin2021see,
  title = {See Through Gradients: Image Batch Recovery via {GradInversion}},
  author = {Yin, Hongxu and Mallya, Arun and Vahdat, Arash and Alvarez, Jose M. and
            Kautz, Jan and Molchanov, Pavlo},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)},
  year = {2021}
}
"""

    def __post_init__(self) -> None:
        check_options(
            at_least_one={
                "iterations": self.iterations,
                "restarts": self.restarts,
                "patience": self.patience,
            },
            positive={
                "seconds": self.seconds,
                "step_size": self.step_size,
                "gradient": self.gradient,
            },
            not_negative={
                "total_variation": self.total_variation,
                "euclidean_norm": self.euclidean_norm,
                "batch_norm": self.batch_norm,
                "group": self.group,
                "noise": self.noise,
                "warmup": self.warmup,
            },
        )

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        """Return a run that barely begins, and one that ends near a small image."""
        return (
            cls(iterations=2, restarts=2),
            cls(iterations=300, restarts=1, gradient=1.0),
        )

    def design(self, problem: Problem) -> Design:
        """Return the parts of the attack for a problem."""
        units = Units.standard(problem.require(Fact.WEIGHTS), problem.spec)
        aligned = self.align and problem.spec.grid is not None
        return Design(
            objective=self._objective(problem),
            relaxation=fit_relaxation(self.relaxation, problem, units),
            solver=Adam(
                step_size=self.step_size,
                schedule="cosine",
                warmup=self.warmup,
                noise=self.noise,
            ),
            limits=Limits(
                iterations=self.iterations,
                restarts=self.restarts,
                seconds=self.seconds,
                patience=self.patience,
                stall=self.stall,
            ),
            start=self.start,
            labels=(self.labels, "joint"),
            group=Group(self.group, units, aligned) if self.group > 0 else None,
            notes=self._notes(problem),
        )

    def _objective(self, problem: Problem) -> Objective:
        priors, _ = mean_total_variation(problem, self.total_variation)
        return make_objective(
            problem,
            "layerwise-euclidean",
            weight=self.gradient,
            priors=(*priors, *self._norm(problem), *self._statistics(problem)),
        )

    def _norm(self, problem: Problem) -> tuple[Density, ...]:
        if self.euclidean_norm == 0:
            return ()
        units = Units.standard(problem.require(Fact.WEIGHTS), problem.spec)
        return (EuclideanNorm(self.euclidean_norm, units),)

    def _statistics(self, problem: Problem) -> tuple[Density, ...]:
        """Return the BatchNorm prior; exact statistics come before running ones."""
        task = problem.require(Fact.WEIGHTS)
        known = problem.batch_statistics
        targets = task.running_statistics if known is UNKNOWN else known
        if self.batch_norm == 0 or not targets:
            return ()
        return (BatchNormStatisticsDensity(task, targets, self.batch_norm),)

    def _notes(self, problem: Problem) -> tuple[str, ...]:
        notes = mean_total_variation(problem, self.total_variation)[1]
        if self.batch_norm > 0 and not self._statistics(problem):
            return (*notes, "The model has no BatchNorm statistics to match.")
        return notes
