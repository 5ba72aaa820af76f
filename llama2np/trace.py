"""Looking at the arrays of a forward pass, and changing them: Trace and Edit.

Both are hooks for `Llama.with_hooks`. An array goes by one of these names; each block of the
network has those in the middle. T is the number of tokens that are read at once.

    embedding    (T, dim)                      the residual stream before the first block
    attn_norm    (T, dim)                      its normalised copy, which q, k and v are made from
    q            (T, n_heads, head_dim)        after RoPE
    k            (T, n_kv_heads, head_dim)     after RoPE, as it stands in the cache
    v            (T, n_kv_heads, head_dim)     as it stands in the cache
    attention    (n_heads, T, positions)       how much each token takes from each position so far
    mixed        (T, n_heads, head_dim)        the values that each head gathered
    attn_out     (T, dim)                      wo mixed: what attention adds to the stream
    resid_mid    (T, dim)                      the stream after attention
    ffn_norm     (T, dim)                      its normalised copy, which gate and up are made from
    gate, up     (T, hidden_dim)               before SwiGLU
    mlp          (T, hidden_dim)               silu(gate) * up
    mlp_out      (T, dim)                      w_down mlp: what the feed-forward branch adds
    resid_post   (T, dim)                      the stream after the block
    logits       (T or 1, vocab_size)          for the tokens whose logits were asked for

All are float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from llama2np.arguments import function, whole

ENDS = ("embedding", "logits")  # there is one of these, not one in each block
POINTS = (
    *("embedding", "attn_norm", "q", "k", "v", "attention", "mixed", "attn_out", "resid_mid"),
    *("ffn_norm", "gate", "up", "mlp", "mlp_out", "resid_post", "logits"),
)


@dataclass(frozen=True, slots=True)
class Place:
    """Where an array stands: its name, its block, and the positions (T,) of its tokens."""

    name: str
    layer: int | None  # None for the embedding and the logits
    positions: np.ndarray


class Hook(Protocol):
    """What is shown each array of `names` in `layers` (None: all of them) as it is made."""

    names: tuple[str, ...]
    layers: tuple[int, ...] | None

    def visit(self, array: np.ndarray, place: Place) -> None:
        """See the array that the network goes on with, or change it in place."""


class Edit:
    """Change the array `name` on its way: in all blocks, or in `layers` (-1 is the last).

    `change(array, place)` changes the array in place, or returns what to put there. It is called
    for each run of tokens that is read together: place.positions tells which. Whatever comes
    after follows from the change; what is done to k and v stays in the cache of the State.

    >>> def ablate(mixed, place):
    ...     mixed[:, 3] = 0
    >>> story = model.with_hooks(Edit("mixed", ablate, layers=2)).generate("Once upon a time")

    Raises ValueError for a name that no array has.
    """

    def __init__(
        self,
        name: str,
        change: Callable[[np.ndarray, Place], np.ndarray | None],
        layers: int | Iterable[int] | None = None,
    ):
        self.names = _checked([name])
        self.layers = _integers("layers", layers)
        function("change", change, "an array and its place")
        self._change = change

    def __repr__(self) -> str:
        return f"Edit({self.names[0]!r}, layers={self.layers})"

    def visit(self, array: np.ndarray, place: Place) -> None:
        """Change `array` in place."""
        changed = self._change(array, place)
        if changed is not None:
            array[...] = changed


class Trace:
    """Remember arrays: those `names` (by default all), in `layers` (all), at `positions` (all).

    -1 is the last layer; positions count from 0.

    >>> trace = Trace("attention", "resid_post")
    >>> state = model.new_state()
    >>> logits = model.with_hooks(trace).forward(model.tokenizer.encode("Once"), state)
    >>> trace["attention", 2].shape                     # in block 2: (n_heads, T, positions)
    >>> trace["resid_post"].shape                       # in all blocks: (n_layers, T, dim)

    Every array is a copy. What several calls of `forward` show is put one after the other, a row
    for each token; so keep a Trace to one sequence, and to one thread at a time. With a draft
    there are rows of rejected guesses, too: `positions` tells.
    Raises ValueError for a name that no array has, and for negative positions.
    """

    def __init__(
        self,
        *names: str,
        layers: int | Iterable[int] | None = None,
        positions: int | Iterable[int] | None = None,
    ):
        self.names = _checked(names or POINTS)
        self.layers = _integers("layers", layers)
        self._wanted = _integers("positions", positions)
        if min(self._wanted or (0,)) < 0:
            raise ValueError("positions count from 0, the end of a sequence is not known ahead")
        self._seen: dict[tuple[str, int | None], list[tuple[np.ndarray, np.ndarray]]] = {}

    def visit(self, array: np.ndarray, place: Place) -> None:
        """Keep a copy of the rows that are wanted."""
        positions = place.positions
        if self._wanted is not None:
            rows = np.flatnonzero(np.isin(positions, self._wanted))
            if not rows.size:
                return
            axis = 1 if place.name == "attention" else 0
            positions, array = positions[rows], array.take(rows, axis)
        seen = self._seen.setdefault((place.name, place.layer), [])
        seen.append((positions.copy(), array.copy()))

    def __getitem__(self, key: str | tuple[str, int]) -> np.ndarray:
        """trace[name, layer]: the array in that block; trace[name]: in all that were recorded,
        (layers, ...) by rising layer; of the embedding and the logits there is one.

        Raises KeyError for what was not recorded.
        """
        name, layer = (key, None) if isinstance(key, str) else key
        if layer is not None or name in ENDS:
            return _joined(name, [array for _, array in self._rows(name, layer)])
        layers = sorted(i for found, i in self._seen if found == name and i is not None)
        if not layers:
            self._rows(name, None)
        return np.stack([self[name, at] for at in layers])

    def __contains__(self, name: object) -> bool:
        return name in list(self)

    def __iter__(self) -> Iterator[str]:
        """The names of what was recorded, in the order of the network."""
        return iter(sorted({name for name, _ in self._seen}, key=POINTS.index))

    def __repr__(self) -> str:
        """What was recorded, for a look."""
        layers = sorted({layer for _, layer in self._seen if layer is not None})
        return f"Trace({', '.join(self) or 'of nothing yet'}; layers {layers})"

    def positions(self, name: str) -> np.ndarray:
        """The positions (rows,) of the tokens of trace[name]. Raises KeyError."""
        layer = next((at for recorded, at in self._seen if recorded == name), None)
        return np.concatenate([positions for positions, _ in self._rows(name, layer)])

    def clear(self) -> None:
        """Forget everything, to begin another sequence."""
        self._seen.clear()

    def _rows(self, name: str, layer: int | None) -> list[tuple[np.ndarray, np.ndarray]]:
        try:
            return self._seen[name, layer]
        except KeyError:
            what = name if layer is None else f"{name} of layer {layer}"
            raise KeyError(f"no {what} was recorded, but {self!r}") from None


def _joined(name: str, arrays: list[np.ndarray]) -> np.ndarray:
    """Rows one below the other; attention is as wide as its last row, and 0 where it saw less."""
    if name != "attention":
        return np.concatenate(arrays)
    width = max(array.shape[2] for array in arrays)
    padded = [np.pad(a, ((0, 0), (0, 0), (0, width - a.shape[2]))) for a in arrays]
    return np.concatenate(padded, axis=1)


def _checked(names: Iterable[str]) -> tuple[str, ...]:
    names = tuple(names)
    for name in names:
        if name not in POINTS:
            raise ValueError(f"no array is called {name!r}; there are {', '.join(POINTS)}")
    return tuple(dict.fromkeys(names))


def _integers(name: str, values: int | Iterable[int] | None) -> tuple[int, ...] | None:
    if values is None:
        return None
    # Text is no row of numbers, nor is an array without dimensions, though both claim to be.
    if (
        isinstance(values, Iterable)
        and not isinstance(values, str)
        and getattr(values, "ndim", True)
    ):
        return tuple(whole(name, value) for value in values)
    return (whole(name, values),)
