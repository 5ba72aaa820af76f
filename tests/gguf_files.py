"""GGUF files made by hand, for tests: the bytes of the format, without the package gguf."""

import struct


def string(text):
    data = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(data)) + data


def key(name, kind, value):
    return string(name) + struct.pack("<I", kind) + value


def strings(name, *texts):
    array = struct.pack("<IQ", 8, len(texts)) + b"".join(map(string, texts))
    return key(name, 9, array)


def info(name, axes, number=0, offset=0):
    return string(name) + struct.pack(f"<I{len(axes)}QIQ", len(axes), *axes, number, offset)


def packed(keys=(), infos=(), data=b"", version=3, alignment=32, counts=None):
    n_tensors, n_keys = counts or (len(infos), len(keys))
    head = b"GGUF" + struct.pack("<IQQ", version, n_tensors, n_keys) + b"".join((*keys, *infos))
    return head + bytes(-len(head) % alignment) + data
