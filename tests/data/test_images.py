"""Images in the real formats of MNIST, Fashion-MNIST and CIFAR-10, and files that are not."""

from __future__ import annotations

import gzip
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from synaptune.core.errors import UserError
from synaptune.data.config import DataConfig, find_data_faults
from synaptune.data.images import count_batches, load_images, make_image_batch

RANDOM = np.random.default_rng(0)
PIXELS = np.zeros((2, 3072), np.uint8)


def make_idx(values: np.ndarray) -> bytes:
    head = struct.pack(">HBB", 0, 8, values.ndim) + struct.pack(f">{values.ndim}I", *values.shape)
    return head + values.astype(np.uint8).tobytes()


def write_idx(folder: Path, prefix: str, count: int, end: str = "", side: int = 28) -> np.ndarray:
    """Write images and classes as IDX files; return the images."""
    folder.mkdir(parents=True, exist_ok=True)
    images = RANDOM.integers(256, size=(count, side, side)).astype(np.uint8)
    files = {
        f"{prefix}images-idx3-ubyte": make_idx(images),
        f"{prefix}labels-idx1-ubyte": make_idx(np.arange(count) % 10),
    }
    for name, content in files.items():
        (folder / f"{name}{end}").write_bytes(gzip.compress(content) if end else content)
    return images


def load(source: str, folder: Path, **settings):
    load_images.cache_clear()
    return load_images(DataConfig(source=source, path=str(folder), **settings))


def count_splits(data) -> list[int]:
    return [len(part.labels) for part in (data.train, data.val, data.test)]


@pytest.mark.parametrize("end", ["", ".gz"])
def test_fashion_mnist_is_read_in_the_layout_of_torchvision(tmp_path, end):
    folder = tmp_path / "FashionMNIST" / "raw"
    write_idx(folder, "train-", 60, end)
    test = write_idx(folder, "t10k-", 20, end)
    data = load("fashion-mnist", tmp_path)
    assert (data.shape, count_splits(data)) == ((1, 28, 28), [54, 6, 20])
    assert data.test.labels.tolist() == [number % 10 for number in range(20)]
    pixels = torch.from_numpy(test[3].astype(np.float32))
    assert torch.corrcoef(torch.stack([data.test.images[3].flatten(), pixels.flatten()]))[
        0, 1
    ] == pytest.approx(1.0, abs=1e-5)
    assert data.train.images.mean() == pytest.approx(0.0, abs=1e-4)
    assert data.train.images.std() == pytest.approx(1.0, abs=1e-2)


def test_a_set_without_test_files_is_split_in_three_disjoint_parts(tmp_path):
    write_idx(tmp_path, "", 100)
    data = load("mnist", tmp_path)
    assert count_splits(data) == [70, 10, 20]
    rows = torch.cat([part.images.flatten(1) for part in (data.train, data.val, data.test)])
    assert len(torch.unique(rows, dim=0)) == 100
    assert load("mnist", tmp_path).fingerprint == data.fingerprint


def test_subset_size_cuts_the_training_split_alone(tmp_path):
    write_idx(tmp_path, "", 100)
    whole, cut = load("mnist", tmp_path), load("mnist", tmp_path, subset_size=30)
    assert count_splits(cut) == [30, 10, 20]
    assert torch.equal(cut.test.labels, whole.test.labels)
    assert cut.fingerprint != whole.fingerprint


def write_cifar(folder: Path, binary: bool) -> dict[str, np.ndarray]:
    """Write the six files of CIFAR-10; return the pixels by name."""
    place = folder / ("cifar-10-batches-bin" if binary else "cifar-10-batches-py")
    place.mkdir(parents=True)
    pixels = {}
    for name in [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]:
        data = pixels[name] = RANDOM.integers(256, size=(8, 3072)).astype(np.uint8)
        labels = [number % 10 for number in range(8)]
        if binary:
            rows = np.concatenate([np.array(labels, np.uint8)[:, None], data], axis=1)
            (place / f"{name}.bin").write_bytes(rows.tobytes())
        else:
            content = {"batch_label": name, "labels": labels, "data": data, "filenames": []}
            (place / name).write_bytes(pickle.dumps(content, protocol=2))
    return pixels


@pytest.mark.parametrize("binary", [False, True], ids=["python", "binary"])
def test_cifar_10_is_read_from_its_python_and_binary_files(tmp_path, binary):
    pixels = write_cifar(tmp_path, binary)
    data = load("cifar10", tmp_path)
    assert (data.shape, count_splits(data)) == ((3, 32, 32), [36, 4, 8])
    red = pixels["test_batch"][2, :1024].astype(np.float32)
    read = data.test.images[2, 0].flatten().numpy()
    assert np.corrcoef(red, read)[0, 1] == pytest.approx(1.0, abs=1e-5)


def test_the_digits_need_no_files():
    load_images.cache_clear()
    data = load_images(DataConfig(source="digits"))
    assert data.shape == (1, 8, 8)
    assert sum(count_splits(data)) == 1797


def test_an_epoch_visits_each_image_once_and_the_batch_depends_on_seed_and_step(tmp_path):
    write_idx(tmp_path, "", 100)
    data = load("mnist", tmp_path)
    assert count_batches(data, 16) == 5
    batches = [make_image_batch(data, seed=1, step=step, size=16) for step in range(10)]
    assert [len(batch.labels) for batch in batches[:5]] == [16, 16, 16, 16, 6]
    epochs = [
        torch.cat([batch.images for batch in part]).flatten(1)
        for part in (batches[:5], batches[5:])
    ]
    assert len(torch.unique(epochs[0], dim=0)) == 70
    assert not torch.equal(*epochs)
    again = make_image_batch(data, seed=1, step=7, size=16)
    assert torch.equal(again.images, batches[7].images)


def damage_magic(folder: Path) -> None:
    path = folder / "images-idx3-ubyte"
    path.write_bytes(b"\0\0\x0d\x03" + path.read_bytes()[4:])


def cut_short(folder: Path) -> None:
    path = folder / "images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-5])


def leave_head(folder: Path) -> None:
    (folder / "images-idx3-ubyte").write_bytes(b"\0\0")


def drop_a_label(folder: Path) -> None:
    (folder / "labels-idx1-ubyte").write_bytes(make_idx(np.arange(19) % 10))


def raise_a_label(folder: Path) -> None:
    (folder / "labels-idx1-ubyte").write_bytes(make_idx(np.arange(20)))


def remove_labels(folder: Path) -> None:
    (folder / "labels-idx1-ubyte").unlink()


def damage_gzip(folder: Path) -> None:
    (folder / "images-idx3-ubyte").unlink()
    (folder / "images-idx3-ubyte.gz").write_bytes(b"\x1f\x8b damaged")


def damage_stream(folder: Path) -> None:
    """Keep the head of gzip, so that the decompressor meets the damage."""
    content = bytearray(gzip.compress((folder / "images-idx3-ubyte").read_bytes()))
    content[12:60] = b"\xff" * 48
    (folder / "images-idx3-ubyte").unlink()
    (folder / "images-idx3-ubyte.gz").write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (damage_magic, "the magic number 00000d03"),
        (cut_short, "15675 values for the sizes 20 x 28 x 28"),
        (leave_head, "2 bytes"),
        (drop_a_label, "20 images and 19 classes"),
        (raise_a_label, "class 10"),
        (remove_labels, "no labels-idx1-ubyte"),
        (damage_gzip, r"images-idx3-ubyte\.gz"),
        (damage_stream, r"images-idx3-ubyte\.gz"),
    ],
)
def test_a_malformed_set_is_named(tmp_path, damage, said):
    write_idx(tmp_path, "", 20)
    damage(tmp_path)
    with pytest.raises(UserError, match=said) as caught:
        load("mnist", tmp_path)
    assert "to do:" in str(caught.value)


def test_training_and_test_images_of_two_sizes_are_refused(tmp_path):
    write_idx(tmp_path, "train-", 20)
    write_idx(tmp_path, "t10k-", 20, side=14)
    with pytest.raises(UserError, match="of 28 x 28 and test images of 14 x 14"):
        load("mnist", tmp_path)


class _Runs:
    """Its pickle would call a function."""

    def __reduce__(self):
        return print, ("called",)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (pickle.dumps({"data": np.zeros((2, 5), np.uint8), "labels": [1, 2]}), "ValueError"),
        (pickle.dumps({"data": np.zeros((2, 3072), np.float32), "labels": [1, 2]}), "float32"),
        (pickle.dumps({"data": PIXELS, "labels": [1, -1]}), "class -1"),
        (pickle.dumps({"data": PIXELS, "labels": ["cat", "dog"]}), "labels of <U3"),
        (pickle.dumps({"data": PIXELS, "labels": [0.5, 1.0]}), "labels of float64"),
        (pickle.dumps([1]), "TypeError"),
        (b"no pickle", "Error"),
        (pickle.dumps(_Runs()), r"refers to builtins\.print"),
    ],
)
def test_a_malformed_batch_of_cifar_is_named_and_runs_nothing(tmp_path, capsys, content, said):
    write_cifar(tmp_path, binary=False)
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").write_bytes(content)
    with pytest.raises(UserError, match=said):
        load("cifar10", tmp_path)
    assert capsys.readouterr().out == ""


def test_missing_files_are_named_with_the_ways_to_get_them(tmp_path):
    for source in ("mnist", "fashion-mnist", "cifar10"):
        with pytest.raises(UserError, match=f"no images of {source} in") as caught:
            load(source, tmp_path)
        assert "data.download=true" in str(caught.value)
    write_cifar(tmp_path, binary=True)
    (tmp_path / "cifar-10-batches-bin" / "data_batch_4.bin").unlink()
    with pytest.raises(UserError, match=r"without data_batch_4\.bin"):
        load("cifar10", tmp_path)


def test_a_download_without_a_network_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr("synaptune.data.download.is_reachable", lambda url, seconds: False)
    with pytest.raises(UserError, match="no answer"):
        load("mnist", tmp_path, download=True)


def test_a_subset_of_no_image_is_a_fault():
    assert find_data_faults(DataConfig(source="digits", subset_size=0), 1)
