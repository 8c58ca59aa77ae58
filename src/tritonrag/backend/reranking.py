"""The ``rerank`` model on ONNX Runtime, and its marshalling."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

import numpy as np
import onnxruntime as ort

from tritonrag import contract
from tritonrag.artifacts import RerankerManifest, reranker_dir
from tritonrag.backend.conversions import column, log_info, rows, strings
from tritonrag.backend.onnx import CPU, CUDA
from tritonrag.backend.ranking import write_rows
from tritonrag.contract import DEFAULT_TOP_K, MAX_TOP_K
from tritonrag.errors import InternalError, SetupError
from tritonrag.limits import check_count
from tritonrag.prompting import parse_passages
from tritonrag.reranking import (
    BatchLimits,
    Candidates,
    Floats,
    Ids,
    PairTokenizer,
    Ranked,
    Reranker,
)
from tritonrag.settings import ModelArgs
from tritonrag.tokenizing import check_text

DEVICES = ("auto", "cpu", "cuda")


class OnnxScorer:
    """A cross-encoder's graph: token ids to logits."""

    def __init__(self, session: ort.InferenceSession) -> None:
        """Take a session; its inputs are those of the model that was exported."""
        self._session = session
        self._inputs = [each.name for each in session.get_inputs()]

    def __call__(self, ids: Ids, mask: Ids, types: Ids) -> Floats:
        """Return the logits [pairs] of token ids, attention mask and token types."""
        known = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
        (logits,) = self._session.run(["logits"], {name: known[name] for name in self._inputs})
        return np.asarray(logits, np.float32)


def load_reranker(args: ModelArgs) -> Reranker:
    """Load the installed reranker with the settings of its ``config.pbtxt``.

    Raises:
        SetupError: none is installed, a setting is out of bounds, or there is no such device.
    """
    manifest = RerankerManifest.load(args.repository, args.version)
    folder = args.repository / reranker_dir(args.version)
    limits = BatchLimits(
        pairs=args.integer("batch_pairs", 32, 1, 4096),
        tokens=args.integer("batch_tokens", 8192, 16, 1 << 22),
    )
    options = ort.SessionOptions()
    options.intra_op_num_threads = args.integer("threads", 0, 0, 1024)
    wanted = _providers(args)
    session = ort.InferenceSession(folder / "model.onnx", options, providers=wanted)
    if wanted == [CUDA] and CUDA not in session.get_providers():
        raise SetupError(f"model {args.name}: CUDA cannot be used here; the log says why")
    log_info(f"reranker {manifest.identity} on {session.get_providers()[0]}")
    tokenizer = PairTokenizer(folder / "tokenizer.json", manifest.max_tokens)
    return Reranker(tokenizer, OnnxScorer(session), manifest.activation, limits)


def _providers(args: ModelArgs) -> list[str]:
    device = args.text("device", "auto")
    if device not in DEVICES:
        raise SetupError(
            f"model {args.name}: parameter device is {device!r}, expected {', '.join(DEVICES)}"
        )
    has_cuda = CUDA in ort.get_available_providers()
    if device == "cuda" and not has_cuda:
        raise SetupError(
            f"model {args.name}: parameter device is 'cuda', but this ONNX Runtime has no CUDA; "
            "install onnxruntime-gpu in place of onnxruntime, or set it to auto"
        )
    return {"cpu": [CPU], "cuda": [CUDA], "auto": [CUDA, CPU] if has_cuda else [CPU]}[device]


def read_candidates(request: Any) -> list[Candidates]:
    """Return the candidates of each row of the request's batch.

    Raises:
        InvalidRequest: a blank or long question, passages that are none, too many or too long, or
            ``top_k`` out of range.
    """
    questions = strings(request, contract.QUESTION)
    top_ks = column(request, contract.TOP_K, DEFAULT_TOP_K, len(questions))
    found = rows(request, contract.PASSAGES, MAX_TOP_K)
    return [_candidates(*row) for row in zip(questions, found, top_ks, strict=True)]


def _candidates(question: str, texts: list[str], top_k: int) -> Candidates:
    check_text(question, "query")
    check_count("top_k", top_k)
    return Candidates(question, parse_passages(texts), top_k)


def rerank_all(
    reranker: Reranker, batch: Sequence[list[Candidates]]
) -> list[list[Ranked] | InternalError]:
    """Rerank the rows of all requests together; the answers are grouped by request again."""
    answers = iter(reranker.rerank([row for request in batch for row in request]))
    return [_grouped(list(islice(answers, len(request)))) for request in batch]


def _grouped(answers: list[Ranked | InternalError]) -> list[Ranked] | InternalError:
    for each in answers:
        if isinstance(each, InternalError):
            return each
    return [each for each in answers if isinstance(each, Ranked)]


def write_ranked(answers: list[Ranked]) -> Any:
    """Return a request's response."""
    return write_rows([(each.passages, each.scores) for each in answers])
