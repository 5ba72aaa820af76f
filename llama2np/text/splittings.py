"""How the byte-level BPE of some models splits texts, for files that have only its name.

The names are from GGUF's `tokenizer.ggml.pre`, the patterns from each model's tokenizer.json, or
where we have none (mellum, trillion, midm-2.0, megrez, viking) from llama.cpp's llama-vocab.cpp.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from typing import Any

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
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_REST = rf" ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_BEFORE = r"[^\r\n\p{L}\p{N}]?"
_REST_WITH_SLASH = rf" ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
_TEKKEN = rf"{_BEFORE}{_UPPER}*{_LOWER}+|{_BEFORE}{_UPPER}+{_LOWER}*|\p{{N}}|{_REST_WITH_SLASH}"
_O200K_PATTERN = (
    rf"{_BEFORE}{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|{_BEFORE}{_UPPER}+{_LOWER}*{_CONTRACTIONS}?"
    rf"|\p{{N}}{{1,3}}|{_REST_WITH_SLASH}"
)
# DeepSeek's letters: those with two cases, except those of some scripts and of mathematics.
_UNCASED = (
    r"\u0560-\u0588\u10c7-\u10ff\u1c80-\u1c8a\u2d00-\u2d2d\ua790-\ua7fa\uab30-\uab6d"
    r"\U00010570-\U000105bc\U00010d50-\U00010d85\U00016e40-\U00016ed3\U0001d400-\U0001df96"
)
_CASED = rf"(?:(?![{_UNCASED}])[\p{{Lu}}\p{{Ll}}\p{{Lt}}\u0295])"
_MARKS = r"[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]"
_EAST_ASIAN = r"[\u0800-\u9fa5\uac00-\ud7ff]+"
_DEEPSEEK_V3 = (
    r"\p{N}{1,3}",
    r"[\u3040-\u30ff\u4e00-\u9fa5]+",
    r"[!-/:-@\[-`{-~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
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


def _words(numbers: str, **options: Any) -> Splitting:
    """The pattern of OpenAI's cl100k, which most models have with another rule for numbers."""
    return Splitting((rf"{_CONTRACTIONS}|{_LETTERS}|{numbers}|{_REST}",), **options)


_GPT2 = Splitting()
_LLAMA3 = _words(r"\p{N}{1,3}", whole=True, adds_bos=True)
_CL100K = _words(r"\p{N}{1,3}")
_QWEN2 = _words(r"\p{N}", normalize=nfc)
_DIGITS = Splitting((r"\p{N}", GPT2_PATTERN))
_O200K = Splitting((_O200K_PATTERN,))
SPLITTINGS = {
    **dict.fromkeys(("", "default", "gpt-2", "gpt2", "phi-2", "olmo", "mpt"), _GPT2),
    **dict.fromkeys(("mellum", "trillion"), _GPT2),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "midm-2.0"), _LLAMA3),
    **dict.fromkeys(("dbrx", "smaug-bpe"), _CL100K),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen"), _QWEN2),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell"), _DIGITS),
    "minerva-7b": _DIGITS,
    "megrez": _words(r"\p{N}"),
    **dict.fromkeys(("gpt-4o", "llama4"), _O200K),
    "tekken": Splitting((_TEKKEN,), whole=True, adds_bos=True),
    "seed-coder": Splitting(
        (rf"{_CONTRACTIONS}|{_LETTERS}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACES}",)
    ),
    "viking": Splitting((r" ?[^(\s|.,!?…。，、।۔،)]+", r"\p{N}")),
    "deepseek-coder": Splitting((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _EAST_ASIAN, r"\p{N}")),
    "deepseek-llm": Splitting(
        (r"[\r\n]", rf"\s?{_CASED}+", rf"\s?{_MARKS}+", r"\s+$", _EAST_ASIAN, r"\p{N}+")
    ),
    "deepseek-v3": Splitting(_DEEPSEEK_V3),
}
