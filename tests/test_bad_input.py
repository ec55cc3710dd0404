"""Bad input gives one clear sentence and exit code 2, and runs no code of a file."""

import io
import os
import pickle
import sys
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save, save_file
from typer.testing import CliRunner

from exhume.cli import app
from exhume.data.npz import Npz
from exhume.errors import InvalidInput
from exhume.files import kind_of, read_header
from exhume.observations.file import load, load_tensors

NET = """
import torch
from torch import nn

def build():
    return nn.Sequential(nn.Linear(6, 4), nn.Sigmoid(), nn.Linear(4, 3))

def number():
    return 3

def broken():
    raise RuntimeError("no weights here")
"""


class Bomb:
    """Unpickling it makes a file in the working directory."""

    def __reduce__(self):
        return os.mkdir, ("exploded",)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory with an earlier run in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "badnet", raising=False)
    (tmp_path / "badnet.py").write_text(NET)
    run = tmp_path / "runs" / "earlier"
    run.mkdir(parents=True)
    for name in ("results.sqlite", "audit.toml", "report.html"):
        (run / name).write_bytes(b"earlier " + name.encode())
    return tmp_path


def gradient():
    return {
        "0.weight": torch.ones(4, 6),
        "0.bias": torch.ones(4),
        "2.weight": torch.ones(3, 4),
        "2.bias": torch.tensor([0.5, -1.0, 0.5]),
    }


def snapshot(folder):
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def refused(here, *arguments):
    """Run a command that must fail; return its one sentence."""
    before = snapshot(here / "runs")
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == 2, result.output + repr(result.exception)
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.stderr
    assert snapshot(here / "runs") == before
    assert not (here / "exploded").exists()
    return result.stderr


def refused_update(here, tensors, *more):
    save_file(tensors, here / "u.safetensors")
    return refused(here, *attack("u.safetensors"), *more)


def attack(update, model="badnet:build"):
    return (
        *("attack", "prior-mean", "--model", model, "--update", update),
        *("--mode", "eval", "--shape", "6", "--batch-size", "1"),
        *("--out", "runs/earlier/answer"),
    )


def test_nan_update(here):
    tensors = gradient()
    tensors["2.bias"][1] = float("nan")
    text = refused_update(here, tensors)
    assert "tensor '2.bias': 1 of 3 values are NaN or inf" in text


def test_missing_tensor(here):
    tensors = gradient()
    del tensors["0.bias"]
    assert "'0.bias' is missing (expected shape [4])" in refused_update(here, tensors)


def test_wrong_shape(here):
    tensors = gradient() | {"2.weight": torch.ones(4, 3)}
    text = refused_update(here, tensors)
    assert "'2.weight' has shape [4, 3], not [3, 4]; it looks transposed" in text


def test_integer_update(here):
    tensors = {n: torch.ones(t.shape, dtype=torch.int64) for n, t in gradient().items()}
    assert "a gradient is floating" in refused_update(here, tensors)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('attacks = ["gaus-newton"]', "did you mean 'gauss-newton'"),
        ('attaks = ["gauss-newton"]', "did you mean 'attacks'"),
        ('data = "face"', "did you mean 'faces'"),
        ('attacks = [{name = "gauss-newton", iteration = 3}]', "'iterations'"),
        ('attacks = [{name = "gauss-newton", iterations = 0}]', "at least 1"),
        ('threat = "omniscient"', "no threat model is called 'omniscient'"),
        ('data = {name = "folder", path = "nowhere"}', "nothing at 'nowhere'"),
        ('data = {name = "folder", path = "empty"}', "holds no image"),
        ("batch_size = -1", "at least 1"),
        ("batch_size = [", "not valid TOML"),
    ],
)
def test_bad_audit_file(here, line, message):
    (here / "empty").mkdir()
    (here / "a.toml").write_text(line)
    assert message in refused(here, "audit", "a.toml", "--out", "runs/earlier")


def test_a_run_folder_with_a_foreign_database_is_left_alone(here):
    (here / "a.toml").write_text('attacks = ["analytic-linear"]\nprior = "none"')
    text = refused(here, "audit", "a.toml", "--out", "runs/earlier")
    assert "is not a store of results" in text


def test_audit_file_that_is_missing_or_binary(here):
    assert "there is no file nowhere.toml" in refused(here, "audit", "nowhere.toml")
    (here / "b.toml").write_bytes(b"\xff\xfe\0\0")
    assert "cannot be read as text" in refused(here, "audit", "b.toml")


def truncations():
    whole = save(gradient(), metadata={"a": "b"})
    return [whole[:5], whole[:40], whole[:-4], whole + b"more", b"\xff" * 30]


@pytest.mark.parametrize("content", truncations())
@pytest.mark.parametrize("command", ["attack", "inspect"])
def test_truncated_safetensors(here, content, command):
    (here / "t.safetensors").write_bytes(content)
    whole = {"attack": attack, "inspect": lambda file: ("inspect", file)}[command]
    text = refused(here, *whole("t.safetensors"))
    assert "is not a complete safetensors file" in text


def test_every_prefix_of_a_safetensors_file_is_refused_in_a_sentence(tmp_path):
    whole = save(gradient())
    path = tmp_path / "p.safetensors"
    for length in range(1, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(InvalidInput):
            read_header(path)
        with pytest.raises(InvalidInput):
            load(path)


def test_missing_empty_and_folder(here):
    (here / "e.safetensors").touch()
    assert "is empty" in refused(here, "inspect", "e.safetensors")
    assert "there is no file" in refused(here, "inspect", "nowhere.npz")
    assert "is a folder" in refused(here, *attack("runs"))
    assert "without results.sqlite" in refused(here, "inspect", "runs")
    (here / "empty").mkdir()
    assert "not the folder of a run" in refused(here, "report", "empty")
    assert "not the folder of a run" in refused(here, "report", "nowhere")


def test_report_and_inspect_of_a_damaged_run(here):
    assert "earlier/audit.toml is not valid TOML" in refused(
        here, "report", "runs/earlier"
    )
    assert "not a file that exhume knows" in refused(here, "inspect", "runs/earlier")


def pickles(here):
    """The ways in which a pickle comes: bare, legacy, zipped; under any name."""
    torch.save({"w": Bomb()}, here / "zip.pt")
    torch.save({"w": Bomb()}, here / "old.pth", _use_new_zipfile_serialization=False)
    (here / "bare.pkl").write_bytes(pickle.dumps(Bomb()))
    for source in ("zip.pt", "old.pth", "bare.pkl"):
        for suffix in (".safetensors", ".npz", ".pt"):
            copy = here / f"{source}{suffix}"
            copy.write_bytes((here / source).read_bytes())
            yield copy


def test_pickles_are_never_opened(here):
    for path in pickles(here):
        assert kind_of(path) == "pickle"
        for arguments in (
            ("inspect", path),
            attack(path),
            (*attack("x.safetensors")[:4], "--data", path, "--mode", "eval"),
            (*attack("x.safetensors"), "--weights", path),
        ):
            text = refused(here, *arguments)
            assert "is a Python pickle" in text
            assert "safetensors.torch.save_file" in text
        for loader in (load, load_tensors, read_header):
            with pytest.raises(InvalidInput, match="pickle"):
                loader(path)
        with pytest.raises(InvalidInput, match="never loaded"):
            Npz(path=str(path)).load()
    assert not (here / "exploded").exists()


def test_no_safetensors_file_is_taken_for_a_pickle(tmp_path):
    # Its first bytes are the length of a header: 384 is 0x80 0x01, like a pickle.
    path, lengths = tmp_path / "s.safetensors", set()
    for letters in range(1, 1500, 5):
        path.write_bytes(save({"w" * letters: torch.zeros(1)}))
        lengths.add(int.from_bytes(path.read_bytes()[:8], "little"))
        assert kind_of(path) == "safetensors"
    assert {128, 384, 640, 896, 1152, 1408} <= lengths


def test_a_pickle_in_the_place_of_results_is_never_opened(here):
    folder = here / "runs" / "other"
    folder.mkdir()
    (folder / "audit.toml").write_text('attacks = ["analytic-linear"]')
    (folder / "results.sqlite").write_bytes(pickle.dumps(Bomb()))
    assert "is not a store of results" in refused(here, "report", folder)
    assert "is a Python pickle" in refused(here, "inspect", folder)


def test_pickled_arrays_in_an_npz_are_never_opened(here):
    targets = np.zeros(1, dtype=np.int64)
    np.savez(here / "o.npz", inputs=np.array([Bomb()], dtype=object), targets=targets)
    assert "holds Python objects" in refused(here, "inspect", "o.npz")
    arguments = (*attack("x.safetensors")[:4], "--data", "o.npz", "--mode", "eval")
    assert "pickled objects are never loaded" in refused(here, *arguments)


def test_damaged_npz(here):
    stream = io.BytesIO()
    np.savez(stream, inputs=np.zeros((2, 6)))
    (here / "cut.npz").write_bytes(stream.getvalue()[:-30])
    assert "not a complete .npz file" in refused(here, "inspect", "cut.npz")
    with zipfile.ZipFile(here / "odd.npz", "w") as archive:
        archive.writestr("a.npy", b"not an array")
    assert "not a complete .npz file" in refused(here, "inspect", "odd.npz")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("badnet", "expected package.module:function"),
        ("nowhere:build", "ModuleNotFoundError"),
        ("badnet:nothing", "has no attribute 'nothing'"),
        ("badnet:number", "returned int; expected a torch.nn.Module"),
        ("badnet:broken", "failed with RuntimeError: no weights here"),
    ],
)
def test_bad_model(here, model, message):
    save_file(gradient(), here / "u.safetensors")
    assert message in refused(here, *attack("u.safetensors", model))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--option", "x"), "expected key=value"),
        (("--labels", "a,b"), "expected numbers with commas"),
        (("--labels", "1,2"), "2 labels, but the batch size is 1"),
        (("--range", "0,1,2"), "expected two numbers"),
        (("--range", "1,0"), "is empty"),
        (("--scale", "0"), "--scale is 0"),
        (("--mode", "test"), "expected 'eval' or 'train'"),
        (("--loss", "hinge"), "no loss is called 'hinge'; known: "),
        (("--mean", "0.5"), "give both --mean and --std"),
        (("--prior", "gaussian"), "give --public too"),
        (("--public", "nowhere"), "no data called 'nowhere'"),
        (("--public", "digits"), "use data of one shape"),
        (("--threat", "nobody"), "no threat model is called"),
    ],
)
def test_bad_words_about_an_update(here, more, message):
    assert message in refused_update(here, gradient(), *more)


def test_what_the_file_and_the_user_do_not_say_is_asked_for(here):
    save_file(gradient(), here / "u.safetensors")
    base = attack("u.safetensors")[:6]
    assert "give --shape" in refused(here, *base, "--mode", "eval")
    assert "give --mode" in refused(here, *base, "--shape", "6")
    text = refused(here, *base, "--shape", "6", "--mode", "eval")
    assert "give --batch-size" in text
    assert "give --update, or --before and --after, or --trained" in refused(
        here, *base[:4]
    )


def test_debug_shows_where(here):
    result = CliRunner().invoke(app, ["--debug", "inspect", "nowhere"])
    assert isinstance(result.exception, InvalidInput)


def test_usage_errors_exit_with_two():
    for arguments in (["audit", "--workers", "x"], ["lst"], ["attack"], ["list", "x"]):
        assert CliRunner().invoke(app, arguments).exit_code == 2
