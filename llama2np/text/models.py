"""Models of a tokenizer.json make tokens of a word: BPE by ranks or scores, WordPiece."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from llama2np.output import brief
from llama2np.text.bpe import merge
from llama2np.text.errors import TokenizerError
from llama2np.text.fields import Fields, checked_text, checked_whole

_BITS = 21  # of a token, in the table of merges
MAX_PIECES = 2**20  # the largest vocabularies have 256 thousand
LONGEST_PIECE = 2048  # characters
_CACHED_WORDS, _LONGEST_CACHED = 2**14, 64  # words whose tokens are kept, and their characters


class Model(Protocol):
    """An algorithm that makes tokens of a word; `ids` is the vocabulary, {piece: token}."""

    ids: dict[str, int]

    def tokenize(self, word: str) -> list[int]: ...


@dataclass
class BytePairs:
    """BPE: the characters of a word are tokens, then the pair with the lowest rank is merged.

    merges: of `merge_table`. A character that is not in the vocabulary becomes its
    bytes ("<0x41>", with byte_fallback), else `unknown`, else nothing. fuse: whether neighbouring
    unknown characters are one token. whole: whether a word that is a piece is not split.
    """

    ids: dict[str, int]
    merges: Mapping[int, int]
    unknown: int | None = None
    byte_fallback: bool = False
    fuse: bool = False
    whole: bool = False
    prefix: str = ""  # before each character but the first
    suffix: str = ""  # after the last character
    _cache: dict[str, list[int]] = field(default_factory=dict, repr=False)

    def tokenize(self, word: str) -> list[int]:
        """The tokens of a word."""
        if (known := self._cache.get(word)) is not None:
            return known
        if self.whole and word in self.ids:
            return [self.ids[word]]
        tokens = merge(self._characters(word), self._join)
        if len(word) <= _LONGEST_CACHED:
            if len(self._cache) >= _CACHED_WORDS:
                self._cache.clear()
            self._cache[word] = tokens
        return tokens

    def pairs(self) -> Iterator[tuple[int, int, int, int]]:
        """The merges as (rank, a, b, token): tokens a and b become `token`."""
        most = (1 << _BITS) - 1
        for pair, found in self.merges.items():
            yield found >> _BITS, pair >> _BITS, pair & most, found & most

    def _join(self, a: int, b: int) -> tuple[float, int] | None:
        found = self.merges.get(a << _BITS | b)
        return None if found is None else (found >> _BITS, found & (1 << _BITS) - 1)

    def ranked(self) -> list[tuple[int, int, int]]:
        """All merges, the first one first: the tokens a and b, and what they become."""
        token = (1 << _BITS) - 1
        merges = sorted(self.merges.items(), key=lambda merge: merge[1])
        return [(pair >> _BITS, pair & token, found & token) for pair, found in merges]

    def _characters(self, word: str) -> list[int]:
        unknown = [] if self.unknown is None else [self.unknown]
        tokens: list[int] = []
        held: list[int] = []  # the last unknown character's token, with which the next may fuse
        for i, character in enumerate(word):
            spelled = (self.prefix if i else "") + character
            spelled += self.suffix if i == len(word) - 1 else ""
            if (token := self.ids.get(spelled)) is not None:
                tokens += [*held, token]
                held = []
            elif self.byte_fallback and (found := self._bytes(spelled)):
                tokens += found
            else:
                tokens += [] if self.fuse else held
                held = unknown
        return tokens + held

    def _bytes(self, spelled: str) -> list[int]:
        """The byte tokens of a text; [] if one of them is missing."""
        found = [self.ids.get(f"<0x{byte:02X}>") for byte in spelled.encode()]
        return [token for token in found if token is not None] if None not in found else []


@dataclass
class WordPiece:
    """BERT's: the longest piece that begins the word, then the longest that continues it, ..."""

    ids: dict[str, int]
    unknown: int
    prefix: str = "##"  # of pieces that continue a word
    longest_word: int = 100  # characters; a longer word is unknown

    def __post_init__(self) -> None:
        self._longest = max(map(len, self.ids), default=0)

    def tokenize(self, word: str) -> list[int]:
        """The tokens of a word; `unknown` alone if it has a part that is no piece."""
        if len(word) > self.longest_word:
            return [self.unknown]
        tokens, start = [], 0
        while start < len(word):
            for end in range(min(len(word), start + self._longest), start, -1):
                piece = (self.prefix if start else "") + word[start:end]
                if piece in self.ids:
                    tokens.append(self.ids[piece])
                    start = end
                    break
            else:
                return [self.unknown]
        return tokens


class ScoredPairs:
    """sentencepiece's BPE: of all pairs whose text is a piece, the one with the best score merges.

    `score` is a token's score, or None if nothing merges into it.
    """

    def __init__(self, ids: dict[str, int], scores: Mapping[int, float], unknown: int | None):
        self.ids, self._scores = ids, scores
        self._characters = BytePairs(ids, {}, unknown, byte_fallback=True)._characters
        self._pieces = {token: piece for piece, token in ids.items()}

    def tokenize(self, word: str) -> list[int]:
        """The tokens of a word."""
        return merge(self._characters(word), self._join)

    def _join(self, a: int, b: int) -> tuple[float, int] | None:
        if a not in self._pieces or b not in self._pieces:  # the unknown token
            return None
        joined = self.ids.get(self._pieces[a] + self._pieces[b])
        if joined is None or (score := self._scores.get(joined)) is None:
            return None
        return -score, joined


def model(fields: Fields) -> Model:
    """The model that these fields describe. Raises TokenizerError."""
    # Files of the first versions do not name the type.
    kind = fields.text("type", "BPE" if fields.get("merges") is not None else "WordPiece")
    if kind == "BPE":
        return _byte_pairs(fields)
    if kind == "WordPiece":
        return _word_piece(fields)
    raise TokenizerError(
        f"{fields.where}: the algorithm {brief(kind)} is not supported; BPE and WordPiece are"
    )


def vocabulary(value: Any, where: str) -> dict[str, int]:
    """{piece: token}, checked. Raises TokenizerError."""
    if not isinstance(value, dict):
        raise TokenizerError(f"{where} is {brief(value)}, expected an object")
    if len(value) > MAX_PIECES:
        raise TokenizerError(f"{where} has {len(value):,} pieces, expected at most {MAX_PIECES:,}")
    longest = max(map(len, value), default=0)
    if longest > LONGEST_PIECE:
        raise TokenizerError(
            f"{where}: a piece has {longest:,} characters, expected at most {LONGEST_PIECE}"
        )
    if not set(map(type, value.values())) <= {int} or not _is_utf8("".join(value)):
        for piece, token in value.items():  # one of them is wrong; to look at each takes time
            checked_text(piece, f"{where}: a piece")
            checked_whole(token, f"{where}: {brief(piece)}")
    for token in (min(value.values(), default=0), max(value.values(), default=0)):
        if not 0 <= token < 2**_BITS:
            piece = next(piece for piece, found in value.items() if found == token)
            checked_whole(token, f"{where}: {brief(piece)}", 2**_BITS - 1)
    if len(set(value.values())) != len(value):
        raise TokenizerError(f"{where}: two pieces have the same number")
    return value


def merge_table(
    ids: dict[str, int], pairs: list[Any], where: str, prefix: str = ""
) -> dict[int, int]:
    """The table of merges for pairs of pieces, "a b" or ["a", "b"]; the first pair is merged first.

    {a << 21 | b: rank << 21 | token} says that tokens a and b become `token`. A tuple for each pair
    would take three times as long: there are 500 thousand, and the garbage collector looks at them.
    prefix: of pieces that continue a word; the merged piece does not repeat it.
    """
    table: dict[int, int] = {}
    skipped = len(prefix)
    for rank, pair in enumerate(pairs):
        try:
            a, b = pair.split(" ") if type(pair) is str else pair
            table[ids[a] << _BITS | ids[b]] = rank << _BITS | ids[a + b[skipped:]]
        except (KeyError, TypeError, ValueError):
            raise _wrong_pair(ids, pair, f"{where}[{rank}]", skipped) from None
    return table


def _wrong_pair(ids: dict[str, int], pair: Any, where: str, skipped: int) -> TokenizerError:
    two = pair.split(" ") if isinstance(pair, str) else pair
    if not isinstance(two, list) or [type(piece) for piece in two] != [str, str]:
        return TokenizerError(f"{where} is {brief(pair)}, expected two pieces")
    joined = two[0] + two[1][skipped:]
    piece = next(piece for piece in (*two, joined) if piece not in ids)
    return TokenizerError(f"{where} is {brief(pair)}, but {brief(piece)} is not in the vocabulary")


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _byte_pairs(fields: Fields) -> BytePairs:
    ids = vocabulary(fields.get("vocab"), f"{fields.where}: vocab")
    if fields.get("dropout"):
        raise TokenizerError(
            f"{fields.where}: dropout is {brief(fields.get('dropout'))}, expected none: it would "
            "make the tokens random"
        )
    prefix = fields.text("continuing_subword_prefix", "")
    return BytePairs(
        ids,
        merge_table(ids, fields.list("merges"), f"{fields.where}: merges", prefix),
        _unknown(fields, ids),
        fields.flag("byte_fallback"),
        fields.flag("fuse_unk"),
        fields.flag("ignore_merges"),
        prefix,
        fields.text("end_of_word_suffix", ""),
    )


def _word_piece(fields: Fields) -> WordPiece:
    ids = vocabulary(fields.get("vocab"), f"{fields.where}: vocab")
    unknown = _unknown(fields, ids, "[UNK]")
    return WordPiece(
        ids,
        -1 if unknown is None else unknown,
        fields.text("continuing_subword_prefix", "##"),
        fields.whole("max_input_chars_per_word", 100),
    )


def _unknown(fields: Fields, ids: dict[str, int], default: str = "") -> int | None:
    unknown = fields.text("unk_token", default)
    if not unknown:
        return None
    if unknown not in ids:
        raise TokenizerError(
            f"{fields.where}: unk_token is {brief(unknown)}, which is not in the vocabulary"
        )
    return ids[unknown]
