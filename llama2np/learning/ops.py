"""Each op of a program over a batch, and its backward.

An op has two functions of a step and a `Pass`. `forward` returns its outputs, arrays of (rows,
width), rows = B * T. `backward` gets the derivatives of the loss by the outputs and returns those
by the inputs, in the order of step.inputs (None: not computed); those by trained tensors it gives
to the pass. Below, dy is the derivative by an output y, dx that by an input x.
docs/learning.md derives the formulas.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import numpy as np

from llama2np.learning import activations
from llama2np.learning.attention import attention, attention_back
from llama2np.learning.experts import experts, experts_back
from llama2np.model import numpy_engine, rope
from llama2np.model.block import IDS
from llama2np.model.program import Step

if TYPE_CHECKING:
    from llama2np.learning.passes import Pass

Arrays = tuple[np.ndarray, ...]
Derivatives = tuple[np.ndarray | None, ...]


@dataclass(frozen=True, slots=True)
class Op:
    """An op and its backward, and what the backward reads: names of inputs, or the outputs."""

    forward: Callable[[Step, Pass], Arrays]
    backward: Callable[..., Derivatives]
    keeps: tuple[str, ...] = ()
    keeps_outputs: bool = False


def embed(step: Step, run: Pass) -> Arrays:
    (name,) = step.weights["table"]
    return (run.rows_of(name, _ids(step, run)),)


def embed_back(step: Step, run: Pass, dy: np.ndarray) -> Derivatives:
    """Row i of the table gets the sum of dy over all tokens that have read it."""
    (name,) = step.weights["table"]
    if run.trains(name):
        ids = _ids(step, run)
        order = np.argsort(ids, kind="stable")
        rows, starts = np.unique(ids[order], return_index=True)
        gradient = np.zeros(run.weight(name).shape, dy.dtype)
        gradient[rows] = np.add.reduceat(dy[order], starts)
        run.give(name, gradient)
    return ()


def _ids(step: Step, run: Pass) -> np.ndarray:
    """The rows of the table that are read: (B * T,)."""
    batch, of = run.batch, IDS[int(step.numbers["of"])]
    if of == "positions":
        return np.tile(np.arange(batch.shape[1]), batch.shape[0])
    ids = batch.tokens if of == "tokens" else batch.types
    return np.zeros(batch.tokens.size, np.int64) if ids is None else ids.ravel()


def linear(step: Step, run: Pass) -> Arrays:
    (x,), biases = run.inputs(step), run.weights(step, "bias")
    made = []
    for i, name in enumerate(step.weights["w"]):
        y = x @ run.weight(name).T
        if (low_rank := run.lora(name)) is not None:
            a, b = low_rank
            y += (x @ a.T) @ (b.T * b.dtype.type(run.lora_scale))
        if biases and biases[i] is not None:
            y += biases[i]
        made.append(y)
    return tuple(made)


def linear_back(step: Step, run: Pass, *dys: np.ndarray) -> Derivatives:
    """y = W x + b: dx = W^T dy, dW = sum of dy x^T, db = sum of dy, over all rows."""
    (x,), (source,) = run.inputs(step), step.inputs.values()
    biases, dx = step.weights.get("bias", ()), None
    for i, (name, dy) in enumerate(zip(step.weights["w"], dys, strict=True)):
        if run.trains(name):
            run.give(name, dy.T @ x)
        if biases and run.trains(biases[i]):
            run.give(biases[i], dy.sum(0))
        if run.wants(source):
            part = dy @ run.weight(name)
            dx = part if dx is None else np.add(dx, part, out=dx)
        if (low_rank := run.lora(name)) is not None:
            by_u = _low_rank_back(name, low_rank, x, dy, run)
            if dx is not None:
                dx += by_u @ low_rank[0]
    return (dx,)


def _low_rank_back(
    name: str, low_rank: tuple[np.ndarray, np.ndarray], x: np.ndarray, dy: np.ndarray, run: Pass
) -> np.ndarray:
    """y = s B u, u = A x: dB = s sum of dy u^T, du = s B^T dy, dA = sum of du x^T."""
    a, b = low_rank
    scaled = dy * dy.dtype.type(run.lora_scale)
    by_u: np.ndarray = scaled @ b
    run.give(f"{name}.lora_B", scaled.T @ (x @ a.T))
    run.give(f"{name}.lora_A", by_u.T @ x)
    return by_u


def rmsnorm(step: Step, run: Pass) -> Arrays:
    (x,), (weight,) = run.inputs(step), run.weights(step, "weight")
    heads = x.reshape(len(x), -1, len(cast(np.ndarray, weight)))
    squares = np.einsum("tgi,tgi->tg", heads, heads) / np.float32(heads.shape[2])
    inverse = 1 / np.sqrt(squares + np.float32(step.numbers["eps"]))
    run.saved[step] = inverse
    return ((heads * inverse[..., None] * weight).reshape(x.shape),)


def rmsnorm_back(step: Step, run: Pass, dy: np.ndarray) -> Derivatives:
    """y = w n, n = x r, r = (mean(x^2) + eps)^(-1/2): dn = w dy, dw = sum of n dy over rows,

    dx = r (dn - n mean(n dn)), where n r is the derivative of the norm by x, less its sign.
    """
    (x,), (name,), inverse = run.inputs(step), step.weights["weight"], run.saved[step]
    weight = run.weight(name)
    heads, by = x.reshape(len(x), -1, len(weight)), dy.reshape(len(x), -1, len(weight))
    n = heads * inverse[..., None]
    if run.trains(name):
        run.give(name, np.einsum("tgi,tgi->i", n, by))
    by_n = by * weight
    n *= (np.einsum("tgi,tgi->tg", n, by_n) / np.float32(n.shape[2]))[..., None]
    by_n -= n
    by_n *= inverse[..., None]
    return (by_n.reshape(x.shape),)


def layernorm(step: Step, run: Pass) -> Arrays:
    (x,), (weight,) = run.inputs(step), run.weights(step, "weight")
    (bias,) = run.weights(step, "bias") or [None]
    n = x - x.mean(-1, keepdims=True)
    variance = np.einsum("ti,ti->t", n, n) / np.float32(n.shape[1])
    inverse = 1 / np.sqrt(variance + np.float32(step.numbers["eps"]))
    n *= inverse[:, None]
    run.saved[step] = n, inverse
    y = n * cast(np.ndarray, weight)
    if bias is not None:
        y += bias
    return (y,)


def layernorm_back(step: Step, run: Pass, dy: np.ndarray) -> Derivatives:
    """As rmsnorm, for n = (x - mean) r: dx = r (dn - mean(dn) - n mean(n dn)), db = sum of dy."""
    (name,), (n, inverse) = step.weights["weight"], run.saved[step]
    (bias,) = step.weights.get("bias", ("",))
    if run.trains(name):
        run.give(name, np.einsum("ti,ti->i", n, dy))
    if run.trains(bias):
        run.give(bias, dy.sum(0))
    by_n = dy * run.weight(name)
    share = np.einsum("ti,ti->t", n, by_n) / np.float32(n.shape[1])
    by_n -= by_n.mean(-1, keepdims=True)
    by_n -= n * share[:, None]
    by_n *= inverse[:, None]
    return (by_n,)


def angles(step: Step, run: Pass) -> Arrays:
    """cos and sin: (T, pairs), or where they depend on the length (B * T, pairs)."""
    count, longest = run.batch.shape
    ends, times = [longest], 1
    if rope.depends_on_length(run.program.config):
        ends, times = [int(n) for n in run.batch.lengths], count
    positions = np.tile(np.arange(longest), times)
    states = [SimpleNamespace(end=end) for end in ends]
    given = SimpleNamespace(
        program=run.program, positions=positions, states=states, counts=[longest] * times
    )
    return numpy_engine.angles(step, given)  # type: ignore[arg-type]  # it reads these four only


def angles_back(_step: Step, _run: Pass, *_: np.ndarray) -> Derivatives:
    return ()


def rotate(step: Step, run: Pass) -> Arrays:
    *values, cos, sin = run.inputs(step)
    return tuple(_rotated(x, cos, sin, step) for x in values)


def rotate_back(step: Step, run: Pass, *dys: np.ndarray) -> Derivatives:
    """The transpose of a rotation is the rotation by the negative angle."""
    *_, cos, sin = run.inputs(step)
    return *(_rotated(dy, cos, -sin, step) for dy in dys), None, None


def _rotated(x: np.ndarray, cos: np.ndarray, sin: np.ndarray, step: Step) -> np.ndarray:
    """x (B * T, heads * head_dim) with its pairs rotated by the angles of `angles`."""
    n = step.numbers
    out = x.reshape(-1, len(cos), x.shape[1] // int(n["head_dim"]), int(n["head_dim"])).copy()
    width = int(n["rotary_dim"])
    first = slice(0, width // 2) if n["halves"] else slice(0, width, 2)
    second = slice(width // 2, width) if n["halves"] else slice(1, width, 2)
    a, b, cos, sin = out[..., first].copy(), out[..., second], cos[:, None], sin[:, None]
    out[..., first] = a * cos - b * sin
    out[..., second] = a * sin + b * cos
    return out.reshape(x.shape)


def swiglu(step: Step, run: Pass) -> Arrays:
    gate, up = run.inputs(step)
    return (activations.silu(gate) * up,)


def swiglu_back(step: Step, run: Pass, dy: np.ndarray) -> Derivatives:
    """y = f(gate) up: dgate = f'(gate) up dy, dup = f(gate) dy."""
    gate, up = run.inputs(step)
    value, slope = activations.silu_and_slope(gate)
    value *= dy
    slope *= up
    slope *= dy
    return slope, value


def geglu(step: Step, run: Pass) -> Arrays:
    gate, up = run.inputs(step)
    return (activations.gelu(gate, bool(step.numbers["exact"])) * up,)


def geglu_back(step: Step, run: Pass, dy: np.ndarray) -> Derivatives:
    """As swiglu's."""
    gate, up = run.inputs(step)
    value, slope = activations.gelu_and_slope(gate, bool(step.numbers["exact"]))
    return slope * up * dy, value * dy


def gelu(step: Step, run: Pass) -> Arrays:
    (x,) = run.inputs(step)
    return (activations.gelu(x, bool(step.numbers["exact"])),)


def gelu_back(step: Step, run: Pass, dy: np.ndarray) -> Derivatives:
    """dx = f'(x) dy."""
    (x,) = run.inputs(step)
    return (activations.gelu_and_slope(x, bool(step.numbers["exact"]))[1] * dy,)


def tanh(step: Step, run: Pass) -> Arrays:
    (x,) = run.inputs(step)
    return (np.tanh(x),)


def tanh_back(step: Step, run: Pass, dy: np.ndarray) -> Derivatives:
    """tanh' = 1 - tanh^2."""
    y = run.values[step.outputs[0]]
    return (dy * (1 - y * y),)


def scale(step: Step, run: Pass) -> Arrays:
    (x,) = run.inputs(step)
    return (x * np.float32(step.numbers["factor"]),)


def scale_back(step: Step, run: Pass, dy: np.ndarray) -> Derivatives:
    return (dy * np.float32(step.numbers["factor"]),)


def add(step: Step, run: Pass) -> Arrays:
    x, y = run.inputs(step)
    return (x + y,)


def add_back(_step: Step, _run: Pass, dy: np.ndarray) -> Derivatives:
    return dy, dy


OPS: dict[str, Op] = {
    "embed": Op(embed, embed_back),
    "rmsnorm": Op(rmsnorm, rmsnorm_back, ("x",)),
    "layernorm": Op(layernorm, layernorm_back),
    "linear": Op(linear, linear_back, ("x",)),
    "angles": Op(angles, angles_back),
    "rope": Op(rotate, rotate_back, ("cos", "sin")),
    "attention": Op(
        attention, attention_back, ("q", "q_before", "q_far", "k", "v"), keeps_outputs=True
    ),
    "experts": Op(experts, experts_back, ("x",)),
    "swiglu": Op(swiglu, swiglu_back, ("gate", "up")),
    "geglu": Op(geglu, geglu_back, ("gate", "up")),
    "gelu": Op(gelu, gelu_back, ("x",)),
    "tanh": Op(tanh, tanh_back, (), keeps_outputs=True),
    "scale": Op(scale, scale_back),
    "add": Op(add, add_back),
}
