"""A job: a pure function from plain data to a result that never raises."""

from __future__ import annotations

import platform
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, wraps
from importlib.metadata import version
from pathlib import Path
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

from exhume.errors import ExhumeError

__all__ = ["Job", "Result", "Spec", "measured"]

#: plain data with an ``id``
Spec = TypeVar("Spec", bound=Any)
#: a dataclass with ``spec``, ``status``, ``reason``, ``seconds`` and ``versions``
Result = TypeVar("Result", bound=Any)

P = ParamSpec("P")


@dataclass(frozen=True)
class Job(Generic[Spec, Result]):
    """A kind of work, as an executor takes it.

    Attributes:
        run: what a worker calls, see :func:`measured`; at the top level of a module, so
            that it can be pickled.
        result: the kind of its results.
    """

    run: Callable[[Spec], Result]
    result: type[Result]

    def failed(self, spec: Spec, reason: str) -> Result:
        """Make the result of a spec that gave none."""
        return self.result(spec=spec, status="failed", reason=reason)


def measured(
    result: type[Result],
    *,
    not_applicable: tuple[type[ExhumeError], ...] = (),
) -> Callable[
    [Callable[Concatenate[Spec, P], Result]], Callable[Concatenate[Spec, P], Result]
]:
    """Let a function of a spec never raise, and say how long it took, and with what.

    An error becomes a ``failed`` result that says what happened: a defect in one method
    must not end a sweep of hundreds. The user's own code may even call ``sys.exit``.

    Args:
        result: the kind of the function's results.
        not_applicable: errors that say that the question does not arise here.
    """

    def decorate(
        function: Callable[Concatenate[Spec, P], Result],
    ) -> Callable[Concatenate[Spec, P], Result]:
        @wraps(function)
        def run(spec: Spec, *further: P.args, **options: P.kwargs) -> Result:
            started = time.perf_counter()
            try:
                found = function(spec, *further, **options)
            except not_applicable as error:
                found = result(spec=spec, status="not-applicable", reason=str(error))
            except ExhumeError as error:
                found = result(spec=spec, status="failed", reason=str(error))
            except (Exception, SystemExit) as error:
                found = result(spec=spec, status="failed", reason=_sentence(error))
            seconds = time.perf_counter() - started
            return replace(found, seconds=seconds, versions=_versions())

        return run

    return decorate


def _sentence(error: BaseException) -> str:
    """Say what an error of an unexpected kind was, and where it arose."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    message = " ".join(str(error).split()) or "no message"
    where = f"{Path(place.filename).name}, line {place.lineno}"
    return f"{type(error).__name__}: {message} ({where})"


@lru_cache(maxsize=1)
def _versions() -> dict[str, str]:
    """Return the versions of what computes."""
    packages = {name: version(name) for name in ("exhume", "torch", "numpy")}
    return {**packages, "python": platform.python_version()}
