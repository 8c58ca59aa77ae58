"""Search behind FastAPI: a blocking path function, which FastAPI runs in its thread pool."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import faiss
from fastapi import FastAPI
from pydantic import BaseModel
from sentence_transformers import SentenceTransformer

loaded: dict[str, Any] = {}


class Query(BaseModel):
    question: str
    top_k: int = 5


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    store = Path(os.environ["STORE"])
    loaded["model"] = SentenceTransformer(os.environ["MODEL"], device="cpu")
    loaded["index"] = faiss.read_index(str(store / "passages.faiss"))
    loaded["passages"] = json.loads((store / "passages.json").read_text(encoding="utf-8"))
    yield


app = FastAPI(lifespan=lifespan)


@app.post("/search")
def search(query: Query) -> list[dict[str, Any]]:
    embedding = loaded["model"].encode([query.question], normalize_embeddings=True)
    scores, rows = loaded["index"].search(embedding, query.top_k)
    return [
        {**loaded["passages"][row], "score": float(score)}
        for score, row in zip(scores[0], rows[0], strict=True)
    ]
