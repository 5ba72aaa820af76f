"""sentencepiece's tokenizer.model → llama2.c's tokenizer.bin, as its tokenizer.py writes it."""

from __future__ import annotations

import os
import struct
from pathlib import Path

from llama2np.atomic import replacing
from llama2np.tokenizer import Tokenizer, TokenizerError


def write_bin(model: str | os.PathLike[str], path: str | os.PathLike[str]) -> int:
    """Write a tokenizer.bin; return the number of pieces. Raises TokenizerError, and OSError."""
    if Path(model).suffix != ".model":
        raise TokenizerError(f"{model}: expected a sentencepiece model, named *.model")
    tokenizer = Tokenizer.load(model)
    pairs = list(zip(tokenizer.pieces, tokenizer.scores, strict=True))
    with replacing(path) as file:
        file.write(struct.pack("<I", max(len(piece) for piece, _ in pairs)))
        for piece, score in pairs:
            file.write(struct.pack("<fI", score, len(piece)) + piece)
    return len(pairs)
