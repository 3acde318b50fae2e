"""Chat templates: the same prompt as transformers makes, from every place a checkpoint keeps one; hostile ones fail."""

from __future__ import annotations

import enum
import json
import time
from pathlib import Path
from typing import Any

import pytest

from ostinato import ModelLoadError, ParamError, template_sandbox
from ostinato.chat_template import ChatTemplate
from ostinato.tokenizer import Tokenizer
from small_tokenizers import byte_level

CHATML = """\
{%- if tools %}
    {{- '<|im_start|>system\\n# Tools\\n' }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if loop.first and message.role != 'system' %}
        {{- '<|im_start|>system\\nYou are helpful.<|im_end|>\\n' }}
    {%- endif %}
    {{- '<|im_start|>' + message['role'] + '\\n' ~ message.content ~ '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
LLAMA3 = """\
{{- bos_token }}
{%- set date = strftime_now("%d %b") if strftime_now is defined else "26 Jul" %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\nToday: " ~ date ~ "\\n" + system + "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
        {{- message['content'] | trim + '<|eot_id|>' }}
    {%- elif message.tool_calls %}
        {%- set call = message.tool_calls[0].function %}
        {{- '{"name": "' + call.name + '", "parameters": ' }}{{- call.arguments | tojson(indent=2) }}{{- "}" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
MISTRAL = """\
{{ bos_token }}
{%- set ns = namespace(pairs=0) -%}
{% for message in messages %}
    {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
    {% endif %}
    {% if message['role'] == 'user' %}
        {%- if loop.last %}{{ '[INST] ' }}{% else %}[INST]{{- ' ' -}}{% endif -%}
        {{ message['content'] + ' [/INST]' }}
    {% elif message['role'] == 'assistant' %}
        {%- generation -%}{{ message['content'] + eos_token}}{%- endgeneration -%}
        {% set ns.pairs = ns.pairs + 1 %}
        {% if ns.pairs * 2 > 4 %}{% break %}{% endif %}
    {% endif %}
{% endfor %}
 ({{ ns.pairs }} {{ sep_token }})
"""

SYSTEM = {"role": "system", "content": "  Be brief & <kind>. "}
TURNS = [
    {"role": "user", "content": "Grüße\n"},
    {"role": "assistant", "content": "Hi {{ messages }}"},
    {"role": "user", "content": "日本語 🙂?"},
]
CALL = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"x": [1, None, "ü<"]}}}]}
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"b": "<&'ü>", "a": [1.5, True, None]}}}]


def template(source: str, **special_tokens: str) -> ChatTemplate:
    return ChatTemplate({"default": (source, Path("chat_template.jinja"))}, special_tokens)


def render(source: str, messages: Any = TURNS, **options: Any) -> str:
    return template(source).render(messages, **options)


# ------------------------------------------------------------------------------------------- the same as transformers


@pytest.mark.parametrize("add_generation_prompt", [False, True])
@pytest.mark.parametrize("tools", [None, TOOLS])
@pytest.mark.parametrize(
    ("source", "messages"),
    [
        (CHATML, TURNS),
        (CHATML, [SYSTEM, *TURNS]),
        (LLAMA3, TURNS),
        (LLAMA3, [SYSTEM, *TURNS, CALL]),
        (MISTRAL, TURNS),
        (MISTRAL, 3 * TURNS[:2]),
    ],
)
def test_a_prompt_is_the_one_that_transformers_makes(
    tmp_path: Path, source: str, messages: list[Any], tools: list[Any] | None, add_generation_prompt: bool
) -> None:
    from transformers import PreTrainedTokenizerFast

    theirs = PreTrainedTokenizerFast(
        tokenizer_object=byte_level(), bos_token="<|user|>", eos_token="<|end|>", chat_template=source
    )
    theirs.save_pretrained(tmp_path)
    ours = Tokenizer.load(tmp_path)
    assert ours is not None
    assert ours.has_chat_template
    text = ours.render_chat(messages, add_generation_prompt, tools)
    assert len(text) > 30
    assert text == theirs.apply_chat_template(
        messages, tools=tools, add_generation_prompt=add_generation_prompt, tokenize=False
    )


# ------------------------------------------------------------------------------------------------ where templates are


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("chat_template.jinja", "A"),
        ("tokenizer_config.json", {"chat_template": "A"}),
        ("tokenizer_config.json", {"chat_template": [{"name": "default", "template": "A"}]}),
        ("tokenizer_config.json", {"chat_template": {"default": "A"}}),
        ("chat_template.json", {"chat_template": "A"}),
    ],
)
def test_a_template_is_found_in_each_of_its_places(tmp_path: Path, file: str, content: object) -> None:
    (tmp_path / file).write_text(content if isinstance(content, str) else json.dumps(content))
    found = ChatTemplate.load(tmp_path)
    assert found is not None
    assert found.render(TURNS) == "A"


def test_the_jinja_file_goes_before_the_config(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text("file")
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "config"}')
    found = ChatTemplate.load(tmp_path)
    assert found is not None
    assert found.render(TURNS) == "file"


def test_tools_choose_the_template_made_for_them(tmp_path: Path) -> None:
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    found = ChatTemplate.load(tmp_path)
    assert found is not None
    assert [found.render(TURNS), found.render(TURNS, tools=TOOLS)] == ["plain", "tools"]


def test_a_checkpoint_without_a_template_says_so(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text("{}")
    assert ChatTemplate.load(tmp_path) is None
    tokenizer = Tokenizer(byte_level())
    assert not tokenizer.has_chat_template
    with pytest.raises(ParamError, match="has no chat template"):
        tokenizer.render_chat(TURNS)


def test_special_tokens_may_be_strings_or_objects_or_absent(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text("{{ bos_token }}|{{ eos_token }}|{{ pad_token }}")
    (tmp_path / "special_tokens_map.json").write_text('{"eos_token": "<e>", "pad_token": null}')
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": {"content": "<b>", "lstrip": false}}')
    found = ChatTemplate.load(tmp_path)
    assert found is not None
    assert found.render(TURNS) == "<b>|<e>|"


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("tokenizer_config.json", b"{"),
        ("tokenizer_config.json", b"[]"),
        ("tokenizer_config.json", b'{"chat_template": {"default": 3}}'),
        ("tokenizer_config.json", 100_000 * b"["),
        ("chat_template.jinja", b"\xff"),
        ("chat_template.jinja", b" " * ((1 << 20) + 1)),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, file: str, content: bytes) -> None:
    (tmp_path / file).write_bytes(content)
    with pytest.raises(ModelLoadError, match=file):
        ChatTemplate.load(tmp_path)


# --------------------------------------------------------------------------------------------------- hostile templates


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ messages[0]['__class__']() }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ raise_exception.__globals__.os }}",
        "{{ dict.mro() }}",
        "{{ namespace.__init__.__globals__ }}",
        "{{ namespace(__class__=1) }}",
        "{% set ns = namespace() %}{% set ns._x = 1 %}",
        "{{ cycler.__init__.__globals__.os }}",
        "{{ self._TemplateReference__context.environment.call_binop }}",
        "{{ '{0.__class__.__mro__}'.format(messages) }}",
        "{{ (messages|map(attribute='__class__')|list)[0].mro }}",
        "{% do messages.append(1) %}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(role='x') }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
    ],
)
def test_a_template_that_reaches_out_is_a_parameter_error(source: str) -> None:
    messages = [dict(turn) for turn in TURNS]
    with pytest.raises(ParamError, match=r"chat template chat_template\.jinja failed: .+"):
        render(source, messages)
    assert messages == TURNS


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(10**18) %}{% endfor %}",
        "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
        "{% for i in range(100000)|map('string') %}{% for j in range(99999)|select %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{{ f(n + 1) }}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) ~ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}",
        "{% for i in range(100000) %}{{ 'x' * 1000 }}{% endfor %}",
        "{{ 'x' * 10**10 }}",
        "{{ 10**9 * 'x' }}",
        "{{ [0] * 10**9 }}",
        "{{ 10**(10**10) }}",
        "{% set ns = namespace(x=10) %}{% for i in range(99) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
        "{% set ns = namespace(x='xx') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "{% set ns = namespace(x='xx') %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "{{ lipsum(n=10**9) }}",
        "{{ " + 5_000 * "(" + "1" + 5_000 * ")" + " }}",
        "{{ 1 / 0 }}",
        "{{ missing.attribute }}",
        "{% for %}",
        "{{ raise_exception('') }}",
    ],
)
def test_a_template_that_does_not_end_well_is_a_parameter_error(source: str) -> None:
    start = time.monotonic()
    with pytest.raises(ParamError, match=r"chat template chat_template\.jinja failed: .+"):
        render(source)
    assert time.monotonic() - start < 5


def test_a_slow_template_is_stopped_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_sandbox, "MAX_SECONDS", 0.05)
    with pytest.raises(ParamError, match=r"more than 0\.05 seconds"):
        render("{% for i in range(100000) %}{% set x = range(100000)|list|length %}{% endfor %}")


def test_the_budget_is_one_renderings_own() -> None:
    one = template("{% for i in range(90000) %}{% endfor %}{{ messages|length }}")
    assert [one.render(TURNS) for _ in range(12)] == ["3"] * 12


def test_a_refusal_by_the_template_is_quoted() -> None:
    with pytest.raises(ParamError, match="roles must alternate"):
        render(MISTRAL, TURNS[:1] * 2)


def test_counting_leaves_loops_as_they_are() -> None:
    source = (
        "{% for c in 'abc' %}{{ loop.index }}{{ loop.last }}{{ loop.length }}{{ c }}{% else %}none{% endfor %}|"
        "{% for x in [3, 1]|sort|map('string') %}{{ loop.length }}{{ loop.nextitem }}{% endfor %}|"
        "{% for k, v in {'a': 1}.items() %}{{ k ~ v }}{% endfor %}|"
        "{% for x in missing %}{% else %}none{% endfor %}|{{ 2 ** 10 }} {{ 'ab' * 2 }} {{ -3 * 2 }} {{ [1] + [2] }}"
    )
    assert render(source) == "1False3a2False3b3True3c|232|a1|none|1024 abab -6 [1, 2]"


# ------------------------------------------------------------------------------------------------------------ messages


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "non-empty list"),
        ("hi", "non-empty list"),
        ({"role": "user"}, "non-empty list"),
        (["hi"], r"messages\[0\] must be a mapping with a 'role'"),
        ([*TURNS, {"content": "x"}], r"messages\[3\] must be a mapping with a 'role'"),
        ([{"role": 3}], r"messages\[0\]"),
        ([{"role": "user", "content": open}], r"messages\[0\] holds a builtin_function"),
    ],
)
def test_malformed_messages_are_a_parameter_error(messages: Any, reason: str) -> None:
    with pytest.raises(ParamError, match=reason):
        render(CHATML, messages)


def test_messages_without_an_end_are_a_parameter_error() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(ParamError, match="nested more than 50 deep"):
        render(CHATML, [{"role": "user", "content": endless}])


def test_a_template_sees_plain_data_only() -> None:
    class Role(enum.StrEnum):
        USER = "user"

    message = {"role": Role.USER, "content": [{"type": "text", "n": (1, 2.5, True, None)}]}
    assert render("{{ messages[0] | tojson }}", [message]) == json.dumps(
        {"role": "user", "content": [{"type": "text", "n": [1, 2.5, True, None]}]}
    )
