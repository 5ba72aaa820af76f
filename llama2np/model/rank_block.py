"""How the steps of a rank are recorded: the description of the network does not change.

Where rows of wo and w_down are shared out (see shares.py), there is a step "gather" before the
product and one after it: the other ranks have the missing columns of its input.
"""

from __future__ import annotations

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

    def gather(self, x: Value, what: str) -> Value:
        """The columns of x (T, width) of all ranks next to each other: (T, whole width).

        what: one of GATHERED, which the columns belong to.
        """
        part, whole = self._share.width(what), self._share.gathered[what]
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

    def _shape(self, full: str) -> tuple[int, ...] | None:
        if not by_rows(full, self.weights):
            return super()._shape(full)
        shape = shape_of(full, self._share.whole)
        return shape and (self._share.width("dim"), *shape[1:])
