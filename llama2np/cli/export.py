"""The command `export`: llama2.c's export.py flags, and a few more."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from llama2np import box
from llama2np.atomic import is_stdout
from llama2np.cli.flags import Parser, choice, flag_value, guarded, joined, number, path_value
from llama2np.formats import huggingface, llama2c, meta, tokenizer_bin
from llama2np.formats.gguf.from_source import write_gguf
from llama2np.formats.gguf.source import read_source
from llama2np.formats.gguf.write import FILE_TYPES
from llama2np.formats.q80 import Error
from llama2np.formats.source import Source
from llama2np.formats.write import write_bin, write_huggingface
from llama2np.store.names import located
from llama2np.text.loading import form_of

# The flag of each kind of source: its reader, the placeholder of its value, its help text.
_SOURCES = {
    "checkpoint": (llama2c.read_pt, "FILE", "a .pt file of llama2.c's train.py"),
    "meta-llama": (meta.read, "FOLDER", "Meta's format: params.json and consolidated.*.pth"),
    "hf": (huggingface.read, "FOLDER", "Hugging Face's format: config.json and the weights"),
    "bin": (
        llama2c.read_bin,
        "FILE",
        "a .bin file of any version, or the name of a bundled model",
    ),
    "gguf": (read_source, "FILE", "a GGUF file (llama.cpp)"),
}
GGUF = "gguf"
_DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


def main(argv: Sequence[str], prog: str) -> int:
    """Convert a checkpoint, or a tokenizer; return the exit status."""
    return guarded(prog, lambda: _export(_parse(argv, prog)))


def _export(options: argparse.Namespace) -> None:
    if options.tokenizer is not None:
        model = tokenizer_bin.write_bin(options.tokenizer, options.filepath)
        spaces = "; tokenizer.model removes extra spaces, llama2.c does not"
        note = spaces if model.removes_spaces else ""
        _tell(options.filepath, f"{len(model.pieces):,} pieces{note}")
        return
    if options.type and options.version != GGUF:
        raise ValueError(f"--type {options.type} needs --version gguf")
    dtype = options.dtype or "fp32"  # argparse would take a default for a flag's value
    if dtype != "fp32" and options.version != -1:
        raise ValueError(f"--dtype {dtype} needs --version -1: .bin files are float32 or int8")
    source = _open(options)
    if options.seq_len is not None:
        source = source.with_seq_len(options.seq_len)
    with _progress(source) as progress:
        if options.version == GGUF:
            kind = options.type or "Q8_0"
            size = write_gguf(source, options.filepath, kind, progress)
            summary = f"GGUF, {kind}, {size:,} bytes"
        elif options.version == -1:
            write_huggingface(source, options.filepath, _DTYPES[dtype], progress)
            summary = f"Hugging Face, {_DTYPES[dtype]}{_without_tokenizer(options)}"
        else:
            header, errors = write_bin(source, options.filepath, options.version, progress)
            summary = f"version {header.version}, {header.file_size:,} bytes"
            if errors:
                summary += f", {_quantization(header.group_size, source, errors)}"
    _tell(options.filepath, summary)


def _tell(path: str, summary: str) -> None:
    """Print what was written: on standard error if the file itself is standard output."""
    print(f"wrote {path}: {summary}", file=sys.stderr if is_stdout(path) else sys.stdout)


def _without_tokenizer(options: argparse.Namespace) -> str:
    """What to do if the folder that was written has no tokenizer; "" if it has one."""
    if form_of(Path(options.filepath)) is not None:
        return ""
    of_source = options.bin if box.in_box(options.bin or "") else options.gguf
    return f", without a tokenizer: run it with -z {shlex.quote(of_source or 'FILE')}"


def _open(options: argparse.Namespace) -> Source:
    for flag, (read, *_) in _SOURCES.items():
        path = getattr(options, flag.replace("-", "_"))
        if path is not None:
            # The readers know the names of bundled models: they are for --bin alone.
            return read(path if box.in_box(path) else located(path))
    raise ValueError("no source given")  # not reached: argparse requires one


def _quantization(group_size: int, source: Source, errors: dict[str, Error]) -> str:
    """The group size, the reason if it differs from llama2.c's, and the rounding errors."""
    config, total = source.config, Error()
    for error in errors.values():
        total.add(error)
    why = "" if group_size == 64 else f" to fit dim={config.dim} and hidden_dim={config.hidden_dim}"
    return (
        f"group size {group_size}{why}, max quantization group error across all weights: "
        f"{total.largest:.6g}, mean {total.mean:.6g}"
    )


@contextmanager
def _progress(source: Source) -> Iterator[Callable[[int], object]]:
    """Show a progress bar on a terminal; yield a function of the number of values written."""
    if not sys.stderr.isatty():
        yield int
        return
    from tqdm import tqdm

    with tqdm(total=source.size, unit=" values", unit_scale=True, leave=False) as bar:
        yield bar.update


def _version(value: str) -> int | str:
    """A parser of --version, for argparse."""
    text = choice("-1", "0", "1", "2", GGUF)(value)
    return text if text == GGUF else int(text)


def _parse(argv: Sequence[str], prog: str) -> argparse.Namespace:
    parser = Parser(
        prog=prog,
        description="Convert a checkpoint to llama2.c's .bin, GGUF, or a Hugging Face folder; "
        "or a tokenizer.model to tokenizer.bin.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("filepath", help="the file to write; with --version -1 the folder")
    add(
        "--version",
        type=_version,
        default=0,
        metavar="N",
        help="0: float32, which llama2.c's run reads (default); 1: float32 with a full header; "
        "2: int8 (Q8_0); -1: Hugging Face; gguf: GGUF, which llama.cpp reads",
    )
    add(
        "--type",
        type=choice(*FILE_TYPES),
        metavar="TYPE",
        help=f"for --version gguf: {', '.join(FILE_TYPES)} (default Q8_0)",
    )
    add(
        "--dtype",
        type=choice(*_DTYPES),
        metavar="TYPE",
        help=f"for --version -1: {', '.join(_DTYPES)} (default fp32)",
    )
    add(
        "--seq-len",
        type=number(int, 1, 2**27 - 1),
        metavar="N",
        help="the context of the network in positions, instead of the source's "
        f"(Meta's format has none: default {meta.SEQ_LEN})",
    )
    sources = parser.add_mutually_exclusive_group(required=True)
    for flag, (_, value, text) in _SOURCES.items():
        sources.add_argument(f"--{flag}", metavar=value, type=flag_value, help=text)
    sources.add_argument(
        "--tokenizer", metavar="FILE", type=path_value, help="a sentencepiece tokenizer.model"
    )
    return parser.parse_args(list(joined(argv, parser)))
