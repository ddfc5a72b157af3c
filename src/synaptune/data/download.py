"""Download of the public image sets into the layout of torchvision."""

from __future__ import annotations

import hashlib
import tarfile
import urllib.request
from pathlib import Path

from synaptune.core.errors import user_error
from synaptune.core.files import as_disk_errors, write_atomic
from synaptune.core.network import is_reachable

_TIMEOUT = 60.0  # s without data; chosen: a slow mirror answers within it
_IDX_FILES = tuple(
    f"{part}-{kind}-ubyte.gz"
    for part in ("train", "t10k")
    for kind in ("images-idx3", "labels-idx1")
)
_CIFAR_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
_CIFAR_MD5 = "c58f30108f718f92721af3b95e74349a"  # published beside the archive
_MIRRORS = {
    "mnist": ("https://ossci-datasets.s3.amazonaws.com/mnist/", "MNIST/raw"),
    "fashion-mnist": (
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        "FashionMNIST/raw",
    ),
}


def download_images(source: str, root: Path) -> None:
    """Download the files of a set that are not in `root` yet.

    Raises:
        UserError: the server does not answer, a file is damaged, or there is no space.
    """
    if source == "cifar10":
        if not (root / "cifar-10-batches-py").is_dir():
            archive = root / "cifar-10-python.tar.gz"
            if not archive.is_file():
                _download(_CIFAR_URL, archive)
            _unpack(archive, root)
        return
    mirror, folder = _MIRRORS[source]
    for name in _IDX_FILES:
        plain = root / folder / name.removesuffix(".gz")
        if not plain.is_file() and not (root / folder / name).is_file():
            _download(mirror + name, root / folder / name)


def _download(url: str, path: Path) -> None:
    if not is_reachable(url, 10.0):
        raise _make_error(url, "no answer")
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT) as answer:
            content = answer.read()
    except OSError as error:
        raise _make_error(url, str(error)) from error
    write_atomic(path, content)


def _make_error(url: str, reason: str) -> Exception:
    return user_error(
        got=f"{url}: {reason}",
        expected="a network and the server of the set",
        do="copy the files to data.path=FOLDER and leave data.download out",
    )


def _unpack(archive: Path, root: Path) -> None:
    if hashlib.md5(archive.read_bytes(), usedforsecurity=False).hexdigest() != _CIFAR_MD5:
        raise user_error(
            got=f"{archive} with another checksum",
            expected="the published archive",
            do="remove the file and start again",
        )
    with as_disk_errors(root), tarfile.open(archive) as content:
        content.extractall(root, filter="data")
