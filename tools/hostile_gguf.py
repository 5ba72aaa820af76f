"""Hostile GGUF files: valid ones of several kinds, and damage in their metadata and tensors.

hostile.py uses this, and damages the bytes of the same files.
"""

from __future__ import annotations

import struct
import warnings
from functools import cache
from pathlib import Path
from random import Random

import numpy as np

from llama2np.formats import gguf, inspection
from llama2np.formats.checkpoint import CheckpointError
from llama2np.formats.gguf.from_source import write_gguf
from llama2np.formats.gguf.source import read_source
from llama2np.formats.gguf.types import TYPES
from llama2np.formats.gguf.write import NewTensor, packed, write
from llama2np.formats.source import Stored
from llama2np.formats.write import write_bin
from llama2np.model.config import MAX_LAYERS
from llama2np.model.gguf_blocks import FORMATS
from llama2np.model.transformer import State, Transformer
from llama2np.text.tokenizer import Tokenizer, TokenizerError
from tools.scratch import written

OURS = (CheckpointError, TokenizerError)
PARTS = tuple(f"model-{i:05d}-of-00002.gguf" for i in (1, 2))
Metadata = dict[str, bytes]
_NUMBERS = [0, 1, 2, 3, 4, 5, 8, 9, 31, 32, 64, 255, 256, 257, 1024, MAX_LAYERS + 1, 2**15, 2**16]
_NUMBERS += [2**24, 2**27, 2**31 - 1, 2**31, 2**32 - 1]
_TEXTS = ["", "llama", "gpt2", "bert", "yarn", "linear", "none", "mamba", "\x1b[2J", "x" * 300]
_PIECES = ["<unk>", "<s>", "</s>", "▁", "A", "B", "AB", "▁A", "▁AB", "é"]


def exercise(path: Path) -> None:
    """Read a file in every way, and use the result. Raises one of OURS if it is rejected."""
    file = gguf.read(path)
    for value in file.metadata.values():
        repr(value)
    for tensor in file.tensors.values():
        try:
            for _ in tensor.stored().blocks():
                pass
        except CheckpointError:
            pass  # a type that cannot be read
    try:
        use(Tokenizer.load(path))
    except TokenizerError as error:
        if not str(error).isprintable():
            raise AssertionError(f"an error that is not one clean line: {error!r}") from error
    source = read_source(path)
    for line in inspection.describe(path):
        if not line.isprintable():
            raise AssertionError(f"inspect says {line!r}")
    config, weights = gguf.load(path)
    if config.architecture != "bert":
        model = Transformer(config, weights, engine="numpy")
        tokens = [token % config.vocab_size for token in (1, 0, 2, 1, 5)]
        with np.errstate(all="ignore"):
            model.forward(tokens[: config.seq_len], State(config))
    out = path.with_suffix(".out")
    for write_it in (
        lambda: write_gguf(source, out, "Q4_1"),
        lambda: write_gguf(source, out, "F32"),
        lambda: write_bin(source, out, 1),
    ):
        try:
            write_it()
        except OURS:
            continue


def use(tokenizer: Tokenizer) -> None:
    """Encode and decode some texts."""
    for text in ("", "AB abc", "naïve 日本 \0 <0x41>"):
        tokens = tokenizer.encode(text, eos=True)
        if not all(0 <= token < tokenizer.vocab_size for token in tokens):
            raise AssertionError(f"{text!r} becomes {tokens}")
        tokenizer.decode(tokens)
    tokenizer.decode(range(tokenizer.vocab_size))


def damaged(random: Random) -> bytes:
    """A file with another value of one to three keys, or other tensors; its layout is right."""
    metadata, tensors = (type(part)(part) for part in random.choice(_files()))
    for _ in range(random.randint(1, 3)):
        key, at = random.choice(list(metadata)), random.randrange(len(tensors))
        tensor = tensors[at]
        kind = random.randrange(6)
        if kind == 0:
            metadata.pop(key)
            metadata["another"] = b"\4\0\0\0" + bytes(4)
        elif kind == 1:
            metadata[random.choice((key, f"{key}.x", "general.alignment"))] = _value(random)
        elif kind in (2, 3):
            metadata[key] = packed(random.choice(_NUMBERS))
        elif kind == 4:
            shape = tuple(random.choice((n, 1, 2, 32, 256)) for n in tensor.stored.shape)
            tensors[at] = _new(tensor.name, tensor.type, shape, random)
        else:
            name = random.choice((tensor.name, tensors[0].name, "blk.0.attn_qkv.weight", "x\x1b"))
            type_name = random.choice([each.name for each in TYPES.values()])
            tensors[at] = _new(name, type_name, tensor.stored.shape, random)
    return _bytes(metadata, tensors)


def _value(random: Random) -> bytes:
    """A value of any type."""
    number = random.choice(_NUMBERS)
    return random.choice(
        (
            packed(random.random() < 0.5),
            packed(random.choice(_TEXTS)),
            packed(random.choice((0.0, -1.0, 1e-30, 3e38, float("inf"), float("nan")))),
            packed([random.choice(_TEXTS) for _ in range(random.choice((0, 3, 20)))]),
            packed(np.full(random.choice((0, 1, 2, 20)), number % 2**31, "<i4")),
            packed(np.full(random.choice((0, 8, 20)), random.random(), "<f4")),
            struct.pack("<Iq", 11, -number),
            struct.pack("<IQ", 10, 2**63 + number),
            struct.pack("<I", random.choice((9, 13, 2**31))) + random.randbytes(12),
        )
    )


def _new(name: str, kind: str, shape: tuple[int, ...], random: Random) -> NewTensor:
    """A tensor of random bytes of the right size, or nearly."""
    each = next(each for each in TYPES.values() if each.name == kind)
    size = int(np.prod(shape)) // each.values * each.nbytes
    data = np.frombuffer(random.randbytes(max(size, 1)), np.uint8)
    return NewTensor(name, kind, Stored(shape, kind, size, lambda start, end: data), data[:size])


def files() -> list[bytes]:
    """Small valid files."""
    return [_bytes(*file) for file in _files()]


def parts(random: Random | None = None) -> dict[str, bytes]:
    """A file in two parts; with `random`, one of the keys about parts has another value."""
    metadata, tensors = _files()[1]
    half, made = len(tensors) // 2, {}
    for i, some in enumerate((tensors[:half], tensors[half:])):
        numbers = {"no": i, "count": 2, "tensors.count": len(tensors)}
        keys = {f"split.{key}": packed(number) for key, number in numbers.items()}
        if random is not None and random.random() < 0.5:
            value = random.choice((_value(random), packed(random.choice(_NUMBERS))))
            keys[random.choice(list(keys))] = value
        made[PARTS[i]] = _bytes(({} if i else metadata) | keys, some)
    return made


def _bytes(metadata: Metadata, tensors: list[NewTensor]) -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # random bytes may be nan
        return written(lambda path: write(path, metadata, tensors))


@cache
def _files() -> list[tuple[Metadata, list[NewTensor]]]:
    llama = _network("llama", 32, {}, "F32")
    blocks = _network("llama", 32, {}, "Q4_0")
    mixture = _network("llama", 32, {"expert_count": 3, "expert_used_count": 2}, "Q8_0")
    wide = _network("qwen2", 256, {}, "Q4_K")
    gpt2 = _network("gpt2", 32, {}, "F16")
    each = [_new(kind, kind, (2, 256), Random(kind)) for kind in FORMATS]  # not a network
    return [llama, blocks, mixture, wide, gpt2, ({"general.name": packed("x")}, each)]


def _network(
    name: str, dim: int, keys: dict[str, int], kind: str
) -> tuple[Metadata, list[NewTensor]]:
    """A network of two layers, of random weights; its wide rows are of that type."""
    random = np.random.default_rng(0)
    metadata, tensors = _metadata(name, dim, keys), []
    for tensor, shape in _shapes(name, dim, keys.get("expert_count", 0)).items():
        values = random.standard_normal(shape, np.float32) * np.float32(0.2)
        if len(shape) == 1 or "inp" in tensor or "position" in tensor:
            tensors.append(NewTensor(tensor, "F32", Stored.view(values)))
        elif kind == "Q4_K" and shape[-1] == 256:
            tensors.append(_scaled(tensor, shape))
        else:
            plain = "Q8_0" if kind == "Q4_K" else kind
            tensors.append(NewTensor(tensor, plain, Stored.view(values)))
    return metadata, tensors


def _metadata(name: str, dim: int, keys: dict[str, int]) -> Metadata:
    eps = "layer_norm_epsilon" if name == "gpt2" else "layer_norm_rms_epsilon"
    numbers = {"context_length": 16, "embedding_length": dim, "feed_forward_length": 32}
    numbers |= {"block_count": 2, "attention.head_count": 2, "attention.head_count_kv": 2}
    numbers |= {"attention.key_length": 16, "attention.value_length": 16}
    values = numbers | keys | {f"attention.{eps}": 1e-5, "rope.freq_base": 1e4}
    metadata = {"general.architecture": packed(name), "general.alignment": packed(32)}
    metadata |= {f"{name}.{key}": packed(value) for key, value in values.items()}
    metadata |= {"tokenizer.ggml.model": packed("llama"), "tokenizer.ggml.tokens": packed(_PIECES)}
    metadata["tokenizer.ggml.scores"] = packed(-np.arange(10, dtype="<f4"))
    metadata["tokenizer.ggml.token_type"] = packed(np.array([2, 3, 3] + [1] * 7, "<i4"))
    if name == "gpt2":
        metadata["tokenizer.ggml.model"] = packed("gpt2")
        metadata["tokenizer.ggml.merges"] = packed(["A B"])
    metadata |= {f"tokenizer.ggml.{n}_token_id": packed(i) for n, i in (("bos", 1), ("eos", 2))}
    metadata["tokenizer.chat_template"] = packed(
        "{% for m in messages %}{{ m.content }}{% endfor %}"
    )
    return metadata


def _shapes(name: str, dim: int, experts: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (10, dim)}
    shapes["output_norm.weight"] = (dim,)
    if name == "gpt2":
        shapes |= {"position_embd.weight": (16, dim), "output_norm.bias": (dim,)}
    block: dict[str, tuple[int, ...]] = {"attn_norm": (dim,), "ffn_norm": (dim,)}
    block["attn_output"] = (dim, 32)
    if name == "gpt2":
        block |= {"attn_qkv": (96, dim), "ffn_up": (32, dim), "ffn_down": (dim, 32)}
    else:
        block |= dict.fromkeys(("attn_q", "attn_k", "attn_v"), (32, dim))
        stack = (experts,) if experts else ()
        last = "_exps" if experts else ""
        block |= dict.fromkeys((f"ffn_gate{last}", f"ffn_up{last}"), (*stack, 32, dim))
        block[f"ffn_down{last}"] = (*stack, dim, 32)
        if experts:
            block["ffn_gate_inp"] = (experts, dim)
    return shapes | {f"blk.{i}.{k}.weight": shape for i in range(2) for k, shape in block.items()}


def _scaled(name: str, shape: tuple[int, ...]) -> NewTensor:
    """A tensor of random bytes in Q4_K, with finite scales."""
    made = _new(name, "Q4_K", shape, Random(name))
    data = made.raw.copy().reshape(-1, FORMATS["Q4_K"].nbytes)
    data[:, :4] = np.array([0.01, 0.05], "<f2").view(np.uint8)
    return NewTensor(name, "Q4_K", made.stored, data.reshape(-1))
