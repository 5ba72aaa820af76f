"""The sampling flags: each reaches the library under its own name, and bad values are one line."""

import pytest
from conftest import TINY, write_tokenizer

from llama2np import Llama
from llama2np.cli.run import main
from llama2np.formats.checkpoint import Header


@pytest.fixture
def files(write, tmp_path):
    return write("tiny.bin", Header(1, TINY, True)), write_tokenizer(tmp_path / "t.bin")


def run(files, capsys, *flags):
    model, tokenizer = map(str, files)
    status = main([model, "-z", tokenizer, "-s", "5", "-i", "AB", *flags], prog="run.py")
    return status, *capsys.readouterr()


def expected(files, **options):
    options = {"seed": 5, "max_new_tokens": 256, **options}
    return Llama.load(*files).generate("AB", **options).read()


@pytest.mark.parametrize(
    "flags, options",
    [
        ([], {}),
        (["--top-k", "3"], {"top_k": 3}),
        (["--min-p", "0.4"], {"min_p": 0.4}),
        (["--repetition-penalty", "1.7"], {"repetition_penalty": 1.7}),
        (["--presence-penalty", "-3"], {"presence_penalty": -3}),
        (["--frequency-penalty=2.5"], {"frequency_penalty": 2.5}),
        (["--logit-bias", "270=9"], {"logit_bias": {270: 9}}),
        (["--logit-bias=270=4", "--logit-bias", "271=-inf"], {"logit_bias": {270: 4, 271: -1e9}}),
        (["-t", "0.5", "-p", "0.7", "--top-k=9"], {"temperature": 0.5, "top_p": 0.7, "top_k": 9}),
        (["--max-new-tokens", "7"], {"max_new_tokens": 7}),
        (["--max-new-tokens", "70", "-n", "9"], {"max_new_tokens": 6}),  # 4 tokens are the prompt's
    ],
)
def test_a_flag_is_the_library_s_option(files, capsys, flags, options):
    status, out, _ = run(files, capsys, *flags)
    assert status == 0
    told = "".join(c for c in expected(files, **options) if c.isprintable())
    assert "".join(c for c in out if c.isprintable()) == "AB" + told


@pytest.mark.parametrize("flags", [["--top-k", "3"], ["--logit-bias", "270=9"], ["--min-p", ".4"]])
def test_the_flags_change_something(files, capsys, flags):
    assert run(files, capsys, *flags)[1] != run(files, capsys)[1]


def test_the_text_ends_before_any_stop_string(files, capsys):
    whole = run(files, capsys)[1]
    word, other = whole[12:14], whole[20:22]
    status, out, _ = run(files, capsys, "--stop", other, "--stop", word)
    assert status == 0 and out.strip("\n") == "AB" + whole[2:].split(word)[0].split(other)[0]


def test_log_probabilities_go_to_standard_error(files, capsys):
    status, out, err = run(files, capsys, "--logprobs", "2", "--max-new-tokens", "3", "-t", "0")
    lines = [line.split("\t") for line in err.splitlines() if not line.startswith("achieved")]
    assert status == 0 and out == run(files, capsys, "--max-new-tokens", "3", "-t", "0")[1]
    assert [len(cells) for cells in lines] == [3, 3, 3]
    story = Llama.load(*files).generate("AB", temperature=0, max_new_tokens=3, logprobs=2)
    story.read()
    for cells, token, logprob in zip(lines, story.tokens, story.logprobs, strict=True):
        assert cells[0] == cells[1]  # at temperature 0 it took the most probable
        assert cells[0].split()[0] == str(token)
        assert float(cells[0].split()[-1]) == pytest.approx(logprob, abs=1e-4)


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--top-k", "-1"], "argument --top-k: expected a whole number of 0 or more, found '-1'"),
        (["--min-p", "2"], "argument --min-p: expected a number from 0 to 1, found '2'"),
        (["--repetition-penalty", "0"], "--repetition-penalty: expected a number from 0.01 to 100"),
        (["--presence-penalty", "nan"], "--presence-penalty: expected a number from -100 to 100"),
        (["--logit-bias", "5"], "--logit-bias: expected TOKEN=X, such as 13=-5 or 13=-inf, found"),
        (["--logit-bias", "-5=1"], "--logit-bias: expected TOKEN=X"),
        (["--logit-bias", "5=inf"], "--logit-bias: expected TOKEN=X"),
        (["--logit-bias", "300=1"], "logit_bias has token 300, the vocabulary ends at 299"),
        (["--logprobs", "x"], "--logprobs: expected a whole number of 0 or more, found 'x'"),
        (["-m", "chat", "--stop", "x"], "--stop can be used with -m generate only, not with chat"),
        (["-m", "chat", "--max-new-tokens", "0"], "--max-new-tokens can be used with -m generate"),
        (["-m", "chat", "--logprobs", "1"], "--logprobs can be used with -m generate"),
    ],
)
def test_a_bad_value_is_one_line(files, capsys, flags, message):
    status, _, err = run(files, capsys, *flags)
    assert status == 1
    assert err.startswith("run.py: ") and message in err and err.count("\n") == 1


def test_chat_takes_the_sampling_flags(files, capsys, monkeypatch):
    import io

    monkeypatch.setattr("sys.stdin", io.StringIO("C\n"))
    status, out, _ = run(files, capsys, "-m", "chat", "-y", "", "-n", "40", "--top-k", "4")
    assert status == 0
    chat = Llama.load(*files).chat(seed=5, positions=40, top_k=4)
    answer = "".join(c for c in "".join(chat.send("AB")) if c.isprintable())
    assert answer and answer in "".join(c for c in out if c.isprintable())
