"""Networks in GGUF files: the logits of exact arithmetic on the values in the files."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from llama2np.formats import gguf
from llama2np.formats.checkpoint import CheckpointError
from llama2np.formats.gguf.write import NewTensor, packed, requantized, write
from llama2np.formats.source import Stored
from llama2np.model.transformer import State, Transformer

SIMPLE = "F32 F16 BF16 Q8_0 Q5_1 Q5_0 Q4_1 Q4_0"
TYPES = {
    **dict.fromkeys(("llama", "qwen2"), SIMPLE),
    "llama_k": "Q2_K Q3_K_M Q4_K_S Q4_K_M Q5_K_M Q6_K IQ4_NL IQ4_XS TQ1_0 TQ2_0",
    "gpt2": "F32 F16 Q8_0 Q5_1 Q4_0",
    "mixtral": "F32 F16 Q8_0 Q5_0 Q4_0",
    "phi2": "F32 F16 Q8_0 Q4_1",
    **dict.fromkeys(("llama3_rope", "llama_linear", "qwen2_yarn", "qwen3"), "F32 Q8_0"),
    **dict.fromkeys(("phi3", "phi3_longrope", "gemma3"), "F32 Q8_0"),
}
FILES = [f"{name}.{kind}" for name, kinds in TYPES.items() for kind in kinds.split()]


@pytest.fixture(scope="module")
def files(reference):
    return reference / "gguf"


def logits(path, tokens):
    config, weights = gguf.load(path)
    return Transformer(config, weights, engine="numpy").forward(tokens, State(config), True)


@pytest.mark.parametrize("name", FILES)
def test_logits_are_those_of_exact_arithmetic(files, name):
    network, kind = name.split(".")
    expected = np.load(files / f"{network}.expected.npz")
    got = logits(files / f"{name}.gguf", expected["tokens"])
    np.testing.assert_allclose(got, expected[f"logits_{kind}"], rtol=0, atol=2e-4)


def test_every_reference_file_is_tested(files):
    assert {path.name.removesuffix(".gguf") for path in files.glob("*.gguf")} == set(FILES)


def test_matrices_are_views_of_the_file(files):
    for name in ("mixtral.Q4_0", "phi3.Q8_0", "gpt2.F16"):
        file = gguf.read(files / f"{name}.gguf")
        _, weights = gguf.network(file)
        bounds = [
            (t.data.ctypes.data, t.data.ctypes.data + t.data.size) for t in file.tensors.values()
        ]
        first, last = min(start for start, _ in bounds), max(end for _, end in bounds)
        assert {"embedding", "classifier"} <= weights.matrices.keys()
        for matrix in weights.matrices.values():
            (array,) = matrix.arrays
            assert first <= array.ctypes.data and array.ctypes.data + array.nbytes <= last
    config, weights = gguf.load(files / "mixtral.Q4_0.gguf")
    assert config.n_experts == 8 and weights["layers.1.experts.7.w_down"].shape == (64, 32)
    assert weights["classifier"] is not weights["embedding"]
    _, tied = gguf.load(files / "qwen2.F16.gguf")
    assert tied["classifier"] is tied["embedding"]


class Changed:
    """A copy of a file with other metadata or tensors; None leaves something out."""

    def __init__(self, source: Path, target: Path):
        self.target = target
        self.metadata, self.tensors = requantized(gguf.read(source), "F32")

    def write(self, keys=None, tensors=None) -> Path:
        metadata = dict(self.metadata)
        for key, value in (keys or {}).items():
            if value is None:
                del metadata[key]
            else:
                metadata[key] = packed(value)
        made = {tensor.name: tensor for tensor in self.tensors}
        for name, shape in (tensors or {}).items():
            if shape is None:
                del made[name]
            else:
                made[name] = NewTensor(name, "F32", Stored.view(np.zeros(shape, np.float32)))
        write(self.target, metadata, list(made.values()))
        return self.target


@pytest.fixture
def llama(files, tmp_path):
    return Changed(files / "llama.F32.gguf", tmp_path / "x.gguf")


REFUSED = {
    "architecture": (
        {"general.architecture": "mamba"},
        {},
        "is of architecture 'mamba', which is not supported yet, expected one of llama, qwen2",
    ),
    "no architecture": ({"general.architecture": None}, {}, "has no general.architecture"),
    "no length": ({"llama.context_length": None}, {}, "has no llama.context_length"),
    "no heads": ({"llama.attention.head_count": 0}, {}, "n_heads must be a positive number, not 0"),
    "text": ({"llama.block_count": "2"}, {}, "llama.block_count = '2', expected a whole number"),
    "layers": ({"llama.block_count": 2**32 - 1}, {}, "is 4,294,967,295, expected at most 1024"),
    "more layers": ({"llama.block_count": 3}, {}, "there is no attn_norm of layer 2"),
    "fewer layers": ({"llama.block_count": 1}, {}, "the network does not use wq of layer 1"),
    "wide": ({"llama.embedding_length": 80}, {}, "embedding has shape (620, 64), expected"),
    "values": ({"llama.attention.value_length": 8}, {}, "keys of width 16 and values of width 8"),
    "scaling": (
        {"llama.rope.scaling.type": "su", "llama.rope.scaling.factor": 2.0},
        {},
        "llama.rope.scaling.type is 'su', expected none, linear or yarn",
    ),
    "not causal": ({"llama.attention.causal": False}, {}, "has llama.attention.causal = False"),
    "experts": ({"llama.expert_count": 2**31}, {}, "llama.expert_count is 2,147,483,648, more"),
    "no embedding": ({}, {"token_embd.weight": None}, "has no token_embd.weight: is it a"),
    "missing": ({}, {"blk.1.attn_k.weight": None}, "there is no wk of layer 1"),
    "extra": ({}, {"blk.0.ssm_conv.weight": (4, 4)}, "blk.0.ssm_conv.weight: is not part of arch"),
    "strange": ({}, {"blk.x.attn_q.weight": (4, 4)}, "blk.x.attn_q.weight: is not part of arch"),
    "shape": ({}, {"blk.1.attn_k.weight": (16, 64)}, "wk of layer 1 has shape (16, 64), expected"),
    "fused": ({}, {"blk.1.attn_qkv.weight": (16, 64)}, "attn_qkv has 16 rows, expected 128"),
    "no matrix": ({}, {"blk.1.attn_k.weight": (2048,)}, "wk of layer 1 is of type ndarray"),
    "long factors": ({}, {"rope_factors_long.weight": (8,)}, "has no rope_factors_short.weight"),
    "zero factors": ({}, {"rope_freqs.weight": (8,)}, "the factors of longrope must be positive"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_network_that_cannot_be_computed_is_refused(llama, case):
    keys, tensors, message = REFUSED[case]
    with pytest.raises(CheckpointError) as error:
        gguf.load(llama.write(keys, tensors))
    text = str(error.value)
    assert "x.gguf: " in text and message in text and text.isprintable()


def test_experts_of_another_number(files, tmp_path):
    mixtral = Changed(files / "mixtral.F32.gguf", tmp_path / "x.gguf")
    with pytest.raises(CheckpointError, match=r"ffn_gate_exps has shape \(8, 32, 64\), expected 4"):
        gguf.load(mixtral.write({"llama.expert_count": 4}))
    with pytest.raises(CheckpointError, match="n_experts_used=9 must be 1 to n_experts=8"):
        gguf.load(mixtral.write({"llama.expert_used_count": 9}))


def test_experts_of_files_of_2023_are_separate(files, tmp_path):
    expected = np.load(files / "mixtral.expected.npz")
    metadata, tensors = requantized(gguf.read(files / "mixtral.F32.gguf"), "F32")
    made = []
    for tensor in tensors:
        if "_exps" not in tensor.name:
            made.append(tensor)
            continue
        stack = np.concatenate(list(tensor.stored.blocks()))
        for e, matrix in enumerate(stack.reshape(tensor.shape)):
            name = tensor.name.replace("_exps", f".{e}")
            made.append(NewTensor(name, "F32", Stored.view(matrix)))
    write(tmp_path / "x.gguf", metadata, made)
    got = logits(tmp_path / "x.gguf", expected["tokens"])
    np.testing.assert_allclose(got, expected["logits_F32"], rtol=0, atol=2e-4)


def test_numbers_of_other_keys(llama):
    config, _ = gguf.load(llama.write({"llama.attention.sliding_window": 12}))
    assert config.windows == (12, 12) and config.rope_halves == 0 and config.norm_eps == 1e-5
    config, _ = gguf.load(llama.write({"llama.rope.scale_linear": 4.0}))
    assert (config.rope_scaling.kind, config.rope_scaling.factor) == ("linear", 4)
    config, _ = gguf.load(llama.write({"llama.rope.scaling.factor": 3.0}))  # of no type
    assert (config.rope_scaling.kind, config.rope_scaling.factor) == ("linear", 3)
    config, _ = gguf.load(llama.write({"llama.attention.head_count_kv": np.array([2, 2], "<i4")}))
    assert config.n_kv_heads == 2
    config, _ = gguf.load(llama.write({"llama.attention.scale": 0.5}))
    assert replace(config, attention_scale=0) == gguf.load(llama.write())[0]
    yarn = {f"llama.rope.scaling.{k}": v for k, v in (("type", "yarn"), ("factor", 4.0))}
    config, _ = gguf.load(llama.write(yarn))
    assert config.rope_scaling.original_len == 256
    assert config.rope_scaling.attention_factor == pytest.approx(1 + 0.1 * np.log(4))
