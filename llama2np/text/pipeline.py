"""The way of a text through a tokenizer of Hugging Face, or of a GGUF file.

    text → added tokens → normalizer → pre-tokenizer → model → template
           "<|im_end|>"   NFC           words           tokens  [CLS] ... [SEP]

tokenizer_json.py, vocabulary_files.py and gguf_parts.py make such a pipeline.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from llama2np.text.decoder import Shown
from llama2np.text.models import Model
from llama2np.text.normalizers import Normalizer
from llama2np.text.post_processors import Template
from llama2np.text.pre_tokenizers import PreTokenizer
from llama2np.text.special_tokens import AddedToken, Finder


def _same(text: str) -> str:
    return text


@dataclass
class Pipeline:
    """The parts of a tokenizer, and its pieces: `spelled` as the file has them, "" if missing."""

    model: Model
    spelled: list[str]
    pieces: list[bytes]
    shown: Shown
    added: list[AddedToken] = field(default_factory=list)
    normalize: Normalizer = _same
    pre_tokenize: PreTokenizer = lambda word: [word]
    template: Template = Template()
    finds_special: bool = True  # whether encode finds special tokens by default

    like_llama2c = False
    scores: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._finders = {
            special: (
                Finder(t for t in self._found(special) if not t.normalized),
                Finder((t for t in self._found(special) if t.normalized), self.normalize),
            )
            for special in (False, True)
        }

    def _found(self, special: bool) -> Iterable[AddedToken]:
        return (token for token in self.added if special or not token.special)

    def encode(self, text: str, special: bool | None = None) -> list[int]:
        """The tokens of a text, without those of the template."""
        raw, normalized = self._finders[self.finds_special if special is None else special]
        tokens: list[int] = []
        begins = True  # whether the next part is the beginning of the text
        for part, token in raw.split(text):
            if token is not None:
                tokens.append(token)
            else:
                tokens += self._part(part, begins, normalized)
            begins = False
        return tokens

    def _part(self, text: str, begins: bool, finder: Finder) -> Iterator[int]:
        for part, token in finder.split(self.normalize(text)):
            if token is not None:
                yield token
            else:
                for word, _ in self.pre_tokenize((part, begins)):
                    if word:
                        yield from self.model.tokenize(word)
            begins = False
