"""Secure aggregation: the server sees the mean over clients and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from exhume.errors import InvalidInput
from exhume.formula import formula
from exhume.keys import fold, generator
from exhume.problem.batch import Batch
from exhume.problem.defense import Aggregation, Defense, Plan
from exhume.problem.observation import Candidate
from exhume.problem.privacy import Guarantee, Sensitivity
from exhume.problem.task import Task
from exhume.problem.tree import Tree, check_same_layout, flatten, unflatten

# Standard deviations of noise below this many units of the fixed-point grid may be
# rounded away.
_FINE = 64

__all__ = [
    "SecureAggregation",
    "encode",
    "mask_of",
    "masked_vector",
    "threshold",
    "unmasked_sum",
]

Ring = np.ndarray[Any, np.dtype[np.uint64]]


@formula(
    r"e(x) = \lfloor 2^f x \rceil \bmod 2^{64}",
    reference="Bonawitz et al., CCS 2017, section 4 (values in a ring Z_R)",
)
def encode(values: Tensor, fraction_bits: int, clients: int) -> Ring:
    """Write real numbers as fixed-point elements of the ring of 64-bit integers.

    Args:
        values: x, shape [P].
        fraction_bits: f; the error of one entry is at most 2^{−f−1}.
        clients: K, so that the sum of K encoded vectors still fits.

    Returns:
        uint64, shape [P]; negative numbers are wrapped around.

    Raises:
        InvalidInput: an entry is so large that a sum over the clients may overflow.
    """
    scaled = values.detach().double().cpu() * 2.0**fraction_bits
    limit = 2.0**63 / clients
    largest = float(scaled.abs().max()) if scaled.numel() else 0.0
    if not largest < limit:
        msg = (
            f"an update has an entry of magnitude {largest / 2.0**fraction_bits:.3g}, "
            f"and {fraction_bits} fraction bits leave room for "
            f"{limit / 2.0**fraction_bits:.3g} per client; use fewer fraction bits, or "
            f"clip the update"
        )
        raise InvalidInput(msg)
    return scaled.round().to(torch.int64).numpy().view(np.uint64)


@formula(
    r"k \ge \lfloor K / 2 \rfloor + 1",
    reference="Bonawitz et al., CCS 2017, section 4: a threshold t > K/2",
)
def threshold(clients: int) -> int:
    """Return the least number of survivors that can unmask the sum of K clients."""
    return clients // 2 + 1


def mask_of(seed: int, count: int) -> Ring:
    """Expand a seed into a mask, uniform on the ring, shape [count]."""
    drawn = torch.empty(count, dtype=torch.int64)
    drawn.random_(-(2**63), None, generator=generator(seed, "mask"))
    return drawn.numpy().view(np.uint64)


def _pair(key: int, i: int, j: int) -> int:
    """Return the seed that clients i and j agreed on."""
    return fold(key, "pair", min(i, j), max(i, j))


@formula(
    r"y_i = e(x_i) + p(b_i) + \sum_{j > i} p(s_{ij}) - \sum_{j < i} p(s_{ij}) "
    r"\bmod 2^{64}",
    reference="Bonawitz et al., CCS 2017, section 4.3, double masking",
)
def masked_vector(encoded: Ring, client: int, clients: int, key: int) -> Ring:
    """Mask what one client sends: uniform on the ring, whatever it hides.

    Args:
        encoded: e(x_i), shape [P].
        client: i, from 0.
        clients: K, all that agreed on seeds, also those that drop out later.
        key: stands for the agreement on keys; every seed is folded from it.
    """
    masked = encoded + mask_of(fold(key, "self", client), len(encoded))
    for other in range(clients):
        if other == client:
            continue
        shared = mask_of(_pair(key, client, other), len(encoded))
        # Unsigned integers wrap around, which is the arithmetic of the ring.
        masked = masked + shared if other > client else masked - shared
    return masked


@formula(
    r"\sum_{i \in U} e(x_i) = \sum_{i \in U} \Big( y_i - p(b_i) - \sum_{j \notin U} "
    r"\pm\, p(s_{ij}) \Big) \bmod 2^{64}",
    reference="Bonawitz et al., CCS 2017, section 4.3, unmasking",
)
def unmasked_sum(sent: Mapping[int, Ring], clients: int, key: int) -> Ring:
    """Sum the masked vectors of the survivors and remove the masks that are left.

    Masks between survivors cancel. Those that survivors share with clients that
    dropped out are expanded again from the seeds that the survivors give to the server,
    and so are the survivors' own masks.

    Args:
        sent: client → y_i, of the survivors U.
        clients: K.
        key: as in :func:`masked_vector`.

    Raises:
        InvalidInput: there are fewer survivors than the threshold.
    """
    if len(sent) < threshold(clients):
        msg = (
            f"only {len(sent)} of {clients} clients are left, and the masks can be "
            f"removed with {threshold(clients)} or more; let fewer clients drop out"
        )
        raise InvalidInput(msg)
    first = next(iter(sent.values()))
    total = np.zeros_like(first)
    gone = [j for j in range(clients) if j not in sent]
    for i, vector in sent.items():
        total = total + vector - mask_of(fold(key, "self", i), len(vector))
        for j in gone:
            shared = mask_of(_pair(key, i, j), len(vector))
            total = total - shared if j > i else total + shared
    return total


@dataclass(frozen=True, kw_only=True)
class SecureAggregation(Aggregation, Defense):
    """Release O = (1/|U|) Σ_{i∈U} x_i over the clients U that did not drop out.

    A batch of B = K b examples is K clients with b examples each, in order; the last
    ``dropped`` of them drop out after the masks were agreed, so their examples are not
    in the release at all. Every client rounds its update to fixed point, adds its own
    mask and one mask per pair of clients in arithmetic modulo 2⁶⁴, and the server
    removes what does not cancel. What one client sends is uniform and says nothing.

    The mean is rounded by at most 2^{−f−1} per entry. The law leaves this rounding
    out, which is far below any noise worth adding; attacks take the mean for exact,
    which it is to single precision with the default.

    What it does not hide is the mean: a server that knows the labels faces one batch of
    all survivors' examples. Seeds come from a key instead of an agreement between
    clients and are expanded by a generator that is not cryptographic: this is the
    arithmetic of the protocol for an evaluation, not an implementation to deploy. A
    server that sends different models to different clients is outside of it.

    Attributes:
        clients: K ≥ 1.
        dropped: clients that drop out, at most K − ⌊K/2⌋ − 1.
        fraction_bits: f, from 1 to 52.

    Raises:
        InvalidInput: an option is out of range, too few clients survive, or the batch
            does not split into equal parts.
    """

    bibtex: ClassVar[str] = """\
@inproceedings{bonawitz2017practical,
  title = {Practical Secure Aggregation for Privacy-Preserving Machine Learning},
  author = {Bonawitz, Keith and Ivanov, Vladimir and Kreuter, Ben and
            Marcedone, Antonio and McMahan, H. Brendan and Patel, Sarvar and
            Ramage, Daniel and Segal, Aaron and Seth, Karn},
  booktitle = {ACM SIGSAC Conference on Computer and Communications Security},
  pages = {1175--1191},
  year = {2017},
}
"""

    clients: int
    dropped: int = 0
    fraction_bits: int = 32

    def __post_init__(self) -> None:
        if self.clients < 1 or self.dropped < 0:
            msg = (
                f"clients is {self.clients} and dropped is {self.dropped}; expected at "
                f"least 1 client and at least 0 that drop out"
            )
            raise InvalidInput(msg)
        if len(self.survivors) < threshold(self.clients):
            msg = (
                f"{self.dropped} of {self.clients} clients drop out; the protocol "
                f"needs {threshold(self.clients)} survivors, so at most "
                f"{self.clients - threshold(self.clients)} may"
            )
            raise InvalidInput(msg)
        if not 1 <= self.fraction_bits <= 52:
            msg = f"fraction_bits is {self.fraction_bits}; expected 1 to 52"
            raise InvalidInput(msg)

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        """Return two clients and a fine rounding."""
        return (cls(clients=2, fraction_bits=48),)

    def idle(self) -> Self:
        """Return a single client and the finest rounding."""
        return replace(self, clients=1, dropped=0, fraction_bits=52)

    @property
    def survivors(self) -> range:
        """The clients whose updates are summed."""
        return range(self.clients - self.dropped)

    def calibrate(self, task: Task, public: Batch | None, key: int) -> Plan:
        """List what is aggregated; nothing is fitted."""
        del public, key
        return self._plan(task)

    def split(self, candidate: Candidate) -> tuple[Candidate, ...]:
        """Cut a batch into K equal parts, in order."""
        count = len(candidate.inputs)
        if count % self.clients or count == 0:
            msg = (
                f"a batch of {count} examples cannot be split over {self.clients} "
                f"clients equally; use a multiple of {self.clients}"
            )
            raise InvalidInput(msg)
        own = count // self.clients
        rows = [slice(k * own, (k + 1) * own) for k in range(self.clients)]
        return tuple(
            Candidate(
                candidate.inputs[row],
                candidate.targets[row],
                {name: t[row] for name, t in candidate.nuisance.items()},
            )
            for row in rows
        )

    def weights(self) -> tuple[float, ...]:
        """Return 1/|U| for survivors and 0 for clients that dropped out."""
        count = len(self.survivors)
        return (1 / count,) * count + (0.0,) * self.dropped

    def combine(self, updates: Sequence[Tree], plan: Plan, key: int) -> Tree:
        """Mask, sum and unmask; return the mean in the type of the updates.

        Raises:
            InvalidInput: an entry is too large for fixed point, or a tensor does not
                hold real numbers.
        """
        like = updates[0]
        expected = {n: torch.empty(s, device="meta") for n, s in plan.shapes.items()}
        sent = {}
        for i in self.survivors:
            check_same_layout(updates[i], expected, what=f"the update of client {i}")
            _check_real(updates[i])
            vector = flatten({n: t.double() for n, t in updates[i].items()})
            encoded = encode(vector, self.fraction_bits, self.clients)
            sent[i] = masked_vector(encoded, i, self.clients, key)
        total = unmasked_sum(sent, self.clients, key).view(np.int64)
        step = 2.0**-self.fraction_bits / len(sent)
        mean = unflatten(torch.from_numpy(total).double() * step, like)
        return {name: t.to(like[name]) for name, t in mean.items()}

    @property
    def preserves_zeros(self) -> bool:
        """A lone client's zeros stay zeros."""
        return self.clients == 1

    def account(self, before: Guarantee, plan: Plan) -> Guarantee:
        """Add up the clients' noise: against the mean, one client has the share 1/|U|.

        The standard deviation falls by √|U| only, so noise that every client adds for
        itself protects √|U| times better than alone, if the others really add it.
        """
        del plan
        coarse = any(
            float(v.min()) ** 0.5 < _FINE * 2.0**-self.fraction_bits
            for v in before.variance.values()
        )
        # Rounding before the sum could show what the noise of the others would hide.
        if before.sealed or before.broken or before.family != "gaussian" or coarse:
            return before.processed()
        count = len(self.survivors)
        return replace(
            before,
            bounded=tuple(Sensitivity(s.names, s.norm / count) for s in before.bounded),
            variance={name: v / count for name, v in before.variance.items()},
        )


def _check_real(update: Tree) -> None:
    whole = [n for n, t in update.items() if not t.is_floating_point()]
    if whole:
        msg = (
            f"secure aggregation adds real numbers, and {', '.join(whole)} holds "
            f"integers; send counters outside of it"
        )
        raise InvalidInput(msg)
