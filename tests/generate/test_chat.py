"""Chat templates render as transformers renders them."""

from __future__ import annotations

import json

import pytest

from maxlm.errors import ConfigError
from maxlm.generate.chat import ChatTemplate

CHATML = (
    "{%- for message in messages %}\n"
    "    {{- '<|im_start|>' + message.role + '\\n' + message.content | trim + '<|im_end|>\\n' }}\n"
    "{%- endfor %}\n"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}"
    "{% set system = false %}{% endif %}{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if loop.index0 == 0 and system != false %}"
    "{% set content = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
LOOPS = (
    "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}"
    "{{ m | tojson }}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
)
SPECIALS = {"bos_token": "<s>", "eos_token": "</s>"}
TALK = [
    {"role": "system", "content": "Be brief. "},
    {"role": "user", "content": "Grüße & <b>hello</b>"},
    {"role": "assistant", "content": "Hi."},
    {"role": "user", "content": "What is 'x'?\n"},
]


def expected(source, messages):
    """What transformers makes of it."""
    render = pytest.importorskip("transformers.utils.chat_template_utils").render_jinja_template
    rendered, _ = render([messages], chat_template=source, add_generation_prompt=True, **SPECIALS)
    return rendered[0]


@pytest.mark.parametrize("source", [CHATML, LLAMA2, LOOPS], ids=["chatml", "llama2", "loops"])
@pytest.mark.parametrize("messages", [TALK, TALK[1:2]], ids=["long", "short"])
def test_as_transformers_renders(source, messages):
    assert ChatTemplate(source, SPECIALS).render(messages) == expected(source, messages)


def test_a_template_is_found_where_models_have_it(tmp_path):
    assert ChatTemplate.of_folder(str(tmp_path)) is None
    config = {"bos_token": {"content": "<s>"}, "eos_token": "</s>", "chat_template": LLAMA2}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert ChatTemplate.of_folder(str(tmp_path)).render(TALK) == expected(LLAMA2, TALK)
    several = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": LLAMA2}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": several}))
    assert ChatTemplate.of_folder(str(tmp_path)).render(TALK) == expected(LLAMA2, TALK)
    (tmp_path / "chat_template.jinja").write_text(CHATML)
    assert ChatTemplate.of_folder(str(tmp_path)).render(TALK) == expected(CHATML, TALK)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "has no messages"),
        ([{"role": "user"}], "message 1 has no text as its content"),
        ([*TALK, {"role": "user", "content": "again"}], "refuses the conversation: roles must"),
    ],
)
def test_a_conversation_that_cannot_be_rendered_is_refused(messages, message):
    with pytest.raises(ConfigError, match=message):
        ChatTemplate(LLAMA2, SPECIALS).render(messages)


def test_a_damaged_template_is_refused_with_its_line():
    with pytest.raises(ConfigError, match="line 2"):
        ChatTemplate("a\n{% if %}", {})


def test_a_template_cannot_reach_python():
    reach = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    with pytest.raises(ConfigError, match="unsafe"):
        ChatTemplate(reach, {}).render(TALK)
