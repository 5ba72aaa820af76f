"""response_format: only tokens that continue the text as JSON may be chosen. It uses llguidance."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from llama2np.serve.errors import ApiError
from llama2np.serve.fields import Fields
from llama2np.text.tokenizer import Tokenizer

_KINDS = "text", "json_object", "json_schema"
# White space as json.dumps writes it: a model could otherwise write it without end.
_FORM: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_NEVER = np.float32(-np.inf)


class Constrained:
    """A logits_processor that forbids the tokens after which the text cannot become valid.

    ends: the tokens that end a text; they are allowed when the text is complete.
    """

    def __init__(self, matcher: Any, vocab_size: int):
        self._matcher, self._seen = matcher, -1
        self._mask = np.zeros(-(-vocab_size // 32), np.int32)
        self.ends: Collection[int] = ()

    def __call__(self, tokens: np.ndarray, logits: np.ndarray) -> np.ndarray:
        """The logits with -inf for what is forbidden. tokens: (n,), logits: (vocab_size,)."""
        if self._seen >= 0:
            self._matcher.consume_tokens([int(token) for token in tokens[self._seen :]])
        self._seen = len(tokens)
        allowed = np.zeros(len(logits), bool)
        if self._matcher.is_stopped():  # also after an error, which must not go on for ever
            self._raise_error()
        else:
            self._matcher_mask(allowed)
        if self._matcher.is_accepting() or self._matcher.is_stopped():
            allowed[self._ends(logits)] = True
        if not allowed.any():
            raise ValueError("response_format: no token of this model can continue the text")
        logits[~allowed] = _NEVER
        return logits

    def _matcher_mask(self, allowed: np.ndarray) -> None:
        data = self._mask
        self._matcher.unsafe_compute_mask_ptr(data.ctypes.data, data.nbytes)
        self._raise_error()
        bits = np.unpackbits(data.view(np.uint8), bitorder="little")[: len(allowed)]
        allowed[: len(bits)] = bits.astype(bool)
        allowed[self._ends(allowed)] = False

    def _ends(self, row: np.ndarray) -> list[int]:
        return [token for token in self.ends if token < len(row)]

    def _raise_error(self) -> None:
        if self._matcher.is_error():
            reason = str(self._matcher.get_error()).partition("\n")[0]
            raise ValueError(f"response_format: {reason}")


def processors(tokenizer: Tokenizer, fields: Fields, count: int) -> list[Constrained | None]:
    """A processor for each choice of a request; None where any text is allowed. Raises ApiError."""
    wanted = fields.get("response_format")
    if wanted is None:
        return [None] * count
    form = Fields(wanted, " for response_format")
    kind = form.text("type", "text")
    if kind not in _KINDS:
        raise ApiError(
            400, f"response_format: type must be {' or '.join(_KINDS)}", "response_format"
        )
    if kind == "text":
        return [None] * count
    schema: Any = {"type": "object"}
    if kind == "json_schema":
        schema = Fields(form.get("json_schema", {}), " for json_schema").get("schema")
        if not isinstance(schema, dict):
            raise ApiError(400, "response_format: json_schema needs a schema", "response_format")
    return [_made(tokenizer, json.dumps(schema)) for _ in range(count)]


def _made(tokenizer: Tokenizer, schema: str) -> Constrained:
    try:
        import llguidance
    except ImportError:
        message = "response_format needs the package llguidance, which this server does not have"
        raise ApiError(400, message, "response_format", "unsupported") from None
    try:
        grammar = llguidance.LLMatcher.grammar_from_json_schema(schema, overrides=_FORM)
    except ValueError as error:
        raise ApiError(400, f"response_format: {error}", "response_format") from None
    matcher = llguidance.LLMatcher(_vocabulary(tokenizer), grammar, log_level=0)
    if matcher.is_error():
        message = str(matcher.get_error()).splitlines()[0]
        raise ApiError(400, f"response_format: {message}", "response_format")
    return Constrained(matcher, len(tokenizer.pieces))


@lru_cache(maxsize=2)
def _vocabulary(tokenizer: Tokenizer) -> Any:
    """The tokenizer as llguidance needs it: the bytes of each token."""
    import llguidance

    ends = tokenizer.special_ids | tokenizer.ends
    ids = {piece: i for i, piece in enumerate(tokenizer.shown.texts) if i not in ends}

    class Pieces:
        """What llguidance's TokenizerWrapper reads."""

        eos_token_id = min(tokenizer.ends, default=0)
        bos_token_id = tokenizer.bos_id
        tokens = list(tokenizer.shown.texts)
        special_token_ids = sorted(ends)

        def __call__(self, data: bytes) -> list[int]:
            return list(_spelled(data, ids))

    wrapped = llguidance.TokenizerWrapper(Pieces())
    return llguidance.LLTokenizer(wrapped, n_vocab=len(tokenizer.pieces))


def _spelled(data: bytes, ids: Mapping[bytes, int]) -> Iterator[int]:
    """Tokens that spell `data`, each the longest that fits; bytes without a token are left out.

    `Tokenizer.encode` would put a space before a text.
    """
    longest = max(map(len, ids), default=0)
    while data:
        sizes = range(min(longest, len(data)), 0, -1)
        size = next((n for n in sizes if data[:n] in ids), 0)
        if size:
            yield ids[data[:size]]
        data = data[max(size, 1) :]
