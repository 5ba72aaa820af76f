"""The program in NumPy: for reading, for debugging, and for systems without numba.

Each op is a function of a few lines, (step, run) -> arrays (rows, width) float32 for its outputs.
It is some hundred times slower than the compiled engine, and differs from it in the last bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from llama2np.model import rope as rotary
from llama2np.model.attention import Rule, attention_weights, weighted_values
from llama2np.model.block import IDS, OUTSIDE
from llama2np.model.gguf_blocks import Blocks
from llama2np.model.program import Program, Step, Value
from llama2np.model.state import State
from llama2np.model.weights import Int8, Matrix

Arrays = tuple[np.ndarray, ...]


class NumpyEngine:
    """Computes a Program's steps with NumPy. See model/engine.py."""

    def __init__(self, program: Program):
        self.program = program

    def run(
        self,
        tokens: np.ndarray,
        states: list[State],
        counts: list[int],
        logits: np.ndarray,
        picked: np.ndarray | None = None,
        laps: int = 1,
        types: np.ndarray | None = None,
        positions: np.ndarray | None = None,
    ) -> NumpyRun:
        """Prepare a pass: see Engine.run."""
        run = NumpyRun(self.program, tokens, states, counts, logits, picked, laps)
        run.types = np.zeros(len(tokens), np.int64) if types is None else types
        run.learned_positions = positions
        return run


class NumpyRun:
    """One pass, with a dictionary of the arrays of all values so far."""

    def __init__(
        self,
        program: Program,
        tokens: np.ndarray,
        states: list[State],
        counts: list[int],
        logits: np.ndarray,
        picked: np.ndarray | None,
        laps: int,
    ):
        self.program, self.states, self.counts = program, states, counts
        self._tokens, self._logits, self._laps = tokens, logits, laps
        self.types = tokens  # these two are set by the engine
        self.learned_positions: np.ndarray | None = None
        self.exchanges: list[Callable[[], None]] = []
        rows, wanted = len(tokens) // laps, len(logits) // laps
        self.picked = np.arange(rows - wanted, rows) if picked is None else picked
        self._start(0)

    def _start(self, lap: int) -> None:
        rows, wanted = len(self._tokens) // self._laps, len(self._logits) // self._laps
        self.tokens = self._tokens[lap * rows : (lap + 1) * rows]
        self.logits = self._logits[lap * wanted : (lap + 1) * wanted]
        self.positions = np.concatenate(
            [
                np.arange(s.pos + lap, s.pos + lap + n)
                for s, n in zip(self.states, self.counts, strict=True)
            ]
        )
        self.values: dict[Value, np.ndarray] = {}

    def go(self, start: int = 0, stop: int | None = None) -> None:
        """Compute the steps start ... stop - 1; None means to the end, in all laps."""
        for lap in range(self._laps if stop is None else 1):
            if lap:
                chosen = self.logits.argmax(-1)
                self._start(lap)
                self.tokens[:] = chosen
            for step in self.program.steps[start:stop]:
                if step.op not in OUTSIDE:  # its value was put
                    made = OPS[step.op](step, self)
                    self.values.update(zip(step.outputs, made, strict=True))

    def array(self, value: Value) -> np.ndarray:
        """The output of a step: (rows, width)."""
        return self.values[value]

    def put(self, value: Value, array: np.ndarray) -> None:
        """Set a value: (rows, width)."""
        self.values[value] = np.array(array, np.float32)

    def room(self, value: Value) -> np.ndarray:
        """Memory for a value, (rows, width), to be filled."""
        self.values[value] = np.empty((len(self.tokens), value.width), np.float32)
        return self.values[value]

    def inputs(self, step: Step) -> list[np.ndarray]:
        """The arrays that a step reads, in their order."""
        return [self.values[value] for value in step.inputs.values()]

    def weights(self, step: Step, kind: str) -> list[Any]:
        """The tensors of a step."""
        return [self.program.weights[n] if n else None for n in step.weights.get(kind, ())]


def embed(step: Step, run: NumpyRun) -> Arrays:
    (table,), of = run.weights(step, "table"), IDS[int(step.numbers["of"])]
    ids: np.ndarray = getattr(run, of)
    if of == "positions" and run.learned_positions is not None:
        ids = run.learned_positions
    return (table.rows(ids),)


def rmsnorm(step: Step, run: NumpyRun) -> Arrays:
    (x,), (weight,) = run.inputs(step), run.weights(step, "weight")
    heads = x.reshape(len(x), -1, len(weight))
    mean = (heads * heads).mean(-1, keepdims=True)
    out = weight * (heads / np.sqrt(mean + np.float32(step.numbers["eps"])))
    return (out.reshape(x.shape),)


def layernorm(step: Step, run: NumpyRun) -> Arrays:
    (x,), (weight,) = run.inputs(step), run.weights(step, "weight")
    x = x - x.mean(-1, keepdims=True)
    out = weight * (x / np.sqrt((x * x).mean(-1, keepdims=True) + np.float32(step.numbers["eps"])))
    return (_with_bias(out, run.weights(step, "bias"), 0),)


def linear(step: Step, run: NumpyRun) -> Arrays:
    (x,), biases = run.inputs(step), run.weights(step, "bias")
    products = [multiply(matrix, x) for matrix in run.program.matrices(step)]
    return tuple(_with_bias(product, biases, i) for i, product in enumerate(products))


def logits(step: Step, run: NumpyRun) -> Arrays:
    (x,) = run.inputs(step)
    (matrix,) = run.program.matrices(step)
    out = _with_bias(multiply(matrix, x[run.picked]), run.weights(step, "bias"), 0)
    cap = np.float32(step.numbers["softcap"])
    run.logits[:] = cap * np.tanh(out / cap) if cap else out
    return (run.logits,)


def angles(step: Step, run: NumpyRun) -> Arrays:
    config, n, local = run.program.config, step.numbers, bool(step.numbers["local"])
    at = np.minimum(run.positions % int(n["modulus"]) + int(n["add"]), int(n["most"]))
    turns: list[np.ndarray] = []
    sizes: list[float] = []
    for state, count in zip(run.states, run.counts, strict=True):
        frequencies = rotary.frequencies(config, state.end, local)
        turns.append(at[len(sizes) : len(sizes) + count, None].astype(np.float32) * frequencies)
        size = rotary.magnitude(config, local)
        if n["scaled"] and config.dual_chunk:
            size *= rotary.scores_factor(config.dual_chunk, state.end)
        sizes += [size] * count
    turn, factor = np.concatenate(turns).astype(float), np.array(sizes)[:, None]
    return (np.cos(turn) * factor).astype(np.float32), (np.sin(turn) * factor).astype(np.float32)


def rope(step: Step, run: NumpyRun) -> Arrays:
    *values, cos, sin = run.inputs(step)
    return tuple(rotate(x, cos, sin, step) for x in values)


def rotate(x: np.ndarray, cos: np.ndarray, sin: np.ndarray, step: Step) -> np.ndarray:
    """x (T, heads * head_dim) with the pairs of each head rotated by the angles (T, pairs)."""
    out = x.reshape(len(x), -1, int(step.numbers["head_dim"])).copy()
    width = int(step.numbers["rotary_dim"])
    first = slice(0, width // 2) if step.numbers["halves"] else slice(0, width, 2)
    second = slice(width // 2, width) if step.numbers["halves"] else slice(1, width, 2)
    a, b, cos, sin = out[..., first].copy(), out[..., second].copy(), cos[:, None], sin[:, None]
    out[..., first], out[..., second] = a * cos - b * sin, a * sin + b * cos
    return out.reshape(x.shape)


def attention(step: Step, run: NumpyRun) -> Arrays:
    inputs = dict(zip(step.inputs, run.inputs(step), strict=True))
    heads = {n: x.reshape(len(x), -1, int(step.numbers["head_dim"])) for n, x in inputs.items()}
    k, v = heads.pop("k"), heads.pop("v")
    out, start, rule, layer = np.empty_like(heads["q"]), 0, Rule.of(step), step.layer or 0
    for state, count in zip(run.states, run.counts, strict=True):
        rows = slice(start, start + count)
        positions = run.positions[rows]
        state.write(layer, positions, k[rows], v[rows])
        keys, values = state.layer(layer, int(positions[-1]) + 1)
        queries = [q[rows] for q in heads.values()]
        out[rows] = weighted_values(attention_weights(queries, keys, positions, rule), values)
        start += count
    return (out.reshape(len(out), -1),)


def experts(step: Step, run: NumpyRun) -> Arrays:
    return (_mixed(step, run, *experts_hidden(step, run)),)


def experts_hidden(step: Step, run: NumpyRun) -> Arrays:
    (x, router), used = run.inputs(step), int(step.numbers["used"])
    chosen = np.argsort(-router, axis=-1, kind="stable")[:, :used]
    shares = np.exp(router - router.max(-1, keepdims=True))
    shares /= shares.sum(-1, keepdims=True)
    shares = np.take_along_axis(shares, chosen, -1)
    if not step.numbers["probabilities"]:
        shares /= shares.sum(-1, keepdims=True)
    gates, ups = (run.weights(step, kind) for kind in ("w_gate", "w_up"))
    mlp = np.empty((len(x), used, gates[0].shape[0]), np.float32)
    for expert in np.unique(chosen):
        rows, slots = np.nonzero(chosen == expert)
        gate, up = multiply(gates[expert], x[rows]), multiply(ups[expert], x[rows])
        mlp[rows, slots] = _silu(gate) * up
    return mlp.reshape(len(x), -1), shares, chosen


def experts_out(step: Step, run: NumpyRun) -> Arrays:
    return (_mixed(step, run, *run.inputs(step)),)


def _mixed(
    step: Step, run: NumpyRun, mlp: np.ndarray, shares: np.ndarray, chosen: np.ndarray
) -> np.ndarray:
    downs, mlp = run.weights(step, "w_down"), mlp.reshape(*chosen.shape, -1)
    out = np.zeros((len(mlp), step.outputs[0].width), np.float32)
    for expert in np.unique(chosen):
        rows, slots = np.nonzero(chosen == expert)
        out[rows] += shares[rows, slots, None] * multiply(downs[expert], mlp[rows, slots])
    return out


def swiglu(step: Step, run: NumpyRun) -> Arrays:
    gate, up = run.inputs(step)
    return (_silu(gate) * up,)


def geglu(step: Step, run: NumpyRun) -> Arrays:
    gate, up = run.inputs(step)
    return (_gelu(gate, step) * up,)


def gelu(step: Step, run: NumpyRun) -> Arrays:
    (x,) = run.inputs(step)
    return (_gelu(x, step),)


def tanh(step: Step, run: NumpyRun) -> Arrays:
    (x,) = run.inputs(step)
    return (np.tanh(x),)


def scale(step: Step, run: NumpyRun) -> Arrays:
    (x,) = run.inputs(step)
    return (x * np.float32(step.numbers["factor"]),)


def add(step: Step, run: NumpyRun) -> Arrays:
    x, y = run.inputs(step)
    return (x + y,)


OPS: dict[str, Callable[[Step, NumpyRun], Arrays]] = {
    op.__name__: op
    for op in (
        *(embed, rmsnorm, layernorm, linear, angles, rope, attention, experts),
        *(experts_hidden, experts_out, swiglu, geglu, gelu, tanh, scale, add, logits),
    )
}


def _silu(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        out: np.ndarray = x / (1 + np.exp(-x))
    return out


def _gelu(x: np.ndarray, step: Step) -> np.ndarray:
    if step.numbers["exact"]:
        erf = np.vectorize(math.erf, otypes=[np.float32])
        exact: np.ndarray = x * (1 + erf(x * np.float32(0.5**0.5))) / 2
        return exact
    inner = np.float32((2 / np.pi) ** 0.5) * (x + np.float32(0.044715) * x**3)
    out: np.ndarray = x / 2 * (1 + np.tanh(inner))
    return out


def multiply(matrix: Matrix, x: np.ndarray) -> np.ndarray:
    """x (T, n) times a matrix (d, n): (T, d) float32. For int8, x is quantized as in runq.c."""
    if not isinstance(matrix, Int8):
        w = matrix.dequantize() if isinstance(matrix, Blocks) else np.asarray(matrix.w, np.float32)
        return np.asarray(x @ w.T)
    q, scales = quantize(x, matrix.group)
    out = np.zeros((len(x), len(matrix.q)), np.float32)
    for g in range(matrix.scales.shape[1]):
        some = slice(g * matrix.group, (g + 1) * matrix.group)
        sums = (q[:, some].astype(float) @ matrix.q[:, some].astype(float).T).astype(np.float32)
        out += sums * matrix.scales[:, g] * scales[:, g : g + 1]
    return out


def quantize(x: np.ndarray, group: int) -> tuple[np.ndarray, np.ndarray]:
    """x (T, n) rounded to int8 by groups, halves away from zero, and the scales (T, n / group)."""
    groups = x.reshape(len(x), -1, group)
    scales = np.abs(groups).max(-1) / np.float32(127)
    usable = (scales > 0) & (scales < np.inf)
    ratio = np.divide(groups, scales[..., None], where=usable[..., None], out=np.zeros_like(groups))
    rounded = np.trunc(ratio.astype(float) + np.copysign(0.5, ratio))
    return rounded.astype(np.int8).reshape(x.shape), scales


def _with_bias(out: np.ndarray, biases: list[Any], i: int) -> np.ndarray:
    return out if not biases or biases[i] is None else out + biases[i]
