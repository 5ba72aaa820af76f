"""Hostile files: valid files of every kind that can be read, with typical damage.

A case is a dictionary {file name: bytes} for a folder. In place of bytes, a name of odd.SPECIAL
means something that is not a regular file. `exercise` uses a case.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from random import Random

from llama2np.formats import huggingface, inspection, llama2c, meta, safetensors
from llama2np.formats.checkpoint import CheckpointError, CheckpointWarning, Header, load, save
from llama2np.formats.torch_zip import TorchFile
from llama2np.formats.write import write_bin, write_huggingface
from llama2np.llama import Llama
from llama2np.model.transformer import State, Transformer
from llama2np.text.tokenizer import Tokenizer, TokenizerError
from tools import faults, hostile_damage, hostile_folders, hostile_gguf, hostile_tokenizers, odd
from tools import hostile_training as training
from tools.hostile_valid import MAIN, SMALL, Case, random_tensors, valid

OURS = (CheckpointError, TokenizerError)
KINDS = (
    *(*MAIN, "gguf parts", "tokenizer folder", "examples", "special"),
    *("kernel-cache", "write-failure"),
)


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
        "training": training.exercise_checkpoint,
        "examples": training.exercise_examples,
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
        case[name] = hostile_damage.damaged_json(case[name], random)
    elif name.endswith(".safetensors") and random.random() < 0.6:
        case[name] = hostile_damage.damaged_header(case[name], random)
    elif name.endswith((".pt", ".pth")) and random.random() < 0.6:
        case[name] = hostile_damage.damaged_pickle(case[name], random)
    elif kind == "gguf" and random.random() < 0.6:
        case[name] = hostile_gguf.damaged(random)
    elif kind == "gguf parts" and random.random() < 0.6:
        case = dict(hostile_gguf.parts(random))
    elif kind == "bin" and random.random() < 0.3:
        case[name] = hostile_damage.any_shape(random)
    elif kind in ("state", "training") and random.random() < 0.7:
        case[name] = hostile_damage.damaged_arrays(case[name], random)
    else:
        others = [other for each in valid(random.choice(list(MAIN))) for other in each.values()]
        case[name] = hostile_damage.damaged_bytes(case[name], random, random.choice(others))
    return case


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
    kind = next(kind for kind, name in MAIN.items() if name in there)
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
    save(weights, Header(1, SMALL, True), random_tensors(Header(1, SMALL, True)))
    if state.pos < SMALL.seq_len:
        Transformer(*load(weights)).forward([1], state)
