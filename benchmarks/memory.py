"""What public models need in memory: the table of docs/models.md.

    python -m benchmarks.memory

Nothing is downloaded: the numbers are those of each model's config.json. Weights are mapped from
the file; what has not been read yet, or does not fit, stays on disk. The KV cache is float32, and
grows with the text; a sliding window limits it.
"""

import math
from dataclasses import dataclass

from llama2np.formats.huggingface.families import FAMILIES
from llama2np.model.config import Config
from llama2np.model.gguf_blocks import FORMATS
from llama2np.model.weights import shape_of


@dataclass(frozen=True)
class Model:
    """A public model: its family in transformers, its numbers, the bytes of a stored value."""

    name: str
    family: str
    numbers: dict
    tied: bool = False
    stored: str = "bfloat16"


def decoder(dim, hidden, layers, heads, kv_heads, vocabulary, context, **more):
    """The numbers of a Config by its names."""
    names = "dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "seq_len"
    values = dim, hidden, layers, heads, kv_heads, vocabulary, context
    return dict(zip(names, values, strict=True)) | more


MODELS = (
    Model("SmolLM2-135M", "llama", decoder(576, 1536, 30, 9, 3, 49152, 8192), True),
    Model("Llama-3.2-1B", "llama", decoder(2048, 8192, 16, 32, 8, 128256, 131072), True),
    Model("Llama-3.1-8B", "llama", decoder(4096, 14336, 32, 32, 8, 128256, 131072)),
    Model(
        "Mistral-7B-v0.1",
        "mistral",
        decoder(4096, 14336, 32, 32, 8, 32000, 32768, windows=(4096,) * 32),
    ),
    Model(
        "Mixtral-8x7B",
        "mixtral",
        decoder(4096, 14336, 32, 32, 8, 32000, 32768, n_experts=8, n_experts_used=2),
    ),
    Model("Qwen2.5-0.5B", "qwen2", decoder(896, 4864, 24, 14, 2, 151936, 32768), True),
    Model("Qwen3-0.6B", "qwen3", decoder(1024, 3072, 28, 16, 8, 151936, 40960, head_dim=128), True),
    Model("Phi-2", "phi", decoder(2560, 10240, 32, 32, 32, 51200, 2048), stored="float16"),
    Model("Phi-3-mini-4k", "phi3", decoder(3072, 8192, 32, 32, 32, 32064, 4096)),
    Model("GPT-2", "gpt2", decoder(768, 3072, 12, 12, 12, 50257, 1024), True, "float32"),
    Model("Pythia-160m", "gpt_neox", decoder(768, 3072, 12, 12, 12, 50304, 2048), stored="float16"),
    Model("Gemma-2-2B", "gemma2", decoder(2304, 9216, 26, 8, 4, 256000, 8192, head_dim=256), True),
    Model(
        *("BERT-base", "bert", decoder(768, 3072, 12, 12, 12, 30522, 512, n_types=2), True),
        "float32",
    ),
)
_BITS = {"float32": 32, "bfloat16": 16, "float16": 16}


def parameters(model):
    """The number of values of each of (matrices, vectors), and how many a token reads."""
    family, config = FAMILIES[model.family], config_of(model)
    matrices = vectors = read = 0
    biased = {name for names in family.biases.values() for name in names.split()}
    for ours, _ in family.modules(config):
        shape = shape_of(ours, config)
        head = ours == "classifier" or model.family == "bert" and ours in family.head
        if shape is None or (head and (model.tied or model.family == "bert")):
            continue
        size = math.prod(shape)
        share = config.n_experts_used / config.n_experts if ".experts." in ours else 1
        if len(shape) == 1:
            vectors += size
        else:
            matrices += size
            read += 0 if "embedding" in ours and not model.tied else size * share
        if ours.split(".")[-1] in biased and family.biases.get("") is not None:
            vectors += shape[0]
    return matrices, vectors, read


def config_of(model):
    """The Config of a model."""
    return Config(architecture=FAMILIES[model.family].architecture, **model.numbers)


def row(model):
    """A row of the table."""
    config = config_of(model)
    matrices, vectors, read = parameters(model)
    size = (matrices * _BITS[model.stored] + vectors * 32) / 8
    q4 = FORMATS["Q4_0"]
    small = matrices * q4.nbytes / q4.values + 4 * vectors
    kept = 1000 if not config.window else min(1000, config.window)
    cache = 2 * 4 * config.n_layers * config.kv_dim * kept
    read_bytes = read * _BITS[model.stored] / 8
    encoder = model.family == "bert"
    cells = (
        model.name,
        f"{(matrices + vectors) / 1e6:,.0f} M",
        f"{model.stored}, {_sized(size)}",
        "-" if encoder else _sized(small),
        "-" if encoder else _sized(read_bytes),
        "-" if encoder else _sized(cache),
    )
    return "| " + " | ".join(cells) + " |"


def _sized(size):
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def main():
    """Print the table."""
    columns = "folder", "as GGUF, Q4_0", "read for a token", "KV cache, 1,000 positions"
    print("|", " | ".join(("model", "parameters", *columns)), "|")
    print("|---|---|---|---|---|---|")
    for model in MODELS:
        print(row(model))


if __name__ == "__main__":
    main()
