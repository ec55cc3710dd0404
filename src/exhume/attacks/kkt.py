"""Training data from trained weights: stationarity of the margin (KKT) problem."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from exhume.attacks.engine.start import centre, placeholder_targets
from exhume.attacks.unknowns import RelaxationChoice
from exhume.attacks.weights.answer import (
    choose,
    diagnosis,
    pool_candidates,
    raw_candidates,
)
from exhume.attacks.weights.descent import Cloud, Solver, StepRule, descend, start
from exhume.attacks.weights.setting import (
    MisfitName,
    Setting,
    candidate_labels,
    classes_of,
    make_setting,
)
from exhume.config import chosen
from exhume.keys import generator
from exhume.problem.attack import Attack, check_options
from exhume.problem.knowledge import Fact, Problem
from exhume.problem.observation import ObservationKind
from exhume.problem.reconstruction import (
    Outcome,
    Reconstruction,
    Stopwatch,
    TracePoint,
)

__all__ = ["Kkt", "finish"]


@dataclass(frozen=True, kw_only=True)
class Kkt(Attack):
    """Find x and λ ≥ 0 with Θ = Σ_i λ_i ∇_Θ m(x_i), more candidates than examples.

    Haim et al. (NeurIPS 2022), with the multi-class margins and weight decay of Buzaglo
    et al. (NeurIPS 2023). Candidates of all restarts are merged and ranked by what they
    explain, λ_i²‖∇m(x_i)‖², without the training set; the n best are the answer.

    Deviations, each of which can be switched off:
        * ``span``: descent changes the first layer by combinations of the examples
          only, so they are sought in the span that stands out of its initial noise.
        * ``misfit``: the first layer's misfit is measured after whitening, neuron by
          neuron and direction by direction. Trained networks deviate from stationarity
          most where the signal is largest; the plain norm fits those deviations.
        * Adam with a falling rate. The range is that of the data, not [−1, 1] around
          their mean.

    The published recipe is ``span=False, misfit="plain", solver="sgd", rate=0.1,
    iterations=4000, spread=1e-3``.

    Attributes:
        candidates: sought per example.
        iterations: steps per restart.
        restarts: random starts; their candidates are pooled.
        seconds: CPU seconds over all restarts; None for no limit.
        solver: ``adam`` or ``sgd`` (momentum 0.9, constant rate).
        rate: step size, in units of what the first layer receives, or in those of a
            relaxation that has its own.
        spread: standard deviation of the start, likewise.
        sharpness: α of the sigmoid that stands for the derivative of ReLU; 0 keeps the
            step.
        least: λ_min, below which M λ_i is pulled up, so that candidates stay active.
        box: weight of the range.
        span: confine candidates to the span of the first layer, unless a relaxation is
            chosen.
        misfit: ``whitened`` (of candidates that no relaxation takes out of the span) or
            ``plain``.
        project: solve for λ ≥ 0 in closed form every so many steps; 0 descends on λ.
        keep: return the ``best`` n candidates after merging, or ``all`` of them before.
        relaxation: what is varied, x = g(z), by name, with options, or as an object;
            None for the span.

    Raises:
        InvalidInput: an option is out of range.
    """

    candidates: int = 2
    iterations: int = 1500
    restarts: int = 2
    seconds: float | None = None
    solver: StepRule = "adam"
    rate: float = 0.01
    spread: float = 0.1
    sharpness: float = 20.0
    least: float = 0.1
    box: float = 1.0
    span: bool = True
    misfit: MisfitName = "whitened"
    project: int = 0
    keep: Literal["best", "all"] = "best"
    relaxation: RelaxationChoice | None = field(
        default=None, metadata=chosen("relaxation")
    )

    needs: ClassVar[frozenset[Fact]] = frozenset(
        {Fact.WEIGHTS, Fact.LOCAL_SCHEDULE, Fact.BATCH_SIZE}
    )
    uses: ClassVar[frozenset[Fact]] = frozenset(
        {Fact.LABELS, Fact.PRIOR, Fact.PUBLIC_DATA}
    )
    inverts: ClassVar[frozenset[ObservationKind]] = frozenset({"weights"})
    bibtex: ClassVar[str] = """
@inproceedings{haim2022reconstructing,
  title = {Reconstructing Training Data from Trained Neural Networks},
  author = {Haim, Niv and Vardi, Gal and Yehudai, Gilad and Shamir, Ohad and
            Irani, Michal},
  booktitle = {Advances in Neural Information Processing Systems (NeurIPS)},
  year = {2022}
}
@inproceedings{buzaglo2023deconstructing,
  title = {Deconstructing Data Reconstruction: Multiclass, Weight Decay and General
           Losses},
  author = {Buzaglo, Gon and Haim, Niv and Yehudai, Gilad and Vardi, Gal and
            Oz, Yakir and Nikankin, Yaniv and Irani, Michal},
  booktitle = {Advances in Neural Information Processing Systems (NeurIPS)},
  year = {2023}
}
"""

    def __post_init__(self) -> None:
        check_options(
            at_least_one={
                "candidates": self.candidates,
                "iterations": self.iterations,
                "restarts": self.restarts,
            },
            positive={
                "seconds": self.seconds,
                "rate": self.rate,
                "spread": self.spread,
            },
            not_negative={
                "sharpness": self.sharpness,
                "least": self.least,
                "box": self.box,
                "project": self.project,
            },
        )

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        """Return a run that barely begins, and one that ends near a small image."""
        return (
            cls(iterations=2, restarts=1),
            cls(iterations=300, restarts=1, rate=0.05),
        )

    def run(self, problem: Problem, key: int) -> Reconstruction:
        """Descend from every start, pool the candidates, return the best."""
        watch, trace = Stopwatch(), []
        setting = self.setting(problem)
        if not setting.fit.energy > 0:
            return _nothing(problem, watch)
        clouds = []
        for restart in range(self.restarts):
            cloud = self.begin(problem, setting, generator(key, "restart", restart))
            solver = self.steps(watch, restart)
            cloud = descend(setting.fit, cloud, solver, watch, restart, trace)
            clouds.append(cloud)
            if cloud.outcome is Outcome.TIME_LIMIT:
                break
        return finish(problem, setting, clouds, watch, trace, keep=self.keep)

    def objective(self, problem: Problem, inputs: Tensor, targets: Tensor) -> float:
        """Return ‖Θ − Σ λ_i ∇m_i‖² / ‖Θ‖² at the best λ ≥ 0 for given examples.

        At the true data it is the oracle residual: how far training was from the limit
        in which the attack is exact.
        """
        fit = self.setting(problem).fit
        own = classes_of(targets) if fit.signed else None
        return fit.explained(inputs.to(torch.float64), own)[0]

    def setting(self, problem: Problem) -> Setting:
        """Return the fit of a problem under these options."""
        return make_setting(
            problem,
            sharpness=self.sharpness,
            misfit=self.misfit,
            span=self.span,
            box=self.box,
            least=self.least,
            relaxation=self.relaxation,
        )

    def begin(
        self, problem: Problem, setting: Setting, random: torch.Generator
    ) -> Cloud:
        """Return the candidates of one start."""
        fit, count = setting.fit, self.candidates * problem.require(Fact.BATCH_SIZE)
        if fit.signed and not problem.knows(Fact.LABELS):
            # Every class is sought, also where there are more of them than candidates.
            count = max(count, setting.outputs, 2)
        labels, _ = candidate_labels(problem, setting.outputs, count, signed=fit.signed)
        return start(fit, labels, count, setting.outputs, self.spread, random)

    def steps(self, watch: Stopwatch, restart: int) -> Solver:
        """Return step rule and budget of a restart, which shares the time left."""
        deadline = math.inf
        if self.seconds is not None:
            left = self.seconds - watch.cpu_seconds
            deadline = watch.cpu_seconds + left / (self.restarts - restart)
        return Solver(
            rule=self.solver,
            rate=self.rate,
            iterations=self.iterations,
            project=self.project,
            deadline=deadline,
        )


def finish(
    problem: Problem,
    setting: Setting,
    clouds: list[Cloud],
    watch: Stopwatch,
    trace: list[TracePoint],
    *,
    keep: Literal["best", "all"],
    notes: tuple[str, ...] = (),
) -> Reconstruction:
    """Return the answer of all restarts, with what can be said without the truth.

    Args:
        problem: what the attacker sees.
        setting: fit and centre.
        clouds: one per restart.
        watch: of the run.
        trace: of the run.
        keep: the ``best`` n candidates after merging, or ``all`` before.
        notes: further sentences.
    """
    sound = [c for c in clouds if c.outcome is not Outcome.DIVERGED]
    outcome = sound[-1].outcome if sound else Outcome.DIVERGED
    pool = pool_candidates(setting, sound or clouds)
    if keep == "all":
        inputs, labels = raw_candidates(setting, sound or clouds)
    else:
        inputs, labels = choose(problem, pool)
    dtype = problem.require(Fact.WEIGHTS).dtype
    inputs = setting.fit.unknowns.harden(inputs.to(dtype))
    residual = setting.fit.explained(inputs.double(), labels)[0]
    _, origin = candidate_labels(problem, setting.outputs, 1, signed=setting.fit.signed)
    said = diagnosis(problem, setting, pool, inputs.double(), labels, residual)
    return Reconstruction(
        inputs=inputs,
        targets=setting.returned_targets(problem, inputs.double(), labels),
        objective=residual,
        outcome=outcome,
        cost=watch.cost(),
        trace=tuple(trace),
        notes=(*said, *notes, origin),
    )


def _nothing(problem: Problem, watch: Stopwatch) -> Reconstruction:
    count: int = problem.require(Fact.BATCH_SIZE)
    targets, note = placeholder_targets(problem, count)
    return Reconstruction(
        inputs=centre(problem).expand(count, *problem.spec.shape).clone(),
        targets=targets,
        objective=0.0,
        outcome=Outcome.NOT_APPLICABLE,
        cost=watch.cost(),
        notes=("All weights are zero: nothing was learned.", note),
    )
