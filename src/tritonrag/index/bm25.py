"""BM25 over the passages of a snapshot: ``bm25s``, its postings read by position.

The scores of every term in every passage are computed when the snapshot is written (Lù 2024,
*BM25S: Orders of magnitude faster lexical search via eager sparse scoring*); a search adds up those
of the question's terms. docs/decisions/0010 says why this engine.
"""

from __future__ import annotations

import json
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

import bm25s
import numpy as np

from tritonrag.index.analysis import passage_terms, question_terms
from tritonrag.index.positional import ArrayFile, PositionalFile, open_array
from tritonrag.index.vectors import Allowed, Floats, Ids

K1, B = 1.2, 0.75

FILES = {
    "data_name": "bm25.scores.npy",
    "indices_name": "bm25.passages.npy",
    "indptr_name": "bm25.starts.npy",
    "vocab_name": "bm25.terms.json",
    "params_name": "bm25.json",
}
"""The files of an index, by what ``bm25s`` calls them."""


class Bm25:
    """The index of one snapshot. Any number of threads may search it."""

    def __init__(self, model: bm25s.BM25) -> None:
        """Hold what :meth:`open` has read."""
        self._model = model

    @classmethod
    def open(cls, folder: Path) -> Bm25:
        """Open the index in ``folder``.

        Raises:
            OSError, ValueError, EOFError: a file is missing or damaged.
        """
        return cls(_Model.load(folder, **FILES))

    @property
    def files(self) -> list[PositionalFile]:
        """What is read from in a search."""
        parts = self._model.scores.values()
        return [part.file for part in parts if isinstance(part, ArrayFile)]

    def __len__(self) -> int:
        """Return the number of passages."""
        return int(self._model.scores["num_docs"])

    def search(self, question: str, count: int, allowed: Allowed | None) -> tuple[Floats, Ids]:
        """Return at most ``count`` passages that share a term with the question, best first.

        Only ``allowed`` ones are ranked. Passages of equal score come in the order of the snapshot.

        Returns:
            BM25 scores and passage numbers, both ``[n]``.
        """
        terms = self._model.get_tokens_ids(question_terms(question))
        scores = self._model.get_scores_from_ids(terms)
        found = np.flatnonzero(scores > 0)  # ten times as fast as on the scores themselves
        if allowed is not None:
            found = found[allowed.mask[found]]
        if len(found) > count:
            least = np.partition(scores[found], -count)[-count]
            found = found[scores[found] >= least]
        best = found[np.argsort(-scores[found], kind="stable")][:count]
        return scores[best], best

    def sparse_vectors(self) -> Iterator[dict[int, float]]:
        """Yield each passage's scores by :func:`dimension` of the term.

        The inner product with :func:`question_vector` is the score that :meth:`search` returns.
        """
        stored = self._model.scores
        starts = np.asarray(stored["indptr"], np.int64)
        passages, weights = stored["indices"][:], stored["data"][:]
        by_number = {number: dimension(term) for term, number in self._model.vocab_dict.items()}
        terms = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
        order = np.argsort(passages, kind="stable")
        bounds = np.searchsorted(passages[order], np.arange(len(self) + 1))
        for start, end in zip(bounds[:-1], bounds[1:], strict=True):
            vector: dict[int, float] = defaultdict(float)
            for place in order[start:end].tolist():
                vector[by_number[int(terms[place])]] += float(weights[place])
            yield dict(vector)


class _Model(bm25s.BM25):  # type: ignore[misc]
    """Its postings, of which a search reads those of the question's terms, stay on disk."""

    def load_scores(
        self,
        save_dir: Path,
        data_name: str,
        indices_name: str,
        indptr_name: str,
        num_docs: int,
        **options: object,
    ) -> None:
        starts = np.load(save_dir / indptr_name, allow_pickle=False)
        data, passages = open_array(save_dir / data_name), open_array(save_dir / indices_name)
        if not len(data) == len(passages) == starts[-1]:
            raise ValueError(f"{indptr_name} does not fit {data_name} and {indices_name}")
        self.scores = {"data": data, "indices": passages, "indptr": starts, "num_docs": num_docs}


def dimension(term: str) -> int:
    """Return the dimension of a term in a sparse vector: 1 to 2**32 - 2, so that few share one."""
    return zlib.crc32(term.encode()) % (2**32 - 2) + 1


def question_vector(question: str) -> dict[int, float]:
    """Return a question as a sparse vector: 1 for each of its terms."""
    return {dimension(term): 1.0 for term in question_terms(question)}


def build(folder: Path, texts: Iterable[str]) -> None:
    """Write the index of ``texts``, one a passage, into ``folder``."""
    terms: dict[str, int] = {"": 0}  # there is always one, as `bm25s` wants
    passages = [
        [terms.setdefault(term, len(terms)) for term in passage_terms(text)] for text in texts
    ]
    model = bm25s.BM25(k1=K1, b=B, method="lucene")
    with np.errstate(invalid="ignore"):  # passages without any term divide 0 by 0
        model.index((passages, terms), create_empty_token=False, show_progress=False)
    model.save(folder, show_progress=False, **FILES)


def indexed_text(line: bytes) -> str:
    """Return what is searched of a stored passage: as the embedder, its headings, then its text."""
    passage = json.loads(line)
    return f"{passage['location']}\n{passage['text']}"
