"""The command `train`: a Llama from scratch, or a model further, on text files."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from llama2np.cli import learning
from llama2np.cli.flags import Parser, flag_value, guarded, joined, number, path_value
from llama2np.formats import loading
from llama2np.formats.huggingface.writing import as_folder
from llama2np.formats.source import Source
from llama2np.learning import corpus
from llama2np.learning.initial import initial_llama
from llama2np.learning.passes import parameters_of
from llama2np.learning.trainer import Settings, Trainer, score
from llama2np.learning.writing import changed, new_source, source_of, tokenizer_path, write_network
from llama2np.model.config import Config
from llama2np.model.program import Program
from llama2np.model.transformer import Transformer
from llama2np.text.tokenizer import Tokenizer

_SHAPE = {"dim": 288, "layers": 6, "heads": 6, "kv-heads": 0, "hidden": 0}  # llama2.c's 15M
_MULTIPLE = 32  # of hidden_dim, by default; llama2.c's


def main(argv: Sequence[str], prog: str) -> int:
    """Train a network; return the exit status."""
    return guarded(prog, lambda: _train(_parse(argv, prog)))


def _train(options: argparse.Namespace) -> None:
    out = options.out
    learning.check_plot(options)
    tokenizer = Tokenizer.load(options.tokenizer) if options.tokenizer is not None else None
    if options.init is not None:
        source, program, tokenizer = _opened(options)
    elif tokenizer is None:
        raise ValueError("--tokenizer FILE is needed: `tokenizer train` makes one")
    else:
        source, program = _new(options, tokenizer)
    out.mkdir(parents=True, exist_ok=True)
    settings = learning.settings_of(options, options.steps)
    options.seq_len = min(options.seq_len, program.config.seq_len)
    windows = _windows(options, out / "tokens.bin", options.data, tokenizer)
    print(f"{len(windows):,} tokens, {source.size:,} parameters", flush=True)
    parameters = parameters_of(program)
    paths = {"checkpoint": out / "training.npz", "log": out / "losses.jsonl"}
    trainer = Trainer(
        program,
        parameters,
        windows,
        settings,
        threads=options.threads,
        allow_change=options.allow_change,
        **paths,
    )
    learning.tell_start(trainer)
    learning.run(trainer, options.every)
    _tell(trainer, settings)
    if options.dev:
        held_out = _windows(options, out / "dev.bin", options.dev, tokenizer)
        found = score(program, parameters, held_out.all())
        print(f"held out: {found.loss:.4f} nats per token, over {found.count:,} tokens")
    where = options.tokenizer if options.init is None else tokenizer_path(options.init, None)
    learning.draw(options, trainer)
    for path in write_network(changed(source, parameters), out, where):
        print(f"wrote {path}")


def _tell(trainer: Trainer, settings: Settings) -> None:
    last = trainer.losses[-100:]
    mean = sum(last) / len(last)
    print(f"{settings.steps:,} steps, mean loss of the last {len(last)}: {mean:.4f}")


def _new(options: argparse.Namespace, tokenizer: Tokenizer) -> tuple[Source, Program]:
    """A new network of the shape that the flags give."""
    hidden = options.hidden or -(-8 * options.dim // 3 // _MULTIPLE) * _MULTIPLE
    config = Config(
        dim=options.dim,
        hidden_dim=hidden,
        n_layers=options.layers,
        n_heads=options.heads,
        n_kv_heads=options.kv_heads or options.heads,
        vocab_size=tokenizer.vocab_size,
        seq_len=options.seq_len,
    )
    source = new_source(config, initial_llama(config, not options.untied, options.seed))
    return source, Transformer(config, source.weights(), engine="numpy").program


def _opened(options: argparse.Namespace) -> tuple[Source, Program, Tokenizer]:
    """The network to begin with, and its tokenizer."""
    given = [f"--{name}" for name in _SHAPE if getattr(options, name.replace("-", "_"))]
    if any(getattr(options, n.replace("-", "_")) != default for n, default in _SHAPE.items()):
        raise ValueError(f"--init has a shape of its own: use it without {', '.join(given)}")
    loaded = loading.load(options.init)
    program = loading.transformer(options.init, "numpy", loaded).program
    source = source_of(options.init)
    if source.original is None:
        as_folder(source, "float32")  # so that what cannot be written is an error now
    return source, program, loaded.tokenizer(options.tokenizer)


def _windows(
    options: argparse.Namespace, path: Path, files: list[Path], tokenizer: Tokenizer
) -> corpus.Windows:
    with learning.progress(corpus.size_of(files), "B") as told:
        corpus.write_tokens(path, files, lambda text: tokenizer.encode(text), told)
    return corpus.Windows(path, options.seq_len, options.batch, options.seed)


def _parse(argv: Sequence[str], prog: str) -> argparse.Namespace:
    parser = Parser(
        prog=prog,
        description="Train a Llama from scratch, or a model further. If it is interrupted, the "
        "same command goes on from the last checkpoint.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("out", type=Path, help="the folder for the network and the checkpoint")
    add(
        *("--data", "--file"),
        type=path_value,
        action="append",
        required=True,
        metavar="FILE",
        help="a text in UTF-8, in which lines of <|endoftext|> end texts; may be repeated",
    )
    add("--dev", type=path_value, action="append", metavar="FILE", help="a held-out text")
    add("--tokenizer", type=flag_value, metavar="FILE", help="a file or folder with a tokenizer")
    add(
        "--init",
        type=flag_value,
        metavar="MODEL",
        help="a model to begin with, such as a .pt of llama2.c's train.py",
    )
    for name, default in _SHAPE.items():
        told = {"kv-heads": "as many as heads", "hidden": "8/3 dim"}.get(name, str(default))
        kind = number(int, 1, 2**20)
        add(f"--{name}", type=kind, default=default, metavar="N", help=f"(default {told})")
    add("--untied", action="store_true", help="a classifier of its own, not the embedding")
    add("--seq-len", type=number(int, 2, 2**20), default=256, metavar="N", help="(default 256)")
    learning.add_training(parser, steps=1000, batch=32, rate=5e-4, warmup=100)
    return parser.parse_args(list(joined(argv, parser)))
