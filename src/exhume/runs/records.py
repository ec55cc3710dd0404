"""Plain data of an audit: what is asked of a trial, what came out of it, and its JSON.

Strict JSON has neither ∞ nor NaN: here is the one way to write them. In what others
read (the JSON beside a report) they are the words ``"Infinity"``, ``"-Infinity"`` and
``"NaN"``. In what has to come back as it was (a store) they stand in an object,
``{"$float": "Infinity"}``, so that no text is taken for a number.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from itertools import repeat
from typing import Any, Literal, TypedDict

import numpy as np

__all__ = [
    "BOUNDED_METRIC",
    "SQUARED_ERROR",
    "Facts",
    "Flag",
    "Level",
    "Memorised",
    "Options",
    "SettingFacts",
    "SettingSpec",
    "TrialResult",
    "TrialSpec",
    "binds",
    "binds_every_attack",
    "content_hash",
    "dump_exact",
    "dumps",
    "is_error",
    "level",
    "load_exact",
]

#: a registered object as plain data: ``{"name": "gaussian-noise", "std": 0.01}``
Options = dict[str, Any]

#: the metric that bounds on the squared error bound; no other is compared with them
BOUNDED_METRIC = "mse"
#: what a record without a quantity of its own bounds from below
SQUARED_ERROR = "mean squared error ≥"
#: name of the member of ``problem.bound.Binds``, whose module imports torch
_EVERY_ATTACK = "EVERY_ATTACK"

#: key of a number that JSON lacks
_MARK = "$float"


@dataclass(frozen=True, kw_only=True)
class SettingSpec:
    """One client and one release, as plain data: what all attacks and bounds face.

    Everything random is folded from ``seed`` and names, never from the order of
    execution.

    Attributes:
        data: data source.
        model: model source.
        loss: name of the training loss.
        mode: ``eval`` or ``train``.
        dtype: ``float32`` or ``float64``.
        classes: number K of outputs; 0 takes it from the labels (at least 2).
        observation: what the client computes.
        batch_size: B.
        seed: chooses examples, weights, noise and starts.
        defenses: stack of defenses, in order; empty for none.
        prior: prior fitted to the public examples, or None.
        public_examples: that defenses are calibrated on; 0 for all. The prior and the
            attacks have all.
    """

    data: Options
    model: Options
    loss: str = "cross-entropy"
    mode: Literal["eval", "train"] = "eval"
    dtype: Literal["float32", "float64"] = "float32"
    classes: int = 0
    observation: Options = field(default_factory=partial(dict, name="gradient"))
    batch_size: int = 1
    seed: int = 0
    defenses: tuple[Options, ...] = ()
    prior: Options | None = None
    public_examples: int = 0

    @property
    def id(self) -> str:
        """SHA-256 of the canonical JSON: equal specs have equal ids everywhere."""
        return content_hash(self._record())

    def _record(self) -> dict[str, Any]:
        record = asdict(self)
        # They came later: specs that do not use them keep their ids.
        for name in ("public_examples", "metrics", "placebo"):
            if not record.get(name):
                record.pop(name, None)
        return record


@dataclass(frozen=True, kw_only=True)
class TrialSpec(SettingSpec):
    """One cell of a sweep, as plain data: run one attack, or evaluate one bound.

    The data, weights and noise do not depend on the attack: trials that differ in the
    attack alone face the same observation.

    Attributes:
        threat: name of a threat model.
        attack: the attack of this trial, or None.
        bound: the bound of this trial, or None; exactly one of the two is set.
        metrics: that score the attack beside the registered ones.
        placebo: the attack gets the release of other examples with the same labels, and
            is scored against these.
    """

    threat: str = "labels-known"
    attack: Options | None = None
    bound: Options | None = None
    metrics: tuple[Options, ...] = ()
    placebo: bool = False

    @property
    def setting(self) -> str:
        """Hash of everything but the attack and the bound: the same observation."""
        facing = replace(self, attack=None, bound=None, metrics=())
        return content_hash(facing._record())

    @property
    def released(self) -> SettingSpec:
        """The client and its release, whatever is tried on it."""
        own = {field.name: getattr(self, field.name) for field in fields(SettingSpec)}
        return SettingSpec(**own)

    def objects(self) -> list[tuple[str, Options]]:
        """List kind and options of every registered object that it names."""
        single = {
            "attack": self.attack,
            "bound": self.bound,
            "data": self.data,
            "model": self.model,
            "observation": self.observation,
            "prior": self.prior,
        }
        named = [
            *single.items(),
            *zip(repeat("defense"), self.defenses),
            *zip(repeat("metric"), self.metrics),
        ]
        return [(kind, options) for kind, options in named if options is not None]


def content_hash(value: Any) -> str:
    """Return the SHA-256 of sorted, compact JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


class SettingFacts(TypedDict, total=False):
    """Numbers about a setting: nothing here depends on an attack.

    Attributes:
        parameters: P.
        dimension: d of one example.
        unknowns: B · d, less what is padding.
        public_examples: how many there are.
        gradient_norm: of the exact update.
        released_norm: of the release.
        cosine_to_exact: of the angle between the release and the exact update.
        relative_noise: norm of the noise over that of the exact update.
        batch_norm_layers: whose statistics the client has.
        labels_identify_order: 1.0 if the labels tell the examples apart, else 0.0.
        prior_fit: of a prior that was checked on held-out examples; 1 if it fits.
        training_loss: that a training to the end has left.
        stationarity: that a training to the end with weight decay has left.
    """

    parameters: float
    dimension: float
    unknowns: float
    public_examples: float
    gradient_norm: float
    released_norm: float
    cosine_to_exact: float
    relative_noise: float
    batch_norm_layers: float
    labels_identify_order: float
    prior_fit: float
    training_loss: float
    stationarity: float


#: What an attack shows that a training has left: shares of the private examples and of
#: others that correlate with a candidate above a level, how many others there are, and
#: the best correlation that chance reaches.
Memorised = TypedDict(
    "Memorised",
    {
        "recovered_0.9": float,
        "recovered_0.8": float,
        "recovered_0.7": float,
        "held_out_0.9": float,
        "held_out_0.8": float,
        "held_out_0.7": float,
        "held_out": float,
        "null_level": float,
    },
    total=False,
)


class Facts(SettingFacts, Memorised, total=False):
    """Numbers about a setting, and about an attack on it.

    Attributes:
        ordered_mse: error of the attack with examples paired by label.
    """

    ordered_mse: float


@dataclass(frozen=True)
class Flag:
    """A warning about a result.

    Attributes:
        kind: short name, e.g. ``under-optimised``.
        severity: ``alarm`` (a claim is broken), ``warning`` or ``note``.
        sentence: what it means and what to do.
    """

    kind: str
    severity: Literal["alarm", "warning", "note"]
    sentence: str


@dataclass(frozen=True, eq=False, kw_only=True)
class TrialResult:
    """What one trial gave, as plain data and float32 arrays.

    Attributes:
        spec: what was asked.
        status: ``done``, ``not-applicable`` or ``failed``.
        reason: one sentence if not done, else "".
        baseline: the attack is a chance level, see ``Attack.baseline``.
        recognises: the attack answers with public examples, see ``Attack.recognises``.
        outcome: name of the :class:`Outcome`, and its sentence.
        objective: the attack's own objective at its answer.
        objective_at_truth: the same function at the private batch.
        adaptive: the attack used the declared law.
        notes: sentences of the attack.
        scores: metric (``Metric.key``) → one value per example (matched); None where
            undefined.
        not_applicable: metric → why it does not fit this data.
        event: record of the ``EventSpec`` of an example; None in results of versions
            that did not keep it.
        headline: metric that ranks attacks on such examples, smaller for better ones.
        true_labels: labels of the private batch.
        guessed_labels: labels of the matched estimates.
        bound: fields of ``BoundValue`` (plus ``mse``, ``mse_standard_error`` and
            ``per_example``) or of ``RiskValue``; ``binds`` is the name of a ``Binds``.
        facts: numbers about the setting and the attack.
        privacy: what differential privacy promises of one release: ``epsilon`` (∞
            where there is no guarantee, None where it is not accounted), ``delta``,
            ``unit``, ``adjacency``, ``sampling_rate``, ``steps``, ``reasons``; None in
            results of versions that did not ask.
        released_in_clear: tensors that no defense touched; empty without a defense.
        cost: fields of ``Cost``.
        trace: rows (restart, iteration, cpu_seconds, objective).
        seconds: wall time of the whole trial, loading and scoring included.
        versions: of exhume, torch, numpy and Python.
        arrays: float32, of an attack ``truth`` and ``guess``, shape [B, *event], and
            ``best_correlation`` [B], ``best_index`` [B] and ``best_candidate``
            [B, *event] where a training was attacked; of a
            bound ``bound_map``, its value per coordinate, shape [B, *event], and
            ``prior_map``, the same if nothing were released, shape [*event].
    """

    spec: TrialSpec
    status: Literal["done", "not-applicable", "failed"]
    reason: str = ""
    baseline: bool = False
    recognises: bool = False
    outcome: tuple[str, str] | None = None
    objective: float | None = None
    objective_at_truth: float | None = None
    adaptive: bool = False
    notes: tuple[str, ...] = ()
    scores: dict[str, list[float | None]] = field(default_factory=dict)
    not_applicable: dict[str, str] = field(default_factory=dict)
    event: dict[str, Any] | None = None
    headline: str = "mse"
    true_labels: list[Any] = field(default_factory=list)
    guessed_labels: list[Any] = field(default_factory=list)
    bound: dict[str, Any] | None = None
    facts: Facts = field(default_factory=Facts)
    privacy: dict[str, Any] | None = None
    released_in_clear: tuple[str, ...] = ()
    cost: dict[str, float] = field(default_factory=dict)
    trace: tuple[tuple[int, int, float, float], ...] = ()
    seconds: float = 0.0
    versions: dict[str, str] = field(default_factory=dict)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)


# --- bounds --------------------------------------------------------------------------


@dataclass(frozen=True)
class Level:
    """One bound averaged over seeds.

    Attributes:
        value: per coordinate for a squared error, else in the units of the quantity.
        standard_error: Monte-Carlo standard error of the average.
    """

    value: float
    standard_error: float


def is_error(result: TrialResult) -> bool:
    """Say whether a trial holds a lower bound on the mean squared error."""
    return result.bound is not None and "mse" in result.bound


def binds_every_attack(result: TrialResult) -> bool:
    """Say whether a trial's bound is one that attacks may be compared with.

    A record that does not say whom it binds is of a version whose only bound binds
    every attack.
    """
    return binds(result) == _EVERY_ATTACK


def binds(result: TrialResult) -> str:
    """Name the member of ``Binds`` of a trial's bound; "" without a bound."""
    return "" if result.bound is None else result.bound.get("binds", _EVERY_ATTACK)


def level(results: Sequence[TrialResult]) -> Level | None:
    """Average one bound over its seeds; None if no seed has a value."""
    bounds = [r.bound for r in results if r.bound is not None]
    if not bounds:
        return None
    mean = [float(b["mse"] if "mse" in b else b["value"]) for b in bounds]
    errors = [
        float(b["mse_standard_error"] if "mse" in b else b["standard_error"])
        for b in bounds
    ]
    return Level(sum(mean) / len(mean), math.hypot(*errors) / len(errors))


# --- JSON ----------------------------------------------------------------------------


def dumps(value: Any) -> str:
    """Write indented JSON for others to read; tuples are lists, keys are text."""
    plain = _encode(value, exact=False)
    return json.dumps(plain, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def dump_exact(value: Any) -> str:
    """Write compact JSON that :func:`load_exact` gives back, but for tuples."""
    return json.dumps(_encode(value, exact=True), allow_nan=False)


def load_exact(text: str) -> Any:
    """Read what :func:`dump_exact` wrote.

    Raises:
        ValueError: it is not JSON.
    """
    return json.loads(text, object_hook=_decode)


def _encode(value: Any, *, exact: bool) -> Any:
    if isinstance(value, dict):
        return {str(key): _encode(item, exact=exact) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_encode(item, exact=exact) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        word = str(float(value)).replace("nan", "NaN").replace("inf", "Infinity")
        return {_MARK: word} if exact else word
    return value


def _decode(value: dict[str, Any]) -> Any:
    return float(value[_MARK]) if value.keys() == {_MARK} else value
