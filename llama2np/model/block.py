"""The steps of a network, and the Block whose methods record them.

The methods compute nothing: each checks the names and shapes of its arguments and adds a Step to
the list.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
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

IDS = "tokens", "positions", "types"  # these choose the rows of an embedding
OUTSIDE = "input", "gather"  # steps whose outputs are put there: no engine computes them
NO_LIMIT = 2**62  # more positions than any sequence has


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
        self._angles: dict[tuple[str, bool], tuple[Value, Value]] = {}

    def has(self, name: str) -> bool:
        """Whether the network has this tensor, in the block that is being described."""
        return self._full(name) in self.weights

    def input(self, name: str, width: int) -> Value:
        """Values that are computed elsewhere: (T, width)."""
        return self._record("input", {}, {}, Value(name, width))[0]

    def embed(self, table: str, name: str = "embedding", of: str = "tokens") -> Value:
        """A row of a table (n, dim) for each token, chosen by its id, position or type: see IDS."""
        matrix = self._matrix(table)
        out, numbers = Value(name, matrix.shape[1]), {"of": IDS.index(of)}
        return self._record("embed", {}, {"table": (self._full(table),)}, out, **numbers)[0]

    def rmsnorm(self, x: Value, weight: str, name: str | None = None) -> Value:
        """weight * x / sqrt(mean(x**2) + norm_eps) (Zhang and Sennrich 2019).

        A weight as wide as a head normalizes each head on its own.
        """
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

        An output has the name of its matrix without "w" or "w_". For one matrix the result
        is a Value, for several a tuple. Two to four matrices are computed in one step.
        """
        made = self._products(x, matrices, name)
        return made if len(made) > 1 else made[0]

    def rope(self, q: Value, k: Value) -> tuple[Value | tuple[Value, ...], Value]:
        """q and k with the first rotary_dim values of each head rotated, by their positions.

        For dual chunk attention there are three rotations of q: for keys of the token's own chunk,
        of the chunk before, and of all others.
        """
        local = bool(self._window and self.config.local_rope_theta)
        if self.config.dual_chunk is None:
            cos, sin = self._turns("plain", local)
            rotated = self._rotated({"q": q, "k": k}, cos, sin)
            return rotated[0], rotated[1]
        queries = [
            self._rotated({"q": q}, *self._turns(rule, local), name=q.name * (rule == "own"))[0]
            for rule in ("own", "before", "far")
        ]
        return tuple(queries), self._rotated({"q": k}, *self._turns("key", local))[0]

    def attention(
        self, q: Value | tuple[Value, ...], k: Value, v: Value, name: str = "mixed"
    ) -> Value:
        """Append k and v to the KV cache; return attention of q over it.

        q: one Value, or for dual chunk attention the three of `rope`. A token attends to the
        positions before it and to itself, in a layer with a window to the last of them only.
        """
        return self._attention(q, k, v, name, causal=1)

    def attention_both_ways(self, q: Value, k: Value, v: Value, name: str = "mixed") -> Value:
        """The same, but a token attends to all tokens of its sequence, the later ones included."""
        return self._attention(q, k, v, name, causal=0)

    def swiglu(self, gate: Value, up: Value, name: str = "mlp") -> Value:
        """silu(gate) * up (Shazeer 2020)."""
        if gate.width != up.width:
            raise ValueError(
                f"swiglu {name}: {gate.name} is {gate.width} wide, {up.name} {up.width}"
            )
        return self._record("swiglu", {"gate": gate, "up": up}, {}, Value(name, gate.width))[0]

    def geglu(self, gate: Value, up: Value, name: str = "mlp") -> Value:
        """gelu(gate) * up (Shazeer 2020)."""
        if gate.width != up.width:
            raise ValueError(
                f"geglu {name}: {gate.name} is {gate.width} wide, {up.name} {up.width}"
            )
        inputs, numbers = {"gate": gate, "up": up}, {"exact": self.config.gelu_exact}
        return self._record("geglu", inputs, {}, Value(name, gate.width), **numbers)[0]

    def gelu(self, x: Value, name: str = "mlp") -> Value:
        """x * P(N(0, 1) <= x): with erf if the config says gelu_exact, else tanh approximates it
        (Hendrycks and Gimpel 2016).
        """
        numbers = {"exact": self.config.gelu_exact}
        return self._record("gelu", {"x": x}, {}, Value(name, x.width), **numbers)[0]

    def tanh(self, x: Value, name: str = "") -> Value:
        """tanh(x)."""
        return self._record("tanh", {"x": x}, {}, Value(name, x.width))[0]

    def scale(self, x: Value, factor: float, name: str = "") -> Value:
        """x * factor."""
        return self._record("scale", {"x": x}, {}, Value(name, x.width), factor=factor)[0]

    def experts(self, x: Value, name: str = "mlp_out") -> Value:
        """A mixture of experts: the feed-forward networks that the router chooses for each token.

        p = softmax(router x) over all experts; the result is the sum of p_e * y_e over the
        n_experts_used with the largest p, where y_e = w_down_e (silu(w_gate_e x) * (w_up_e x)).
        These p are divided by their sum (Jiang et al. 2024, Mixtral), or with
        `expert_probabilities` taken as they are (Fedus et al. 2021, Switch Transformers).
        """
        c, router = self.config, self.linear(x, "router")
        weights = {}
        for matrix in ("w_gate", "w_up", "w_down"):
            names = [f"experts.{e}.{matrix}" for e in range(c.n_experts)]
            shape = (x.width, c.hidden_dim) if matrix == "w_down" else (c.hidden_dim, x.width)
            for full in map(self._full, names):
                self._tensor(full, shape)
            weights[matrix] = tuple(map(self._full, names))
        return self._mixture(x, router, weights, name)

    def add(self, x: Value, y: Value, name: str = "") -> Value:
        """x + y."""
        if x.width != y.width:
            raise ValueError(f"add {name}: {x.name} is {x.width} wide, {y.name} {y.width}")
        return self._record("add", {"x": x, "y": y}, {}, Value(name, x.width))[0]

    def logits(self, x: Value, matrix: str) -> Value:
        """The output of the network: x times the matrix, for the rows that need logits.

        With logit_softcap = c of the config they become c tanh(logit / c).
        """
        shape, bias = self._matrix(matrix).shape, self._bias(matrix)
        weights = {"w": (self._full(matrix),)} | ({"bias": (bias,)} if bias else {})
        out, numbers = Value("logits", shape[0]), {"softcap": self.config.logit_softcap}
        return self._record("logits", {"x": x}, weights, out, **numbers)[0]

    @property
    def _window(self) -> int:
        """The window of the block that is being described; 0 means all positions."""
        windows = self.config.windows
        return windows[self.layer] if windows and self.layer is not None else 0

    def _turns(self, rule: str, local: bool) -> tuple[Value, Value]:
        """cos and sin of the angles by a rule for positions; blocks share them.

        The rules for dual chunk attention, for chunks of s positions: a key and the query for keys
        of its own chunk are at pos % s; for keys of the chunk before the query is at pos % s + s,
        and for all others at 2 s - 1, but never beyond chunk_size.
        """
        if (rule, local) not in self._angles:
            c, chunks = self.config, self.config.dual_chunk
            s, most = (chunks.stride, chunks.chunk_size) if chunks else (NO_LIMIT, NO_LIMIT)
            modulus = 1 if rule == "far" else s
            add = {"before": s, "far": 2 * s - 1}.get(rule, 0)
            scaled = chunks is not None and (
                chunks.scaling == "both" or (chunks.scaling == "keys" and rule == "key")
            )
            numbers = {"modulus": modulus, "add": add, "most": most}
            numbers |= {"local": int(local), "scaled": int(scaled)}
            cos, sin = Value("", c.rotary_dim // 2), Value("", c.rotary_dim // 2)
            self._record("angles", {}, {}, cos, sin, **numbers)
            self._angles[rule, local] = cos, sin
        return self._angles[rule, local]

    def _rotated(
        self, values: dict[str, Value], cos: Value, sin: Value, name: str | None = None
    ) -> tuple[Value, ...]:
        c = self.config
        for value in values.values():
            if value.width % c.head_dim:
                raise ValueError(
                    f"rope of {value.name}: {value.width} wide, a head is {c.head_dim}"
                )
        numbers = {"head_dim": c.head_dim, "rotary_dim": c.rotary_dim, "halves": c.rope_halves}
        outs = [Value(v.name if name is None else name, v.width) for v in values.values()]
        return self._record("rope", {**values, "cos": cos, "sin": sin}, {}, *outs, **numbers)

    def _products(self, x: Value, matrices: tuple[str, ...], name: str | None) -> tuple[Value, ...]:
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
        return self._record("linear", {"x": x}, weights, *outs)

    def _mixture(
        self, x: Value, router: Value, weights: Mapping[str, tuple[str, ...]], name: str
    ) -> Value:
        c, inputs = self.config, {"x": x, "router": router}
        numbers = {"used": c.n_experts_used, "probabilities": c.expert_probabilities}
        return self._record("experts", inputs, weights, Value(name, x.width), **numbers)[0]

    def _attention(
        self, q: Value | tuple[Value, ...], k: Value, v: Value, name: str, causal: int
    ) -> Value:
        c = self.config
        taken = [step.layer for step in self.steps if step.op == "attention"]
        if self.layer not in range(c.n_layers) or self.layer in taken:  # each layer has one cache
            raise ValueError(
                f"attention of layer {self.layer}: there is one in each of {c.n_layers}"
            )
        queries = q if isinstance(q, tuple) else (q,)
        for value, width in (*((q, c.q_dim) for q in queries), (k, c.kv_dim), (v, c.kv_dim)):
            if value.width != width:
                found = f"it is {value.width} wide, not {width}"
                raise ValueError(f"attention of {value.name}: {found}")
        divisor = 1 / c.attention_scale if c.attention_scale else float(c.head_dim) ** 0.5
        if c.attention_scale_by_layer:
            divisor *= (self.layer or 0) + 1
        chunks = c.dual_chunk
        numbers = {"n_heads": c.n_heads, "n_kv_heads": c.n_kv_heads, "head_dim": c.head_dim}
        numbers |= {
            "causal": causal,
            "window": self._window,
            "stride": chunks.stride if chunks else 0,
        }
        floats = {"divisor": divisor, "softcap": c.attention_softcap}
        inputs = {"q": queries[0], "k": k, "v": v}
        inputs |= dict(zip(("q_before", "q_far"), queries[1:], strict=False))
        return self._record("attention", inputs, {}, Value(name, c.q_dim), **numbers, **floats)[0]

    def _norm(self, op: str, x: Value, weight: str, name: str | None) -> Value:
        full = self._full(weight)
        shape = self.weights[full].shape if full in self.weights else ()
        width = shape[0] if shape else x.width  # anything but a vector is refused below
        per_head = op == "rmsnorm" and width == self.config.head_dim and x.width % width == 0
        self._tensor(full, (width if per_head else x.width,))
        bias = self._bias(weight) if op == "layernorm" else ""
        weights = {"weight": (full,)} | ({"bias": (bias,)} if bias else {})
        out = Value(weight if name is None else name, x.width)
        numbers = {"eps": self.config.norm_eps}
        if op == "rmsnorm":
            numbers |= {"groups": x.width // width if per_head else 1}
        return self._record(op, {"x": x}, weights, out, **numbers)[0]

    def _full(self, name: str) -> str:
        """The name of a tensor with its block, "layers.2.wq", if it belongs to one."""
        full = f"layers.{self.layer}.{name}"
        alone = self.layer is None or (full not in self.weights and name not in LAYER_SHAPES)
        return name if alone else full

    def _tensor(self, full: str, shape: tuple[int, ...] | None) -> Tensor:
        if full not in self.weights:
            raise ValueError(f"there is no {described(full)}")
        tensor = self.weights[full]
        check_tensor(full, tensor, self._shape(full) or shape or tensor.shape)
        self.used.add(full)
        return tensor

    def _shape(self, full: str) -> tuple[int, ...] | None:
        """The shape that the config gives to the tensor of that name, if it does."""
        return shape_of(full, self.config)

    def _matrix(self, name: str) -> Matrix:
        full = self._full(name)
        tensor = self._tensor(full, None)
        if isinstance(tensor, np.ndarray) or len(tensor.shape) != 2:
            kind = type(tensor).__name__
            raise ValueError(f"{described(full)} is of type {kind}, expected Dense or Int8")
        return tensor  # type: ignore[return-value]  # an Outline is as good here

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
