"""Explain a change of the weights by tangent features of candidates, weights solved."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from exhume.attacks.engine.projection_descent import (
    POLISH_RIDGE,
    ProjectionDescent,
    explain,
)
from exhume.attacks.engine.start import centre, placeholder_targets
from exhume.attacks.engine.tangent_notes import agreement, tangent_notes
from exhume.attacks.engine.tangent_splitting import split_apart
from exhume.attacks.engine.tangent_view import TangentView, tangent_view
from exhume.attacks.unknowns import RelaxationChoice, Unknowns, fit_relaxation
from exhume.config import chosen
from exhume.errors import InvalidInput
from exhume.keys import generator
from exhume.problem.attack import Attack, check_options
from exhume.problem.knowledge import UNKNOWN, Fact, Problem
from exhume.problem.observation import ObservationKind
from exhume.problem.reconstruction import (
    Outcome,
    Reconstruction,
    Stopwatch,
    TracePoint,
)
from exhume.problem.relaxation import Relaxation, Units

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
        step_size: of Adam, in units of the range of an example, or in those of a
            relaxation that has its own.
        spread: standard deviation of the start around the centre, likewise.
        box: weight of the penalty outside of the range.
        relaxation: what is varied, x = g(z), by name, with options, or as an object.

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
    relaxation: RelaxationChoice = field(
        default="identity", metadata=chosen("relaxation")
    )

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
        unknowns = self._unknowns(problem)
        best, residual, trace, starts = None, math.inf, [], []
        for restart in range(self.restarts):
            descent = self._descent(view, unknowns, watch, restart)
            found = self._once(problem, descent, generator(key, "restart", restart))
            trace += descent.trace
            inputs = unknowns.inputs([found])
            value = explain(view.features(), inputs).residual
            watch.count()
            starts.append((value, inputs))
            if best is None or value < residual:
                best, residual = found, value
            if residual <= _EXPLAINED or descent.late:
                break
        assert best is not None  # restarts ≥ 1
        late = self.seconds is not None and watch.cpu_seconds >= self.seconds
        middle = _middle(problem, unknowns.relaxation).to(best)
        spread = agreement(starts, middle)
        return self._answer(
            problem, view, unknowns, best, trace, watch, late=late, spread=spread
        )

    def objective(self, problem: Problem, inputs: Tensor, targets: Tensor) -> float:
        """Return the plain residual ‖O − Σ a φ‖² / ‖O‖² at the best weights."""
        del targets
        view = tangent_view(problem, self.points)
        if view is None:
            return 0.0
        return explain(view.features(), inputs.to(torch.float64)).residual

    def _unknowns(self, problem: Problem) -> Unknowns:
        """Return what is looked for, in units of the range."""
        peak = problem.spec.peak or 1.0
        scale = centre(problem).double().new_tensor(peak)
        units = Units() if peak == 1 else Units(scale=scale)
        relaxation = fit_relaxation(self.relaxation, problem, units)
        return Unknowns(relaxation, problem.spec)

    def _descent(
        self, view: TangentView, unknowns: Unknowns, watch: Stopwatch, restart: int
    ) -> ProjectionDescent:
        limit = math.inf if self.seconds is None else self.seconds
        return ProjectionDescent(
            view=view,
            unknowns=unknowns,
            step_size=self.step_size,
            box=self.box / (view.spec.peak or 1.0) ** 2,
            deadline=limit,
            watch=watch,
            restart=restart,
        )

    def _once(
        self, problem: Problem, descent: ProjectionDescent, random: torch.Generator
    ) -> Tensor:
        """Search from one start; where it stalls, add candidates and search on.

        Gauss–Newton ends in an exact explanation or shows that an example is missing;
        what added candidates find replaces what explains least. Returns z, [B, k].
        """
        count: int = problem.require(Fact.BATCH_SIZE)
        features, unknowns = descent.view.features(), descent.unknowns
        middle = _middle(problem, unknowns.relaxation)
        z = self._draw(unknowns, middle, self.candidates * count, random)
        z = descent.search(z, self.iterations)
        best, residual, split = z, math.inf, self.escape == "split"
        for attempt in range(1 + self.rounds):
            if attempt:
                added = _halved(descent, best, middle, count) if split else None
                if added is None and residual <= _MISMATCH:
                    fresh = self._draw(unknowns, middle, max(count // 2, 1), random)
                    added = torch.cat([best, fresh])
                if added is None:
                    break
                z = added
            if len(z) > count:
                z = descent.reduced(z, len(z), middle)
                z = descent.polish(z, self.polish, POLISH_RIDGE)
                z = descent.reduced(z, count, middle)
                z = descent.polish(z, self.polish, POLISH_RIDGE)
            z = descent.refine(z, self.newton, self.inner_iterations)
            value = explain(features, unknowns.inputs([z])).residual
            # A split that did not help would be made again.
            split = split and value < residual
            if value < residual:
                best, residual = z, value
            if residual <= _EXPLAINED or descent.late:
                break
        return best

    def _draw(
        self, unknowns: Unknowns, middle: Tensor, count: int, random: torch.Generator
    ) -> Tensor:
        """Draw z around that of the centre, as examples where all can be reached."""
        relaxation, spec = unknowns.relaxation, unknowns.spec
        if relaxation.onto:
            draw = torch.randn(
                (count, *spec.shape), generator=random, dtype=torch.float64
            )
            x = middle + self.spread * (spec.peak or 1.0) * draw.to(middle)
            return relaxation.encode(x)
        draw = relaxation.draw(random, count).to(middle)
        return relaxation.project(relaxation.encode(middle[None]) + self.spread * draw)

    def _answer(
        self,
        problem: Problem,
        view: TangentView,
        unknowns: Unknowns,
        found: Tensor,
        trace: list[TracePoint],
        watch: Stopwatch,
        *,
        late: bool,
        spread: float | None,
    ) -> Reconstruction:
        dtype = problem.require(Fact.WEIGHTS).dtype
        inputs = unknowns.harden(unknowns.inputs([found]).to(dtype))
        fit = explain(view.features(), inputs.to(torch.float64))
        density = sum(t.numel() for t in view.values.values()) / found.numel()
        outcome = Outcome.TIME_LIMIT if late else Outcome.ITERATION_LIMIT
        if fit.residual <= _EXPLAINED:
            outcome = Outcome.TOLERANCE
        return Reconstruction(
            inputs=inputs,
            targets=_typed(view.labels(problem, inputs.double(), fit.weights), dtype),
            objective=fit.residual,
            outcome=outcome,
            cost=watch.cost(),
            trace=tuple(trace),
            adaptive=problem.law_is_used,
            notes=(
                *view.notes,
                _origin(problem),
                *tangent_notes(fit.residual, fit.scores, density, spread),
            ),
        )


def _halved(
    descent: ProjectionDescent, z: Tensor, middle: Tensor, count: int
) -> Tensor | None:
    """Return candidates of which up to half are split; None where that is no use."""
    view, unknowns = descent.view, descent.unknowns
    descent.watch.count(z[0].numel())
    features = view.features(_BLUNT if view.has_kinks else None)
    centre = unknowns.relaxation.encode(middle[None])[0]
    return split_apart(features, unknowns, z, centre, max(count // 2, 1))


def _middle(problem: Problem, relaxation: Relaxation) -> Tensor:
    """Return what is common to examples: the mean public one, else a central one.

    That is the mean of a prior or the centre of the range, and x = g(0) where not every
    example can be reached.
    """
    public = problem.public
    if public is not UNKNOWN:
        return problem.spec.clamp(public.inputs.mean(dim=0)).double()
    like = centre(problem).double()
    if relaxation.onto:
        return like
    return relaxation.decode(like.new_zeros(1, relaxation.size))[0]


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
