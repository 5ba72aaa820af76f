"""What `llama2np bench` measures, prints and refuses. How fast anything was is not looked at."""

import csv
import io
import json
import shlex
import sys

import pytest
from conftest import TINY

from llama2np import analysis, kernels
from llama2np.bench import arithmetic, machine, measure
from llama2np.bench.peer import Peer
from llama2np.cli import main
from llama2np.formats import checkpoint
from llama2np.formats.checkpoint import Header
from llama2np.model.architectures import llama
from llama2np.model.program import Program

# Prints what llama2.c does, half as fast in each further run, and notes how it was called.
PEER = """
import os, sys
with open(sys.argv[1], "a+") as log:
    print(os.environ["OMP_NUM_THREADS"], *sys.argv[2:], file=log)
    log.seek(0)
    rate = 1000 / 2 ** len(log.readlines())
print("a story, that says achieved tok/s: 7", flush=True)
print(f"achieved tok/s: {rate:f}", file=sys.stderr)
print(f"[ Prompt: {rate + 1} t/s ]")
"""


@pytest.fixture
def model(write, monkeypatch):
    """A tiny model, on a machine whose sgemm is known and whose memory is small."""
    monkeypatch.setattr(measure, "Memory", lambda: machine.Memory(2**16))
    monkeypatch.setattr(measure, "sgemm_speed", lambda threads: threads * 1e9)
    return write("tiny.bin", Header(0, TINY, True))


@pytest.fixture
def bench(model, capfd):
    """bench(*flags) -> what it printed, with tasks short enough for TINY's 96 positions."""
    before = kernels.threads()

    def bench(*flags, path=model, status=0):
        short = ("--prompt", "8", "--generate", "4", "--repeats", "2", "--threads", "1")
        given = [flag for flag in flags if str(flag).startswith("--")]
        argv = [flag for pair in zip(short[::2], short[1::2], strict=True) for flag in pair]
        argv = [a for i, a in enumerate(argv) if argv[i - i % 2] not in given]
        assert main(["bench", str(path), *argv, *map(str, flags)]) == status
        out, err = capfd.readouterr()
        assert (err == "") == (status == 0)
        return out if status == 0 else err

    yield bench
    kernels.set_threads(before)


@pytest.fixture
def peer(tmp_path):
    """The command of the peer, and the file of its calls."""
    script, log = tmp_path / "a peer.py", tmp_path / "log"
    script.write_text(PEER)
    return shlex.join([sys.executable, str(script), str(log)]), log


# --- what is measured ---


def names(tasks):
    return [(task.name, task.depth) for task in tasks]


def test_the_usual_tasks_are_those_that_fit():
    assert names(measure.plan(4096)) == [
        *[("pp512", 0), ("tg128", 0), ("pp512", 512), ("tg128", 512)],
        *[("pp512", 2048), ("tg128", 2048)],
    ]
    assert names(measure.plan(1000)) == [("pp512", 0), ("tg128", 0), ("tg128", 512)]
    assert names(measure.plan(256)) == [("pp256", 0), ("tg128", 0)]
    assert names(measure.plan(64)) == [("pp64", 0), ("tg64", 0)]


def test_other_tasks():
    assert names(measure.plan(96, 5, 7, [80, 0, 0])) == [
        *[("pp5", 0), ("tg7", 0), ("pp5", 80), ("tg7", 80)]
    ]
    assert names(measure.plan(96, 0, 96)) == [("tg96", 0)]
    assert names(measure.plan(96, 16, 0, [80])) == [("pp16", 80)]


@pytest.mark.parametrize(
    "arguments, words",
    [
        ((96, 97), "prompt: 97 96"),
        ((96, None, 97), "generate: 97 96"),
        ((96, 5, 7, [92]), "depth 92 5 7 96"),
        ((96, 0, 0), "nothing to measure"),
        ((96, 0, 0, [0]), "nothing to measure"),
    ],
)
def test_tasks_that_do_not_fit(arguments, words):
    with pytest.raises(ValueError) as caught:
        measure.plan(*arguments)
    for word in words.split():
        assert word in str(caught.value)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("group_size", [0, 16])
def test_bytes_that_a_token_makes_the_machine_read(write, tied, group_size):
    header = Header(2 if group_size else 1, TINY, tied, group_size)
    config, weights = checkpoint.load(write("model.bin", header))
    program = Program(config, weights, llama)
    read = header.file_size - 256
    if not tied:
        read -= header.size("embedding", (config.vocab_size, config.dim))
    position = 2 * 4 * config.n_layers * config.kv_dim  # keys and values, float32
    assert arithmetic.bytes_to_generate(program, 0, 1) == read + position
    # the four tokens behind ten others see 11, 12, 13 and 14 positions
    assert arithmetic.bytes_to_generate(program, 10, 4) == read + 12.5 * position


@pytest.fixture
def tiny(write):
    return Program(*checkpoint.load(write("t.bin", Header(0, TINY, True))), llama)


def test_operations_that_a_prompt_takes(tiny):
    matrices = 3 * (48 * 48 + 2 * 16 * 48 + 48 * 48 + 3 * 48 * 80)
    position = 3 * 6 * 2 * 8  # layers, heads, score and sum over values, head_dim
    assert arithmetic.operations_to_read(tiny, 0, 1) == 2 * (matrices + position)
    assert arithmetic.operations_to_read(tiny, 10, 4) == 2 * (matrices + 12.5 * position)


def test_sgemm_is_measured_in_another_process():
    assert machine.sgemm_speed(1) > 0


def test_memory_is_read():
    assert machine.Memory(2**16).read_speed(3) > 0


# --- what is printed ---


def test_json(bench, model, tiny):
    found = json.loads(bench("--json", "--depth", "16,0"))
    assert found["model"] == model.name and found["config"]["n_kv_heads"] == 2
    assert found["format"] == "float32"
    assert found["parameters"] == (model.stat().st_size - 28) // 4 - 96 * 8
    assert {"processor", "numba", "python"} <= found["machine"].keys()
    tests = [(r["test"], r["depth"], r["threads"], r["share_of"]) for r in found["results"]]
    assert tests == [
        *[("pp8", 0, 1, "sgemm"), ("tg4", 0, 1, "read speed")],
        *[("pp8", 16, 1, "sgemm"), ("tg4", 16, 1, "read speed")],
    ]
    for result in found["results"]:
        each = result["tokens_per_second_each"]
        assert len(each) == len(result["share_each"]) == 2
        assert result["tokens_per_second"] == pytest.approx(sum(each) / 2)
        assert result["tokens_per_second_spread"] == pytest.approx(abs(each[0] - each[1]) / 2**0.5)
    (speed,) = found["machine_speed"]
    assert speed["sgemm_flops_each"] == [1e9, 1e9]
    needed = arithmetic.operations_to_read(tiny, 16, 8), speed["sgemm_flops_each"]
    check_shares(found["results"][2], *needed)
    weights = model.stat().st_size - 28 - 4 * 96 * 8 + 2 * 4 * 3 * 16 * (16 + 2.5)
    check_shares(found["results"][3], weights, speed["bytes_read_per_second_each"])
    assert found["peers"] == []


def check_shares(result, needed, limits):
    """A share is what the rate needs of the limit measured in the same repeat."""
    for rate, share, limit in zip(
        result["tokens_per_second_each"], result["share_each"], limits, strict=True
    ):
        assert share == pytest.approx(rate * needed / limit)


def test_csv(bench, peer):
    rows = list(csv.DictReader(io.StringIO(bench("--csv", "--peer", peer[0]))))
    assert [row["name"] for row in rows] == ["pp8", "tg4", peer[0]]
    for row in rows[:2]:
        assert row["depth"] == "0" and row["threads"] == "1" and row["ratio"] == ""
        assert float(row["tokens_per_second"]) > 0 < float(row["share"])
    assert float(rows[2]["tokens_per_second"]) == 375  # the median of 500 and 250
    assert rows[2]["share"] == "" and float(rows[2]["ratio"]) > 0


def test_the_table(bench, peer):
    lines = bench("--depth", "0,16", "--peer", peer[0]).splitlines()
    assert lines[0].startswith("tiny.bin: ") and lines[0].endswith(" parameters, float32")
    assert "numba" in lines[1]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[3] == ["test", "depth", "threads", "tok/s", "±", "share of the machine's"]
    assert [row[:3] for row in cells[5:9]] == [
        *[["pp8", "0", "1"], ["tg4", "0", "1"], ["pp8", "16", "1"], ["tg4", "16", "1"]]
    ]
    assert cells[5][-1].endswith("of 1 GFLOP/s, sgemm") and cells[6][-1].endswith("GB/s read")
    assert cells[10] == ["peer", "threads", "tok/s", "±", "llama2np / peer"]
    assert cells[12][:4] == [peer[0], "1", "375.0", "176.8"]
    assert len({len(line) for line in lines[3:9]}) == 1  # aligned


def test_int8_says_what_its_share_means(bench, write):
    path = write("int8.bin", Header(2, TINY, True, 16))
    printed = bench(path=path)
    assert "Q8_0, group size 16" in printed and "Prompts are computed in int8" in printed
    assert "Prompts are computed in int8" not in bench()


def test_the_picture(bench, tmp_path, drawing):
    bench("--depth", "0,16", "--plot", tmp_path / "speed.png")
    assert (tmp_path / "speed.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib(bench, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "llama2np.analysis.plot", raising=False)
    monkeypatch.delattr(analysis, "plot", raising=False)
    said = bench("--plot", "speed.png", status=1)
    assert "-m pip install matplotlib" in said and said.count("\n") == 1


# --- peers ---


def test_a_peer_runs_in_every_repeat_and_with_every_number_of_threads(bench, peer, model):
    command, log = peer
    threads = sorted({1, kernels.threads()})
    flags = ("--threads", ",".join(map(str, threads)), "--repeats", "3", "--json")
    found = json.loads(bench(*flags, "--peer", command + " {model} -n {threads}"))
    assert log.read_text().splitlines() == [f"{t} {model} -n {t}" for t in threads] * 3
    rates = [1000 / 2**run for run in range(1, 3 * len(threads) + 1)]
    for i, result in enumerate(found["peers"]):
        assert result["threads"] == threads[i]
        assert result["tokens_per_second_each"] == rates[i :: len(threads)]
        ours = next(r for r in found["results"] if (r["test"], r["threads"]) == ("tg4", threads[i]))
        expected = zip(ours["tokens_per_second_each"], rates[i :: len(threads)], strict=True)
        assert result["ratio_each"] == pytest.approx([our / their for our, their in expected])


def test_a_peer_of_another_form_and_for_prompts(bench, peer):
    pattern = r"Prompt: ([\d.]+) t/s"
    flags = ("--json", "--generate", "0", "--peer", peer[0], "--peer-pattern", pattern)
    found = json.loads(bench(*flags))
    (theirs,), (ours,) = found["peers"], found["results"]
    assert theirs["tokens_per_second_each"] == [501, 251]
    expected = zip(ours["tokens_per_second_each"], [501, 251], strict=True)
    assert theirs["ratio_each"] == pytest.approx([our / their for our, their in expected])


def test_two_peers(bench, peer):
    found = json.loads(bench("--json", "--peer", peer[0], "--peer", peer[0] + " again"))
    assert [p["tokens_per_second_each"] for p in found["peers"]] == [[500, 125], [250, 62.5]]


def test_a_model_with_a_space_in_its_name_stays_one_word():
    assert Peer("run {model} -n 5", "a b.bin")._words(2) == ["run", "a b.bin", "-n", "5"]


# --- what is refused ---


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--prompt", "-1"], "--prompt 0 -1"),
        (["--generate", "x"], "--generate 0 x"),
        (["--generate", "97"], "generate 97 96"),
        (["--depth", "0,,8"], "--depth"),
        (["--depth", "95"], "95 96"),
        (["--threads", "0"], "--threads 1 0"),
        (["--threads", "1,100000"], "threads 100000"),
        (["--repeats", "0"], "--repeats 1 0"),
        (["--json", "--csv"], "--json --csv"),
        (["--plot", "speed.gif"], "speed.gif .png"),
        (["--plot", "no/such/speed.png"], "no/such folder"),
        (["--peer", "no-such-program --fast"], "no-such-program start"),
        (["--peer", ""], "peer empty"),
        (["--peer", "a 'quote"], "quote"),
        (["--peer", f"{shlex.quote(sys.executable)} -c 'exit(3)'"], "status 3"),
        (["--peer", f"{shlex.quote(sys.executable)} -c 'print(7)'"], "'7' achieved"),
        (["--peer", "ls", "--peer-pattern", "("], "pattern ("),
        (["--peer", "ls", "--peer-pattern", "tok"], "pattern group"),
        (["--fast"], "--fast"),
    ],
    ids=" ".join,
)
def test_a_wrong_flag_is_one_line(bench, flags, words):
    said = bench(*flags, status=1)
    assert said.startswith("llama2np bench: ") and said.count("\n") == 1
    for word in words.split():
        assert word in said


def test_what_does_not_fit_behind_a_depth_is_left_out(bench):
    printed = bench("--depth", "90")
    assert "tg4" in printed and "pp8" not in printed


def test_no_such_model(bench, tmp_path):
    said = bench(path=tmp_path / "none.bin", status=1)
    assert "none.bin" in said and said.count("\n") == 1


def test_a_peer_that_says_that_it_is_infinitely_slow():
    command = f"{shlex.quote(sys.executable)} -c 'print(\"achieved tok/s: 0.0\")'"
    with pytest.raises(ValueError, match="its rate is 0.0"):
        Peer(command).rate(1)
