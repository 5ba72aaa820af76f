"""The plugin for `llm`, with the real package: its models, options, conversations and commands."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
from conftest import ROOT, TINY, missing, random_tensors, write_chat_folder, write_tokenizer

from llama2np import Llama
from llama2np.formats.checkpoint import Header, save

if sys.version_info >= (3, 11):
    import tomllib


@pytest.fixture(scope="module")
def llm():
    """The package, whose import takes half a second, with this plugin."""
    try:
        import llm
        from llm.cli import cli
        from llm.plugins import load_plugins, pm
    except ImportError as error:
        missing(f"the package llm is not installed: {error}")
    from llama2np import llm_plugin

    if not pm.has_plugin("llama2np"):
        pm.register(llm_plugin, "llama2np")
    load_plugins()
    if "llama2np" not in cli.commands:
        llm_plugin.register_commands(cli)
    return llm


@pytest.fixture(scope="module")
def logs(llm, tmp_path_factory):
    """The folder of `llm` with its empty database, which it takes a tenth of a second to make."""
    from llm.migrations import migrate
    from sqlite_utils import Database

    folder = tmp_path_factory.mktemp("llm")
    database = Database(folder / "logs.db")
    migrate(database)
    database.close()
    return folder


@pytest.fixture(autouse=True)
def user(tmp_path, monkeypatch, logs):
    """A user of `llm` with this plugin. The user has not used `llm` before."""
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path / "llm"))
    shutil.copytree(logs, tmp_path / "llm")
    return tmp_path


def invoke(*words):
    """What the command `llm` does: its exit code and its output."""
    from click.testing import CliRunner
    from llm.cli import cli

    return CliRunner().invoke(cli, [str(word) for word in words])


@pytest.fixture
def said():
    """said(*words) -> what the command `llm` prints when it succeeds."""

    def said(*words):
        done = invoke(*words)
        assert done.exit_code == 0, done.output
        return done.output

    return said


@pytest.fixture
def chatty(user, reference):
    """A folder with a random model that has a chat template."""
    tokenizer = reference / "tokenizers" / "smollm2"
    config = replace(TINY, vocab_size=562, seq_len=512)
    write_chat_folder(user / "chatty", config, tokenizer, [2])
    return user / "chatty"


def test_the_entry_point():
    from llama2np import llm_plugin

    if sys.version_info < (3, 11):
        pytest.skip("tomllib came with Python 3.11")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["llm"] == {"llama2np": "llama2np.llm_plugin"}
    assert llm_plugin.register_models and any(
        each.startswith("llm") for each in project["optional-dependencies"]["llm"]
    )


def test_it_is_light():
    """`llm` imports it at each start."""
    code = (
        "import sys, llama2np.llm_plugin as p; "
        "print({'numba', 'llama2np.llama'} & sys.modules.keys())"
    )
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr


def test_the_models(said):
    listed = said("models")
    for name in ("stories-box", "stories-box-q8", "smollm2", "stories15M"):
        assert f"llama2np:{name}\n" in listed
    options = said("models", "--options", "-m", "llama2np:stories-box")
    for name in ("temperature", "max_tokens", "top_p", "top_k", "seed"):
        assert f"{name}: " in options


def test_a_story(said):
    words = ["-m", "llama2np:stories-box", "-o", "seed", 3, "-o", "max_tokens", 12]
    text = Llama.load("stories-box").generate("Once upon", seed=3, max_new_tokens=12)
    text.read()
    assert len(text.tokens) == 12
    for flags in ([], ["--no-stream"]):
        assert said(*words, "Once upon", *flags) == text.text + "\n"
    usage = said("logs", "-n", 1, "--json")
    assert f'"input_tokens": {len(text.prompt)}' in usage and '"output_tokens": 12' in usage


def test_it_streams(llm):
    response = llm.get_model("llama2np:stories-box").prompt("Once", seed=1, max_tokens=5)
    pieces = iter(response)
    first = next(pieces)
    text = Llama.load("stories-box").generate("Once", seed=1, max_new_tokens=5).read()
    assert text.startswith(first) and first != text and first + "".join(pieces) == text


def test_a_conversation(said, chatty):
    """Each turn is answered as `Chat` answers it, also in a new process and in Python."""
    assert said("llama2np", "add", chatty) == "llama2np:chatty\n"
    words = ["-m", "llama2np:chatty", "-o", "temperature", 0, "-o", "max_tokens", 6]
    first = said(*words, "-s", "Be kind.", "Hi").removesuffix("\n")
    second = said("-c", "-o", "temperature", 0, "-o", "max_tokens", 6, "And now?")
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
    model = Llama.load(chatty)
    chat = model.chat(messages=messages, temperature=0)
    expected = "".join(piece for _, piece in zip(range(6), chat.answer(), strict=False))
    assert first == expected
    messages += [{"role": "assistant", "content": first}, {"role": "user", "content": "And now?"}]
    chat = model.chat(messages=messages, temperature=0)
    expected = "".join(piece for _, piece in zip(range(6), chat.answer(), strict=False))
    assert second == expected + "\n"


def test_a_conversation_is_not_read_again(llm, said, chatty, monkeypatch):
    said("llama2np", "add", chatty, "--name", "c")
    model = llm.get_model("llama2np:c")
    talk, read = model.conversation(), []
    talk.prompt("Hi", temperature=0, max_tokens=4).text()
    forward = type(model._llama.transformer).forward

    def counted(self, tokens, *rest, **named):
        read.append(len(tokens))
        return forward(self, tokens, *rest, **named)

    monkeypatch.setattr(type(model._llama.transformer), "forward", counted)
    again = talk.prompt("Go on", temperature=0, max_tokens=1)
    again.text()
    assert sum(read) < again.input_tokens - 10
    model.conversation().prompt("Hi", temperature=0, max_tokens=1).text()
    assert len(model._chat[0].messages) == 2  # nothing of the other conversation


def test_options_that_the_authors_recommend(llm, user, chatty, said):
    (chatty / "generation_config.json").write_text('{"temperature": 0.3, "top_p": 0.5}')
    said("llama2np", "add", chatty)
    model = llm.get_model("llama2np:chatty")
    model.prompt("Hi", max_tokens=1).text()
    assert model._llama.suggested_sampling.items() <= model._chat[1].items()
    assert model._chat[1]["temperature"] == 0.3
    model.prompt("Hi", max_tokens=1, temperature=0.9).text()
    assert model._chat[1]["temperature"] == 0.9 and model._chat[1]["top_p"] == 0.5


def test_added_paths(user, said):
    save(user / "m.bin", header := Header(1, TINY, True), random_tensors(header))
    write_tokenizer(user / "tokenizer.bin")
    assert said("llama2np", "add", user / "m.bin") == "llama2np:m\n"
    assert "llama2np:m\n" in said("models")
    asked = ["-m", "llama2np:m", "-o", "temperature", 0, "-o", "max_tokens", 3]
    text = Llama.load(user / "m.bin").generate("AB", temperature=0, max_new_tokens=3).read()
    assert said(*asked, "AB").strip("\n") == text.strip("\n")
    said("llama2np", "remove", "llama2np:m")
    assert "llama2np:m\n" not in said("models")


@pytest.mark.parametrize(
    "words, message",
    [
        (("-m", "llama2np:smollm2", "Hi"), "smollm2 is not here: llama2np pull smollm2"),
        (("-m", "llama2np:stories-box", "-s", "Be kind.", "A"), "it takes no system prompt"),
        (("-m", "llama2np:stories-box", "-o", "temperature", "-1", "A"), "temperature"),
        (("-m", "llama2np:stories-box", "-o", "hot", "1", "A"), "hot"),
        (("-m", "llama2np:stories-box", "word " * 400), "the context holds 256"),
        (("-m", "llama2np:none", "A"), "Unknown model: llama2np:none"),
        (("llama2np", "add", "none.gguf"), "'none.gguf' does not exist"),
        (("llama2np", "remove", "none"), "none was not added"),
    ],
)
def test_what_it_refuses(words, message, monkeypatch):
    monkeypatch.delattr(sys, "_called_from_test", raising=False)
    done = invoke(*words)
    assert done.exit_code != 0 and message in done.output, done.output
    assert "Traceback" not in done.output


def test_a_file_that_has_gone(user, said):
    (user / "m.bin").write_bytes(b"no model")
    said("llama2np", "add", user / "m.bin")
    done = invoke("-m", "llama2np:m", "A")
    assert done.exit_code == 1 and done.output.startswith("Error: ") and "m.bin" in done.output
