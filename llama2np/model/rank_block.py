"""How the steps of a rank are recorded: the description of the network does not change.

Where rows of wo and w_down are shared out (see shares.py), there is a step "gather" before the
product and one after it: the other ranks have the missing columns of its input.
"""

from __future__ import annotations

from collections.abc import Mapping

from llama2np.model.block import Block, Describe, Value
from llama2np.model.config import Config
from llama2np.model.shares import COLUMNS, GATHERED, Share, base_of, by_rows
from llama2np.model.weights import Weights, shape_of


def of_rank(describe: Describe, share: Share) -> Describe:
    """The description of what a rank computes of the network that `describe` describes."""

    def described(b: Block, c: Config) -> None:
        own = RankBlock(share, b.weights)
        describe(own, c)
        b.steps += own.steps
        b.used |= own.used

    return described


class RankBlock(Block):
    """Records the steps of a rank. See Block."""

    def __init__(self, share: Share, weights: Weights):
        super().__init__(share.config, weights)
        self._share = share

    def gather(self, x: Value, what: str, times: int = 1) -> Value:
        """The columns of x (T, width) of all ranks next to each other: (T, whole width).

        what: one of GATHERED, which the columns belong to. times: rows of x for each token.
        """
        part, whole = times * self._share.width(what), times * self._share.gathered[what]
        if x.width != part:
            raise ValueError(f"gather {x.name}: {x.width} wide, its part of {what} is {part}")
        out, numbers = Value(x.name, whole), {"of": GATHERED.index(what)}
        return self._record("gather", {"x": x}, {}, out, **numbers)[0]

    def _products(self, x: Value, matrices: tuple[str, ...], name: str | None) -> tuple[Value, ...]:
        full = [self._full(matrix) for matrix in matrices]
        if not all(by_rows(each, self.weights) for each in full):
            return super()._products(x, matrices, name)
        whole = self.gather(x, COLUMNS[base_of(full[0])])
        parts = super()._products(whole, matrices, name)
        return tuple(self.gather(part, "dim") for part in parts)

    def _mixture(
        self, x: Value, router: Value, weights: Mapping[str, tuple[str, ...]], name: str
    ) -> Value:
        """In two steps: the hidden units of the chosen experts, and what they add to the stream."""
        if not all(by_rows(each, self.weights) for each in weights["w_down"]):
            return super()._mixture(x, router, weights, name)
        c, down = self.config, {"w_down": weights["w_down"]}
        used = c.n_experts_used
        numbers = {"used": used, "probabilities": c.expert_probabilities}
        made = Value("", used * c.hidden_dim), Value("", used), Value("", used)
        first = {kind: weights[kind] for kind in ("w_gate", "w_up")}
        inputs = {"x": x, "router": router}
        mlp, shares, chosen = self._record("experts_hidden", inputs, first, *made, **numbers)
        inputs = {"mlp": self.gather(mlp, "hidden", used), "shares": shares, "chosen": chosen}
        out = Value(name, self._share.width("dim"))
        return self.gather(self._record("experts_out", inputs, down, out, used=used)[0], "dim")

    def _shape(self, full: str) -> tuple[int, ...] | None:
        if not by_rows(full, self.weights):
            return super()._shape(full)
        shape = shape_of(full, self._share.whole)
        return shape and (self._share.width("dim"), *shape[1:])
