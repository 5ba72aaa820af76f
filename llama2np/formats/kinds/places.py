"""The places where a file is expected, and the kinds that the reader of each place can read."""

from __future__ import annotations

from dataclasses import dataclass

# What a file is for.
MODEL, TOKENIZER, STATE, OTHER = "model", "tokenizer", "state", ""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a file is expected: a description of it, and the kinds that the reader there reads."""

    expected: str
    role: str
    reads: tuple[str, ...]  # ids of kinds; for these the reader has better errors than the table
    is_part: bool = False  # whether it is a file in a model's folder
    version: int | None = None  # the version of .bin that is required, if only one is accepted


_JSON_TOKENIZERS = ("tokenizer.json", "vocab.json")
_TOKENIZERS = ("tokenizer.bin", "merges", "vocab.txt", *_JSON_TOKENIZERS)
_TORCH = ("trainer", "torch", "torch-old", "pickle")
PLACES = {
    "model": Place("a llama2.c checkpoint", MODEL, ("llama2c",)),
    "int8": Place("a llama2.c checkpoint", MODEL, ("llama2c",), version=2),
    "checkpoint": Place("a torch file of llama2.c's training script", MODEL, _TORCH),
    "hf": Place("a Hugging Face folder", MODEL, ("hf",)),
    "meta": Place("a folder in Meta's format", MODEL, ("meta",)),
    "gguf": Place("a GGUF file", MODEL, ("gguf",)),
    "any": Place(
        "a llama2.c checkpoint or another kind that export reads",
        MODEL,
        (*_TORCH, "llama2c", "gguf", "safetensors", "hf", "meta"),
    ),
    "tokenizer": Place(
        "a tokenizer.json, tokenizer.bin or sentencepiece model",
        TOKENIZER,
        ("sentencepiece", *_TOKENIZERS),
    ),
    "sentencepiece": Place("a sentencepiece model", TOKENIZER, ("sentencepiece",)),
    "state": Place("a saved state", STATE, ("state",)),
    "text": Place("a text in UTF-8", OTHER, ("text",)),
    "torch": Place("a torch file", MODEL, _TORCH, is_part=True),
    "safetensors": Place("a safetensors file", MODEL, ("safetensors",), is_part=True),
    "json": Place("a JSON file", MODEL, ("json", *_JSON_TOKENIZERS), is_part=True),
}
