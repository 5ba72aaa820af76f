"""The beginnings of files of many kinds, and the words that name each kind."""

import base64
import gzip
import io
import json
import pickle
import struct
import tarfile
import zipfile

import numpy as np
import pytest
from endless import GOOD

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:%064d\nsize 12345\n" % 0


def archive(**members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, data in members.items():
            file.writestr(name.replace("__", "/"), data)
    return buffer.getvalue()


def npz(**arrays):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def tarred():
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        file.addfile(tarfile.TarInfo("model.bin"))
    return buffer.getvalue()


def npy():
    np.save(buffer := io.BytesIO(), np.zeros(3))
    return buffer.getvalue()


def safetensors():
    header = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    return len(header).to_bytes(8, "little") + header + bytes(4)


def versions(version):
    return struct.pack("<Ii7iB", 0x616B3432, version, 48, 80, 3, 6, 2, 300, 96, 1).ljust(300, b"\0")


TIKTOKEN = b"".join(base64.b64encode(bytes([i])) + b" %d\n" % i for i in range(256))
PIECES = b"\n\x0e\n\x05<unk>\x15\0\0\0\0\x18\x02" + b"\n\x0c\n\x03<s>\x15\0\0\0\0\x18\x03"
LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03."
# What it is: its bytes, and what is said of it where a model is expected.
MODELS = {
    "trainer": (archive(a__data_pkl=b"").replace(b"data_pkl", b"data.pkl") + b"model_args", None),
    "torch": (archive(a__data_pkl=b"").replace(b"data_pkl", b"data.pkl"), "a torch file"),
    "torch-old": (LEGACY, "before torch 1.6"),
    "safetensors": (safetensors(), "a safetensors file"),
    "ggml": (b"lmgg" + bytes(99), "a GGML file"),
    "ggmf": (b"fmgg\1\0\0\0" + bytes(99), "a GGML file"),
    "ggjt": (b"tjgg\3\0\0\0" + bytes(99), "a GGML file"),
    "ggla": (b"algg\1\0\0\0" + bytes(99), "a GGML file"),
    "flax": (b"\x85\xa7lm_head\x81\xa6kernel\xc7\x10\x01" + bytes(99), "a msgpack file (Flax)"),
    "tflite": (b"\x1c\0\0\0TFL3" + bytes(99), "a TensorFlow Lite model"),
    "llamafile": (b"MZqFpD='\n" + bytes(99), "a llamafile"),
    "onnx": (b"\x08\x07\x12\x07pytorch\x1a\x032.1" + bytes(99), "an ONNX model"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(99), "an HDF5 file"),
    "index": (b'{"metadata": {"total_size": 4}, "weight_map": {"a": "b"}}', "index of a sharded"),
    "config.json": (b'{\n  "architectures": ["LlamaForCausalLM"]}', "the config.json"),
    "params.json": (b'{"dim": 64, "n_layers": 2, "n_heads": 4}', "the params.json"),
    "adapter": (b'{"peft_type": "LORA"}', "an adapter"),
}
BINS = {"version 0": GOOD, "version 1": versions(1), "version 2": versions(2)}
TOKENIZERS = {
    "tiktoken": (TIKTOKEN, "tiktoken"),
    "tiktoken, CRLF": (TIKTOKEN.replace(b"\n", b"\r\n"), "Llama 3"),
    "tokenizer.json": (b'{"version": "1.0", "model": {"type": "BPE"}}', "a tokenizer.json"),
    "large tokenizer.json": (
        json.dumps({"version": "1.0", "truncation": None, "added_tokens": ["x" * 2**17]}).encode(),
        "a tokenizer.json",
    ),
    "tokenizer_config.json": (b'{"bos_token": "<s>", "model_max_length": 9}', "tokenizer_config"),
    "tekken.json": (b'{"config": {}, "vocab": [], "special_tokens": []}', "tekken.json"),
    "vocab.json": (b'{"!": 0, "\\"": 1}', "vocab.json"),
    "merges.txt": (b"#version: 0.2\n\xc4\xa0 t\n\xc4\xa0 a\n", "merges.txt"),
    "vocab.txt": (b"[PAD]\n[unused0]\n", "vocab.txt"),
}
OTHERS = {
    "pointer": (POINTER, "a git-lfs pointer", "lfs pull"),
    "xet": (b'# xet version 0\nfilesize = 12345\nhash = "ab"\n', "a pointer of git-xet", "fetch"),
    "annex": (b"/annex/objects/SHA256E-s9--00.bin\n", "git-annex", "fetch"),
    "empty": (b"", "an empty file", "again"),
    "HTML": (b"\n<!DOCTYPE html>\n<html><head>", "a web page", "/resolve/"),
    "html": (b"<html lang=en>", "a web page", "/resolve/"),
    "answer": (b"Entry not found", "a server's error message", "again"),
    "404": (b"404: Not Found", "a server's error message", "again"),
    "XML": (b'<?xml version="1.0"?><Error><Code>AccessDenied', "a server's error", "again"),
    "JSON answer": (b'{"error":"Invalid username or password."}', "a server's error", "again"),
    "JSON detail": (b'{"detail":"Not Found"}', "a server's error", "again"),
    "generation_config.json": (b'{"bos_token_id": 1, "eos_token_id": 2}', "generation_config", ""),
    "lz4": (b"\x04\x22\x4d\x18@", "a compressed archive", "unpack"),
    "program": (b"\x7fELF\2\1\1" + bytes(99), "a program", ""),
    "UTF-16": ("\ufeff{}".encode("utf-16-le"), "a text in UTF-16", ""),
    "PDF": (b"%PDF-1.7\n", "a PDF", ""),
    "gzip": (gzip.compress(GOOD), "a gzip archive", "tar -xf"),
    "zip": (archive(readme=b"x"), "a zip archive", "unzip"),
    "tar": (tarred(), "a tar archive", "tar -xf"),
    "xz": (b"\xfd7zXZ\0", "a compressed archive", "unpack"),
    "npz": (npz(a=np.zeros(3)), "a .npz", ""),
    "npy": (npy(), "a NumPy array", ""),
    "pickle": (pickle.dumps([1, 2]), "a Python pickle", ""),
    "JSON": (b'\xef\xbb\xbf{"a": "b"}', "a JSON file", ""),
    "text": ("Il était une fois\n".encode(), "a text", ""),
}


def refused(read, *arguments, error=ValueError):
    """The one line of the error that this call raises."""
    with pytest.raises(error) as caught:
        read(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)
