"""Explain a change of the weights by tangent features of candidates, weights solved."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from exhume.attacks.engine.centre import centre, placeholder_targets
from exhume.attacks.engine.driver import check_options
from exhume.attacks.engine.projection_descent import (
    POLISH_RIDGE,
    ProjectionDescent,
    explain,
)
from exhume.attacks.engine.tangent_notes import agreement, tangent_notes
from exhume.attacks.engine.tangent_splitting import split_apart
from exhume.attacks.engine.tangent_view import TangentView, tangent_view
from exhume.errors import InvalidInput
from exhume.keys import generator
from exhume.problem.attack import Attack
from exhume.problem.knowledge import UNKNOWN, Fact, Problem
from exhume.problem.observation import ObservationKind
from exhume.problem.reconstruction import (
    Outcome,
    Reconstruction,
    Stopwatch,
    TracePoint,
)

__all__ = ["TangentKernel"]

# Residual below which no further start is needed.
_EXPLAINED = 1e-9
# Residual above which it is the model that does not fit, so that more will not help.
_MISMATCH = 1e-3
# Sharpness of ReLUs where candidates are split: sharp kinks bend the features over
# distances too short to gain anything.
_BLUNT = 20.0
_NOTHING = "The observation is zero: nothing was learned, so nothing can be read."


@dataclass(frozen=True, kw_only=True)
class TangentKernel(Attack):
    """Find x with O = Σ_i a_i ∇_Θ f(x_i; Θ*) by variable projection.

    Loo et al. (ICLR 2024): in a wide network the change of the weights lies in the span
    of the tangent features of the training data. The weights a have a closed form, so
    only x is searched: min 1 − cᵀ(K + εI)⁻¹c / ‖O‖² with K = ⟨φ_i, φ_j⟩, c = ⟨φ_i, O⟩,
    which for networks of linear layers never forms the Jacobian. Labels, learning rate
    and schedule are not needed. A gradient is such a combination exactly, whatever the
    width; so is one step of SGD.

    More candidates than examples are sought first, since some of them share an example
    or die; duplicates are merged, and those that explain most are polished.

    Deviations:
        * The authors optimise x and a jointly by Adam over 80,000 steps; here a is
          solved, the logarithm of the loss is descended, and L-BFGS ends the run.
        * A ridge keeps the weights small while there are more candidates than examples.

    Attributes:
        candidates: sought at first, per example.
        iterations: steps of Adam.
        polish: steps of L-BFGS before the candidates are reduced, and as many after.
        newton: Gauss–Newton steps at the end at most.
        inner_iterations: conjugate-gradient products per such step.
        rounds: times at most that candidates are added where the search has stalled.
        escape: ``fresh`` candidates join a solution that almost fits; ``split`` splits
            those in two where that lowers the misfit, see ``sample-splitting``, and
            falls back to fresh ones.
        restarts: random starts at most; the smallest residual wins.
        seconds: CPU seconds over all restarts; None for no limit.
        points: where features are taken between Θ_0 and Θ_T, as shares of the way;
            empty takes (0,) where that is exact, and both ends, (0, 1), otherwise.
        step_size: of Adam, in units of the range of an example.
        spread: standard deviation of the start around the centre, likewise.
        box: weight of the penalty outside of the range.

    Raises:
        InvalidInput: an option is out of range.
    """

    candidates: int = 2
    iterations: int = 3000
    polish: int = 300
    newton: int = 100
    inner_iterations: int = 100
    rounds: int = 2
    escape: Literal["fresh", "split"] = "fresh"
    restarts: int = 1
    seconds: float | None = None
    points: tuple[float, ...] = ()
    step_size: float = 0.02
    spread: float = 0.2
    box: float = 0.01

    needs: ClassVar[frozenset[Fact]] = frozenset(
        {Fact.WEIGHTS, Fact.LOCAL_SCHEDULE, Fact.BATCH_SIZE}
    )
    uses: ClassVar[frozenset[Fact]] = frozenset(
        {
            Fact.LABELS,
            Fact.LEARNING_RATE,
            Fact.DEFENSE,
            Fact.PRIOR,
            Fact.PUBLIC_DATA,
        }
    )
    inverts: ClassVar[frozenset[ObservationKind]] = frozenset(
        {"gradient", "update", "fine-tuning"}
    )
    bibtex: ClassVar[str] = """
@inproceedings{loo2024understanding,
  title = {Understanding Reconstruction Attacks with the Neural Tangent Kernel and
           Dataset Distillation},
  author = {Loo, Noel and Hasani, Ramin and Lechner, Mathias and Amini, Alexander and
            Rus, Daniela},
  booktitle = {International Conference on Learning Representations (ICLR)},
  year = {2024}
}
@article{golub1973differentiation,
  title = {The Differentiation of Pseudo-Inverses and Nonlinear Least Squares Problems
           Whose Variables Separate},
  author = {Golub, Gene H. and Pereyra, Victor},
  journal = {SIAM Journal on Numerical Analysis},
  volume = {10}, number = {2}, pages = {413--432}, year = {1973}
}
"""

    def __post_init__(self) -> None:
        check_options(
            at_least_one={
                "candidates": self.candidates,
                "iterations": self.iterations,
                "inner_iterations": self.inner_iterations,
                "restarts": self.restarts,
            },
            positive={
                "seconds": self.seconds,
                "step_size": self.step_size,
                "spread": self.spread,
            },
            not_negative={
                "polish": self.polish,
                "newton": self.newton,
                "rounds": self.rounds,
                "box": self.box,
            },
        )
        object.__setattr__(self, "points", tuple(self.points))
        if not all(math.isfinite(p) for p in self.points):
            msg = f"points is {list(self.points)}; expected shares such as 0, 0.5 and 1"
            raise InvalidInput(msg)

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        """Return a run that barely begins, and one that ends near a small image."""
        return (
            cls(iterations=2, polish=2, newton=1, rounds=0),
            cls(iterations=60, polish=25, newton=10, rounds=0),
        )

    def run(self, problem: Problem, key: int) -> Reconstruction:
        """Search, merge and polish from every start; return the best explanation."""
        watch = Stopwatch()
        view = tangent_view(problem, self.points)
        if view is None:
            return _unmoved(problem, watch)
        best, residual, trace, starts = None, math.inf, [], []
        for restart in range(self.restarts):
            descent = self._descent(view, watch, restart)
            found = self._once(problem, descent, generator(key, "restart", restart))
            trace += descent.trace
            value = explain(view.features(), found).residual
            watch.count()
            starts.append((value, found))
            if best is None or value < residual:
                best, residual = found, value
            if residual <= _EXPLAINED or descent.late:
                break
        assert best is not None  # restarts ≥ 1
        late = self.seconds is not None and watch.cpu_seconds >= self.seconds
        spread = agreement(starts, _middle(problem).to(best))
        return self._answer(problem, view, best, trace, watch, late=late, spread=spread)

    def objective(self, problem: Problem, inputs: Tensor, targets: Tensor) -> float:
        """Return the plain residual ‖O − Σ a φ‖² / ‖O‖² at the best weights."""
        del targets
        view = tangent_view(problem, self.points)
        if view is None:
            return 0.0
        return explain(view.features(), inputs.to(torch.float64)).residual

    def _descent(
        self, view: TangentView, watch: Stopwatch, restart: int
    ) -> ProjectionDescent:
        limit = math.inf if self.seconds is None else self.seconds
        peak = view.spec.peak or 1.0
        return ProjectionDescent(
            view=view,
            step_size=self.step_size * peak,
            box=self.box / peak**2,
            deadline=limit,
            watch=watch,
            restart=restart,
        )

    def _once(
        self, problem: Problem, descent: ProjectionDescent, random: torch.Generator
    ) -> Tensor:
        """Search from one start; where it stalls, add candidates and search on.

        Gauss–Newton ends in an exact explanation or shows that an example is missing;
        what added candidates find replaces what explains least.
        """
        count: int = problem.require(Fact.BATCH_SIZE)
        middle = _middle(problem).to(torch.float64)
        features = descent.view.features()
        x = self._draw(problem, middle, self.candidates * count, random)
        x = descent.search(x, self.iterations)
        best, residual, split = x, math.inf, self.escape == "split"
        for attempt in range(1 + self.rounds):
            if attempt:
                added = _halved(descent, best, middle, count) if split else None
                if added is None and residual <= _MISMATCH:
                    fresh = self._draw(problem, middle, max(count // 2, 1), random)
                    added = torch.cat([best, fresh])
                if added is None:
                    break
                x = added
            if len(x) > count:
                x = descent.reduced(x, len(x), middle)
                x = descent.polish(x, self.polish, POLISH_RIDGE)
                x = descent.reduced(x, count, middle)
                x = descent.polish(x, self.polish, POLISH_RIDGE)
            x = descent.refine(x, self.newton, self.inner_iterations)
            value = explain(features, x).residual
            # A split that did not help would be made again.
            split = split and value < residual
            if value < residual:
                best, residual = x, value
            if residual <= _EXPLAINED or descent.late:
                break
        return best

    def _draw(
        self, problem: Problem, middle: Tensor, count: int, random: torch.Generator
    ) -> Tensor:
        shape = (count, *problem.spec.shape)
        draw = torch.randn(shape, generator=random, dtype=torch.float64)
        return middle + self.spread * (problem.spec.peak or 1.0) * draw.to(middle)

    def _answer(
        self,
        problem: Problem,
        view: TangentView,
        found: Tensor,
        trace: list[TracePoint],
        watch: Stopwatch,
        *,
        late: bool,
        spread: float | None,
    ) -> Reconstruction:
        dtype = problem.require(Fact.WEIGHTS).dtype
        inputs = problem.spec.clamp(found.to(dtype))
        told = explain(view.features(), inputs.to(torch.float64))
        density = sum(t.numel() for t in view.values.values()) / inputs.numel()
        outcome = Outcome.TIME_LIMIT if late else Outcome.ITERATION_LIMIT
        if told.residual <= _EXPLAINED:
            outcome = Outcome.TOLERANCE
        return Reconstruction(
            inputs=inputs,
            targets=_typed(view.labels(problem, inputs.double(), told.weights), dtype),
            objective=told.residual,
            outcome=outcome,
            cost=watch.cost(),
            trace=tuple(trace),
            adaptive=problem.law_is_used,
            notes=(
                *view.notes,
                _origin(problem),
                *tangent_notes(told.residual, told.scores, density, spread),
            ),
        )


def _halved(
    descent: ProjectionDescent, inputs: Tensor, middle: Tensor, count: int
) -> Tensor | None:
    """Return candidates of which up to half are split; None where that is no use."""
    view = descent.view
    descent.watch.count(inputs[0].numel())
    features = view.features(_BLUNT if view.has_kinks else None)
    return split_apart(features, inputs, middle, max(count // 2, 1))


def _middle(problem: Problem) -> Tensor:
    """Return the mean public example, else that of the prior, else the centre."""
    public = problem.public
    if public is not UNKNOWN:
        return problem.spec.clamp(public.inputs.mean(dim=0))
    return centre(problem)


def _typed(targets: Tensor, dtype: torch.dtype) -> Tensor:
    return targets.to(dtype) if targets.is_floating_point() else targets


def _origin(problem: Problem) -> str:
    if problem.targets is not UNKNOWN:
        return "The labels are given; the network's outputs order them."
    return "The labels were read off the weights of the features or the outputs."


def _unmoved(problem: Problem, watch: Stopwatch) -> Reconstruction:
    count: int = problem.require(Fact.BATCH_SIZE)
    targets, note = placeholder_targets(problem, count)
    return Reconstruction(
        inputs=centre(problem).expand(count, *problem.spec.shape).clone(),
        targets=targets,
        objective=0.0,
        outcome=Outcome.NOT_APPLICABLE,
        cost=watch.cost(),
        notes=(_NOTHING, note),
    )
