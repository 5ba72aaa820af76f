"""A tokenizer of the parts that a GGUF file has in its metadata, `tokenizer.ggml.*`.

GGUF's document names the fields; how they are used is llama.cpp's. Where that differs from the
tokenizer.json that a file was made from (Qwen2's NFC), this follows the tokenizer.json.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from llama2np.advice import did_you_mean
from llama2np.output import brief
from llama2np.text import models, shown
from llama2np.text.byte_letters import to_bytes
from llama2np.text.chat_template import ChatTemplate
from llama2np.text.errors import TokenizerError
from llama2np.text.normalizers import bert_normalizer
from llama2np.text.pipeline import Pipeline
from llama2np.text.post_processors import Template
from llama2np.text.pre_tokenizers import bert_words
from llama2np.text.special_tokens import AddedToken
from llama2np.text.splittings import SPLITTINGS
from llama2np.text.tokenizer import Tokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # tokenizer.ggml.token_type
_MARK = "▁"
_NEVER_STRIP = ("<unk>", "<s>", "<|endoftext|>")  # of Phi-3


def tokenizer(
    kind: str,
    pieces: Sequence[str],
    *,
    scores: Sequence[float] | None = None,
    merges: Sequence[str] | None = None,
    pre: str = "default",
    types: Sequence[int] | None = None,
    special: dict[str, int] | None = None,
    add_bos: bool | None = None,
    add_eos: bool = False,
    add_space_prefix: bool = True,
    strip_after_special: bool = False,
    lowercase: bool = True,
    strip_accents: bool | None = None,
    ends: Iterable[int] = (),
    chat_template: str | None = None,
    where: str = "the tokenizer",
) -> Tokenizer:
    """A tokenizer of its parts. Raises TokenizerError, which begins with `where`.

    kind, pieces, scores, merges, pre, types: tokenizer.ggml.model ("llama", "gpt2" or "bert"),
    .tokens, .scores, .merges, .pre and .token_type. special: {"bos_token": 1, ...} of
    .bos_token_id, .eos_token_id, .unknown_token_id, .seperator_token_id, .padding_token_id,
    .cls_token_id and .mask_token_id. add_bos, add_eos, add_space_prefix: the fields of these names;
    None: the default of the kind. strip_after_special: whether white space after a special token
    belongs to it, as in Phi-3. lowercase, strip_accents: what BERT's normalizer does; None: as
    lowercase. ends: tokens that end a text, beside BOS and EOS.
    """
    if kind not in _KINDS:
        raise TokenizerError(
            f"{where}: the algorithm {brief(kind)} is not supported; expected "
            f"{', '.join(_KINDS)}{did_you_mean(kind, _KINDS)}"
        )
    spelled, types = _checked(pieces, types, where)
    special = {name: i for name, i in (special or {}).items() if 0 <= i < len(spelled)}
    parts = _Parts(spelled, types, special, scores, merges, pre, add_space_prefix, where)
    parts.strips = strip_after_special
    parts.normalize = bert_normalizer(lowercase=lowercase, accents=strip_accents)
    found = _KINDS[kind](parts)
    if kind != "bert":
        bos, eos = special.get("bos_token"), special.get("eos_token")
        adds = found.template.before != [] if add_bos is None else add_bos
        found.template = Template.around(
            [bos] if adds and bos is not None else [], [eos] if add_eos and eos is not None else []
        )
    names = {name: spelled[i] for name, i in special.items()}
    template = None if chat_template is None else ChatTemplate(chat_template, names, where)
    return Tokenizer(found, special=special, ends=ends, chat_template=template)


class _Parts:
    """The parts of a tokenizer, checked: `types` (n,) has a type for each piece."""

    def __init__(
        self,
        spelled: list[str],
        types: list[int],
        special: dict[str, int],
        scores: Sequence[float] | None,
        merges: Sequence[str] | None,
        pre: str,
        space_prefix: bool,
        where: str,
    ):
        self.spelled, self.types, self.special = spelled, types, special
        self.scores, self.merges, self.pre, self.where = scores, merges, pre, where
        self.space_prefix = space_prefix
        self.strips = False  # white space after control tokens
        self.normalize = bert_normalizer()  # of BERT

    def ids(self, *types: int) -> dict[str, int]:
        """{piece: token} of the tokens of these types, the first of equal pieces."""
        ids: dict[str, int] = {}
        for i, (piece, kind) in enumerate(zip(self.spelled, self.types, strict=True)):
            if kind in types:
                ids.setdefault(piece, i)
        return ids

    def added(self, mark: str = "") -> list[AddedToken]:
        """The tokens that a text may name; mark: what a space is in a piece."""
        added = [
            AddedToken(i, piece, rstrip=self.strips and piece not in _NEVER_STRIP)
            for piece, i in self.ids(CONTROL, UNKNOWN).items()
            if piece
        ]
        for piece, i in self.ids(USER_DEFINED).items():
            text = piece.replace(mark, " ") if mark else piece
            added.append(AddedToken(i, text, special=False, rstrip=self.strips))
        return added


def _checked(
    pieces: Sequence[str], types: Sequence[int] | None, where: str
) -> tuple[list[str], list[int]]:
    spelled = list(pieces)
    if not all(isinstance(piece, str) for piece in spelled) or len(spelled) > models.MAX_PIECES:
        raise TokenizerError(
            f"{where}: expected at most {models.MAX_PIECES:,} pieces, all texts; found "
            f"{len(spelled):,}"
        )
    if max(map(len, spelled), default=0) > models.LONGEST_PIECE:
        raise TokenizerError(f"{where}: a piece has more than {models.LONGEST_PIECE:,} characters")
    kinds = [NORMAL] * len(spelled) if types is None else [int(kind) for kind in types]
    _same_length("types", kinds, spelled, where)
    return spelled, kinds


def _same_length(name: str, values: Sequence[object], pieces: list[str], where: str) -> None:
    if len(values) != len(pieces):
        raise TokenizerError(f"{where}: has {len(pieces):,} pieces but {len(values):,} {name}")


def _llama(parts: _Parts) -> Pipeline:
    """sentencepiece's BPE, by scores."""
    if parts.scores is None:
        raise TokenizerError(f"{parts.where}: has no scores, which the algorithm llama needs")
    scores = [float(score) for score in parts.scores]
    _same_length("scores", scores, parts.spelled, parts.where)
    ids = parts.ids(NORMAL, USER_DEFINED)
    merging = {i: scores[i] for i in ids.values() if scores[i] == scores[i]}
    unknown = parts.special.get("unk_token", next(iter(parts.ids(UNKNOWN).values()), None))
    pieces = [piece.replace(_MARK, " ").encode() for piece in parts.spelled]
    bos = parts.special.get("bos_token")
    return Pipeline(
        models.ScoredPairs(parts.ids(BYTE) | ids, merging, unknown),
        parts.spelled,
        pieces,
        shown.sentencepiece(parts.spelled, strip=parts.space_prefix),
        parts.added(_MARK),
        _prefixed if parts.space_prefix else _marked,
        template=Template.around([] if bos is None else [bos]),
    )


def _gpt2(parts: _Parts) -> Pipeline:
    """Byte-level BPE, by merges."""
    if parts.pre not in SPLITTINGS:
        raise TokenizerError(
            f"{parts.where}: the pre-tokenizer {brief(parts.pre)} is not supported; these are: "
            f"{', '.join(filter(None, SPLITTINGS))}"
        )
    if parts.merges is None:
        raise TokenizerError(f"{parts.where}: has no merges, which the algorithm gpt2 needs")
    splitting, ids = SPLITTINGS[parts.pre], parts.ids(*range(7))
    merges = models.merge_table(ids, list(parts.merges), f"{parts.where}: merges")
    added = parts.added()
    names = {token.id for token in added}
    pieces = [
        piece.encode() if i in names else to_bytes(piece) for i, piece in enumerate(parts.spelled)
    ]
    bos = parts.special.get("bos_token")
    return Pipeline(
        models.BytePairs(ids, merges, whole=splitting.whole),
        parts.spelled,
        pieces,
        shown.byte_level(parts.spelled),
        added,
        splitting.normalize,
        splitting.pre_tokenizer(),
        Template.around([bos] if splitting.adds_bos and bos is not None else []),
    )


def _bert(parts: _Parts) -> Pipeline:
    """WordPiece. In GGUF "▁" begins the pieces that begin a word, and nothing the others."""
    spelled = parts.spelled
    if any(piece.startswith(_MARK) for piece in spelled):
        spelled = [
            piece if kind != NORMAL else piece[1:] if piece.startswith(_MARK) else f"##{piece}"
            for piece, kind in zip(spelled, parts.types, strict=True)
        ]
    parts.spelled = spelled
    ids = parts.ids(*range(7))
    special = {"cls_token": ids.get("[CLS]"), "sep_token": ids.get("[SEP]")} | parts.special
    unknown = parts.special.get("unk_token", ids.get("[UNK]"))
    cls, sep = special["cls_token"], special["sep_token"]
    if cls is None or sep is None or unknown is None:
        raise TokenizerError(f"{parts.where}: needs the tokens [CLS], [SEP] and [UNK]")
    return Pipeline(
        models.WordPiece(ids, unknown),
        spelled,
        [piece.encode() for piece in spelled],
        shown.word_piece(spelled),
        parts.added(),
        parts.normalize,
        bert_words,
        Template.bert(cls, sep),
    )


def _marked(text: str) -> str:
    return text.replace(" ", _MARK)


def _prefixed(text: str) -> str:
    return _MARK + _marked(text) if text else text


_KINDS = {"llama": _llama, "gpt2": _gpt2, "bert": _bert}
