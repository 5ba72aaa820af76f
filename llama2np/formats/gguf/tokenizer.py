"""The tokenizer in a GGUF file's metadata, `tokenizer.ggml.*` and `tokenizer.chat_template`."""

from __future__ import annotations

from llama2np.formats.checkpoint import CheckpointError
from llama2np.formats.gguf.file import GgufFile
from llama2np.text.tokenizer import Tokenizer, TokenizerError

_KEY = "tokenizer.ggml"
SPECIAL = {  # {our name: theirs}
    "bos_token": "bos",
    "eos_token": "eos",
    "unk_token": "unknown",
    "sep_token": "seperator",  # so spelled in the files
    "pad_token": "padding",
    "cls_token": "cls",
    "mask_token": "mask",
}
_ENDS = "eot", "eom"  # the end of a turn, and of a message
# Files often do not say which token ends a turn. llama.cpp knows some by their text, too.
_ENDS_BY_NAME = (
    *("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|eom_id|>"),
    *("<|end_of_text|>", "<EOT>", "<eos>"),
)
_CONTROL, _USER_DEFINED = 3, 4  # tokenizer.ggml.token_type


def tokenizer_of(file: GgufFile) -> Tokenizer | None:
    """The tokenizer in a file; None if it has none. Raises TokenizerError."""
    if f"{_KEY}.model" not in file.metadata:
        return None
    try:
        return _tokenizer(file)
    except CheckpointError as error:
        raise TokenizerError(str(error)) from None
    except TokenizerError:
        raise
    except ValueError as error:  # of Strings
        raise TokenizerError(f"{file.path}: {error}") from None


def _tokenizer(file: GgufFile) -> Tokenizer:
    data = file.metadata
    pieces = list(data.strings(f"{_KEY}.tokens"))
    scores = data.numbers(f"{_KEY}.scores", None)
    types = data.numbers(f"{_KEY}.token_type", None)
    merges = data.strings(f"{_KEY}.merges", None)
    special = {
        ours: data.whole(f"{_KEY}.{theirs}_token_id")
        for ours, theirs in SPECIAL.items()
        if f"{_KEY}.{theirs}_token_id" in data
    }
    ends = [
        data.whole(f"{_KEY}.{name}_token_id") for name in _ENDS if f"{_KEY}.{name}_token_id" in data
    ]
    kinds = [] if types is None else types.tolist()
    found = {piece: i for i, piece in enumerate(pieces) if piece in _ENDS_BY_NAME}
    ends += [i for i in found.values() if kinds[i : i + 1] in ([_CONTROL], [_USER_DEFINED])]
    return Tokenizer.from_parts(
        data.text(f"{_KEY}.model"),
        pieces,
        scores=None if scores is None else scores.tolist(),
        merges=None if merges is None else list(merges),
        pre=data.text(f"{_KEY}.pre", "default"),
        types=None if types is None else kinds,
        special=special,
        add_bos=data.flag(f"{_KEY}.add_bos_token", None),
        add_eos=data.flag(f"{_KEY}.add_eos_token", False),
        add_space_prefix=data.flag(f"{_KEY}.add_space_prefix", True),
        ends=[end for end in ends if end < len(pieces)],
        chat_template=data.text("tokenizer.chat_template", None),
        where=file.path,
    )
