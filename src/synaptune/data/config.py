"""Settings of the data: source of the text, tokenizer, and associative-recall rows."""

from __future__ import annotations

from dataclasses import dataclass

TOKENIZERS = ("byte", "bpe")
SOURCES = ("stdlib", "text", "hub", "chains")
CLASSES = 10  # of every set of images
IMAGE_SOURCES = ("digits", "mnist", "fashion-mnist", "cifar10")
EMBEDDED_SOURCES = ("stdlib", "chains", "digits")  # they read no files of the user
LARGEST_VOCABULARY = 65_536  # tokens are stored as uint16


@dataclass(frozen=True)
class DataConfig:
    """Settings of the `data` group.

    Attributes:
        source: origin of the text: stdlib, text or hub; or chains (chains.py); or of images: an
            entry of IMAGE_SOURCES.
        path: file or folder of source `text`, or the files of a hub builder such as json; folder
            of the image files, None for one in the cache.
        name: dataset of the hub, folder written by `save_to_disk`, or hub builder.
        subset: subset of the dataset.
        split: split of the dataset; divided into three unless val_split and test_split are set.
        val_split: split of the dataset for validation.
        test_split: split of the dataset for the test.
        column: column of the dataset with the text.
        streaming: read a large hub dataset without a complete download.
        tokenizer: byte, or bpe trained on the training split.
        vocab_size: vocabulary of bpe [token].
        max_bytes: largest size of the text [byte].
        recall_fraction: share of associative-recall rows (recall.py) [1].
        recall_pairs: key-value pairs of a recall row.
        recall_queries: queries of a recall row.
        recall_keys: keys in the vocabulary [token].
        recall_values: values in the vocabulary [token].
        recall_near: shortest distance from the last pair to a query [token].
        recall_far: longest distance from the last pair to a query [token]; None for the end of
            the row.
        recall_distractors: different tokens between the queries; 1 is an empty filler [token].
        needle_lengths: number of lengths of real text, 1, 2, ... contexts, at which a trained model
            is asked for a fact (needle.py).
        chain_states: states of an in-context Markov chain [token].
        chain_spread: concentration of its transition probabilities; small is predictable.
        subset_size: training images that are used; None for all.
        download: download image files that are missing.
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
    recall_distractors: int = 1
    needle_lengths: int = 0
    chain_states: int = 8
    chain_spread: float = 0.3
    subset_size: int | None = None
    download: bool = False

    @property
    def has_images(self) -> bool:
        """Whether the data are images."""
        return self.source in IMAGE_SOURCES

    @property
    def symbols(self) -> int:
        """Tokens that recall rows add to the vocabulary: keys, values and fillers; 0 without."""
        count = self.recall_keys + self.recall_values + self.recall_distractors
        return count if self.recall_fraction > 0 else 0


def find_data_faults(config: DataConfig, context: int) -> list[str]:
    """Return one line for each fault of a data configuration with rows of `context` tokens.

    The function reads no file.
    """
    path_check = (
        config.path is None or config.source not in EMBEDDED_SOURCES,
        f"data.path={config.path}: expected null, because data={config.source} reads no file; "
        "choose the data of the path, such as data=text",
    )
    if config.has_images:
        subset_check = (
            config.subset_size is None or config.subset_size >= 1,
            f"data.subset_size={config.subset_size}: expected at least 1 image, or null",
        )
        return [fault for is_valid, fault in (path_check, subset_check) if not is_valid]
    largest = LARGEST_VOCABULARY - config.symbols
    checks = (
        path_check,
        (
            config.source in SOURCES,
            f"data.source={config.source}: expected one of "
            f"{', '.join((*SOURCES, *IMAGE_SOURCES))}; choose one with data=NAME",
        ),
        (
            config.source != "text" or config.path,
            "data.path: expected a text file or a folder of text files; "
            "add data.path=FILE_OR_FOLDER",
        ),
        (
            config.source != "hub" or config.name,
            "data.name: expected the name of a dataset; add data.name=NAME",
        ),
        (
            (config.val_split is None) == (config.test_split is None),
            "data.val_split, data.test_split: expected both or neither",
        ),
        (
            config.tokenizer in TOKENIZERS,
            f"data.tokenizer={config.tokenizer}: expected one of {', '.join(TOKENIZERS)}",
        ),
        (
            config.tokenizer != "bpe" or 257 <= config.vocab_size <= largest,
            f"data.vocab_size={config.vocab_size}: expected 257 to {largest} [token]",
        ),
        (config.max_bytes >= 1, f"data.max_bytes={config.max_bytes}: expected at least 1 [byte]"),
        (context >= 1, f"context={context}: expected at least 1 [token]"),
        (
            0.0 <= config.recall_fraction <= 1.0,
            f"data.recall_fraction={config.recall_fraction}: expected 0 to 1",
        ),
        (
            config.needle_lengths >= 0,
            f"data.needle_lengths={config.needle_lengths}: expected at least 0",
        ),
        (
            config.needle_lengths < 1 or config.recall_fraction > 0.0,
            "data.needle_lengths: expected recall rows, from which a model learns to answer; "
            "add data.recall_fraction=0.5",
        ),
        (
            config.needle_lengths < 1 or config.source != "chains",
            "data.needle_lengths: expected real text, not data=chains",
        ),
        (
            config.source != "chains" or 2 <= config.chain_states <= 26,
            f"data.chain_states={config.chain_states}: expected 2 to 26, the letters of a state",
        ),
        (
            config.source != "chains" or 0.01 <= config.chain_spread <= 100.0,
            f"data.chain_spread={config.chain_spread:g}: expected 0.01 to 100",
        ),
    )
    faults = [fault for is_valid, fault in checks if not is_valid]
    is_recall = 0.0 < config.recall_fraction <= 1.0
    return faults + (_find_recall_faults(config, context) if is_recall else [])


def _find_recall_faults(config: DataConfig, context: int) -> list[str]:
    """Return the faults of the settings of recall rows."""
    least = {"recall_pairs": 1, "recall_queries": 1, "recall_values": 2, "recall_near": 1}
    least |= {"recall_distractors": 1}
    near, end = config.recall_near, context - 2 * config.recall_pairs
    far = end if config.recall_far is None else config.recall_far
    is_far_valid = config.recall_far is None or near <= far <= end
    room = max(0, far - near + 1)
    checks = (
        *(
            (
                getattr(config, name) >= minimum,
                f"data.{name}={getattr(config, name)}: expected at least {minimum}",
            )
            for name, minimum in least.items()
        ),
        (
            config.recall_keys >= config.recall_pairs,
            f"data.recall_keys={config.recall_keys}: "
            f"expected at least recall_pairs={config.recall_pairs} (the keys of a row differ)",
        ),
        (
            config.symbols <= LARGEST_VOCABULARY // 2,
            "data.recall_keys + data.recall_values + data.recall_distractors: got "
            f"{config.symbols}, expected at most {LARGEST_VOCABULARY // 2}",
        ),
        (
            is_far_valid,
            f"data.recall_far={far}: "
            f"expected data.recall_near={near} to {end} (end of the row), or null",
        ),
        (
            not is_far_valid or room >= config.recall_queries,
            f"data.recall_queries={config.recall_queries}: expected at most {room}, "
            f"the free positions in a row of {context} tokens with {config.recall_pairs} pairs; "
            "lower data.recall_queries or data.recall_pairs, or raise model.context",
        ),
    )
    return [fault for is_valid, fault in checks if not is_valid]
