"""Where recipes are: beside the package in a checkout, inside of it when installed."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from exhume.config import validate
from exhume.errors import InvalidInput, UnknownName
from exhume.recipes.recipe import Recipe, Series, Training, differences, merged
from exhume.registry import did_you_mean
from exhume.runs.settings import read_toml

__all__ = ["folder", "load", "names", "path_of", "placed", "reduced"]


def folder() -> Path:
    """Return the folder of the recipes.

    Raises:
        InvalidInput: this installation has none.
    """
    package = Path(__file__).parent
    for found in (package / "files", package.parents[2] / "recipes"):
        if found.is_dir():
            return found
    msg = "this installation has no recipes; install exhume again, or give a file"
    raise InvalidInput(msg)


def names() -> list[str]:
    """List the recipes by name, sorted."""
    return sorted(path.stem for path in folder().glob("*.toml"))


def path_of(name: str) -> Path:
    """Return the file of a recipe.

    Args:
        name: of a recipe, or the path of a TOML file.

    Raises:
        UnknownName: no recipe is called so.
    """
    if name.endswith(".toml"):
        return Path(name)
    if name not in names():
        raise UnknownName(did_you_mean("recipe", name, names()))
    return folder() / f"{name}.toml"


def load(name: str) -> Recipe:
    """Read a recipe.

    Args:
        name: of a recipe, or the path of a TOML file.

    Raises:
        UnknownName: no recipe is called so.
        InvalidInput: the file is missing, or has a key or value that is not known.
    """
    given = read_toml(path_of(name))
    series = [
        validate(Series, item, what=f"{name}, series {item.get('name', '')!r}")
        for item in given.pop("series", [])
    ]
    training: Any = given.pop("training", None)
    if training is not None:
        training = validate(Training, training, what=f"{name}, [training]")
    parts = {"series": series, "training": training}
    recipe = validate(Recipe, {**given, **parts}, what=name)
    reduced(recipe)
    return recipe


def reduced(recipe: Recipe) -> tuple[Recipe, list[str]]:
    """Return the version that runs by default, and in words what is less in it.

    Raises:
        InvalidInput: the reduced settings do not fit the full ones.
    """
    less = recipe.reduced
    told = []
    changed: dict[str, Any] = {}
    for table in ("audit", "compare"):
        changed[table] = merged(getattr(recipe, table), less.get(table, {}))
        told += differences(getattr(recipe, table), changed[table])
    if recipe.training is not None:
        full = vars(recipe.training)
        fewer = merged(full, less.get("training", {}))
        changed["training"] = validate(Training, fewer, what="[reduced.training]")
        told += [f"training, {line}" for line in differences(full, fewer)]
    if "strengths" in less:
        kept = [_thinned(series, less["strengths"]) for series in recipe.series]
        changed["series"] = kept
        told += [
            f"strengths of {old.name}: {old.strengths} → {new.strengths}"
            for old, new in zip(recipe.series, kept, strict=True)
            if old.strengths != new.strengths
        ]
    return replace(recipe, **changed, reduced={}), told


def _thinned(series: Series, count: int) -> Series:
    """Keep some strengths, evenly spaced, the ends among them."""
    total = len(series.strengths)
    if not 2 <= count <= total:
        msg = (
            f"[reduced] strengths is {count}; the series {series.name!r} has {total}, "
            f"so expected 2 to {total}"
        )
        raise InvalidInput(msg)
    kept = [round(i * (total - 1) / (count - 1)) for i in range(count)]

    def thin(stack: list[Any]) -> list[Any]:
        return [
            {k: [v[i] for i in kept] if _is_list(v) else v for k, v in options.items()}
            if isinstance(options, dict)
            else options
            for options in stack
        ]

    return replace(series, defense=thin(series.defense), training=thin(series.training))


def _is_list(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(v, int | float) for v in value)


def placed(recipe: Recipe, path: str | None) -> dict[str, Any]:
    """Return the data source with its path.

    Args:
        recipe: names the data and the environment variable of their place.
        path: of the data; None takes the environment variable.

    Raises:
        InvalidInput: nobody says where the data are.
    """
    if not recipe.place:
        if path:
            msg = f"the data {recipe.data['name']!r} come with exhume; leave --data out"
            raise InvalidInput(msg)
        return dict(recipe.data)
    found = path or os.environ.get(recipe.place)
    if not found:
        msg = (
            f"this recipe needs the data set {recipe.data['name']!r}, which is not "
            f"downloaded; say where it is with --data PATH, or in the environment "
            f"variable {recipe.place}"
        )
        raise InvalidInput(msg)
    return {**recipe.data, "path": str(Path(found).expanduser().resolve())}
