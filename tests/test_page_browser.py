"""The page at /, and the files of `lens` and `attend`, in a real Chromium."""

import math
import re
from dataclasses import replace

import pytest
from browser import FOUND, Browser
from conftest import TINY, missing, write_chat_folder

from llama2np import Llama
from llama2np.cli import main

try:
    import uvicorn  # noqa: F401
    from serving import running, slow_steps, wait_until
except ImportError as error:
    running, REASON = None, f"the server's packages are not installed: {error}"

PROMPT = "Once upon a time, there was a little girl named"


@pytest.fixture(autouse=True)
def _needs_packages():
    if running is None:
        missing(REASON)
    if not all(FOUND):
        pytest.skip("there is no chromium with chromedriver")


@pytest.fixture(scope="module")
def box():
    return Llama.load("stories-box")


@pytest.fixture(scope="module")
def window():
    """A window of a browser."""
    if not all(FOUND):
        pytest.skip("there is no chromium with chromedriver")
    window = Browser()
    try:
        yield window
    finally:
        window.close()


@pytest.fixture(scope="module")
def server(box):
    with running(box) as server:
        yield server


@pytest.fixture(scope="module")
def talker(tmp_path_factory, reference):
    """A random model that has a chat template."""
    folder = tmp_path_factory.mktemp("talker") / "talker"
    config = replace(TINY, vocab_size=562, seq_len=512)
    write_chat_folder(folder, config, reference / "tokenizers" / "smollm2", [2])
    return Llama.load(folder)


@pytest.fixture
def page(window, server):
    """The page, freshly opened. Nothing may be written to the console as an error."""
    window.open(server.url)
    window.wait("return state.facts")
    window.run("for (const [id, value] of [['seed', 7], ['max_tokens', 24]]) $(id).value = value")
    yield window
    assert [line for line in window.errors() if line["level"] == "SEVERE"] == []


def continued(page, box):
    """Let the page continue PROMPT; return what the library makes of it."""
    page.type("#ask", PROMPT + "\ue007")  # Enter
    page.wait("return state.answer.length && !state.running")
    options = {"temperature": 0.8, "top_p": 0.9, "seed": 7, "max_new_tokens": 24, "logprobs": 10}
    story = box.generate(PROMPT, **options)
    story.read()
    return story


def test_it_streams_a_text(page, box):
    story = continued(page, box)
    assert "5" in page.text("#facts") and page.text("h1") == "tiny"
    assert page.run("return document.querySelector('.turn:last-child').textContent") == (
        "continued" + story.text
    )
    assert page.run("return state.answer") == story.tokens
    assert page.run("return state.prompt") == story.prompt
    assert page.run("return document.activeElement.id") == "ask"


def test_the_alternatives_of_a_token(page, box):
    story = continued(page, box)
    page.click("#log .token:nth-of-type(3)")
    rows = page.run("return [...document.querySelectorAll('#bars li')].map((row) => row.innerText)")
    share = 100 * math.exp(max(story.top_logprobs[2].values()))
    assert len(rows) == 10 and f"{share:.1f} %" in rows[0]
    page.press("Right")  # by keyboard, to the next token
    assert page.run("return document.activeElement === document.querySelectorAll('.token')[3]")
    share = 100 * math.exp(max(story.top_logprobs[3].values()))
    assert f"{share:.1f} %" in page.text("#bars li")


def test_the_lens(page, box):
    continued(page, box)
    page.click("#tab-lens")
    page.click("#run-lens")
    page.wait("return document.querySelector('#lens-table table')")
    rows = page.run("return document.querySelectorAll('#lens-table tbody tr').length")
    assert rows == box.config.n_layers + 1
    page.run("document.querySelector('#lens-table td').focus()")
    first = page.text("#lens-hint")
    page.press("Right")
    assert first.startswith("block 4, after ") and page.text("#lens-hint") != first


def test_the_attention_map(page, box):
    continued(page, box)
    page.click("#tab-attention")
    page.click("#run-attention")
    page.wait("return !$('map').hidden")
    page.hover("#map", -40, 40)
    assert re.match(r".+ \(\d+\) takes [\d.]+ % from .+ \(\d+\)$", page.text("#attention-hint"))
    page.run("$('map').focus()")
    before = page.run("return [state.map.row, state.map.column]")
    page.press("Up", "Right")
    assert page.run("return [state.map.row, state.map.column]") == [before[0] - 1, before[1] + 1]


def test_two_answers_side_by_side(page, box):
    story = continued(page, box)
    page.click("#tab-compare")
    page.click("#run-compare")
    page.wait("return $('compare-hint').textContent === 'Switch off a head first.'")
    page.click("#off-add")
    page.click("#run-compare")
    page.wait("return $('sides').childElementCount === 2")
    differ = page.text("#compare-hint")
    left, right = page.run("return [...$('sides').children].map((node) => node.textContent)")
    assert left == "as it is" + story.text and right.startswith("without these heads")
    assert right.removeprefix("without these heads") != story.text
    first = int(re.search(r"differ from token (\d+) on", differ)[1])
    marked = page.run(
        "return [...$('sides').firstChild.querySelectorAll('.token')]"
        ".map((node) => node.classList.contains('other'))"
    )
    assert marked == [i + 1 >= first for i in range(len(story.tokens))]
    page.click("#sides .token")
    page.wait("return $('compare-bars').childElementCount === 10 && !$('compare').hidden")
    page.click("#off-list button")
    assert page.run("return state.off.length") == 0


def test_an_error_is_shown(page, box):
    page.run("$('temperature').value = -1")
    page.type("#ask", "A\ue007")
    page.wait("return $('status').textContent.includes('temperature must be a number')")
    page.errors()  # the browser reports the status 400


@pytest.fixture
def dark(window):
    """The window of a user who prefers dark colours."""
    window.prefer("dark")
    yield window
    window.prefer("light")


def test_dark(server, dark):
    dark.open(server.url)
    dark.wait("return state.facts")
    assert dark.run("return matchMedia('(prefers-color-scheme: dark)').matches")
    colour = dark.run("return getComputedStyle(document.body).backgroundColor")
    assert max(map(int, re.findall(r"\d+", colour))) < 60


def test_the_controls_of_sampling(page, box):
    """Each of them is sent: the text is the library's with the same options."""
    options = {"temperature": 1.5, "top_p": 0.8, "top_k": 20, "min_p": 0.02}
    options |= {"repetition_penalty": 1.3, "seed": 11}
    for name, value in options.items():
        page.run("$(arguments[0]).value = arguments[1]", name, value)
    page.run("$('max_tokens').value = 13")
    page.type("#ask", PROMPT + "\ue007")
    page.wait("return state.answer.length && !state.running")
    story = box.generate(PROMPT, max_new_tokens=13, **options)
    story.read()
    assert page.run("return state.answer") == story.tokens


def test_stop_and_a_new_conversation(page, server):
    worker = server.service.worker
    page.run("$('max_tokens').value = 200")
    assert page.run("return $('stop').disabled")
    with slow_steps(server.service):
        page.type("#ask", PROMPT + "\ue007")
        page.wait("return !$('stop').disabled && $('send').disabled")
        wait_until(lambda: worker.busy == 1)
        page.click("#stop")
        page.wait("return $('status').textContent === 'stopped' && !$('send').disabled")
        (ticket,) = [*worker._new, *worker._running.values()]
        wait_until(lambda: ticket.cancelled)
    wait_until(lambda: worker.busy == 0)
    assert page.run("return document.querySelectorAll('.turn').length") == 2
    page.click("#clear")
    assert page.run("return [$('log').childElementCount, state.prompt.length]") == [0, 0]


def test_tabs_by_keyboard(page):
    page.run("$('tab-alternatives').focus()")
    for name in ("lens", "attention", "compare", "alternatives"):
        page.press("Right")
        assert page.run("return document.activeElement.id") == f"tab-{name}"
        shown = "return [...document.querySelectorAll('[role=tabpanel]')].filter((p) => !p.hidden)"
        assert page.run(f"{shown}.map((panel) => panel.id)") == [name]


def test_shift_and_enter_begin_a_line(page):
    page.type("#ask", "A\ue008\ue007\ue000B")
    assert page.run("return $('ask').value") == "A\nB" and not page.run("return state.running")


def test_a_chat(window, talker):
    """Messages, a system prompt, two turns; and the other mode, which continues a text."""
    with running(talker) as server:
        window.open(server.url)
        window.wait("return state.facts")
        assert window.run("return $('mode').value") == "chat"
        window.run("for (const [id, x] of [['temperature', 0], ['max_tokens', 6]]) $(id).value = x")
        window.type("#system", "Be kind.")
        said = [{"role": "system", "content": "Be kind."}]
        for text in ("Hi", "And now?"):
            window.type("#ask", text + "\ue007")
            window.wait("return !state.running && state.messages.at(-1).role === 'assistant'")
            said.append({"role": "user", "content": text})
            request = {"messages": said, "max_new_tokens": 6, "temperature": 0}
            (expected,) = talker.generate_batch([request])
            assert window.run("return state.answer") == expected.tokens
            assert window.run("return state.prompt") == expected.prompt
            shown = window.run("return document.querySelector('.turn:last-child').textContent")
            assert shown == "assistant" + expected.text
            said.append({"role": "assistant", "content": expected.text})
        assert window.run("return state.messages") == said[1:]
        window.run("$('mode').value = 'continue'; $('mode').dispatchEvent(new Event('change'))")
        assert window.text("#send") == "Continue"
        window.type("#ask", "A B\ue007")
        window.wait("return !state.running && state.prompt.length < 9")
        story = talker.generate("A B", max_new_tokens=6, temperature=0, top_p=0.9)
        story.read()
        assert window.run("return state.answer") == story.tokens
        assert [line for line in window.errors() if line["level"] == "SEVERE"] == []


def test_an_api_key(window, box):
    with running(box, api_key="secret") as server:
        window.open(server.url)
        window.wait("return !$('key-field').hidden")
        window.wait("return $('status').textContent.includes('Authorization')")
        window.type("#key", "secret\ue007")
        window.wait("return state.facts")
        assert window.run("return $('key-field').hidden") and window.text("h1") == "tiny"
        window.type("#ask", "A\ue007")
        window.wait("return state.answer.length && !state.running")
        window.errors()  # the browser reports the status 401


# --- files ---


@pytest.fixture
def shown(window, tmp_path, capfd):
    """shown(*words) -> a window with the file that a command has written."""

    def shown(*words):
        path = tmp_path / "picture.html"
        assert main([*words, "-i", "Tom had a d\u00f6g </script>", "-o", str(path)]) == 0
        capfd.readouterr()
        window.open(path.as_uri())
        return window

    yield shown
    assert window.errors() == []
    assert window.run("return performance.getEntriesByType('resource').length") == 0


def test_a_file_of_the_lens(shown):
    window = shown("lens", "stories-box")
    assert window.text("h1") == "Logit lens" and "d\u00f6g </script>" in window.text("#text")
    cells = window.run("return [...document.querySelectorAll('tr')].map((r) => r.cells.length)")
    assert len(cells) == 7 and cells[0] == cells[1] - 1  # a character of two tokens has one head
    window.press("Tab")
    assert window.text("#hint").startswith("block 4, after <s>: ")
    window.press("Right")
    assert window.text("#hint").startswith("block 4, after \u2581Tom: ")
    window.hover("tbody tr:nth-child(2) td:nth-child(3)", 0, 0)
    assert window.text("#hint").startswith("block 3, after \u2581Tom: ")


def test_a_file_of_attention_maps(shown):
    window = shown("attend", "stories-box", "--layer", "2")
    titles = window.run(
        "return [...document.querySelectorAll('.heads button')].map((b) => b.title)"
    )
    assert len(titles) == 4
    window.click(".heads button:nth-child(4)")
    label = window.run("return document.querySelector('#map').getAttribute('aria-label')")
    assert label == "Attention map, layer 2, head 3"
    window.run("document.querySelector('#map').focus()")
    window.press("Right")
    by_key = window.text("#hint")
    assert re.match(r".+ \(\d+\) takes [\d.]+ % from \u2581Tom \(1\)$", by_key)
    window.hover("#map", -60, 60)
    assert window.text("#hint") != by_key
    window.hover("#map", 100, -100)  # the half that is blank: the nearest possible cell
    row, column = map(int, re.findall(r"\((\d+)\)", window.text("#hint")))
    assert row == column


def test_a_file_in_dark(tmp_path, dark):
    path = tmp_path / "lens.html"
    assert main(["lens", "stories-box", "-i", "A", "-o", str(path)]) == 0
    dark.open(path.as_uri())
    colour = dark.run("return getComputedStyle(document.body).backgroundColor")
    assert max(map(int, re.findall(r"\d+", colour))) < 60
