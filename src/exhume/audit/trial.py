"""Has moved to ``exhume.trials.trial``; this name is kept for one release."""

from __future__ import annotations

from exhume.moved import door

__getattr__ = door(
    "exhume.audit.trial",
    "exhume.trials.trial",
    "exhume.trials.world",
    "exhume.trials.setting",
)
