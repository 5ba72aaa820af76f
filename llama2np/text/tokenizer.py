"""Text to tokens and back: what all kinds of tokenizers share.

An `Algorithm` decides how a text becomes tokens. There is one for each kind of file:

    tokenizer.bin         llama2c_bpe.py          llama2.c's
    tokenizer.model       sentencepiece_model.py  the sentencepiece package
    tokenizer.json        tokenizer_json.py       a Pipeline, as the package `tokenizers` has it
    vocab.json, .txt      vocabulary_files.py     a Pipeline
    GGUF's metadata       gguf_parts.py           a Pipeline
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from llama2np import arguments
from llama2np.text.decoder import Decoder, Shown
from llama2np.text.errors import TokenizerError
from llama2np.text.llama2c_bpe import BOS, EOS, LOWEST_SCORE, Llama2cBPE
from llama2np.text.post_processors import Template
from llama2np.text.special_tokens import AddedToken

if TYPE_CHECKING:
    from llama2np.text.chat_template import ChatTemplate

__all__ = ["BOS", "EOS", "Algorithm", "Decoder", "Tokenizer", "TokenizerError"]


class Algorithm(Protocol):
    """How one kind of tokenizer makes tokens of a text, and its vocabulary."""

    @property
    def pieces(self) -> list[bytes]:
        """The bytes of each token; b"" for a number without one."""

    @property
    def scores(self) -> list[float]:
        """The score of merging into each piece; empty if the kind has none."""

    @property
    def shown(self) -> Shown:
        """What is printed for each token."""

    @property
    def template(self) -> Template:
        """The special tokens around a text."""

    @property
    def added(self) -> Sequence[AddedToken]:
        """The tokens that a text can have by their names."""

    @property
    def like_llama2c(self) -> bool:
        """Whether llama2.c's encoder gives the same tokens with these pieces."""

    def encode(self, text: str, special: bool | None = None) -> list[int]:
        """The tokens of a text. special: whether names of special tokens in it are those tokens;
        None: as the program does that the file was made for.
        """


class Tokenizer:
    """A vocabulary, and the algorithm that encodes with it.

    Pieces have spaces, not sentencepiece's "▁". `special` has the numbers of the special tokens
    that the tokenizer has, such as {"bos_token": 1, "mask_token": 103}. A model may have rows, for
    padding, for which the tokenizer has no piece: their piece is b"", they are in `missing` (n,)
    int64, they are printed as "", and generation does not choose them.
    """

    def __init__(
        self,
        pieces: Iterable[bytes] | Algorithm,
        scores: Iterable[float] | None = None,
        *,
        special: Mapping[str, int] | None = None,
        ends: Iterable[int] = (),
        chat_template: ChatTemplate | None = None,
    ):
        """Make llama2.c's tokenizer of pieces and scores, or any other one of its algorithm.

        ends: the tokens that end a text, beside BOS and EOS.
        """
        if isinstance(pieces, (str, os.PathLike)) or (scores is None) != hasattr(pieces, "encode"):
            raise TypeError("Tokenizer() takes pieces and scores; Tokenizer.load opens a file")
        if scores is not None:
            algorithm: Any = Llama2cBPE(pieces, scores)  # type: ignore[arg-type]
            special = {"bos_token": BOS, "eos_token": EOS}
        else:
            algorithm = pieces
        self._algorithm: Algorithm = algorithm
        self.pieces: list[bytes] = list(algorithm.pieces)
        self.scores: list[float] = list(algorithm.scores)
        self.shown = algorithm.shown
        self.special = dict(special or {})
        self.chat_template = chat_template
        self._ends = frozenset(ends)
        self.missing = _missing(self.pieces)

    def __repr__(self) -> str:
        return f"Tokenizer({self.vocab_size:,} pieces)"

    @property
    def algorithm(self) -> Algorithm:
        """How it makes tokens of a text."""
        return self._algorithm

    @property
    def vocab_size(self) -> int:
        """The number of pieces."""
        return len(self.pieces)

    @property
    def bos_id(self) -> int | None:
        """The token that begins a text; None if there is none. See `adds_bos`."""
        return self.special.get("bos_token")

    @property
    def eos_id(self) -> int | None:
        """The token that ends a text; None if there is none."""
        return self.special.get("eos_token")

    @property
    def pad_id(self) -> int | None:
        """The token that fills up the shorter texts of a batch; None if there is none."""
        return self.special.get("pad_token")

    @property
    def mask_id(self) -> int | None:
        """The token that stands for a word to be guessed, "[MASK]"; None if there is none."""
        return self.special.get("mask_token")

    @property
    def cls_id(self) -> int | None:
        """The token before a text, "[CLS]"; None if there is none."""
        return self.special.get("cls_token")

    @property
    def sep_id(self) -> int | None:
        """The token after a text, "[SEP]"; None if there is none."""
        return self.special.get("sep_token")

    @property
    def ends(self) -> frozenset[int]:
        """The tokens that end a text: BOS and EOS, and those that the model's files name."""
        return self._ends | {i for i in (self.bos_id, self.eos_id) if i is not None}

    @property
    def special_ids(self) -> frozenset[int]:
        """The tokens that are not part of a text, such as "<|im_end|>"."""
        return frozenset(token.id for token in self._algorithm.added if token.special)

    @property
    def adds_bos(self) -> bool:
        """Whether `encode` puts BOS before a text."""
        return self.bos_id is not None and self.bos_id in self._algorithm.template.before

    @property
    def like_llama2c(self) -> bool:
        """Whether llama2.c's encoder gives the same tokens with these pieces."""
        return self._algorithm.like_llama2c

    @classmethod
    def load(cls, path: str | os.PathLike[str], vocab_size: int | None = None) -> Tokenizer:
        """Read the tokenizer in a folder, or in a file.

        A folder: its tokenizer.json, else tokenizer.model, vocab.json with merges.txt, vocab.txt,
        or tokenizer.bin; and tokenizer_config.json, generation_config.json and so on. A file: one
        of those; its first bytes decide what it is. Beside a tokenizer.model the files of added
        tokens are read, too.
        vocab_size: the network's, which may have up to 8,192 rows more than there are pieces.
        Raises TokenizerError, also for any other vocab_size, and OSError if the file cannot be
        read.
        """
        from llama2np.text import loading

        if vocab_size is not None:
            vocab_size = arguments.whole("vocab_size", vocab_size)
        return loading.load(arguments.path_like("path", path), vocab_size)

    @classmethod
    def from_parts(cls, kind: str, pieces: Sequence[str], **parts: Any) -> Tokenizer:
        """A tokenizer of the parts that a GGUF file has: see `gguf_parts.tokenizer`."""
        from llama2np.text import gguf_parts

        return gguf_parts.tokenizer(kind, pieces, **parts)

    def extended(self, vocab_size: int, added: Mapping[int, bytes] | None = None) -> Tokenizer:
        """A tokenizer extended to `vocab_size` tokens; itself if it has as many pieces or more.

        added: {token: text to print for it}; for other new tokens "" is printed. `encode` never
        returns new tokens.
        """
        more = [(added or {}).get(i, b"") for i in range(self.vocab_size, vocab_size)]
        if not more:
            return self
        twin = copy.copy(self)
        twin.pieces, twin.shown = self.pieces + more, self.shown.extended(more)
        twin.scores = self.scores and self.scores + [LOWEST_SCORE] * len(more)
        twin.missing = _missing(twin.pieces)
        return twin

    @arguments.none_means_default
    def encode(
        self,
        text: str,
        bos: bool | None = True,
        eos: bool | None = False,
        *,
        special: bool | None = None,
    ) -> list[int]:
        """Return the tokens of `text`, as from the program that the file was made for.

        That is run.c (tokenizer.bin), sentencepiece (tokenizer.model) or the package `tokenizers`.
        bos: with the special tokens that the tokenizer puts around a text: BOS, or [CLS] and [SEP],
        or none. eos: end with EOS, if the tokenizer has one. special: whether names of special
        tokens in the text, such as "<|im_end|>", become those tokens; None: as in that program,
        which is yes for tokenizer.json and no for tokenizer.bin and tokenizer.model.
        Raises ValueError for text that UTF-8 cannot encode.
        """
        tokens = self._algorithm.encode(_checked(text), special)
        if bos:
            tokens, _ = self._algorithm.template.apply(tokens)
        if eos and self.eos_id is not None:
            tokens.append(self.eos_id)
        return tokens

    def encode_pair(self, a: str, b: str) -> tuple[list[int], list[int]]:
        """Return the tokens of two texts, such as [CLS] a [SEP] b [SEP], and their token types.

        A type is 0 for tokens of the first text, 1 for those of the second one. Raises ValueError
        as `encode` does.
        """
        parts = [self._algorithm.encode(_checked(text)) for text in (a, b)]
        return self._algorithm.template.apply(*parts)

    def decode(self, tokens: Iterable[int], skip_special: bool = False) -> str:
        """Return the text of `tokens`. skip_special: without special tokens.

        The space that `encode` put before a text is removed, if the program that the file was made
        for removes it: llama2.c does so only after BOS. With tokenizer.bin and tokenizer.model, BOS
        and EOS are never shown. Bytes that are not UTF-8 become U+FFFD, in sequences as Python
        replaces them. Raises ValueError for a token outside the vocabulary.
        """
        tokens = arguments.token_list("tokens", tokens)
        decoder = Decoder(self, skip_special=skip_special)
        return "".join([decoder.feed(token) for token in tokens]) + decoder.flush()

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> str:
        """Return a conversation as the text that the model was trained with.

        messages: such as {"role": "user", "content": "Hello"}. add_generation_prompt: end with the
        beginning of an answer. variables: others that the template uses, such as tools=[...].
        Encode the text with bos=False, special=True: it has BOS already.
        Raises ValueError if there is no template, or if the template refuses the conversation.
        """
        if self.chat_template is None:
            raise ValueError(
                "this tokenizer has no chat template: its folder has no chat_template, in "
                "tokenizer_config.json or as chat_template.jinja"
            )
        return self.chat_template.render(messages, add_generation_prompt, **variables)


def _checked(text: str) -> str:
    try:
        arguments.text("text", text).encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"not valid UTF-8 at character {error.start}: {text[error.start]!a}"
        ) from None
    return text


def _missing(pieces: list[bytes]) -> np.ndarray:
    return np.array([i for i, piece in enumerate(pieces) if not piece], np.int64)
