"""A conversation as the text that a chat model was taught to read, by its own template.

Templates are Jinja programs that come with models (`chat_template.jinja`, or in `tokenizer_config.json`), as
Hugging Face defined them: https://huggingface.co/docs/transformers/chat_templating. They run in a sandbox.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from maxlm import storage
from maxlm.errors import ConfigError

Message = Mapping[str, Any]  # with `role` (system, user, assistant) and `content`

FILE = "chat_template.jinja"
TOKENIZER_CONFIG = "tokenizer_config.json"


class ChatTemplate:
    """A model's template."""

    def __init__(self, source: str, specials: Mapping[str, str], name: str = "the chat template"):
        """Parse a template.

        Args:
            source: Jinja.
            specials: what it calls special tokens → how they are written, such as `bos_token`.
            name: where it came from, for messages.

        Raises:
            ConfigError: it is no Jinja.
        """
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = _today
        self._specials = dict(specials)
        self._name = name
        try:
            self._template = environment.from_string(source)
        except TemplateSyntaxError as error:
            raise ConfigError(f"{name}, line {error.lineno}: {error.message}") from error

    @staticmethod
    def of_folder(folder: str) -> ChatTemplate | None:
        """The template among a model's files; None: it has none.

        Raises ConfigError: a file is damaged.
        """
        path = storage.join(folder, TOKENIZER_CONFIG)
        config: dict[str, Any] = {}
        if storage.exists(path):
            try:
                config = json.loads(storage.read_bytes(path))
            except ValueError as error:
                raise ConfigError(f"{path}: not JSON: {error}") from error
        specials = {
            key: value["content"] if isinstance(value, dict) else value
            for key, value in config.items()
            if key.endswith("_token") and value
        }
        own = storage.join(folder, FILE)
        if storage.exists(own):
            return ChatTemplate(storage.read_text(own), specials, own)
        source = config.get("chat_template")
        if isinstance(source, list):  # several by name
            named = {one["name"]: one["template"] for one in source}
            source = named.get("default")
        return ChatTemplate(source, specials, path) if source else None

    def render(self, messages: Sequence[Message]) -> str:
        """The conversation, up to where the assistant's next answer begins.

        Raises:
            ConfigError: there are no messages, one has no role or content, or the template refuses
                them.
        """
        if not messages:
            raise ConfigError("the conversation has no messages: write at least one")
        for number, message in enumerate(messages, start=1):
            for key in ("role", "content"):
                if not isinstance(message.get(key), str):
                    raise ConfigError(
                        f"message {number} has no text as its {key}: it is {dict(message)!r}"
                    )
        try:
            return self._template.render(
                messages=[dict(m) for m in messages], add_generation_prompt=True, **self._specials
            )
        except TemplateError as error:
            raise ConfigError(f"{self._name} refuses the conversation: {error}") from error


class _Generation(Extension):
    """`{% generation %}…{% endgeneration %}`, which marks for training what the assistant says."""

    tags = {"generation"}  # noqa: RUF012  # an instance variable to jinja

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """What stands between the marks, as it is."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _refuse(message: str) -> None:
    raise TemplateError(message)


def _today(form: str) -> str:
    return datetime.now().strftime(form)
