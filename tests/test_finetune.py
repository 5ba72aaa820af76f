"""Fine-tuning and classifying: LoRA and its files, heads, and the commands."""

import json
import math

import numpy as np
import pytest
from networks import program, tiny
from trainings import Same

from llama2np import Classifier, Llama, State, export
from llama2np.analysis.metrics import Report
from llama2np.analysis.zero_shot import zero_shot
from llama2np.cli import main
from llama2np.formats import loading, peft, safetensors
from llama2np.formats.checkpoint import CheckpointError, Header
from llama2np.learning.batch import Batch
from llama2np.learning.examples import Examples, Labelled, Texts
from llama2np.learning.finetuning import Finetuning, LowRank
from llama2np.learning.gradients import batch_gradients, batch_loss
from llama2np.learning.lora import low_rank_parameters, merged
from llama2np.learning.trainer import Settings, Trainer
from llama2np.model.config import Config

# LoRA


def low_rank(rank=3, kind=np.float64):
    config, tensors = tiny("llama")
    network, random = program(config, tensors), np.random.default_rng(1)
    parameters = low_rank_parameters(network, rank, ("wq", "w_down"))
    noise = {n: random.normal(size=a.shape).astype(kind) for n, a in parameters.items()}
    return network, parameters, noise


def test_lora_starts_as_the_network():
    network, parameters, _ = low_rank()
    batch = Batch.next_tokens(np.arange(12)[None])
    assert sorted(parameters) == sorted(
        f"layers.{i}.{w}.lora_{x}" for i in (0, 1) for w in ("wq", "w_down") for x in "AB"
    )
    plain, _ = batch_gradients(network, {}, batch), None
    with_parts = batch_gradients(network, parameters, batch, lora_scale=2.0)
    assert with_parts[0].total == plain[0].total
    assert not with_parts[1]["layers.0.wq.lora_A"].any()  # as B is 0
    assert with_parts[1]["layers.0.wq.lora_B"].any()


def test_gradients_of_lora():
    network, _, parameters = low_rank()
    batch = Batch.next_tokens(np.arange(24).reshape(2, 12) % 17)
    gradients = batch_gradients(network, parameters, batch, 1.0, lora_scale=0.7)[1]
    assert gradients.keys() == parameters.keys()
    random = np.random.default_rng(2)
    for name, array in parameters.items():
        step = random.normal(size=array.shape) * 1e-3
        up, down = (
            batch_loss(network, parameters | {name: array + s * step}, batch, lora_scale=0.7).total
            for s in (1, -1)
        )
        # the frozen weights, and with them some of the values, are float32
        assert up - down == pytest.approx(2 * (gradients[name] * step).sum(), rel=5e-3, abs=1e-6)


def test_merged_lora_is_the_same_network():
    network, _, parameters = low_rank(kind=np.float32)
    batch = Batch.next_tokens(np.arange(12)[None])
    apart = batch_loss(network, parameters, batch, lora_scale=0.3)
    together = batch_loss(network, merged(network, parameters, 0.3), batch)
    assert together.total == pytest.approx(apart.total, rel=1e-5)


def test_wrong_lora():
    network = low_rank()[0]
    with pytest.raises(ValueError, match="rank of LoRA must be 1 or more"):
        low_rank_parameters(network, 0)
    with pytest.raises(ValueError, match="no matrix is called 'q_proj'; there are w_down, w_gate"):
        low_rank_parameters(network, 1, ["q_proj"])


SHAPE = Config(dim=32, hidden_dim=48, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=300,
               seq_len=64)  # fmt: skip


@pytest.fixture
def base(write, tmp_path):
    """A .bin file and a folder of the same network."""
    from conftest import write_tokenizer

    path = write("base.bin", Header(1, SHAPE, True))
    write_tokenizer(tmp_path / "tokenizer.bin")
    export(path, tmp_path / "folder", version=-1)
    return path, tmp_path / "folder"


def logits(model, tokens=(1, 5, 9, 260)):
    return model.forward(list(tokens), State(model.config), all_logits=True)


def test_an_adapter_and_the_merged_network(base, tmp_path):
    """PEFT's file has one order of rows, whatever the order of the network is."""
    found = []
    for number, path in enumerate(base):
        tuning = Finetuning(path, "lora", low_rank=LowRank(2, 3.0, ("wq", "wk", "w_up")))
        random = np.random.default_rng(4)
        for array in tuning.parameters.values():
            array[:] = random.standard_normal(array.shape) * 0.3
        tuning.write_adapter(tmp_path / f"adapter{number}")
        tuning.write(tmp_path / f"merged{number}")
        adapted = Llama.load(path, engine="numpy", adapter=tmp_path / f"adapter{number}")
        whole = Llama.load(tmp_path / f"merged{number}", engine="numpy")
        np.testing.assert_allclose(logits(adapted), logits(whole), atol=2e-5)
        assert np.abs(logits(adapted) - logits(Llama.load(path, engine="numpy"))).max() > 0.1
        found.append(logits(adapted))
    # The adapter of the .bin fits the folder, and the other way round
    for i, path in enumerate(base):
        other = Llama.load(path, engine="numpy", adapter=tmp_path / f"adapter{1 - i}")
        np.testing.assert_allclose(logits(other), found[1 - i], atol=2e-5)
    settings = json.loads((tmp_path / "adapter0" / "adapter_config.json").read_text())
    assert settings["r"] == 2 and settings["lora_alpha"] == 3.0
    assert settings["target_modules"] == ["k_proj", "q_proj", "up_proj"]
    names = set(safetensors.read(tmp_path / "adapter0" / "adapter_model.safetensors"))
    assert "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight" in names


def write_tensors(path, tensors):
    start = safetensors.header_for({n: t.shape for n, t in tensors.items()}, np.dtype("f4"))
    path.write_bytes(start + b"".join(t.astype("<f4").tobytes() for t in tensors.values()))


def adapter(folder, tensors, **fields):
    folder.mkdir()
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4} | fields
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    write_tensors(folder / "adapter_model.safetensors", tensors)
    return folder


Q = "base_model.model.model.layers.0.self_attn.q_proj"
A, B = np.ones((2, 32)), np.ones((32, 2))


@pytest.mark.parametrize(
    "tensors, fields, words",
    (
        ({f"{Q}.lora_A.weight": A, f"{Q}.lora_B.weight": B}, {"use_dora": True}, "use_dora=True"),
        ({f"{Q}.lora_A.weight": A, f"{Q}.lora_B.weight": B}, {"peft_type": "IA3"}, "peft_type="),
        ({f"{Q}.lora_A.weight": A}, {}, "do not fit"),
        ({f"{Q}.lora_A.weight": A, f"{Q}.lora_B.weight": B[:, :1]}, {}, "do not fit"),
        ({f"{Q}.lora_A.weight": A[:, :8], f"{Q}.lora_B.weight": B}, {}, "another network"),
        ({f"{Q}.lora_A.weight": A, f"{Q}.lora_B.weight": B[:7]}, {}, "another network"),
        ({f"{Q}x.lora_A.weight": A, f"{Q}x.lora_B.weight": B}, {}, "is not part of the network"),
        ({f"{Q}.lora_magnitude_vector": A}, {}, "is not a part of LoRA"),
        ({}, {}, "has no low-rank parts"),
        ({f"{Q}.lora_A.weight": A, f"{Q}.lora_B.weight": B}, {"r": -1}, "r=-1"),
    ),
)
def test_wrong_adapters(base, tmp_path, tensors, fields, words):
    folder = adapter(tmp_path / "adapter", tensors, **fields)
    for path in base:
        with pytest.raises(CheckpointError) as error:
            Llama.load(path, engine="numpy", adapter=folder)
        assert words in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(OSError, match="nowhere"):
        Llama.load(base[0], engine="numpy", adapter=tmp_path / "nowhere")


def test_an_adapter_of_a_fused_and_transposed_matrix(reference, tmp_path):
    """GPT-2's c_attn: q, k and v in one, and (inputs, outputs)."""
    path = reference / "architectures" / "gpt2"
    random, dim = np.random.default_rng(0), 64
    a, b = random.standard_normal((2, dim)), random.standard_normal((3 * dim, 2))
    name = "base_model.model.transformer.h.0.attn.c_attn"
    folder = adapter(tmp_path / "adapter", {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b},
                     fan_in_fan_out=True, use_rslora=True)  # fmt: skip
    loaded = loading.load(path)
    found = peft.with_adapter(loaded.weights, loaded.config, folder, "gpt2")
    delta = 4 / 2**0.5 * (b @ a)
    for i, ours in enumerate(("wq", "wk", "wv")):
        before, after = (w[f"layers.0.{ours}"].w for w in (loaded.weights, found))
        np.testing.assert_allclose(after - before, delta[i * dim : (i + 1) * dim], atol=1e-4)
    with pytest.raises(ValueError, match="is a part of a fused tensor of gpt2"):
        tuning = Finetuning(path, "lora")
        tuning.write_adapter(tmp_path / "out")


# Labels


def test_reports():
    found = Report.of(np.array([0, 1, 1, 0]), np.array([0, 1, 0, 0]), ("bad", "good", "odd"))
    assert found.accuracy == 0.75 and found.confusion.tolist() == [[2, 1, 0], [0, 1, 0], [0, 0, 0]]
    np.testing.assert_allclose(found.f1, [0.8, 2 / 3, 0])
    assert found.macro_f1 == pytest.approx((0.8 + 2 / 3) / 2)
    assert list(found.lines())[0] == "accuracy 0.7500, macro F1 0.7333"
    with pytest.raises(ValueError, match="no labels"):
        Report.of(np.zeros(0, int), np.zeros(0, int), ("a", "b"))


def test_zero_shot(base):
    """Against the sum over the whole text, computed again for each label."""
    model = Llama.load(base[0], engine="numpy")
    prompt, labels, text = "{text} IS", ["GOOD", "BAD", "A"], "THE CAT"
    found = zero_shot(model, [text], labels, prompt)
    for label, score in zip(labels, found[0], strict=True):
        tokens = model.tokenizer.encode(f"{text} IS {label}")
        start = len(model.tokenizer.encode(f"{text} IS"))
        rows = logits(model, tokens).astype(float)
        chances = rows - np.log(np.exp(rows).sum(-1, keepdims=True))
        expected = sum(chances[i - 1, tokens[i]] for i in range(start, len(tokens)))
        # "A" and " A": the space is a token that all labels share, which does not count
        shared = chances[start - 1, tokens[start]]
        assert score == pytest.approx(expected - shared, abs=1e-4)
    normalized = zero_shot(model, [text], labels, prompt, normalize=True)
    np.testing.assert_allclose(normalized[0] * [4, 3, 1], found[0], rtol=1e-6)
    long = zero_shot(model, ["A" * 1000], labels, prompt)
    assert np.isfinite(long).all()
    with pytest.raises(ValueError, match="two or more different labels"):
        zero_shot(model, [text], ["A", "A"])
    with pytest.raises(ValueError, match="has no {text}"):
        zero_shot(model, [text], labels, "IS")


@pytest.mark.parametrize("mode", ("all", "lora"))
def test_finetune_and_classify(base, labelled, tmp_path, capsys, mode):
    out = tmp_path / "out"
    words = "--task classify --epochs 8 --rate 0.02 --batch 4".split()
    words += ["--data", labelled, "--dev", labelled, "--train", mode]
    assert main(["finetune", str(base[0]), str(out), *map(str, words)]) == 0
    told = capsys.readouterr().out
    assert "accuracy 1.0000, macro F1 1.0000" in told
    model = Classifier.load(out, engine="numpy")
    assert model.labels == ("bad", "good")
    found = model.classify(["FINE A", "GRIM D"])
    assert found[0]["good"] > 0.5 > found[1]["good"]
    assert math.isclose(sum(found[0].values()), 1)
    words = ["--data", str(labelled), "--engine", "numpy", "--out", str(tmp_path / "p.jsonl")]
    assert main(["classify", str(out), *words]) == 0
    assert "accuracy 1.0000" in capsys.readouterr().out
    lines = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert len(lines) == 16 and lines[0]["label"] == lines[0]["predicted"] == "good"
    settings = json.loads((out / "config.json").read_text())
    assert settings["architectures"] == ["LlamaForSequenceClassification"]
    with pytest.raises(CheckpointError, match="without labels"):
        Classifier.load(base[0], engine="numpy")


def test_predictions_in_parts(base, labelled, tmp_path, capsys, monkeypatch):
    """However many texts are in memory at a time, the file and the report are the same."""
    words = ["--data", str(labelled), "--engine", "numpy", "--labels", "good,bad", "--out"]
    told, files = [], []
    for part in (256, 5):
        monkeypatch.setattr("llama2np.cli.classify._PART", part)
        assert main(["classify", str(base[0]), *words, str(tmp_path / "p.jsonl")]) == 0
        told.append(capsys.readouterr().out)
        files.append((tmp_path / "p.jsonl").read_bytes())
    assert told[0] == told[1] and files[0] == files[1] and files[0].count(b"\n") == 16


def test_a_frozen_network_with_a_head(base, labelled):
    examples = Examples.read(labelled)
    tokenizer = base[0].parent / "tokenizer.bin"
    tuning = Finetuning(base[1], "head", examples.names, named_tokenizer=tokenizer)
    data = Labelled(examples, tuning.tokenizer.encode, 16, 64)
    assert list(tuning.parameters) == ["classifier"]
    trainer = Trainer(tuning.program, tuning.parameters, Same(data.batch(0)), Settings(30, 0.1))
    trainer.run()
    assert trainer.losses[-1] < trainer.losses[0] - 0.3


def test_finetune_on_text(base, tmp_path, capsys):
    (tmp_path / "text.txt").write_text("THE CAT SAT ON THE MAT. " * 20)
    words = "--epochs 2 --batch 2 --seq-len 32 --rate 0.01".split()
    words += ["--data", str(tmp_path / "text.txt"), "--dev", str(tmp_path / "text.txt")]
    assert main(["finetune", str(base[0]), str(tmp_path / "a"), *words]) == 0
    told = capsys.readouterr().out.splitlines()
    before, after = (float(line.split()[3]) for line in told[:2])
    assert after < before
    assert logits(Llama.load(tmp_path / "a" / "model.bin", engine="numpy")).shape == (4, 300)
    words += ["--train", "lora", "--adapter", "--targets", "wo"]
    assert main(["finetune", str(base[0]), str(tmp_path / "b"), *words]) == 0
    adapted = Llama.load(base[0], engine="numpy", adapter=tmp_path / "b")
    assert (logits(adapted) != logits(Llama.load(base[0], engine="numpy"))).any()


@pytest.mark.parametrize(
    "command, words, text",
    (
        ("finetune", ["--task", "classify", "--adapter"], "a head has no adapter file"),
        ("finetune", ["--train", "head"], "the head is tied to the embedding"),
        ("finetune", ["--task", "classify", "--labels", "a,b"], "label 'good', expected one of"),
        ("finetune", ["--train", "lora", "--targets", "x"], "no matrix is called 'x'"),
        ("classify", [], "--labels A,B is needed"),
        ("classify", ["--labels", "good"], "expected one of good"),
    ),
)
def test_wrong_words(base, labelled, tmp_path, capsys, command, words, text):
    out = [str(tmp_path / "out")] if command == "finetune" else []
    assert main([command, str(base[0]), *out, "--data", str(labelled), *words]) == 1
    err = capsys.readouterr().err
    assert text in err and err.count("\n") == 1


@pytest.mark.parametrize("mode", ("all", "lora"))
def test_a_trained_network_in_memory(base, tmp_path, mode):
    tuning = Finetuning(base[0], mode)
    data = Texts(["THE CAT", "A MAT"], tuning.tokenizer.encode, 2, 20)
    trainer = Trainer(tuning.program, tuning.parameters, data, Settings(3, 0.01), **tuning.options)
    trainer.run()
    batch, values = data.batch(0), merged(tuning.program, tuning.parameters, tuning.low_rank.scale)
    loss = batch_loss(tuning.program, tuning.parameters, batch, **tuning.options).total
    assert batch_loss(tuning.program, values, batch).total == pytest.approx(loss, rel=1e-5)
    tuning.write(tmp_path / "out")
    model, files = tuning.llama("numpy"), Llama.load(tmp_path / "out" / "model.bin", engine="numpy")
    np.testing.assert_allclose(logits(model), logits(files), atol=1e-5)
    untrained = Llama.load(base[0], engine="numpy")
    assert np.abs(logits(model) - logits(untrained)).max() > 1e-3  # not if LoRA's scale is 0
    assert model.transformer.weights["classifier"] is model.transformer.weights["embedding"]
    assert model.tokenizer.encode("THE CAT") == files.tokenizer.encode("THE CAT")
    with pytest.raises(ValueError, match="writes no text"):
        Finetuning(base[0], labels=("a", "b")).llama()
    with pytest.raises(ValueError, match="nothing to predict"):
        Texts([], tuning.tokenizer.encode, 1, 9)


@pytest.mark.parametrize("name", ("qwen2_tied", "gpt2", "phi2", "mixtral"))
def test_a_written_classifier_is_the_trained_one(reference, tmp_path, name):
    """For every family: transformers read these folders, too, and gave the same logits."""
    tuning = Finetuning(reference / "architectures" / name, "all", ("a", "b", "c"))
    random = np.random.default_rng(0)
    for array in tuning.parameters.values():
        array += random.standard_normal(array.shape, np.float32) * np.float32(0.05)
    tuning.write(tmp_path / "out")
    written = loading.transformer(tmp_path / "out", "numpy")
    batch = Batch.labels(np.array([[1, 5, 9, 100]]), None, [2])
    expected = batch_loss(tuning.program, tuning.parameters, batch).total
    assert batch_loss(written.program, {}, batch).total == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("name", ("qwen2.Q8_0", "gpt2.Q4_0"))
def test_gguf_files_of_other_architectures_become_folders(reference, tmp_path, name):
    tuning = Finetuning(reference / "gguf" / f"{name}.gguf", "lora")
    tuning.check_writable()
    for array in tuning.parameters.values():
        array += np.float32(0.01)
    tuning.write(tmp_path / "out")
    batch = Batch.next_tokens(np.array([[1, 5, 9, 100, 7]]))
    expected = batch_loss(tuning.program, tuning.parameters, batch, **tuning.options).total
    written = loading.transformer(tmp_path / "out", "numpy")
    assert batch_loss(written.program, {}, batch).total == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("mode", ("all", "lora"))
def test_four_bit_weights_can_be_the_start(reference, tmp_path, mode):
    tuning = Finetuning(reference / "gguf" / "llama.Q4_0.gguf", mode)
    batch = Batch.next_tokens(np.array([[1, 5, 9, 100, 7]]))
    for array in tuning.parameters.values():
        array += np.float32(0.01)
    tuning.write(tmp_path / "out")
    expected = batch_loss(tuning.program, tuning.parameters, batch, **tuning.options).total
    written = loading.transformer(tmp_path / "out", "numpy")
    assert batch_loss(written.program, {}, batch).total == pytest.approx(expected, abs=1e-4)
