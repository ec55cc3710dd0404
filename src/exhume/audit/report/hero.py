"""The first glance: an original, what leaks undefended, what is left with a defense."""

from __future__ import annotations

from collections.abc import Sequence

from exhume.audit.report.gallery import Gallery
from exhume.audit.report.verdict import Finding
from exhume.report.pictures import Picture

__all__ = ["hero"]


def hero(gallery: Gallery, found: Sequence[Finding]) -> list[tuple[str, Picture]]:
    """Choose up to three pictures of the first example, with a title each.

    They are the original, the strongest attack without a defense, and the strongest
    attack under the defense that leaves it the largest error.
    """
    reached = [f for f in found if f.error is not None]
    plain = [f for f in reached if f.defense.is_none]
    held = [f for f in reached if not f.defense.is_none]
    chosen = [*plain, *sorted(held, key=lambda f: f.error or 0.0)[-1:]]
    rows = gallery.panels[0].rows if gallery.panels else ()
    shown = []
    for finding in chosen:
        row = next((r for r in rows if r.defense == finding.defense.label), None)
        if row is None:
            continue
        picture = row.guesses[gallery.attacks.index(finding.attack)]
        if picture is not None and picture.drawn:
            shown.append((f"{finding.attack}, {finding.defense.label}", picture))
    return [("original", row.truth) for row in rows[:1] if shown] + shown
