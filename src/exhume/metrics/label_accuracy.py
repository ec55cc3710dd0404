"""Whether the class of an example was recovered: 1 or 0."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

from torch import Tensor

from exhume.formula import formula
from exhume.problem.bound import NotApplicable
from exhume.problem.event import EventSpec
from exhume.problem.metric import Metric

__all__ = ["LabelAccuracy", "label_agreement"]

_SUM_SLACK: Final = 1e-4


@formula(
    r"a_i = \mathbb{1}\{\operatorname{class}(\hat y_i) = \operatorname{class}(y_i)\}",
    reference="definition; the class of soft labels is their argmax",
)
def label_agreement(guess: Tensor, truth: Tensor) -> Tensor:
    """Return 1 where the class is right and 0 where it is wrong.

    a_i = 1{class(ŷ_i) = class(y_i)}, class(y) = argmax y for soft labels.

    Args:
        guess: ŷ, class indices [B], or one score per class [B, K].
        truth: y, class indices [B], or probabilities [B, K].

    Returns:
        shape [B], float64, each 0 or 1.
    """
    return (_classes(guess) == _classes(truth)).double()


@dataclass(frozen=True, kw_only=True)
class LabelAccuracy(Metric):
    """Recovered class labels, in the best order.

    A gradient does not tell the order of a batch. So ``score`` lets every estimated
    label serve one true label of its class, that of the matched example first: labels
    that are all right score 1, however bad the inputs are.
    """

    label: ClassVar[str] = "Label right"
    higher_is_better: ClassVar[bool] = True
    compares = "targets"

    def __call__(
        self, guess: Tensor, truth: Tensor, spec: EventSpec
    ) -> Tensor | NotApplicable:
        """Score each example of a classification task."""
        del spec
        for name, targets in (("true", truth), ("estimated", guess)):
            if not _is_classes(targets, probabilities=targets is truth):
                return NotApplicable(f"the {name} targets are real numbers, no classes")
        return label_agreement(guess, truth)


def _classes(targets: Tensor) -> Tensor:
    return targets.argmax(dim=1) if targets.is_floating_point() else targets


def _is_classes(targets: Tensor, *, probabilities: bool) -> bool:
    if not targets.is_floating_point():
        return targets.dim() == 1
    if targets.dim() != 2 or targets.shape[1] < 2:
        return False
    if not probabilities:
        return True
    off = (targets.sum(dim=1) - 1).abs().max()
    return bool(targets.min() >= 0) and bool(off <= _SUM_SLACK)
