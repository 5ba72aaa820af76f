"""Chat templates against transformers' renderings; hostile ones end soon, and in little memory."""

import json
import sys
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama2np import Tokenizer, TokenizerError
from llama2np.text import template_limits
from llama2np.text.chat_template import ChatTemplate

USER = [{"role": "user", "content": "Hi"}]


def render(source, messages=USER, **variables):
    return ChatTemplate(source, {"bos_token": "<s>"}, "T").render(messages, **variables)


@pytest.fixture(scope="module")
def folders(reference):
    return reference / "tokenizers"


def test_all_renderings(folders):
    count = 0
    for name, told in json.loads((folders / "chat.json").read_text()).items():
        names = {n: told[n] for n in ("bos_token", "eos_token") if told[n] is not None}
        template = ChatTemplate(told["template"], names, name)
        for case in told["cases"]:
            count += 1
            arguments = case["messages"], case["add_generation_prompt"]
            if "error" in case:
                with pytest.raises(ValueError) as error:
                    template.render(*arguments)
                assert case["error"] in str(error.value)
            else:
                assert template.render(*arguments) == case["rendered"], (name, arguments)
    assert count == 90


@pytest.mark.parametrize("name, case", [("llama3", "llama3"), ("gemma", "gemma"), ("qwen2", None)])
def test_a_folder_s_own_template(folders, name, case):
    tokenizer = Tokenizer.load(folders / name)
    told = json.loads((folders / "chat.json").read_text())[case or name]
    first = told["cases"][0]
    text = tokenizer.apply_chat_template(first["messages"], first["add_generation_prompt"])
    same = first["rendered"].replace("<bos>", "<s>")  # the folder has other names
    assert text == same
    tokens = tokenizer.encode(text, bos=False, special=True)
    assert tokens.count(tokenizer.bos_id) == (name != "qwen2")
    assert tokenizer.decode(tokens) == text


def test_where_a_template_is(folders, tmp_path):
    """A list of named ones, chat_template.jinja, which counts more; objects as special tokens."""
    (tmp_path / "tokenizer.json").write_bytes((folders / "gpt2/tokenizer.json").read_bytes())
    config = {
        "eos_token": {"content": "<|endoftext|>", "lstrip": False},
        "bos_token": None,
        "chat_template": [
            {"name": "tool_use", "template": "tools"},
            {"name": "default", "template": "{{ bos_token is defined }} {{ eos_token }}"},
        ],
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    load = Tokenizer.load
    assert load(tmp_path).apply_chat_template(USER) == "False <|endoftext|>"
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0].content }}!")
    assert load(tmp_path).apply_chat_template(USER) == "Hi!"
    (tmp_path / "chat_template.jinja").write_text("Entry not found")
    assert load(tmp_path).apply_chat_template(USER) == "False <|endoftext|>"
    (tmp_path / "chat_template.jinja").unlink()
    config["chat_template"] = 5
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(TokenizerError, match="chat_template is 5, expected a text"):
        load(tmp_path)
    with pytest.raises(ValueError, match="this tokenizer has no chat template"):
        load(folders / "gpt2").apply_chat_template(USER)


@pytest.mark.parametrize(
    "source, expected",
    [
        ("{% for m in messages %}\n{{ m.role }}\n{% endfor %}\n", "user\n"),  # trim_blocks
        ("a\n    {% if true %}\nb\n    {% endif %}\nc", "a\nb\nc"),  # lstrip_blocks
        ("{{ {'b': 'é<', 'a': 1} | tojson }}", '{"b": "é<", "a": 1}'),
        ("{{ {'a': [1]} | tojson(indent=2) }}", '{\n  "a": [\n    1\n  ]\n}'),
        ("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
        ("{% generation %}a{% endgeneration %}", "a"),
        ("{{ tools is none }} {{ more }}", "True 5"),
        ("{{ strftime_now('%Y') | length }}", "4"),
        ("{{ '%s-%d' % ('a', 5) }} {{ '{} {}'.format(1, 'x') }}", "a-5 1 x"),
        ("{{ 'ab' * 3 ~ 1 }}{{ [1] * 2 }}{{ 7 // 2 }}{{ 2 ** 10 }}", "ababab1[1, 1]31024"),
        ("{% macro f(x) %}<{{ x }}>{% endmacro %}{{ f(1) }}{{ f(x=2) }}", "<1><2>"),
        ("{{ messages | map(attribute='content') | join(', ') }}", "Hi"),
        ("{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}"
         "{{ ns.n }}", "1"),
        ("{{ messages[0].content.split('')[0] if false else messages[0]['content'][::-1] }}", "iH"),
        ("{{ (1, 2) }}{{ loop is defined }}{% for k, v in {'a': 1}.items() %}{{ k }}{{ v }}"
         "{% endfor %}", "(1, 2)Falsea1"),
    ],
)  # fmt: skip
def test_what_templates_may_use(source, expected):
    assert render(source, more=5) == expected


GROWING = (
    "{% set ns = namespace(x=START) %}{% for i in range(90) %}{% set ns.x = STEP %}{% endfor %}"
)
HOSTILE = {
    "loops": "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}",
    "repeat": "{{ 'a' * 10**10 }}",
    "repeat a list": "{{ ([1] * 10**5) * 10**5 }}",
    "range": "{{ range(10**9) | list }}",
    "concat": GROWING.replace("START", "'ab'").replace("STEP", "ns.x ~ ns.x"),
    "add": GROWING.replace("START", "'ab'").replace("STEP", "ns.x + ns.x"),
    "nest": GROWING.replace("START", "[]").replace("STEP", "[ns.x, ns.x]"),
    "square": GROWING.replace("START", "9").replace("STEP", "ns.x * ns.x"),
    "blocks": "{% set x = 'aaaa' %}" + "{% set x %}{{ x }}{{ x }}{{ x }}{% endset %}" * 50,
    "calls": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}"
    "{{ f(99) }}",
    "deep calls": "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    "recursive loop": "{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}",
    "center": "{{ 'a' | center(10**10) }}",
    "ljust": "{{ 'a'.ljust(10**10) }}",
    "percent": "{{ '%9999999999d' % 1 }}",
    "star": "{{ '%*d' % (10**10, 1) }}",
    "format": "{{ '{:9999999999}'.format(1) }}",
    "format filter": "{{ '%9999999999d' | format(1) }}",
    "indent": "{{ 'a' | indent(10**10, true) }}",
    "join": "{{ ('a ' * 10**6).split() | join('b' * 10**6) }}",
    "join method": "{{ ('b' * 10**6).join(('a ' * 10**6).split()) }}",
    "replace": "{{ ('a' * 10**6) | replace('a', 'b' * 10**6) }}",
    "replace method": "{{ ('a' * 10**6).replace('', 'b' * 10**6) }}",
    "power": "{{ 10 ** 10 ** 10 }}",
    "batch": "{{ [1] | batch(10**10, 2) | list }}",
    "json": "{{ [[1]] | tojson(indent=10**9) }}",
    "class": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ cycler.__init__.__globals__ }}",
    "change": "{{ messages.append(1) }}",
    "include": "{% include '/etc/passwd' %}",
    "parentheses": "{{ " + "(" * 9000 + ")" * 9000 + " }}",
    "syntax": "{% if %}",
    "lines": "{{ raise_exception('a\nb') }}",
    "division": "{{ 1 / 0 }}",
    "missing": "{{ messages[7].content.x }}",
    "types": "{{ messages + 1 }}",
    "too long": "a" * (2**18 + 1),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_templates(name, monkeypatch):
    """Each is one line; with a part of the limits, so that the tests are fast."""
    monkeypatch.setattr(template_limits, "MOST", 2**15)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError) as error:
            render(HOSTILE[name])
        assert tracemalloc.get_traced_memory()[1] < 2**27
    finally:
        tracemalloc.stop()
    assert str(error.value).startswith("T: the chat template ") and "\n" not in str(error.value)


def test_time_is_limited(monkeypatch):
    monkeypatch.setattr(template_limits, "_SECONDS", 0.01)
    with pytest.raises(ValueError, match="takes more than 0 seconds"):
        render("{% for i in range(99999) %}{% endfor %}")


def test_a_long_conversation_is_within_the_limits(folders):
    """400 turns, 2 MB."""
    messages = [{"role": r, "content": "word " * 500} for r in ("user", "assistant") * 400]
    for told in json.loads((folders / "chat.json").read_text()).values():
        text = ChatTemplate(told["template"], {"bos_token": "<s>", "eos_token": "</s>"})
        assert len(text.render(messages)) > 1_900_000
    # As many templates do: to look at the whole list at each message.
    last = "{% for m in messages %}{% if loop.index == messages | length %}{{ m.role }}{% endif %}"
    last += "{% if m == (messages | last) %}!{% endif %}{% endfor %}"
    messages[-1]["content"] = "the end"
    assert render(last, messages) == "assistant!"


@pytest.mark.parametrize(
    "messages", ["Hi", {"role": "user"}, [5], [{"content": "a"}], [{"role": 5}], None]
)
def test_messages_of_another_form(messages):
    with pytest.raises(ValueError, match="^(a )?messages? must be "):
        render("a", messages)


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(TokenizerError, match="needs the package jinja2 .* -m pip install jinja2"):
        render("a")


WHAT_IT_SAYS = ChatTemplate("{{ messages[0].content }}|{{ messages[0]['name'] }}", {}, "T")


@given(content=st.text(), name=st.text())
def test_contents_are_data(content, name):
    """Whatever a message says is not a part of the template."""
    message = {"role": "user", "content": content, "name": name}
    assert WHAT_IT_SAYS.render([message]) == f"{content}|{name}"
