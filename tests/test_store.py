"""The store: what goes in comes out bit for bit, and a bad file gets a sentence."""

from __future__ import annotations

import json
import math
import os
import pickle
import sqlite3
import string
import subprocess
import sys
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from exhume.audit import TrialResult, TrialSpec
from exhume.errors import InvalidInput
from exhume.runs.records import dump_exact, dumps, load_exact
from exhume.runs.store import Store, restore

SPEC = TrialSpec(
    data={"name": "digits"},
    model={"name": "mlp", "hidden": [8]},
    defenses=({"name": "gaussian-noise", "std": 1e-3}, {"name": "clipping"}),
    attack={"name": "prior-mean"},
)
DONE = TrialResult(spec=SPEC, status="done", scores={"mse": [0.1, None]})

number = st.floats(width=64)
word = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
name = st.text(string.ascii_letters, min_size=1, max_size=6)


def named(values):
    """Draw the options of an object, its name among them."""
    options = st.dictionaries(name, values)
    return st.builds(lambda drawn, own: {**drawn, "name": own}, options, word)


results = st.builds(
    TrialResult,
    spec=st.builds(
        TrialSpec,
        data=st.just({"name": "digits"}),
        model=named(st.none() | st.booleans() | st.integers() | word),
        seed=st.integers(0, 2**62),
        defenses=st.lists(named(word), max_size=2).map(tuple),
    ),
    status=st.sampled_from(["done", "not-applicable", "failed"]),
    reason=word,
    baseline=st.booleans(),
    outcome=st.none() | st.tuples(word, word),
    objective=st.none() | number,
    objective_at_truth=st.none() | number,
    notes=st.lists(word, max_size=2).map(tuple),
    scores=st.dictionaries(name, st.lists(st.none() | number, max_size=3), max_size=2),
    true_labels=st.lists(st.integers() | number, max_size=3),
    bound=st.none() | st.dictionaries(name, number | word | st.lists(word)),
    facts=st.dictionaries(name, number, max_size=3),
    privacy=st.none() | st.dictionaries(name, st.none() | number | word, max_size=3),
    released_in_clear=st.lists(word, max_size=2).map(tuple),
    seconds=number,
    trace=st.lists(
        st.tuples(st.integers(), st.integers(), number, number), max_size=3
    ).map(tuple),
    arrays=st.dictionaries(
        st.sampled_from(["truth", "guess", "bound_map", "prior_map"]),
        arrays(np.float32, (2, 1, 2), elements=st.floats(width=32)),
    ),
)


def bits(value):
    """Tell apart what == does not: −0.0 and 0.0, 1 and True, lists and tuples."""
    if isinstance(value, dict):
        return {key: bits(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return value.dtype, value.shape, value.tobytes()
    return repr(value)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(result=results)
def test_a_result_comes_back_bit_for_bit(tmp_path, result):
    with Store(tmp_path / "r.sqlite") as store:
        store.put(result)
        found = store.get(result.spec.id)
    assert found is not None
    for f in fields(result):
        assert bits(getattr(found, f.name)) == bits(getattr(result, f.name)), f.name
    assert found.spec.id == result.spec.id


def test_a_row_of_an_older_version_still_opens(tmp_path):
    """Rows without the privacy account, whom a bound binds, and the bound's map."""
    path = tmp_path / "r.sqlite"
    old = replace(DONE, bound={"name": "b", "mse": 0.1, "mse_standard_error": 0.0})
    with Store(path) as store:
        store.put(old)
    with sqlite3.connect(path) as db:
        (text,) = db.execute("SELECT record FROM results").fetchone()
        record = json.loads(text)
        del record["privacy"]
        db.execute("UPDATE results SET record = ?", (json.dumps(record),))
    db.close()
    with Store(path, create=False) as store:
        (found,) = store.results()
    assert found.privacy is None
    assert found.bound == old.bound
    assert found.arrays == {}


def changed(path, change):
    """Rewrite the record of the only row, as another version might have written it."""
    with sqlite3.connect(path) as db:
        (text,) = db.execute("SELECT record FROM results").fetchone()
        record = json.loads(text)
        change(record)
        db.execute("UPDATE results SET record = ?", (json.dumps(record),))
    db.close()


def test_fields_of_other_versions_neither_hide_nor_fake_a_result(tmp_path):
    path = tmp_path / "r.sqlite"
    with Store(path) as store:
        store.put(DONE)
    # A result has learned to say more, and a setting got an option that is not used.
    changed(path, lambda r: r.update(energy=3.0) or r["spec"].update(server=None))
    with Store(path) as store:
        assert store.results()[0].scores == DONE.scores
    # The option is used: without it the trial would pass for another one.
    changed(path, lambda r: r["spec"].update(server="curious"))
    with sqlite3.connect(path) as db:
        db.execute("UPDATE results SET id = 'of another version'")
    db.close()
    with Store(path) as store, pytest.raises(InvalidInput, match=r"not have \(server"):
        store.results()
    changed(path, lambda r: r["spec"].pop("server") and r["spec"].pop("model"))
    with Store(path) as store, pytest.raises(InvalidInput, match="has no model; use"):
        store.results()


def test_two_kinds_of_results_share_a_file(tmp_path):
    class Second(Store):
        table = "others"

    path = tmp_path / "r.sqlite"
    with Store(path) as first:
        first.put(DONE)
    with Second(path) as second:
        assert second.ids() == set()
        second.put(replace(DONE, reason="another"))
        second.put(replace(DONE, reason="again"))
    with Store(path) as first, Second(path) as second:
        assert first.get(SPEC.id).reason == ""
        assert second.get(SPEC.id).reason == "again"
        assert (first.runs(), second.runs()) == ({SPEC.id: 1}, {SPEC.id: 2})


def test_a_dataclass_comes_back_with_the_types_that_it_declares():
    @dataclass(frozen=True)
    class Inner:
        pair: tuple[int, str]
        many: tuple[tuple[float, ...], ...] = ()

    @dataclass(frozen=True)
    class Outer:
        one: Inner
        maybe: Inner | None
        listed: list[Inner]
        named: dict[str, tuple[int, ...]]
        either: tuple[int, ...] | int | None = None
        plain: dict[str, Any] = field(default_factory=dict)
        none: Inner | None = None

    outer = Outer(
        one=Inner((1, "a"), ((0.5,), (math.inf, -math.inf))),
        maybe=Inner((2, "b")),
        listed=[Inner((3, "c"))],
        named={"x": (1, 2)},
        either=4,
        plain={"deep": [1, {"y": None}]},
    )
    with mock.patch.dict(globals(), Inner=Inner):
        assert restore(Outer, load_exact(dump_exact(asdict(outer)))) == outer


def test_what_json_lacks_has_one_spelling():
    value = {"a": (math.inf, -math.inf), "b": [math.nan], 3: 0.1}
    read = json.loads(dumps(value), parse_constant=pytest.fail)
    assert read == {"a": ["Infinity", "-Infinity"], "b": ["NaN"], "3": 0.1}
    assert float("Infinity") == math.inf
    exact = load_exact(dump_exact(value))
    assert exact["a"] == [math.inf, -math.inf]
    assert math.isnan(exact["b"][0])
    assert load_exact(dump_exact("Infinity")) == "Infinity"
    # As version 0.1.0 spelled it in its stores.
    assert load_exact('{"a": {"$float": "-inf"}}') == {"a": -math.inf}


def test_failed_rows_are_kept_but_not_finished(tmp_path):
    bad = TrialResult(spec=replace(SPEC, seed=1), status="failed", reason="why")
    absent = TrialResult(spec=replace(SPEC, seed=2), status="not-applicable")
    with Store(tmp_path / "r.sqlite") as store:
        for result in (DONE, bad, absent):
            store.put(result)
        assert store.ids() == {DONE.spec.id, bad.spec.id, absent.spec.id}
        assert store.finished() == {DONE.spec.id, absent.spec.id}
        store.put(replace(bad, status="done"))
        assert bad.spec.id in store.finished()
        assert store.runs()[bad.spec.id] == 2
        assert [r.spec.seed for r in store.results()] == [0, 1, 2]
        assert store.get("no such id") is None


def test_a_put_survives_the_death_of_its_process(tmp_path):
    path = tmp_path / "r.sqlite"
    script = (
        "import os, pickle, sys\nfrom exhume.runs.store import Store\n"
        f"store = Store({str(path)!r})\n"
        "store.put(pickle.loads(sys.stdin.buffer.read()))\nos.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], input=pickle.dumps(DONE), check=False
    )
    assert done.returncode == -9
    with Store(path, create=False) as store:
        assert store.ids() == {SPEC.id}


def test_one_process_reads_while_another_writes(tmp_path):
    path = tmp_path / "r.sqlite"
    with Store(path) as writer, Store(path) as reader:
        for seed in range(3):
            writer.put(replace(DONE, spec=replace(SPEC, seed=seed)))
            assert len(reader.results()) == seed + 1


def foreign(path):
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE photographs (id INTEGER)")
    db.close()


def newer(path):
    Store(path).close()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()


def text(path):
    path.write_text("These are not the results that you are looking for." * 50)


def damaged(path):
    with Store(path) as store:
        store.put(DONE)
    with sqlite3.connect(path) as db:
        db.execute("UPDATE results SET arrays = x'00ff'")
    db.close()


def pickled(path):
    """A row whose array is a pickle must not be executed."""
    with Store(path) as store:
        store.put(DONE)
    payload = np.array([Bomb(path.parent / "executed")], dtype=object)
    np.savez(path.parent / "bomb.npz", truth=payload)
    with sqlite3.connect(path) as db:
        blob = (path.parent / "bomb.npz").read_bytes()
        db.execute("UPDATE results SET arrays = ?", (blob,))
    db.close()


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (foreign, "a database of another program"),
        (newer, "has format 99, this version of exhume reads format 1"),
        (text, "is not a store of results, or is damaged"),
        (damaged, "is not a store of results, or is damaged"),
        (pickled, "is not a store of results, or is damaged"),
    ],
)
def test_a_bad_file_gets_one_sentence_and_is_left_alone(tmp_path, spoil, sentence):
    path = tmp_path / "r.sqlite"
    spoil(path)
    before = path.read_bytes()
    with pytest.raises(InvalidInput, match=sentence), Store(path) as store:
        store.results()
    assert path.read_bytes() == before
    assert not (tmp_path / "executed").exists()


def test_absent_results_and_folders_are_told(tmp_path):
    with pytest.raises(InvalidInput, match="run an audit first"):
        Store(tmp_path / "r.sqlite", create=False)
    assert not (tmp_path / "r.sqlite").exists()
    with pytest.raises(InvalidInput, match="cannot be used"):
        Store(tmp_path / "no" / "folder" / "r.sqlite")
