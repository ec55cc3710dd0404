"""Jumps: the part of a release's change that its derivative does not explain."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from exhume.bounds.fisher import MeanMap, images, pushforward
from exhume.formula import formula
from exhume.problem.tree import Tree, detached, flatten, unflatten

__all__ = ["Ellipse", "Unexplained", "unexplained_changes"]

_NODES = 8  # of the quadrature on one interval
_STARTS = 4  # intervals of a whole turn to begin with
_INTERVALS = 256  # from which a turn is not cut further
_WORST = 0.5  # share of the largest missed length from which intervals are halved
# Halvings of an interval, and foldness of the number of all intervals, after which
# half of the missed length or more is left at a jump; a kink leaves 1/256 and 1/4.
_HALVINGS = 8
_FOLD = 4
_UNSHRUNK = 0.5
_ROUNDING = 1e-8  # of the whole change, that float64 and softplus may miss
_BYTES = 2**27  # of derivatives that are held at once


class Ellipse(NamedTuple):
    """x(θ) = c + a cos θ + b sin θ, shape [B, *event] each.

    For independent a, b ~ N(0, C) every point of it is a draw of N(c, C), and its
    derivative another one, independent of the point (Murray et al., AISTATS 2010).
    """

    centre: Tensor
    first: Tensor
    second: Tensor


class Unexplained(NamedTuple):
    """How much of the change of a release its derivative misses along a path.

    Attributes:
        missed: length of the missed part, in standard deviations of the noise, beyond
            what rounding may make of it.
        change: length of the whole change.
        jumps: whether more is missed than tolerated, and finer intervals do not help.
    """

    missed: float
    change: float
    jumps: bool


@dataclass(frozen=True)
class _Interval:
    """Part of a path.

    Attributes:
        path: which.
        start: θ.
        end: θ.
        before: missed length of the intervals that it was cut from, the last first.
        missed: length of the missed part.
        change: length of the change.
    """

    path: int
    start: float
    end: float
    before: tuple[float, ...] = ()
    missed: float = 0.0
    change: float = 0.0

    @property
    def jumps(self) -> bool:
        """Whether halving the interval again and again did not help."""
        if len(self.before) < _HALVINGS:
            return False
        return self.missed > _UNSHRUNK * self.before[_HALVINGS - 1]

    def halves(self) -> tuple[_Interval, _Interval]:
        """Cut the interval in the middle."""
        middle, before = (self.start + self.end) / 2, (self.missed, *self.before)
        return (
            _Interval(self.path, self.start, middle, before),
            _Interval(self.path, middle, self.end, before),
        )


@formula(
    r"\sum_k \Big\| \Sigma^{-1/2} \Big( h(F_k) - h \Big( F_{k-1} + "
    r"\int_{\theta_{k-1}}^{\theta_k} \partial_\theta F(x(\theta))\, d\theta \Big) "
    r"\Big) \Big\|,\quad F_k = F(x(\theta_k))",
    reference="fundamental theorem of calculus; adaptive Gauss-Legendre quadrature",
)
def unexplained_changes(
    exact: MeanMap,
    shown: Callable[[Tree], Tree],
    paths: Sequence[Ellipse],
    tolerance: float,
) -> list[Unexplained]:
    """Measure what the derivative misses of a release along closed paths.

    Intervals that miss most are halved until all of a path together miss no more than
    the tolerance: so it is for a smooth map, and for one with kinks. Around a jump, or
    a step too steep to be met by a draw, halving changes nothing, which ends the
    search. A map with kinks in most coordinates uses up all intervals, but is told from
    one that jumps by how its missed length fell with their number.

    Args:
        exact: x ↦ F(x).
        shown: t ↦ Σ^{-1/2} h(t), where h is continuous.
        paths: x(θ), a whole turn of each.
        tolerance: up to which the missed length need not be known better.

    Returns:
        One result per path; that of the path on which a jump ended the search is final.
    """
    ends = torch.linspace(0, 2 * math.pi, _STARTS + 1, dtype=torch.float64).tolist()
    fresh = [
        _Interval(path, start, end)
        for path in range(len(paths))
        for start, end in itertools.pairwise(ends)
    ]
    turns = [_Turn(tolerance) for _ in paths]
    while fresh:
        for interval in _measured(exact, shown, paths, fresh):
            turns[interval.path].parts.append(interval)
        if any(part.jumps for turn in turns for part in turn.parts):
            break
        fresh = [half for turn in turns for half in turn.refined()]
    return [turn.found() for turn in turns]


@dataclass
class _Turn:
    """The intervals of one path.

    Attributes:
        tolerance: missed length from which they are halved.
        parts: all that are measured and not halved.
        totals: number of intervals → missed length, as their number grew.
    """

    tolerance: float
    parts: list[_Interval] = field(default_factory=list)
    totals: dict[int, float] = field(default_factory=dict)

    def refined(self) -> list[_Interval]:
        """Take out the intervals that miss most, and return their halves."""
        missed = self._missed()
        self.totals[len(self.parts)] = missed
        if missed <= self.tolerance or len(self.parts) >= _INTERVALS:
            return []
        least = _WORST * max(part.missed for part in self.parts)
        worst = [part for part in self.parts if part.missed >= least]
        self.parts = [part for part in self.parts if part.missed < least]
        return [half for part in worst for half in part.halves()]

    def found(self) -> Unexplained:
        """Say what is missed, and whether that is jumps."""
        missed, count = self._missed(), len(self.parts)
        jumps = missed > self.tolerance and any(part.jumps for part in self.parts)
        if missed > self.tolerance and count >= _INTERVALS:
            earlier = max(n for n in self.totals if n <= count / _FOLD)
            jumps = jumps or missed > _UNSHRUNK * self.totals[earlier]
        return Unexplained(missed, self._change(), jumps)

    def _change(self) -> float:
        return sum(part.change for part in self.parts)

    def _missed(self) -> float:
        missed = sum(part.missed for part in self.parts)
        return max(missed - _ROUNDING * self._change(), 0.0)


def _measured(
    exact: MeanMap,
    shown: Callable[[Tree], Tree],
    paths: Sequence[Ellipse],
    intervals: Sequence[_Interval],
) -> list[_Interval]:
    """Measure intervals by Gauss-Legendre quadrature, see above."""
    from numpy.polynomial.legendre import leggauss

    like = detached(exact(paths[0].centre))
    observed = sum(t.numel() for t in like.values())
    together = max(1, _BYTES // (8 * observed * (_NODES + 4)))
    ellipses = [torch.stack(parts) for parts in zip(*paths, strict=True)]
    nodes, weights = (torch.from_numpy(v).to(ellipses[0]) for v in leggauss(_NODES))

    def at(row: Tensor) -> tuple[Tensor, Tensor]:
        """Return x(θ) and x′(θ) for a row (path, θ)."""
        path, cos, sin = row[:1].long(), row[1].cos(), row[1].sin()
        centre, a, b = (e.index_select(0, path).squeeze(0) for e in ellipses)
        return centre + cos * a + sin * b, cos * b - sin * a

    def slope(row: Tensor) -> Tensor:
        point, tangent = at(row)
        return pushforward(exact, point)(tangent)

    def value(row: Tensor) -> Tensor:
        return flatten(exact(at(row)[0]))

    def whitened(release: Tensor) -> Tensor:
        return flatten(shown(unflatten(release, like)))

    found = []
    for start in range(0, len(intervals), together):
        chunk = intervals[start : start + together]
        path = torch.tensor([i.path for i in chunk]).to(nodes)
        ends = torch.tensor([(i.start, i.end) for i in chunk], dtype=torch.float64)
        first, last = ends.to(nodes).T
        half = (last - first) / 2
        angles = first + half * (1 + nodes.unsqueeze(1))
        rows = torch.stack([path.expand_as(angles), angles], dim=-1).flatten(0, 1)
        slopes = images(slope, rows, together * _NODES)
        moved = half.unsqueeze(1) * torch.tensordot(
            weights, slopes.reshape(_NODES, len(chunk), -1), dims=1
        )
        before, after = (
            images(value, torch.stack([path, angle], dim=1), together)
            for angle in (first, last)
        )
        release = images(whitened, torch.cat([before, after, before + moved]), together)
        origin, target, predicted = release.split(len(chunk))
        pairs = zip(
            chunk,
            (target - predicted).norm(dim=1).tolist(),
            (target - origin).norm(dim=1).tolist(),
            strict=True,
        )
        found += [replace(i, missed=missed, change=c) for i, missed, c in pairs]
    return found
