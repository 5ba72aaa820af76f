"""Finds out what tokenizer a path has, reads it, and fits it to the model's vocabulary."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from llama2np import advice
from llama2np.files import open_regular
from llama2np.formats import kinds
from llama2np.formats.checkpoint import CheckpointError
from llama2np.formats.gguf import is_gguf
from llama2np.formats.gguf import read as read_gguf
from llama2np.formats.gguf.tokenizer import tokenizer_of
from llama2np.formats.kinds.signs import is_sentencepiece, is_tokenizer_bin
from llama2np.text import (
    added_tokens,
    llama2c_bpe,
    models,
    sentencepiece_model,
    settings,
    tokenizer_json,
    vocabulary_files,
)
from llama2np.text.chat_template import ChatTemplate
from llama2np.text.errors import TokenizerError
from llama2np.text.llama2c_bpe import LONGEST_PIECE
from llama2np.text.pipeline import Pipeline
from llama2np.text.post_processors import Template
from llama2np.text.settings import Settings
from llama2np.text.tokenizer import Tokenizer

# The most rows of a model without a piece: vocabularies are padded to multiples of up to 8,192.
_MAX_MISSING = 2**13
# The files of tokenizers; the first one that a folder has is used.
FORMS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tokenizer.bin")
# The names that BERT's special tokens have, where there is no tokenizer_config.json.
_BERT = {
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
}
_Reader = Callable[[Path, Settings, int | None], Pipeline]
_READERS: dict[str, _Reader] = {
    "vocab.json": vocabulary_files.read_bpe,
    "merges": vocabulary_files.read_bpe,
    "vocab.txt": vocabulary_files.read_word_piece,
    "tokenizer.json": lambda path, _, limit: tokenizer_json.read(path, limit),
}


def load(path: str | os.PathLike[str], vocab_size: int | None) -> Tokenizer:
    """See Tokenizer.load."""
    path = Path(path)
    if path.is_dir():
        return _from_folder(path, vocab_size)
    if is_gguf(path):
        return _from_gguf(path, vocab_size)
    with kinds.named(path, "tokenizer", TokenizerError):
        if kind := _kind_of_text(path):
            return _pipeline(path, kind, vocab_size)
        return _from_file(path, None, vocab_size)


def form_of(folder: Path) -> str | None:
    """The name of the tokenizer's file in a folder; None if there is none."""
    return next((name for name in FORMS if (folder / name).is_file()), None)


def _from_gguf(path: Path, vocab_size: int | None) -> Tokenizer:
    """The tokenizer in a GGUF file."""
    try:
        tokenizer = tokenizer_of(read_gguf(path))
    except CheckpointError as error:
        raise TokenizerError(str(error)) from None
    if tokenizer is None:
        raise TokenizerError(f"{path}: has no tokenizer: name the model's with -z FILE")
    _check_size(path, tokenizer)
    return _for_model(tokenizer, path, {}, vocab_size)


def _kind_of_text(path: Path) -> str:
    """Which of _READERS a file is for, by its beginning; "" for other files."""
    with open_regular(path) as file:
        head = file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()
    if head.startswith(b"{"):
        is_vocabulary = path.name == "vocab.json" and (path.parent / "merges.txt").is_file()
        return "vocab.json" if is_vocabulary else "tokenizer.json"
    if path.name == "merges.txt" and (path.parent / "vocab.json").is_file():
        return "merges"
    is_list = head.startswith((b"[PAD]\n", b"[PAD]\r\n")) or path.name == "vocab.txt"
    return "vocab.txt" if is_list else ""


def _from_folder(folder: Path, vocab_size: int | None) -> Tokenizer:
    name = form_of(folder)
    if name is None:
        raise TokenizerError(
            f"{folder}: a directory without a tokenizer: expected one of {', '.join(FORMS)} in it"
        )
    path = folder / name
    with kinds.named(path, "tokenizer", TokenizerError):
        if name in _READERS:
            return _pipeline(path, name, vocab_size)
        return _from_file(path, settings.read(folder), vocab_size)


def _pipeline(path: Path, kind: str, vocab_size: int | None) -> Tokenizer:
    """A tokenizer of Hugging Face's files, with the settings beside it."""
    known = settings.read(path.parent)
    pipeline = _READERS[kind](path, known, vocab_size)
    ids = pipeline.model.ids | {token.content: token.id for token in pipeline.added}
    added = {token.id for token in pipeline.added if token.special}
    names = {name: text for name, text in _BERT.items() if ids.get(text) in added} | known.names
    special = {name: ids[text] for name, text in names.items() if text in ids}
    if not special and len(pipeline.template.before) == 1:  # there is no tokenizer_config.json
        special["bos_token"] = pipeline.template.before[0]
    tokenizer = Tokenizer(
        pipeline, special=special, ends=known.ends, chat_template=_template(path, known)
    )
    _check_size(path, tokenizer)
    return _for_model(tokenizer, path, {}, vocab_size)


def _from_file(path: Path, known: Settings | None, vocab_size: int | None) -> Tokenizer:
    """A tokenizer.bin or a tokenizer.model. known: the settings in its folder; None: it is alone,
    and they do not count.
    """
    data = sentencepiece_model.contents(path)
    by_name = path.suffix == ".model" and not is_tokenizer_bin(data)
    if not (by_name or is_sentencepiece(data)):
        algorithm = llama2c_bpe.read(path, data)
        places = {"bos_token": llama2c_bpe.BOS, "eos_token": llama2c_bpe.EOS}
        tokenizer = Tokenizer(algorithm, special=places)
        _check_size(path, tokenizer)
        return _for_model(tokenizer, path, {}, vocab_size)
    model = sentencepiece_model.read_model(path, data)
    added = _added_tokens(path.parent)
    special = {"bos_token": model.bos_id, "eos_token": model.eos_id}
    count = len(model.pieces)
    if known is not None:
        limit = count + _MAX_MISSING if vocab_size is None else vocab_size
        more = [token for token in known.added if count <= token.id < limit]
        model = model.with_settings(more, _around(known, model.bos_id, model.eos_id))
    tokenizer = Tokenizer(
        model,
        special={name: token for name, token in special.items() if token is not None},
        ends=known.ends if known else (),
        chat_template=_template(path, known) if known else None,
    )
    _check_size(path, tokenizer)
    return _for_model(tokenizer, path, added, vocab_size)


def _around(known: Settings, bos: int | None, eos: int | None) -> Template:
    fields = known.fields
    before = [bos] if bos is not None and fields.flag("add_bos_token", True) else []
    return Template.around(
        before, [eos] if eos is not None and fields.flag("add_eos_token") else []
    )


def _template(path: Path, known: Settings) -> ChatTemplate | None:
    source = known.templates.get("default")
    return None if source is None else ChatTemplate(source, known.names, f"{path.parent}")


def _check_size(path: Path, tokenizer: Tokenizer) -> None:
    longest = max(map(len, tokenizer.pieces), default=0)
    # A Pipeline has checked its pieces, whose characters may have up to four bytes.
    most = LONGEST_PIECE if tokenizer.scores else 4 * LONGEST_PIECE
    if tokenizer.vocab_size > models.MAX_PIECES or longest > most:
        raise TokenizerError(
            f"{path}: holds {tokenizer.vocab_size:,} pieces of up to {longest:,} bytes, "
            f"expected at most {models.MAX_PIECES:,} of {most:,}"
        )
    if tokenizer.vocab_size < 3:
        raise TokenizerError(f"{path}: holds {tokenizer.vocab_size} pieces, expected 3 or more")


def _for_model(
    tokenizer: Tokenizer, path: Path, added: Mapping[int, bytes], vocab_size: int | None
) -> Tokenizer:
    """This tokenizer with added tokens, extended to `vocab_size`. Raises TokenizerError."""
    count = tokenizer.vocab_size
    # A model may lack the rows of added tokens: Llama 2's chat models have no row for "<pad>".
    limit = count + _MAX_MISSING if vocab_size is None else vocab_size
    added = {token: text for token, text in added.items() if count <= token < limit}
    known = tokenizer.extended(max(added, default=-1) + 1, added)
    if vocab_size is None:
        return known
    if not count <= vocab_size <= known.vocab_size + _MAX_MISSING:
        raise TokenizerError(
            f"{path}: holds {count:,} pieces, the model's vocabulary is {vocab_size:,}: "
            "name the tokenizer that the model was trained with (-z FILE); "
            f"Llama 2's, of 32,000: {advice.fetching('tokenizer.bin')}"
        )
    return known.extended(vocab_size)


def _added_tokens(folder: Path) -> dict[int, bytes]:
    try:
        return added_tokens.read(folder)
    except ValueError as error:
        raise TokenizerError(str(error)) from None
