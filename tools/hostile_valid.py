"""Small valid files of every kind that can be read, as bytes."""

from __future__ import annotations

import io
import json
import pickle
import struct
from argparse import Namespace
from collections import OrderedDict, defaultdict
from decimal import Decimal
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from llama2np.formats import meta, safetensors
from llama2np.formats.checkpoint import Header, load, save
from llama2np.formats.huggingface.writing import llama_names
from llama2np.model.config import Config
from llama2np.model.transformer import State, Transformer
from tools import faults, hostile_folders, hostile_gguf, hostile_tokenizers, hostile_training
from tools.scratch import written
from tools.torch_files import Tensor, pickled, write_archive

Case = dict[str, bytes | str]
MAIN = {  # the file that every case of a kind has
    **{"bin": "model.bin", "tokenizer.bin": "tokenizer.bin", "tokenizer.model": "tokenizer.model"},
    **{"torch": "model.pt", "safetensors": "model.safetensors", "hf": "config.json"},
    **{"meta": "params.json", "gguf": "model.gguf", "state": "state.npz"},
    "training": hostile_training.CHECKPOINT,
}
SMALL = Config(8, 12, 2, 2, 1, 20, 16)
WIDE = Config(64, 64, 1, 2, 2, 20, 16)  # its groups of 32 take the fast int8 kernels


@cache
def valid(kind: str) -> list[Case]:
    """Small valid cases of a kind."""
    return {
        "bin": _bins,
        "tokenizer.bin": lambda: [{"tokenizer.bin": _tokenizer_bin(n)} for n in (3, 20, 300)],
        "tokenizer.model": _sentencepiece_models,
        "tokenizer folder": hostile_tokenizers.folders,
        "torch": _torch_files,
        "safetensors": lambda: [{"model.safetensors": _safetensors(_hf_tensors())}],
        "hf": _hf_folders,
        "meta": _meta_folders,
        "gguf": lambda: [{"model.gguf": data} for data in hostile_gguf.files()[:-1]],
        "gguf parts": lambda: [hostile_gguf.parts()],
        "state": _states,
        "training": hostile_training.checkpoints,
        "examples": hostile_training.examples,
        "kernel-cache": lambda: [{"kernel.nbc": faults.sealed_file()}],
        "write-failure": _write_failures,
        "special": lambda: [case for each in MAIN for case in valid(each)],
    }[kind]()


def random_tensors(header: Header) -> dict:
    random, tensors = np.random.default_rng(0), {}
    for name, shape in header.tensors():
        values = random.standard_normal(shape, np.float32) * np.float32(0.2)
        if header.quantized(name):
            scales = np.full((*shape[:-1], shape[-1] // header.group_size), 0.01, np.float32)
            tensors[name] = random.integers(-127, 128, shape, np.int8), scales
        else:
            tensors[name] = values + ("norm" in name)
    return tensors


def _bins() -> list[Case]:
    other = Config(8, 12, 2, 2, 1, 20, 16, 5e5, 1e-6)
    headers = [Header(0, SMALL, True), Header(0, SMALL, False), Header(1, other, True)]
    headers += [Header(2, SMALL, False, 4), Header(2, WIDE, True, 32)]
    cases = []
    for header in headers:
        cases.append({"model.bin": _bin(header), "tokenizer.bin": _tokenizer_bin(20)})
    return cases


def _bin(header: Header) -> bytes:
    return written(lambda path: save(path, header, random_tensors(header)))


def _tokenizer_bin(count: int) -> bytes:
    pieces = [b"<unk>", b"\n<s>\n", b"\n</s>\n"]
    pieces += [b"<0x%02X>" % byte for byte in range(256)] if count > 259 else []
    pieces += [b" ", b"A", b"B", b"AB", b" A", b" AB", "é".encode()][: count - len(pieces)]
    pieces += [b"w%d" % i for i in range(count - len(pieces))]
    data = struct.pack("<I", max(map(len, pieces)))
    return data + b"".join(struct.pack("<fi", -i, len(p)) + p for i, p in enumerate(pieces))


def _sentencepiece_models() -> list[Case]:
    import sentencepiece

    cases = []
    other_ids = dict(pad_id=0, unk_id=1, bos_id=2, eos_id=-1, byte_fallback=False)
    for rule, options in (("identity", {}), ("nmt_nfkc", {}), ("nmt_nfkc_cf", other_ids)):
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(["the cat sat on the mat, and the other cat ate it"]),
            model_writer=model,
            model_type="bpe",
            vocab_size=300,
            normalization_rule_name=rule,
            hard_vocab_limit=False,
            minloglevel=2,
            **{"byte_fallback": True} | options,
        )
        cases.append({"tokenizer.model": model.getvalue()})
    config = {"added_tokens_decoder": {"300": {"content": "<pad>", "special": True}}}
    files = {"added_tokens.json": {"<a>": 301, "<b>": 305}, "tokenizer_config.json": config}
    encoded = {name: json.dumps(fields).encode() for name, fields in files.items()}
    return [*cases, cases[0] | encoded]


def _named(names) -> dict[str, np.ndarray]:
    """The tensors of SMALL; `names` maps our names to the names of the result."""
    stacked = random_tensors(Header(1, SMALL, False))
    found = {}
    for ours, theirs in names:
        name, layer = parts_of(ours)
        found[theirs] = stacked[name][int(layer)] if layer else stacked[name]
    return found


def parts_of(name: str) -> tuple[str, str]:
    """("wq", "2") of "layers.2.wq"; the layer of other tensors is ""."""
    if not name.startswith("layers."):
        return name, ""
    _, layer, base = name.split(".")
    return base, layer


def _hf_tensors() -> dict[str, np.ndarray]:
    return _named(llama_names(SMALL))


def _meta_tensors() -> dict[str, np.ndarray]:
    theirs = {ours: name for name, ours in meta._NAMES.items()}
    names = []
    for ours, _ in llama_names(SMALL):
        name, layer = parts_of(ours)
        names.append((ours, f"{f'layers.{layer}.' if layer else ''}{theirs[name]}.weight"))
    return _named(names)


def _safetensors(tensors: dict[str, np.ndarray]) -> bytes:
    shapes = {name: values.shape for name, values in tensors.items()}
    start = safetensors.header_for(shapes, np.dtype("<f4"))
    return start + b"".join(values.tobytes() for values in tensors.values())


def torch_archive(content: bytes, data: dict[str, bytes]) -> bytes:
    files = {"data.pkl": content, "byteorder": b"little", "version": b"3\n"}
    files |= {f"data/{key}": values for key, values in data.items()}
    return written(lambda path: write_archive(path, files), "x.pt")


def _records(tensors: dict[str, np.ndarray]) -> tuple[dict[str, Tensor], dict[str, bytes]]:
    records = {n: Tensor(str(i), "float32", v.shape) for i, (n, v) in enumerate(tensors.items())}
    return records, {records[name].key: values.tobytes() for name, values in tensors.items()}


@cache
def trainer_file() -> tuple[bytes, dict[str, bytes]]:
    """The pickle of a checkpoint of llama2.c's train.py, and its storages."""
    records, data = _records(_meta_tensors())
    arguments = {"dim": 8, "n_layers": 2, "n_heads": 2, "n_kv_heads": 1, "max_seq_len": 16}
    return pickled({"model": records, "model_args": arguments | {"norm_eps": 1e-5}}), data


@cache
def extra_file() -> tuple[bytes, dict[str, bytes]]:
    """The same with other data that training programs store beside the weights."""
    content, data = trainer_file()
    objects = [np.float32(1.5), np.dtype("f4"), np.zeros(2), {1, 2}, Decimal("1.5"), Path("x")]
    objects += [Namespace(a=1), OrderedDict(a=1), defaultdict(list), {0.5: (1, "x")}, range(3)]
    extras = b"".join(b"X\1\0\0\0x" + pickle.dumps(objects, n)[:-1] + b"s" for n in (4, 2))
    return content[:-1] + extras + b".", data


def _torch_files() -> list[Case]:
    return [{"model.pt": torch_archive(*file())} for file in (trainer_file, extra_file)]


def _hf_folders() -> list[Case]:
    config = {"model_type": "llama", "hidden_size": 8, "intermediate_size": 12}
    config |= {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    config |= {"vocab_size": 20, "max_position_embeddings": 16, "rms_norm_eps": 1e-5}
    config |= {"rope_theta": 1e4, "rope_parameters": {"rope_type": "default"}, "head_dim": 4}
    described, tensors = json.dumps(config).encode(), _hf_tensors()
    shards, places = [{}, {}], {}
    for i, (name, values) in enumerate(tensors.items()):
        shards[i % 2][name], places[name] = values, f"part{i % 2}.safetensors"
    index = json.dumps({"metadata": {}, "weight_map": places}).encode()
    parts = {f"part{i}.safetensors": _safetensors(shard) for i, shard in enumerate(shards)}
    return [
        {"config.json": described, "model.safetensors": _safetensors(tensors)},
        {"config.json": described, "model.safetensors.index.json": index, **parts},
        *(
            {"config.json": json.dumps(c).encode(), "model.safetensors": _safetensors(tensors)}
            for c, tensors in hostile_folders.folders()
        ),
    ]


def _meta_folders() -> list[Case]:
    params = {"dim": 8, "n_layers": 2, "n_heads": 2, "n_kv_heads": 1, "norm_eps": 1e-5}
    records, data = _records(_meta_tensors())
    shard = torch_archive(pickled(records), data)
    described = json.dumps(params).encode()
    return [{"params.json": described, "consolidated.00.pth": shard}]


def _states() -> list[Case]:
    with TemporaryDirectory(prefix="llama2np-scratch-") as folder:
        path, header = Path(folder) / "x.bin", Header(1, SMALL, True)
        save(path, header, random_tensors(header))
        transformer, cases = Transformer(*load(path)), []
    for count in (0, 1, SMALL.seq_len):
        state = State(SMALL)
        if count:
            transformer.forward([3] * count, state)
        cases.append({"state.npz": written(state.save, "x.npz")})
    return cases


def _write_failures() -> list[Case]:
    files = valid("bin")[0] | valid("tokenizer.model")[0]
    return [files | {"fault.json": faults.write_fault()}]
