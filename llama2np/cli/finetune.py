"""The command `finetune`: train a model further, on texts or to classify them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from llama2np import box
from llama2np.analysis.metrics import Report
from llama2np.cli import learning
from llama2np.cli.flags import (
    Parser,
    choice,
    flag_value,
    guarded,
    joined,
    number,
    path_value,
    text_value,
)
from llama2np.cli.model import MODEL_HELP, TOKENIZER_HELP
from llama2np.learning import corpus
from llama2np.learning.examples import Examples, Labelled
from llama2np.learning.finetuning import MODES, Finetuning, LowRank
from llama2np.learning.lora import TARGETS
from llama2np.learning.trainer import Trainer, predictions, score

_TASKS = "text", "classify"


def main(argv: Sequence[str], prog: str) -> int:
    """Train a model further; return the exit status."""
    return guarded(prog, lambda: _finetune(_parse(argv, prog)))


def _finetune(options: argparse.Namespace) -> None:
    if options.adapter and (options.train != "lora" or options.task != "text"):
        raise ValueError("--adapter is for --task text --train lora: a head has no adapter file")
    learning.check_plot(options)
    (_classify if options.task == "classify" else _on_text)(options)


def _tuning(options: argparse.Namespace, labels: tuple[str, ...] = ()) -> Finetuning:
    targets = tuple(options.targets.split(","))
    low_rank = LowRank(options.rank, options.alpha, targets)
    tuning = Finetuning(
        options.model, options.train, labels, low_rank, options.tokenizer, options.seed
    )
    if not options.adapter:
        tuning.check_writable()
    return tuning


def _on_text(options: argparse.Namespace) -> None:
    tuning, out = _tuning(options), options.out
    out.mkdir(parents=True, exist_ok=True)
    length = min(options.seq_len, tuning.program.config.seq_len)
    read = []
    for name, path in (("tokens.bin", options.data), ("dev.bin", options.dev)):
        if path is not None:
            corpus.write_tokens(out / name, [path], lambda text: tuning.tokenizer.encode(text))
            read.append(corpus.Windows(out / name, length, options.batch, options.seed))
    windows, *dev = read
    per_epoch = max(len(windows) // (length * options.batch), 1)
    trainer = _trainer(options, tuning, windows, per_epoch)
    for held_out in dev:
        _tell_score(tuning, held_out, "before")
    learning.run(trainer, options.every)
    for held_out in dev:
        _tell_score(tuning, held_out, "after")
    print(f"loss of the last step: {trainer.losses[-1]:.4f}")
    learning.draw(options, trainer)
    _write(options, tuning)


def _tell_score(tuning: Finetuning, held_out: corpus.Windows, when: str) -> None:
    found = score(tuning.program, tuning.parameters, held_out.all(), **tuning.options)
    print(f"held out, {when}: {found.loss:.4f} nats per token, over {found.count:,} tokens")


def _classify(options: argparse.Namespace) -> None:
    names = tuple(options.labels.split(",")) if options.labels else ()
    examples = Examples.read(options.data, names)
    dev_examples = None if options.dev is None else Examples.read(options.dev, examples.names)
    tuning = _tuning(options, examples.names)
    options.out.mkdir(parents=True, exist_ok=True)
    train = _labelled(options, tuning, examples, "tokens.bin")
    dev = None if dev_examples is None else _labelled(options, tuning, dev_examples, "dev.bin")
    trainer = _trainer(options, tuning, train, train.per_epoch)
    count = f"{len(examples):,} texts, {len(examples.names)} labels"
    print(f"{count}, {sum(a.size for a in tuning.parameters.values()):,} trained parameters")
    end, each = trainer.settings.steps, -(-train.per_epoch // options.accumulate)
    while trainer.step < end:
        done = trainer.step // each + 1
        learning.run(trainer, options.every, min(done * each, end))
        last = trainer.losses[-each:]
        told = f"epoch {done}: loss {sum(last) / len(last):.4f}"
        if dev is not None:
            found = score(tuning.program, tuning.parameters, dev.all(), **tuning.options)
            told += f", dev loss {found.loss:.4f}, dev accuracy {found.accuracy:.4f}"
        print(told, flush=True)
    if dev is not None and dev_examples is not None:
        found_labels = predictions(tuning.program, tuning.parameters, dev.all(), **tuning.options)
        for line in Report.of(found_labels, dev_examples.labels, examples.names).lines():
            print(line)
    learning.draw(options, trainer)
    _write(options, tuning)


def _labelled(
    options: argparse.Namespace, tuning: Finetuning, examples: Examples, name: str
) -> Labelled:
    """Batches of labelled texts, whose tokens are written to a file of that name."""
    longest = min(options.seq_len, tuning.program.config.seq_len)
    how = tuning.tokenizer.encode, options.batch, longest, options.seed
    with learning.progress(len(examples), " texts") as told:
        return Labelled(examples, *how, options.out / name, told)


def _trainer(
    options: argparse.Namespace,
    tuning: Finetuning,
    data: Labelled | corpus.Windows,
    per_epoch: int,
) -> Trainer:
    steps = options.steps or max(options.epochs * per_epoch // options.accumulate, 1)
    trainer = Trainer(
        *(tuning.program, tuning.parameters, data, learning.settings_of(options, steps)),
        checkpoint=options.out / "training.npz",
        log=options.out / "losses.jsonl",
        threads=options.threads,
        allow_change=options.allow_change,
        **tuning.options,
    )
    learning.tell_start(trainer)
    return trainer


def _write(options: argparse.Namespace, tuning: Finetuning) -> None:
    if options.adapter:
        tuning.write_adapter(options.out)
        print(f"wrote {options.out / 'adapter_model.safetensors'}")
        return
    for path in tuning.write(options.out):
        print(f"wrote {path}")


def _parse(argv: Sequence[str], prog: str) -> argparse.Namespace:
    parser = Parser(
        prog=prog,
        description="Train a model further, on a text or to classify texts. If it is interrupted, "
        "the same command goes on from the last checkpoint.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("model", help=f"{MODEL_HELP}, or a folder (as {box.STORIES})")
    add("out", type=Path, help="the folder for the result and the checkpoint")
    add(
        "--data",
        type=path_value,
        required=True,
        metavar="FILE",
        help="for text: UTF-8, in which lines of <|endoftext|> end texts; to classify: lines of "
        "`label ||| sentence`, or a .csv or .jsonl with text and label",
    )
    add("--dev", type=path_value, metavar="FILE", help="such a file that is not trained on")
    _choice(parser, "--task", _TASKS, "what to learn")
    _choice(parser, "--train", MODES, "what is trained: all, only the head, or low-rank parts")
    add("--labels", type=text_value, metavar="A,B", help="names of the labels 0, 1 ...")
    add("--rank", type=number(int, 1, 4096), default=8, metavar="R", help="LoRA's (default 8)")
    add("--alpha", type=number(float, 0, None), default=16.0, metavar="X", help="(default 16)")
    told = ",".join(TARGETS)
    add("--targets", type=flag_value, default=f".{told}", metavar="A,B", help=f"(default {told})")
    add("--adapter", action="store_true", help="write LoRA as PEFT's adapter, not merged")
    add("-z", "--tokenizer", type=flag_value, metavar="FILE", help=TOKENIZER_HELP)
    add("--seq-len", type=number(int, 2, 2**20), default=256, metavar="N", help="(default 256)")
    add("--epochs", type=number(int, 1, None), default=3, metavar="N", help="(default 3)")
    training = {"steps": None, "batch": 16, "rate": 3e-4, "warmup": 10, "weight_decay": 0.01}
    learning.add_training(parser, **training)
    return parser.parse_args(list(joined(argv, parser)))


def _choice(parser: argparse.ArgumentParser, flag: str, known: Sequence[str], text: str) -> None:
    parser.add_argument(
        flag,
        type=choice(*known),
        default=f".{known[0]}",  # argparse parses it, as a value that `joined` has rewritten
        metavar="NAME",
        help=f"{text}: {', '.join(known)} (default {known[0]})",
    )
