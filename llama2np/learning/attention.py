"""Attention over a batch, and its backward: heads and sequences are one batch of matrix products.

The queries are taken in blocks of positions, and each block reads only the keys that it can see: a
causal network of T positions computes little more than half of the T * T scores. What is kept for
the way back are the exponentials of these scores.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from llama2np.model.attention import Rule
from llama2np.model.program import Step

if TYPE_CHECKING:
    from llama2np.learning.passes import Pass

_BLOCK = 64  # positions


class _Block(NamedTuple):
    """Queries at some positions, and the keys that they read; visible: (queries, keys)."""

    queries: slice
    keys: slice
    visible: np.ndarray


def attention(step: Step, run: Pass) -> tuple[np.ndarray, ...]:
    """Scores S = q k^T / divisor; E = exp(S - max S) over the visible positions; y = E v / sum E.

    Heads that share their keys are rows of one matrix: in a block, q is (B, n_kv_heads, G * its
    positions, head_dim).
    """
    *queries, k, v = _heads(step, run)
    rule, kept = Rule.of(step), []
    k, v, out = _by_head(k), _by_head(v), np.empty_like(queries[0])
    for block in _blocks(rule, run):
        scores = _scores([_part(q, block) for q in queries], k[:, :, block.keys], rule, block)
        tanh = None
        if rule.softcap:
            cap = np.float32(rule.softcap)
            tanh = np.tanh(scores / cap)
            scores = tanh * cap
        np.copyto(_grouped(scores, block), -np.inf, where=~block.visible)
        scores -= scores.max(-1, keepdims=True)
        np.exp(scores, out=scores)
        inverse = 1 / scores.sum(-1, keepdims=True)
        kept.append((block, scores, inverse, tanh))
        y = scores @ v[:, :, block.keys]
        y *= inverse
        _put(out, block, y)
    run.saved[step] = kept
    return (out.reshape(run.batch.tokens.size, -1),)


def attention_back(step: Step, run: Pass, dy: np.ndarray) -> tuple[np.ndarray | None, ...]:
    """With P = E / sum E: dv = P^T dy; dP = dy v^T; dS = P (dP - sum(P dP) of each row), where

    sum(P dP) = dy . y (Dao et al. 2022, FlashAttention); dq = dS k and dk = dS^T q, each divided
    by the divisor.
    """
    *queries, k, v = _heads(step, run)
    rule = Rule.of(step)
    dy, y = dy.reshape(queries[0].shape), run.values[step.outputs[0]].reshape(queries[0].shape)
    k, v = _by_head(k), _by_head(v)
    by_queries = [np.empty_like(q) for q in queries]
    by_k, by_v = np.zeros_like(k), np.zeros_like(v)
    for block, exponentials, inverse, tanh in run.saved[step]:
        scaled = _part(dy, block)
        scaled *= inverse
        by_v[:, :, block.keys] += exponentials.swapaxes(-1, -2) @ scaled
        by_scores = scaled @ v[:, :, block.keys].swapaxes(-1, -2)
        scaled *= _part(y, block)
        by_scores -= scaled.sum(-1, keepdims=True)
        by_scores *= exponentials
        if tanh is not None:
            by_scores *= 1 - tanh * tanh
        by_scores /= np.float32(rule.divisor)
        for q, by_q, mask in zip(queries, by_queries, _parts(rule, block), strict=True):
            part = by_scores
            if mask is not None:
                grouped = _grouped(by_scores, block)
                part = np.where(mask, grouped, grouped.dtype.type(0)).reshape(by_scores.shape)
            _put(by_q, block, part @ k[:, :, block.keys])
            by_k[:, :, block.keys] += part.swapaxes(-1, -2) @ _part(q, block)
    rows = run.batch.tokens.size
    found = [by_q.reshape(rows, -1) for by_q in by_queries]
    # The inputs of a step are q, k, v, and for dual chunk attention two more rotations of q.
    found[1:1] = [by.transpose(0, 2, 1, 3).reshape(rows, -1) for by in (by_k, by_v)]
    return tuple(found)


def _heads(step: Step, run: Pass) -> list[np.ndarray]:
    """The queries (one, or three for dual chunk attention), k and v.

    Each is a view (B, T, n_kv_heads, G, head_dim), where G heads share their keys; for k and v G
    is 1.
    """
    count, longest = run.batch.shape
    n_kv, head_dim = int(step.numbers["n_kv_heads"]), int(step.numbers["head_dim"])
    q, k, v, *others = (x.reshape(count, longest, n_kv, -1, head_dim) for x in run.inputs(step))
    return [q, *others, k, v]


def _by_head(x: np.ndarray) -> np.ndarray:
    """Keys or values (B, T, n_kv_heads, 1, head_dim) as (B, n_kv_heads, T, head_dim)."""
    return np.ascontiguousarray(x[:, :, :, 0].swapaxes(1, 2))


def _part(x: np.ndarray, block: _Block) -> np.ndarray:
    """A copy of the block's positions of x (B, T, n_kv_heads, G, head_dim), by head:

    (B, n_kv_heads, G * positions, head_dim).
    """
    count, _, n_kv, _, head_dim = x.shape
    split = x[:, block.queries].transpose(0, 2, 3, 1, 4)
    return split.copy().reshape(count, n_kv, -1, head_dim)


def _put(out: np.ndarray, block: _Block, part: np.ndarray) -> None:
    """Write what `_part` would read."""
    count, _, n_kv, group, head_dim = out.shape
    split = part.reshape(count, n_kv, group, -1, head_dim)
    out[:, block.queries] = split.transpose(0, 3, 1, 2, 4)


def _blocks(rule: Rule, run: Pass) -> Iterator[_Block]:
    """The positions in blocks; without a causal rule all are one."""
    longest = run.batch.shape[1]
    if not rule.causal:  # a mask of what is no padding: (B, 1, 1, 1, T)
        present = np.arange(longest) < run.batch.lengths[:, None]
        yield _Block(slice(0, longest), slice(0, longest), present[:, None, None, None])
        return
    for start in range(0, longest, _BLOCK):  # the padding comes after all tokens
        end = min(start + _BLOCK, longest)
        visible = rule.visible(np.arange(start, end), end)
        first = int(visible.any(0).argmax())
        yield _Block(slice(start, end), slice(first, end), visible[:, first:])


def _scores(queries: list[np.ndarray], k: np.ndarray, rule: Rule, block: _Block) -> np.ndarray:
    scores: np.ndarray = queries[0] @ k.swapaxes(-1, -2)
    for q, mask in zip(queries[1:], _parts(rule, block)[1:], strict=True):
        other = _grouped(q @ k.swapaxes(-1, -2), block)
        np.copyto(_grouped(scores, block), other, where=mask)
    scores /= np.float32(rule.divisor)
    return scores


def _parts(rule: Rule, block: _Block) -> list[np.ndarray | None]:
    """For dual chunk attention, which scores each of the three queries makes: (queries, keys) bool.

    They are for keys of the token's own chunk, of the chunk before, and of all others.
    """
    if not rule.stride:
        return [None]
    own, other = (
        np.arange(some.start, some.stop) // rule.stride for some in (block.queries, block.keys)
    )
    distance = own[:, None] - other
    return [distance < 1, distance == 1, distance > 1]


def _grouped(scores: np.ndarray, block: _Block) -> np.ndarray:
    """Scores as a view (B, n_kv_heads, G, queries, keys)."""
    count = block.queries.stop - block.queries.start
    return scores.reshape(*scores.shape[:2], -1, count, scores.shape[-1])
