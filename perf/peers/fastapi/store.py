"""Embeds the passages and writes a FAISS index, as sentence-transformers' and FAISS' guides do."""

from __future__ import annotations

import json
import os
from pathlib import Path

import faiss
from sentence_transformers import SentenceTransformer


def main() -> None:
    store = Path(os.environ["STORE"])
    with open(os.environ["PASSAGES"], encoding="utf-8") as lines:
        passages = [json.loads(line) for line in lines]
    model = SentenceTransformer(os.environ["MODEL"], device="cpu")
    embeddings = model.encode([each["text"] for each in passages], normalize_embeddings=True)
    index = faiss.IndexFlatIP(embeddings.shape[1])
    index.add(embeddings)
    faiss.write_index(index, str(store / "passages.faiss"))
    (store / "passages.json").write_text(json.dumps(passages), encoding="utf-8")


if __name__ == "__main__":
    main()
