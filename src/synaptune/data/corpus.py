"""A corpus: the memory-mapped token arrays of three splits, and their tokenizer."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from synaptune.core.errors import UserError, user_error
from synaptune.core.files import build_once, cache_dir
from synaptune.data.config import DataConfig, find_data_faults
from synaptune.data.text import (
    Splits,
    encode_name,
    measure_text,
    read_file_or_folder,
    read_standard_library,
    split_documents,
)
from synaptune.data.tokenizer import BYTES, Tokenizer, load_tokenizer, train_bpe

SPLITS = ("train", "val", "test")
# Part of every fingerprint: another number invalidates all cached files.
_FORMAT = b"synaptune corpus 1"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Corpus:
    """Tokens of the three splits and what they were made with.

    Attributes:
        train: training split, uint16, memory-mapped.
        val: the same for the validation split.
        test: the same for the test split.
        vocab: size of the vocabulary with the recall symbols [token].
        text_vocab: size of the vocabulary of text; the recall symbols follow it [token].
        bytes_per_token: mean over the validation split [byte/token].
        fingerprint: SHA-256 of the text, its split and its tokenizer.
        tokenizer: tokenizer of the text.
    """

    train: np.ndarray
    val: np.ndarray
    test: np.ndarray
    vocab: int
    text_vocab: int
    bytes_per_token: float
    fingerprint: str
    tokenizer: Tokenizer

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text."""
        return self.tokenizer.encode(text)

    def decode(self, tokens: list[int]) -> str:
        """Return the text of tokens."""
        return self.tokenizer.decode(tokens)


def load_corpus(config: DataConfig, context: int) -> Corpus:
    """Read and tokenise the text of a configuration; take the tokens from the cache if possible.

    Args:
        config: settings of the data.
        context: length of a row [token].

    Raises:
        UserError: the configuration has a fault; the text is missing, empty or binary; a split has
            no complete row of `context` tokens; the library `datasets` is missing or the hub does
            not answer (source hub); the cache has no free space.
    """
    if faults := find_data_faults(config, context):
        raise UserError("\n".join(faults))
    if config.source == "chains":
        return _make_chain_corpus(config)
    splits = _read_splits(config)
    _warn_if_cut(splits, config)
    fingerprint = _compute_fingerprint(splits, config)
    folder = build_once(
        cache_dir() / "data" / fingerprint[:32], partial(_write_corpus, splits, config)
    )
    arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in SPLITS}
    measures = json.loads((folder / "about.json").read_text())
    _check_lengths(arrays, config, context)
    tokenizer = load_tokenizer(folder)
    return Corpus(
        **arrays,
        vocab=tokenizer.size + config.symbols,
        text_vocab=tokenizer.size,
        bytes_per_token=measures["bytes_per_token"],
        fingerprint=fingerprint,
        tokenizer=tokenizer,
    )


def _make_chain_corpus(config: DataConfig) -> Corpus:
    """Return the empty corpus of chains, whose rows batches.py draws; a state is one byte."""
    settings = f"chains {config.chain_states} {config.chain_spread}"
    empty, tokenizer = np.empty(0, np.uint16), Tokenizer()
    return Corpus(
        empty,
        empty,
        empty,
        vocab=tokenizer.size + config.symbols,
        text_vocab=tokenizer.size,
        bytes_per_token=1.0,
        fingerprint=hashlib.sha256(settings.encode()).hexdigest(),
        tokenizer=tokenizer,
    )


def _read_splits(config: DataConfig) -> Splits:
    """Read the documents of the three splits from the configured source."""
    if config.source == "hub":
        from synaptune.data.hub import load_hub_splits

        return load_hub_splits(config)
    documents = (
        read_file_or_folder(Path(str(config.path)).expanduser(), config.max_bytes)
        if config.source == "text"
        else read_standard_library(config.max_bytes)
    )
    return split_documents(documents)


def _warn_if_cut(splits: Splits, config: DataConfig) -> None:
    """Warn when data.max_bytes cut a file or a folder; hub.py warns for each split of a dataset.

    The standard library is a sample by definition.
    """
    total = sum(len(document.content) for part in splits for document in part)
    if config.source != "text" or total < config.max_bytes - 3:
        return
    size = measure_text(Path(str(config.path)).expanduser())
    if size > total:
        _log.warning(
            "read %.3g of %.3g MB of %s (%.2g %%); data.max_bytes=%d reads all",
            total / 1e6,
            size / 1e6,
            config.path,
            100.0 * total / size,
            size,
        )


def _compute_fingerprint(splits: Splits, config: DataConfig) -> str:
    """Return the SHA-256 of the tokenizer's settings and the documents of each split."""
    digest = hashlib.sha256(_FORMAT)
    digest.update(
        f"{config.tokenizer} {config.vocab_size if config.tokenizer == 'bpe' else BYTES}".encode()
    )
    for split, part in zip(SPLITS, splits, strict=True):
        for name, content in part:
            digest.update(b"\0%b\0%b\0%d\0" % (split.encode(), encode_name(name), len(content)))
            digest.update(content)
    return digest.hexdigest()


def _write_corpus(splits: Splits, config: DataConfig, folder: Path) -> None:
    """Write the token arrays, the tokenizer and the measures into an empty folder."""
    tokenizer = (
        train_bpe(splits.train, config.vocab_size) if config.tokenizer == "bpe" else Tokenizer()
    )
    tokenizer.save(folder)
    lengths = {}
    for name, part in zip(SPLITS, splits, strict=True):
        array = tokenizer.encode_documents(part)
        _save_array(folder / f"{name}.npy", array)
        lengths[name] = len(array)
    # One separator stands between two documents.
    size = sum(len(document.content) + 1 for document in splits.val) - bool(splits.val)
    measures = {
        "bytes_per_token": size / max(1, lengths["val"]),
        "documents": [len(part) for part in splits],
    }
    (folder / "about.json").write_text(json.dumps(measures))


def _save_array(path: Path, array: np.ndarray) -> None:
    """Write a .npy file; the OSError of `numpy.save` for a full disk would have no errno."""
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        file.write(array.data)


def _check_lengths(arrays: dict[str, np.ndarray], config: DataConfig, context: int) -> None:
    """Raise UserError unless each split has its longest row and the next token."""
    longest = context * max(1, config.needle_lengths)
    short = [f"{name} {len(array)}" for name, array in arrays.items() if len(array) <= longest]
    if short and (config.recall_fraction < 1.0 or config.needle_lengths):
        source = config.path or config.name or config.source
        total = sum(len(array) for array in arrays.values())
        raise user_error(
            got=f"{source}: {', '.join(short)} tokens, of {total} tokens in total",
            expected=f"more than one context of {longest} tokens in each of train (90 %), "
            "val (5 %) and test (5 %)",
            do="use a longer text, or lower model.context or data.needle_lengths",
        )
