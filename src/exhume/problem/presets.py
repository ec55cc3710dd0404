"""Threat models by name, as plain strings: readable without importing torch."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["PRESETS", "Preset"]


@dataclass(frozen=True)
class Preset:
    """One named threat model.

    Attributes:
        facts: names of the members of ``Fact`` that the attacker knows.
        letter: letter A–H of Carletti et al. (USENIX Security 2025), or "".
        description: the same in words, for the report.
    """

    facts: tuple[str, ...]
    letter: str
    description: str


_EAVESDROPPER = ("WEIGHTS", "LOCAL_SCHEDULE", "LEARNING_RATE", "BATCH_SIZE")
_SERVER = (*_EAVESDROPPER, "DEFENSE")
_DATA = (*_SERVER, "PRIOR", "PUBLIC_DATA")

_RATELESS = ("WEIGHTS", "LOCAL_SCHEDULE", "BATCH_SIZE", *_DATA[4:])

#: name → preset
PRESETS: dict[str, Preset] = {
    "eavesdropper": Preset(
        _EAVESDROPPER,
        "A/B",
        "Sees the update and the model; assumes one full-batch gradient and guesses "
        "the batch size right. Knows nothing of labels, defenses or data beyond the "
        "range of an example.",
    ),
    "parameter-aware": Preset(
        _SERVER,
        "C",
        "Also knows the training details: what the client computes, the batch size and "
        "the defense with its strength.",
    ),
    "data-enhanced": Preset(
        _DATA,
        "D",
        "Also has public examples of the same kind and a prior fitted to them.",
    ),
    "statistics-known": Preset(
        (*_DATA, "LABELS", "BATCH_NORM_STATISTICS"),
        "E",
        "Also knows the labels and, if the model has BatchNorm, the statistics of the "
        "client's batch at every such layer.",
    ),
    "labels-known": Preset(
        (*_DATA, "LABELS"),
        "D + labels",
        "A well-informed passive server: model, schedule, batch size, defense with its "
        "strength, public examples and the labels (which are easily inferred). The "
        "default: a defense that holds here holds against less.",
    ),
    "rate-unknown": Preset(
        (*_RATELESS, "LABELS"),
        "D + labels",
        "As labels-known, but without the step size of the client's local training.",
    ),
    "order-known": Preset(
        (*_DATA, "LABELS", "BATCH_ORDER"),
        "D + labels",
        "As labels-known, and also knows which examples met in which local step, in "
        "which order. No server is told this; it shows what the order hides.",
    ),
    "defense-unknown": Preset(
        (*_EAVESDROPPER, "PRIOR", "PUBLIC_DATA", "LABELS"),
        "D + labels",
        "As labels-known, but unaware of the defense: a non-adaptive attacker, shown "
        "to see how much of a defense is obscurity.",
    ),
}
