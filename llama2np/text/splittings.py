"""How the byte-level BPE of some models splits texts, for files that have only its name.

The names are from GGUF's `tokenizer.ggml.pre`, the patterns from each model's tokenizer.json.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass

from llama2np.text.normalizers import Normalizer
from llama2np.text.pre_tokenizers import (
    GPT2_PATTERN,
    PreTokenizer,
    byte_level,
    chained,
    split_by,
)

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_BEFORE = r"[^\r\n\p{L}\p{N}]?"
_TEKKEN = (
    rf"{_BEFORE}{_UPPER}*{_LOWER}+|{_BEFORE}{_UPPER}+{_LOWER}*|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def nfc(text: str) -> str:
    """Unicode's composed form."""
    return unicodedata.normalize("NFC", text)


@dataclass(frozen=True)
class Splitting:
    """Patterns by which a text is split, one after the other, before its bytes become letters.

    whole: whether a word that is a piece is not split (`ignore_merges`). adds_bos: whether these
    models have a BOS before a text.
    """

    patterns: tuple[str, ...] = (GPT2_PATTERN,)
    normalize: Normalizer = str
    whole: bool = False
    adds_bos: bool = False

    def pre_tokenizer(self) -> PreTokenizer:
        """The function that splits a text, and writes its bytes as letters."""
        steps = [split_by(pattern, where="byte-level BPE") for pattern in self.patterns]
        return chained([*steps, byte_level(pattern=None)])


_GPT2 = Splitting()
_LLAMA3 = Splitting(
    (rf"{_CONTRACTIONS}|{_LETTERS}|\p{{N}}{{1,3}}|{_REST}",), whole=True, adds_bos=True
)
_QWEN2 = Splitting((rf"{_CONTRACTIONS}|{_LETTERS}|\p{{N}}|{_REST}",), nfc)
_SMOLLM = Splitting((r"\p{N}", GPT2_PATTERN))
SPLITTINGS = {
    **dict.fromkeys(("", "default", "gpt-2", "gpt2", "phi-2", "olmo", "mpt"), _GPT2),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3"), _LLAMA3),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen"), _QWEN2),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell"), _SMOLLM),
    "tekken": Splitting((_TEKKEN,), whole=True, adds_bos=True),
}
