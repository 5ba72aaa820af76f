"""Conversations in a model's own template: a tiny random network, and the reference tokenizers."""

import io
import json
import sys

import numpy as np
import pytest
from conftest import random_tensors, write_chat_folder

from llama2np import Llama, Tokenizer
from llama2np.cli import chat as chat_command
from llama2np.cli import main, run
from llama2np.decoding.turns import turns_for
from llama2np.formats import checkpoint
from llama2np.formats.checkpoint import Header
from llama2np.model.config import Config
from llama2np.model.transformer import Transformer

CONFIG = Config(
    dim=32, hidden_dim=48, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=640, seq_len=512
)
END = 569  # Qwen2's <|im_end|>


@pytest.fixture(scope="module")
def folders(reference):
    return reference / "tokenizers"


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    path = tmp_path_factory.mktemp("chat") / "m.bin"
    header = Header(1, CONFIG, True)
    checkpoint.save(path, header, random_tensors(header))
    return checkpoint.load(path)


@pytest.fixture
def load(network, folders):
    return lambda name: Llama(Transformer(*network), Tokenizer.load(folders / name, 640))


@pytest.fixture
def model(load):
    return load("qwen2")


def short(count, end=END):
    """A logits_processor: answers of `count` tokens without names, then the end."""

    def process(tokens, logits):
        said = next((n for n, token in enumerate(tokens[::-1]) if token >= 567), 0)
        if said - 3 >= count:  # after <|im_start|>, "assistant" and "\n" as 1 + 2 tokens
            logits[:] = 0
            logits[end] = 1e4
        else:
            logits[560:] = -np.inf
        return logits

    return process


def watched(model, monkeypatch):
    """The lists of tokens that the network reads."""
    read, forward = [], model.transformer.forward

    def watch(tokens, state, all_logits=False):
        read.append(list(tokens))
        return forward(tokens, state, all_logits)

    monkeypatch.setattr(model.transformer, "forward", watch)
    return read


def encoded(model, text):
    return model.tokenizer.encode(text, bos=False, special=True)


SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"


def test_only_what_is_new_is_read(model, monkeypatch):
    read = watched(model, monkeypatch)
    chat = model.chat(seed=1, logits_processor=short(9))
    first = "".join(chat.send("Hello"))
    asked = "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    assert read[0] == encoded(model, SYSTEM + asked) and all(len(r) == 1 for r in read[1:])
    answer = [token for (token,) in read[1:]]
    assert model.tokenizer.decode(answer) == first != ""
    count = len(read)
    second = "".join(chat.send("And?"))
    asked = "<|im_end|>\n<|im_start|>user\nAnd?<|im_end|>\n<|im_start|>assistant\n"
    # The last token of the answer was read, since the end came after it.
    assert read[count] == encoded(model, asked)
    roles = ("user", "assistant", "user", "assistant")
    contents = ("Hello", first, "And?", second)
    assert chat.messages == [
        {"role": r, "content": c} for r, c in zip(roles, contents, strict=True)
    ]


def test_the_answer_is_what_generate_says(model):
    chat = model.chat(seed=1, temperature=0.5, positions=150)
    text = model.tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}])
    story = model.generate(encoded(model, text), seed=1, temperature=0.5, max_new_tokens=40)
    answer = chat.send("Hi")
    assert "".join(next(answer) for _ in range(40)) == story.read()


def test_an_interrupted_answer_is_kept_as_far_as_it_came(model):
    chat = model.chat(seed=1, logits_processor=short(20))
    answer = chat.send("Hello")
    begun = "".join(next(answer) for _ in range(4))
    answer.close()
    list(chat.send("More"))
    assert [m["content"] for m in chat.messages][1] == begun
    with pytest.raises(ValueError, match="this answer ended with the next send"):
        answer = chat.send("A")
        list(chat.send("B"))
        next(answer)


def test_a_changed_conversation_is_read_as_far_as_it_differs(model, monkeypatch):
    read = watched(model, monkeypatch)
    chat = model.chat("Be brief.", seed=1, logits_processor=short(3))
    list(chat.send("Hello"))
    assert chat.system == "Be brief."
    chat.clear()
    assert chat.messages == [{"role": "system", "content": "Be brief."}]
    count = len(read)
    list(chat.send("Hey"))
    whole = model.tokenizer.apply_chat_template(chat.messages[:2])
    begin = model.tokenizer.apply_chat_template(chat.messages[:1], False)
    assert len(read[count]) <= len(encoded(model, whole)) - len(encoded(model, begin))
    chat.system = ""
    count = len(read)
    list(chat.send("Now?"))
    assert chat.system == ""
    whole = model.tokenizer.apply_chat_template(chat.messages[:-1])
    assert encoded(model, whole)[-len(read[count]) :] == read[count]


def test_messages_that_are_given(model):
    messages = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi!"},
        {"role": "user", "content": "How?"},
    ]
    chat = model.chat("S", messages=messages, temperature=0, positions=200)
    with pytest.raises(ValueError, match="has no answer yet: read answer"):
        chat.send("X")
    answer = "".join(chat.answer())
    text = model.tokenizer.apply_chat_template([{"role": "system", "content": "S"}, *messages])
    assert answer == model.generate(encoded(model, text), temperature=0).read()[: len(answer)]
    with pytest.raises(ValueError, match="not the user's: send"):
        chat.answer()
    assert len(messages) == 3 and len(chat.messages) == 5


@pytest.mark.parametrize(
    "messages, said",
    [
        ("Hi", "messages must be a list of"),
        ([{"role": "user"}], "a message must be"),
        ([{"role": "bot", "content": "a"}], "the role of a message must be system or user or"),
        ([{"role": "user", "content": ["a"]}], "the content of a message must be a text"),
    ],
)
def test_messages_of_another_form(model, messages, said):
    with pytest.raises(ValueError, match=said):
        model.chat(messages=messages)


@pytest.mark.parametrize(
    "name, ends",
    [("qwen2", {569}), ("smollm2", {1, 2}), ("llama3", {576, 580}), ("gemma", {1, 2, 5}),
     ("llama2_legacy", {1, 2})],
)  # fmt: skip
def test_ends_of_an_answer(load, name, ends):
    """Gemma's <end_of_turn> is in its template alone, if there is no generation_config.json."""
    assert turns_for(load(name).tokenizer, None).ends == ends


def test_bos_is_not_doubled(load):
    model = load("llama3")
    chat = model.chat(seed=1, positions=100)
    next(chat.send("Hi"))
    assert chat._tokens.count(576) == 1


def test_what_the_template_refuses(load):
    model = load("gemma")
    chat = model.chat("S")
    with pytest.raises(ValueError, match="System role not supported"):
        chat.send("Hi")
    assert chat.messages == [{"role": "system", "content": "S"}]
    chat.system = ""
    next(chat.send("Hi"))


def test_a_template_without_text(load):
    with pytest.raises(ValueError, match="the chat template makes no text of this conversation"):
        load("gpt2").chat(template="{# an empty file #}").send("Hi")


def test_without_a_template(load):
    model = load("gpt2")
    with pytest.raises(ValueError, match="this model has no chat template, so it was probably not"):
        model.chat()
    chat = model.chat(template="{% for m in messages %}{{ m.content }}{% endfor %}", seed=1)
    next(chat.send("Hi"))
    assert chat._tokens[:-1] == model.tokenizer.encode("Hi")


def test_a_full_context(model):
    chat = model.chat(seed=1, positions=60)
    with pytest.raises(ValueError, match="the context of 60 positions is full: this turn needs "):
        chat.send("word " * 60)
    assert chat.messages == []
    list(chat.send("Hi"))
    assert chat.full
    with pytest.raises(ValueError, match="the context of 60 positions is full"):
        chat.send("And?")
    chat.clear()
    next(chat.send("Hi"))


def test_a_saved_chat(model, tmp_path, monkeypatch):
    chat = model.chat("Sÿs", seed=1, logits_processor=short(9))
    list(chat.send("Hello\n日本"))
    chat.save(tmp_path / "c.json")
    other = model.chat(seed=1, logits_processor=short(9))
    other.load(tmp_path / "c.json")
    assert other.messages == chat.messages and other.system == "Sÿs"
    read = watched(model, monkeypatch)
    list(other.send("And?"))
    assert read[0] == encoded(model, model.tokenizer.apply_chat_template(other.messages[:-1]))
    value = json.loads((tmp_path / "c.json").read_text())
    assert value == {"messages": chat.messages}
    (tmp_path / "list.json").write_text(json.dumps(value["messages"]))
    other.load(tmp_path / "list.json")
    assert other.messages == chat.messages
    for data in (
        b"",
        b"[" * 99_999,
        b'{"messages": 5}',
        b'[{"role": "x", "content": ""}]',
        b"\xff",
    ):
        (tmp_path / "bad.json").write_bytes(data)
        with pytest.raises(ValueError, match="bad.json: not a saved chat: ") as error:
            other.load(tmp_path / "bad.json")
        assert "\n" not in str(error.value)
    assert other.messages == chat.messages


def test_llama_2_s_template_with_a_history(load, folders):
    """As Meta's generation.py writes it: BOS and EOS around each turn."""
    model = load("llama2_legacy")
    model.tokenizer = Tokenizer.load(folders / "llama2_legacy/tokenizer.model", 640)
    encode = model.tokenizer.encode
    messages = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "A"},
        {"role": "assistant", "content": "B"},
        {"role": "user", "content": "C"},
    ]
    chat = model.chat(messages=messages, seed=1)
    next(chat.answer())
    first = "[INST] <<SYS>>\nS\n<</SYS>>\n\nA [/INST] B "
    expected = encode(first, eos=True) + encode("[INST] C [/INST]")
    assert chat._tokens[: len(expected)] == expected
    with pytest.raises(ValueError, match="alternating messages of user and assistant"):
        model.chat(messages=[messages[2], messages[1]]).answer()


# --- the command ---


@pytest.fixture
def talk(model, monkeypatch, capsys):
    """talk("line\nline", *flags) -> status, standard output, standard error."""
    monkeypatch.setattr(chat_command, "load_model", lambda options: model)

    def talk(lines, *flags):
        monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
        status = main(["chat", "path/to/folder", *flags])
        return status, *capsys.readouterr()

    return talk


def answers(model, *texts, **options):
    chat = model.chat(**options)
    said = ["".join(chat.send(text)) for text in texts]
    return ["".join(c for c in text if c.isprintable() or c in "\n\t") for text in said]


def test_the_command_answers(model, talk):
    flags = ("-n", "110", "-s", "3", "-t", "0.7", "--logit-bias", f"{END}=-inf")
    status, out, err = talk("Hello\n", *flags)
    options = {"seed": 3, "temperature": 0.7, "logit_bias": {END: -np.inf}}
    (said,) = answers(model, "Hello", positions=110, **options)
    assert (status, "".join(out.split())) == (0, "".join(said.split()))
    assert err == "the context of 110 positions is full: /clear begins a new conversation\n"


def test_commands(talk, tmp_path):
    file = tmp_path / "chat.json"
    lines = f"/system\n/system Be brief.\n/system\n/save {file}\n/load {file}\n/clear\n/help\n"
    status, out, err = talk(lines, "-y", "You are a bear.")
    assert (status, out) == (0, "")
    said = err.splitlines()
    assert said[:3] == ["You are a bear.", "the system prompt is changed", "Be brief."]
    assert said[3:6] == [
        f"1 messages are in {file}",
        f"1 messages from {file}",
        "a new conversation",
    ]
    assert "/save FILE" in err and "Ctrl-D" in err
    status, out, err = talk("/system\n", "--load", str(file))
    assert (status, out, err) == (0, "", "Be brief.\n")


def test_several_lines(model, talk, monkeypatch):
    sent = []
    monkeypatch.setattr(
        type(model.chat()), "send", lambda self, text: sent.append(text) or iter(["ok"])
    )
    status, out, _ = talk('"""a\n\nb"""\none\\\ntwo\n\n   \n"""\nx\n"""\n', "-i", "first")
    assert (status, sent) == (0, ["first", "a\n\nb", "one\ntwo", "x"])
    assert out == "ok\n" * 4


@pytest.mark.parametrize(
    "lines, flags, said",
    [
        ("/sing\n", (), "/sing is not a command; these are: /clear, /system, /save, /load, /help"),
        ("/save\n", (), "/save needs the name of a file: /save FILE"),
        ("/load no.json\n", (), "no.json: No such file or directory"),
        ("word " * 300, ("-n", "100"), "the context of 100 positions is full: this turn needs"),
        ("", ("--load", "no.json"), "no.json: No such file or directory"),
        ("", ("--template", "no.jinja"), "no.jinja: No such file or directory"),
        ("", ("--temperatur", "x"), "unrecognized flag --temperatur; did you mean --temperature?"),
    ],
)
def test_errors_of_the_command(talk, lines, flags, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, err = talk(lines, *flags)
    assert status == 1 and out == "" and err.startswith("llama2np chat: ") and said in err
    assert err.count("\n") == 1


def test_a_template_from_a_file(model, talk, tmp_path):
    (tmp_path / "t.jinja").write_text("{{ messages[0].content }}:")
    status, out, _ = talk("Hello\n", "--template", str(tmp_path / "t.jinja"), "-n", "9", "-s", "1")
    (said,) = answers(model, "Hello", seed=1, positions=9, template="{{ messages[0].content }}:")
    assert status == 0 and "".join(out.split()) == "".join(said.split())


def test_run_with_a_template_is_this_chat(model, monkeypatch, capsys):
    """`run.py MODEL -m chat`."""
    monkeypatch.setattr(run.Llama, "load", lambda *_, **__: model)
    monkeypatch.setattr(sys, "stdin", io.StringIO("/system\n"))
    assert run.main(["folder", "-m", "chat", "-y", "Hi"], "run.py") == 0
    assert capsys.readouterr() == ("", "Hi\n")


def test_the_bundled_model_does_not_chat(capsys):
    assert main(["chat", "stories-box"]) == 1
    assert "stories-box is not a chat model, it only tells stories" in capsys.readouterr().err


# --- a folder as it is downloaded ---


@pytest.fixture
def folder(network, folders, tmp_path):
    """A tiny random Llama with Qwen2's tokenizer."""
    write_chat_folder(tmp_path / "folder", CONFIG, folders / "qwen2", [567, 569])
    return tmp_path / "folder"


def test_a_folder(folder, model):
    loaded = Llama.load(folder)
    bias = {2: -np.inf, 567: -np.inf}  # the first one is in the config.json that export wrote
    options = {"seed": 1, "temperature": 0.7, "positions": 100, "logit_bias": bias}
    assert loaded.tokenizer.ends == {2, 567, 569}
    assert "".join(loaded.chat(**options).send("Hi")) == "".join(model.chat(**options).send("Hi"))


@pytest.mark.parametrize("command", (["chat"], ["run", "-m", "chat"]))
def test_a_folder_in_the_terminal(folder, monkeypatch, capsys, command):
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hi\n/save c.json\n"))
    monkeypatch.chdir(folder)
    assert main([*command, str(folder), "-y", "Be brief.", "-n", "90", "-s", "1"]) == 0
    messages = json.loads((folder / "c.json").read_text())["messages"]
    assert [message["role"] for message in messages] == ["system", "user", "assistant"]
    said = "".join(c for c in messages[2]["content"] if c.isprintable())
    assert "".join(c for c in capsys.readouterr().out if c.isprintable()) == said != ""
