"""Attention over a batch, and its backward: heads and sequences are one batch of matrix products.

Memory: the attention weights of a block, B * n_heads * T * T values, are kept for the way back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from llama2np.model.attention import Rule
from llama2np.model.program import Step

if TYPE_CHECKING:
    from llama2np.learning.passes import Pass


def attention(step: Step, run: Pass) -> tuple[np.ndarray, ...]:
    """Scores S = q k^T / divisor, shares P = softmax(S) over the visible positions, result P v.

    Heads that share their keys are rows of one matrix: q is (B, n_kv_heads, G * T, head_dim).
    """
    *queries, k, v = _heads(step, run)
    rule = Rule.of(step)
    scores = _scores(queries, k, rule)
    tanh = None
    if rule.softcap:
        cap = np.float32(rule.softcap)
        tanh = np.tanh(scores / cap)
        scores = tanh * cap
    grouped = scores.reshape(*scores.shape[:2], -1, *scores.shape[-1:] * 2)
    np.copyto(grouped, -np.inf, where=~_visible(rule, run))
    scores -= scores.max(-1, keepdims=True)
    shares = np.exp(scores, out=scores)
    shares /= shares.sum(-1, keepdims=True)
    run.saved[step] = shares, tanh
    return (_rows(shares @ v, run),)


def attention_back(step: Step, run: Pass, dy: np.ndarray) -> tuple[np.ndarray | None, ...]:
    """dv = P^T dy; dP = dy v^T; dS = P (dP - sum(P dP) of each row); dq = dS k, dk = dS^T q.

    Shares that are 0 because a position is not visible have no derivative.
    """
    *queries, k, v = _heads(step, run)
    rule, (shares, tanh) = Rule.of(step), run.saved[step]
    by_out = _by_head(dy, run, k.shape[1], k.shape[3])
    by_v = shares.swapaxes(-1, -2) @ by_out
    by_scores = by_out @ v.swapaxes(-1, -2)
    by_scores -= np.einsum("bkij,bkij->bki", shares, by_scores)[..., None]
    by_scores *= shares
    if tanh is not None:
        by_scores *= 1 - tanh * tanh
    by_scores /= np.float32(rule.divisor)
    by_queries, by_k = [], np.zeros_like(k)
    for q, mask in zip(queries, _parts(rule, k.shape[2]), strict=True):
        part = by_scores if mask is None else _masked(by_scores, mask)
        by_queries.append(_rows(part @ k, run))
        by_k += part.swapaxes(-1, -2) @ q
    first, *others = by_queries
    # The inputs of a step are q, k, v, and for dual chunk attention two more rotations of q.
    return first, _rows(by_k, run), _rows(by_v, run), *others


def _heads(step: Step, run: Pass) -> list[np.ndarray]:
    """The queries (one, or three for dual chunk attention), k and v, each by head."""
    n_kv, head_dim = int(step.numbers["n_kv_heads"]), int(step.numbers["head_dim"])
    q, k, v, *others = (_by_head(x, run, n_kv, head_dim) for x in run.inputs(step))
    return [q, *others, k, v]


def _by_head(x: np.ndarray, run: Pass, n_kv: int, head_dim: int) -> np.ndarray:
    """x (B * T, heads * head_dim) as (B, n_kv_heads, heads / n_kv_heads * T, head_dim)."""
    count, longest = run.batch.shape
    split = x.reshape(count, longest, n_kv, -1, head_dim).transpose(0, 2, 3, 1, 4)
    return split.reshape(count, n_kv, -1, head_dim)


def _rows(x: np.ndarray, run: Pass) -> np.ndarray:
    """The inverse of `_by_head`."""
    count, longest = run.batch.shape
    split = x.reshape(count, x.shape[1], -1, longest, x.shape[3]).transpose(0, 3, 1, 2, 4)
    return split.reshape(count * longest, -1)


def _scores(queries: list[np.ndarray], k: np.ndarray, rule: Rule) -> np.ndarray:
    scores: np.ndarray = queries[0] @ k.swapaxes(-1, -2)
    for q, mask in zip(queries[1:], _parts(rule, k.shape[2])[1:], strict=True):
        grouped = scores.reshape(*scores.shape[:2], -1, *scores.shape[-1:] * 2)
        np.copyto(grouped, (q @ k.swapaxes(-1, -2)).reshape(grouped.shape), where=mask)
    scores /= np.float32(rule.divisor)
    return scores


def _parts(rule: Rule, longest: int) -> list[np.ndarray | None]:
    """For dual chunk attention, which scores each of the three queries makes: (T, T) bool.

    They are for keys of the token's own chunk, of the chunk before, and of all others.
    """
    if not rule.stride:
        return [None]
    chunk = np.arange(longest) // rule.stride
    distance = chunk[:, None] - chunk
    return [distance < 1, distance == 1, distance > 1]


def _masked(scores: np.ndarray, mask: np.ndarray) -> np.ndarray:
    grouped = scores.reshape(*scores.shape[:2], -1, *mask.shape)
    return np.where(mask, grouped, grouped.dtype.type(0)).reshape(scores.shape)


def _visible(rule: Rule, run: Pass) -> np.ndarray:
    """Whether a token attends to a position: (T, T), or with padding (B, 1, 1, 1, T)."""
    longest = run.batch.shape[1]
    if rule.causal:  # the padding comes after all tokens
        return rule.visible(np.arange(longest), longest)
    present = np.arange(longest) < run.batch.lengths[:, None]
    return present[:, None, None, None]
