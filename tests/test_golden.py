"""The C programs' own output, byte for byte, through the command line."""

import json
from pathlib import Path

import pytest

from llama2np import Llama
from llama2np.cli.run import main as run
from llama2np.decoding.sampler import Sampler
from llama2np.formats.checkpoint import Header, open_tensors, save
from llama2np.text.tokenizer import EOS

REFERENCE = Path(__file__).parents[2] / "shared" / "reference"
pytestmark = pytest.mark.compiled


def cases(name):
    """The cases of a file, each with a readable id; none where the folder is missing."""
    file = REFERENCE / f"{name}.json"
    found = json.loads(file.read_text()) if file.exists() else []
    return [pytest.param(c, id=f"{Path(c['model']).stem} {' '.join(c['args'])}") for c in found]


def arguments(reference, case):
    return [str(reference / case["model"]), "-z", str(reference / case["tokenizer"]), *case["args"]]


def test_the_cases_are_there(reference):
    assert [len(cases(f"{n}_cases")) for n in ("run_c", "runq_c", "chat")] == [21, 17, 2]


@pytest.mark.parametrize("case", cases("run_c_cases"))
def test_run(reference, case, capsys):
    assert run(arguments(reference, case), prog="run.py") == 0
    assert capsys.readouterr().out.encode() == case["stdout"].encode("latin-1")


@pytest.mark.parametrize("case", cases("run_c_cases")[::4])
def test_run_with_the_same_weights_in_version_1(reference, case, capsys, tmp_path):
    header, tensors = open_tensors(reference / case["model"])
    save(tmp_path / "v1.bin", Header(1, header.config, header.tied), tensors)
    arguments_v1 = [str(tmp_path / "v1.bin"), *arguments(reference, case)[1:]]
    assert run(arguments_v1, prog="run.py") == 0
    assert capsys.readouterr().out.encode() == case["stdout"].encode("latin-1")


@pytest.mark.parametrize("case", [c for c in cases("runq_c_cases") if "stdout" in c.values[0]])
def test_runq(reference, case, capsys):
    assert run(arguments(reference, case), prog="runq.py", int8_only=True) == 0
    assert capsys.readouterr().out.encode() == case["stdout"].encode("latin-1")


@pytest.mark.parametrize("case", cases("runq_c_cases"))
def test_runq_tokens(reference, case):
    """Every token, as far as runq's first EOS, where it goes on and we stop."""
    flags = dict(zip(case["args"][::2], case["args"][1::2], strict=True))
    model = Llama.load(reference / case["model"], reference / case["tokenizer"])
    sampler = Sampler(float(flags["-t"]), float(flags.get("-p", 0.9)), int(flags["-s"]))
    tokens = model.tokenizer.encode(flags.get("-i", ""))
    state, unread = model.new_state(), list(tokens)
    expected = case["tokens"]
    if EOS in expected:
        expected = expected[: expected.index(EOS) + 1]
    while len(tokens) < len(expected):
        unread = [sampler.sample(model.forward(unread, state))]
        tokens += unread
    assert tokens == expected


@pytest.mark.parametrize("case", cases("chat_cases"))
def test_chat(reference, case, capsys, monkeypatch):
    import io

    monkeypatch.setattr("sys.stdin", io.StringIO(case["stdin"]))
    assert run(arguments(reference, case), prog="run.py") == 0
    output = capsys.readouterr()
    assert output.out.encode() == case["stdout"].encode("latin-1")
    assert "the context of 96 positions (-n) is full" in output.err
