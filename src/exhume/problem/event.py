"""What an event is: one example of a kind, its shape, range, distance and picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

from exhume.errors import InvalidInput, shown
from exhume.formula import formula
from exhume.member import Member
from exhume.registry import OwnModules, find, names, registered_name

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from exhume.report.pictures import Picture

__all__ = ["EventSpec", "squared_distances"]

# Rounding in a loader may leave a value this far outside the declared range.
_RANGE_SLACK = 1e-6


class _ByKind(type):
    """Lets ``EventSpec(kind, shape, low, high)`` make the event of a kind."""

    if not TYPE_CHECKING:  # the constructors of the leaves keep their types

        def __call__(cls, *given: Any, **options: Any) -> Any:
            if cls is not EventSpec:
                return super().__call__(*given, **options)
            return EventSpec.of(*given, **options)


@dataclass(frozen=True)
class EventSpec(Member, metaclass=_ByKind):
    """Kind, shape and range of one example: the signal space of the inverse problem.

    An abstract role; leaves are frozen dataclasses, one file each in ``events/``. The
    event alone knows what the axes of an example mean: everything else asks it.

    Attributes:
        shape: shape of one example, without the batch axis.
        low: smallest value an example can take, or None if unbounded.
        high: largest value, or None if unbounded.
        axes: number of axes of one example.
        plain: arrays with as many axes are taken for this kind where nothing else is
            said of them.
        error: registered metric that ranks attacks; it is smaller for better guesses.
        noun: what a page calls one example.
        usual: the range that such data have unless another is given, or None.

    Raises:
        InvalidInput: the shape does not fit the kind, or the range is empty.
    """

    shape: tuple[int, ...]
    low: float | None = None
    high: float | None = None

    axes: ClassVar[int]
    plain: ClassVar[bool] = False
    error: ClassVar[str] = "mse"
    noun: ClassVar[str] = "example"
    usual: ClassVar[tuple[float, float] | None] = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(map(int, self.shape)))
        if len(self.shape) != self.axes or min(self.shape, default=0) < 1:
            msg = (
                f"an event of kind {self.kind!r} needs {self.axes} positive "
                f"{'size' if self.axes == 1 else 'sizes'}, "
                f"got shape {list(self.shape)}"
            )
            raise InvalidInput(msg)
        if (self.low is None) != (self.high is None):
            msg = "give both ends of the range, low and high, or neither"
            raise InvalidInput(msg)
        if self.low is None or self.high is None:
            return
        if not (math.isfinite(self.low) and math.isfinite(self.high)):
            msg = (
                f"the range is [{self.low}, {self.high}]; give two finite numbers, or "
                f"none for unbounded data"
            )
            raise InvalidInput(msg)
        if self.low >= self.high:
            msg = (
                f"the range [{self.low}, {self.high}] is empty; low must be below high"
            )
            raise InvalidInput(msg)

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        """Return a small event; one that takes further options overrides it."""
        low, high = cls.usual or (None, None)
        return (cls((6,) * cls.axes, low, high),)

    @staticmethod
    def of(
        kind: str,
        shape: tuple[int, ...],
        low: float | None = None,
        high: float | None = None,
    ) -> EventSpec:
        """Describe an example of a registered kind, or of a module of the user's own.

        Raises:
            UnknownName: no kind of event has this name.
        """
        return find("event", kind)(shape, low, high)

    @staticmethod
    def image(
        channels: int, height: int, width: int, low: float = 0.0, high: float = 1.0
    ) -> EventSpec:
        """Describe an image of shape [C, H, W] with values in [low, high]."""
        return find("event", "image")((channels, height, width), low, high)

    @staticmethod
    def vector(
        dimension: int, low: float | None = None, high: float | None = None
    ) -> EventSpec:
        """Describe a plain vector of d numbers, unbounded unless a range is given."""
        return find("event", "vector")((dimension,), low, high)

    @property
    def kind(self) -> str:
        """Registered name of the kind; of a user's own module, its dotted path."""
        return registered_name(type(self))

    @property
    def dimension(self) -> int:
        """The number d of reals in one example."""
        return math.prod(self.shape)

    @property
    def peak(self) -> float | None:
        """Peak-to-peak range high − low, or None if unbounded."""
        if self.low is None or self.high is None:
            return None
        return self.high - self.low

    @property
    def grid(self) -> tuple[int, int, int] | None:
        """Channels, height and width where an example is a grid of pixels, else None.

        What needs neighbours (SSIM, total variation, convolutions) asks for it.
        """
        return None

    def clamp(self, inputs: Tensor) -> Tensor:
        """Project inputs on the range; the identity if the range is unbounded."""
        return inputs if self.low is None else inputs.clamp(self.low, self.high)

    def harden(self, inputs: Tensor) -> Tensor:
        """Return the examples that an estimate stands for: its projection on the range.

        An event whose examples are not all numbers of the range takes the nearest ones.

        Args:
            inputs: x̂, shape [B, *shape], whatever an optimiser found.
        """
        return self.clamp(inputs)

    def mask(self, inputs: Tensor) -> Tensor | None:
        """Say which numbers of each example count; None if all of them do.

        Examples of unequal size are padded to the largest. The event that pads them
        finds the padding in the examples themselves (a channel of its own, or a value
        that no example ends in), and its :meth:`check` asks that the padding holds one
        constant, so that equal examples have equal numbers. Matching, metrics and the
        search for memorised examples leave padding out; what an estimate holds there
        does not matter.

        Args:
            inputs: true examples x, shape [B, *shape].

        Returns:
            shape [B, *shape], bool, False at the padding.
        """
        del inputs

    def unpadded(
        self, guess: Tensor, truth: Tensor, counts: Tensor
    ) -> tuple[Tensor, Tensor, EventSpec]:
        """Cut one padded example and its estimate to what counts, for a metric.

        The default forgets the shape: what counts becomes a vector. A kind whose
        padding is whole rows returns the rows that count, as an event of its own.

        Args:
            guess: x̂, shape [*shape].
            truth: x, shape [*shape].
            counts: its row of :meth:`mask`, shape [*shape].

        Returns:
            guess and truth of one shape, and the event that they are examples of.
        """
        spec = EventSpec.vector(int(counts.sum()), self.low, self.high)
        return guess[counts], truth[counts], spec

    def check(self, inputs: Tensor) -> None:
        """Raise unless these are examples of this event.

        Args:
            inputs: x, shape [B, *shape] with B ≥ 1, floating point, finite, and within
                the range where it is not padding.

        Raises:
            InvalidInput: type, shape or values contradict the event, or an example is
                padding alone.
        """
        if not inputs.is_floating_point():
            msg = f"inputs have type {inputs.dtype}; convert them to float"
            raise InvalidInput(msg)
        if tuple(inputs.shape[1:]) != self.shape or len(inputs) == 0:
            msg = (
                f"inputs have shape {list(inputs.shape)}; expected "
                f"[B, {', '.join(map(str, self.shape))}] with B ≥ 1"
            )
            raise InvalidInput(msg)
        if not bool(inputs.isfinite().all()):
            msg = "inputs contain NaN or infinity; clean the data first"
            raise InvalidInput(msg)
        mask = self.mask(inputs)
        if mask is not None and not bool(mask.flatten(1).any(dim=1).all()):
            example = int(mask.flatten(1).any(dim=1).logical_not().nonzero()[0])
            msg = f"example {example} is padding alone; leave it out"
            raise InvalidInput(msg)
        low, high = self.low, self.high
        values = inputs if mask is None else inputs[mask]
        if low is None or high is None:
            return
        slack = _RANGE_SLACK * (high - low)
        least, most = float(values.min()), float(values.max())
        if least < low - slack or most > high + slack:
            msg = (
                f"inputs lie in [{least:.4g}, {most:.4g}], outside the declared range "
                f"[{low:g}, {high:g}]; rescale the data or change the EventSpec"
            )
            raise InvalidInput(msg)

    def distance(self, guess: Tensor, truth: Tensor) -> Tensor:
        """Return what it costs to take an estimate for a true example, pair by pair.

        Args:
            guess: x̂, shape [B̂, *shape].
            truth: x, shape [B, *shape]; its padding is left out.

        Returns:
            shape [B̂, B], float64, ≥ 0, least for the estimate that fits best.
        """
        return squared_distances(guess, truth, self.mask(truth))

    def draw(self, example: np.ndarray, truth: np.ndarray) -> Picture:
        """Draw an example, or an estimate of it, for a page.

        Args:
            example: what is drawn, of this shape.
            truth: the private example, whose scale is used; may be the same array.
        """
        from exhume.report.pictures import line

        return line(example, truth)

    def record(self) -> dict[str, Any]:
        """Return kind, shape, range and further options as plain data.

        :meth:`from_record` undoes it; files, stores and the command line hold this.
        """
        options = asdict(self)
        ends = options.pop("low"), options.pop("high")
        return {
            "kind": self.kind,
            "shape": list(options.pop("shape")),
            "range": None if None in ends else list(ends),
            **options,
        }

    @staticmethod
    def from_record(
        record: Mapping[str, Any], *, own: OwnModules = "refused"
    ) -> EventSpec:
        """Make the event of a record, which may come from a file.

        Args:
            record: what :meth:`record` gave.
            own: what is done for a kind that is a module of the user's own.

        Raises:
            UnknownName: no kind of event has this name.
            InvalidInput: an option is unknown, missing or of another type, or ``own``
                forbids the module.
        """
        from exhume.config import build

        options = dict(record)
        kind, ends = options.pop("kind", None), options.pop("range", None)
        if ends is not None and not (isinstance(ends, Sequence) and len(ends) == 2):
            msg = f"the range of an example is {shown(ends)}; give two numbers, or null"
            raise InvalidInput(msg)
        low, high = ends or (None, None)
        given = {"name": kind, "low": low, "high": high, **options}
        return build("event", given, own=own)

    @staticmethod
    def of_shape(
        shape: tuple[int, ...], low: float | None = None, high: float | None = None
    ) -> EventSpec:
        """Describe an example of which nothing but the shape is known.

        Kinds of exhume that are ``plain`` are assumed: images have three axes, vectors
        have one. One that a package adds is named by who means it: else its presence
        would change what the arrays of others are.

        Raises:
            InvalidInput: no plain kind has as many axes.
        """
        for name in names("event"):
            kind = find("event", name)
            ours = kind.__module__.startswith("exhume.")
            if ours and kind.plain and kind.axes == len(shape):
                return kind(shape, low, high)
        msg = (
            f"the shape {list(shape)} does not tell what an example is; name its kind: "
            f"{', '.join(names('event'))}"
        )
        raise InvalidInput(msg)


@formula(
    r"C_{ij} = \sum_k m_{jk} (\hat x_{ik} - x_{jk})^2",
    reference="definition; the mask m is 0 at the padding of the true example, else 1",
)
def squared_distances(
    guess: Tensor, truth: Tensor, mask: Tensor | None = None
) -> Tensor:
    """Return all pairwise squared distances.

    C_{ij} = Σ_k m_{jk} (x̂_{ik} − x_{jk})².

    Args:
        guess: x̂, shape [B̂, *event].
        truth: x, shape [B, *event].
        mask: m, shape [B, *event], bool; None counts every number.

    Returns:
        C, shape [B̂, B], float64, in squared units of the data.
    """
    rows = guess.detach().double().flatten(1)
    columns = truth.detach().double().flatten(1)
    distances = []
    for j, x in enumerate(columns):
        # The differences themselves: ‖a‖² + ‖b‖² − 2ab loses every digit at an exact
        # guess.
        difference = rows - x
        if mask is not None:
            difference = difference[:, mask[j].flatten()]
        distances.append(difference.square().sum(dim=1))
    import torch

    return torch.stack(distances, dim=1)
