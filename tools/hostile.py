"""Hostile files: valid files of every kind that can be read, with typical damage.

A case is a dictionary {file name: bytes} for a folder. In place of bytes, a name of odd.SPECIAL
means something that is not a regular file. `exercise` uses a case.
"""

from __future__ import annotations

import io
import json
import pickle
import struct
import warnings
import zipfile
from argparse import Namespace
from collections import OrderedDict, defaultdict
from copy import deepcopy
from decimal import Decimal
from functools import cache
from pathlib import Path
from random import Random

import numpy as np

from llama2np.formats import huggingface, inspection, llama2c, meta, safetensors
from llama2np.formats.checkpoint import CheckpointError, CheckpointWarning, Header, load, save
from llama2np.formats.huggingface.writing import llama_names
from llama2np.formats.torch_zip import TorchFile
from llama2np.formats.write import write_bin, write_huggingface
from llama2np.llama import Llama
from llama2np.model.config import Config
from llama2np.model.transformer import State, Transformer
from llama2np.text.tokenizer import Tokenizer, TokenizerError
from tools import faults, hostile_folders, hostile_gguf, hostile_tokenizers, odd
from tools.torch_files import Tensor, pickled, write_archive

Case = dict[str, bytes | str]
OURS = (CheckpointError, TokenizerError)
_MAIN = {  # the file that every case of a kind has
    **{"bin": "model.bin", "tokenizer.bin": "tokenizer.bin", "tokenizer.model": "tokenizer.model"},
    **{"torch": "model.pt", "safetensors": "model.safetensors", "hf": "config.json"},
    **{"meta": "params.json", "gguf": "model.gguf", "state": "state.npz"},
}
KINDS = (*_MAIN, "gguf parts", "tokenizer folder", "special", "kernel-cache", "write-failure")
SMALL = Config(8, 12, 2, 2, 1, 20, 16)
WIDE = Config(64, 64, 1, 2, 2, 20, 16)  # its groups of 32 take the fast int8 kernels

# Values that often break parsers: extreme sizes and signs, words of the formats.
_NUMBERS = [0, 1, 2, 3, 64, 255, 256, 2**15, 2**16, 2**24, 2**27, 2**31 - 1, 2**31, 2**32 - 1]
_NUMBERS += [2**40, 2**47, 2**48 - 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1]
_FLOATS = [float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1e-45, 3e38, -1e30]
_WORDS = [b"24ka", b"l2np", b"PK\1\2", b"PK\3\4", b"PK\5\6", b"PK\6\6", b"\x80\2", b"}", b"]", b")"]
_WORDS += [b"(", b"\x85", b"q\0", b"h\0", b"t", b"R", b"u", b"s", b"N", b".", b"ccollections\nO\n"]
_WORDS += [b"null", b"[]", b"{}", b"[" * 400, b"-1", b"1e999", b"NaN", b'"', b"\\ud800", b"\\u001b"]
_WORDS += [b"9" * 5000, b"\xff" * 10, b"\xe2\x96\x81", b"<0xFF>", b"<0xZZ>"]
_VALUES = [None, True, False, 0, -1, 1, 3, 2**31, 2**63, 2**200, 0.5, -1.5, 1e308, float("nan")]
_VALUES += ["", "llama", "\x1b[2J", "\ud800", "x" * 300, [], [[]], {}, {"a": []}, [0] * 70]


def exercise(kind: str, folder: Path) -> None:
    """Read a case with every reader of its kind, and use the result.

    Raises one of OURS if the case is rejected. Any other exception is a finding.
    """
    {
        "bin": _exercise_bin,
        "tokenizer.bin": lambda f: _exercise_tokenizer(f / "tokenizer.bin"),
        "tokenizer.model": lambda f: _exercise_tokenizer(f / "tokenizer.model"),
        "tokenizer folder": hostile_tokenizers.exercise,
        "torch": _exercise_torch,
        "safetensors": lambda f: _exercise_safetensors(f / "model.safetensors"),
        "hf": _exercise_folder,
        "meta": lambda f: _convert(f, meta.read),
        "gguf": lambda f: hostile_gguf.exercise(f / "model.gguf"),
        "gguf parts": lambda f: hostile_gguf.exercise(f / hostile_gguf.PARTS[0]),
        "state": _exercise_state,
        "kernel-cache": faults.exercise_cache,
        "write-failure": faults.exercise_write,
        "special": _exercise_special,
    }[kind](folder)


def write_case(case: Case, folder: Path) -> int:
    """Write the files of a case; return their size."""
    for name, data in case.items():
        if isinstance(data, str):
            odd.put_special(folder / name, data)
        else:
            (folder / name).write_bytes(data)
    return sum(map(len, case.values()))


def damaged(kind: str, random: Random) -> Case:
    """A valid case of that kind, with one file damaged in one to four places."""
    case = dict(random.choice(valid(kind)))
    if kind == "write-failure":
        return case | {"fault.json": faults.write_fault(random)}
    name = random.choice(sorted(case))
    if kind == "special":
        case[name] = random.choice(odd.SPECIAL)
    elif kind in odd.MADE and random.random() < 0.5:
        case[name] = odd.MADE[kind](random)
    elif kind == "hf" and random.random() < 0.6:
        case["config.json"] = hostile_folders.damaged_config(case["config.json"], random)
    elif name.endswith(".json") and random.random() < 0.7:
        case[name] = _damaged_json(case[name], random)
    elif name.endswith(".safetensors") and random.random() < 0.6:
        case[name] = _damaged_header(case[name], random)
    elif name.endswith((".pt", ".pth")) and random.random() < 0.6:
        case[name] = _damaged_pickle(case[name], random)
    elif kind == "gguf" and random.random() < 0.6:
        case[name] = hostile_gguf.damaged(random)
    elif kind == "gguf parts" and random.random() < 0.6:
        case = dict(hostile_gguf.parts(random))
    elif kind == "bin" and random.random() < 0.3:
        case[name] = _any_shape(random)
    elif kind == "state" and random.random() < 0.7:
        case[name] = _damaged_arrays(case[name], random)
    else:
        others = [other for each in valid(random.choice(list(_MAIN))) for other in each.values()]
        case[name] = _damaged_bytes(case[name], random, random.choice(others))
    return case


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
        "kernel-cache": lambda: [{"kernel.nbc": faults.sealed_file(_scratch())}],
        "write-failure": _write_failures,
        "special": lambda: [case for each in _MAIN for case in valid(each)],
    }[kind]()


# Using the result


def _exercise_bin(folder: Path) -> None:
    path = folder / "model.bin"
    model = Llama.load(path, folder / "tokenizer.bin")
    tokens = [token % model.config.vocab_size for token in (1, 0, 2, 1, 5)]
    state = State(model.config)
    model.forward(tokens[: model.config.seq_len], state)
    for temperature in (0, 1):
        try:
            "".join(model.generate("AB", temperature=temperature, seed=1, max_new_tokens=4))
        except ValueError as error:
            if not any(said in str(error) for said in ("not finite", "the context holds")):
                raise
    _convert(path, llama2c.read_bin)


def _exercise_tokenizer(path: Path) -> None:
    hostile_gguf.use(Tokenizer.load(path))


def _exercise_torch(folder: Path) -> None:
    _read_all(folder / "model.pt", lambda path: TorchFile(path).tensors())
    _convert(folder / "model.pt", llama2c.read_pt)


def _exercise_safetensors(path: Path) -> None:
    expected = (
        odd.reference(path) if path.is_file() else None
    )  # not a FIFO, for which it would wait
    try:
        found = {name: tensor.shape for name, tensor in safetensors.read(path).items()}
    except CheckpointError as error:
        if expected is not None:
            raise AssertionError(f"the safetensors package accepts {expected}") from error
        raise
    if expected is None or found != {name: shape for name, (_, shape) in expected.items()}:
        raise AssertionError(f"the safetensors package finds {expected}, we find {found}")
    _read_all(path, safetensors.read)


def _exercise_special(folder: Path) -> None:
    """A case of another kind in which one file may not be regular."""
    there = {path.name for path in folder.iterdir()}
    kind = next(kind for kind, name in _MAIN.items() if name in there)
    try:
        exercise(kind, folder)
    except OSError as error:
        if not error.filename or not error.strerror:
            raise AssertionError("an error without the name of a file") from error


def _read_all(path: Path, read) -> None:
    for tensor in read(path).values():
        for _ in tensor.blocks():
            pass
    for line in inspection.describe(path):
        if not line.isprintable():
            raise AssertionError(f"inspect says {line!r}")


def _convert(path: Path, read) -> None:
    source = read(path)
    for line in inspection.describe(path):
        if not line.isprintable():
            raise AssertionError(f"inspect says {line!r}")
    out = path.parent / f"{path.name}.out"
    for version in (0, 1, 2):
        try:
            if version or source.config.seq_len < 2**16:  # larger tables take too long
                write_bin(source, out, version)
        except OURS:
            continue
    write_huggingface(source, out.with_suffix(".folder"))


def _exercise_folder(folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CheckpointWarning)  # of a head that is said to be tied
        hostile_folders.exercise(folder)
        _convert(folder, huggingface.read)


def _exercise_state(folder: Path) -> None:
    path, weights = folder / "state.npz", folder / "model.bin"
    try:
        state = State.load(path, SMALL)
    except ValueError as error:
        if not str(error).startswith(f"{path}: ") or not str(error).isprintable():
            raise AssertionError("not one of our errors") from error
        return
    save(weights, Header(1, SMALL, True), _tensors(Header(1, SMALL, True)))
    if state.pos < SMALL.seq_len:
        Transformer(*load(weights)).forward([1], state)


# Valid files


def _tensors(header: Header) -> dict:
    random, tensors = np.random.default_rng(0), {}
    for name, shape in header.tensors():
        values = random.standard_normal(shape, np.float32) * np.float32(0.2)
        if header.quantized(name):
            scales = np.full((*shape[:-1], shape[-1] // header.group_size), 0.01, np.float32)
            tensors[name] = random.integers(-127, 128, shape, np.int8), scales
        else:
            tensors[name] = values + ("norm" in name)
    return tensors


@cache
def _scratch() -> Path:
    import tempfile

    return Path(tempfile.mkdtemp(prefix="llama2np-valid-"))


def _bins() -> list[Case]:
    other = Config(8, 12, 2, 2, 1, 20, 16, 5e5, 1e-6)
    headers = [Header(0, SMALL, True), Header(0, SMALL, False), Header(1, other, True)]
    headers += [Header(2, SMALL, False, 4), Header(2, WIDE, True, 32)]
    cases = []
    for header in headers:
        save(_scratch() / "x.bin", header, _tensors(header))
        data = (_scratch() / "x.bin").read_bytes()
        cases.append({"model.bin": data, "tokenizer.bin": _tokenizer_bin(20)})
    return cases


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
    stacked = _tensors(Header(1, SMALL, False))
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


def _archive(content: bytes, data: dict[str, bytes]) -> bytes:
    files = {"data.pkl": content, "byteorder": b"little", "version": b"3\n"}
    write_archive(_scratch() / "x.pt", files | {f"data/{key}": v for key, v in data.items()})
    return (_scratch() / "x.pt").read_bytes()


def _records(tensors: dict[str, np.ndarray]) -> tuple[dict[str, Tensor], dict[str, bytes]]:
    records = {n: Tensor(str(i), "float32", v.shape) for i, (n, v) in enumerate(tensors.items())}
    return records, {records[name].key: values.tobytes() for name, values in tensors.items()}


@cache
def _trainer_file() -> tuple[bytes, dict[str, bytes]]:
    """The pickle of a checkpoint of llama2.c's train.py, and its storages."""
    records, data = _records(_meta_tensors())
    arguments = {"dim": 8, "n_layers": 2, "n_heads": 2, "n_kv_heads": 1, "max_seq_len": 16}
    return pickled({"model": records, "model_args": arguments | {"norm_eps": 1e-5}}), data


@cache
def _extra_file() -> tuple[bytes, dict[str, bytes]]:
    """The same with other data that training programs store beside the weights."""
    content, data = _trainer_file()
    objects = [np.float32(1.5), np.dtype("f4"), np.zeros(2), {1, 2}, Decimal("1.5"), Path("x")]
    objects += [Namespace(a=1), OrderedDict(a=1), defaultdict(list), {0.5: (1, "x")}, range(3)]
    extras = b"".join(b"X\1\0\0\0x" + pickle.dumps(objects, n)[:-1] + b"s" for n in (4, 2))
    return content[:-1] + extras + b".", data


def _torch_files() -> list[Case]:
    return [{"model.pt": _archive(*file())} for file in (_trainer_file, _extra_file)]


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
    shard = _archive(pickled(records), data)
    described = json.dumps(params).encode()
    return [{"params.json": described, "consolidated.00.pth": shard}]


def _states() -> list[Case]:
    save(_scratch() / "x.bin", Header(1, SMALL, True), _tensors(Header(1, SMALL, True)))
    transformer, cases = Transformer(*load(_scratch() / "x.bin")), []
    for count in (0, 1, SMALL.seq_len):
        state = State(SMALL)
        if count:
            transformer.forward([3] * count, state)
        state.save(_scratch() / "x.npz")
        cases.append({"state.npz": (_scratch() / "x.npz").read_bytes()})
    return cases


def _write_failures() -> list[Case]:
    files = valid("bin")[0] | valid("tokenizer.model")[0]
    return [files | {"fault.json": faults.write_fault()}]


# Damage


def _damaged_bytes(data: bytes, random: Random, other: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(random.randint(1, 4)):
        size = len(changed)
        near = random.choice((size, min(size, 400), min(size, 60)))  # headers are at the start
        at = random.randrange(near) if near else 0
        if random.random() < 0.2:
            at = max(size - 1 - at, 0)  # or, zip's, at the end
        kind = random.randrange(8)
        if kind == 0 and size:
            changed[at] ^= 1 << random.randrange(8)
        elif kind == 1:
            number, width = random.choice(_NUMBERS), random.choice((1, 2, 4, 8))
            number = number % 2 ** (8 * width) if random.random() < 0.8 else -1 % 2 ** (8 * width)
            changed[at : at + width] = number.to_bytes(width, "little")
        elif kind == 2:
            changed[at : at + 4] = struct.pack("<f", random.choice(_FLOATS))
        elif kind == 3:
            del changed[at:]
        elif kind == 4:
            del changed[at : at + random.randint(1, 40)]
        elif kind == 5:
            changed[at:at] = changed[at : at + random.randint(1, 60)]
        elif kind == 6:
            changed[at:at] = random.choice(_WORDS)
        else:
            start = random.randrange(len(other) or 1)
            changed[at : at + random.randint(0, 40)] = other[start : start + random.randint(1, 99)]
    return bytes(changed)


def _damaged_json(data: bytes, random: Random) -> bytes:
    value = json.loads(data)
    for _ in range(random.randint(1, 3)):
        inside, key = value, None
        while isinstance(inside, (dict, list)) and inside:
            parent = inside
            key = random.choice(list(inside) if isinstance(inside, dict) else range(len(inside)))
            inside = inside[key]
            if random.random() < 0.3:
                break
        if key is None:
            break
        if random.random() < 0.15:
            del parent[key]
        elif isinstance(parent, dict) and random.random() < 0.15:
            parent[random.choice(["\x1b[31m", "\ud800", "", "a.b", str(key) + "2"])] = deepcopy(
                parent[key]
            )
        else:
            parent[key] = deepcopy(random.choice([*_VALUES, *_NUMBERS, inside]))
    return json.dumps(value).encode()


def _damaged_header(data: bytes, random: Random) -> bytes:
    """A safetensors file with another JSON header, whose length is correct."""
    length = int.from_bytes(data[:8], "little")
    header = _damaged_json(data[8 : 8 + length], random)
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


def _damaged_pickle(_data: bytes, random: Random) -> bytes:
    """A valid archive of a damaged pickle."""
    content, storages = random.choice((_trainer_file, _extra_file))()
    return _archive(_damaged_bytes(content, random, content), storages)


def _damaged_arrays(data: bytes, random: Random) -> bytes:
    """A valid .npz with correct checksums, with one array damaged, missing or twice."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    at, out = random.randrange(len(members)), io.BytesIO()
    name, content = members[at]
    if random.random() < 0.1:
        members[at : at + 1] = [(name, content)] * random.choice((0, 2))
    elif name == "config.npy" and random.random() < 0.7:
        with np.load(io.BytesIO(data)) as arrays:
            shape = _damaged_json(str(arrays["config"]).encode(), random)
        buffer = io.BytesIO()
        np.save(buffer, np.array(shape.decode()))
        members[at] = name, buffer.getvalue()
    else:
        members[at] = name, _damaged_bytes(content, random, data)
    compression = random.choice((zipfile.ZIP_STORED,) * 4 + (zipfile.ZIP_DEFLATED,))
    with warnings.catch_warnings(), zipfile.ZipFile(out, "w", compression) as archive:
        warnings.simplefilter("ignore")  # about duplicate names
        for name, content in members:
            archive.writestr(name, content)
    return out.getvalue()


def _any_shape(random: Random) -> bytes:
    """A .bin of a random small shape, of the correct size, with random bytes as weights."""
    pair = random.choice((1, 2, 3, 8))
    kv_heads, shared = random.randint(1, 3), random.randint(1, 3)
    dim, group = 2 * pair * kv_heads * shared, 0
    hidden_dim = random.randint(1, 40)
    version = random.randrange(3)
    if version == 2:
        group = random.choice([g for g in range(1, dim + 1) if dim % g == 0])
        hidden_dim = group * random.randint(1, 4)
    seq_len = random.choice((1, 2, 5, 100)) if version == 0 else random.choice((1, 5, 2**27 - 1))
    numbers = (dim, hidden_dim, random.randint(1, 3), kv_heads * shared, kv_heads, 20, seq_len)
    header = Header(version, Config(*numbers), random.random() < 0.5, group)
    start = header.to_bytes()
    return start + random.randbytes(header.file_size - len(start))
