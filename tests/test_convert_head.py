"""An lm_head beside tied embeddings, in every form of folder; and names with what trainers add."""

import json
from itertools import product

import numpy as np
import pytest
from hf_folder import CONFIG, HF, HF_CONFIG, random_tensors, read
from safetensors.numpy import save_file

from llama2np import export
from llama2np.cli import main
from llama2np.formats import huggingface, llama2c, meta, names
from llama2np.formats.checkpoint import CheckpointError, CheckpointWarning
from llama2np.formats.huggingface.inverse import with_values
from llama2np.formats.huggingface.writing import llama_names
from llama2np.formats.names import bare, bare_names
from tools.hostile_valid import parts_of
from tools.torch_files import Tensor, pickled, write_archive

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def save_torch(tensors, path, key="model", **content):
    """Write tensors as torch.save does, or a trainer's dictionary that has them at `key`."""
    records = {n: Tensor(str(i), "float32", v.shape) for i, (n, v) in enumerate(tensors.items())}
    files = {f"data/{records[name].key}": value.tobytes() for name, value in tensors.items()}
    data = pickled({key: records} | content if content else records)
    write_archive(path, {"data.pkl": data, "byteorder": b"little"} | files)


def write_single(tensors, folder):
    save_file(tensors, folder / "model.safetensors")


def write_shards(tensors, folder, save=save_file, name="model.safetensors"):
    """Two files and an index."""
    names, places = list(tensors), {}
    for i, part in enumerate((names[::2], names[1::2])):
        file = f"part-{i}.{name.rpartition('.')[2]}"
        save({key: tensors[key] for key in part}, folder / file)
        places |= dict.fromkeys(part, file)
    (folder / f"{name}.index.json").write_text(json.dumps({"weight_map": places}))
    return places


def write_unlisted(tensors, folder):
    """The index does not list the head, which is in a shard: transformers loads it."""
    places = write_shards(tensors, folder)
    places.pop(HEAD, None)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


FORMS = {
    "safetensors": write_single,
    "shards": write_shards,
    "shards, not in the index": write_unlisted,
    "pytorch_model.bin": lambda tensors, folder: save_torch(tensors, folder / "pytorch_model.bin"),
    "shards of it": lambda tensors, folder: write_shards(
        tensors, folder, save_torch, "pytorch_model.bin"
    ),
}


@pytest.fixture(params=FORMS)
def folder(request, tmp_path):
    """Write a Hugging Face folder: folder(tensors, config field=value ...) -> its path."""

    def write(tensors, **fields):
        path = tmp_path / "hf"
        path.mkdir()
        (path / "config.json").write_text(json.dumps(HF | fields))
        FORMS[request.param](tensors, path)
        return path

    return write


def test_a_head_of_its_own_is_used_and_said(folder):
    tensors = random_tensors()
    with pytest.warns(CheckpointWarning, match="hf: says tie_word_embeddings.*is used") as told:
        source = huggingface.read(folder(tensors, tie_word_embeddings=True))
    assert not source.tied and len(told) == 1
    np.testing.assert_array_equal(read(source.tensors["classifier"]), tensors[HEAD])


@pytest.mark.parametrize("said", [True, False])
def test_a_head_that_is_the_embedding_is_tied_without_a_word(folder, said):
    tensors = random_tensors()
    tensors[HEAD] = tensors[EMBEDDING].copy()
    assert huggingface.read(folder(tensors, tie_word_embeddings=said)).tied  # a warning is an error


def test_a_head_of_another_shape_is_refused(folder):
    tensors = random_tensors() | {HEAD: np.zeros((41, 16), np.float32)}
    with pytest.raises(CheckpointError, match=r"classifier has shape \(41, 16\), expected"):
        huggingface.read(folder(tensors, tie_word_embeddings=True))


def test_the_commands_say_it_in_one_line_and_go_on(folder, tmp_path, capsys):
    path, out = folder(random_tensors(), tie_word_embeddings=True), tmp_path / "x.bin"
    for words in (["export", str(out), "--hf", str(path)], ["inspect", str(path)]):
        assert main(words) == 0
        told = capsys.readouterr()
        assert told.err.count("\n") == 1 and "an lm_head of other values" in told.err
        assert told.err.startswith(f"llama2np {words[0]}: {path}: ")
    assert "classifier not tied" in told.out
    assert not llama2c.read_bin(out).tied
    with pytest.warns(CheckpointWarning, match="an lm_head of other values"):
        export(path, out, 1)


@pytest.mark.parametrize("equal", [True, False])
def test_meta_s_form_says_nothing_of_ties(tmp_path, equal):
    tensors = meta_tensors()
    if equal:
        tensors["output.weight"] = tensors["tok_embeddings.weight"].copy()
    assert write_meta(tmp_path, tensors).tied == equal


# Names


def meta_tensors():
    """The tensors under Meta's names, which llama2.c's trainer uses, too."""
    names, tensors, random = {ours: n for n, ours in meta._NAMES.items()}, {}, random_tensors()
    for ours, theirs in llama_names(CONFIG):
        name, layer = parts_of(ours)
        tensors[(f"layers.{layer}." if layer else "") + f"{names[name]}.weight"] = random[theirs]
    return tensors


def write_meta(folder, tensors):
    params = {"dim": 16, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "norm_eps": 1e-5}
    (folder / "params.json").write_text(json.dumps(params))
    save_torch(tensors, folder / "consolidated.00.pth")
    return meta.read(folder)


def same(source, other):
    assert source.tensors.keys() == other.tensors.keys() and source.config == other.config
    for name, tensor in source.tensors.items():
        np.testing.assert_array_equal(read(tensor), read(other.tensors[name]))


PREFIXES = [
    "".join(parts)
    for n in range(3)
    for parts in product(("module.", "_orig_mod.", "model."), repeat=n)
] + ["base_model.model.", "_forward_module.", "transformer.", "module.student._orig_mod."]


def read_folder(folder, tensors):
    (folder / "config.json").write_text(json.dumps(HF))
    write_single(tensors, folder)
    return huggingface.read(folder)


@pytest.fixture(scope="module")
def plain_folder(tmp_path_factory):
    return read_folder(tmp_path_factory.mktemp("plain"), random_tensors())


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("inner", ["", "model."])
def test_a_hugging_face_folder_with_any_prefix(tmp_path, plain_folder, prefix, inner):
    renamed = {
        prefix + (inner if name.startswith("model.") else "") + name.removeprefix("model."): value
        for name, value in random_tensors().items()
    }
    same(plain_folder, read_folder(tmp_path, renamed))


@pytest.mark.parametrize("form", FORMS)
def test_a_bare_model_whose_head_is_tied(tmp_path, form):
    """What `LlamaModel.save_pretrained` writes: no "model." before the names, and no head."""
    tensors = random_tensors()
    tensors |= {"model.rotary_emb.inv_freq": np.zeros(2, np.float32)}
    tensors.pop(HEAD)
    (tmp_path / "config.json").write_text(json.dumps(HF | {"tie_word_embeddings": True}))
    FORMS[form]({bare(name): value for name, value in tensors.items()}, tmp_path)
    source = huggingface.read(tmp_path)
    assert source.tied and source.config == HF_CONFIG
    np.testing.assert_array_equal(read(source.tensors["embedding"]), tensors[EMBEDDING])


def read_files(folder, tensors):
    """A trainer's file, and Meta's."""
    arguments = {"dim": 16, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "max_seq_len": 64}
    save_torch(tensors, folder / "x.pt", model_args=arguments)
    return llama2c.read_pt(folder / "x.pt"), write_meta(folder, tensors)


@pytest.fixture(scope="module")
def plain_files(tmp_path_factory):
    return read_files(tmp_path_factory.mktemp("plain"), meta_tensors())


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_trainer_s_file_and_meta_s_with_any_prefix(tmp_path, plain_files, prefix):
    renamed = {prefix + name: value for name, value in meta_tensors().items()}
    for plain, other in zip(plain_files, read_files(tmp_path, renamed), strict=True):
        same(plain, other)


def test_wrapped_parts_of_a_network():
    for name in (
        "model.layers.0._orig_mod.self_attn.q_proj.weight",
        "_fsdp_wrapped_module.model.layers.0._fsdp_wrapped_module.self_attn.q_proj.weight",
        "module.model.layers.0._checkpoint_wrapped_module.self_attn.q_proj.weight",
    ):
        assert bare(name) == "layers.0.self_attn.q_proj.weight"
    assert bare("model") == "model" and bare("remodel.x") == "remodel.x"


def test_a_first_part_that_all_names_share_is_a_wrapper_s():
    assert bare_names(["lm_head.weight"]) == {"lm_head.weight": "lm_head.weight"}
    block = "layers.0.self_attn.q_proj.weight"  # of a folder without its other files
    assert bare_names([f"a.b.{block}"]) == {f"a.b.{block}": block}
    assert set(bare_names(["a.norm.weight", f"b.{block}"]).values()) == {
        "a.norm.weight",
        f"b.{block}",
    }


def test_a_name_of_very_many_parts_takes_no_quadratic_time(monkeypatch):
    """A hostile file may have a name of megabytes."""
    calls = []
    monkeypatch.setattr(names, "bare", lambda *given: calls.append(given) or bare(*given))
    bare_names(["a" + ".a" * 1000])
    assert len(calls) < 10


def test_values_go_back_to_wrapped_names(tmp_path):
    tensors = {f"base_model.model.{name}": value for name, value in random_tensors().items()}
    (tmp_path / "config.json").write_text(json.dumps(HF))
    write_single(tensors, tmp_path)
    changed = with_values(huggingface.read(tmp_path), {"final_norm": np.full(16, 3, np.float32)})
    assert changed.original.tensors.keys() == tensors.keys()
    assert (read(changed.original.tensors["base_model.model.model.norm.weight"]) == 3).all()


def test_an_adapter_that_is_not_merged_is_refused_with_the_way(tmp_path):
    tensors = {f"base_model.model.{name}": value for name, value in random_tensors().items()}
    lora = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight"
    (tmp_path / "config.json").write_text(json.dumps(HF))
    write_single(tensors | {lora: np.zeros((2, 16), np.float32)}, tmp_path)
    with pytest.raises(CheckpointError, match="lora_A.default.weight, .* by PEFT's merge_and"):
        huggingface.read(tmp_path)


@pytest.mark.parametrize("key", ["state_dict", "model", "module"])
def test_tensors_in_a_trainer_s_dictionary(tmp_path, key):
    path, tensors = tmp_path / "pytorch_model.bin", random_tensors()
    save_torch(tensors, path, key, epoch=3, optimizer={"state": {}})
    (tmp_path / "config.json").write_text(json.dumps(HF))
    found = huggingface.read(tmp_path).tensors["embedding"]
    np.testing.assert_array_equal(read(found), tensors[EMBEDDING])
    save_torch(tensors, path, key, ema={"norm.weight": Tensor("0", "float32", (16,))})
    with pytest.raises(CheckpointError, match=f"{path}: holds several dictionaries .*'ema'"):
        huggingface.read(tmp_path)


def test_the_mask_that_older_trainers_save(tmp_path):
    """llama2.c's network has it as a buffer where torch is older than 2."""
    mask = {"layers.0.attention.mask": np.zeros((1, 1, 4, 4), np.float32)}
    sources = []
    for name, more in (("plain", {}), ("masked", mask)):
        (tmp_path / name).mkdir()
        sources.append(write_meta(tmp_path / name, meta_tensors() | more))
    same(*sources)


def test_one_tensor_under_two_names_is_refused(tmp_path):
    tensors = random_tensors()
    (tmp_path / "config.json").write_text(json.dumps(HF))
    save_file(
        tensors | {"module.model.norm.weight": tensors["model.norm.weight"] + 1},
        tmp_path / "model.safetensors",
    )
    with pytest.raises(
        CheckpointError, match="norm.weight and .*norm.weight are the same tensor: expected one"
    ):
        huggingface.read(tmp_path)
