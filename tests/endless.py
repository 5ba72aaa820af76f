"""A tiny checkpoint that prefers letters and never ends, and a tokenizer.bin for it, as bytes."""

import struct

import numpy as np

SHAPE = dict(dim=32, hidden_dim=48, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=300, seq_len=64)
GREEDY = ("-t", "0", "-n", "0")


def checkpoint_bytes(scale=0.1, **changes):
    """A version 0 file of random weights, whose classifier prefers letters: it never ends."""
    s = SHAPE | changes
    dim, hidden_dim, vocab_size = s["dim"], s["hidden_dim"], s["vocab_size"]
    kv_dim = dim // s["n_heads"] * s["n_kv_heads"]
    layer = 2 * dim + 2 * dim * dim + 2 * kv_dim * dim + 3 * hidden_dim * dim
    rope_tables = s["seq_len"] * (dim // s["n_heads"])
    count = 2 * vocab_size * dim + s["n_layers"] * layer + dim + rope_tables
    weights = np.random.default_rng(0).standard_normal(count, np.float32) * np.float32(scale)
    classifier = weights[-vocab_size * dim :].reshape(vocab_size, dim)
    classifier[:259] = 0
    classifier[259:] *= 200
    header = struct.pack("<7i", *(s | {"vocab_size": -vocab_size}).values())
    return header + weights.tobytes()


def tokenizer_bytes(count=300):
    pieces = [b"<unk>", b"\n<s>\n", b"\n</s>\n", *(b"<0x%02X>" % byte for byte in range(256))]
    pieces += [b" "] + [bytes([ord("A") + i]) for i in range(count - 260)]
    return struct.pack("<I", 6) + b"".join(struct.pack("<fi", 0, len(p)) + p for p in pieces)


GOOD, TOKENIZER = checkpoint_bytes(), tokenizer_bytes()


def write_folder(folder):
    """model.bin, endless.bin (the same with a long context) and tokenizer.bin, in this folder."""
    (folder / "model.bin").write_bytes(GOOD)
    (folder / "endless.bin").write_bytes(checkpoint_bytes(seq_len=2**17))
    (folder / "tokenizer.bin").write_bytes(TOKENIZER)
    return folder
