"""The command `tokenizer train`: a tokenizer made from texts."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

from llama2np.cli.flags import Parser, choice, guarded, joined, number, path_value
from llama2np.formats import tokenizer_bin
from llama2np.learning.corpus import texts
from llama2np.text.training import train_byte_level, train_sentencepiece

_KINDS = "sentencepiece", "byte-level"


def main(argv: Sequence[str], prog: str) -> int:
    """Make a tokenizer; return the exit status."""
    return guarded(prog, lambda: _train(_parse(argv, prog)))


def _train(options: argparse.Namespace) -> None:
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    read: Iterator[str] = texts(options.data)
    if (first := next(read, None)) is None:
        raise ValueError(f"{', '.join(map(str, options.data))}: no text to make a tokenizer of")
    read = chain([first], read)
    if options.kind == "byte-level":
        train_byte_level(read, out / "tokenizer.json", options.vocab_size)
        print(f"wrote {out / 'tokenizer.json'}")
        return
    train_sentencepiece(read, out / "tokenizer.model", options.vocab_size)
    tokenizer_bin.write_bin(out / "tokenizer.model", out / "tokenizer.bin")
    print(f"wrote {out / 'tokenizer.model'} and {out / 'tokenizer.bin'}")


def _parse(argv: Sequence[str], prog: str) -> argparse.Namespace:
    parser = Parser(
        prog=prog,
        description="Make a tokenizer from texts: sentencepiece BPE as llama2.c makes its own, or "
        "byte-level BPE as GPT-2 has it, which needs the package tokenizers.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("action", choices=("train",), help="train")
    add("out", type=Path, help="the folder for its files")
    add(
        "--data",
        type=path_value,
        action="append",
        required=True,
        metavar="FILE",
        help="a text in UTF-8, in which lines of <|endoftext|> end texts; may be repeated",
    )
    add(
        "--vocab-size",
        type=number(int, 260, 2**20),
        default=4096,
        metavar="N",
        help="the number of pieces (default 4096)",
    )
    add(
        "--kind",
        type=choice(*_KINDS),
        default=f".{_KINDS[0]}",  # argparse parses it, as a value that `joined` has rewritten
        metavar="NAME",
        help=f"{' or '.join(_KINDS)} (default {_KINDS[0]})",
    )
    return parser.parse_args(list(joined(argv, parser)))
