"""Numbers, lists and names as a reader expects them in print."""

from __future__ import annotations

import ast
import math
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from exhume.config import default_options
from exhume.errors import UnknownName
from exhume.registry import entry, find, member_node, names

if TYPE_CHECKING:
    from exhume.runs.records import Options

__all__ = [
    "also",
    "count",
    "defense_family",
    "defense_label",
    "defense_strength",
    "finite",
    "label_without",
    "median",
    "number",
    "object_label",
    "score",
    "several",
    "ten",
]

_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def ten(exponent: int) -> str:
    """Write a power of ten, e.g. 10⁻³."""
    return "10" + str(exponent).translate(_SUPERSCRIPT)


def number(value: float | None, digits: int = 3) -> str:
    """Write a number with some significant digits; – for none, ∞ for infinity."""
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1e5:
        text = f"{value:.{digits}g}" if abs(value) < 1000 else f"{value:.0f}"
        return text.replace("-", "−")
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    mantissa = mantissa.rstrip("0").rstrip(".").replace("-", "−")
    return f"{mantissa}×{ten(int(exponent))}"


def score(metric: str, value: float | None, unit: str = "") -> str:
    """Write one value of a metric with its unit."""
    if value is None or not math.isfinite(value):
        text = number(value)
    elif metric == "psnr":
        text = f"{value:.1f}".replace("-", "−")
    elif metric in {"ssim", "ncc", "label-accuracy"}:
        text = f"{value:.2f}".replace("-", "−")
    else:
        text = number(value)
    return f"{text} {unit}" if unit and text != "–" else text


def count(n: int, noun: str) -> str:
    """Write a number of things: 1 face, 2 faces."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def several(parts: Sequence[str], last: str = "and") -> str:
    """Join parts as prose: a, b and c."""
    if len(parts) < 2:
        return "".join(parts)
    return f"{', '.join(parts[:-1])} {last} {parts[-1]}"


def also(labels: Sequence[str], limit: int = 4) -> str:
    """Join labels as prose, naming at most ``limit`` of them."""
    if len(labels) <= limit:
        return several(labels)
    return several([*labels[:limit], f"{len(labels) - limit} more"])


def finite(values: Iterable[float | None]) -> list[float]:
    """Drop what is undefined (None, NaN); infinities stay."""
    return [v for v in values if v is not None and not math.isnan(v)]


def median(values: Iterable[float | None]) -> float | None:
    """Return the median of what is defined, or None.

    Half-way between a finite and an infinite middle value lies the finite one, so that
    one exact picture of two does not turn the summary into infinity.
    """
    ordered = sorted(finite(values))
    if not ordered:
        return None
    low, high = ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]
    if math.isfinite(low) and math.isfinite(high):
        return (low + high) / 2
    return low if math.isfinite(low) else high


# --- names ----------------------------------------------------------------------------

_NOBODY = "no defense"
# Options that read as an adjective before the name, with the default of the class.
_ADJECTIVES = {"pruning": ("kind", "magnitude"), "quantisation": ("kind", "sign")}
# Words that English writes with a capital.
_PROPER = {"dp": "DP", "gaussian": "Gaussian", "laplace": "Laplace", "sgd": "SGD"}
# Options whose bare value says enough.
_BARE = {"max_norm": "{value}", "ratio": "{percent} %"}
_COVERS_ALL = ["*"]


def object_label(kind: str, given: Options | str) -> str:
    """Name an object and the options that are not its defaults: ``mlp (bias = False)``.

    Args:
        kind: a key of ``registry.KINDS``.
        given: name and options, or just the name.
    """
    options = {"name": given} if isinstance(given, str) else given
    try:
        usual = default_options(find(kind, str(options["name"]), own="loaded"))
    except UnknownName:
        usual = {}
    # Stored options are JSON: its lists stand for tuples.
    usual = {k: list(v) if isinstance(v, tuple) else v for k, v in usual.items()}
    details = ", ".join(
        f"{option} = {value}"
        for option, value in options.items()
        if option != "name" and (option not in usual or usual[option] != value)
    )
    return f"{options['name']} ({details})" if details else str(options["name"])


def defense_label(stack: Sequence[Options]) -> str:
    """Name a stack with its strengths: ``clipping 1 + Gaussian noise, std 0.01``."""
    return label_without(stack, -1, "") or _NOBODY


def defense_family(stack: Sequence[Options]) -> str:
    """Name what the strength of :func:`defense_strength` is varied of.

    Stacks that differ in the strength alone share a family, others never do: family
    and strength together identify the stack. It is "" for the empty stack.
    """
    return label_without(stack, *(_varied(stack) or (-1, "")))


def label_without(stack: Sequence[Options], position: int, option: str) -> str:
    """Name a stack, but not the value of one option of one of its defenses."""
    return " + ".join(
        _label(options, without=option if position == i else "")
        for i, options in enumerate(stack)
    )


def defense_strength(stack: Sequence[Options]) -> tuple[str, float] | None:
    """Return name and value of the last numeric option of the stack, if it has one."""
    varied = _varied(stack)
    if varied is None:
        return None
    position, option = varied
    return option, float(stack[position][option])


def _varied(stack: Sequence[Options]) -> tuple[int, str] | None:
    """Find the last defense with a number, and the name of its last number."""
    for position in reversed(range(len(stack))):
        numbers = _numbers(stack[position])
        if numbers:
            return position, numbers[-1]
    return None


def _numbers(options: Options) -> list[str]:
    # Sorted: the order of keys does not survive storage as canonical JSON.
    return sorted(
        name
        for name, value in options.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    )


def _label(options: Options, without: str = "") -> str:
    name = str(options["name"])
    words = [_PROPER.get(word, word) for word in name.split("-")]
    adjective, default = _ADJECTIVES.get(name, ("", ""))
    if adjective:
        words.insert(0, str(options.get(adjective, default)))
    covered = list(options.get("only", _COVERS_ALL))
    if covered != _COVERS_ALL:
        words += ["on", ", ".join(covered)]
    usual = _defaults(name)
    numbers = _numbers(options)
    # The strength is told even where it is the default; what else is, is not news.
    values = [
        n
        for n in numbers
        if n != without and (n == numbers[-1] or options[n] != usual.get(n))
    ]
    words += [_bare(n, options[n]) for n in values if n in _BARE]
    named = [
        f"{n.replace('_', ' ')} {_short(options[n])}" for n in values if n not in _BARE
    ]
    other = set(options) - {"name", "only", adjective, *numbers}
    named += [
        f"{n.replace('_', ' ')} {options[n]}"
        for n in sorted(other)
        if n not in usual or options[n] != usual[n]
    ]
    return ", ".join([" ".join(words), *named])


@lru_cache(maxsize=64)
def _defaults(name: str) -> dict[str, Any]:
    """Read the default options of a registered defense from its file, as JSON has them.

    The file is parsed, not run: naming needs no torch.
    """
    node, usual = None, dict[str, Any]()
    if name in names("defense"):
        node = member_node("defense", entry("defense", name).path)
    for line in node.body if node else ():
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
            with suppress(ValueError):
                value = ast.literal_eval(line.value or line.target)
                usual[line.target.id] = list(value) if type(value) is tuple else value
    return usual


def _bare(option: str, value: float) -> str:
    return _BARE[option].format(value=_short(value), percent=_short(100 * value))


def _short(value: float) -> str:
    """Write a number as people do: ``0.001``, ``1e-5`` (not ``1e-05``)."""
    mantissa, _, exponent = f"{value:.6g}".partition("e")
    return f"{mantissa}e{int(exponent)}" if exponent else mantissa
