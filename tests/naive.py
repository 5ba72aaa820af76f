"""The slow truth: each kernel in a few lines of float64 NumPy, and the whole network from them."""

import math

import numpy as np


def matmul(w, x):
    return x.astype(float) @ w.astype(float).T


def rmsnorm(x, weight, eps):
    x = x.astype(float)
    return weight * x / np.sqrt((x**2).mean(-1, keepdims=True) + eps)


def layernorm(x, weight, bias, eps):
    x = x.astype(float)
    return weight * (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps) + bias


def rope_angles(frequencies, pos, count):
    return np.outer(pos + np.arange(count), frequencies.astype(float))


def rotate(rows, angles, head_dim, rotary_dim=None, halves=False):
    """Pairs as complex numbers, turned. rows: (T, heads * head_dim).

    Pairs of neighbours, or with `halves` of values that are rotary_dim / 2 apart.
    """
    heads = rows.astype(float).reshape(len(rows), -1, head_dim)
    turned, kept = heads[..., : rotary_dim or head_dim], heads[..., rotary_dim or head_dim :]
    axes = (2, -1) if halves else (-1, 2)
    pairs = turned.reshape(*heads.shape[:2], *axes)
    pairs = np.tensordot(pairs, [1, 1j], axes=([2 if halves else 3], [0]))
    pairs = pairs * np.exp(1j * angles)[:, None]
    turned = np.stack([pairs.real, pairs.imag], 2 if halves else 3).reshape(turned.shape)
    return np.concatenate([turned, kept], -1).reshape(rows.shape)


def softmax(scores):
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def attention(q, k, v, head_dim, pos, window=0, softcap=0):
    """q: (T, heads * head_dim), k, v: (pos + T, kv_heads * head_dim)."""
    q, k, v = (a.astype(float).reshape(len(a), -1, head_dim).swapaxes(0, 1) for a in (q, k, v))
    k, v = (np.repeat(a, len(q) // len(a), axis=0) for a in (k, v))
    scores = q @ k.swapaxes(1, 2) / np.sqrt(head_dim)
    if softcap:
        scores = softcap * np.tanh(scores / softcap)
    own, keys = pos + np.arange(q.shape[1])[:, None], np.arange(k.shape[1])
    unseen = (keys > own) | (keys <= own - (window or len(keys)))
    mixed = softmax(np.where(unseen, -np.inf, scores)) @ v
    return mixed.swapaxes(0, 1).reshape(q.shape[1], -1)


def swiglu(gate, up):
    gate = gate.astype(float)
    return gate / (1 + np.exp(-gate)) * up


def gelu(x, exact):
    x = x.astype(float)
    if exact:
        return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2
    return x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2


def quantize(x, group):
    """Values rounded half away from zero, and scales, as runq.c's quantize gives them."""
    groups = x.reshape(*x.shape[:-1], -1, group)
    scales = np.abs(groups).max(-1) / np.float32(127)
    with np.errstate(invalid="ignore"):
        ratios = (groups / scales[..., None]).astype(float)
    rounded = np.trunc(ratios + np.copysign(0.5, ratios))
    return np.nan_to_num(rounded).astype(np.int8).reshape(x.shape), scales


def matmul_int8(q, scales, x, x_scales):
    """By groups: exact integers, then float32 steps in runq.c's order. x_scales: (T, groups)."""
    out = np.zeros((len(x), len(q)), np.float32)
    group = q.shape[1] // scales.shape[1]
    for g in range(scales.shape[1]):
        at = slice(g * group, (g + 1) * group)
        sums = x[:, at].astype(np.int32) @ q[:, at].astype(np.int32).T
        out += sums.astype(np.float32) * scales[:, g] * x_scales[:, g : g + 1]
    return out


def forward(config, tensors, tokens):
    """Logits (T, vocab_size) of a whole sequence, from float32 tensors stacked as in a file."""
    c, t = config, tensors
    powers = np.float64(c.rope_theta) ** (np.arange(0, c.head_dim, 2) / c.head_dim)
    angles = rope_angles(1 / powers, 0, len(tokens))
    x = t["embedding"][tokens].astype(float)
    for i in range(c.n_layers):
        h = rmsnorm(x, t["attn_norm"][i], c.norm_eps)
        q, k, v = (matmul(t[name][i], h) for name in ("wq", "wk", "wv"))
        q, k = rotate(q, angles, c.head_dim), rotate(k, angles, c.head_dim)
        x = x + matmul(t["wo"][i], attention(q, k, v, c.head_dim, 0))
        h = rmsnorm(x, t["ffn_norm"][i], c.norm_eps)
        h = swiglu(matmul(t["w_gate"][i], h), matmul(t["w_up"][i], h))
        x = x + matmul(t["w_down"][i], h)
    return matmul(t.get("classifier", t["embedding"]), rmsnorm(x, t["final_norm"], c.norm_eps))


def quantize_for_blocks(x):
    """x (T, n) to int8 in groups of 32: q, scales."""
    groups = x.reshape(len(x), -1, 32)
    largest = np.abs(groups).max(-1, keepdims=True)
    scales = largest / np.float32(127)
    inverse = np.divide(np.float32(127), largest, out=np.zeros_like(largest), where=largest > 0)
    q = np.rint(groups * inverse)
    return q.reshape(x.shape), scales[..., 0]


def matmul_blocks(w, x, terms=1):
    """x (T, n), rounded to int8 as a sum of `terms`, times the values w (d, n) of a matrix.

    Also the same with the magnitudes of all values, to which errors of rounding are in proportion.
    """
    rounded, rest = 0, x
    for _ in range(terms):
        q, scales = quantize_for_blocks(rest)
        part = q * np.repeat(scales, 32, axis=1).astype(float)
        rounded, rest = rounded + part, (rest - part).astype(np.float32)
    w = w.astype(float)
    return rounded @ w.T, np.abs(rounded) @ np.abs(w).T
