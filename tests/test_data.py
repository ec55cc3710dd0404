"""Loaders: conformance over the registry, broken files, the private/public split."""

import gzip
import pickle
import re
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from exhume import Batch, EventSpec, dataset
from exhume.data._files import evenly_spaced
from exhume.data._images import luminance, resized, short_side_to
from exhume.errors import InvalidInput
from exhume.problem.source import DataSource
from exhume.registry import find, names
from exhume.trials.world import split

SHARED = Path(__file__).parents[2] / "shared" / "data"


def write_idx(path, array, magic=None):
    head = bytes([0, 0, 8, array.ndim]) if magic is None else magic
    content = head + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_mnist(folder, suffix="", count=6, prefix="t10k"):
    pixels = np.arange(count * 20, dtype=np.uint8).reshape(count, 5, 4)
    write_idx(folder / f"{prefix}-images-idx3-ubyte{suffix}", pixels)
    labels = (np.arange(count) % 10).astype(np.uint8)
    write_idx(folder / f"{prefix}-labels-idx1-ubyte{suffix}", labels)
    return pixels, labels


def cifar_records(count, offset=0):
    rng = np.random.default_rng(offset)
    records = rng.integers(0, 256, (count, 3073), dtype=np.uint8)
    records[:, 0] = np.arange(count) % 10
    return records


def write_cifar(folder):
    folder.mkdir(exist_ok=True)
    for i in range(1, 6):
        cifar_records(2, i).tofile(folder / f"data_batch_{i}.bin")
    cifar_records(7).tofile(folder / "test_batch.bin")


def write_image(path, size=(12, 10), mode="RGB", seed=0):
    channels = {"RGB": (3,), "L": ()}[mode]
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (size[1], size[0], *channels), dtype=np.uint8)
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(pixels).save(path)
    return pixels


@pytest.mark.parametrize("name", names("data"))
def test_images_lie_in_the_unit_range(name, tmp_path):
    for source in find("data", name).examples(tmp_path):
        batch = source.load()
        if batch.spec.grid is not None:
            assert (batch.spec.low, batch.spec.high) == (0, 1)
            assert float(batch.inputs.std()) > 0.05


@pytest.mark.parametrize("name", ["cifar10", "folder", "mnist", "npz"])
def test_a_missing_path_is_one_sentence(name, tmp_path):
    with pytest.raises(InvalidInput, match=r"there is nothing at .*working directory"):
        dataset(name, path=str(tmp_path / "absent")).load()
    with pytest.raises(InvalidInput, match="limit is 0"):
        dataset(name, path=".", limit=0)


# What ships with the dependencies.


def test_faces():
    source = dataset("faces")
    batch = source.load()
    assert batch.inputs.shape == (200, 1, 25, 25)
    assert batch.targets.tolist() == [1] * 100 + [0] * 100
    assert source.private_pool(batch) == list(range(100))
    alone = dataset("faces", include="faces").load()
    assert torch.equal(alone.inputs, batch.inputs[:100])
    # Faces are brighter in the middle than at the rim; most backgrounds are not.
    middle = batch.inputs[..., 8:17, 8:17].mean(dim=(1, 2, 3))
    brighter = (middle > batch.inputs.mean(dim=(1, 2, 3))).float()
    assert brighter[:100].mean() > brighter[100:].mean() + 0.2


def test_photos():
    batch = dataset("photos").load()
    assert batch.inputs.shape == (88, 3, 32, 32)
    assert batch.targets.bincount().tolist() == [16, 24, 24, 24]
    assert torch.equal(batch.targets, batch.targets.sort().values)
    gray = dataset("photos", gray=True).load()
    assert gray.inputs.shape == (88, 1, 32, 32)
    overlapping = dataset("photos", stride=16).load()
    assert len(overlapping) > 3 * len(batch)
    assert bool(batch.found_in(overlapping).all())
    assert dataset("photos", size=16, rows=2).load().inputs.shape == (22, 3, 16, 16)


def test_the_crops_of_a_photo_tile_it():
    from skimage.data import astronaut

    batch = dataset("photos").load().inputs[:16]
    tiled = batch.reshape(4, 4, 3, 32, 32).permute(2, 0, 3, 1, 4).reshape(3, 128, 128)
    blocks = torch.from_numpy(astronaut()).reshape(128, 4, 128, 4, 3).double()
    expected = blocks.mean((1, 3)).permute(2, 0, 1) / 255
    torch.testing.assert_close(tiled.double(), expected, rtol=0, atol=1e-6)


def test_medical():
    batch = dataset("medical").load()
    assert batch.inputs.shape == (128, 3, 32, 32)
    assert batch.targets.bincount().tolist() == [64, 64]
    # The black rim of the retina is outside of every patch.
    assert float(batch.inputs[:64, 0].flatten(1).mean(1).min()) > 0.3


def test_digits():
    batch = dataset("digits").load()
    assert batch.inputs.shape == (1797, 1, 8, 8)
    assert sorted(set((batch.inputs * 16).flatten().tolist())) == list(range(17))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("photos", {"size": 0}, "size × rows"),
        ("photos", {"size": 400}, "300 pixels"),
        ("photos", {"stride": 0}, "stride is 0"),
        ("medical", {"rows": 40}, "512 pixels"),
        ("faces", {"include": "cats"}, "include"),
        ("folder", {"path": ".", "size": 0}, "size is 0"),
        ("npz", {"path": ".", "low": 0.0}, "both ends"),
        ("mnist", {}, "path"),
    ],
)
def test_options_out_of_range_are_refused(name, options, message):
    with pytest.raises(InvalidInput, match=message):
        dataset(name, **options)


# MNIST.


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize(("part", "prefix"), [("test", "t10k"), ("train", "train")])
def test_mnist_reads_the_official_files(tmp_path, suffix, part, prefix):
    pixels, labels = write_mnist(tmp_path, suffix, prefix=prefix)
    batch = dataset("mnist", path=str(tmp_path), split=part).load()
    assert np.array_equal((batch.inputs[:, 0] * 255).round().numpy(), pixels)
    assert batch.targets.tolist() == labels.tolist()
    few = dataset("mnist", path=str(tmp_path), split=part, limit=3).load()
    assert few.targets.tolist() == [0, 2, 4]


def broken_mnist(kind, folder):
    images = folder / "t10k-images-idx3-ubyte"
    labels = folder / "t10k-labels-idx1-ubyte"
    write_mnist(folder)
    if kind == "no images":
        images.unlink()
    if kind == "wrong magic":
        write_idx(images, np.zeros((6, 5, 4), np.uint8), magic=b"\x80\x02}q")
    if kind == "labels for images":
        images.write_bytes(labels.read_bytes())
    if kind == "cut short":
        images.write_bytes(images.read_bytes()[:-1])
    if kind == "surplus":
        images.write_bytes(images.read_bytes() + b"\0")
    if kind == "empty":
        images.write_bytes(b"")
    if kind == "header only":
        images.write_bytes(images.read_bytes()[:9])
    if kind == "other count":
        write_idx(labels, np.zeros(5, np.uint8))
    if kind == "absurd header":
        images.write_bytes(bytes([0, 0, 8, 3]) + b"\xff" * 12 + b"\0" * 20)
    if kind in ("truncated gzip", "not gzip", "damaged gzip"):
        content = bytearray(gzip.compress(images.read_bytes()))
        if kind == "damaged gzip":
            content[-20:-10] = bytes(10)
        if kind == "not gzip":
            content = b"plain text"
        if kind == "truncated gzip":
            content = content[:-12]
        images.with_name(images.name + ".gz").write_bytes(content)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("no images", "holds neither t10k-images-idx3-ubyte.gz nor"),
        ("wrong magic", "starts with 80027d71"),
        ("labels for images", "starts with 00000801"),
        ("cut short", "119 values, but its header says"),
        ("surplus", "121 values"),
        ("empty", "starts with nothing"),
        ("header only", "cut short"),
        ("other count", "6 images but 5 labels"),
        ("absurd header", "its header says"),
        ("truncated gzip", "cannot be decompressed"),
        ("not gzip", "cannot be decompressed"),
        ("damaged gzip", "cannot be decompressed"),
    ],
)
def test_broken_mnist_files_are_explained(tmp_path, kind, message):
    broken_mnist(kind, tmp_path)
    with pytest.raises(InvalidInput, match=message) as caught:
        dataset("mnist", path=str(tmp_path)).load()
    assert "\n" not in str(caught.value)


def test_mnist_wants_a_folder(tmp_path):
    file = tmp_path / "x.gz"
    file.write_bytes(b"x")
    with pytest.raises(InvalidInput, match="is a file; expected the folder"):
        dataset("mnist", path=str(file)).load()


@pytest.mark.shared_data
def test_the_real_mnist():
    folder = SHARED / "mnist"
    if not folder.is_dir():
        pytest.skip("the development data are not beside the checkout")
    batch = dataset("mnist", path=str(folder)).load()
    assert batch.inputs.shape == (10_000, 1, 28, 28)
    assert batch.targets[:5].tolist() == [7, 2, 1, 0, 4]
    assert batch.targets.bincount()[:3].tolist() == [980, 1135, 1032]
    assert float(batch.inputs.mean()) == pytest.approx(0.1325, abs=1e-4)


# CIFAR-10.


@pytest.mark.parametrize("nested", [False, True])
def test_cifar10_reads_the_binary_version(tmp_path, nested):
    write_cifar(tmp_path / "cifar-10-batches-bin" if nested else tmp_path)
    test = dataset("cifar10", path=str(tmp_path)).load()
    expected = cifar_records(7)
    assert np.array_equal(
        (test.inputs * 255).round().numpy().reshape(7, -1), expected[:, 1:]
    )
    assert test.targets.tolist() == expected[:, 0].tolist()
    train = dataset("cifar10", path=str(tmp_path), split="train").load()
    assert len(train) == 10
    last = cifar_records(2, 5)[:, 1:].reshape(-1, 3, 32, 32)
    assert np.array_equal((train.inputs[-2:] * 255).round().numpy(), last)


class Bomb:
    """A pickle that would write a file if anything loaded it."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_the_python_version_of_cifar10_is_refused_without_loading(tmp_path):
    trace = tmp_path / "executed"
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in ("data_batch_1", "test_batch"):
        (folder / name).write_bytes(pickle.dumps(Bomb(trace)))
    (folder / "cifar.npz").write_bytes(pickle.dumps(Bomb(trace)))
    for path in (folder, tmp_path, folder / "test_batch"):
        with pytest.raises(InvalidInput, match=r"pickle.*binary version"):
            dataset("cifar10", path=str(path)).load()
    with pytest.raises(InvalidInput, match="never loaded"):
        dataset("cifar10", path=str(folder / "cifar.npz")).load()
    assert not trace.exists()


def test_broken_cifar10_files_are_explained(tmp_path):
    def load(path=tmp_path, **options):
        return dataset("cifar10", path=str(path), **options).load()

    with pytest.raises(InvalidInput, match=r"lacks test_batch.bin"):
        load()
    (tmp_path / "test_batch.bin").write_bytes(b"\0" * 5000)
    with pytest.raises(InvalidInput, match="not a multiple of 3073"):
        load()
    (tmp_path / "test_batch.bin").write_bytes(b"\xff" * 3073)
    with pytest.raises(InvalidInput, match="labels outside"):
        load()
    (tmp_path / "test_batch.bin").write_bytes(b"")
    with pytest.raises(InvalidInput, match="is empty"):
        load()
    (tmp_path / "data_batch_1.bin").write_bytes(b"")
    with pytest.raises(InvalidInput, match=r"lacks data_batch_2.bin, .*data_batch_5"):
        load(split="train")
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(b"")
    with pytest.raises(InvalidInput, match="unpack"):
        load(tmp_path / "cifar-10-binary.tar.gz")
    np.savez(
        tmp_path / "x.npz",
        test_images=np.zeros((2, 3, 32, 32)),
        test_labels=np.zeros(2),
    )
    with pytest.raises(InvalidInput, match="expected uint8"):
        load(tmp_path / "x.npz")


@pytest.mark.shared_data
def test_the_real_cifar10_subset():
    path = SHARED / "cifar10" / "cifar10_subset.npz"
    if not path.is_file():
        pytest.skip("the development data are not beside the checkout")
    batch = dataset("cifar10", path=str(path)).load()
    assert batch.inputs.shape == (1000, 3, 32, 32)
    assert batch.targets.bincount().tolist() == [100] * 10
    few = dataset("cifar10", path=str(path), split="train", limit=20).load()
    assert few.targets.bincount().tolist() == [2] * 10
    again = dataset(
        "npz", path=str(path), inputs="test_images", targets="test_labels"
    ).load()
    assert torch.equal(again.inputs, batch.inputs)


# NumPy archives.


def saved(tmp_path, **arrays):
    np.savez(tmp_path / "set.npz", **arrays)
    return str(tmp_path / "set.npz")


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((4, 7), (7,)),
        ((4, 6, 5), (1, 6, 5)),
        ((4, 3, 6, 5), (3, 6, 5)),
        ((4, 1, 6, 5), (1, 6, 5)),
        ((4, 6, 5, 3), (3, 6, 5)),
        ((4, 6, 5, 1), (1, 6, 5)),
        ((4, 3, 6, 3), (3, 6, 3)),
    ],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.float64, np.float16])
def test_npz_shapes(tmp_path, shape, expected, dtype):
    rng = np.random.default_rng(0)
    raw = rng.random(shape)
    array = (raw * 255).astype(np.uint8) if dtype is np.uint8 else raw.astype(dtype)
    batch = dataset(
        "npz", path=saved(tmp_path, inputs=array, targets=[0, 1, 2, 3])
    ).load()
    assert batch.spec.shape == expected
    assert batch.spec.kind == ("vector" if len(shape) == 2 else "image")
    value = array / 255 if dtype is np.uint8 else array
    if len(shape) == 4 and shape[1] not in (1, 3):
        value = value.transpose(0, 3, 1, 2)
    np.testing.assert_allclose(batch.inputs.numpy().ravel(), value.ravel(), rtol=1e-6)


def test_npz_ranges_and_targets(tmp_path):
    rng = np.random.default_rng(0)
    real = saved(tmp_path, x=rng.normal(size=(5, 3)), y=rng.normal(size=(5, 2)))
    batch = dataset("npz", path=real, inputs="x", targets="y").load()
    assert batch.spec.peak is None
    assert batch.targets.dtype == torch.float32
    assert batch.targets.shape == (5, 2)
    wide = dataset("npz", path=real, inputs="x", targets="y", low=-9, high=9).load()
    assert wide.spec.peak == 18
    few = dataset("npz", path=real, inputs="x", targets="y", limit=2).load()
    assert torch.equal(few.inputs, batch.inputs[[0, 2]])
    flags = saved(tmp_path, inputs=np.zeros((2, 3)), targets=np.array([True, False]))
    assert dataset("npz", path=flags).load().targets.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"inputs": np.zeros((2, 3))}, "has no array 'targets'; it holds: inputs"),
        ({"inputs": np.zeros((2, 3)), "targets": np.zeros(3)}, "first axes must agree"),
        ({"inputs": np.zeros((0, 3)), "targets": np.zeros(0)}, "not be empty"),
        ({"inputs": np.zeros((2, 3), int), "targets": np.zeros(2)}, "expected uint8"),
        ({"inputs": np.zeros((2, 9, 4, 4)), "targets": np.zeros(2)}, "1 or 3 channels"),
        ({"inputs": np.zeros(2), "targets": np.zeros(2)}, r"expected \[N, d\]"),
        ({"inputs": np.full((2, 3), np.nan), "targets": np.zeros(2)}, "NaN"),
        ({"inputs": np.full((2, 3), 1e300), "targets": np.zeros(2)}, "infinity"),
        ({"inputs": np.full((2, 4, 4), 3.0), "targets": np.zeros(2)}, "outside the"),
        ({"inputs": np.zeros((2, 3)), "targets": np.array([0, -1])}, "indices"),
        ({"inputs": np.zeros((2, 3)), "targets": np.zeros((2, 2), int)}, "indices"),
        ({"inputs": np.zeros((2, 3)), "targets": np.array(["a", "b"])}, "numbers"),
        ({"inputs": np.array([None, {}]), "targets": np.zeros(2)}, "never loaded"),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow encountered in cast:RuntimeWarning")
def test_unsound_npz_files_are_explained(tmp_path, arrays, message):
    with pytest.raises(InvalidInput, match=message) as caught:
        dataset("npz", path=saved(tmp_path, **arrays)).load()
    assert "set.npz" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["pickle", "text", "truncated", "flipped", "foreign"])
def test_files_that_are_no_npz_are_explained(tmp_path, kind):
    trace, path = tmp_path / "executed", tmp_path / "set.npz"
    saved(
        tmp_path, inputs=np.random.default_rng(0).random((9, 50)), targets=np.zeros(9)
    )
    content = bytearray(path.read_bytes())
    if kind == "pickle":
        content = pickle.dumps(Bomb(trace))
    if kind == "text":
        content = b"hello"
    if kind == "truncated":
        content = content[: len(content) // 2]
    if kind == "flipped":
        content[600] ^= 0xFF
    path.write_bytes(content)
    if kind == "foreign":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("inputs.npy", b"not an array")
            archive.writestr("targets.npy", pickle.dumps(Bomb(trace)))
    with pytest.raises(InvalidInput, match=r"set\.npz"):
        dataset("npz", path=str(path)).load()
    assert not trace.exists()


# Folders of images.


def test_subfolders_are_classes_in_alphabetical_order(tmp_path):
    for name in ("zebra/1.png", "ant/2.jpg", "ant/1.PNG"):
        write_image(tmp_path / name)
    (tmp_path / "ant" / "notes.txt").write_text("no image")
    (tmp_path / "ant" / ".hidden.png").write_text("no image")
    (tmp_path / "empty").mkdir()
    batch = dataset("folder", path=str(tmp_path), size=10).load()
    assert batch.inputs.shape == (3, 3, 10, 10)
    assert batch.targets.tolist() == [0, 0, 1]


def test_images_are_cut_and_averaged(tmp_path):
    pixels = write_image(tmp_path / "x.png", size=(12, 8))
    found = dataset("folder", path=str(tmp_path), size=4).load().inputs[0]
    square = pixels[:, 2:10].reshape(4, 2, 4, 2, 3).mean(axis=(1, 3)) / 255
    np.testing.assert_allclose(found.permute(1, 2, 0).numpy(), square, atol=1e-6)
    grey = dataset("folder", path=str(tmp_path), size=4, gray=True).load().inputs[0, 0]
    expected = square @ [0.2125, 0.7154, 0.0721]
    np.testing.assert_allclose(grey.numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("gray", [False, True])
def test_image_types(tmp_path, gray):
    grey8 = write_image(tmp_path / "a.png", size=(4, 4), mode="L")
    deep = grey8.astype(np.uint16) * 257
    Image.fromarray(deep).save(tmp_path / "b.png")
    Image.fromarray(np.stack([grey8] * 4, axis=-1)).save(tmp_path / "c.png")
    Image.fromarray(np.stack([grey8] * 3, axis=-1)).save(tmp_path / "d.bmp")
    Image.fromarray(grey8).save(tmp_path / "e.tif")
    batch = dataset("folder", path=str(tmp_path), size=4, gray=gray).load()
    assert batch.inputs.shape == (5, 1 if gray else 3, 4, 4)
    expected = torch.from_numpy(grey8 / 255).float().expand_as(batch.inputs)
    torch.testing.assert_close(batch.inputs, expected, rtol=0, atol=1e-6)


def test_folders_that_make_no_data_set_are_explained(tmp_path):
    def load(**options):
        return dataset("folder", path=str(tmp_path), **options).load()

    with pytest.raises(InvalidInput, match="holds no image; known types: bmp"):
        load()
    write_image(tmp_path / "x.png", size=(12, 9))
    with pytest.raises(InvalidInput, match=r"x.png has only 9 pixels .* size = 32"):
        load()
    (tmp_path / "y.png").write_text("no image")
    with pytest.raises(InvalidInput, match=r"y\.png cannot be read as an image"):
        load(size=4)
    content = (tmp_path / "x.png").read_bytes()
    (tmp_path / "y.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(InvalidInput, match=r"y\.png cannot be read as an image"):
        load(size=4)
    Image.fromarray(np.zeros((8, 8), np.float32)).save(tmp_path / "y.tif")
    (tmp_path / "y.png").unlink()
    with pytest.raises(InvalidInput, match=r"y.tif has pixels of mode 'F'"):
        load(size=4)
    write_image(tmp_path / "sub" / "z.png")
    with pytest.raises(InvalidInput, match="directly and in subfolders"):
        load(size=4)


# Arithmetic.


def test_luminance_of_primaries_and_of_grey():
    primaries = torch.eye(3)[:, :, None]
    assert luminance(primaries)[0, :, 0].tolist() == pytest.approx(
        [0.2125, 0.7154, 0.0721]
    )
    grey = torch.full((3, 2, 2), 0.3)
    torch.testing.assert_close(luminance(grey), grey[:1])
    assert torch.equal(luminance(grey[:1]), grey[:1])


@given(height=st.integers(4, 40), width=st.integers(4, 40), side=st.integers(1, 4))
@settings(max_examples=30, deadline=None)
def test_shrinking_keeps_constants_and_the_aspect(height, width, side):
    image = torch.full((1, height, width), 0.7)
    torch.testing.assert_close(
        resized(image, side, side), torch.full((1, side, side), 0.7)
    )
    found = short_side_to(image, side)
    assert min(found.shape[-2:]) == side
    assert abs(found.shape[1] * width - found.shape[2] * height) <= max(height, width)


@given(count=st.integers(1, 50), limit=st.integers(1, 60))
def test_evenly_spaced_indices(count, limit):
    found = evenly_spaced(count, limit).tolist()
    assert len(found) == min(count, limit)
    assert found == sorted(set(found))
    assert set(found) <= set(range(count))
    gaps = np.diff([*found, count])
    assert gaps.max() - gaps.min() <= 1


# The split.


class Made(DataSource):
    def __init__(self, pool=None):
        self.pool = pool

    def load(self):
        values = torch.tensor([0, 1, 2, 3, 3, 4, 5, 6, 7, 0]) / 10
        inputs = values[:, None].expand(10, 2).contiguous()
        return Batch(inputs, torch.arange(10), EventSpec.vector(2))

    def private_pool(self, batch):
        return super().private_pool(batch) if self.pool is None else self.pool


@given(size=st.integers(1, 9), key=st.integers(0, 10**9))
@settings(max_examples=60, deadline=None)
def test_the_split_is_a_partition_less_copies(size, key):
    source = Made()
    batch = source.load()
    private, public = split(batch, source, size, key)
    again, _ = split(batch, source, size, key)
    assert torch.equal(private.targets, again.targets)
    mine = set(private.targets.tolist())
    rest = set() if public is None else set(public.targets.tolist())
    assert len(private) == len(mine) == size
    assert not mine & rest
    copies = {0: 9, 9: 0, 3: 4, 4: 3}
    lost = set(range(10)) - mine - rest
    assert lost == {copies[i] for i in mine if i in copies} - mine
    if public is not None:
        assert not bool(public.found_in(private).any())
        assert torch.equal(public.targets, public.targets.sort().values)


def test_different_keys_choose_different_examples():
    source = dataset("faces")
    batch = source.load()
    chosen = [split(batch, source, 4, key)[0] for key in range(5)]
    assert all(c.targets.tolist() == [1] * 4 for c in chosen)
    assert not any(bool(chosen[0].found_in(c).all()) for c in chosen[1:])
    private, public = split(batch, source, 4, 0)
    assert len(public) == 196
    assert torch.equal(private.inputs, chosen[0].inputs)


def test_every_example_is_chosen_equally_often():
    source, counts, trials = Made(), torch.zeros(10), 2000
    batch = source.load()
    for key in range(trials):
        counts[split(batch, source, 3, key)[0].targets] += 1
    p = 0.3
    limit = 4.5 * (trials * p * (1 - p)) ** 0.5
    assert float((counts - trials * p).abs().max()) <= limit


def test_only_the_pool_becomes_private():
    source = Made(pool=[2, 5])
    batch = source.load()
    private, public = split(batch, source, 2, key=3)
    assert sorted(private.targets.tolist()) == [2, 5]
    assert len(public) == 8


def test_nothing_public_is_left():
    source = Made()
    private, public = split(source.load(), source, 10, key=0)
    assert len(private) == 10
    assert public is None


@pytest.mark.parametrize("size", [0, -1, 3])
def test_an_impossible_batch_size_is_refused(size):
    source = Made(pool=[2, 5])
    with pytest.raises(InvalidInput, match=re.escape("choose between 1 and 2")):
        split(source.load(), source, size, key=0)


def test_a_copy_is_found_whatever_its_precision_and_however_near_others_are():
    g = torch.Generator().manual_seed(0)
    mine = torch.rand((3, 625), generator=g)
    others = torch.cat([torch.rand((60, 625), generator=g), mine[1:2]])
    spec = EventSpec.vector(625)
    private = Batch(mine.double(), torch.zeros(3), spec)
    public = Batch(others, torch.zeros(61), spec)
    assert private.found_in(public).tolist() == [False, True, False]
    assert public.found_in(private).nonzero().flatten().tolist() == [60]
    near = Batch(mine.double() + 1e-9, torch.zeros(3), spec)
    assert not bool(private.found_in(near).any())


# Groups of classes and smaller images.


def test_classes_are_grouped_and_pixels_averaged():
    digits = dataset("digits").load()
    odd = dataset("relabelled", classes=[[0, 2, 4, 6, 8], [1, 3, 5, 7, 9]], pool=2)
    found = odd.load()
    assert torch.equal(found.targets, digits.targets % 2)
    assert found.spec == EventSpec.image(1, 4, 4)
    corner = digits.inputs[:, :, :2, :2].mean(dim=(1, 2, 3))
    torch.testing.assert_close(found.inputs[:, 0, 0, 0], corner)
    some = dataset("relabelled", classes=[[3], [7]])
    kept = some.load()
    assert len(kept) == int(((digits.targets == 3) | (digits.targets == 7)).sum())
    assert kept.targets.unique().tolist() == [0, 1]
    assert some.private_pool(kept) == list(range(len(kept)))


def test_private_examples_of_a_derived_source_are_those_of_the_source():
    faces = dataset("faces")
    whole = faces.load()
    derived = dataset("relabelled", source={"name": "faces"}, pool=2)
    assert derived.private_pool(derived.load()) == faces.private_pool(whole)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"classes": [[0, 1], [1]]}, "class 1 is in two groups"),
        ({"classes": [[0], [11]]}, r"no example has a class of the group \[11\]"),
        ({"pool": 0}, "pool is 0"),
        ({"pool": 9}, "pool is 9, but the examples"),
    ],
    ids=str,
)
def test_bad_groups_are_refused(options, words):
    with pytest.raises(InvalidInput, match=words):
        dataset("relabelled", **options).load()
