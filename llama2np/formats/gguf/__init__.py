"""GGUF, the file format of llama.cpp: reading and writing. header.py describes it."""

from llama2np.formats.gguf.file import GgufFile, GgufTensor, read

__all__ = ["GgufFile", "GgufTensor", "read"]
