"""A network as a flat list of steps.

A description (architectures.py) is a function that reads like the forward pass. It is called once,
with a `Block` whose methods compute nothing but record a `Step` each. The list is used by both
engines, by hooks, by `inspect --steps` and by the benchmarks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import overload

import numpy as np

from llama2np.model.config import Config
from llama2np.model.weights import (
    LAYER_SHAPES,
    Matrix,
    Tensor,
    Weights,
    check_tensor,
    described,
    shape_of,
)

Number = int | float


@dataclass(frozen=True, eq=False, slots=True)
class Value:
    """An array that a step computes: (T, width) float32, a row for each token."""

    name: str  # the hook point; "" if it is none
    width: int


@dataclass(frozen=True, eq=False, slots=True)
class Step:
    """One operation: its inputs, its weights, and its outputs."""

    op: str  # the name of a method of Block
    inputs: dict[str, Value]
    weights: Mapping[str, tuple[str, ...]]  # names of tensors
    outputs: tuple[Value, ...]
    layer: int | None
    numbers: dict[str, Number]

    @property
    def name(self) -> str:
        """The name of the step in messages: "linear q k v of layer 2"."""
        names = " ".join([self.op, *(value.name for value in self.outputs if value.name)])
        return names if self.layer is None else f"{names} of layer {self.layer}"


Describe = Callable[["Block", Config], None]


class Block:
    """Records the steps of a network, and checks names and shapes.

    Values are the arrays between the steps. `layer` is the block that is being described: set it
    in a loop, `for b.layer in range(c.n_layers)`. The name of a weight is a tensor of that block,
    or, if the block has none of that name, of the network.
    """

    def __init__(self, config: Config, weights: Weights):
        self.config, self.weights = config, weights
        self.layer: int | None = None
        self.steps: list[Step] = []
        self.used: set[str] = set()
        self._angles: tuple[Value, Value] | None = None

    def embed(self, table: str, name: str = "embedding") -> Value:
        """The rows of a table (vocab_size, dim) for the tokens."""
        matrix = self._matrix(table)
        out = Value(name, matrix.shape[1])
        return self._record("embed", {}, {"table": (self._full(table),)}, out)[0]

    def rmsnorm(self, x: Value, weight: str, name: str | None = None) -> Value:
        """weight * x / sqrt(mean(x**2) + norm_eps) (Zhang and Sennrich 2019)."""
        return self._norm("rmsnorm", x, weight, name)

    def layernorm(self, x: Value, weight: str, name: str | None = None) -> Value:
        """weight * (x - mean) / sqrt(variance + norm_eps) + its bias, if any (Ba et al. 2016)."""
        return self._norm("layernorm", x, weight, name)

    @overload
    def linear(self, x: Value, matrix: str, /, *, name: str | None = None) -> Value: ...

    @overload
    def linear(self, x: Value, first: str, second: str, /, *more: str) -> tuple[Value, ...]: ...

    def linear(
        self, x: Value, *matrices: str, name: str | None = None
    ) -> Value | tuple[Value, ...]:
        """x times each matrix, plus its bias if the network has one.

        The name of an output is that of its matrix without "w" or "w_". For one matrix the result
        is a Value, for several a tuple. Two to four matrices are computed in one step.
        """
        outs = []
        for matrix in matrices:
            shape = self._matrix(matrix).shape
            if shape[1] != x.width:
                what = described(self._full(matrix))
                raise ValueError(f"{what} has shape {shape}, its input is {x.width} wide")
            own = matrix.removeprefix("w").removeprefix("_") if name is None else name
            outs.append(Value(own, shape[0]))
        full = tuple(map(self._full, matrices))
        biases = tuple(self._bias(matrix) for matrix in matrices)
        weights = {"w": full} | ({"bias": biases} if any(biases) else {})
        made = self._record("linear", {"x": x}, weights, *outs)
        return made if len(made) > 1 else made[0]

    def rope(self, q: Value, k: Value) -> tuple[Value, Value]:
        """q and k with the first rotary_dim values of each head rotated, by their positions."""
        c = self.config
        for value in (q, k):
            if value.width % c.head_dim:
                raise ValueError(
                    f"rope of {value.name}: {value.width} wide, a head is {c.head_dim}"
                )
        if self._angles is None:
            cos, sin = Value("", c.rotary_dim // 2), Value("", c.rotary_dim // 2)
            self._record("angles", {}, {}, cos, sin)
            self._angles = cos, sin
        cos, sin = self._angles
        numbers = {"head_dim": c.head_dim, "rotary_dim": c.rotary_dim, "halves": c.rope_halves}
        outs = Value(q.name, q.width), Value(k.name, k.width)
        self._record("rope", {"q": q, "k": k, "cos": cos, "sin": sin}, {}, *outs, **numbers)
        return outs

    def attention(self, q: Value, k: Value, v: Value, name: str = "mixed") -> Value:
        """Append k and v to the KV cache; return causal attention of q over it."""
        c = self.config
        taken = [step.layer for step in self.steps if step.op == "attention"]
        if self.layer not in range(c.n_layers) or self.layer in taken:  # each layer has one cache
            raise ValueError(
                f"attention of layer {self.layer}: there is one in each of {c.n_layers}"
            )
        for value, width in ((q, c.q_dim), (k, c.kv_dim), (v, c.kv_dim)):
            if value.width != width:
                found = f"it is {value.width} wide, not {width}"
                raise ValueError(f"attention of {value.name}: {found}")
        numbers = {"n_heads": c.n_heads, "n_kv_heads": c.n_kv_heads, "head_dim": c.head_dim}
        inputs = {"q": q, "k": k, "v": v}
        return self._record("attention", inputs, {}, Value(name, c.q_dim), **numbers)[0]

    def swiglu(self, gate: Value, up: Value, name: str = "mlp") -> Value:
        """silu(gate) * up (Shazeer 2020)."""
        if gate.width != up.width:
            raise ValueError(
                f"swiglu {name}: {gate.name} is {gate.width} wide, {up.name} {up.width}"
            )
        return self._record("swiglu", {"gate": gate, "up": up}, {}, Value(name, gate.width))[0]

    def gelu(self, x: Value, name: str = "mlp", exact: bool = False) -> Value:
        """x * P(N(0, 1) <= x): with erf if `exact`, else with the tanh approximation."""
        return self._record("gelu", {"x": x}, {}, Value(name, x.width), exact=int(exact))[0]

    def add(self, x: Value, y: Value, name: str = "") -> Value:
        """x + y."""
        if x.width != y.width:
            raise ValueError(f"add {name}: {x.name} is {x.width} wide, {y.name} {y.width}")
        return self._record("add", {"x": x, "y": y}, {}, Value(name, x.width))[0]

    def logits(self, x: Value, matrix: str) -> Value:
        """The output of the network: x times the matrix, for the rows that need logits."""
        shape, bias = self._matrix(matrix).shape, self._bias(matrix)
        weights = {"w": (self._full(matrix),)} | ({"bias": (bias,)} if bias else {})
        return self._record("logits", {"x": x}, weights, Value("logits", shape[0]))[0]

    def _norm(self, op: str, x: Value, weight: str, name: str | None) -> Value:
        full = self._full(weight)
        self._tensor(full, (x.width,))
        bias = self._bias(weight) if op == "layernorm" else ""
        weights = {"weight": (full,)} | ({"bias": (bias,)} if bias else {})
        out = Value(weight if name is None else name, x.width)
        return self._record(op, {"x": x}, weights, out, eps=self.config.norm_eps)[0]

    def _full(self, name: str) -> str:
        """The name of a tensor with its block, "layers.2.wq", if it belongs to one."""
        full = f"layers.{self.layer}.{name}"
        alone = self.layer is None or (full not in self.weights and name not in LAYER_SHAPES)
        return name if alone else full

    def _tensor(self, full: str, shape: tuple[int, ...] | None) -> Tensor:
        if full not in self.weights:
            raise ValueError(f"there is no {described(full)}")
        tensor = self.weights[full]
        check_tensor(full, tensor, shape_of(full, self.config) or shape or tensor.shape)
        self.used.add(full)
        return tensor

    def _matrix(self, name: str) -> Matrix:
        full = self._full(name)
        tensor = self._tensor(full, None)
        if isinstance(tensor, np.ndarray):
            raise ValueError(f"{described(full)} is of type ndarray, expected Dense or Int8")
        return tensor

    def _bias(self, name: str) -> str:
        """The name of the bias of a matrix or norm, "" if the network has none."""
        full = f"{self._full(name)}.bias"
        if full not in self.weights:
            return ""
        owner = self.weights[self._full(name)]
        self._tensor(full, owner.shape[:1])
        return full

    def _record(
        self,
        op: str,
        inputs: dict[str, Value],
        weights: Mapping[str, tuple[str, ...]],
        *outputs: Value,
        **numbers: Number,
    ) -> tuple[Value, ...]:
        if op != "logits" and any(value.name == "logits" for value in outputs):
            raise ValueError(f"{op}: only the output of the network may be called logits")
        names = [name for some in weights.values() for name in some]
        shared = names and not any(name.startswith("layers.") for name in names)
        layer = None if shared else self.layer
        self.steps.append(Step(op, inputs, weights, outputs, layer, numbers))
        return outputs


@dataclass(frozen=True, eq=False, repr=False)
class Program:
    """The steps of a network, with its config and weights.

    Raises ValueError for weights that the description does not fit, or does not use.
    """

    config: Config
    weights: Weights
    describe: Describe
    steps: tuple[Step, ...] = field(init=False)

    def __post_init__(self) -> None:
        b = Block(self.config, self.weights)
        self.describe(b, self.config)
        unused = [name for name in self.weights if name not in b.used]
        if unused:
            raise ValueError(f"the network does not use {described(unused[0])}")
        ends = [step.op == "logits" for step in b.steps]
        if sum(ends) != 1 or not ends[-1]:
            raise ValueError("a description must end with logits, and have them only once")
        object.__setattr__(self, "steps", tuple(b.steps))

    def __str__(self) -> str:
        """The table of the steps."""
        from llama2np.model.listing import table

        return table(self)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all values, in the order in which they are first made."""
        return tuple(dict.fromkeys(v.name for step in self.steps for v in step.outputs if v.name))

    @property
    def work(self) -> int:
        """Multiply-adds of the matrix products for one token."""
        return sum(multiply_adds(self, step) for step in self.steps)

    def __repr__(self) -> str:
        return f"Program({len(self.steps)} steps; print it to see them)"

    def matrices(self, step: Step) -> list[Matrix]:
        """The matrices of a linear step or of the logits."""
        return [self.weights[name] for name in step.weights.get("w", ())]  # type: ignore[misc]


def multiply_adds(program: Program, step: Step) -> int:
    """The multiply-adds of a step's matrix products for one token; 0 without matrices."""
    return sum(math.prod(matrix.shape) for matrix in program.matrices(step))


def rope_frequencies(config: Config) -> np.ndarray:
    """The angle of each pair per position, (rotary_dim / 2,) float32.

    run.c's expression in its precision: 1 / powf(theta, i / rotary_dim) for i = 0, 2, 4 ...
    """
    width = np.float32(config.rotary_dim)
    exponents = np.arange(0, config.rotary_dim, 2, dtype=np.float32) / width
    powers = np.float64(config.rope_theta) ** exponents.astype(np.float64)
    return np.float32(1) / powers.astype(np.float32)
