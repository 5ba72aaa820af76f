"""Training from scratch: texts, tokenizers, windows, and the commands."""

import json
from importlib.util import find_spec

import numpy as np
import pytest

from llama2np import Llama, State, freed_memory
from llama2np.cli import main
from llama2np.formats import huggingface, loading
from llama2np.formats.checkpoint import CheckpointError
from llama2np.formats.huggingface.inverse import with_values
from llama2np.formats.write import write_huggingface
from llama2np.learning import saved
from llama2np.learning.corpus import Windows, texts, write_tokens
from llama2np.learning.initial import initial_llama
from llama2np.learning.lines import lines
from llama2np.learning.trainer import Trainer
from llama2np.model.config import Config
from llama2np.text import training
from llama2np.text.tokenizer import Tokenizer
from llama2np.text.training import train_byte_level, train_sentencepiece

STORY = "Once there was a cat. The cat sat on a mat, and the mat was red.\nIt purred.\n"
STORIES = "".join(STORY.replace("cat", name) + "<|endoftext|>\n" for name in "dog hen pig".split())


@pytest.fixture
def story(tmp_path):
    (tmp_path / "stories.txt").write_text(STORIES * 4)
    return tmp_path / "stories.txt"


def test_texts(tmp_path, story):
    found = list(texts([story]))
    assert len(found) == 12 and found[0] == STORY.replace("cat", "dog").strip()
    (tmp_path / "plain.txt").write_text("One\n\ntext.\n")
    assert list(texts([tmp_path / "plain.txt"])) == ["One\n\ntext."]
    (tmp_path / "bad.txt").write_bytes(b"good\nb\xffd\n")
    with pytest.raises(ValueError, match="bad.txt: expected UTF-8, found byte 0xff in line 2"):
        list(texts([tmp_path / "bad.txt"]))


def test_a_long_line_comes_in_pieces(tmp_path, monkeypatch):
    """No more than LONGEST bytes of a line are in memory, and no character is cut in two."""
    monkeypatch.setattr("llama2np.learning.lines.LONGEST", 20)
    monkeypatch.setattr("llama2np.learning.corpus._LONGEST", 50)
    path, line = tmp_path / "long.txt", "déjà vu €" * 20
    path.write_text(f"\ufeffOne.\n<|endoftext|>\n{line} <|endoftext|>\nTwo.\n", encoding="utf-8")
    found = list(texts([path]))
    assert found[0] == "One." and max(map(len, found)) <= 70 and len(found) > 3
    assert "".join(found[1:]).replace(" ", "") == f"{line}<|endoftext|>\nTwo.".replace(" ", "")
    with pytest.raises(ValueError, match="long.txt: line 3: longer than 20 bytes"):
        list(lines(path))
    path.write_bytes("€".encode() * 7 + b"\xe2\x82")
    with pytest.raises(ValueError, match="found byte 0xe2 in line 1"):
        list(texts([path]))


def test_windows(tmp_path, story):
    path = tmp_path / "tokens.bin"
    count = write_tokens(path, [story], lambda text: [1, *text.encode()])
    tokens = np.fromfile(path, "<i4")
    assert count == len(tokens) and (tokens == 1).sum() == 12
    windows = Windows(path, 20, 3, seed=1)
    found = windows.batch(7)
    assert found.shape == (3, 20) and len(found.rows) == 60
    text = tokens.tobytes()
    for row, after in zip(found.tokens, found.targets.reshape(3, 20), strict=True):
        assert np.append(row, after[-1]).astype("<i4").tobytes() in text
        np.testing.assert_array_equal(row[1:], after[:-1])
    np.testing.assert_array_equal(found.tokens, Windows(path, 20, 3, seed=1).batch(7).tokens)
    assert (found.tokens != windows.batch(8).tokens).any()
    assert windows.name != Windows(path, 20, 3, seed=2).name
    every = np.concatenate([batch.targets for batch in windows.all()])
    np.testing.assert_array_equal(every, tokens[1 : len(every) + 1])
    assert len(tokens) - len(every) <= 20
    assert Windows(path, 10**6, 1).batch(0).shape == (1, count - 1)


def test_no_text(tmp_path):
    (tmp_path / "empty.txt").write_text("\n\n")
    with pytest.raises(ValueError, match="empty.txt: 0 tokens, expected 2 or more"):
        write_tokens(tmp_path / "tokens.bin", [tmp_path / "empty.txt"], lambda text: [1])
    assert not (tmp_path / "tokens.bin").exists()


def test_initial_weights():
    config = Config(
        dim=64, hidden_dim=96, n_layers=8, n_heads=4, n_kv_heads=2, vocab_size=50, seq_len=8
    )
    found = initial_llama(config, tied=False, seed=3)
    assert found["layers.0.wk"].shape == (32, 64) and (found["final_norm"] == 1).all()
    assert found["classifier"].std() == pytest.approx(0.02, rel=0.1)
    assert found["layers.3.w_down"].std() == pytest.approx(0.005, rel=0.1)
    assert "classifier" not in initial_llama(config)
    again = initial_llama(config, tied=False, seed=3)
    assert all((again[name] == array).all() for name, array in found.items())


def test_sentencepiece(tmp_path, story):
    train_sentencepiece(texts([story]), tmp_path / "tokenizer.model", 290)
    tokenizer = Tokenizer.load(tmp_path / "tokenizer.model")
    assert tokenizer.vocab_size == 290
    assert tokenizer.decode(tokenizer.encode("The cat, 12 é")).strip() == "The cat, 12 é"
    with pytest.raises(ValueError, match="a tokenizer of 9,000 pieces: sentencepiece"):
        train_sentencepiece(texts([story]), tmp_path / "tokenizer.model", 9000)


def test_byte_level(tmp_path, story):
    if find_spec("tokenizers") is None:
        pytest.skip("the package tokenizers is not installed")
    train_byte_level(texts([story]), tmp_path / "tokenizer.json", 300)
    tokenizer = Tokenizer.load(tmp_path / "tokenizer.json")
    tokens = tokenizer.encode("The cat, 12 é")
    assert tokens[0] == 1 and tokenizer.decode(tokens[1:]) == "The cat, 12 é"
    assert 259 < tokenizer.vocab_size <= 300  # this text does not have more


SHAPE = "--dim 16 --layers 2 --heads 2 --seq-len 32 --batch 2 --steps 4 --every 2".split()


def trained(out, story, tokenizer, *more):
    names = "--data", str(story), "--tokenizer", str(tokenizer)
    return main(["train", str(out), *names, *SHAPE, *more])


@pytest.fixture
def tokenizer(tmp_path, story):
    assert main(["tokenizer", "train", str(tmp_path / "t"), "--data", str(story),
                 "--vocab-size", "290"]) == 0  # fmt: skip
    return tmp_path / "t" / "tokenizer.model"


def test_train_and_run(tmp_path, story, tokenizer, capsys, monkeypatch):
    assert trained(tmp_path / "a", story, tokenizer, "--dev", str(story)) == 0
    assert "held out: 5." in capsys.readouterr().out
    folder, file = (
        Llama.load(p, engine="numpy") for p in (tmp_path / "a", tmp_path / "a/model.bin")
    )
    tokens = folder.tokenizer.encode("Once there")
    assert tokens == file.tokenizer.encode("Once there")
    logits = [m.forward(tokens, State(m.config)) for m in (folder, file)]
    np.testing.assert_allclose(*logits, atol=1e-5)
    lines = (tmp_path / "a" / "losses.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4]
    # Stopped in the middle, and started again: the same bytes
    step = Trainer.one_step

    def stops(self):
        if self.step == 3:
            raise KeyboardInterrupt
        return step(self)

    monkeypatch.setattr(Trainer, "one_step", stops)
    assert trained(tmp_path / "b", story, tokenizer) == 130
    monkeypatch.setattr(Trainer, "one_step", step)
    assert trained(tmp_path / "b", story, tokenizer) == 0
    assert "going on after step 3" in capsys.readouterr().err
    for name in ("model.safetensors", "model.bin", "config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_pt_of_llama2c_can_be_trained_on(reference, tmp_path, story, capsys):
    pt = reference / "stories260K" / "stories260K.pt"
    binary = reference / "stories260K" / "stories260K.bin"
    model, same = loading.transformer(pt, "numpy"), loading.transformer(binary, "numpy")
    logits = [m.forward([1, 5, 9], State(m.config)) for m in (model, same)]
    np.testing.assert_array_equal(*logits)
    tokenizer = str(reference / "stories260K" / "tok512.bin")
    words = "--seq-len 32 --batch 2 --steps 1 --rate 0 --weight-decay 0".split()
    status = main(
        [
            "train",
            str(tmp_path / "a"),
            "--init",
            str(pt),
            "--tokenizer",
            tokenizer,
            "--data",
            str(story),
            *words,
        ]  # fmt: skip
    )
    assert status == 0, capsys.readouterr().err
    again = loading.transformer(tmp_path / "a" / "model.bin", "numpy")
    np.testing.assert_array_equal(again.forward([1, 5, 9], State(again.config)), logits[0])


@pytest.mark.parametrize(
    "words, text",
    (
        (["--tokenizer", "{t}", "--data", "{none}"], "none.txt: No such file"),
        (["--data", "{story}"], "--tokenizer FILE is needed"),
        (["--tokenizer", "{t}", "--data", "{story}", "--heads", "5"], "does not divide dim"),
        (["--init", "stories-box", "--dim", "5", "--data", "{story}"], "has a shape of its own"),
        (["--tokenizer", "{t}", "--data", "{story}", "--decay", "fast"], "expected cosine or"),
    ),
)
def test_wrong_words(tmp_path, story, tokenizer, capsys, words, text):
    known = {"t": tokenizer, "none": tmp_path / "none.txt", "story": story}
    words = [word.format(**known) for word in words]
    assert main(["train", str(tmp_path / "out"), *words]) == 1
    err = capsys.readouterr().err
    assert text in err and err.count("\n") == 1


FOLDERS = (
    *("llama_bias", "qwen2_tied", "qwen3", "phi3_swa", "phi2", "gpt2", "gptneox_parallel"),
    *("gemma", "gemma3", "mixtral", "bert_mlm"),
)


@pytest.mark.parametrize("name", FOLDERS)
def test_a_changed_network_is_written_in_its_own_form(reference, tmp_path, name):
    """Also where it is fused, transposed, interleaved by head, or stored less 1."""
    folder = reference / "architectures" / name
    source, random = huggingface.read(folder), np.random.default_rng(0)
    values = {n: random.standard_normal(t.shape, np.float32) for n, t in source.tensors.items()}
    write_huggingface(with_values(source, values), tmp_path / "new")
    again = huggingface.read(tmp_path / "new").tensors
    assert again.keys() == values.keys()
    for key, array in values.items():
        # Gemma's norms are stored less 1, which rounds
        np.testing.assert_allclose(again[key].read(0, len(array)), array, atol=2e-7, err_msg=key)
    with pytest.raises(CheckpointError, match="has no wq of shape"):
        with_values(source, {"wq": array})


def test_the_losses_are_drawn(tmp_path, story, tokenizer, drawing, capsys):
    out = tmp_path / "a"
    assert trained(out, story, tokenizer, "--plot", str(out / "losses.png")) == 0
    assert (out / "losses.png").read_bytes().startswith(b"\x89PNG")
    assert f"wrote {out / 'losses.png'}" in capsys.readouterr().out
    for name, text in (("no/a.png", "no such folder"), ("a.txt", "must end in .png, .svg, .pdf")):
        assert trained(tmp_path / "b", story, tokenizer, "--plot", str(tmp_path / name)) == 1
        assert text in capsys.readouterr().err
    assert not (tmp_path / "b").exists()  # the error comes first


def test_what_is_drawn(drawing):
    from llama2np.analysis import plot

    random = np.random.default_rng(0).random(2500)
    each, mean = plot.losses(random).axes[0].lines
    assert len(each.get_xdata()) <= 1000 and len(mean.get_xdata()) == 2500
    assert mean.get_ydata()[1000] == pytest.approx(random[975:1025].mean())
    assert each.get_ydata()[0] == pytest.approx(random[:3].mean())
    (short, _) = plot.losses([3.0, 2.0]).axes[0].lines
    assert short.get_xdata().tolist() == [1, 2] and short.get_ydata().tolist() == [3, 2]


def test_a_full_disk_in_the_command(tmp_path, story, tokenizer, capsys, monkeypatch):
    save = saved.save

    def full(path, optimizer, *rest):
        if optimizer.step == 2:
            raise OSError(28, "No space left on device", "training.npz")
        save(path, optimizer, *rest)

    monkeypatch.setattr(saved, "save", full)
    assert trained(tmp_path / "a", story, tokenizer) == 0
    expected = "not saved: training.npz: No space left on device; training goes on and tries again"
    assert expected in capsys.readouterr().err


def test_more_steps_with_a_flag(tmp_path, story, tokenizer, capsys):
    assert trained(tmp_path / "a", story, tokenizer) == 0
    assert trained(tmp_path / "a", story, tokenizer, "--steps", "6") == 1
    assert "steps=4, expected 6" in capsys.readouterr().err
    assert trained(tmp_path / "a", story, tokenizer, "--steps", "6", "--allow-change") == 0
    assert len((tmp_path / "a" / "losses.jsonl").read_text().splitlines()) == 6


def test_no_text_for_a_tokenizer(tmp_path, capsys):
    (tmp_path / "empty.txt").write_text("\n<|endoftext|>\n")
    assert main(["tokenizer", "train", str(tmp_path / "t"), "--data", str(tmp_path / "empty.txt")])
    assert capsys.readouterr().err.endswith("empty.txt: no text to make a tokenizer of\n")


def test_a_tokenizer_reads_only_the_beginning(monkeypatch):
    """The trainers keep what they read; a file may be larger than memory."""
    monkeypatch.setattr(training, "MOST", 10)
    assert list(training._beginning(iter(["abcdef", "ghijkl", "m"]))) == ["abcdef", "ghijkl"]


def test_freed_memory_is_kept_where_glibc_can(monkeypatch):
    """By its own function, which other systems do not have; it is not called here."""
    called = []

    class Library:
        def mallopt(self, which, size):
            called.append((which, size))
            return 1

    monkeypatch.setattr("ctypes.CDLL", lambda name: Library())
    assert freed_memory.keep_freed_memory(2**20)
    assert called == [(-1, 2**20), (-3, 2**25)]
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    assert not freed_memory.keep_freed_memory()
