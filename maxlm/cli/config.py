"""`maxlm config show|check|list|schema|options`: what configs mean, and what they may say."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from maxlm.cli.numbers import whole

if TYPE_CHECKING:
    from maxlm.config.derive import Resolved
    from maxlm.config.schema import RunConfig

EPILOG = """\
examples:
  maxlm config list                             presets, one a line
  maxlm config show runs/quickstart             the merged config as YAML
  maxlm config show models/llama3-8b hardware/v5p train.duration='160B tokens' --derived --devices 64
  maxlm config show my.yaml --origins           where each value was written
  maxlm config check my.yaml configs/*.yaml     every mistake with file, line and key
  maxlm config schema > maxlm.schema.json       completion and checks in an editor

A config is a preset's name or a YAML file; several are merged, later ones win, then KEY=VALUE
overrides. `extends:` in a file names what it builds on. A value of null (or none at all) is derived
by a stated rule: --derived shows the rules and what they give.
"""

SHOW_EPILOG = """\
examples:
  maxlm config show runs/gpt2-124m optimizer.learning_rate=6e-4
  maxlm config show models/gpt2-124m data/books --resolved --devices 8 --platform tpu
  maxlm config show models/qwen3-0.6b --derived --train-tokens 10e9
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the subcommands."""
    parser.epilog = EPILOG
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    _configure_show(actions)
    check = actions.add_parser("check", help="check configs; exit status 2 when one has a mistake")
    check.add_argument("configs", nargs="+", metavar="CONFIG", help="preset or YAML file")
    actions.add_parser("list", help="names of all presets")
    actions.add_parser("schema", help="JSON Schema of a config file, for editors")
    options = actions.add_parser("options", help="all options as a Markdown table")
    options.add_argument(
        "--write", metavar="FILE", help="put the table between the marks of a Markdown file"
    )


def run(arguments: argparse.Namespace) -> int:
    """Run a subcommand."""
    actions = {
        "show": _show,
        "check": _check,
        "list": _list,
        "schema": _schema,
        "options": _options,
    }
    return actions[arguments.action](arguments)


def _configure_show(actions: argparse._SubParsersAction) -> None:
    show = actions.add_parser(
        "show",
        help="print a merged config, and what is derived from it",
        description="Print a merged config as YAML.",
        epilog=SHOW_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    show.add_argument("arguments", nargs="+", metavar="CONFIG|KEY=VALUE", help="as for `train`")
    kind = show.add_mutually_exclusive_group()
    kind.add_argument("--resolved", action="store_true", help="with every open value derived")
    kind.add_argument("--derived", action="store_true", help="the derived values and their rules")
    kind.add_argument(
        "--origins", action="store_true", help="set values and where they are written"
    )
    facts = show.add_argument_group("what derived values depend on")
    facts.add_argument(
        "--vocab-size", type=whole, help="of the tokenizer (default: that of the data)"
    )
    facts.add_argument(
        "--train-tokens", type=whole, help="tokens of the data, read once (default: counted)"
    )
    facts.add_argument("--devices", type=whole, default=1, help="default: 1")
    facts.add_argument(
        "--platform", choices=["cpu", "gpu", "tpu"], default="tpu", help="default: tpu"
    )


def _show(arguments: argparse.Namespace) -> int:
    from maxlm.config.load import load_with_origins, to_yaml
    from maxlm.errors import ConfigError

    overrides = [a for a in arguments.arguments if "=" in a]
    configs = [a for a in arguments.arguments if "=" not in a]
    if not configs:
        raise ConfigError("name a config to show: a preset (`maxlm config list`) or a YAML file")
    loaded = load_with_origins(configs, overrides)
    if arguments.origins:
        width = max(map(len, loaded.origins), default=0)
        for key, origin in loaded.origins.items():
            print(f"{key:<{width}}  {origin}")
    elif arguments.derived:
        _print_derived(_resolve(loaded.config, arguments))
    elif arguments.resolved:
        print(to_yaml(_resolve(loaded.config, arguments).config), end="")
    else:
        print(to_yaml(loaded.config), end="")
    return 0


def _resolve(config: RunConfig, arguments: argparse.Namespace) -> Resolved:
    from maxlm.config.derive import resolve
    from maxlm.data.stored_facts import first_vocab_size, stored_facts
    from maxlm.model.facts import facts_of

    stored = stored_facts(config.data)
    facts = facts_of(
        config,
        vocab_size=first_vocab_size(
            arguments.vocab_size,
            stored.vocab_size,
            config.model.vocab_size,
            otherwise="--vocab-size N",
        ),
        train_tokens=arguments.train_tokens or stored.train_tokens,
        num_devices=arguments.devices,
        platform=arguments.platform,
    )
    print(
        f"{facts.parameters:,} parameters, {facts.non_embedding_parameters:,} without embeddings; "
        f"{facts.num_devices} {facts.platform} devices",
        file=sys.stderr,
    )
    return resolve(config, facts)


def _print_derived(resolved: Resolved) -> None:
    print(f"{resolved.total_tokens:,} tokens in {resolved.total_steps:,} steps")
    width = max((len(d.key) for d in resolved.derived), default=0)
    for derived in resolved.derived:
        print(f"{derived.key:<{width}}  {derived.value}\n{'':<{width}}    {derived.rule}")


def _check(arguments: argparse.Namespace) -> int:
    from maxlm.config.load import load_config
    from maxlm.errors import ConfigError

    wrong = 0
    for name in arguments.configs:
        try:
            load_config(name)
        except ConfigError as error:
            wrong += 1
            print(f"{name}: {error}" if name not in str(error) else error, file=sys.stderr)
        else:
            print(f"{name}: fine")
    return 2 if wrong else 0


def _list(arguments: argparse.Namespace) -> int:
    from maxlm.config.presets import preset_names

    print("\n".join(preset_names()))
    return 0


def _schema(arguments: argparse.Namespace) -> int:
    import json

    from maxlm.config.json_schema import json_schema

    print(json.dumps(json_schema(), indent=2, ensure_ascii=False))
    return 0


def _options(arguments: argparse.Namespace) -> int:
    from maxlm.config.reference import options_table, write_table

    if arguments.write:
        write_table(arguments.write)
    else:
        print(options_table(), end="")
    return 0
