"""What a run reads: the source of text, its tokens, and the share of associative-recall sequences."""

from __future__ import annotations

from dataclasses import dataclass

TOKENIZERS = ("byte", "bpe")
SOURCES = ("stdlib", "text", "hub")
LARGEST_VOCABULARY = 65_536  # tokens are stored as uint16


@dataclass(frozen=True)
class DataConfig:
    """The choices of the `data` group.

    source: where the text comes from. path: a file or a folder (source text), or the files of a hub builder such as json.
    name, subset, split, column: a dataset of the hub, or a folder saved by `save_to_disk`; val_split and test_split name its
    own validation and test splits, else `split` is divided. streaming reads a large hub dataset without downloading it whole.
    tokenizer: byte, or bpe trained on the training split to vocab_size tokens. max_bytes caps the text [byte].
    recall_*: the associative-recall rows (recall.py); recall_fraction is their share of the rows [1]; recall_near and
    recall_far bound the distance between the last pair and a query [token], recall_far=null is the end of the row.
    """

    source: str = "stdlib"
    path: str | None = None
    name: str | None = None
    subset: str | None = None
    split: str = "train"
    val_split: str | None = None
    test_split: str | None = None
    column: str = "text"
    streaming: bool = False
    tokenizer: str = "byte"
    vocab_size: int = 1024
    max_bytes: int = 8_000_000
    recall_fraction: float = 0.0
    recall_pairs: int = 4
    recall_queries: int = 16
    recall_keys: int = 8
    recall_values: int = 8
    recall_near: int = 1
    recall_far: int | None = None

    @property
    def symbols(self) -> int:
        """Tokens that recall rows add to the vocabulary: keys, values and one filler; 0 without recall."""
        return self.recall_keys + self.recall_values + 1 if self.recall_fraction > 0 else 0


def find_data_faults(config: DataConfig, context: int) -> list[str]:
    """Everything wrong with a data configuration for rows of `context` tokens, one line each; reads no file."""
    found = []
    if config.source not in SOURCES:
        found.append(
            f"data.source={config.source}: expected one of {', '.join(SOURCES)}; choose data=stdlib, data=text or data=hub"
        )
    if config.source == "text" and not config.path:
        found.append(
            "data.path: expected a text file or a folder of text files; add data.path=FILE_OR_FOLDER"
        )
    if config.source == "hub" and not config.name:
        found.append("data.name: expected the name of a dataset; add data.name=NAME")
    if (config.val_split is None) != (config.test_split is None):
        found.append("data.val_split, data.test_split: expected both or neither")
    if config.tokenizer not in TOKENIZERS:
        found.append(f"data.tokenizer={config.tokenizer}: expected one of {', '.join(TOKENIZERS)}")
    if (
        config.tokenizer == "bpe"
        and not 257 <= config.vocab_size <= LARGEST_VOCABULARY - config.symbols
    ):
        found.append(
            f"data.vocab_size={config.vocab_size}: expected 257 to {LARGEST_VOCABULARY - config.symbols} [token]"
        )
    if config.max_bytes < 1:
        found.append(f"data.max_bytes={config.max_bytes}: expected at least 1 [byte]")
    if context < 1:
        found.append(f"context={context}: expected at least 1 [token]")
    return found + _find_recall_faults(config, context)


def _find_recall_faults(config: DataConfig, context: int) -> list[str]:
    """The faults of the recall settings; none are looked for when recall is off."""
    if not 0.0 <= config.recall_fraction <= 1.0:
        return [f"data.recall_fraction={config.recall_fraction}: expected 0 to 1"]
    if config.recall_fraction == 0.0:
        return []
    found = [
        f"data.{name}={getattr(config, name)}: expected at least {least}"
        for name, least in (
            ("recall_pairs", 1),
            ("recall_queries", 1),
            ("recall_values", 2),
            ("recall_near", 1),
        )
        if getattr(config, name) < least
    ]
    if config.recall_keys < config.recall_pairs:
        found.append(
            f"data.recall_keys={config.recall_keys}: expected at least recall_pairs={config.recall_pairs} (the keys of a row differ)"
        )
    if config.symbols > LARGEST_VOCABULARY // 2:
        found.append(
            f"data.recall_keys + data.recall_values: got {config.symbols - 1}, expected at most {LARGEST_VOCABULARY // 2 - 1}"
        )
    end = context - 2 * config.recall_pairs
    far = end if config.recall_far is None else config.recall_far
    if config.recall_far is not None and not config.recall_near <= far <= end:
        found.append(
            f"data.recall_far={far}: expected data.recall_near={config.recall_near} to {end} (end of the row), or null"
        )
        return found
    room = far - config.recall_near + 1
    if room < config.recall_queries:
        found.append(
            f"data.recall_queries={config.recall_queries}: expected at most {max(room, 0)}, the places left in a row of {context} tokens"
            f" by {config.recall_pairs} pairs; lower data.recall_queries or data.recall_pairs, or lengthen model.context"
        )
    return found
