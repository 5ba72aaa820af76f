"""One model in several processes over MPI, beside one process: tokens, memory of each rank, speed.

    python -m benchmarks.ranks --models FOLDER --rounds 5            (--shapes 110M 1.1B-q8 ...)

N ranks of one thread against one process of N threads, by turns. The models are random, and written
to FOLDER when they are missing. Memory is the most that a rank has had, less what it had before it
loaded the model, with the kernels and MPI in memory already; pages that several ranks map are
divided among them. The share is the bytes of its part of the weights, and of its KV cache. It has
no embedding, of which only the rows of the tokens are read, and no tokenizer (8 MB for 32,000
pieces, on rank 0). The first number is that of all ranks together, the second of the rank with
most: the system maps a file in pieces of up to 2 MB, which may belong to several ranks, and where
only one of them has such a piece it counts for that one.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np

from benchmarks.random_models import SHAPES, tokenizer_of, write_model
from llama2np import Llama

_DEFAULT = ("110M", "1.1B-q8", "42M-gqa", "mixtral")
_PROMPT = [1, *range(300, 364)]
# A Mixtral of 8 experts, of which 2 are used: 260 million parameters, grouped-query attention.
_MIXTRAL = dict(
    model_type="mixtral",
    architectures=["MixtralForCausalLM"],
    hidden_size=512,
    intermediate_size=1792,
    num_hidden_layers=10,
    num_attention_heads=16,
    num_key_value_heads=4,
    vocab_size=32000,
    max_position_embeddings=1024,
    num_local_experts=8,
    num_experts_per_tok=2,
    rms_norm_eps=1e-5,
    rope_theta=1e6,
    tie_word_embeddings=False,
)


def mixtral(folder: Path) -> Path:
    """A folder with a random Mixtral."""
    from safetensors.numpy import save_file

    path = folder / "mixtral"
    if (path / "model.safetensors").exists():
        return path
    path.mkdir(exist_ok=True)
    c, random, tensors = _MIXTRAL, np.random.default_rng(0), {}
    dim, hidden, kv = c["hidden_size"], c["intermediate_size"], c["hidden_size"] // 4

    def add(name, *shape):
        values = random.standard_normal(shape, np.float32) * np.float32(0.02)
        tensors[f"{name}.weight"] = values if len(shape) == 2 else np.ones(shape, np.float32)

    add("model.embed_tokens", c["vocab_size"], dim)
    for i in range(c["num_hidden_layers"]):
        at = f"model.layers.{i}"
        for name, rows in (("q", dim), ("k", kv), ("v", kv), ("o", dim)):
            add(f"{at}.self_attn.{name}_proj", rows, dim)
        add(f"{at}.input_layernorm", dim)
        add(f"{at}.post_attention_layernorm", dim)
        add(f"{at}.block_sparse_moe.gate", c["num_local_experts"], dim)
        for e in range(c["num_local_experts"]):
            for name, rows, columns in (
                ("w1", hidden, dim),
                ("w3", hidden, dim),
                ("w2", dim, hidden),
            ):
                add(f"{at}.block_sparse_moe.experts.{e}.{name}", rows, columns)
    add("model.norm", dim)
    add("lm_head", c["vocab_size"], dim)
    save_file(tensors, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(c))
    return path


def memory() -> int:
    """The bytes of this process, those that several processes map divided among them (Pss).

    Libraries do not count: what a process has of them depends on other programs on the machine.
    """
    found, library = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if line[0] in "0123456789abcdef":  # a mapping begins
            library = ".so" in line
        elif line.startswith("Pss:") and not library:
            found += int(line.split()[1]) * 1024
    return found


class Most(threading.Thread):
    """Looks at the memory from time to time; `bytes` is the most since it began, less that then."""

    EVERY = 0.2  # seconds

    def __init__(self):
        super().__init__(daemon=True)
        self.bytes, self._before = 0, memory()
        self.start()

    def run(self):
        while True:
            self.bytes = max(self.bytes, memory() - self._before)
            time.sleep(self.EVERY)


def child(path: str, threads: int, tokens: int) -> None:
    """Generate, in this process or as one of several ranks; print a line of JSON for each rank."""
    from llama2np import kernels, mpi
    from llama2np.mpi.ranks import mpi4py

    Llama.load("stories-box").generate([1, *range(10, 100)], max_new_tokens=2).read()
    Llama.load("stories-box-q8").generate([1, *range(10, 100)], max_new_tokens=2).read()
    words = tokenizer_of(Path(path))
    words = words if words.exists() else None
    if mpi.launched():
        mpi4py()  # the memory of MPI itself does not count
    most, found = Most(), {"rank": mpi.rank()}
    if mpi.launched():
        with mpi.load(path, words, threads=threads) as model:
            if model is not None:
                found |= measure(model, tokens)
    else:
        kernels.set_threads(threads)
        found |= measure(Llama.load(path, words), tokens)
    found["memory"] = most.bytes
    print("RESULT " + json.dumps(found) + "\n", end="", flush=True)


def measure(model: Llama, count: int) -> dict:
    """Tokens and speed of a prompt, and of `count` tokens after it."""
    network, state = model.transformer, model.new_state()
    network.forward(_PROMPT, state)
    network.forward([5], state)  # what is loaded at the first token
    state, start, work = model.new_state(), time.perf_counter(), time.process_time()
    logits = network.forward(_PROMPT, state)
    moments, tokens = [time.perf_counter() - start], [int(logits.argmax())]
    for _ in range(count):
        start = time.perf_counter()
        tokens.append(int(network.forward(tokens[-1:], state).argmax()))
        moments.append(time.perf_counter() - start)
    work = time.process_time() - work
    time.sleep(3 * Most.EVERY)  # so that all ranks have seen their memory
    each = statistics.median(moments[1:])
    return {
        "tokens": tokens,
        "prompt": len(_PROMPT) / moments[0],
        "generation": 1 / each,
        "fastest": 1 / min(moments[1:]),
        "processor": work,
        "logits": [float(x) for x in logits[:50]],
    }


def shares_of(path: Path, size: int) -> list[int]:
    """The bytes of the weights and of the KV cache of each rank."""
    from llama2np.formats import loading
    from llama2np.formats.sharing import share_of
    from llama2np.model.shares import shares

    loaded, found = loading.load(path), []
    for share in shares(loaded.config, size):
        own = share_of(loaded.weights, share)
        arrays = [
            t.arrays if hasattr(t, "arrays") else (t,) for n, t in own.items() if n != "embedding"
        ]
        weights = sum(array.nbytes for some in arrays for array in some)
        c = share.config
        found.append(weights + 8 * c.n_layers * c.kv_dim * min(512, c.seq_len))
    return found


def run(path: Path, size: int, launcher: list[str], threads: int, tokens: int) -> list[dict]:
    """The results of all ranks, or of one process without a launcher."""
    words = [
        sys.executable,
        "-m",
        "benchmarks.ranks",
        "--child",
        str(path),
        "--threads",
        str(threads),
        "--tokens",
        str(tokens),
    ]
    command = [*launcher, "-n", str(size), *words] if launcher else words
    done = subprocess.run(command, capture_output=True, text=True)
    lines = [line[7:] for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if len(lines) != size:
        raise SystemExit(f"{' '.join(command)}: {done.stderr[-500:]}")
    return sorted((json.loads(line) for line in lines), key=lambda each: each["rank"])


def compare(shape: str, path: Path, size: int, options: argparse.Namespace) -> str:
    """A row of the table."""
    launcher = options.mpirun.split()
    alone, ranks = [], []
    for _ in range(options.rounds):
        alone.append(run(path, 1, [], size, options.tokens)[0])
        ranks.append(run(path, size, launcher, 1, options.tokens))
    first, expected = ranks[0][0], alone[0]
    same = all(each[0]["tokens"] == expected["tokens"] for each in ranks)
    error = np.abs(np.subtract(first["logits"], expected["logits"])).max()
    ratios = [
        [each[0][what] / one[what] for each, one in zip(ranks, alone, strict=True)]
        for what in ("generation", "fastest", "prompt")
    ]
    parts = shares_of(path, size)
    memory = [each["memory"] for each in ranks[-1]]
    largest = max(some / part for some, part in zip(memory, parts, strict=True))
    cells = (
        *(shape, str(size), "yes" if same else "NO", f"{error:.0e}"),
        f"{max(parts) / 1e6:,.0f} MB",
        f"{sum(memory) / sum(parts):.2f} ({largest:.2f})",
        f"{statistics.median(each[0]['generation'] for each in ranks):,.1f}",
        *(f"{statistics.median(some):.2f} ({min(some):.2f}-{max(some):.2f})" for some in ratios),
    )
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Print the table, or be one of the processes."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", type=Path, metavar="FOLDER", help="2.7 GB in all; required")
    parser.add_argument("--shapes", nargs="+", default=_DEFAULT, choices=[*SHAPES, "mixtral"])
    parser.add_argument("--ranks", nargs="+", type=int, default=(2, 4))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=48, help="after the prompt (default 48)")
    beside = Path(sys.executable).with_name("mpirun")
    root = "--allow-run-as-root " if hasattr(os, "getuid") and not os.getuid() else ""
    parser.add_argument("--mpirun", default=f"{beside} {root}--oversubscribe")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, default=1, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child, options.threads, options.tokens)
        return
    if options.models is None:
        parser.error("--models FOLDER is required")
    options.models.mkdir(exist_ok=True)
    heads = "model", "ranks", "same tokens", "logits differ", "largest share"
    heads += "memory / share (most)", "tokens/s", "/ 1 process", "fastest token", "prompt"
    print("| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|")
    for shape in options.shapes:
        path = mixtral(options.models) if shape == "mixtral" else write_model(shape, options.models)
        for size in options.ranks:
            print(compare(shape, path, size, options), flush=True)


if __name__ == "__main__":
    main()
