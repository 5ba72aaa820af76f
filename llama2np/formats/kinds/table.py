"""The table of kinds of files: how each is recognised, its name in errors, and what to do."""

from __future__ import annotations

import re
from dataclasses import dataclass

from llama2np.formats.kinds.places import MODEL, OTHER, STATE, TOKENIZER
from llama2np.formats.kinds.signs import (
    Head,
    Sign,
    has_key,
    is_safetensors,
    is_sentencepiece,
    is_text,
    is_tokenizer_bin,
    is_torch,
    is_version0,
)

FOLDER = "folder"
# {the file that describes a model: the flag of `export` for its folder}
FOLDER_FLAGS = {"config.json": "--hf", "params.json": "--meta-llama"}
NOT_YET = "this cannot be read yet"


@dataclass(frozen=True, slots=True)
class Kind:
    """A row of the table."""

    id: str
    name: str  # in errors
    role: str  # MODEL, TOKENIZER, STATE or OTHER
    sign: bytes | Sign  # a regular expression for the beginning of the file, or a test
    way: str = ""  # what to do with it; {path}, {folder} and {export} are replaced
    source: str = ""  # the flag of `export` for it; FOLDER means the flag for its folder

    def matches(self, head: Head) -> bool:
        if not isinstance(self.sign, bytes):
            return self.sign(head)
        return not head.is_folder and re.match(self.sign, head.text, re.DOTALL) is not None


# The end of the name of a part: x.gguf.part1of2, x.gguf-split-a, x.safetensors.part03.
_PART = r"\.(gguf|safetensors|bin)[.-](part|split)\W?(\d\w*|[a-z]{1,2})$"
_OTHER_MODEL = (
    f"{NOT_YET}; get the same model as a Hugging Face folder, and "
    "`{export} out.bin --hf FOLDER --version 1`"
)
_A_TOKENIZER = "use it with a model, after -z: MODEL -z {path}"
_OTHER_TOKENIZER = f"{NOT_YET}; use a tokenizer.json, tokenizer.model or tokenizer.bin"

# The first row that matches counts.
KINDS = (
    # Failed downloads.
    Kind("empty", "an empty file", OTHER, lambda f: not (f.data or f.is_folder), "fetch it again"),
    Kind(
        "cut",
        "one of the parts into which a file was cut",
        OTHER,
        lambda f: re.search(_PART, f.path.name) is not None,
        "`cat` all parts, in their order, into one file first",
    ),
    Kind(
        "lfs",
        "a git-lfs pointer, left by a `git clone` without git-lfs",
        OTHER,
        rb"version https://(?:git-lfs|hawser)\.github\.com/spec/",
        "`git -C {folder} lfs pull` fetches the file itself",
    ),
    Kind(
        "xet",
        "a pointer of git-xet or git-annex, left by a `git clone` without that program",
        OTHER,
        rb"# xet version|version https://\S*xet|/annex/objects/",
        "fetch the file itself",
    ),
    Kind(
        "page",
        "a web page (HTML)",
        OTHER,
        rb"(?i)(?:<!--.*?-->\s*)*<(?:!doctype html|html|head|meta|body)",
        "fetch the file itself; on huggingface.co its URL contains /resolve/, not /blob/",
    ),
    Kind(
        "answer",
        "a server's error message",
        OTHER,
        rb"(?i)<\?xml|<error>|404\s*\Z|(?:error:? )?(?:[45]\d\d[:\s]+)?(?:entry |repository )?"
        rb"(?:not found|access to model|access denied|invalid username|invalid credentials"
        rb"|unauthorized|forbidden|bad gateway|too many requests|internal server error)",
        "fetch the file again, after logging in if it requires that",
    ),
    # Models.
    Kind("gguf", "a GGUF file (llama.cpp)", MODEL, rb"GGUF", source="--gguf"),
    Kind("ggml", "a GGML file (llama.cpp before GGUF)", MODEL, rb"(lm|fm|tj|al)gg", _OTHER_MODEL),
    Kind(
        "trainer",
        "a checkpoint of llama2.c's training script (torch)",
        MODEL,
        lambda f: is_torch(f) and f.contains(b"model_args"),
        source="--checkpoint",
    ),
    Kind("torch", "a torch file of weights alone", MODEL, is_torch, source=FOLDER),
    Kind(
        "torch-old",
        "a torch file in the format before torch 1.6",
        MODEL,
        rb"\x80[\x02-\x05]\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19",
        "load it and save it again with a newer torch",
    ),
    Kind(
        "safetensors",
        "the weights of an adapter (LoRA), not a whole model",
        MODEL,
        lambda f: is_safetensors(f) and f.path.name.startswith("adapter_model"),
        "merge it into its model first",
    ),
    Kind("safetensors", "a safetensors file", MODEL, is_safetensors, source=FOLDER),
    Kind("llama2c", "a llama2.c checkpoint (.bin)", MODEL, rb"24ka", source="--bin"),
    Kind("llama2c", "a llama2.c checkpoint (.bin)", MODEL, is_version0, source="--bin"),
    Kind("flax", "a msgpack file (Flax)", MODEL, rb"[\x81-\x8f][\xa1-\xbf][a-z]\w", _OTHER_MODEL),
    Kind("tflite", "a TensorFlow Lite model", MODEL, rb".{4}TFL3", _OTHER_MODEL),
    Kind("llamafile", "a llamafile", MODEL, rb"MZqFpD", "`unzip {path}` unpacks its GGUF file"),
    Kind("hdf5", "an HDF5 file (Keras)", MODEL, rb"\x89HDF\r\n", _OTHER_MODEL),
    Kind(
        "onnx", "an ONNX model", MODEL, rb"\x08[\x01-\x20](?:\x12[\x01-\x40][ -~]|:)", _OTHER_MODEL
    ),
    # Folders.
    Kind(
        "adapter",
        "an adapter (LoRA), not a whole model",
        MODEL,
        lambda f: "adapter_config.json" in f.names or "peft_type" in f.keys,
        "merge it into its model first",
    ),
    Kind("hf", "a Hugging Face folder", MODEL, lambda f: "config.json" in f.names, source="--hf"),
    Kind(
        "meta",
        "a folder in Meta's format",
        MODEL,
        lambda f: "params.json" in f.names,
        source="--meta-llama",
    ),
    Kind(
        "cache",
        "a folder of Hugging Face's cache",
        MODEL,
        lambda f: {"refs", "snapshots"} <= f.names,
        "name the folder in {folder}/snapshots that has config.json",
    ),
    Kind(
        "gguf-folder",
        "a folder of GGUF files (llama.cpp)",
        MODEL,
        lambda f: any(name.endswith(".gguf") for name in f.names),
        "name one of the files in it",
    ),
    Kind(
        "outer",
        "a folder of folders with models",
        MODEL,
        lambda f: bool(f.models_below),
        "name one of them, such as {below}",
    ),
    Kind(
        "bare",
        "a folder of weights without config.json or params.json",
        MODEL,
        lambda f: any(re.search(r"\.safetensors$|\.pth$|^pytorch_model", n) for n in f.names),
        "fetch that file, too",
    ),
    # Tokenizers.
    Kind(
        "tokenizer.bin",
        "a tokenizer.bin",
        TOKENIZER,
        lambda f: is_tokenizer_bin(f.data),
        _A_TOKENIZER,
    ),
    Kind(
        "sentencepiece",
        "a sentencepiece model (a tokenizer)",
        TOKENIZER,
        lambda f: is_sentencepiece(f.data),
        f"{_A_TOKENIZER}; `{{export}} tokenizer.bin --tokenizer {{path}}` converts it",
    ),
    Kind(
        "tiktoken",
        "a tiktoken vocabulary, as Llama 3's tokenizer.model is",
        TOKENIZER,
        rb"[A-Za-z0-9+/]+=* 0\r?\n[A-Za-z0-9+/]+=* 1\r?\n",
        _OTHER_TOKENIZER,
    ),
    Kind(
        "merges",
        "the merges.txt of a byte-level BPE tokenizer",
        TOKENIZER,
        rb"#version: |\xc4\xa0 ",
        _A_TOKENIZER,
    ),
    Kind("vocab.txt", "the vocab.txt of a BERT", TOKENIZER, rb"\[PAD\]\r?\n", _A_TOKENIZER),
    # JSON.
    Kind("json", "the index of a sharded model", MODEL, has_key("weight_map"), source=FOLDER),
    Kind(
        "json",
        "the config.json of a model",
        MODEL,
        has_key("model_type", "architectures"),
        source=FOLDER,
    ),
    Kind(
        "json",
        "the params.json of a model in Meta's format",
        MODEL,
        lambda f: {"dim", "n_layers"} <= f.keys,
        source=FOLDER,
    ),
    Kind(
        "json",
        "the generation_config.json of a model",
        OTHER,
        has_key("_from_model_config", "eos_token_id", "max_new_tokens"),
    ),
    Kind(
        "tekken",
        "Mistral's tekken.json",
        TOKENIZER,
        lambda f: {"vocab", "special_tokens"} <= f.keys,
        _OTHER_TOKENIZER,
    ),
    Kind(
        "tokenizer.json",
        "a tokenizer.json (Hugging Face tokenizers)",
        TOKENIZER,
        has_key("model", "added_tokens", "pre_tokenizer", "normalizer"),
        _A_TOKENIZER,
    ),
    Kind(
        "json",
        "the settings of a tokenizer (tokenizer_config.json), not its vocabulary",
        TOKENIZER,
        has_key("tokenizer_class", "added_tokens_decoder", "chat_template", "bos_token"),
        _OTHER_TOKENIZER,
    ),
    Kind(
        "answer",
        "a server's error message (JSON)",
        OTHER,
        has_key("error", "detail", "message"),
        "fetch it again",
    ),
    Kind(
        "json",
        "the added tokens of a tokenizer (added_tokens.json), not its vocabulary",
        TOKENIZER,
        lambda f: f.path.name == "added_tokens.json" and f.text[:1] == b"{",
        _OTHER_TOKENIZER,
    ),
    Kind(
        "vocab.json",
        "the vocab.json of a byte-level BPE tokenizer",
        TOKENIZER,
        rb'\{\s*"(?:[^"\\]|\\.)*"\s*:\s*\d+\s*[,}]',
        _A_TOKENIZER,
    ),
    Kind("json", "a JSON file", OTHER, rb'[{\[]\s*["{\[\]}]'),
    # Arrays and other files.
    Kind(
        "state",
        "a saved state",
        STATE,
        lambda f: f.member == "config.npy",
        "State.load(PATH, model.config) reads it",
    ),
    Kind("npz", "a .npz of NumPy arrays", OTHER, lambda f: f.member.endswith(".npy")),
    Kind("npy", "a NumPy array (.npy)", OTHER, rb"\x93NUMPY"),
    Kind("pdf", "a PDF document", OTHER, rb"%PDF-"),
    Kind(
        "zip", "a zip archive", OTHER, rb"PK(?:\x03\x04.{26}|\x05\x06)", "`unzip {path}` unpacks it"
    ),
    Kind("gzip", "a gzip archive", OTHER, rb"\x1f\x8b", "`gunzip` or `tar -xf {path}` unpacks it"),
    Kind("tar", "a tar archive", OTHER, rb".{257}ustar", "`tar -xf {path}` unpacks it"),
    Kind(
        "packed",
        "a compressed archive",
        OTHER,
        rb"\xfd7zXZ|BZh[1-9]|\x28\xb5\x2f\xfd|\x04\x22\x4d\x18|7z\xbc\xaf|Rar!",
        "unpack it first",
    ),
    Kind("pickle", "a Python pickle", OTHER, rb"\x80[\x02-\x05]"),
    Kind("program", "a program", OTHER, rb"\x7fELF|MZ\x90|\xcf\xfa\xed\xfe"),
    Kind(
        "utf16",
        "a text in UTF-16",
        OTHER,
        rb"(?:\xff\xfe[^\0]\0|\xfe\xff\0[^\0])",
        "`iconv -f utf-16 -t utf-8 {path}` converts it",
    ),
    Kind("text", "a text", OTHER, is_text),
)
