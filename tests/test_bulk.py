"""Files of prompts into a folder of answers, without Dask: chunks, seeds, tasks, going on."""

import json
import shutil
import sys
from contextlib import contextmanager
from dataclasses import replace
from threading import Thread

import numpy as np
import pytest
from conftest import TINY, parameters, write_tokenizer
from random_folders import write_bert

from llama2np import Encoder, Llama, bulk, evaluate, kernels, zero_shot
from llama2np.bulk.files import Ids, scan
from llama2np.bulk.folder import Folder
from llama2np.bulk.opened import JobError, Models, describe
from llama2np.bulk.prompts import Prompt, seed_of
from llama2np.bulk.run import Run, in_this_process
from llama2np.bulk.tasks import Job
from llama2np.cli import main
from llama2np.cli.generate import main as generate
from llama2np.formats.checkpoint import Header
from llama2np.jsonl import LONGEST_LINE, lines

PROMPTS = [
    "AB",
    {"prompt": "A", "seed": 3, "max_new_tokens": 4, "id": "x"},
    {"prompt": [1, 40], "id": 7},
    {"prompt": "QQ", "logit_bias": {"70": 3}, "stop": "e", "id": None},
    "AB",
    {"prompt": "AB", "temperature": 0, "logprobs": 2},
]


@pytest.fixture
def tiny(write, tmp_path):
    """The paths of a tiny model and its tokenizer."""
    return write("tiny.bin", Header(1, TINY, True)), write_tokenizer(tmp_path / "t.bin")


def write_prompts(path, prompts):
    data = "".join(json.dumps(each) + "\n" if each != "" else "\n" for each in prompts)
    path.write_text(data)
    return path


def job_of(tiny, task="generate", **options):
    model, tokenizer = map(str, tiny)
    return Job(task, model, tokenizer, options=options, drawn=11)


def run_all(job, paths, folder, chunk=None, most=None):
    """Do a run, or `most` chunks of it; return it."""
    folder = Folder(folder)
    with folder.locked():
        work = Run(job, paths, folder, chunk)
        work.begin(describe(work.job))
        for i, (name, done) in enumerate(in_this_process(work.job, work.calls())):
            if i == most:
                break
            work.write(name, done)
    return work


def answers_in(folder, part="answers"):
    """The records in the order of the chunks' names."""
    files = sorted((folder / part).glob("*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


# --- chunks ---


FILES = {
    "empty": b"",
    "blank": b"\n\n \n",
    "mixed": b'"a"\n\n"b"\r\n \n"c"\n"d"',
    "long": b'"a"\n"' + b"x" * (2 * LONGEST_LINE) + b'"\n"b"\n' + b"y" * (LONGEST_LINE + 1),
    "many": b"\n".join(b'"%d"' % i for i in range(1100)) + b"\n",
}
CASES = [(name, size) for name in FILES for size in (1, 2, 3, 1000)]
OFTEN = [case for case in CASES if case[0] not in ("long", "many") or case[1] in (2, 1000)]


@pytest.mark.parametrize("case", parameters(CASES, OFTEN), ids="{0[0]}-{0[1]}".format)
def test_chunks_have_each_line_once(tmp_path, case):
    name, size = case
    path, data = tmp_path / "p.jsonl", FILES[name]
    path.write_bytes(data)
    (file,) = scan([path], size)
    assert file.size == len(data)
    read = [line for chunk in file.chunks for line in file.lines(chunk)]
    assert read == list(lines(path))
    assert [len(file.lines(chunk)) for chunk in file.chunks] == [c.prompts for c in file.chunks]
    names = [chunk.name for chunk in file.chunks]
    assert names == sorted(set(names)) and all(chunk.lines <= size for chunk in file.chunks)


def test_a_chunk_is_one_message_of_limited_size(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_bytes((b'"' + b"x" * 2**20 + b'"\n') * 9)
    (file,) = scan([path], 100)
    assert [chunk.lines for chunk in file.chunks] == [3, 3, 3]


def test_names_of_chunks_are_distinct_and_harmless(tmp_path):
    paths = [tmp_path / "a" / "p.jsonl", tmp_path / "b" / "p.jsonl", tmp_path / "é ../;$x.jsonl"]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        path.write_text('"A"\n')
    names = [file.chunks[0].name for file in scan(paths, 5)]
    assert names[:2] == ["0000-p-0000000001", "0001-p-0000000001"]
    assert names[2] == "0002-__x-0000000001"
    with pytest.raises(ValueError, match=r"p.jsonl: is named twice"):
        scan([paths[0], paths[1], tmp_path / "a" / ".." / "a" / "p.jsonl"], 5)


def test_repeated_ids(tmp_path):
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    write_prompts(first, [{"prompt": "A", "id": 1}, "A", {"prompt": "A", "id": "1"}, {"id": 1}])
    second.write_text('nonsense "id"\n{"prompt": "B", "id": "1"}\n{"id": null}\n{"id": null}\n')
    scan([first, second], 2, ids := Ids())
    assert ids.repeated() == [((0, 4), (0, 1)), ((1, 2), (0, 3))]
    assert Ids().repeated() == []


# --- seeds and answers ---


def test_a_seed_for_each_place():
    seeds = {seed_of(11, file, line) for file in range(3) for line in range(1000)}
    assert len(seeds) == 3000 and all(1 <= seed < 2**63 for seed in seeds)
    assert seed_of(11, 0, 5) == seed_of(11, 0, 5) != seed_of(12, 0, 5)


@pytest.mark.parametrize("options", ({"seed": 5}, {}), ids=("seed", "no seed"))
def test_answers_do_not_depend_on_chunks(tiny, tmp_path, options):
    """Each is that of `generate` alone; without a seed, the seed comes from the prompt's place."""
    path, model = write_prompts(tmp_path / "p.jsonl", PROMPTS), Llama.load(*tiny)
    job = job_of(tiny, max_new_tokens=9, **options)
    for chunk in (1, 4, 100):
        run_all(job, [path], tmp_path / str(chunk), chunk)
        found = answers_in(tmp_path / str(chunk))
        for line, (prompt, answer) in enumerate(zip(PROMPTS, found, strict=True), 1):
            own = dict(Prompt.of(prompt).fields)
            seed = own.pop("seed", None) or options.get("seed") or seed_of(11, 0, line)
            alone = model.generate(own.pop("prompt"), **{"max_new_tokens": 9, "seed": seed} | own)
            assert (answer["file"], answer["line"]) == ("p.jsonl", line)
            assert answer["text"] == alone.read() and answer.get("id") == Prompt.of(prompt).id
    if not options:
        assert found[0]["text"] != found[4]["text"]  # the same prompt in two places


def test_the_same_records_as_in_one_file(tiny, tmp_path, capsys):
    path = write_prompts(tmp_path / "p.jsonl", PROMPTS)
    flags = ["-z", str(tiny[1]), "--prompts", str(path), "-s", "5", "--max-new-tokens", "9"]
    assert generate([str(tiny[0]), *flags, "--output", str(tmp_path / "o.jsonl")], "generate") == 0
    one = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    one.sort(key=lambda each: each["line"])
    run_all(job_of(tiny, seed=5, max_new_tokens=9), [path], tmp_path / "o", 4)
    assert [{"file": "p.jsonl"} | each for each in one] == answers_in(tmp_path / "o")


def test_perplexity_of_each(tiny, tmp_path, capsys):
    prompts = ["ABC", {"text": "the cat " * 30, "id": 4}, {"prompt": "Q"}]
    path = write_prompts(tmp_path / "p.jsonl", prompts)
    flags = ["--prompts", str(path), "--output", str(tmp_path / "o"), "--context", "20"]
    assert main(["perplexity", str(tiny[0]), "-z", str(tiny[1]), *flags]) == 0
    model, found = Llama.load(*tiny), answers_in(tmp_path / "o")
    for text, answer in zip(("ABC", "the cat " * 30, "Q"), found, strict=True):
        alone = evaluate(model, text, context=20)
        assert answer["perplexity"] == alone.perplexity and answer["nats"] == alone.nats
        assert (answer["tokens"], answer["bytes"]) == (alone.tokens, alone.bytes)
    assert found[1]["id"] == 4 and "id" not in found[0]


def test_labels_of_each(tiny, tmp_path, capsys):
    path = write_prompts(tmp_path / "p.jsonl", ["ABC", {"text": "the cat", "label": "n"}])
    flags = ["-z", str(tiny[1]), "--prompts", str(path), "--output", str(tmp_path / "o")]
    command = ["classify", str(tiny[0]), *flags]
    assert main(command) == 1 and "labels are needed" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()
    assert main([*command, "--labels", "y,n", "--normalize"]) == 0
    scores = zero_shot(Llama.load(*tiny), ["ABC", "the cat"], ("y", "n"), normalize=True)
    for row, answer in zip(scores.tolist(), answers_in(tmp_path / "o"), strict=True):
        assert answer["scores"] == dict(zip(("y", "n"), row, strict=True))
        assert answer["predicted"] == "yn"[int(np.argmax(row))]


@pytest.fixture
def bert(tmp_path, reference):
    write_bert(tmp_path / "bert", reference / "tokenizers" / "bert_uncased")
    return tmp_path / "bert"


@pytest.mark.parametrize("pooling", ("mean", "cls"))
def test_vectors_of_each(bert, tmp_path, capsys, pooling):
    """To the bit, whatever texts are read together."""
    texts = ["a cat", "the dog sits on the mat and sleeps", "x", "a", "hello , world !"] * 3
    path = write_prompts(tmp_path / "p.jsonl", texts)
    expected = Encoder.load(bert).embed(texts, pooling=pooling)
    for chunk in ("2", "100"):
        out = tmp_path / chunk
        flags = ["--prompts", str(path), "--output", str(out), "--chunk", chunk]
        assert main(["embed", str(bert), *flags, "--pooling", pooling]) == 0
        found = np.array([answer["embedding"] for answer in answers_in(out)], np.float32)
        np.testing.assert_array_equal(found, expected)
    assert main(["embed", "stories-box", *flags[:3], str(tmp_path / "o")]) == 1
    assert "a decoder: `llama2np generate` and Llama.load open it" in capsys.readouterr().err


def test_a_trained_classifier(tmp_path, reference, capsys):
    """An encoder with a head of its own needs no labels, and takes none."""
    bert = tmp_path / "bert"
    write_bert(bert, reference / "tokenizers" / "bert_uncased", labels=("good", "fair", "bad"))
    path = write_prompts(tmp_path / "p.jsonl", ["a cat", "dogs"])
    flags = ["--prompts", str(path), "--output", str(tmp_path / "o")]
    assert main(["classify", str(bert), *flags, "--labels", "y,n"]) == 1
    assert "this model has labels of its own" in capsys.readouterr().err
    assert main(["classify", str(bert), *flags]) == 0
    expected = Encoder.load(bert).classify(["a cat", "dogs"])
    assert [answer["scores"] for answer in answers_in(tmp_path / "o")] == expected


# --- going on ---


def test_it_goes_on_with_the_chunks_that_are_not_done(tiny, tmp_path, monkeypatch):
    path = write_prompts(tmp_path / "p.jsonl", PROMPTS * 2)
    job = job_of(tiny, max_new_tokens=5)
    run_all(job, [path], tmp_path / "whole", 2)
    for most in range(7):
        out = tmp_path / f"cut after {most}"
        work = run_all(job, [path], out, 2, most)
        assert work.answered == 2 * most and work.complete == (most == 6)
        (out / "answers" / "0000-p-0000000003.jsonl.0123456789abcdef.part").write_text("half")
        if most == 3:
            shutil.rmtree(out / "errors")
        with counted(monkeypatch) as calls:
            work = run_all(job, [path], out)  # the chunks have the size that they had
        assert len(calls) == 1 + 6 - most  # and nothing is done twice
        assert work.complete and work.answered == work.total == 12
        assert contents(out) == contents(tmp_path / "whole")


@contextmanager
def counted(monkeypatch):
    """A list with an entry for each time that a model was needed in the block."""
    calls, real = [], Models.task
    with monkeypatch.context() as patch:
        patch.setattr(Models, "task", lambda self, job: calls.append(job) or real(self, job))
        yield calls


def contents(folder):
    return {p.name: p.read_bytes() for p in (folder / "answers").iterdir()}


def test_the_seed_that_was_drawn_is_kept(tiny, tmp_path):
    path = write_prompts(tmp_path / "p.jsonl", ["AB"] * 4)
    model, tokenizer = map(str, tiny)
    job = Job("generate", model, tokenizer, options={"max_new_tokens": 9})
    first = run_all(job, [path], tmp_path / "o", 1, most=2)
    again = run_all(job, [path], tmp_path / "o")
    assert first.job.drawn == again.job.drawn != run_all(job, [path], tmp_path / "p").job.drawn
    for line, answer in enumerate(answers_in(tmp_path / "o"), 1):
        seed = seed_of(first.job.drawn, 0, line)
        assert (
            answer["text"] == Llama.load(*tiny).generate("AB", seed=seed, max_new_tokens=9).read()
        )


@pytest.fixture
def begun(tiny, tmp_path, capsys):
    """begun(*flags) -> status, standard error: a perplexity run in a folder that has begun."""
    write_prompts(tmp_path / "p.jsonl", ["ABC", "QQ", "the cat"])
    words = ["perplexity", str(tiny[0]), "-z", str(tiny[1]), "--output", str(tmp_path / "o")]

    def run(*flags, prompts="p.jsonl"):
        status = main([*words, "--prompts", str(tmp_path / prompts), *flags])
        return status, capsys.readouterr().err

    assert run("--context", "9", "--chunk", "1") == (
        0,
        f"llama2np perplexity: 3 of 3 prompts have answers in {tmp_path / 'o'}\n",
    )
    run.folder = tmp_path
    return run


def test_a_complete_run_of_another_model(begun, capsys):
    folder = begun.folder
    prompts, out = str(folder / "p.jsonl"), str(folder / "o")
    flags = ["--context", "9", "--prompts", prompts, "--output", out]
    for model, words in (("stories-box", "with another model"), ("no.bin", "No such file")):
        assert main(["perplexity", model, *flags]) == 1
        err = capsys.readouterr().err
        assert words in err and err.count("\n") == 1
    assert begun("--context", "9")[0] == 0


def test_what_a_run_began_with_cannot_change(begun, write):
    folder = begun.folder
    before = {path: path.read_bytes() for path in (folder / "o").rglob("*") if path.is_file()}

    def refused(words, *flags, **more):
        status, err = begun(*flags, **more)
        assert status == 1 and err.count("\n") == 1 and words in err, err

    assert begun("--context", "9", "--chunk", "2")[0] == 0  # it is done, whatever the chunks
    refused("was begun with context 9, now it is 10: name another output", "--context", "10")
    refused("was begun with context 9, now it is by default")
    refused("stride by default, now it is 4", "--context", "9", "--stride", "4")
    refused("with engine compiled, now it is numpy", "--context", "9", "--engine", "numpy")
    (folder / "q.jsonl").write_bytes((folder / "p.jsonl").read_bytes())
    refused("q.jsonl", "--context", "9", prompts="q.jsonl")
    two = ["--prompts", str(folder / "q.jsonl")]
    refused("begun with 1 files of prompts, now there are 2", "--context", "9", *two)
    (folder / "p.jsonl").write_text('"ABD"\n"QQ"\n"the cat"\n')
    refused("p.jsonl: ", "--context", "9")
    write_prompts(folder / "p.jsonl", ["ABC", "QQ", "the cat"])
    assert before == {p: p.read_bytes() for p in (folder / "o").rglob("*") if p.is_file()}
    (folder / "o" / "answers" / "0000-p-0000000002.jsonl").unlink()
    write("tiny.bin", Header(1, TINY, True), seed=1)
    refused("o: was begun with another model", "--context", "9")
    write("tiny.bin", Header(1, TINY, True))
    assert begun("--context", "9")[0] == 0
    assert before == {p: p.read_bytes() for p in (folder / "o").rglob("*") if p.is_file()}


def test_a_prompt_that_changes_meanwhile(tiny, tmp_path):
    path, folder = write_prompts(tmp_path / "p.jsonl", ["A", "B"]), Folder(tmp_path / "o")
    with folder.locked():
        work = Run(job_of(tiny, max_new_tokens=1), [path], folder, 1)
        work.begin(describe(work.job))
        path.write_text('"A"\n\n')
        with pytest.raises(ValueError, match=r"p.jsonl: has changed while it was read"):
            for name, done in in_this_process(work.job, work.calls()):
                work.write(name, done)
    assert len(answers_in(tmp_path / "o")) == 1


# --- what is wrong ---


def test_bad_lines_are_not_fatal(begun):
    data = '"ABC"\nnonsense\n{"id": 3}\n7\n""\n"QQ"\n{"prompt": [1, 2]}\n'
    (begun.folder / "bad.jsonl").write_text(data)
    out = ["--output", str(begun.folder / "bad"), "--chunk", "3"]
    status, err = begun(*out, prompts="bad.jsonl")
    told = [line.split("bad.jsonl:")[-1] for line in err.splitlines()]
    assert status == 1 and [line[:2] for line in told[:-1]] == ["2:", "3:", "4:", "5:", "7:"]
    assert told[0].startswith("2: not JSON: ")
    assert (
        told[1]
        == told[4].replace("7", "3")
        == ('3: expected a text, or an object with "prompt" or "text"')
    )
    assert told[3] == "5: there is no text to measure"
    last = f"2 of 7 prompts have answers in {begun.folder / 'bad'}; "
    last += f"{begun.folder / 'bad' / 'errors'} says why 5 lines have none"
    assert told[-1].endswith(last)
    assert [a["line"] for a in answers_in(begun.folder / "bad")] == [1, 6]
    errors = answers_in(begun.folder / "bad", "errors")
    assert [each["line"] for each in errors] == [2, 3, 4, 5, 7]
    assert errors[3] == {"file": "bad.jsonl", "line": 5, "error": "there is no text to measure"}
    status, err = begun(*out, prompts="bad.jsonl")
    assert status == 1 and err.count("\n") == 1 and last in err  # it remembers them


def test_many_bad_lines_do_not_flood_the_terminal(begun):
    (begun.folder / "bad.jsonl").write_text("nonsense\n" * 100)
    status, err = begun("--output", str(begun.folder / "bad"), prompts="bad.jsonl")
    assert status == 1 and err.count("\n") == 22
    assert f"more bad lines are in {begun.folder / 'bad' / 'errors'}" in err.splitlines()[20]
    assert len(answers_in(begun.folder / "bad", "errors")) == 100


def test_repeated_ids_are_told(begun):
    write_prompts(begun.folder / "r.jsonl", [{"text": "A", "id": 1}] * 2)
    status, err = begun("--output", str(begun.folder / "r"), prompts="r.jsonl")
    assert status == 0 and "r.jsonl:2: has the id of " in err and "r.jsonl:1; both are" in err
    assert [answer["id"] for answer in answers_in(begun.folder / "r")] == [1, 1]


def test_empty_files(begun):
    for data in ("", "\n \n"):
        (begun.folder / "e.jsonl").write_text(data)
        status, err = begun("--output", str(begun.folder / f"e{len(data)}"), prompts="e.jsonl")
        assert status == 0 and "0 of 0 prompts have answers" in err


def test_several_files(begun):
    write_prompts(begun.folder / "part-2.jsonl", ["ABC", "QQ"])
    write_prompts(begun.folder / "part-1.jsonl", ["the cat"])
    out = begun.folder / "several"
    status, _ = begun("--output", str(out), "--prompts", str(begun.folder / "part-*.jsonl"))
    assert status == 0
    places = [(answer["file"], answer["line"]) for answer in answers_in(out)]
    assert places[3:] == [("part-1.jsonl", 1), ("part-2.jsonl", 1), ("part-2.jsonl", 2)]
    status, err = begun("--output", str(out), prompts="none-*.jsonl")
    assert status == 1 and "none-*.jsonl: there is no such file" in err


def test_folders_of_others_are_left_alone(begun):
    out = begun.folder / "mine"
    status, err = begun("--output", str(out), prompts="none.jsonl")
    assert status == 1 and "none.jsonl: No such file" in err and not out.exists()
    out.mkdir()
    assert begun("--output", str(out), prompts="none.jsonl")[0] == 1 and out.exists()
    (out / "letter.txt").write_text("Dear")
    status, err = begun("--output", str(out))
    assert status == 1 and "not empty, and not the folder of an earlier run" in err
    assert [path.name for path in out.iterdir()] == ["letter.txt"]
    record = json.loads((begun.folder / "o" / "run.json").read_text())
    status, err = begun("--output", str(out / "letter.txt"))
    assert status == 1 and "is a file, expected a folder" in err
    for text in ("", "[]", "nonsense", "{" * 100_000, '{"chunk": 1}'):
        (out / "run.json").write_text(text)
        status, err = begun("--output", str(out))
        assert status == 1 and "run.json: not the record of a run" in err
    (begun.folder / "o" / "run.json").write_text(json.dumps(record | {"prompts": [7]}))
    status, err = begun("--context", "9")
    assert status == 1 and "p.jsonl: " in err and err.count("\n") == 1
    with Folder(begun.folder / "o").locked():
        status, err = begun("--context", "9")
    assert status == 1 and "o: another process is writing it" in err


@pytest.mark.parametrize(
    "flags, words",
    (
        ("generate --prompts p --output o --workers 2 --dask tcp://h:1", "expected one"),
        ("generate --prompts p --output o --chunk 3", "need --workers or --dask"),
        ("generate --prompts p --prompts q --output o", "need --workers or --dask"),
        ("generate --prompts p --output .", "is a folder, which needs --workers or --dask"),
        ("perplexity --prompts p", "--prompts needs --output"),
        ("perplexity", "expected --file, or --prompts and --output"),
        ("perplexity --prompts p --output o --file f", "expected --file, or --prompts"),
        ("perplexity --file f --workers 2", "are for --prompts, not --file"),
        ("perplexity --prompts p --output o --against m", "--against is for --file"),
        ("classify --data d --output o", "are for --prompts, not --data"),
        ("embed --prompts p --output o --workers 0", "expected a whole number"),
    ),
)
def test_flags_that_do_not_fit(flags, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p").write_text('"A"\n')
    command, *rest = flags.split()
    assert main([command, "stories-box", *rest]) == 1
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1


def test_without_dask(begun, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    for module in ("cluster", "worker"):
        monkeypatch.delitem(sys.modules, f"llama2np.bulk.{module}", raising=False)
        monkeypatch.delattr(bulk, module, raising=False)
    out = begun.folder / "new"
    status, err = begun("--workers", "2", "--output", str(out))
    assert status == 1 and err.count("\n") == 1
    assert err.endswith(f"{sys.executable} -m pip install 'llama2np[dask]'\n")
    assert not out.exists()


def test_threads_of_the_kernels(tiny):
    """They are chosen in the thread that computes: here, each has its own number."""
    found = []

    def compute(threads):
        describe(replace(job_of(tiny), threads=threads))
        found.append(kernels.threads())

    works = [lambda count=count: compute(count) for count in (1, 2, 10_000, None)]
    for work in (*works, lambda: found.append(kernels.threads())):  # the last: the default
        worker = Thread(target=work)
        worker.start()
        worker.join()
    assert found[:1] == [1] and found[1] == min(2, kernels.max_threads())
    assert found[2] == kernels.max_threads() and found[3] == found[4]


def test_jobs_that_cannot_be_done(tiny):
    with pytest.raises(ValueError, match="task must be generate or embed or"):
        Job("translate", "m")
    with pytest.raises(JobError, match=r"llama2np 0.1.0 here, 9.9 where the run was started"):
        describe(Job("generate", str(tiny[0]), version="9.9"))
    with pytest.raises(JobError, match="nowhere: No such file"):
        describe(Job("generate", "nowhere/nowhere"))
    with pytest.raises(JobError, match="has no option 'seeds'"):
        describe(job_of(tiny, seeds=3))
    with pytest.raises(JobError, match="temperature must be"):
        describe(job_of(tiny, temperature=-3))
    with pytest.raises(JobError, match="unexpected keyword argument 'windows'"):
        describe(job_of(tiny, "perplexity", windows=3))
