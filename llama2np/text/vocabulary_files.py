"""Tokenizers without a tokenizer.json: vocab.json with merges.txt, and vocab.txt.

Such a folder does not say how texts are split: the class in tokenizer_config.json decides it, as in
transformers. By default texts are split as for GPT-2, or as for an uncased BERT.
"""

from __future__ import annotations

from pathlib import Path

from llama2np.files import open_regular, read_at_most
from llama2np.output import brief
from llama2np.text import fields, models, shown
from llama2np.text.errors import TokenizerError
from llama2np.text.normalizers import bert_normalizer
from llama2np.text.pipeline import Pipeline
from llama2np.text.post_processors import Template
from llama2np.text.pre_tokenizers import bert_words, byte_level
from llama2np.text.settings import Settings
from llama2np.text.special_tokens import AddedToken
from llama2np.text.splittings import SPLITTINGS
from llama2np.text.tokenizer_json import spelled_pieces


def read_bpe(path: Path, settings: Settings, limit: int | None) -> Pipeline:
    """Read vocab.json and merges.txt: byte-level BPE. Raises TokenizerError, and OSError.

    path: of either file.
    """
    path, merges_path = path.with_name("vocab.json"), path.with_name("merges.txt")
    ids = models.vocabulary(fields.read_object(path).value, str(path))
    pairs = [line for line in _lines(merges_path) if line]
    if pairs and pairs[0].startswith("#version"):
        pairs = pairs[1:]
    merges = models.merge_table(ids, pairs, f"{merges_path}: merges")
    added = _added(settings, ids, limit)
    spelled = spelled_pieces(ids, added, str(path))
    table = shown.byte_level(spelled)
    splitting = SPLITTINGS["qwen2" if settings.kind.startswith("Qwen2") else "gpt-2"]
    pre_tokenize = splitting.pre_tokenizer()
    if settings.fields.flag("add_prefix_space"):
        pre_tokenize = byte_level(prefix_space=True)
    return Pipeline(
        models.BytePairs(ids, merges),
        spelled,
        table.texts,
        table,
        added,
        splitting.normalize,
        pre_tokenize,
        _around(settings, ids, added),
    )


def read_word_piece(path: Path, settings: Settings, limit: int | None) -> Pipeline:
    """Read vocab.txt: BERT's WordPiece. Raises TokenizerError, and OSError."""
    lines = _lines(path)
    if len(lines) > models.MAX_PIECES or max(map(len, lines), default=0) > models.LONGEST_PIECE:
        raise TokenizerError(
            f"{path}: has {len(lines):,} lines, expected at most {models.MAX_PIECES:,} of "
            f"{models.LONGEST_PIECE:,} characters"
        )
    ids = {piece: i for i, piece in enumerate(lines)}
    names = {
        name: settings.names.get(name, f"[{name[:-6].upper()}]")
        for name in ("unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
    }
    unknown, cls, sep = (_id(ids, names[f"{n}_token"], path) for n in ("unk", "cls", "sep"))
    added = _added(settings, ids, limit)
    known = {token.content for token in added}
    added += [
        AddedToken(ids[name], name) for name in dict.fromkeys(names.values())
        if name in ids and name not in known
    ]  # fmt: skip
    spelled = spelled_pieces({piece: i for i, piece in enumerate(lines)}, added, str(path))
    options = settings.fields
    return Pipeline(
        models.WordPiece(ids, unknown),
        spelled,
        [piece.encode() for piece in spelled],
        shown.word_piece(spelled),
        added,
        bert_normalizer(
            cjk=options.flag("tokenize_chinese_chars", True),
            accents=None if options.get("strip_accents") is None else options.flag("strip_accents"),
            lowercase=options.flag("do_lower_case", True),
        ),
        bert_words,
        Template.bert(cls, sep),
    )


def _lines(path: Path) -> list[str]:
    with open_regular(path) as file:
        data = read_at_most(file, fields.LARGEST)
    if data is None or data.count(b"\n") > 2 * models.MAX_PIECES:
        raise TokenizerError(f"{path}: is larger than {fields.LARGEST:,} bytes, the maximum here")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{path}: not UTF-8 at byte {error.start}") from None
    lines = text.replace("\r\n", "\n").split("\n")
    return lines[:-1] if lines[-1] == "" else lines


def _id(ids: dict[str, int], piece: str, path: Path) -> int:
    if piece not in ids:
        raise TokenizerError(f"{path}: has no piece {brief(piece)}")
    return ids[piece]


def _added(settings: Settings, ids: dict[str, int], limit: int | None) -> list[AddedToken]:
    """The added tokens of the settings; and the special ones that are in the vocabulary."""
    added = [token for token in settings.added if limit is None or token.id < limit]
    known = {token.content for token in added}
    for name in dict.fromkeys(settings.names.values()):
        if name in ids and name not in known:
            added.append(AddedToken(ids[name], name))
    return added


def _around(settings: Settings, ids: dict[str, int], added: list[AddedToken]) -> Template:
    """The tokens around a text of byte-level BPE: none, unless the settings have some."""
    known = ids | {token.content: token.id for token in added}

    def token(name: str) -> list[int]:
        text = settings.names.get(name, "")
        return [known[text]] if text in known else []

    if settings.kind == "RobertaTokenizer":
        cls, sep = (
            token("cls_token") or token("bos_token"),
            token("sep_token") or token("eos_token"),
        )
        pair: list[int | str] = [*cls, "A", *sep, *sep, "B", *sep]
        single: list[int | str] = [*cls, "A", *sep]
        return Template([(part, 0) for part in single], [(part, 0) for part in pair])
    before = token("bos_token") if settings.fields.flag("add_bos_token") else []
    after = token("eos_token") if settings.fields.flag("add_eos_token") else []
    return Template.around(before, after)
