"""Images with classes: scikit-learn's digits, or MNIST, Fashion-MNIST and CIFAR-10 in a folder.

The folder has the layout of torchvision (`MNIST/raw`, `FashionMNIST/raw`, `cifar-10-batches-py`,
`cifar-10-batches-bin`), or holds the files itself. IDX files may be compressed with gzip. A set
without test files is split 70 : 10 : 20; one with test files gives a tenth of its training images
for validation. The splits depend on the images alone, not on the seed of a run.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import pickle
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from synaptune.core.errors import user_error
from synaptune.core.files import cache_dir
from synaptune.data.config import CLASSES, DataConfig
from synaptune.data.download import download_images

_SPLIT_SEED = 20_260
_TRAIN = 5  # stream of random numbers, different from those of batches.py
_VAL_SHARE, _TEST_SHARE = 0.1, 0.2
_FOLDERS = {"mnist": "MNIST/raw", "fashion-mnist": "FashionMNIST/raw"}
_IDX_TYPES = {8: np.dtype(np.uint8)}
_CIFAR_SHAPE = (3, 32, 32)
_CIFAR_TRAIN = [f"data_batch_{number}" for number in range(1, 6)]


class ImageBatch(NamedTuple):
    """Images and their classes.

    Attributes:
        images: (image, channel, height, width) float32, standardised.
        labels: (image,) int64.
    """

    images: Tensor
    labels: Tensor


@dataclass(frozen=True, eq=False)
class ImageData:
    """The three splits of a set of images.

    Attributes:
        train: training split.
        val: validation split, for the selection of a model.
        test: test split, for the claim about the selected model.
        shape: channels, height and width of an image.
        fingerprint: SHA-256 of images, classes and splits.
    """

    train: ImageBatch
    val: ImageBatch
    test: ImageBatch
    shape: tuple[int, int, int]
    fingerprint: str


class _Arrays(NamedTuple):
    images: np.ndarray  # (image, channel, height, width) uint8
    labels: np.ndarray  # (image,) uint8


@functools.lru_cache(maxsize=4)
def load_images(config: DataConfig) -> ImageData:
    """Read a set of images, split it and standardise each channel by the training split.

    Raises:
        UserError: files are missing or malformed, sizes differ, or the set is too small.
    """
    train, test = _read_digits() if config.source == "digits" else _read_folder(config)
    order = _permute(len(train.labels), _SPLIT_SEED)
    held = round(_VAL_SHARE * len(order))
    val, kept = _take(train, order[:held]), order[held:]
    if test is None:
        count = round(_TEST_SHARE * len(order))
        test, kept = _take(train, kept[:count]), kept[count:]
    if config.subset_size is not None:
        kept = kept[: config.subset_size]
    splits = (_take(train, kept), val, test)
    if any(len(part.labels) == 0 for part in splits):
        raise user_error(
            got=f"{len(train.labels)} images of {config.source}",
            expected="images in each of the splits train, val and test",
            do="use a larger set",
        )
    digest = hashlib.sha256(b"synaptune images 1")
    for part in splits:
        digest.update(part.images.tobytes() + b"\0" + part.labels.tobytes())
    mean, deviation = _measure(splits[0].images)
    train_batch, val_batch, test_batch = (
        ImageBatch(
            torch.from_numpy((part.images / np.float32(255.0) - mean) / deviation),
            torch.from_numpy(part.labels.astype(np.int64)),
        )
        for part in splits
    )
    channels, height, width = train.images.shape[1:]
    shape = (channels, height, width)
    return ImageData(train_batch, val_batch, test_batch, shape, digest.hexdigest())


def make_image_batch(data: ImageData, *, seed: int, step: int, size: int) -> ImageBatch:
    """Return the training batch of a step, a pure function of the arguments.

    Each epoch visits all images once in an order of its own; its last batch may be smaller.
    """
    epoch, number = divmod(step, count_batches(data, size))
    rows = _order_epoch(len(data.train.labels), seed, epoch)[number * size : (number + 1) * size]
    return ImageBatch(data.train.images[rows], data.train.labels[rows])


def count_batches(data: ImageData, size: int) -> int:
    """Return the batches of an epoch."""
    return -(-len(data.train.labels) // size)


def split_batches(data: ImageData, split: Literal["train", "val", "test"]) -> list[ImageBatch]:
    """Return a split in batches of 1,024 images."""
    part: ImageBatch = getattr(data, split)
    pieces = zip(part.images.split(1024), part.labels.split(1024), strict=True)
    return [ImageBatch(*piece) for piece in pieces]


@functools.lru_cache(maxsize=4)
def _order_epoch(count: int, seed: int, epoch: int) -> Tensor:
    return torch.from_numpy(_permute(count, _TRAIN, seed, epoch))


def _permute(count: int, *key: int) -> np.ndarray:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key))).permutation(count)


def _take(arrays: _Arrays, rows: np.ndarray) -> _Arrays:
    return _Arrays(arrays.images[rows], arrays.labels[rows])


def _measure(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation of each channel, of pixels in 0 to 1."""
    values = images.astype(np.float32) / np.float32(255.0)
    mean, deviation = (
        getattr(values, name)(axis=(0, 2, 3), keepdims=True)[0] for name in ("mean", "std")
    )
    return mean, np.maximum(deviation, np.float32(1e-3))


def _read_digits() -> tuple[_Arrays, None]:
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    images = (digits.images * (255.0 / 16.0)).round().astype(np.uint8)
    return _Arrays(images[:, None], digits.target.astype(np.uint8)), None


def _read_folder(config: DataConfig) -> tuple[_Arrays, _Arrays | None]:
    root = cache_dir() / "images" if config.path is None else Path(config.path).expanduser()
    if config.download:
        download_images(config.source, root)
    if config.source == "cifar10":
        return _read_cifar(root)
    folders = [root / _FOLDERS[config.source], root]
    names = ("train-images-idx3-ubyte", "images-idx3-ubyte")
    for folder in folders:
        for name in names:
            if (images := _find_file(folder, name)) is not None:
                train = _read_idx_pair(images, _require_labels(folder, name))
                if name.startswith("images") or _find_file(folder, _TEST_IMAGES) is None:
                    return train, None
                test_images = _find_file(folder, _TEST_IMAGES)
                assert test_images is not None
                test = _read_idx_pair(test_images, _require_labels(folder, _TEST_IMAGES))
                _check_same_size(train, test, folder)
                return train, test
    raise _make_missing_error(config.source, root, f"{names[0]}[.gz] in {folders[0]} or {root}")


_TEST_IMAGES = "t10k-images-idx3-ubyte"


def _make_missing_error(source: str, root: Path, expected: str) -> Exception:
    return user_error(
        got=f"no images of {source} in {root}",
        expected=expected,
        do="set data.path=FOLDER, or data.download=true where there is a network; "
        "data=digits needs no files",
    )


def _find_file(folder: Path, name: str) -> Path | None:
    """Return an IDX file, whatever separates its last part, plain or compressed."""
    variants = (name, name.replace("-idx", ".idx"))
    paths = [folder / f"{variant}{end}" for end in ("", ".gz") for variant in variants]
    return next((path for path in paths if path.is_file()), None)


def _require_labels(folder: Path, images: str) -> Path:
    name = images.replace("images-idx3", "labels-idx1")
    path = _find_file(folder, name)
    if path is None:
        raise user_error(
            got=f"no {name}[.gz] in {folder}",
            expected=f"the classes of {images}",
            do="add the file beside the images",
        )
    return path


def _read_idx_pair(images: Path, labels: Path) -> _Arrays:
    pixels, classes = _read_idx(images, 3), _read_idx(labels, 1)
    return _check_arrays(pixels[:, None], classes, images)


def _check_arrays(pixels: np.ndarray, classes: np.ndarray, path: Path) -> _Arrays:
    if len(pixels) != len(classes):
        raise user_error(
            got=f"{path}: {len(pixels)} images and {len(classes)} classes",
            expected="a class for each image",
            do="use the two files of one set",
        )
    if len(classes) and not (classes.min() >= 0 and classes.max() < CLASSES):
        wrong = next(entry for entry in classes.tolist() if not 0 <= entry < CLASSES)
        raise user_error(
            got=f"{path}: class {wrong}",
            expected=f"classes 0 to {CLASSES - 1}",
            do="use the file of the classes that belongs to the images",
        )
    return _Arrays(pixels, classes.astype(np.uint8))


def _check_same_size(train: _Arrays, test: _Arrays, folder: Path) -> None:
    if train.images.shape[1:] != test.images.shape[1:]:
        sizes = [" x ".join(map(str, part.images.shape[2:])) for part in (train, test)]
        raise user_error(
            got=f"{folder}: training images of {sizes[0]} and test images of {sizes[1]} pixels",
            expected="one size",
            do="use the files of one set",
        )


def _read_idx(path: Path, dimensions: int) -> np.ndarray:
    """Read an IDX file: magic number, sizes as big-endian 32-bit integers, then the values."""
    content = _read_bytes(path)
    fault = None
    head = 4 + 4 * dimensions
    if len(content) < head:
        fault = f"{len(content)} bytes"
    elif content[:2] != b"\0\0" or content[2] not in _IDX_TYPES or content[3] != dimensions:
        fault = f"the magic number {content[:4].hex()}"
    else:
        sizes = struct.unpack(f">{dimensions}I", content[4:head])
        values = np.frombuffer(content, _IDX_TYPES[content[2]], offset=head)
        if len(values) == np.prod(sizes, dtype=np.int64) and 0 not in sizes:
            return values.reshape(sizes)
        shape = " x ".join(map(str, sizes))
        fault = f"{len(values)} values for the sizes {shape} of its head"
    raise user_error(
        got=f"{path} with {fault}",
        expected=f"an IDX file of unsigned bytes with {dimensions} dimensions"
        f" (magic number 0000080{dimensions}), complete",
        do="download the file again",
    )


def _read_bytes(path: Path) -> bytes:
    try:
        return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise user_error(
            got=f"{path}: {error}", expected="a readable file", do="download the file again"
        ) from error


def _read_cifar(root: Path) -> tuple[_Arrays, _Arrays]:
    for folder in (root / "cifar-10-batches-py", root / "cifar-10-batches-bin", root):
        for end, read in (("", _read_cifar_pickle), (".bin", _read_cifar_binary)):
            paths = [folder / f"{name}{end}" for name in (*_CIFAR_TRAIN, "test_batch")]
            if not any(path.is_file() for path in paths):
                continue
            if missing := [path.name for path in paths if not path.is_file()]:
                raise user_error(
                    got=f"{folder} without {', '.join(missing)}",
                    expected="the six files of CIFAR-10",
                    do="download the set again",
                )
            parts = [read(path) for path in paths]
            train = _Arrays(
                np.concatenate([part.images for part in parts[:-1]]),
                np.concatenate([part.labels for part in parts[:-1]]),
            )
            return train, parts[-1]
    raise _make_missing_error(
        "cifar10", root, "cifar-10-batches-py or cifar-10-batches-bin, with data_batch_1 to 5"
    )


def _read_cifar_binary(path: Path) -> _Arrays:
    content, size = _read_bytes(path), int(np.prod(_CIFAR_SHAPE)) + 1
    if not content or len(content) % size:
        raise user_error(
            got=f"{path} with {len(content)} bytes",
            expected=f"records of {size} bytes, a class and 3 x 32 x 32 pixels",
            do="download the file again",
        )
    rows = np.frombuffer(content, np.uint8).reshape(-1, size)
    return _check_arrays(rows[:, 1:].reshape(-1, *_CIFAR_SHAPE), rows[:, 0], path)


class _ArrayUnpickler(pickle.Unpickler):
    """Reads arrays of numpy and plain values; a pickle can otherwise run any program."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        is_array = module_name.split(".")[0] == "numpy" and global_name in (
            *("_reconstruct", "ndarray", "dtype", "scalar", "_frombuffer"),
        )
        if is_array or (module_name, global_name) == ("_codecs", "encode"):
            return super().find_class(module_name, global_name)
        raise pickle.UnpicklingError(f"it refers to {module_name}.{global_name}")


def _read_cifar_pickle(path: Path) -> _Arrays:
    try:
        with path.open("rb") as file:
            content: Any = _ArrayUnpickler(file, encoding="latin1").load()
        pixels, labels = np.asarray(content["data"]), np.asarray(content["labels"])
        pixels = pixels.reshape(len(labels), *_CIFAR_SHAPE)
        if pixels.dtype != np.uint8:
            raise ValueError(f"pixels of {pixels.dtype}")
        if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
            raise ValueError(f"labels of {labels.dtype} with {labels.ndim} dimensions")
    except (pickle.UnpicklingError, OSError, EOFError, AttributeError, ImportError) as error:
        raise _make_cifar_error(path, error) from error
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise _make_cifar_error(path, error) from error
    return _check_arrays(pixels, labels, path)


def _make_cifar_error(path: Path, error: Exception) -> Exception:
    return user_error(
        got=f"{path}: {type(error).__name__}: {error}",
        expected="a batch of CIFAR-10 as a pickle with `data` (image, 3072) and `labels`",
        do="download the file again",
    )
