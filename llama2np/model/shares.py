"""Tensor parallelism (Shoeybi et al. 2019, "Megatron-LM"): which part of a network a process has.

Several processes, which MPI calls ranks, compute one network. A rank has some of the heads and some
of the hidden units of every block: the rows of wq, wk, wv, w_gate and w_up that make them, and the
columns of wo and w_down that read them. So what wo and w_down make are the terms of a sum over all
ranks. Of the classifier a rank has the rows of some tokens. All other tensors are whole on every
rank, and every rank computes the residual stream.

`exchanges` finds the steps after which the ranks must add up their terms.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from llama2np.model.blocks import KINDS, Blocks
from llama2np.model.config import Config
from llama2np.model.networks import is_encoder
from llama2np.model.program import Program, Step, Value
from llama2np.model.weights import Int8, Tensor

# By the last part of a tensor's name: what its rows, or its columns, belong to.
ROWS = {
    "wq": "heads",
    "wk": "kv_heads",
    "wv": "kv_heads",
    "w_gate": "hidden",
    "w_up": "hidden",
    "classifier": "outputs",
}
COLUMNS = {"wo": "heads", "w_down": "hidden"}

_VECTOR = 16  # float32 values of a cache line: shares of hidden units begin at one, if possible

Parts = tuple[tuple[int, int], ...]  # ranges of rows or columns, (first, after the last)


def base_of(name: str) -> str:
    """The last part of a tensor's name: "layers.2.experts.1.w_up" and "w_up.bias" give "w_up"."""
    return name.removesuffix(".bias").rpartition(".")[2]


@dataclass(frozen=True, slots=True)
class Share:
    """What one rank of `size` has of a network with the config `whole`.

    heads: its query heads, (first, after the last); hidden and outputs: its hidden units, and the
    tokens whose logits it computes. kv_heads: for each key/value head of this rank its number in
    the whole network. A head that serves query heads of several ranks is repeated on each of them;
    it is repeated within a rank, too, if its query heads there are more than those of another one.
    """

    rank: int
    size: int
    whole: Config
    heads: tuple[int, int]
    kv_heads: tuple[int, ...]
    hidden: tuple[int, int]
    outputs: tuple[int, int]

    @property
    def config(self) -> Config:
        """The shape of the network that this rank computes."""
        c = self.whole
        return replace(
            c,
            n_heads=self.heads[1] - self.heads[0],
            n_kv_heads=len(self.kv_heads),
            hidden_dim=self.hidden[1] - self.hidden[0],
            head_dim=int(c.head_dim),  # which would be derived again from the other number of heads
            rotary_dim=int(c.rotary_dim),
            outputs_here=self.outputs[1] - self.outputs[0],
        )

    def parts(self, what: str) -> Parts:
        """The rows or columns that belong to its "heads", "kv_heads", "hidden" or "outputs"."""
        if what in ("hidden", "outputs"):
            return (getattr(self, what),)
        d, heads = self.whole.head_dim, self.kv_heads
        if what == "heads":
            return ((self.heads[0] * d, self.heads[1] * d),)
        if heads == tuple(range(heads[0], heads[-1] + 1)):
            return ((heads[0] * d, (heads[-1] + 1) * d),)
        return tuple((head * d, (head + 1) * d) for head in heads)


def shares(config: Config, weights: Mapping[str, Tensor], size: int) -> list[Share]:
    """What each of `size` ranks has: shares as equal as the number formats allow.

    The columns of quantized matrices are cut between their groups or blocks only, since the values
    of a block have one scale. Raises ValueError if there are too few heads, hidden units or tokens,
    and for networks that read whole texts or classify them.
    """
    c = config
    if is_encoder(c) or c.n_labels:
        what = "reads whole texts" if is_encoder(c) else "classifies texts"
        raise ValueError(
            f"this network ({c.architecture}) {what}: only networks that predict the next token "
            "are shared out among processes"
        )
    hidden = _hidden_unit(c, weights, size)
    heads = _cuts("heads", c.n_heads, _head_unit(c, weights, size), size, c.head_dim)
    hiddens = _cuts("hidden units", c.hidden_dim, hidden, size)
    outputs = _cuts("tokens", c.vocab_size, 1, size)
    return [
        Share(rank, size, c, heads[rank], _kv_heads(c, *heads[rank]), hiddens[rank], outputs[rank])
        for rank in range(size)
    ]


def _block(weights: Mapping[str, Tensor], base: str) -> int:
    """The columns of the matrices of that name can be cut at multiples of this number."""
    sizes = {1}
    for name, tensor in weights.items():
        if base_of(name) == base and isinstance(tensor, Int8):
            sizes.add(tensor.group)
        elif base_of(name) == base and isinstance(tensor, Blocks):
            sizes.add(KINDS[tensor.kind].values)
    return math.lcm(*sizes)


def _head_unit(c: Config, weights: Mapping[str, Tensor], size: int) -> int:
    """The number of query heads that must stay together: all that share keys, if possible."""
    block = _block(weights, "wo")
    unit = block // math.gcd(block, c.head_dim)
    group = math.lcm(unit, c.n_heads // c.n_kv_heads)
    return group if c.n_heads // group >= size else unit


def _hidden_unit(c: Config, weights: Mapping[str, Tensor], size: int) -> int:
    block = _block(weights, "w_down")
    unit = math.lcm(block, _VECTOR)
    return unit if c.hidden_dim // unit >= size else block


def _cuts(what: str, count: int, unit: int, size: int, width: int = 1) -> list[tuple[int, int]]:
    """Divide `count` into `size` ranges, whose borders are multiples of `unit`."""
    units = -(-count // unit)
    if units < size:
        blocks = ""
        if unit > 1:
            blocks = f" in blocks of {unit}, which the number format keeps together"
        raise ValueError(
            f"{count:,} {what}{blocks} cannot be shared out among {size} processes: "
            f"at most {units} can run this network"
        )
    borders = [min(units * i // size * unit, count) for i in range(size)] + [count]
    return list(zip(borders, borders[1:], strict=False))


def _kv_heads(c: Config, first: int, end: int) -> tuple[int, ...]:
    """The key/value heads of the query heads first ... end - 1, so that each serves as many."""
    group = c.n_heads // c.n_kv_heads
    served: dict[int, int] = {}
    for head in range(first, end):
        served[head // group] = served.get(head // group, 0) + 1
    each = math.gcd(*served.values())
    return tuple(head for head, count in served.items() for _ in range(count // each))


# --- where the ranks exchange something -----------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Exchange:
    """After the step `index` of a program, `values` are the terms of sums over all ranks."""

    index: int
    values: tuple[Value, ...]


_ELEMENTWISE = "rope", "swiglu", "geglu", "gelu", "tanh", "scale", "add"


def exchanges(program: Program) -> tuple[Exchange, ...]:
    """The steps of a rank's program after which its outputs must be summed over all ranks.

    Raises ValueError for a description that needs the parts of other ranks elsewhere.
    """
    found, divided = [], set[Value]()
    for i, step in enumerate(program.steps):
        kinds = {_kind(program, step, divided, name) for name in _matrices(step) or [""]}
        if len(kinds) > 1:
            raise ValueError(f"{step.name}: all of its matrices must be shared out, or none")
        (kind,) = kinds
        if kind == "divided":
            divided.update(step.outputs)
        elif kind == "sum":
            found.append(Exchange(i, step.outputs))
    return tuple(found)


def _matrices(step: Step) -> list[str]:
    return [base_of(name) for name in step.weights.get("w", ())]


def _kind(program: Program, step: Step, divided: set[Value], matrix: str) -> str:
    """What a step makes: "whole" or "divided" arrays, or terms of a "sum" over the ranks."""
    inputs = [value in divided for name, value in step.inputs.items() if name not in ("cos", "sin")]
    if step.op == "experts":
        expected, made = False, "sum"
    elif matrix in COLUMNS:
        expected, made = True, "sum"
    elif matrix in ROWS and step.op == "linear":
        expected, made = False, "divided"
    elif step.op == "attention":
        expected, made = True, "divided"
    elif step.op in _ELEMENTWISE or _of_heads(program, step):
        expected = inputs[0]
        made = "divided" if expected else "whole"
    else:
        expected, made = False, "whole"
    if any(each != expected for each in inputs):
        raise ValueError(
            f"{step.name}: needs arrays that are shared out among processes, which works for "
            f"{' and '.join(COLUMNS)} only"
        )
    return made


def _of_heads(program: Program, step: Step) -> bool:
    """Whether a step normalizes each head on its own."""
    if step.op != "rmsnorm":
        return False
    (name,) = step.weights["weight"]
    return base_of(name) in ("q_norm", "k_norm")
