"""How the report runs each program on a random checkpoint, and reads its rate."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.random_models import header_of, tokenizer_of, write_model
from llama2np.bench.peer import LLAMA2C, Peer
from llama2np.formats.export import export

_ROOT = Path(__file__).parents[1]
_LLAMACPP, _CT2 = (Path(__file__).with_name(name) for name in ("llamacpp.py", "ct2.py"))
PROMPT = r"prompt tok/s: ([0-9.]+)"


@dataclass(frozen=True)
class Task:
    """A shape, the positions to fill, and the tokens of a prompt."""

    shape: str
    steps: int = 256
    prompt: int = 256

    @property
    def q8(self) -> bool:
        return header_of(self.shape).version == 2


def llama2np(task: Task, folder: Path) -> Peer:
    """run.py, as a user runs it."""
    return _llama2c_flags([sys.executable, str(_ROOT / "run.py")], task, folder, "--threads")


def llama2c(program: Path, task: Task, folder: Path) -> Peer:
    """One of llama2.c's, with the same flags; OMP_NUM_THREADS says how many threads."""
    return _llama2c_flags([str(program)], task, folder)


def _llama2c_flags(command: list[str], task: Task, folder: Path, threads: str = "") -> Peer:
    model = write_model(task.shape, folder)
    flags = ["-t", "0", "-s", "1", "-n", str(task.steps), "-z", str(tokenizer_of(model))]
    if threads:
        flags += [threads, "{threads}"]
    return Peer(shlex.join([*command, str(model), *flags]), pattern=LLAMA2C)


def llamacpp(python: str, task: Task, folder: Path) -> tuple[Peer, Peer]:
    """llama.cpp generating, and reading a prompt; on a GGUF that is written if it is not there."""
    header, path = header_of(task.shape), folder / f"{task.shape}.gguf"
    if not path.exists():
        config = header.config
        shape = asdict(config) | {"kv_dim": config.kv_dim, "tied": header.tied, "q8": task.q8}
        subprocess.run([python, _LLAMACPP, "write", path, json.dumps(shape)], check=True)
    return _rates([python, str(_LLAMACPP), "rate", str(path)], task)


def ctranslate2(python: str, task: Task, folder: Path) -> tuple[Peer, Peer]:
    """CTranslate2 generating, and reading a prompt; on files that are written if missing."""
    path, model = folder / f"{task.shape}.ct2", write_model(task.shape, folder)
    if not path.exists():
        with tempfile.TemporaryDirectory() as temporary:
            export(model, f"{temporary}/hf", version=-1)
            kind = "int8" if task.q8 else "float32"
            subprocess.run([python, _CT2, "convert", f"{temporary}/hf", path, kind], check=True)
    return _rates([python, str(_CT2), "rate", str(path)], task)


def _rates(rate: list[str], task: Task) -> tuple[Peer, Peer]:
    generate = shlex.join([*rate, str(task.steps), "1", "{threads}"])
    prompt = shlex.join([*rate, "1", str(task.prompt), "{threads}"])
    return Peer(generate, pattern=LLAMA2C), Peer(prompt, pattern=PROMPT)


def bench(shape: str, folder: Path, **flags: object) -> dict:
    """What `llama2np bench --json` says of a shape."""
    command = [sys.executable, "-m", "llama2np", "bench", str(write_model(shape, folder)), "--json"]
    command += [word for flag, value in flags.items() for word in (f"--{flag}", str(value))]
    done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr.strip())
    return json.loads(done.stdout)


def seconds_to_first_token(task: Task, folder: Path, cache: Path | None = None) -> float:
    """Wall time of a whole run of two tokens; with the compiled kernels of another folder."""
    command = shlex.split(llama2np(Task(task.shape, 2), folder).command.replace("{threads}", "1"))
    env = os.environ if cache is None else {**os.environ, "NUMBA_CACHE_DIR": str(cache)}
    start = time.perf_counter()
    subprocess.run(command, env=env, check=True, capture_output=True)
    return time.perf_counter() - start
