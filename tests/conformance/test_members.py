"""Conformance of all registered classes: plain documented data, found by name."""

from __future__ import annotations

import dataclasses
import inspect
import os
import pickle
import random
from functools import cache

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from exhume import registry
from exhume.cli import app
from exhume.cli.catalogue import page
from exhume.cli.list import LISTED
from exhume.config import build, describe
from exhume.report.page import citations

MEMBERS = [(kind, name) for kind in registry.KINDS for name in registry.names(kind)]
every_member = pytest.mark.parametrize(
    ("kind", "name"), MEMBERS, ids=[f"{kind}-{name}" for kind, name in MEMBERS]
)


@every_member
def test_a_member_is_a_frozen_documented_dataclass(kind, name):
    cls = registry.find(kind, name)
    assert dataclasses.is_dataclass(cls)
    assert cls.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert cls.__doc__
    assert registry.registered_name(cls) == name
    entry = registry.entry(kind, name)
    assert entry in registry.entries(kind)
    assert entry.summary.endswith(".")
    assert len(entry.summary) <= 88
    assert cls.bibtex.count("{") == cls.bibtex.count("}")
    assert cls.bibtex == "" or cls.bibtex.strip().startswith("@")


@every_member
def test_its_examples_are_plain_data(kind, name):
    examples = registry.find(kind, name).examples()
    assert examples
    for example in examples:
        described = describe(example)
        assert described["name"] == name
        assert build(kind, described) == example
        assert pickle.loads(pickle.dumps(example)) == example


@every_member
def test_it_is_listed_and_cited(kind, name):
    cls = registry.find(kind, name)
    (plural,) = [listed for listed, singular in LISTED.items() if singular == kind]
    shown = CliRunner().invoke(app, ["list", plural, name])
    assert shown.exit_code == 0
    assert registry.entry(kind, name).summary.split()[0] in shown.output
    options = [f.name for f in dataclasses.fields(cls) if f.name in vars(cls)]
    assert all(option in shown.output for option in options)
    assert f'<a id="{plural}-{name}"></a>' in catalogue()
    cited = citations([(kind, describe(cls.examples()[0]))])
    assert cls.bibtex.strip() == "" or "@" in cited


@cache
def catalogue() -> str:
    return page()


def global_state():
    return (
        random.getstate(),
        np.random.get_state()[1].tolist(),  # type: ignore[index]  # noqa: NPY002
        torch.get_rng_state().tolist(),
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        os.getcwd(),
    )


@every_member
def test_s18_making_it_touches_nothing(kind, name, tmp_path, monkeypatch):
    cls = registry.find(kind, name)
    files, own = tmp_path / "files", tmp_path / "own"
    files.mkdir()
    own.mkdir()
    takes_folder = "folder" in inspect.signature(cls.examples).parameters
    examples = cls.examples(files) if takes_folder else cls.examples()
    monkeypatch.chdir(own)
    for example in examples:
        if kind == "data":
            example.load()  # libraries that are imported now may draw for themselves
    before = global_state()
    for example in examples:
        made = build(kind, describe(example))
        if kind == "data":
            made.load()
    assert global_state() == before
    assert not list(own.iterdir())
