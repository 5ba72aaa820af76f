"""The tokenizer that belongs to a model: in its file, in its folder, or beside it."""

from __future__ import annotations

import os
from pathlib import Path

from llama2np import advice, box
from llama2np.store.names import located
from llama2np.text.errors import TokenizerError
from llama2np.text.loading import form_of
from llama2np.text.numbers import numbers
from llama2np.text.tokenizer import Tokenizer

StrPath = str | os.PathLike[str]


def find(path: StrPath, vocab_size: int, named: StrPath | None = None) -> Tokenizer:
    """The tokenizer for the model at `path`.

    named: the file or folder of a tokenizer that the user has named, or a bundled or pulled model.
    Otherwise it is that in the model's folder (if the model is one), or the tokenizer.bin or
    tokenizer.model beside the model, or else in the current folder. "Beside" a link is in the
    link's folder and in its target's. Raises TokenizerError, and OSError.
    """
    if box.in_box(path if named is None else named):
        return Tokenizer.load(box.TOKENIZER, vocab_size)
    if named is not None:
        return Tokenizer.load(located(named), vocab_size)
    if Path(path).is_dir():
        found = form_of(Path(path)) is not None
        return Tokenizer.load(path, vocab_size) if found else numbers(vocab_size, os.fspath(path))
    beside = Path(path).parent
    target = Path(os.path.realpath(path)).parent
    # A link in the current folder: what is beside its target is nearer to the model.
    folders = (target,) if os.path.samefile(beside, os.curdir) else (beside, target)
    for folder in (*folders, Path()):
        for name in ("tokenizer.bin", "tokenizer.model"):
            if (folder / name).is_file():
                return Tokenizer.load(folder / name, vocab_size)
    raise TokenizerError(
        f"tokenizer.bin: not in the current folder nor in {beside}: name it with -z FILE; "
        f"Llama 2's: {advice.fetching('tokenizer.bin')}"
    )
