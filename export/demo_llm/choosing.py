"""Choosing among the answers that the quote grammar allows, from the model's own likelihood.

Pure arithmetic on token ids and log-probabilities: knows neither a model nor a tokenizer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

Tokens = Sequence[int]


def greedy(candidates: Sequence[Tokens], logprobs: Sequence[Sequence[float]]) -> int:
    """Return the candidate that greedy decoding under the grammar writes.

    ``logprobs[c][t]`` is the log-probability of token ``t`` of candidate ``c`` after the prompt and
    the candidate's earlier tokens. No candidate may be a prefix of another: end each with a token
    that none has inside.
    """
    left = list(range(len(candidates)))
    depth = 0
    while len(left) > 1:
        best = max(left, key=lambda c: logprobs[c][depth])
        left = [c for c in left if candidates[c][depth] == candidates[best][depth]]
        if all(candidates[c] == candidates[best] for c in left):
            return left[0]
        depth += 1
    return left[0]


def path_scores(candidates: Sequence[Tokens], logprobs: Sequence[Sequence[float]]) -> list[float]:
    """Return each candidate's log-probability under the grammar.

    At every token where the candidates part, the probabilities of the tokens that the grammar
    allows are made to sum to 1; where only one is allowed, it costs nothing. Long candidates are
    thus not put at a disadvantage, and no length normalisation is needed.
    """
    scores = [0.0] * len(candidates)
    groups = [(0, list(range(len(candidates))))]
    while groups:
        depth, members = groups.pop()
        children: dict[int, list[int]] = {}
        for member in members:
            if depth < len(candidates[member]):
                children.setdefault(candidates[member][depth], []).append(member)
        if len(children) > 1:
            weights = {token: logprobs[of[0]][depth] for token, of in children.items()}
            total = _logsumexp(list(weights.values()))
            for token, of in children.items():
                for member in of:
                    scores[member] += weights[token] - total
        groups += [(depth + 1, of) for of in children.values() if len(of) > 1]
    return scores


def _logsumexp(values: Sequence[float]) -> float:
    most = max(values)
    return most + math.log(sum(math.exp(value - most) for value in values))
