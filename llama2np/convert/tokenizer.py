"""sentencepiece's tokenizer.model → llama2.c's tokenizer.bin, as its tokenizer.py writes it."""

from __future__ import annotations

import os
import struct

from llama2np import kinds
from llama2np.output import replacing
from llama2np.tokenizer import Tokenizer, TokenizerError


@kinds.reader("sentencepiece", TokenizerError)
def write_bin(model: str | os.PathLike[str], path: str | os.PathLike[str]) -> int:
    """Write a tokenizer.bin; return the number of pieces. Raises TokenizerError, and OSError."""
    tokenizer = Tokenizer.load(model)
    if kinds.kind_of(model) == "tokenizer.bin":
        raise TokenizerError(f"{model}: expected a sentencepiece model, found a tokenizer.bin")
    pairs = list(zip(tokenizer.pieces, tokenizer.scores, strict=True))
    with replacing(path) as file:
        file.write(struct.pack("<I", max(len(piece) for piece, _ in pairs)))
        for piece, score in pairs:
            file.write(struct.pack("<fI", score, len(piece)) + piece)
    return len(pairs)
