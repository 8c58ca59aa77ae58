"""The contract: names, dtypes, shapes and limits of every served model, in one place.

``model_repository/*/config.pbtxt`` is written by hand and held to this module by a test;
``docs/contract.md`` is generated from it. This module imports nothing of the package.

Shapes are per request, without the batch dimension; -1 is a dimension that varies.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

MAX_QUESTION_BYTES = 8 * 1024
"""Longest question, in bytes of UTF-8."""

MAX_TEXT_BYTES = 64 * 1024
"""Longest text that ``tokenize`` takes as a passage, in bytes of UTF-8 (it is truncated to the
embedder's tokens afterwards)."""

MAX_HISTORY_BYTES = 64 * 1024
"""Longest conversation history, in bytes of JSON."""

MAX_PROMPT_BYTES = 1024 * 1024
"""Longest prompt that ``generate`` takes, in bytes of UTF-8."""

MIN_TOP_K, MAX_TOP_K, DEFAULT_TOP_K = 1, 100, 4
"""Passages per question: range and default."""

DEFAULT_RETRIEVE_K = 20
"""Passages that are found for the reranker when the caller does not say."""

MAX_PASSAGE_BYTES, MAX_PASSAGES_BYTES = 1024 * 1024, 4 * 1024 * 1024
"""Longest passage that ``prompt`` and ``rerank`` take, and all for one question together, in bytes
of JSON. There are at most ``MAX_TOP_K``."""

MAX_CITATIONS_BYTES = 6 * 1024 * 1024
"""Longest citations that ``generate`` takes, in bytes of JSON; at most ``MAX_TOP_K`` of them."""

MAX_QUOTED_BYTES, MAX_QUOTED_SENTENCES = 256 * 1024, 1000
"""Most text, in bytes of UTF-8, and most sentences that an answer with ``grounding=quote`` may
choose from: the grammar of more takes an engine over a second to make."""

RERANK = "rerank"
"""The reranker's model, and the config variant (``configs/rerank.pbtxt``) that uses it."""

PASSAGE_PRIORITY = 2
"""Triton's priority of texts that are embedded for an index; questions have 1 and go first."""

MAX_BATCH_SIZE = 64
"""Largest batch of the stateless models (``tokenize``, ``embed``, ``retrieve``, ``prompt``)."""

DEFAULT_MAX_TOKENS = 256
"""Tokens generated when the caller does not say."""

MAX_TEMPERATURE = 2.0
"""Highest sampling temperature; 0 is greedy decoding."""

MAX_STOP_STRINGS, MAX_STOP_BYTES = 8, 256
"""Stop strings per request, and bytes of UTF-8 in each."""

MAX_FILTER_BYTES, MAX_FILTER_VALUES = 16 * 1024, 256
"""Longest filter, in bytes of JSON, and most values of one of its conditions."""

MAX_FILTER_CONDITIONS, MAX_FILTER_DEPTH = 64, 8
"""Most conditions of a filter, and how deep `$and`, `$or` and `$not` may be nested."""

MAX_GROUPS, MAX_GROUP_CHARS, MAX_GROUPS_BYTES = 1024, 256, 64 * 1024
"""Most groups that a caller may be in, characters of each, and bytes of JSON of all."""

DEFAULT_COLLECTION = "default"
"""Collection searched when the caller names none."""

COLLECTION_PATTERN = r"[a-z0-9][a-z0-9_-]{0,63}"
"""What a collection may be called (a folder name on every file system)."""

DENSE, SPARSE, HYBRID = MODES = ("dense", "sparse", "hybrid")
"""``dense``: by embedding. ``sparse``: by words, BM25. ``hybrid``: both, fused by rank."""

DEFAULT_MODE = DENSE
"""How a collection is searched that states nothing else."""

ROLES = ("query", "passage")
"""What a text is to the embedder: some models put a different prefix before each."""

MIN_KEY_BYTES, MAX_KEY_BYTES = 16, 128
"""Length of the secret that stops a generation, in bytes of UTF-8: too long to be guessed, too
short to fill a server's memory with."""

MAX_CALLER_BYTES = 256
"""Longest name of a caller, in bytes of UTF-8."""

STALLED = "the engine has made no step"
"""What `generate` says, with the seconds behind it, while its engine stands still."""

GROUNDINGS = ("free", "quote")
"""``free``: the LLM words the answer. ``quote``: whole sentences of the passages only."""


@dataclass(frozen=True)
class TensorSpec:
    """One tensor: name, Triton dtype without ``TYPE_``, dims without the batch, and what it is."""

    name: str
    dtype: str
    dims: tuple[int, ...]
    doc: str
    optional: bool = False


@dataclass(frozen=True)
class ModelSpec:
    """One served model."""

    name: str
    backend: str
    doc: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_batch_size: int = MAX_BATCH_SIZE
    decoupled: bool = False
    steps: tuple[str, ...] = field(default=())
    """The models an ensemble runs, in order; empty for a model of its own."""
    variant: str = ""
    """The config variant that alone serves this model; empty where every server does."""


def _optional(spec: TensorSpec) -> TensorSpec:
    return TensorSpec(spec.name, spec.dtype, spec.dims, spec.doc, optional=True)


TEXT = TensorSpec("text", "STRING", (1,), f"text to embed, UTF-8, at most {MAX_TEXT_BYTES} bytes")
ROLE = TensorSpec("role", "STRING", (1,), "`query` (default) or `passage`", optional=True)
INPUT_IDS = TensorSpec(
    "input_ids",
    "INT64",
    (-1,),
    "token ids of the embedder's vocabulary, padded to one length, at most its longest input",
)
ATTENTION_MASK = TensorSpec("attention_mask", "INT64", (-1,), "1 for a token, 0 for padding")
SENTENCE_EMBEDDING = TensorSpec(
    "sentence_embedding", "FP32", (-1,), "pooled, L2-normalised embedding"
)
EMBEDDING = TensorSpec("embedding", "FP32", (-1,), "L2-normalised embedding")
QUESTION = TensorSpec(
    "question", "STRING", (1,), f"question, UTF-8, not blank, at most {MAX_QUESTION_BYTES} bytes"
)
QUESTION_OF_SEARCH = _optional(QUESTION)
COLLECTION = TensorSpec(
    "collection", "STRING", (1,), f"collection to search (default `{DEFAULT_COLLECTION}`)", True
)
TOP_K = TensorSpec(
    "top_k", "INT32", (1,),
    f"passages wanted, {MIN_TOP_K} to {MAX_TOP_K} (default {DEFAULT_TOP_K})", True,
)  # fmt: skip
RETRIEVE_K = TensorSpec(
    "retrieve_k", "INT32", (1,),
    f"passages to find, {MIN_TOP_K} to {MAX_TOP_K} and not under `top_k`, of which a reranker "
    f"keeps the best `top_k` (then the default is {DEFAULT_RETRIEVE_K}, or a larger `top_k`)", True,
)  # fmt: skip
FILTER = TensorSpec(
    "filter", "STRING", (1,),
    'conditions on the documents, a JSON object such as `{"source": {"$prefix": "hr/"}, '
    '"tags": ["leave", "pay"]}`; fields `source`, `title`, `tags`, `created`, `modified` and those '
    "of the documents' own metadata; operators `$eq`, `$ne`, `$in`, `$nin`, `$gt`, `$gte`, `$lt`, "
    "`$lte`, `$prefix`; joined by `$and`, `$or`, `$not`", True,
)  # fmt: skip
GROUPS = TensorSpec(
    "groups", "STRING", (1,),
    'the groups that the caller belongs to, a JSON list such as `["staff"]`: documents with access '
    "tags are found by callers in one of them only, the others by everyone (default: none). For "
    "the gateway to set, from who the caller is: the server believes it", True,
)  # fmt: skip
MODE = TensorSpec(
    "mode", "STRING", (1,),
    "`dense`: by embedding, `sparse`: by words (BM25), `hybrid`: both rankings fused (default: the "
    f"collection's, `{DEFAULT_MODE}` unless it was indexed with another)", True,
)  # fmt: skip
MIN_SCORE = TensorSpec(
    "min_score", "FP32", (1,),
    "least cosine similarity of a passage to the question in any mode, -1 (default) to 1", True,
)  # fmt: skip
DIVERSITY = TensorSpec(
    "diversity", "FP32", (1,),
    "how much a passage like those before it is put back (maximal marginal relevance), 0 (default, "
    "not at all) to 1", True,
)  # fmt: skip
MERGE = TensorSpec(
    "merge", "BOOL", (1,),
    "true: neighbouring passages of one section become one, with their ids in `merged`", True,
)  # fmt: skip
SNAPSHOT = TensorSpec(
    "snapshot",
    "STRING",
    (1,),
    "name of the snapshot to search: NOT_FOUND unless it is the collection's live one, so that who "
    "has published it can ask whether it is served",
    True,
)
PASSAGES = TensorSpec(
    "passages", "STRING", (-1,),
    "one JSON object per passage, best first: `id`, `text`, `source`, `title`, `location`, "
    "`score`; unless the mode is `dense` also its cosine similarity, `dense_score`, and if it has "
    "a word of the question its BM25 score, `sparse_score`",
)  # fmt: skip
SCORES = TensorSpec(
    "scores", "FP32", (-1,),
    "`score` of each passage: in mode `dense` its cosine similarity, in `sparse` its BM25 score, "
    "in `hybrid` the sum of its reciprocal ranks, 1 for the first of both rankings",
)  # fmt: skip
RERANKED = TensorSpec(
    "passages", "STRING", (-1,),
    "the best `top_k` of the passages, best first: `score` is the reranker's, `retrieval_score` "
    "the one before",
)  # fmt: skip
RERANKED_SCORES = TensorSpec("scores", "FP32", (-1,), "the reranker's score of each passage")
HISTORY = TensorSpec(
    "history", "STRING", (1,),
    "earlier turns, a JSON list of `{\"role\": \"user\"|\"assistant\", \"content\": …}`", True,
)  # fmt: skip
PROMPT = TensorSpec(
    "prompt",
    "STRING",
    (1,),
    "prompt as the LLM reads it. In question, passages and history special tokens are broken by a "
    "space and numbers in brackets stand in parentheses, so that these are text alone; what a "
    "caller of `generate` sends is taken as it is",
)
CITATIONS = TensorSpec(
    "citations", "STRING", (1,),
    "JSON list, one object per passage: `mark` (its number in the answer), the passage's fields, "
    "and, with the reason `context`, `dropped` where it did not fit or `cut` where its text is cut",
)  # fmt: skip
MAX_TOKENS = TensorSpec(
    "max_tokens", "INT32", (1,),
    f"most tokens to generate, 1 to the model's context and the operator's cap (default "
    f"{DEFAULT_MAX_TOKENS}, or the cap)", True,
)  # fmt: skip
TEMPERATURE = TensorSpec(
    "temperature", "FP32", (1,), f"0 (greedy, default) to {MAX_TEMPERATURE:g}", True
)
TOP_P = TensorSpec("top_p", "FP32", (1,), "nucleus sampling bound, above 0 to 1 (default 1)", True)
TOP_K_SAMPLING = TensorSpec(
    "top_k_sampling", "INT32", (1,), "sample among the k likeliest tokens; 0 (default) is all", True
)
SEED = TensorSpec(
    "seed",
    "INT64",
    (1,),
    "seed of the sampling, 0 or more (refused by the local engine on a CPU)",
    True,
)
STOP = TensorSpec(
    "stop", "STRING", (-1,), f"up to {MAX_STOP_STRINGS} strings that end the answer", True
)
GROUNDING = TensorSpec(
    "grounding", "STRING", (1,), "`free` or `quote` (default: the model's own)", True
)
CANCEL_KEY = TensorSpec(
    "cancel_key",
    "STRING",
    (1,),
    f"a secret, {MIN_KEY_BYTES} to {MAX_KEY_BYTES} bytes of UTF-8, new for each request: whoever "
    "sends it to `cancel` stops this generation. Without one no message can",
    optional=True,
)
CALLER = TensorSpec(
    "caller",
    "STRING",
    (1,),
    f"who asks, at most {MAX_CALLER_BYTES} bytes of UTF-8: generations that wait are taken from "
    "each caller in turn, and the operator may cap those of one caller (default: all who name "
    "none are one). For the gateway to set, as `groups`: the server believes it",
    optional=True,
)
CANCEL = TensorSpec(
    "cancel",
    "STRING",
    (1,),
    "the `cancel_key` of a generation: stops it, also one that comes up to 30 s later, and makes "
    "this request no generation of its own. The answer is the same whether there is one",
    optional=True,
)
KEY_TO_CANCEL = TensorSpec(
    "cancel_key", "STRING", (1,), "the `cancel_key` that the request to stop was sent with"
)
CANCELLED = TensorSpec(
    "finish_reason",
    "STRING",
    (1,),
    "`cancelled`, whether there is such a generation or not",
)
ANSWER = TensorSpec("text", "STRING", (1,), "text generated since the last response")
FIRST_CITATIONS = TensorSpec(
    "citations",
    "STRING",
    (1,),
    "in the first response the citations; in the last one again, each with its `spans`, a list of "
    '`{"start": …, "end": …, "mark_start": …, "mark_end": …}`: where in the whole text of the '
    "answer, in characters (Unicode code points, ends exclusive), the claim stands that it is "
    "cited for, and its mark; in between empty. A mark need never be looked for in the text",
)
FINISH_REASON = TensorSpec(
    "finish_reason", "STRING", (1,),
    "in the last response `stop`, `length` (the tokens, or the operator's seconds, are spent), "
    "`cancelled` or `error`, before that empty",
)  # fmt: skip
USAGE = TensorSpec(
    "usage", "STRING", (1,),
    "in the last response JSON: `prompt_tokens`, `cached_tokens`, `generated_tokens`, "
    "`time_to_first_token_ms`, `total_ms`, tokens null where the LLM's side reports none; "
    "before that empty",
)  # fmt: skip

_LISTING = (MODE, MIN_SCORE, DIVERSITY, MERGE)
_SEARCH_OPTIONS = (COLLECTION, TOP_K, FILTER, GROUPS, *_LISTING)
_RERANKED_SEARCH_OPTIONS = (COLLECTION, TOP_K, RETRIEVE_K, FILTER, GROUPS, *_LISTING)
_SAMPLING = (MAX_TOKENS, TEMPERATURE, TOP_P, TOP_K_SAMPLING, SEED, STOP, GROUNDING)
_OWN = (CANCEL_KEY, CALLER)
_STREAM = (ANSWER, FIRST_CITATIONS, FINISH_REASON, USAGE)

MODELS: dict[str, ModelSpec] = {
    model.name: model
    for model in (
        ModelSpec(
            "tokenize", "python", "Text to token ids, all requests of a batch at once.",
            (TEXT, ROLE), (INPUT_IDS, ATTENTION_MASK),
        ),
        ModelSpec(
            "embed", "onnxruntime", "Token ids to one embedding; pooling is part of the graph.",
            (INPUT_IDS, ATTENTION_MASK), (SENTENCE_EMBEDDING,),
        ),
        ModelSpec(
            "retrieve", "python",
            "Embedding, or question, to passages; one FAISS search for the whole batch.",
            (EMBEDDING, QUESTION_OF_SEARCH, *_RERANKED_SEARCH_OPTIONS, SNAPSHOT),
            (PASSAGES, SCORES),
        ),
        ModelSpec(
            RERANK, "python",
            "Question and passages to the best of them by a cross-encoder, all pairs of a batch "
            "together.",
            (QUESTION, PASSAGES, TOP_K), (RERANKED, RERANKED_SCORES), variant=RERANK,
        ),
        ModelSpec(
            "prompt", "python", "Question and passages to the LLM's prompt, within its context.",
            (QUESTION, PASSAGES, HISTORY), (PROMPT, CITATIONS),
        ),
        ModelSpec(
            "generate", "python", "Prompt to a stream of text, batched continuously by the engine.",
            (_optional(PROMPT), _optional(CITATIONS), *_SAMPLING, *_OWN, CANCEL), _STREAM,
            max_batch_size=1, decoupled=True,
        ),
        ModelSpec(
            "embed_text", "ensemble", "Text to embedding.", (TEXT, ROLE), (EMBEDDING,),
            steps=("tokenize", "embed"),
        ),
        ModelSpec(
            "search", "ensemble", "Question to passages.",
            (QUESTION, *_SEARCH_OPTIONS), (PASSAGES, SCORES),
            steps=("tokenize", "embed", "retrieve"),
        ),
        ModelSpec(
            "rag", "ensemble", "Question to a streamed answer with citations.",
            (QUESTION, *_SEARCH_OPTIONS, HISTORY, *_SAMPLING, *_OWN), _STREAM,
            max_batch_size=1, decoupled=True,
            steps=("tokenize", "embed", "retrieve", "prompt", "generate"),
        ),
        ModelSpec(
            "cancel", "ensemble",
            "Stops an answer of `rag`, for whoever has its key. A gateway opens it with `search` "
            "and `rag`, and keeps `generate` to itself.",
            (KEY_TO_CANCEL,), (CANCELLED,),
            max_batch_size=1, decoupled=True, steps=("generate",),
        ),
    )
}  # fmt: skip
"""Every served model by name."""

VARIANTS: dict[str, dict[str, ModelSpec]] = {
    RERANK: {
        "search": replace(
            MODELS["search"],
            inputs=(QUESTION, *_RERANKED_SEARCH_OPTIONS),
            outputs=(RERANKED, RERANKED_SCORES),
            steps=("tokenize", "embed", "retrieve", RERANK),
        ),
        "rag": replace(
            MODELS["rag"],
            inputs=(QUESTION, *_RERANKED_SEARCH_OPTIONS, HISTORY, *_SAMPLING, *_OWN),
            steps=("tokenize", "embed", "retrieve", RERANK, "prompt", "generate"),
        ),
    },
}
"""The ensembles that a config variant changes, by its name: ``tritonserver --model-config-name``.
Each takes what the plain one takes, and more."""
