"""Folders of Hugging Face's transformers: config.json beside safetensors or pytorch_model.bin.

config_json.py  config.json to Config; rope_json.py: the part about positions
families.py     the names of the tensors of each family
parts.py        tensors that are fused, transposed or shifted
shards.py       the files with the tensors
inverse.py      a changed network, in a folder's own names and form
writing.py      a network as such a folder, with describing.py
sentences.py    the files of sentence-transformers beside an encoder, read and written
"""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

from llama2np.formats import kinds
from llama2np.formats.checkpoint import CheckpointError
from llama2np.formats.dtypes import dtype_of
from llama2np.formats.huggingface import sentences
from llama2np.formats.huggingface.config_json import config_of
from llama2np.formats.huggingface.families import FAMILIES, Family
from llama2np.formats.huggingface.inverse import OLD_NAMES
from llama2np.formats.huggingface.parts import Part
from llama2np.formats.huggingface.shards import tensors_of
from llama2np.formats.json_file import JsonFile
from llama2np.formats.names import unwrapped
from llama2np.formats.source import Original, Sentences, Source, Stored, checked
from llama2np.model.config import Config
from llama2np.model.networks import is_encoder


@kinds.reader("hf", CheckpointError)
def read(folder: str | os.PathLike[str]) -> Source:
    """Open a network in Hugging Face's form. Raises CheckpointError, and OSError."""
    folder = Path(folder)
    params = JsonFile(folder / "config.json")
    config = config_of(params, _labels(params))
    if config.n_labels:  # only logits of tokens are capped
        config = replace(config, logit_softcap=0.0)
    family = FAMILIES[str(params.get("model_type"))]
    ignored = re.compile(rf"(.*\.)?({family.ignored})")
    files = {n: tensor for n, tensor in tensors_of(folder).items() if not ignored.fullmatch(n)}
    if config.n_layers > len(files):
        raise CheckpointError(
            f"{params.path}: num_hidden_layers={config.n_layers}, found {len(files)} tensors in all"
        )
    if config.n_experts * config.n_layers > len(files):
        raise CheckpointError(
            f"{params.path}: {config.n_experts} experts in each of {config.n_layers} layers, found "
            f"{len(files)} tensors in all"
        )
    found = _by_their_names(files, family, str(folder))
    tied = params.flag("tie_word_embeddings", family.tied)
    tensors = _by_our_names(found, family, config, params, tied)
    source = checked(str(folder), config, tensors, tied, sorted(found))
    found_beside = sentences.read(folder) if is_encoder(config) else Sentences()
    return replace(source, original=Original(params.fields, files), sentences=found_beside)


def _labels(params: JsonFile) -> int:
    """The number of labels, if the network classifies texts."""
    names = params.get("architectures")
    first = names[0] if isinstance(names, list) and names else None
    if not isinstance(first, str) or not first.endswith("ForSequenceClassification"):
        return 0
    labels = params.get("id2label")
    return len(labels) if isinstance(labels, dict) and labels else params.whole("num_labels", 2)


def _by_their_names(files: dict[str, Stored], family: Family, where: str) -> dict[str, Stored]:
    """The tensors of the files by their names without prefixes."""
    plain = unwrapped({name: name for name in files}, where, family.prefix)
    found: dict[str, Stored] = {}
    for name, original in plain.items():
        for old, new in OLD_NAMES.items():
            name = name.replace(old, new)
        if name in found:
            raise CheckpointError(
                f"{where}: {original} is also there by its new name: expected one of them"
            )
        found[name] = files[original]
    return found


def _by_our_names(
    found: dict[str, Stored], family: Family, config: Config, params: JsonFile, tied: bool
) -> dict[str, Stored]:
    """The tensors by our names; those that are used are removed from `found`."""
    tensors: dict[str, Stored] = {}
    used: set[str] = set()
    biased = _biased(family, params)
    modules = dict(family.modules(config))
    if config.n_labels and config.architecture != "bert":
        modules["classifier"] = "score"
        biased.discard("classifier")
    for ours, theirs in modules.items():
        name = theirs.name if isinstance(theirs, Part) else theirs
        ends = ["weight", "bias"] if ours.split(".")[-1] in biased else ["weight"]
        if f"{name}.weight" not in found:
            continue
        for end in ends:
            if (tensor := found.get(f"{name}.{end}")) is None:
                raise CheckpointError(f"{params.path}: the files beside it have no {name}.{end}")
            used.add(f"{name}.{end}")
            dtype_of(tensor.dtype, f"{params.path}: {name}.{end}")
            if isinstance(theirs, Part):
                tensor = _taken(theirs, tensor, config, f"{params.path}: {name}.{end}")
            tensors[ours if end == "weight" else f"{ours}.bias"] = tensor
    for ours, exact in family.exact.items():
        if exact in found:
            used.add(exact)
            dtype_of(found[exact].dtype, f"{params.path}: {exact}")
            tensors[ours] = found[exact]
    for name in used:
        del found[name]
    if "classifier" not in tensors and not tied:
        raise CheckpointError(
            f"{Path(params.path).parent}: has no lm_head.weight, and config.json does not say "
            "tie_word_embeddings"
        )
    return tensors


def _taken(part: Part, tensor: Stored, config: Config, where: str) -> Stored:
    try:
        return part.take(tensor, config)
    except ValueError as error:
        raise CheckpointError(f"{where} {error}") from None


def _biased(family: Family, params: JsonFile) -> set[str]:
    """Our names of the modules that have a bias."""
    names: set[str] = set()
    for flag, modules in family.biases.items():
        if not flag or params.flag(flag, family.biased_by_default):
            names |= set(modules.split())
    return names
