"""Ids of stored results: a folder of an earlier version finds its trials again.

An id is a hash of a complete spec: a renamed option, a changed default or a new field
that is not left out of the record changes it, and every stored result with it runs
again. ``tests/golden/spec_ids.json`` holds ids that version 0.1.0 computed (commit
c1d5f69): of the trials of the shipped audits, of what the default comparison, the
theory runs and each recipe would run, and of one trial with each registered object and
its default options. It maps a label to the first 16 digits of an id; behind the id of a
trial stands that of its setting. A group of specs has the hash of their ids.

Where a change of ids is meant, or a new name joins, write the file again::

    python tests/test_golden_ids.py
"""

import hashlib
import json
from collections import defaultdict
from dataclasses import MISSING, fields, replace
from pathlib import Path

from exhume.audit import AuditSettings, TrialSpec
from exhume.audit.settings import (
    Checked,
    example_names,
    example_settings,
    expand,
)
from exhume.compare import CompareSettings
from exhume.compare.run import attack_settings as compared_attacks
from exhume.compare.run import prepared
from exhume.config import validate
from exhume.problem.presets import PRESETS
from exhume.recipes import load, names
from exhume.recipes.book import reduced
from exhume.recipes.curves import attack_settings, training_specs
from exhume.registry import find
from exhume.registry import names as registered
from exhume.theory.plan import points
from exhume.theory.settings import TheorySettings
from exhume.theory.settings import full_settings as full_theory

GOLDEN = Path(__file__).parent / "golden" / "spec_ids.json"
#: values of options that have no default, by the name of the option
REQUIRED = {
    "batch_size": 1,
    "clients": 2,
    "kind": "sign",
    "max_abs": 1.0,
    "max_norm": 1.0,
    "noise_multiplier": 1.0,
    "path": "DATA",
    "ratio": 0.5,
    "std": 0.1,
}
CHANCE = {"attack": {"name": "prior-mean"}}
#: fields of a trial that have a default, away from it
FIELDS = {
    "loss": "mse",
    "mode": "train",
    "dtype": "float64",
    "classes": 3,
    "batch_size": 2,
    "seed": 7,
    "public_examples": 5,
}


def short(spec):
    """Return an id, and that of the setting where there is one, 16 digits each."""
    setting = [spec.setting] if isinstance(spec, TrialSpec) else []
    return " ".join(text[:16] for text in (spec.id, *setting))


def digest(specs):
    """Return the hash of the ids of a group, in their order, and how many they are."""
    text = " ".join(spec.id for spec in specs)
    return f"{hashlib.sha256(text.encode()).hexdigest()[:16]} of {len(specs)}"


def method(spec):
    """Name what a trial runs."""
    kind = "attack" if spec.attack else "bound"
    return f"{kind} {getattr(spec, kind)['name']}"


def numbered(stacks):
    """Give each stack of defenses a label, by its place and its names."""
    different = {json.dumps(stack): stack for stack in stacks}
    return {
        key: " ".join([str(place), *(options["name"] for options in stack)])
        for place, (key, stack) in enumerate(different.items())
    }


def by_method(label, settings):
    """Group the trials of an audit by what they run."""
    groups = defaultdict(list)
    for spec in expand(settings):
        groups[f"{label}, {method(spec)}"].append(spec)
    return {name: digest(specs) for name, specs in groups.items()}


def audits():
    """Give each trial of the first seed, and all trials of each shipped audit."""
    shipped = {"default": AuditSettings.shipped()}
    shipped |= {name: example_settings(name) for name in example_names()}
    table = {}
    for name, settings in shipped.items():
        specs = expand(settings)
        stacks = numbered([spec.defenses for spec in specs])
        first = specs[0].seed
        for spec in specs:
            if spec.seed == first:
                stack = stacks[json.dumps(spec.defenses)]
                table[f"audit {name}, {method(spec)}, defenses {stack}"] = short(spec)
        table[f"audit {name}, all"] = digest(specs)
    return table


def comparison(label, settings):
    """Give measurements and trials of each family at three strengths."""
    loss, found = prepared(settings)
    table = {f"{label}, utility, no defense": digest(loss.specs(()))}
    stacks = []
    for place, family in enumerate(found):
        name = " ".join([str(place), *(options["name"] for options in family.stack)])
        chosen = [family.at(family.strength(position)) for position in (0.0, 0.5, 1.0)]
        specs = [spec for stack in chosen for spec in loss.specs(stack)]
        table[f"{label}, utility, family {name}"] = digest(specs)
        stacks += [list(stack) for stack in chosen]
    attacks = replace(compared_attacks(settings, []), defenses=[[], *stacks])
    return table | by_method(label, attacks)


def theories():
    """Give the points of each experiment."""
    table = {}
    for label, settings in (
        ("theory default", TheorySettings.shipped()),
        ("theory full", full_theory("DATA")),
    ):
        for place, experiment in enumerate(settings.experiments):
            name = f"{label}, {place} {experiment.row} over {experiment.sweep}"
            table[name] = digest(points(settings, experiment))
    first = points(TheorySettings.shipped(), TheorySettings.shipped().experiments[0])[0]
    return table | {"theory default, first point": short(first)}


def recipes():
    """Give the trials and trainings of each recipe, as published and reduced."""
    table = {}
    for name in names():
        for version, recipe in (
            ("full", load(name)),
            ("reduced", reduced(load(name))[0]),
        ):
            label = f"recipe {name}, {version}"
            source = {**recipe.data, **({"path": "DATA"} if recipe.place else {})}
            if recipe.compare:
                given = {**recipe.compare, "title": recipe.title, "data": source}
                settings = validate(CompareSettings, given, what=name)
                table |= comparison(label, settings)
                continue
            settings = attack_settings(recipe, name, {"data": source})
            table |= by_method(label, settings)
            trained = training_specs(recipe, settings, source).values()
            table[f"{label}, trainings"] = digest([s for some in trained for s in some])
    return table


def defaults(kind, name):
    """Return complete options of a registered object, required ones from the table."""
    given = {
        field.name: REQUIRED[field.name]
        for field in fields(find(kind, name))
        if field.init and field.default is MISSING and field.default_factory is MISSING
    }
    checked = Checked()
    options = checked.options(kind, {"name": name, **given})
    checked.report()
    return options


def members():
    """Give one trial for each registered object with its default options."""
    plain = {
        "data": defaults("data", "digits"),
        "model": defaults("model", "mlp"),
        "observation": defaults("observation", "gradient"),
    }
    kinds = ("attack", "bound", "data", "defense", "model", "observation", "prior")
    table = {}
    for kind in kinds:
        for name in registered(kind):
            options = defaults(kind, name)
            given = {"defenses": (options,)} if kind == "defense" else {kind: options}
            runs = {} if kind in ("attack", "bound") else CHANCE
            table[f"{kind} {name}"] = short(TrialSpec(**{**plain, **runs, **given}))
    for name in PRESETS:
        spec = TrialSpec(**plain, **CHANCE, threat=name)
        table[f"threat model {name}"] = short(spec)
    for name, value in FIELDS.items():
        spec = TrialSpec(**plain, **CHANCE, **{name: value})
        table[f"trial with {name} {value}"] = short(spec)
    return table


def table():
    """Compute every line of the file."""
    return {
        **audits(),
        **comparison("compare default", CompareSettings.shipped()),
        **theories(),
        **recipes(),
        **members(),
    }


def test_ids_of_stored_results_are_those_of_the_first_version():
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    today = table()
    changed = [label for label, ids in golden.items() if today.get(label) != ids]
    assert not changed, (
        f"{len(changed)} of {len(golden)} ids changed, so stored runs would run again; "
        f"keep names and defaults of what is hashed, or leave a new field out of the "
        f"record while it has its default: {'; '.join(changed[:20])}"
    )


if __name__ == "__main__":
    GOLDEN.parent.mkdir(exist_ok=True)
    text = json.dumps(table(), indent=0, sort_keys=True, ensure_ascii=False)
    GOLDEN.write_text(text + "\n", encoding="utf-8")
