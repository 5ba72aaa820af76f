"""Log-probabilities in the two forms that OpenAI's completions and chats have."""

from __future__ import annotations

from typing import Any

from llama2np.decoding.completion import Completion
from llama2np.text.tokenizer import Tokenizer

_NEVER = -9999.0  # JSON has no infinity


def piece_of(tokenizer: Tokenizer, token: int) -> bytes:
    """The bytes of a token inside a text; of a special token its name."""
    texts: list[bytes] = tokenizer.shown.texts
    if token >= len(texts):  # a row of the network without a piece
        return b""
    special = token in tokenizer.special_ids
    return (tokenizer.pieces[token] if special else b"") or texts[token]


def shown(completion: Completion, count: int) -> int:
    """How many of the first `count` tokens have text: not the one that ended it."""
    ended = completion.stop_reason == "end" and count == len(completion.tokens)
    return count - ended


def for_chat(tokenizer: Tokenizer, completion: Completion, first: int, last: int) -> dict[str, Any]:
    """The tokens `first` ... `last` - 1, as chats have them."""

    def one(token: int, logprob: float) -> dict[str, Any]:
        data = piece_of(tokenizer, token)
        text = data.decode(errors="replace")
        return {"token": text, "logprob": max(logprob, _NEVER), "bytes": list(data)}

    content = []
    for i in range(first, last):
        top = [one(*item) for item in completion.top_logprobs[i].items()]
        row = one(completion.tokens[i], completion.logprobs[i])
        content.append(row | {"top_logprobs": top})
    return {"content": content, "refusal": None}


def for_completion(
    tokenizer: Tokenizer, completion: Completion, first: int, last: int, offset: int = 0
) -> dict[str, Any]:
    """The tokens `first` ... `last` - 1, as completions have them; the text begins at `offset`."""
    tokens, tops, offsets = [], [], []
    for i in range(first, last):
        text = _name(tokenizer, completion.tokens[i])
        tokens.append(text)
        top = completion.top_logprobs[i].items()
        tops.append({_name(tokenizer, token): max(logprob, _NEVER) for token, logprob in top})
        offsets.append(offset)
        offset += len(text)
    return {
        "tokens": tokens,
        "token_logprobs": [max(each, _NEVER) for each in completion.logprobs[first:last]],
        "top_logprobs": tops,
        "text_offset": offsets,
    }


def _name(tokenizer: Tokenizer, token: int) -> str:
    """The text of a token; of a part of a character, its bytes, as OpenAI writes them."""
    data = piece_of(tokenizer, token)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)
