"""Text to tokens and back: bytes, or byte-pair encoding trained on the training split; recall symbols follow the text tokens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from synaptune.data.text import Document

BYTES = 256
_BLOCK = 65_536  # bytes given to the byte-pair encoder at a time: long enough for speed, short enough for its memory
TOKENIZER_FILE = "tokenizer.json"


@dataclass(frozen=True)
class Tokenizer:
    """A lossless code of UTF-8 text. pairs: a `tokenizers.Tokenizer`, or None for bytes; size: text tokens."""

    bpe: Any = None

    @property
    def size(self) -> int:
        """How many tokens text uses [token]."""
        return BYTES if self.bpe is None else self.bpe.get_vocab_size()

    @property
    def separator(self) -> int:
        """The token of the zero byte, which stands between documents."""
        return 0 if self.bpe is None else self.bpe.encode("\0").ids[0]

    def encode(self, text: str) -> list[int]:
        """Tokens of a text."""
        return list(text.encode()) if self.bpe is None else self.bpe.encode(text).ids

    def decode(self, tokens: Iterable[int]) -> str:
        """Text of tokens; incomplete characters become U+FFFD, symbols beyond the text tokens `<n>`."""
        pieces: list[str] = []
        run: list[int] = []
        for token in tokens:
            if token < self.size:
                run.append(token)
                continue
            pieces += [self._decode_run(run), f"<{token - self.size}>"]
            run = []
        return "".join([*pieces, self._decode_run(run)])

    def _decode_run(self, tokens: list[int]) -> str:
        return (
            bytes(tokens).decode(errors="replace")
            if self.bpe is None
            else self.bpe.decode(tokens, skip_special_tokens=False)
        )

    def encode_documents(self, documents: list[Document]) -> np.ndarray:
        """Documents as one uint16 array, the separator between them."""
        if self.bpe is None:
            return np.frombuffer(
                b"\0".join(document.content for document in documents), dtype=np.uint8
            ).astype(np.uint16)
        gap = np.array([self.separator], dtype=np.uint16)
        parts: list[np.ndarray] = []
        for document in documents:
            encoded = self.bpe.encode_batch(list(_split_blocks(document)), add_special_tokens=False)
            parts += [*(np.array(block.ids, dtype=np.uint16) for block in encoded), gap]
        return np.concatenate(parts[:-1]) if parts else np.empty(0, dtype=np.uint16)

    def save(self, folder: Path) -> None:
        """Keep a trained code in a folder; bytes need no file."""
        if self.bpe is not None:
            self.bpe.save(str(folder / TOKENIZER_FILE))


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer that `save` left in a folder, else bytes."""
    if not (folder / TOKENIZER_FILE).exists():
        return Tokenizer()
    from tokenizers import Tokenizer as Pairs

    return Tokenizer(Pairs.from_file(str(folder / TOKENIZER_FILE)))


def train_bpe(documents: list[Document], vocab_size: int) -> Tokenizer:
    """Byte-pair encoding (Sennrich et al., ACL 2016) over bytes, with at most `vocab_size` tokens; every text can be encoded."""
    from tokenizers import Tokenizer as Pairs
    from tokenizers import decoders, models, pre_tokenizers, trainers

    pairs = Pairs(models.BPE())
    pairs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pairs.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[],
        show_progress=False,
    )
    pairs.train_from_iterator(
        (block for document in documents for block in _split_blocks(document)), trainer
    )
    return Tokenizer(pairs)


def _split_blocks(document: Document) -> Iterator[str]:
    """A document in blocks that end with a line where there are lines."""
    content, start = document.content, 0
    while start < len(content):
        stop = content.rfind(b"\n", start, start + _BLOCK) + 1
        if start + _BLOCK >= len(content):
            stop = len(content)
        elif stop <= start:
            stop = start + _BLOCK
            while stop < len(content) and content[stop] & 0xC0 == 0x80:
                stop += 1
        yield content[start:stop].decode()
        start = stop
