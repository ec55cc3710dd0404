"""Escape from stalls: split candidates in two where that lowers the misfit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal, Self

from torch import Tensor

from exhume.attacks.kkt import Kkt, finish
from exhume.attacks.subspace import Subspace
from exhume.attacks.tangent_kernel import TangentKernel
from exhume.attacks.unknowns import RelaxationChoice
from exhume.attacks.weights.descent import Cloud, Solver, descend
from exhume.attacks.weights.setting import Setting
from exhume.attacks.weights.splitting import split, splits_of
from exhume.config import build, chosen
from exhume.errors import InvalidInput, Unsuited
from exhume.keys import generator
from exhume.problem.attack import Attack, check_options
from exhume.problem.knowledge import Fact, Problem
from exhume.problem.observation import ObservationKind, ObservationModel
from exhume.problem.reconstruction import (
    Outcome,
    Reconstruction,
    Stopwatch,
    TracePoint,
)

__all__ = ["SampleSplitting"]


@dataclass(frozen=True, kw_only=True)
class SampleSplitting(Attack):
    """The attack ``kkt``, or another, with splitting (Shen, Wang, Qian and Lei, 2026).

    It starts with few candidates. Where descent has stalled, the matrix
    S_i = −c_i ∇²_x⟨∂L/∂r, ∇_Θ m(x_i)⟩ says whether one candidate should be two: if its
    smallest eigenvalue is negative, copies at x_i ± εv with half the multiplier each
    lower the misfit, which no move of x_i alone does. The candidates with the most
    negative eigenvalues are split, and descent goes on.

    ``tangent-kernel`` and ``subspace`` solve for the weights, S_i takes all outputs, ε
    is searched, and what was split is reduced to the wanted count after descent.

    Attributes:
        inner: attack that is continued by splitting: ``kkt`` for trained weights,
            ``tangent-kernel`` or ``subspace`` for gradients and changes of weights.
        options: of ``tangent-kernel``, also inside of ``subspace``; all below are
            those of ``kkt``, and refused with another attack.
        candidates: per example at first.
        rounds: of splitting and descent after the first descent.
        splits: candidates that are split in a round, per example.
        distance: ε, in units of what the first layer receives, or in those of a
            relaxation that has its own.
        iterations: steps of the first descent, and of every round.
        restarts: random starts; their candidates are pooled.
        seconds: CPU seconds over all restarts; None for no limit.
        rate: step size.
        sharpness: α of the sigmoid that stands for the derivative of ReLU.
        span: confine candidates to the span of the first layer.
        misfit: ``whitened`` (of candidates that no relaxation takes out of the span) or
            ``plain``.
        keep: return the ``best`` n candidates after merging, or ``all`` of them before.
        relaxation: what is varied, x = g(z), by name, with options, or as an object;
            None for the span.

    Raises:
        InvalidInput: an option is out of range, or belongs to another inner attack.
        Unsuited: the inner attack inverts another kind of observation.
    """

    inner: Literal["kkt", "tangent-kernel", "subspace"] = "kkt"
    options: Mapping[str, Any] = field(default_factory=dict)
    candidates: int = 1
    rounds: int = 3
    splits: float = 0.35
    distance: float = 0.1
    iterations: int = 500
    restarts: int = 2
    seconds: float | None = None
    rate: float = 0.01
    sharpness: float = 20.0
    span: bool = True
    misfit: Literal["whitened", "plain"] = "whitened"
    keep: Literal["best", "all"] = "best"
    relaxation: RelaxationChoice | None = field(
        default=None, metadata=chosen("relaxation")
    )

    needs: ClassVar[frozenset[Fact]] = Kkt.needs
    uses: ClassVar[frozenset[Fact]] = Kkt.uses | TangentKernel.uses | Subspace.uses
    inverts: ClassVar[frozenset[ObservationKind]] = (
        Kkt.inverts | TangentKernel.inverts | Subspace.inverts
    )
    small_world: ClassVar[Mapping[str, Any]] = {"observation": "weights"}
    bibtex: ClassVar[str] = f"""
@misc{{shen2026data,
  title = {{Data Reconstruction: Identifiability and Optimization with Sample
           Splitting}},
  author = {{Shen, Yujie and Wang, Zihan and Qian, Jian and Lei, Qi}},
  howpublished = {{arXiv:2602.08723}},
  year = {{2026}}
}}{Kkt.bibtex}{TangentKernel.bibtex}"""

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", dict(self.options))
        check_options(
            at_least_one={
                "candidates": self.candidates,
                "iterations": self.iterations,
                "restarts": self.restarts,
            },
            positive={
                "seconds": self.seconds,
                "rate": self.rate,
                "distance": self.distance,
                "splits": self.splits,
            },
            not_negative={"rounds": self.rounds, "sharpness": self.sharpness},
        )
        self._check_options_fit()
        self._attack()

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        """Return a run that barely begins, and one that ends near a small image."""
        return (
            cls(iterations=2, rounds=1, restarts=1),
            cls(iterations=300, rounds=1, restarts=1, rate=0.05),
        )

    def _check_options_fit(self) -> None:
        if self.inner == "kkt":
            wrong = ["options"] if self.options else []
        else:
            own = [f for f in fields(self) if f.name not in ("inner", "options")]
            wrong = [f.name for f in own if getattr(self, f.name) != f.default]
        if wrong:
            right = "directly" if self.inner == "kkt" else "in options"
            msg = (
                f"inner is {self.inner!r}, and {', '.join(wrong)} would be ignored; "
                f"give what this attack takes {right}"
            )
            raise InvalidInput(msg)

    def _attack(self) -> Kkt | TangentKernel | Subspace:
        if self.inner == "kkt":
            return self.base
        options = {**self.options, "escape": "split"}
        if self.inner == "subspace":
            return Subspace(inner="tangent-kernel", options=options)
        return build("attack", {"name": "tangent-kernel", **options})

    @property
    def base(self) -> Kkt:
        """The attack ``kkt`` without splitting."""
        return Kkt(
            candidates=self.candidates,
            iterations=self.iterations,
            restarts=self.restarts,
            seconds=self.seconds,
            rate=self.rate,
            sharpness=self.sharpness,
            span=self.span,
            misfit=self.misfit,
            keep=self.keep,
            relaxation=self.relaxation,
        )

    def run(self, problem: Problem, key: int) -> Reconstruction:
        """Descend and split in turn, from every start."""
        inner = self._attack()
        model: ObservationModel = problem.require(Fact.LOCAL_SCHEDULE)
        if model.kind not in inner.inverts:
            fits = (
                "'kkt'" if model.kind in Kkt.inverts else "'tangent-kernel', 'subspace'"
            )
            msg = (
                f"inner is {self.inner!r}, which does not invert what was observed, "
                f"{model.kind!r}; choose an inner attack that does: {fits}"
            )
            raise Unsuited(msg)
        problem = problem.restricted(inner.needs | inner.uses)
        if not isinstance(inner, Kkt):
            return inner.run(problem, key)
        return self._kkt(problem, key)

    def _kkt(self, problem: Problem, key: int) -> Reconstruction:
        watch, trace, base = Stopwatch(), [], self.base
        setting = base.setting(problem)
        if not setting.fit.energy > 0:
            return base.run(problem, key)
        clouds, told = [], []
        for restart in range(self.restarts):
            random = generator(key, "restart", restart)
            cloud = base.begin(problem, setting, random)
            solver = base.steps(watch, restart)
            cloud, sentence = self._one(
                problem, setting, cloud, solver, watch, restart, trace
            )
            clouds.append(cloud)
            told.append(sentence)
            if cloud.outcome is Outcome.TIME_LIMIT:
                break
        notes = tuple(dict.fromkeys(told))
        return finish(
            problem, setting, clouds, watch, trace, keep=self.keep, notes=notes
        )

    def _one(
        self,
        problem: Problem,
        setting: Setting,
        cloud: Cloud,
        solver: Solver,
        watch: Stopwatch,
        restart: int,
        trace: list[TracePoint],
    ) -> tuple[Cloud, str]:
        fit, first = setting.fit, len(cloud.points)
        most = max(1, round(self.splits * problem.require(Fact.BATCH_SIZE)))
        cloud = descend(fit, cloud, solver, watch, restart, trace)
        before, done = cloud.misfit, 0
        for _ in range(self.rounds):
            if cloud.outcome is not Outcome.ITERATION_LIMIT:
                break
            found = [s for s in splits_of(fit, cloud) if s.curvature < 0][:most]
            watch.count(len(cloud.points) * fit.unknowns.relaxation.size)
            if not found:
                break
            done += len(found)
            cloud = descend(
                fit,
                split(cloud, found, self.distance),
                solver,
                watch,
                restart,
                trace,
            )
        if not done or not math.isfinite(cloud.misfit):
            return cloud, "No candidate could be split so that the misfit falls."
        return cloud, (
            f"Splitting took {first} candidates to {len(cloud.points)} and the misfit "
            f"from {before:.2g} to {cloud.misfit:.2g}; that it falls says nothing of "
            f"the truth where the residual of the true data is larger."
        )

    def objective(
        self, problem: Problem, inputs: Tensor, targets: Tensor
    ) -> float | None:
        """Return what the inner attack returns: the residual at the best weights."""
        return self._attack().objective(problem, inputs, targets)
