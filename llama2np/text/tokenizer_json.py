"""tokenizer.json: the file of the package `tokenizers`, which has all parts of a tokenizer.

Its settings for truncation and padding are ignored: they belong to a use, not to a tokenizer.
"""

from __future__ import annotations

from pathlib import Path

from llama2np.output import brief
from llama2np.text import fields, models, shown
from llama2np.text.errors import TokenizerError
from llama2np.text.fields import Fields
from llama2np.text.normalizers import normalizer
from llama2np.text.pipeline import Pipeline
from llama2np.text.post_processors import post_processor
from llama2np.text.pre_tokenizers import pre_tokenizer
from llama2np.text.special_tokens import AddedToken


def read(path: Path, limit: int | None = None) -> Pipeline:
    """Read a tokenizer.json. Raises TokenizerError, and OSError.

    limit: the number of rows of the model; added tokens that have no row are left out.
    """
    try:
        return _pipeline(fields.read_object(path), limit)
    except RecursionError:
        raise TokenizerError(f"{path}: its parts are nested too deeply") from None


def _pipeline(file: Fields, limit: int | None) -> Pipeline:
    described = file.inner("model")
    if described is None:
        raise TokenizerError(f"{file.where}: not a tokenizer.json: it has no model")
    model = models.model(described)
    added = _added(file, model.ids, limit)
    spelled = spelled_pieces(model.ids, added, file.where)
    decoder = file.inner("decoder")
    normalize = normalizer(file.inner("normalizer"))
    decoded = list(spelled)
    for token in added:
        if token.normalized:  # so that the space which Llama 2's normalizer makes is shown
            decoded[token.id] = normalize(token.content)
    table = shown.shown(decoder, decoded)
    return Pipeline(
        model,
        spelled,
        _pieces(spelled, decoder, added, table.texts),
        table,
        added,
        normalize,
        pre_tokenizer(file.inner("pre_tokenizer")),
        post_processor(file.inner("post_processor")),
    )


def spelled_pieces(ids: dict[str, int], added: list[AddedToken], where: str) -> list[str]:
    """The piece of each token as the file spells it, "" for a number without one.

    Raises TokenizerError if there are too many, or if an added token has the number of another one.
    """
    taken = {token: piece for piece, token in ids.items()}
    for token in added:
        if taken.setdefault(token.id, token.content) != token.content:
            raise TokenizerError(
                f"{where}: the added token {brief(token.content)} has the number {token.id}, which "
                f"is that of {brief(taken[token.id])}"
            )
    count = max(taken, default=-1) + 1
    if count > models.MAX_PIECES:
        raise TokenizerError(
            f"{where}: has a token {count - 1:,}, expected at most {models.MAX_PIECES:,} tokens"
        )
    return [taken.get(i, "") for i in range(count)]


def _added(file: Fields, ids: dict[str, int], limit: int | None) -> list[AddedToken]:
    """The field added_tokens. A token that is in the vocabulary has the number it has there."""
    added: list[AddedToken] = []
    for entry in file.inners("added_tokens"):
        content = entry.text("content")
        token = ids.get(content, entry.whole("id"))
        if len(content) > models.LONGEST_PIECE or len(added) >= models.MAX_PIECES:
            raise TokenizerError(
                f"{entry.where}: has {len(content):,} characters, expected at most "
                f"{models.LONGEST_PIECE:,}"
            )
        if limit is not None and token >= limit and content not in ids:
            continue
        flags = {
            name: entry.flag(name)
            for name in ("special", "normalized", "single_word", "lstrip", "rstrip")
        }
        added.append(AddedToken(token, content, **flags))
    return added


def _pieces(
    spelled: list[str], decoder: Fields | None, added: list[AddedToken], texts: list[bytes]
) -> list[bytes]:
    """The bytes of each token. texts: what is shown for it inside a text."""
    if decoder is not None and decoder.get("type") == "ByteLevel":
        return texts
    names = {token.id for token in added}
    return [
        (piece if i in names else piece.replace("▁", " ")).encode()
        for i, piece in enumerate(spelled)
    ]
