"""Generation by ``transformers`` behind FastAPI: ``generate`` of one prompt at a time."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from transformers import AutoModelForCausalLM, AutoTokenizer

loaded: dict[str, Any] = {}


class Prompt(BaseModel):
    prompt: str
    max_tokens: int = 256


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    loaded["tokenizer"] = AutoTokenizer.from_pretrained(os.environ["LLM"])
    loaded["model"] = AutoModelForCausalLM.from_pretrained(os.environ["LLM"], dtype="float32")
    yield


app = FastAPI(lifespan=lifespan)


@app.post("/generate")
def generate(prompt: Prompt) -> dict[str, Any]:
    tokenizer = loaded["tokenizer"]
    inputs = tokenizer(prompt.prompt, return_tensors="pt", return_token_type_ids=False)
    output = loaded["model"].generate(**inputs, max_new_tokens=prompt.max_tokens, do_sample=False)
    new = output[0, inputs["input_ids"].shape[1] :]
    return {
        "text": tokenizer.decode(new, skip_special_tokens=True),
        "generated_tokens": len(new),
    }
