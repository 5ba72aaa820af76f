"""Looking at the arrays of a forward pass, and changing them: Trace and Edit.

Both are hooks for `Llama.with_hooks`: the program is computed in pieces, and between two steps the
hooks get the arrays. These are the names of the arrays (the hook points); all but the first and the
last exist in each block. T is the number of tokens that are read in one pass.

    embedding    (T, dim)                      the residual stream before the first block
    attn_norm    (T, dim)                      its normalised copy, the input of wq, wk and wv
    q            (T, n_heads, head_dim)        after RoPE
    k            (T, n_kv_heads, head_dim)     after RoPE, as stored in the cache
    v            (T, n_kv_heads, head_dim)     as stored in the cache
    attention    (n_heads, T, positions)       the attention weights of each token (its pattern)
    mixed        (T, n_heads, head_dim)        the attention output before wo: each head's mean of v
    attn_out     (T, dim)                      wo mixed: what attention adds to the stream
    resid_mid    (T, dim)                      the stream after attention
    ffn_norm     (T, dim)                      its normalised copy, the input of w_gate and w_up
    gate, up     (T, hidden_dim)               before SwiGLU
    mlp          (T, hidden_dim)               silu(gate) * up
    mlp_out      (T, dim)                      w_down mlp: what the feed-forward branch adds
    resid_post   (T, dim)                      the stream after the block
    logits       (T or 1, vocab_size)          of all tokens, or of the last one

These are a Llama's. Some architectures lack some of them (Phi-2 has no ffn_norm and no gate), and
some have others:

    token_embedding, position_embedding  (T, dim)   GPT-2: their sum is the embedding
    post_attn_norm, post_ffn_norm        (T, dim)   Gemma 2 and 3: what a branch adds, normalised
    router                         (T, n_experts)   Mixtral: the logits of the experts

All are float32. With dual chunk attention, q has the rotation for keys of the token's own chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from llama2np.arguments import function, whole
from llama2np.model.attention import Rule, attention_weights, weighted_values
from llama2np.model.config import Config
from llama2np.model.engine import Run
from llama2np.model.program import Program, Step, Value
from llama2np.model.state import State

ENDS = ("embedding", "logits")  # there is one of these, not one in each block
POINTS = (
    *("embedding", "attn_norm", "q", "k", "v", "attention", "mixed", "attn_out", "resid_mid"),
    *("ffn_norm", "gate", "up", "mlp", "mlp_out", "resid_post", "logits"),
)
_EMBEDDINGS = "token_embedding", "position_embedding"
OTHER_POINTS = (*_EMBEDDINGS, "post_attn_norm", "post_ffn_norm", "router")
_ALL = POINTS + OTHER_POINTS


@dataclass(frozen=True, slots=True)
class Place:
    """A hook point: the name of an array, its block, and the positions (T,) of its tokens."""

    name: str
    layer: int | None  # None for the embedding and the logits
    positions: np.ndarray


class Hook(Protocol):
    """Gets each array of `names` in `layers` (None means all) when it is computed.

    With `every`, the network may lack some of `names`; otherwise it must have all of them.
    """

    names: tuple[str, ...]
    layers: tuple[int, ...] | None

    def visit(self, array: np.ndarray, place: Place) -> None:
        """Read the array, or change it in place: the network continues with it."""


class Edit:
    """Change the array `name` in the forward pass: in all blocks, or in `layers` (-1 is the last).

    `change(array, place)` changes the array in place, or returns the values to put there. It is
    called once for each group of tokens that is read in one pass; place.positions has their
    positions. Later steps use the changed array; changed k and v stay in the cache of the State.

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
    """Record arrays: `names` in `layers` at `positions`; each of these is by default all.

    -1 is the last layer; positions count from 0.

    >>> trace = Trace("attention", "resid_post")
    >>> state = model.new_state()
    >>> logits = model.with_hooks(trace).forward(model.tokenizer.encode("Once"), state)
    >>> trace["attention", 2].shape                     # in block 2: (n_heads, T, positions)
    >>> trace["resid_post"].shape                       # in all blocks: (n_layers, T, dim)

    Every array is a copy. The arrays of several calls of `forward` are concatenated, with a row for
    each token. So use a Trace for one sequence, and in one thread at a time. With a draft there are
    also rows of rejected tokens: `positions` shows which.
    Raises ValueError for a name that no array has, and for negative positions.
    """

    def __init__(
        self,
        *names: str,
        layers: int | Iterable[int] | None = None,
        positions: int | Iterable[int] | None = None,
    ):
        self.names, self.every = _checked(names or _ALL), not names
        self.layers = _integers("layers", layers)
        self._wanted = _integers("positions", positions)
        if min(self._wanted or (0,)) < 0:
            raise ValueError("positions count from 0, since the end of a sequence is not known yet")
        self._seen: dict[tuple[str, int | None], list[tuple[np.ndarray, np.ndarray]]] = {}

    def visit(self, array: np.ndarray, place: Place) -> None:
        """Keep a copy of the rows at `positions`."""
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
        """The array of a name: trace[name, layer] in that block; trace[name] in all recorded
        blocks, (layers, ...) in ascending order, or the one array of the embedding or the logits.

        Raises KeyError for an array that was not recorded.
        """
        name, layer = (key, None) if isinstance(key, str) else key
        if layer is not None or name in ENDS + _EMBEDDINGS:
            return _joined(name, [array for _, array in self._rows(name, layer)])
        layers = sorted(i for found, i in self._seen if found == name and i is not None)
        if not layers:
            self._rows(name, None)
        return np.stack([self[name, at] for at in layers])

    def __contains__(self, name: object) -> bool:
        return name in list(self)

    def __iter__(self) -> Iterator[str]:
        """The names of the recorded arrays, in the order of the list above."""
        return iter(sorted({name for name, _ in self._seen}, key=_ALL.index))

    def __repr__(self) -> str:
        """The names and layers that were recorded."""
        layers = sorted({layer for _, layer in self._seen if layer is not None})
        return f"Trace({', '.join(self) or 'of nothing yet'}; layers {layers})"

    def positions(self, name: str) -> np.ndarray:
        """The positions (rows,) of the tokens of trace[name]. Raises KeyError."""
        layer = next((at for recorded, at in self._seen if recorded == name), None)
        return np.concatenate([positions for positions, _ in self._rows(name, layer)])

    def clear(self) -> None:
        """Delete all recorded arrays, before another sequence."""
        self._seen.clear()

    def _rows(self, name: str, layer: int | None) -> list[tuple[np.ndarray, np.ndarray]]:
        try:
            return self._seen[name, layer]
        except KeyError:
            what = name if layer is None else f"{name} of layer {layer}"
            raise KeyError(f"no {what} was recorded, but {self!r}") from None


def _joined(name: str, arrays: list[np.ndarray]) -> np.ndarray:
    """The rows concatenated; attention is padded with 0 to the width of its last row."""
    if name != "attention":
        return np.concatenate(arrays)
    width = max(array.shape[2] for array in arrays)
    padded = [np.pad(a, ((0, 0), (0, 0), (0, width - a.shape[2]))) for a in arrays]
    return np.concatenate(padded, axis=1)


def _checked(names: Iterable[str]) -> tuple[str, ...]:
    names = tuple(names)
    for name in names:
        if name not in _ALL:
            raise ValueError(f"no array is called {name!r}; there are {', '.join(_ALL)}")
    return tuple(dict.fromkeys(names))


def _integers(name: str, values: int | Iterable[int] | None) -> tuple[int, ...] | None:
    if values is None:
        return None
    # Text and an array without dimensions pass as iterables, but are not sequences of numbers.
    if (
        isinstance(values, Iterable)
        and not isinstance(values, str)
        and getattr(values, "ndim", True)
    ):
        return tuple(whole(name, value) for value in values)
    return (whole(name, values),)


# --- computing a program with hooks ---------------------------------------------------------------

_BY_HEAD = ("q", "k", "v", "mixed")


@dataclass(frozen=True, slots=True)
class _Stop:
    """The arrays that hooks get after a step."""

    index: int  # of the step in the program
    step: Step
    values: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Visits:
    """The hooks for each name and layer, and the steps after which the program must stop."""

    hooks: dict[tuple[str, int | None], list[Hook]] = field(default_factory=dict)
    stops: tuple[_Stop, ...] = ()


def visits_of(hooks: Iterable[Hook], program: Program) -> Visits:
    """Raises ValueError for a name or a layer that the network does not have."""
    made: dict[tuple[str, int | None], tuple[int, Step, Value]] = {}
    for i, step in enumerate(program.steps):
        for value in step.outputs:  # a later step may make another array of the same name
            made[value.name, step.layer] = i, step, value
        if step.op == "attention":
            made["attention", step.layer] = i, step, step.outputs[0]
    seen: dict[tuple[str, int | None], list[Hook]] = {}
    for hook in hooks:
        layers = _layers(hook, program.config)
        for name in hook.names:
            places = [place for place in made if place[0] == name]
            if not places and not getattr(hook, "every", False):
                known = ", ".join(dict.fromkeys(name for name, _ in made if name))
                raise ValueError(f"this network has no array called {name!r}; it has {known}")
            for place in places:
                if place[1] is None or place[1] in layers:
                    seen.setdefault(place, []).append(hook)
    stops: dict[int, list[Value]] = {}
    for place in seen:
        i, _, value = made[place]
        if place[0] != "logits" and value not in stops.setdefault(i, []):
            stops[i].append(value)
    steps = program.steps
    return Visits(seen, tuple(_Stop(i, steps[i], tuple(stops[i])) for i in sorted(stops)))


def _layers(hook: Hook, config: Config) -> set[int]:
    """The layers of a hook, counted from 0."""
    count = config.n_layers
    for layer in hook.layers or ():
        if not -count <= layer < count:
            raise ValueError(f"layer {layer} is not one of the {count}: 0 to {count - 1}")
    return set(range(count)) if hook.layers is None else {layer % count for layer in hook.layers}


def show(
    visits: Visits, name: str, layer: int | None, array: np.ndarray, positions: np.ndarray
) -> None:
    """Pass an array to its hooks, in their order.

    Each gets its own view: a change of the view's shape does not affect the others.
    """
    for hook in visits.hooks.get((name, layer), ()):
        hook.visit(array.view(), Place(name, layer, positions.copy()))


def go(
    run: Run, program: Program, visits: Visits, state: State, count: int, logits: np.ndarray
) -> None:
    """Compute a pass of `count` rows of one sequence in pieces, and call the hooks in between.

    logits: the output of the pass, for its last rows.
    """
    start, pos = 0, state.pos
    positions = np.arange(pos, pos + count)
    for stop in visits.stops:
        run.go(start, stop.index + 1)
        start = stop.index + 1
        layer = stop.step.layer
        for value in stop.values:
            array = run.array(value)
            if stop.step.op == "attention" and ("attention", layer) in visits.hooks:
                _show_attention(run, state, stop.step, visits, positions, array)
            if value.name in _BY_HEAD:
                array = array.reshape(count, -1, program.config.head_dim)
            show(visits, value.name, layer, array, positions)
    run.go(start, None)
    if len(logits):
        show(visits, "logits", None, logits, positions[-len(logits) :])


def _show_attention(
    run: Run, state: State, step: Step, visits: Visits, positions: np.ndarray, out: np.ndarray
) -> None:
    """Pass the attention weights (n_heads, T, positions) to the hooks; if a hook changes them,
    compute `out` from them.
    """
    assert step.layer is not None
    n_heads, head_dim = int(step.numbers["n_heads"]), int(step.numbers["head_dim"])
    keys, values = state.layer(step.layer, int(positions[-1]) + 1)
    queries = [
        run.array(value).reshape(-1, n_heads, head_dim)
        for name, value in step.inputs.items()
        if name.startswith("q")
    ]
    weights = attention_weights(queries, keys, positions, Rule.of(step))
    shown = weights.copy()
    show(visits, "attention", step.layer, shown, positions)
    if not np.array_equal(weights, shown):
        out[:] = weighted_values(shown, values).reshape(out.shape)
