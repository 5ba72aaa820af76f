"""Tensor parallelism (Shoeybi et al. 2019, "Megatron-LM"): which part of a network a process has.

Several processes, which MPI calls ranks, compute one network. A rank has some of the heads and some
of the hidden units of every block: the rows of wq, wk, wv, w_gate and w_up that make them. Of the
classifier it has the rows of some tokens. wo and w_down are shared out in one of two ways:

- Of a matrix of floats a rank has the columns that read its heads or hidden units. So what these
  matrices make are the terms of a sum over all ranks, and the last bits of the sum differ from
  those of one process, whose additions have another order.
- For Q8_0 and GGUF's blocks, kernels round the input of a product to int8, where a last bit can
  decide which way. So a rank has rows of such a matrix. The ranks exchange the input of the
  product, and then the output: each value is computed by one rank as one process computes it, and
  the bits are the same.

All other tensors are whole on every rank, and every rank computes the residual stream.

`exchanges` finds the steps after which the ranks exchange arrays.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from llama2np.model.config import Config
from llama2np.model.gguf_blocks import Blocks
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
COLUMNS = {"wo": "heads", "w_down": "hidden"}  # see by_rows
GATHERED = "heads", "hidden", "dim"  # what the columns of a gathered array belong to

_VECTOR = 16  # float32 values of a cache line: shares of hidden units begin at one, if possible

Parts = tuple[tuple[int, int], ...]  # ranges of rows or columns, (first, after the last)


def base_of(name: str) -> str:
    """The last part of a tensor's name: "layers.2.experts.1.w_up" and "w_up.bias" give "w_up"."""
    return name.removesuffix(".bias").rpartition(".")[2]


def by_rows(name: str, weights: Mapping[str, Tensor]) -> bool:
    """Whether a rank has rows, and not columns, of this matrix of COLUMNS (or of its bias)."""
    matrix = name.removesuffix(".bias")
    return base_of(matrix) in COLUMNS and isinstance(weights.get(matrix), Int8 | Blocks)


@dataclass(frozen=True, slots=True)
class Share:
    """What one rank of `size` has of a network with the config `whole`.

    heads: its query heads, (first, after the last); hidden and outputs: its hidden units, and the
    tokens whose logits it computes; dim: its rows of matrices that are shared out `by_rows`.
    kv_heads: for each key/value head of this rank its number in the whole network. A head that
    serves query heads of several ranks is repeated on each of them; it is repeated within a rank,
    too, if its query heads there are more than those of another one.
    """

    rank: int
    size: int
    whole: Config
    heads: tuple[int, int]
    kv_heads: tuple[int, ...]
    hidden: tuple[int, int]
    dim: tuple[int, int]
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
        """The rows or columns of its "heads", "kv_heads", "hidden", "dim" or "outputs"."""
        if what in ("hidden", "dim", "outputs"):
            return (getattr(self, what),)
        d, heads = self.whole.head_dim, self.kv_heads
        if what == "heads":
            return ((self.heads[0] * d, self.heads[1] * d),)
        if heads == tuple(range(heads[0], heads[-1] + 1)):
            return ((heads[0] * d, (heads[-1] + 1) * d),)
        return tuple((head * d, (head + 1) * d) for head in heads)

    def width(self, what: str) -> int:
        """The number of these rows or columns."""
        return sum(end - first for first, end in self.parts(what))

    @property
    def gathered(self) -> dict[str, int]:
        """The widths of whole arrays, by what their columns belong to: see GATHERED."""
        c = self.whole
        return {"heads": int(c.q_dim), "hidden": c.hidden_dim, "dim": c.dim}


def shares(config: Config, size: int) -> list[Share]:
    """What each of `size` ranks has: as equal as heads and cache lines allow.

    Raises ValueError if there are too few heads, hidden units or tokens, and for networks that read
    whole texts or classify them.
    """
    c = config
    if is_encoder(c) or c.n_labels:
        what = "reads whole texts" if is_encoder(c) else "classifies texts"
        raise ValueError(
            f"this network ({c.architecture}) {what}: only networks that predict the next token "
            "are shared out among processes"
        )
    heads = _cuts("heads", c.n_heads, _unit(c.n_heads, c.n_heads // c.n_kv_heads, size), size)
    hiddens = _cuts("hidden units", c.hidden_dim, _unit(c.hidden_dim, _VECTOR, size), size)
    dims = _cuts("values of a token", c.dim, _unit(c.dim, _VECTOR, size), size)
    outputs = _cuts("tokens", c.vocab_size, 1, size)
    parts = zip(heads, hiddens, dims, outputs, strict=True)
    return [
        Share(rank, size, c, own, _kv_heads(c, *own), *others)
        for rank, (own, *others) in enumerate(parts)
    ]


def _unit(count: int, together: int, size: int) -> int:
    """The number that stays together: this one (the query heads of a key) if all get some."""
    return together if count // together >= size else 1


def _cuts(what: str, count: int, unit: int, size: int) -> list[tuple[int, int]]:
    """Divide `count` into `size` ranges, whose borders are multiples of `unit`."""
    units = -(-count // unit)
    if units < size:
        raise ValueError(
            f"{count:,} {what} cannot be shared out among {size} processes: "
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
    """After the step `index` of a program its outputs are the terms of sums over all ranks.

    If it is the step "gather", its output is to be put together from the inputs of all ranks.
    """

    index: int
    step: Step


_OF_ALL = "cos", "sin", "shares", "chosen"  # inputs that are whole on all ranks
_ELEMENTWISE = "rope", "swiglu", "geglu", "gelu", "tanh", "scale", "add"


def exchanges(program: Program) -> tuple[Exchange, ...]:
    """The steps of a rank's program after which all ranks exchange something.

    Raises ValueError for a description that needs the parts of other ranks elsewhere.
    """
    found, divided = [], set[Value]()
    for i, step in enumerate(program.steps):
        kinds = {_kind(program, step, divided, n) for n in step.weights.get("w", ("",))}
        if len(kinds) > 1:
            raise ValueError(f"{step.name}: all of its matrices must be shared out, or none")
        (kind,) = kinds
        if kind == "divided":
            divided.update(step.outputs)
        elif kind in ("sum", "gathered"):
            found.append(Exchange(i, step))
    return tuple(found)


def _kind(program: Program, step: Step, divided: set[Value], name: str) -> str:
    """What a step makes: "whole" or "divided" arrays, "gathered" ones, or terms of a "sum".

    name: of one of its matrices, or "".
    """
    matrix = base_of(name)
    inputs = [value in divided for key, value in step.inputs.items() if key not in _OF_ALL]
    if step.op == "experts":
        expected, made = False, "sum"
    elif step.op in ("experts_hidden", "experts_out"):
        expected, made = False, "divided"
    elif step.op == "gather":
        expected, made = True, "gathered"
    elif matrix in COLUMNS and by_rows(name, program.weights):
        expected, made = False, "divided"
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
