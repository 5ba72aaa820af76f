"""The tokenizer in a GGUF file's metadata, `tokenizer.ggml.*` and `tokenizer.chat_template`."""

from __future__ import annotations

from llama2np.formats.checkpoint import CheckpointError
from llama2np.formats.gguf.file import GgufFile
from llama2np.formats.gguf.metadata import Metadata
from llama2np.text.gguf_parts import CONTROL
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
# Of kind "llama", where the file has no keys for them: most files of 2023.
_USUAL = {"bos_token": ("<s>", "<bos>"), "eos_token": ("</s>", "<eos>"), "unk_token": ("<unk>",)}
_ENDS = "eot", "eom"  # the end of a turn, and of a message
# Files often do not say which token ends a turn, or that it is a control token. llama.cpp knows
# these by their text, too.
_ENDS_BY_NAME = (
    *("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|eom_id|>"),
    *("<|end_of_text|>", "<EOT>", "<eos>", "_<EOT>", "[EOT]"),
    *("<｜end▁of▁sentence｜>", "<end_of_utterance>"),
)


def tokenizer_of(file: GgufFile) -> Tokenizer | None:
    """The tokenizer in a file; None if it has none. Raises TokenizerError."""
    if f"{_KEY}.model" not in file.metadata:
        return None
    try:
        if file.metadata.text(f"{_KEY}.model") == "no_vocab":
            return None
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
    kind = data.text(f"{_KEY}.model")
    ends = [
        data.whole(f"{_KEY}.{name}_token_id") for name in _ENDS if f"{_KEY}.{name}_token_id" in data
    ]
    kinds = [] if types is None else types.tolist()
    found = {piece: i for i, piece in enumerate(pieces) if piece in _ENDS_BY_NAME}
    ends += found.values()
    kinds = [CONTROL if i in found.values() else each for i, each in enumerate(kinds)]
    model = data.text("general.name", "").lower()
    return Tokenizer.from_parts(
        kind,
        pieces,
        scores=None if scores is None else scores.tolist(),
        merges=None if merges is None else list(merges),
        pre=data.text(f"{_KEY}.pre", _usual_pre(data.architecture, pieces)),
        types=None if types is None else kinds,
        special=_special(data, pieces, kind),
        add_bos=data.flag(f"{_KEY}.add_bos_token", None),
        add_eos=data.flag(f"{_KEY}.add_eos_token", False),
        add_space_prefix=data.flag(f"{_KEY}.add_space_prefix", True),
        strip_after_special="phi-3" in model or "phi3" in model,  # no key says it
        lowercase=data.flag(f"{_KEY}.normalizer.lowercase", True),
        strip_accents=data.flag(f"{_KEY}.normalizer.strip_accents", None),
        ends=[end for end in ends if end < len(pieces)],
        chat_template=data.text("tokenizer.chat_template", None),
        where=file.path,
    )


def _special(data: Metadata, pieces: list[str], kind: str) -> dict[str, int]:
    """The special tokens that keys name, or, of kind "llama", their text."""
    special = {
        ours: data.whole(f"{_KEY}.{theirs}_token_id")
        for ours, theirs in SPECIAL.items()
        if f"{_KEY}.{theirs}_token_id" in data
    }
    for name, texts in _USUAL.items() if kind == "llama" else ():
        if special.get(name, len(pieces)) >= len(pieces):
            usual = next((text for text in texts if text in pieces), None)
            if usual is not None:
                special[name] = pieces.index(usual)
    return special


def _usual_pre(architecture: str, pieces: list[str]) -> str:
    """What `pre` would be in a file from before April 2024, which has none."""
    if architecture in ("qwen2", "qwen3"):
        return "qwen2"
    return "llama-bpe" if "<|begin_of_text|>" in pieces else "default"
