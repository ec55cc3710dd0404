"""Read embeddings off a head trained on a frozen backbone, then invert each of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from exhume.attacks.engine.embedding_problems import (
    HeadView,
    head_view,
    image_problem,
    probe_task,
)
from exhume.attacks.engine.frozen_split import FrozenSplit, frozen_split
from exhume.config import build
from exhume.errors import InvalidInput
from exhume.keys import fold
from exhume.problem.attack import Attack
from exhume.problem.knowledge import UNKNOWN, Fact, Problem
from exhume.problem.observation import ObservationKind
from exhume.problem.reconstruction import Reconstruction, Stopwatch

__all__ = ["Embedding"]


@dataclass(frozen=True, kw_only=True)
class Embedding(Attack):
    """Find z with the attack on the head, then x with g(x) ≈ z, one z after another.

    In transfer learning a public backbone g is frozen and a head h is trained, so what
    is shared tells of the embeddings z = g(x) (Oz et al., 2024). Any attack that suits
    the observation finds them, since the head is a network that reads vectors. A linear
    probe then turns an embedding into a gradient, ∇_w(⟨w, g(x)⟩ + ½)² = g(x) at w = 0,
    which any attack on images inverts.

    The model is an ``nn.Sequential`` that starts with frozen layers, or has the
    attributes ``backbone`` and ``head`` with f(x) = head(backbone(x)).

    Deviations:
        * The authors invert by a deep image prior or a generative model.
        * Their candidates are clustered over many runs; here the attack on the head
          selects its own.

    Attributes:
        head: name of the attack that finds the embeddings; ``auto`` takes ``kkt`` for
            trained weights and ``tangent-kernel`` for everything else.
        head_options: of this attack.
        image: name of the attack that inverts an embedding.
        image_options: of this attack.
        error: standard deviation of the errors of an embedding, as a share of its root
            mean square, that the second attack is told; 0 tells of none.

    Raises:
        InvalidInput: an option is out of range, or does not name an attack that fits.
    """

    head: str = "auto"
    head_options: Mapping[str, Any] = field(default_factory=dict)
    image: str = "gauss-newton"
    image_options: Mapping[str, Any] = field(default_factory=dict)
    error: float = 0.1

    needs: ClassVar[frozenset[Fact]] = frozenset(
        {Fact.WEIGHTS, Fact.LOCAL_SCHEDULE, Fact.BATCH_SIZE}
    )
    uses: ClassVar[frozenset[Fact]] = frozenset(
        {
            Fact.LABELS,
            Fact.LEARNING_RATE,
            Fact.BATCH_ORDER,
            Fact.DEFENSE,
            Fact.PRIOR,
            Fact.PUBLIC_DATA,
        }
    )
    inverts: ClassVar[frozenset[ObservationKind]] = frozenset(
        {"gradient", "update", "fine-tuning", "weights"}
    )
    small_world: ClassVar[Mapping[str, Any]] = {
        "model": {
            "name": "transfer",
            "backbone": {"name": "mlp", "hidden": (208,), "activation": "tanh"},
            "head": {"name": "mlp", "hidden": (24,), "activation": "tanh"},
        }
    }
    bibtex: ClassVar[str] = """
@misc{oz2024reconstructing,
  title = {Reconstructing Training Data From Real World Models Trained with Transfer
           Learning},
  author = {Oz, Yakir and Yehudai, Gilad and Vardi, Gal and Antebi, Itai and
            Irani, Michal and Haim, Niv},
  howpublished = {arXiv:2407.15845},
  year = {2024}
}
"""

    def __post_init__(self) -> None:
        for name in ("head_options", "image_options"):
            object.__setattr__(self, name, dict(getattr(self, name)))
        if not 0 <= self.error < 1:
            msg = f"error is {self.error}; expected at least 0 and below 1"
            raise InvalidInput(msg)
        if "embedding" in (self.head, self.image):
            msg = "the attacks within 'embedding' must be others than itself"
            raise InvalidInput(msg)
        if self.head != "auto":
            build("attack", {"name": self.head, **self.head_options})
        if "gradient" not in self._on_images().inverts:
            msg = (
                f"image is {self.image!r}, which does not invert gradients, and an "
                f"embedding is shown to it as one; use 'gauss-newton', say"
            )
            raise InvalidInput(msg)

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        """Return a run that barely begins, and one that ends near a small image."""
        return (
            cls(
                head_options={"iterations": 2, "polish": 2, "newton": 1, "rounds": 0},
                image_options={"iterations": 2, "inner_iterations": 5},
            ),
            cls(
                head_options={
                    "iterations": 60,
                    "polish": 25,
                    "newton": 10,
                    "rounds": 0,
                },
                image_options={"iterations": 10, "inner_iterations": 50},
            ),
        )

    def run(self, problem: Problem, key: int) -> Reconstruction:
        """Reconstruct the embeddings, then the images, and check these on the head."""
        watch = Stopwatch()
        split = self._split(problem)
        view = head_view(problem, split)
        found = self._on_head(problem)(view.problem, fold(key, "head"))
        watch.count(found.cost.evaluations)
        embeddings = view.embeddings(found.inputs)
        inputs, notes = self._images(problem, split, embeddings, key, watch)
        return replace(
            found,
            inputs=inputs,
            objective=self._objective(problem, view, split, inputs, found.targets),
            cost=watch.cost(),
            notes=(
                *(f"Embeddings: {note}" for note in found.notes),
                *notes,
                _misfit(split.embed(inputs).double(), embeddings),
                _sizes(problem, split),
            ),
        )

    def objective(
        self, problem: Problem, inputs: Tensor, targets: Tensor
    ) -> float | None:
        """Return the objective of the attack on the head at the embeddings of x."""
        split = self._split(problem)
        return self._objective(
            problem, head_view(problem, split), split, inputs, targets
        )

    def _objective(
        self,
        problem: Problem,
        view: HeadView,
        split: FrozenSplit,
        inputs: Tensor,
        targets: Tensor,
    ) -> float | None:
        standard = view.standard(split.embed(inputs).double()).to(split.task.dtype)
        return self._on_head(problem).objective(view.problem, standard, targets)

    def _split(self, problem: Problem) -> FrozenSplit:
        return frozen_split(problem.require(Fact.WEIGHTS), problem.spec)

    def _on_head(self, problem: Problem) -> Attack:
        name = self.head
        if name == "auto":
            kind = problem.require(Fact.LOCAL_SCHEDULE).kind
            name = "kkt" if kind == "weights" else "tangent-kernel"
        return build("attack", {"name": name, **self.head_options})

    def _on_images(self) -> Attack:
        return build("attack", {"name": self.image, **self.image_options})

    def _images(
        self,
        problem: Problem,
        split: FrozenSplit,
        embeddings: Tensor,
        key: int,
        watch: Stopwatch,
    ) -> tuple[Tensor, tuple[str, ...]]:
        """Return x̂ of every embedding, shape [B̂, *event], and what was said."""
        task, attack = probe_task(split), self._on_images()
        inputs, notes = [], {}
        for i, embedding in enumerate(embeddings):
            inner = image_problem(problem, task, embedding, self.error)
            guess = attack(inner, fold(key, "image", i))
            watch.count(guess.cost.evaluations)
            inputs.append(guess.inputs)
            notes |= dict.fromkeys(guess.notes)
        return torch.cat(inputs), tuple(f"Images: {note}" for note in notes)


def _misfit(reached: Tensor, wanted: Tensor) -> str:
    gaps = torch.linalg.vector_norm(reached - wanted, dim=1)
    sizes = torch.linalg.vector_norm(wanted, dim=1).clamp_min(1e-300)
    return (
        f"The embeddings of the reconstructed images differ from the reconstructed "
        f"embeddings by {float((gaps / sizes).median()):.2g} of their norm (median): "
        f"where this is large, there is no such image, or it was not found."
    )


def _sizes(problem: Problem, split: FrozenSplit) -> str:
    text = (
        f"The backbone maps {problem.spec.dimension} numbers of an example to "
        f"{split.dimension}"
    )
    if split.dimension >= problem.spec.dimension:
        return f"{text}."
    known = "a" if problem.prior is not UNKNOWN else "no"
    return f"{text}: the rest is left to a prior, and {known} prior was given."
