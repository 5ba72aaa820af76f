"""The command `generate`: a line for each prompt, once and whole, however often it is killed."""

import json
import signal
import sys
import time

import forks
import pytest
from conftest import ROOT, TINY, write_tokenizer

from llama2np import Llama
from llama2np.cli.generate import main
from llama2np.formats.checkpoint import Header
from llama2np.jsonl import LONGEST_LINE, Answers


@pytest.fixture
def command(write, tmp_path, capsys):
    """command(lines, *flags) -> exit status, answers by line, what was on standard error."""
    model, tokenizer = write("tiny.bin", Header(1, TINY, True)), write_tokenizer(tmp_path / "t.bin")

    def run(lines, *flags, output="out.jsonl"):
        data = lines if isinstance(lines, bytes) else "".join(map(text, lines)).encode()
        (tmp_path / "p.jsonl").write_bytes(data)
        files = ["--prompts", str(tmp_path / "p.jsonl"), "--output", str(tmp_path / output)]
        status = main([str(model), "-z", str(tokenizer), *files, *flags], prog="llama2np generate")
        out, err = capsys.readouterr()
        assert out == ""
        path = tmp_path / output
        read = path.read_text().splitlines() if path.exists() and not status else []
        return status, {each["line"]: each for each in map(json.loads, read)}, err

    run.model, run.folder = Llama.load(model, tokenizer), tmp_path
    return run


def text(line):
    return line + "\n" if line in ("", "nonsense") else json.dumps(line) + "\n"


def test_each_prompt_has_an_answer(command):
    lines = ["AB", {"prompt": "A", "seed": 3, "max_new_tokens": 4, "id": 7}, {"prompt": [1, 40]}]
    lines += ["", {"prompt": "QQ", "logit_bias": {"70": 3}, "stop": "e"}]
    status, answers, err = command(lines, "-s", "5", "--max-new-tokens", "6")
    assert (status, err, sorted(answers)) == (0, "", [1, 2, 3, 5])
    model = command.model
    alone = model.generate("AB", seed=5, max_new_tokens=6)
    assert answers[1] == {
        "line": 1,
        "prompt": "AB",
        "text": alone.read(),
        "stop_reason": alone.stop_reason,
        "prompt_tokens": len(alone.prompt),
        "completion_tokens": len(alone.tokens),
    }
    assert answers[2]["text"] == model.generate("A", seed=3, max_new_tokens=4).read()
    assert answers[2]["id"] == 7 and answers[3]["prompt"] == [1, 40]
    options = {"logit_bias": {70: 3}, "stop": "e", "seed": 5, "max_new_tokens": 6}
    assert answers[5]["text"] == model.generate("QQ", **options).read()


def test_conversations(command):
    messages = [{"role": "user", "content": "Hi"}]
    line = {"messages": messages, "max_new_tokens": 5, "seed": 2}
    status, answers, _ = command([line])
    chat = command.model.chat(seed=2)
    assert status == 0 and answers[1]["prompt"] == messages
    answer = "".join(chat.send("Hi"))
    assert answers[1]["text"] and answer.startswith(answers[1]["text"].rstrip("\ufffd"))


def test_bad_lines_are_reported_with_their_number(command):
    lines = b'"AB"\nnonsense\n{"seed": 1}\n{"prompt": "A", "temperature": -1}\n\xff\n7\n'
    lines += b'{"prompt": "A", "seeds": 1}\n{"prompt": "A", "messages": []}\n{"messages": []}\n'
    lines += b"[" * 100_000 + b"\n" + b'"' + b"A" * LONGEST_LINE + b'"\n' + b'"%s"\n' % (b"A" * 99)
    status, _, err = command(lines, "--max-new-tokens", "2", "-s", "1")
    assert status == 1
    told = [line.split("p.jsonl:")[1] for line in err.splitlines()[:-1]]
    assert [int(line.split(":")[0]) for line in told] == [*range(2, 13)]
    assert all(len(line) < 300 for line in told) and "Traceback" not in err
    assert told[0].startswith("2: not JSON: ") and told[1] == '3: expected "prompt" or "messages"'
    assert told[2] == "4: temperature must be 0, or 1e-30 to 1e30, not -1.0"
    assert told[3] == "5: expected UTF-8, found byte 0xff at byte 0"
    assert "has no option 'seeds'" in told[5] and "found both" in told[6]
    assert told[9] == "11: longer than 4,194,304 bytes, the maximum here"
    assert told[10] == "12: the prompt has 101 tokens, the context holds 96"
    assert err.endswith("llama2np generate: 11 of 12 lines have no answer: see above\n")
    answers = (command.folder / "out.jsonl").read_text().splitlines()
    assert [json.loads(line)["line"] for line in answers] == [1]


def test_it_goes_on_where_it_was_killed(command):
    lines = [{"prompt": "AB", "seed": i + 1} for i in range(6)]
    _, first, _ = command(lines, "--max-new-tokens", "3")
    out = command.folder / "out.jsonl"
    data = out.read_bytes()
    for size in (0, 5, data.index(b"\n") + 1, data.index(b"\n") + 20, len(data) - 1, len(data)):
        out.write_bytes(data[:size])
        status, answers, _ = command(lines, "--max-new-tokens", "3")
        assert (status, answers) == (0, first)
        assert len(out.read_text().splitlines()) == 6  # none of them twice


def test_other_files_are_not_damaged(command):
    out = command.folder / "out.jsonl"
    for content in (b"mine", b'{"line": "x"}\n', b'{"a": 1}\n', b'{"line": 1}\nmine\n'):
        out.write_bytes(content)
        status, _, err = command(["AB"])
        assert status == 1 and "not an answer of an earlier run: name another output" in err
        assert out.read_bytes() == content
    out.unlink()
    status, _, err = command(["AB"], output="p.jsonl")
    assert status == 1 and "is the file of the prompts" in err
    assert command(["AB"], "--max-new-tokens", "1")[0] == 0
    status, _, err = command(["ABC"], "--max-new-tokens", "1")
    assert status == 1 and "p.jsonl:1: the output has an answer to another prompt" in err


def test_only_one_process_writes_a_file(command):
    with Answers(command.folder / "out.jsonl"):
        status, _, err = command(["AB"])
    assert status == 1 and "out.jsonl: another process is writing it" in err


def test_a_full_disk_leaves_whole_lines(tmp_path, monkeypatch):
    with Answers(tmp_path / "a") as answers:
        answers.append(1, {"text": "\ud800 é"})
        file, answers._file = answers._file, Full(answers._file)
        with pytest.raises(OSError, match="No space left"):
            answers.append(2, {"text": "long"})
        answers._file = file
    (line,) = (tmp_path / "a").read_text().splitlines()
    assert json.loads(line) == {"line": 1, "text": "\ud800 é"}


class Full:
    """A file on a disk that has 5 bytes left."""

    def __init__(self, file):
        self._file, self._left = file, 5
        self.seek, self.truncate = file.seek, file.truncate

    def write(self, data):
        if not self._left:
            raise OSError(28, "No space left on device")
        self._file.write(data[: self._left])
        left, self._left = self._left, 0
        return left


@pytest.mark.compiled
def test_kill_9(tmp_path, capsys):
    """After it was killed, the next run gives every prompt exactly one answer."""
    prompts, out = tmp_path / "p.jsonl", tmp_path / "o.jsonl"
    prompts.write_text(
        "".join(json.dumps({"prompt": "Tom", "seed": i}) + "\n" for i in range(1, 31))
    )
    flags = ["stories-box", "--prompts", str(prompts), "--output", str(out)]
    flags += ["--max-new-tokens", "60", "--max-sequences", "4"]
    child = forks.Popen([sys.executable, "-m", "llama2np", "generate", *flags], cwd=ROOT)
    while child.poll() is None and not lines_of(out):
        time.sleep(0.01)
    child.kill()
    assert child.wait() == -signal.SIGKILL and 1 <= lines_of(out) < 30
    assert main(flags, prog="llama2np generate") == 0
    answers = [json.loads(line) for line in out.read_text().splitlines()]
    assert sorted(each["line"] for each in answers) == [*range(1, 31)]


def lines_of(path):
    return path.read_bytes().count(b"\n") if path.exists() else 0
