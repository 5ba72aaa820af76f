"""sentencepiece's tokenizer.model → llama2.c's tokenizer.bin, as its tokenizer.py writes it."""

from __future__ import annotations

import os
import struct
from pathlib import Path

from llama2np.atomic import replacing
from llama2np.formats import kinds
from llama2np.text.sentencepiece_model import SentencePieceModel, read_model
from llama2np.text.tokenizer import TokenizerError


@kinds.reader("sentencepiece", TokenizerError)
def write_bin(model: str | os.PathLike[str], path: str | os.PathLike[str]) -> SentencePieceModel:
    """Write a tokenizer.bin; return the model it was made from. Raises TokenizerError, and OSError.

    A model is rejected if llama2.c would encode texts differently with it than sentencepiece.
    Added tokens are not written: a tokenizer.bin has only the pieces of the model.
    """
    if kinds.kind_of(model) == "tokenizer.bin":
        raise TokenizerError(f"{model}: expected a sentencepiece model, found a tokenizer.bin")
    tokenizer = read_model(Path(model))
    if problem := tokenizer.unlike_llama2c():
        raise TokenizerError(
            f"{model}: {problem}: as a tokenizer.bin it would give other tokens in llama2.c; "
            "run.py takes the tokenizer.model itself (-z FILE)"
        )
    pairs = list(zip(tokenizer.pieces, tokenizer.scores, strict=True))
    with replacing(path) as file:
        file.write(struct.pack("<I", max(len(piece) for piece, _ in pairs)))
        file.write(b"".join(struct.pack("<fI", score, len(p)) + p for p, score in pairs))
    return tokenizer
