"""Documents and their split."""

import errno
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from synaptune.core.errors import UserError
from synaptune.data.text import (
    Document,
    read_file_or_folder,
    read_standard_library,
    split_documents,
)


def make_folder(root: Path, count: int) -> Path:
    for number in range(count):
        path = root / f"part{number % 3}" / f"{number}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"document {number}\n" * 40)
    return root


def test_the_standard_library_text_is_reproducible_and_contains_documentation_and_source():
    first, second = read_standard_library(3_000_000), read_standard_library(3_000_000)
    assert first == second
    names = [document.name for document in first]
    assert any(name.endswith(".py") for name in names)
    assert any(name.startswith("topics/") for name in names)
    assert not any("/test/" in f"/{name}" or "site-packages" in name for name in names)


def test_the_standard_library_is_split_by_file_in_about_the_requested_shares():
    documents = read_standard_library(8_000_000)
    parts = split_documents(documents)
    names = [{document.name for document in part} for part in parts]
    assert sum(map(len, names)) == len(documents)
    assert not names[0] & names[1]
    assert not names[0] & names[2]
    assert not names[1] & names[2]
    sizes = [sum(len(document.content) for document in part) for part in parts]
    assert sizes[0] / sum(sizes) == pytest.approx(0.9, abs=0.05)
    assert min(sizes[1:]) / sum(sizes) > 0.02


def test_no_text_is_in_two_splits():
    parts = split_documents(read_standard_library(8_000_000))
    digests = [{hashlib.sha256(document.content).digest() for document in part} for part in parts]
    assert not digests[0] & (digests[1] | digests[2])
    assert not digests[1] & digests[2]


def test_adding_a_file_moves_no_other_file_to_another_split(tmp_path):
    def find_splits(parts):
        return {document.name: index for index, part in enumerate(parts) for document in part}

    before = find_splits(split_documents(read_file_or_folder(make_folder(tmp_path, 200), 10**9)))
    (tmp_path / "more.txt").write_text("another document\n" * 40)
    after = find_splits(split_documents(read_file_or_folder(tmp_path, 10**9)))
    assert len(set(before.values())) == 3
    assert {name: after[name] for name in before} == before


def test_a_folder_of_few_files_is_cut_inside_each_file(tmp_path):
    parts = split_documents(read_file_or_folder(make_folder(tmp_path, 4), 10**9))
    assert [len(part) for part in parts] == [4, 4, 4]


def test_a_file_is_cut_contiguously_between_characters():
    content = ("aé€😀" * 1000).encode()
    train, val, test = (part[0].content for part in split_documents([Document("file", content)]))
    assert train + val + test == content
    assert len(train) / len(content) == pytest.approx(0.9, abs=0.001)
    assert all(part.decode() for part in (train, val, test))


@pytest.mark.parametrize("cap", range(1, 24))
def test_a_cap_never_cuts_a_character(tmp_path, cap):
    text = "aé€😀b" * 3
    (tmp_path / "file.txt").write_text(text, encoding="utf-8")
    try:
        content = read_file_or_folder(tmp_path / "file.txt", cap)[0].content
    except UserError:
        pytest.fail(f"a cap of {cap} bytes left no text")
    assert text.startswith(content.decode())
    assert cap - 3 <= len(content) <= cap


def test_a_cap_holds_for_a_folder(tmp_path):
    documents = read_file_or_folder(make_folder(tmp_path, 50), 4000)
    assert 3997 <= sum(len(document.content) for document in documents) <= 4000


def test_binary_hidden_and_duplicate_files_of_a_folder_are_skipped(tmp_path):
    (tmp_path / "text.txt").write_text("some text\n")
    (tmp_path / "copy.txt").write_text("some text\n")
    (tmp_path / ".hidden").write_text("secret\n")
    (tmp_path / "image.png").write_bytes(b"\x89PNG\0\0")
    (tmp_path / "latin.txt").write_bytes("déjà".encode("latin-1"))
    assert [document.content for document in read_file_or_folder(tmp_path, 10**6)] == [
        b"some text\n"
    ]


def make_bad_paths(root: Path) -> dict[str, Path]:
    (root / "empty.txt").touch()
    (root / "binary.bin").write_bytes(bytes(range(256)))
    (root / "latin.txt").write_bytes("déjà vu".encode("latin-1"))
    (root / "folder").mkdir()
    return {
        name: root / name
        for name in (
            "missing.txt",
            "empty.txt",
            "binary.bin",
            "latin.txt",
            "folder",
            "no/such/file",
        )
    }


@pytest.mark.parametrize(
    "name", ["missing.txt", "empty.txt", "binary.bin", "latin.txt", "folder", "no/such/file"]
)
def test_a_file_that_is_not_text_is_refused_with_its_path_and_a_remedy(tmp_path, name):
    with pytest.raises(
        UserError, match=r"(?s)got data\.path=.*expected: .*to do: correct data\.path"
    ) as caught:
        read_file_or_folder(make_bad_paths(tmp_path)[name], 10**6)
    assert name in str(caught.value)


def test_a_file_whose_read_fails_is_named(tmp_path, monkeypatch):
    """A file of a disk that has gone; nothing here makes a read of a file with a size fail."""

    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    path = tmp_path / "file.txt"
    path.write_text("some text\n")
    monkeypatch.setattr(Path, "open", fail)
    with pytest.raises(UserError, match=r"file\.txt, which is not readable: Input/output error"):
        read_file_or_folder(path, 10**6)


def test_a_cap_beyond_the_memory_reads_the_file(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("some text\n")
    assert read_file_or_folder(path, 10**20)[0].content == b"some text\n"


def test_a_pipe_without_a_writer_is_refused_and_one_of_the_shell_is_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    code = "import sys; from pathlib import Path; from synaptune.data.text import *\n"
    code += "print(read_file_or_folder(Path(sys.argv[1]), 10**20)[0].content)"
    named, shell = (
        subprocess.run(
            ["bash", "-c", f'"$0" -c "$1" {path}', sys.executable, code],
            capture_output=True,
            text=True,
            timeout=20,
        )
        for path in (tmp_path / "pipe", "<(echo text)")
    )
    assert "UserError: got data.path=" in named.stderr
    assert "a pipe or another special file" in named.stderr
    assert shell.stdout == "b'text\\n'\n"
