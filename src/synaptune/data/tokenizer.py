"""Tokenizers: bytes, or byte-pair encoding trained on the training split.

The numbers of the recall symbols follow those of the text tokens.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from synaptune.data.text import Document, find_boundary

BYTES = 256
_BLOCK = 65_536  # bytes per call of the byte-pair encoder: a compromise of speed and memory
TOKENIZER_FILE = "tokenizer.json"


@dataclass(frozen=True)
class Tokenizer:
    """A lossless encoding of UTF-8 text.

    Attributes:
        bpe: a `tokenizers.Tokenizer`; None for bytes.
    """

    bpe: Any = None

    @property
    def size(self) -> int:
        """Size of the vocabulary of text [token]."""
        return BYTES if self.bpe is None else self.bpe.get_vocab_size()

    @property
    def separator(self) -> int:
        """Token of the zero byte, which separates documents."""
        return 0 if self.bpe is None else self.bpe.encode("\0").ids[0]

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text."""
        return list(text.encode()) if self.bpe is None else self.bpe.encode(text).ids

    def decode(self, tokens: Iterable[int]) -> str:
        """Return the text of tokens.

        Incomplete characters become U+FFFD; recall symbol n becomes `<n>`.
        """
        pieces: list[str] = []
        for is_symbol, group in itertools.groupby(tokens, key=lambda token: token >= self.size):
            run = list(group)
            symbols = [f"<{token - self.size}>" for token in run]
            pieces += symbols if is_symbol else [self._decode_run(run)]
        return "".join(pieces)

    def _decode_run(self, tokens: list[int]) -> str:
        return (
            bytes(tokens).decode(errors="replace")
            if self.bpe is None
            else self.bpe.decode(tokens, skip_special_tokens=False)
        )

    def encode_documents(self, documents: list[Document]) -> np.ndarray:
        """Encode documents into one uint16 array with the separator between them."""
        if self.bpe is None:
            return np.frombuffer(
                b"\0".join(document.content for document in documents), dtype=np.uint8
            ).astype(np.uint16)
        separator = np.array([self.separator], dtype=np.uint16)
        parts: list[np.ndarray] = []
        for document in documents:
            encoded = self.bpe.encode_batch(list(_split_blocks(document)), add_special_tokens=False)
            parts += [*(np.array(block.ids, dtype=np.uint16) for block in encoded), separator]
        return np.concatenate(parts[:-1]) if parts else np.empty(0, dtype=np.uint16)

    def save(self, folder: Path) -> None:
        """Write a trained tokenizer into a folder; bytes need no file."""
        if self.bpe is not None:
            self.bpe.save(str(folder / TOKENIZER_FILE))


def load_tokenizer(folder: Path) -> Tokenizer:
    """Load the tokenizer that `save` wrote into a folder; bytes when there is none."""
    if not (folder / TOKENIZER_FILE).exists():
        return Tokenizer()
    from tokenizers import Tokenizer as BytePairTokenizer

    return Tokenizer(BytePairTokenizer.from_file(str(folder / TOKENIZER_FILE)))


def train_bpe(documents: list[Document], vocab_size: int) -> Tokenizer:
    """Train byte-pair encoding over bytes with at most `vocab_size` tokens; it encodes every text.

    Source: Sennrich et al., ACL 2016.
    """
    from tokenizers import Tokenizer as BytePairTokenizer
    from tokenizers import decoders, models, pre_tokenizers, trainers

    bpe = BytePairTokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[],
        show_progress=False,
    )
    bpe.train_from_iterator(
        (block for document in documents for block in _split_blocks(document)), trainer
    )
    return Tokenizer(bpe)


def _split_blocks(document: Document) -> Iterator[str]:
    """Yield a document in blocks; a block ends with a line when it contains a line end."""
    content, start = document.content, 0
    while start < len(content):
        stop = content.rfind(b"\n", start, start + _BLOCK) + 1
        if start + _BLOCK >= len(content):
            stop = len(content)
        elif stop <= start:
            stop = find_boundary(content, start + _BLOCK)
        yield content[start:stop].decode()
        start = stop
