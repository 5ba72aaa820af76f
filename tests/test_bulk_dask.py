"""Prompts on Dask's workers: workers and clients that are killed, `map`, and what is refused."""

import json
import os
import signal
import time
from contextlib import nullcontext
from itertools import count, islice
from unittest.mock import MagicMock

import pytest
from conftest import TINY, missing, write_tokenizer

from llama2np import Llama, bulk
from llama2np.bulk.opened import JobError
from llama2np.bulk.tasks import Job
from llama2np.cli import main
from llama2np.formats.checkpoint import Header

try:
    from dask.system import CPU_COUNT
    from distributed import Client, KilledWorker, LocalCluster

    from llama2np.bulk import cluster
except ImportError as error:
    missing(f"distributed is not installed: {error}")

pytestmark = [
    pytest.mark.compiled,
    # Dask's own sockets and event loops, when it closes them.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
ANY_PORT = "127.0.0.1:0"


@pytest.fixture(scope="module")
def processes():
    """A client of two worker processes."""
    with cluster.local(2) as client:
        yield client


@pytest.fixture
def threads():
    """A client of two workers in this process, which start at once."""
    with (
        LocalCluster(2, 1, processes=False, dashboard_address=ANY_PORT) as workers,
        Client(workers) as client,
    ):
        yield client


@pytest.fixture
def tiny(write, tmp_path):
    """The paths of a tiny model and its tokenizer, as texts."""
    model, tokenizer = write("tiny.bin", Header(1, TINY, True)), tmp_path / "t.bin"
    return str(model), str(write_tokenizer(tokenizer))


@pytest.fixture
def prompts(tmp_path):
    """50 prompts in two files, one of which has a bad line, too."""
    each = [{"prompt": "Tom"[: i % 4], "seed": i + 1, "id": i} for i in range(50)]
    for name, some in (("a", each[:20]), ("b", each[20:])):
        lines = [json.dumps(one) + "\n" for one in some]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    return each


def expected_texts(tiny, prompts, **options):
    model = Llama.load(*tiny)
    return {
        one["id"]: model.generate(one["prompt"], seed=one["seed"], **options).read()
        for one in prompts
    }


def answers_in(folder):
    files = sorted((folder / "answers").glob("*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def test_files_by_two_processes(processes, tiny, prompts, tmp_path, capsys):
    with open(tmp_path / "b.jsonl", "a") as file:
        file.write("nonsense\n")
    address = processes.scheduler.address
    flags = ["-z", tiny[1], "--prompts", str(tmp_path / "?.jsonl"), "--dask", address]
    flags += ["--output", str(tmp_path / "o"), "--chunk", "7", "--max-new-tokens", "8"]
    assert main(["generate", tiny[0], *flags]) == 1
    err = capsys.readouterr().err
    assert f"{tmp_path / 'b.jsonl'}:31: not JSON: " in err and "dashboard: http" in err
    assert "50 of 51 prompts have answers" in err and err.count("\n") == 3
    found = answers_in(tmp_path / "o")
    assert [each["id"] for each in found] == [*range(50)]
    assert {each["id"]: each["text"] for each in found} == expected_texts(
        tiny, prompts, max_new_tokens=8
    )
    threads = processes.run(lambda dask_worker: dask_worker.plugins["llama2np"].models is not None)
    assert [*threads.values()] == [True, True]


def test_a_killed_worker(processes, tiny, prompts, tmp_path):
    """Its chunk runs elsewhere, and each prompt has one answer."""
    pids = processes.run(os.getpid)
    answers = bulk.map(processes, tiny[0], prompts, chunk=1, tokenizer=tiny[1], max_new_tokens=30)
    found = list(islice(answers, 5))
    os.kill(next(iter(pids.values())), signal.SIGKILL)
    found += answers
    texts = {each["id"]: each["text"] for each in found}
    assert len(found) == 50 and texts == expected_texts(tiny, prompts, max_new_tokens=30)


def do(call, *arguments):
    return call(*arguments)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def give_back(x):
    return x


def test_a_chunk_that_kills_its_workers(processes):
    """It is given up, and the others are answered."""
    scheduler = processes.cluster.scheduler
    before, scheduler.allowed_failures = scheduler.allowed_failures, 0
    try:
        calls = [("bad one", (die,)), *((str(i), (give_back, i)) for i in range(9))]
        found = list(cluster.completed(processes, "calls", do, calls))
    finally:
        scheduler.allowed_failures = before
    assert len(found) == 10 and isinstance(dict(found).pop("bad one"), KilledWorker)
    # Calls that waited on a worker that died are not given up: they get a second chance.
    assert {key: x for key, x in found if key != "bad one"} == {str(i): i for i in range(9)}


def test_a_first_chunk_that_is_given_up_does_not_stop_the_others(monkeypatch, threads):
    """In the order of the prompts, of which there is no end."""

    class Unlucky(cluster._Running):
        def next(self):
            done, result = super().next()
            return done, KilledWorker(done.key, None, 3) if done.key == "0" else result

    monkeypatch.setattr(cluster, "_Running", Unlucky)
    endless = ("A" for _ in count())
    answers = bulk.map(threads, "stories-box", endless, chunk=1, max_new_tokens=1)
    first, *others = islice(answers, 50)
    answers.close()
    assert first["error"] == "its chunk was given up after the 8 workers that took it had died"
    assert [each["prompt"] for each in others] == ["A"] * 49


def test_a_chunk_that_was_given_up_is_named(tiny, prompts, tmp_path, capsys, monkeypatch, threads):
    """And tried again by the next run."""

    def completed(client, name, call, calls):
        for i, (key, arguments) in enumerate(calls):
            yield key, KilledWorker(key, None, 3) if i == 1 else call(*arguments)

    flags = ["-z", tiny[1], "--prompts", str(tmp_path / "a.jsonl"), "--dask"]
    flags += [threads.scheduler.address, "--output", str(tmp_path / "o"), "--chunk", "8"]
    with monkeypatch.context() as patch:
        patch.setattr(cluster, "completed", completed)
        assert main(["perplexity", tiny[0], *flags]) == 1
    err = capsys.readouterr().err
    reason = "was given up after the 8 workers that took it had died"
    assert f"a.jsonl:9-16: no answers: chunk 0000-a-0000000009 {reason}\n" in err
    assert "1 chunks were given up: run it again to try them again" in err
    assert len(answers_in(tmp_path / "o")) == 20 - 8 - 3  # three texts are empty


def test_a_killed_client(prompts, tmp_path, forked):
    """After a kill -9 of the client its workers end, and the next run gives what is missing."""
    import psutil

    flags = ["stories-box", "--prompts", str(tmp_path / "a.jsonl"), "--chunk", "2"]
    flags += ["--output", str(tmp_path / "o"), "--max-new-tokens", "40"]
    child = forked("-m", "llama2np", "generate", *flags, "--workers", "1")
    while child.poll() is None and len(done_in(tmp_path)) < 2:
        time.sleep(0.01)
    workers = psutil.Process(child.pid).children(recursive=True)
    child.kill()
    assert child.wait() == -signal.SIGKILL and len(done_in(tmp_path)) < 10 and workers
    gone, _ = psutil.wait_procs(workers, timeout=60)
    assert len(gone) == len(workers)
    child = forked("-m", "llama2np", "generate", *flags, "--workers", "1")
    assert child.wait() == 0 and "20 of 20 prompts have answers" in child.stderr.read()
    found = answers_in(tmp_path / "o")
    assert [each["line"] for each in found] == [*range(1, 21)]
    texts = expected_texts(["stories-box"], prompts[:20], max_new_tokens=40)
    assert {each["id"]: each["text"] for each in found} == texts


def done_in(folder):
    return list((folder / "o" / "answers").glob("*.jsonl"))


# --- from Python ---


def test_map_in_the_order_of_the_prompts(threads, tiny, prompts):
    prompts = prompts[:20]
    texts = expected_texts(tiny, prompts, max_new_tokens=5)
    for chunk in (1, 7, 100):
        found = bulk.map(
            threads, tiny[0], iter(prompts), chunk=chunk, tokenizer=tiny[1], max_new_tokens=5
        )
        assert [(each["id"], each["text"]) for each in found] == list(texts.items())
    mixed = ["A", [1, 40], 7, {"prompt": "B", "seeds": 1}, {"messages": []}]
    found = list(bulk.map(threads, tiny[0], mixed, tokenizer=tiny[1], max_new_tokens=2))
    assert [sorted(each) for each in found[2:]] == [["error"]] * 3
    assert found[1]["prompt"] == [1, 40] and "has no option 'seeds'" in found[3]["error"]


def test_few_prompts_are_taken_in_advance(threads, tiny):
    taken = count()
    prompts = ("A" for _ in taken)  # endless
    found = bulk.map(threads, tiny[0], prompts, chunk=3, tokenizer=tiny[1], max_new_tokens=1)
    assert [each["prompt"] for each in islice(found, 30)] == ["A"] * 30
    found.close()
    # Two chunks for each of two threads are outstanding; a few more may wait for their turn.
    assert next(taken) <= 30 + 3 * (4 + 8 * 4)


def test_map_over_a_bag(threads, tiny, prompts):
    from dask.bag import from_sequence

    prompts = prompts[:20]
    bag = from_sequence(prompts, npartitions=3)
    answers = bulk.map(threads, tiny[0], bag, tokenizer=tiny[1], max_new_tokens=5)
    assert answers.npartitions == bag.npartitions
    texts = answers.map(lambda each: (each["id"], each["text"])).compute()
    assert dict(texts) == expected_texts(tiny, prompts, max_new_tokens=5)
    drawn = bulk.map(threads, tiny[0], from_sequence(["A"] * 4), tokenizer=tiny[1])
    assert len({each["text"] for each in drawn.compute()}) == 4  # a seed for each place
    assert [each["text"] for each in drawn.compute(scheduler="sync")] == [
        each["text"] for each in drawn.compute()
    ]


def test_other_tasks(threads, tiny):
    (found,) = bulk.map(threads, tiny[0], ["AB"], "perplexity", tokenizer=tiny[1], context=9)
    assert found["tokens"] == 3 and found["perplexity"] > 1
    how = dict(tokenizer=tiny[1], labels=["y", "n"])
    (found,) = bulk.map(threads, tiny[0], ["AB"], "classify", **how)
    assert found["predicted"] in "yn"


def test_wrong_arguments(threads, tiny):
    for arguments, words in (
        ((tiny[0], "AB"), "prompts must be a list of prompts, or a Dask bag, not 'AB'"),
        ((tiny[0], ["AB"], "translate"), "task must be generate or embed"),
        ((7, ["AB"]), "model must be a path"),
    ):
        with pytest.raises(ValueError, match=words):
            bulk.map(threads, *arguments)
    with pytest.raises(ValueError, match="chunk must be 1 or more, not 0"):
        bulk.map(threads, tiny[0], ["AB"], chunk=0)
    with pytest.raises(JobError, match=r"worker inproc://\S+: .*has no option 'seeds'"):
        bulk.map(threads, tiny[0], ["AB"], tokenizer=tiny[1], seeds=3)


# --- what is refused ---


def refused(capsys, tmp_path, *flags):
    """The one line that a command ends with."""
    (tmp_path / "p.jsonl").write_text('"AB"\n')
    out = tmp_path / "refused"
    words = ["--prompts", str(tmp_path / "p.jsonl"), "--output", str(out), *flags]
    assert main(["generate", *words]) == 1 and not out.exists()
    err = capsys.readouterr().err
    lines = [line for line in err.splitlines() if "dashboard" not in line]
    assert len(lines) == 1, err
    return lines[0]


def test_a_scheduler_that_does_not_answer(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cluster, "_PATIENCE", 0.5)
    told = refused(capsys, tmp_path, "--dask", "tcp://127.0.0.1:9")
    assert told.startswith("llama2np generate: tcp://127.0.0.1:9: no Dask scheduler answers there")
    assert "no Dask scheduler answers there" in refused(capsys, tmp_path, "--dask", "nonsense")


def test_workers_with_another_version(threads, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cluster, "__version__", "9.9")
    told = refused(capsys, tmp_path, "--dask", threads.scheduler.address)
    assert "worker inproc://" in told and told.endswith(": llama2np 0.1.0 there, 9.9 here")


def test_workers_without_the_model(threads, tmp_path, capsys):
    flags = "/nowhere/model.gguf", "--dask", threads.scheduler.address
    told = refused(capsys, tmp_path, *flags)
    assert "worker inproc://" in told and "/nowhere/model.gguf: No such file" in told


CLUSTER = """
import sys, time
from distributed import LocalCluster
if __name__ == "__main__":
    cluster = LocalCluster(1, 1, processes=False, host="127.0.0.1", scheduler_port=0,
                           protocol="tcp", dashboard_address="127.0.0.1:0")
    print(cluster.scheduler_address, flush=True)
    time.sleep(600)
"""


def test_a_scheduler_that_goes(forked):
    child = forked("-c", CLUSTER)
    with cluster.remote(child.stdout.readline().strip()) as client:
        calls = [("a", (0,)), ("b", (600,))]
        results = cluster.completed(client, "calls", time.sleep, calls)
        assert next(results) == ("a", None)
        child.kill()
        with pytest.raises(JobError, match="the scheduler has gone; run it again to go on"):
            next(results)


@pytest.mark.parametrize("flags, threads", (("--workers 1", CPU_COUNT), ("--workers 64", 1)))
def test_workers_share_the_processors(flags, threads, tmp_path, capsys, monkeypatch):
    check_threads(flags.split(), threads, tmp_path, capsys, monkeypatch)
    check_threads([*flags.split(), "--threads", "3"], 3, tmp_path, capsys, monkeypatch)


def test_workers_of_others_use_a_thread_each(tmp_path, capsys, monkeypatch):
    (tmp_path / "scheduler.json").write_text("{}")
    for address in ("tcp://h:1", str(tmp_path / "scheduler.json")):
        check_threads(["--dask", address], 1, tmp_path, capsys, monkeypatch)
        check_threads(["--dask", address, "--threads", "3"], 3, tmp_path, capsys, monkeypatch)


def check_threads(flags, expected, tmp_path, capsys, monkeypatch):
    """The kernels of a job have this number of threads, in whatever thread they are called."""
    jobs = []

    def prepare(client, job):
        jobs.append(job)
        raise JobError("enough")

    monkeypatch.setattr(cluster, "LocalCluster", lambda **options: nullcontext())
    monkeypatch.setattr(cluster, "Client", lambda *_, **options: MagicMock())
    monkeypatch.setattr(cluster, "prepare", prepare)
    assert refused(capsys, tmp_path, *flags) == "llama2np generate: enough"
    assert jobs[0].threads == expected


def test_a_job_of_another_version_is_refused_by_its_worker(threads):
    job = Job("generate", "stories-box", version="9.9")
    with pytest.raises(JobError, match=r"worker \S+: llama2np 0.1.0 here, 9.9 where"):
        cluster.prepare(threads, job)
