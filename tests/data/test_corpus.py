"""Corpora: fingerprint, cache, tokens and refused configurations."""

import hashlib
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from synaptune.core.errors import UserError
from synaptune.core.files import build_once, cache_dir, write_atomic
from synaptune.data.config import DataConfig
from synaptune.data.corpus import _compute_fingerprint, load_corpus
from synaptune.data.text import Document, Splits

TEXT = "".join(
    f"Line {number}: the quick brown fox → {number * 7919 % 1009} → jumps.\n"
    for number in range(600)
)


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setenv("SYNAPTUNE_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def text_config(path: Path, **changes) -> DataConfig:
    return DataConfig(source="text", path=str(path), **changes)


def test_byte_tokens_are_the_bytes_of_the_text_in_order(file):
    corpus = load_corpus(text_config(file), 64)
    assert corpus.vocab == 256
    assert corpus.bytes_per_token == 1.0
    assert corpus.decode(np.concatenate([corpus.train, corpus.val, corpus.test]).tolist()) == TEXT
    assert corpus.encode("é") == [0xC3, 0xA9]


def test_a_file_whose_name_is_not_utf8_is_read(file, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    odd = Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.txt"))
    odd.write_text(TEXT, encoding="utf-8")
    for path in (folder, odd):
        corpus = load_corpus(text_config(path), 64)
        assert (
            corpus.decode(np.concatenate([corpus.train, corpus.val, corpus.test]).tolist()) == TEXT
        )


def test_the_fingerprint_of_a_text_has_a_fixed_value():
    """Earlier studies are stored with this fingerprint."""
    splits = Splits([Document("naïve.txt", b"abc")], [Document("b", b"d")], [])
    known = b"synaptune corpus 1byte 256" + "\0train\0naïve.txt\x003\0abc\0val\0b\x001\0d".encode()
    assert _compute_fingerprint(splits, DataConfig()) == hashlib.sha256(known).hexdigest()


def test_token_arrays_are_small_and_memory_mapped(file):
    corpus = load_corpus(text_config(file), 64)
    for split in (corpus.train, corpus.val, corpus.test):
        assert isinstance(split, np.memmap)
        assert split.dtype == np.uint16


def test_the_fingerprint_depends_on_text_and_tokenizer_only(file, tmp_path):
    first = load_corpus(text_config(file), 64).fingerprint
    assert len(first) == 64
    assert load_corpus(text_config(file, recall_fraction=0.5), 32).fingerprint == first
    assert load_corpus(text_config(file, tokenizer="bpe", vocab_size=300), 64).fingerprint != first
    file.write_text(TEXT + "!", encoding="utf-8")
    assert load_corpus(text_config(file), 64).fingerprint != first


def test_pair_tokens_decode_to_the_text_and_are_fewer_than_its_bytes(file):
    corpus = load_corpus(text_config(file, tokenizer="bpe", vocab_size=400), 64)
    assert corpus.vocab == 400
    for text in (TEXT[:500], "never seen: ßçñ漢字😀\t\0", " ", ""):
        assert corpus.decode(corpus.encode(text)) == text
    assert corpus.bytes_per_token > 1.5
    assert len(corpus.val) * corpus.bytes_per_token == pytest.approx(
        0.05 * len(TEXT.encode()), rel=0.05
    )
    assert corpus.decode(corpus.train.tolist()) == TEXT.encode()[
        : round(0.9 * len(TEXT.encode()))
    ].decode(errors="ignore")


def test_pair_tokens_are_learned_from_the_training_split_only(tmp_path, monkeypatch):
    monkeypatch.setenv("SYNAPTUNE_CACHE", str(tmp_path / "cache"))
    vocabularies = []
    for ending in ("zqzq " * 120, "xwxw " * 120):
        path = tmp_path / f"{ending[0]}.txt"
        path.write_text("plain words only " * 400 + ending)
        tokenizer = load_corpus(text_config(path, tokenizer="bpe", vocab_size=300), 16).tokenizer
        vocabularies.append(tokenizer.bpe.get_vocab())
    assert vocabularies[0] == vocabularies[1]


def test_documents_are_separated_by_the_zero_byte(tmp_path, monkeypatch):
    monkeypatch.setenv("SYNAPTUNE_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "folder"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.txt").write_text(f"document {number} " * 60)
    for changes in ({}, {"tokenizer": "bpe", "vocab_size": 300}):
        corpus = load_corpus(text_config(folder, **changes), 8)
        assert corpus.decode(corpus.train.tolist()).count("\0") == 2


def test_recall_symbols_follow_the_text_tokens(file):
    corpus = load_corpus(text_config(file, recall_fraction=0.5, recall_keys=8, recall_values=8), 64)
    assert (corpus.text_vocab, corpus.vocab) == (256, 273)
    assert corpus.decode([65, 256, 272, 66]) == "A<0><16>B"


@pytest.mark.parametrize("context", [40_000, 2_000])
def test_a_split_shorter_than_one_context_is_refused(file, context):
    with pytest.raises(
        UserError,
        match=rf"(?s)text\.txt.*tokens.*one context of {context} tokens.*lower model\.context",
    ):
        load_corpus(text_config(file), context)


def test_every_fault_of_a_configuration_is_named_at_once(file):
    config = DataConfig(
        source="txt", tokenizer="word", max_bytes=0, recall_fraction=2.0, val_split="validation"
    )
    with pytest.raises(UserError) as caught:
        load_corpus(config, 64)
    for name in (
        "data.source=txt",
        "data.tokenizer=word",
        "data.max_bytes=0",
        "data.recall_fraction=2.0",
        "data.test_split",
    ):
        assert name in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"source": "text"}, "data.path"),
        ({"path": "a.txt"}, "data.path=a.txt: expected null"),
        ({"source": "hub"}, "data.name"),
        ({"tokenizer": "bpe", "vocab_size": 100}, "data.vocab_size=100"),
        ({"recall_fraction": 0.5, "recall_pairs": 9}, "data.recall_keys=8"),
        ({"recall_fraction": 0.5, "recall_queries": 60}, "data.recall_queries=60"),
        ({"recall_fraction": 0.5, "recall_far": 63}, "data.recall_far=63"),
        ({"recall_fraction": 0.5, "recall_near": 0}, "data.recall_near=0"),
        ({"recall_fraction": 0.5, "recall_far": 0}, "data.recall_far=0"),
        ({"recall_fraction": 0.5, "recall_near": 9, "recall_far": 8}, "data.recall_far=8"),
    ],
)
def test_an_invalid_value_is_refused_by_name(changes, fault):
    with pytest.raises(UserError, match=fault):
        load_corpus(DataConfig(**changes), 64)


def _load_in_process(path: str, gate, results) -> None:
    gate.wait()
    corpus = load_corpus(DataConfig(source="text", path=path, tokenizer="bpe", vocab_size=400), 64)
    results.put((corpus.fingerprint, int(corpus.train.sum()), len(corpus.train)))


def test_two_processes_that_build_the_same_corpus_agree_and_leave_no_temporary_files(file):
    spawn = multiprocessing.get_context("spawn")
    gate, results = spawn.Barrier(2), spawn.Queue()
    workers = [
        spawn.Process(target=_load_in_process, args=(str(file), gate, results)) for _ in range(2)
    ]
    for worker in workers:
        worker.start()
    corpora = [results.get(timeout=900) for _ in workers]
    for worker in workers:
        worker.join(timeout=900)
    assert corpora[0] == corpora[1]
    assert [path.name for path in (cache_dir() / "data").iterdir()] == [corpora[0][0][:32]]


def test_a_build_that_fails_leaves_no_files(tmp_path):
    def build(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise RuntimeError("broken off")

    with pytest.raises(RuntimeError, match="broken off"):
        build_once(tmp_path / "made", build)
    assert list(tmp_path.iterdir()) == []


def test_writing_a_file_replaces_it_atomically(tmp_path):
    path = tmp_path / "deep" / "file"
    write_atomic(path, b"old")
    write_atomic(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(path.parent.iterdir()) == [path]


def test_the_cache_folder_is_read_from_the_environment(monkeypatch):
    monkeypatch.setenv("SYNAPTUNE_CACHE", "/a/cache")
    assert cache_dir() == Path("/a/cache")
    monkeypatch.delenv("SYNAPTUNE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_dir() == Path("/xdg/synaptune")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_dir() == Path.home() / ".cache" / "synaptune"


def test_a_full_disk_gives_a_user_error_and_leaves_no_files(file):
    """A limit on the size of a file has the same error path as a full disk."""
    code = f"""
import resource
from synaptune.data.config import DataConfig
from synaptune.data.corpus import load_corpus
from synaptune.core.errors import UserError
config = DataConfig(source="text", path={str(file)!r})
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    load_corpus(config, 64)
except UserError as error:
    print(error)
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=900
    )
    assert "got no space to write" in result.stdout, result.stderr
    assert "SYNAPTUNE_CACHE" in result.stdout
    assert list((cache_dir() / "data").iterdir()) == []


def test_a_cache_folder_that_cannot_be_created_gives_a_user_error(file, tmp_path, monkeypatch):
    monkeypatch.setenv("SYNAPTUNE_CACHE", str(tmp_path / "text.txt" / "cache"))
    with pytest.raises(UserError, match=r"(?s)expected: a writable folder.*SYNAPTUNE_CACHE"):
        load_corpus(text_config(file), 64)


def test_the_share_of_a_text_that_is_read_is_said_in_one_line(tmp_path, caplog):
    (tmp_path / "text").mkdir()
    for name in "ab":
        (tmp_path / "text" / name).write_text(f"{name} sentence. " * 1000)
    (tmp_path / "text" / "binary").write_bytes(b"\0" * 9000)
    path = str(tmp_path / "text")
    load_corpus(DataConfig(source="text", path=path, max_bytes=6000), 16)
    (record,) = caplog.records
    assert record.getMessage() == (
        f"read 0.006 of 0.024 MB of {path} (25 %); data.max_bytes=24000 reads all"
    )
    caplog.clear()
    load_corpus(DataConfig(source="text", path=path, max_bytes=24_000), 16)
    assert not caplog.records
