"""Tokenizers made from texts: sentencepiece BPE as llama2.c makes its own, and byte-level BPE."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterable, Iterator

from llama2np.atomic import write_file

StrPath = str | os.PathLike[str]
MOST = 2**29  # characters that a tokenizer is trained on; later ones change little


def train_sentencepiece(texts: Iterable[str], path: StrPath, vocab_size: int) -> None:
    """Write a sentencepiece model, tokenizer.model, with the options of llama2.c's tinystories.py.

    Raises ValueError if the texts do not have so many pieces, and OSError.
    """
    import sentencepiece

    model = io.BytesIO()
    lines = (line for text in _beginning(texts) for line in text.split("\n"))
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=lines,
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            character_coverage=1.0,
            byte_fallback=True,
            split_digits=True,
            allow_whitespace_only_pieces=True,
            normalization_rule_name="identity",
            unk_surface=r" \342\201\207 ",
            self_test_sample_size=0,
            num_threads=1,  # more of them make the result depend on the machine
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        raise ValueError(f"a tokenizer of {vocab_size:,} pieces: sentencepiece: {error}") from None
    write_file(path, model.getvalue())


def _beginning(texts: Iterable[str]) -> Iterator[str]:
    """The first texts, up to MOST characters: the trainers hold in memory what they read."""
    size = 0
    for text in texts:
        yield text
        size += len(text)
        if size >= MOST:
            return


def train_byte_level(texts: Iterable[str], path: StrPath, vocab_size: int) -> None:
    """Write a byte-level BPE, tokenizer.json, as GPT-2 has it (Radford et al. 2019).

    <unk>, <s> and </s> are the tokens 0, 1 and 2, as in Llama's; <s> begins each text. This needs
    the package `tokenizers`. Raises ValueError without it, and OSError.
    """
    try:
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    except ImportError as error:
        raise ValueError(
            f"byte-level BPE needs the package tokenizers ({error}): "
            f"{sys.executable} -m pip install tokenizers"
        ) from None
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        show_progress=False,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(_beginning(texts), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
    )
    write_file(path, tokenizer.to_str(pretty=True).encode())
