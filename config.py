"""A command's settings: a dataclass, filled from a YAML file and `--key value` overrides by TRL's parser.

What TRL's parser lets pass is checked here: unknown keys (the error names the nearest one), values of a wrong type in the YAML
file, and choices. Help is built from the dataclass alone, so that `--help` imports nothing heavy.
"""

from __future__ import annotations

import difflib
import inspect
import json
import textwrap
import types
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from .types import InputError

T = TypeVar("T")
JSON = dict[str, Any] | str | None  # a mapping in YAML, a JSON object on the command line


def parse(cls: type[T], arguments: Sequence[str]) -> T:
    """An instance of the dataclass `cls` from `[CONFIG.yaml] [--key value ...]`; the command line wins. Raises InputError."""
    from trl import TrlParser

    class Parser(TrlParser):
        def error(self, message: str) -> None:
            raise InputError(message)

    arguments = _with_config_key(arguments)
    _check_yaml(cls, arguments)
    for argument in arguments:
        if argument.startswith("--"):
            _check_key(cls, argument[2:].split("=", 1)[0].replace("-", "_"), "option --", extra=["config", *_negations(cls)])
    parser = Parser(cls, add_help=False, allow_abbrev=False)
    config, stray = parser.parse_args_and_config(arguments, return_remaining_strings=True)
    if stray:
        raise InputError(f"unexpected argument {stray[0]!r}; settings are written --key value, or in one CONFIG.yaml")
    for name, hint in get_type_hints(cls).items():
        setattr(config, name, _typed(name, getattr(config, name), hint))
    return config


def help_text(cls: type, usage: str, about: str) -> str:
    """The help page of a command: every key with its type, meaning and default."""
    hints = get_type_hints(cls)
    lines = [f"usage: {usage}", "", inspect.cleandoc(about), ""]
    for item in fields(cls):
        default = _default(item)
        note = "required" if default is MISSING else "" if default is None else f"default: {_shown(default)}"
        lines.append(f"  --{item.name} {_type_name(hints[item.name])}{f'  ({note})' if note else ''}")
        lines += textwrap.wrap(item.metadata.get("help", ""), 110, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)


def given(arguments: Sequence[str]) -> dict[str, Any]:
    """What the arguments say, before it is checked: keys of the YAML file with their values, then those of the command line."""
    arguments = _with_config_key(arguments)
    said = dict(_read_yaml(arguments))
    for argument, value in zip(arguments, [*arguments[1:], ""], strict=True):
        if argument.startswith("--") and argument not in ("--config", "--help"):
            name, _, own = argument[2:].partition("=")
            said[name.replace("-", "_")] = own or value
    return said


def nearest(key: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?`, or what there is where nothing is near."""
    known = list(known)
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(known)}"


def _with_config_key(arguments: Sequence[str]) -> list[str]:
    """TRL's parser wants `--config FILE`; a leading FILE and `--config=FILE` say the same."""
    arguments = [part for argument in arguments for part in (argument.split("=", 1) if argument.startswith("--config=") else [argument])]
    if arguments and not arguments[0].startswith("-"):
        arguments.insert(0, "--config")
    if arguments.count("--config") > 1:
        raise InputError("more than one config file is given; give one")
    if arguments and arguments[-1] == "--config":
        raise InputError("--config needs the path of a YAML file")
    return arguments


def _check_yaml(cls: type, arguments: Sequence[str]) -> None:
    content = _read_yaml(arguments)
    for key in content:
        _check_key(cls, str(key), f"{arguments[list(arguments).index('--config') + 1]}: key ", extra=["env"])
    if not isinstance(content.get("env", {}), dict):
        raise InputError(f"{arguments[list(arguments).index('--config') + 1]}: env must be a mapping of environment variables")


def _read_yaml(arguments: Sequence[str]) -> dict[Any, Any]:
    """The content of the config file; empty where none is named."""
    if "--config" not in arguments:
        return {}
    import yaml

    path = Path(arguments[list(arguments).index("--config") + 1])
    if not path.is_file():
        raise InputError(f"there is no config file {path}; give the path of a YAML file, or settings as --key value")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        raise InputError(
            f"{path}{f', line {mark.line + 1}' if mark else ''}: is not valid YAML ({getattr(error, 'problem', error)})"
        ) from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: must hold lines of the form `key: value`")
    return content


def _check_key(cls: type, key: str, where: str, extra: Sequence[str]) -> None:
    known = [item.name for item in fields(cls)]
    if key not in known and key not in extra:
        name = f"{where}{key}" if where.endswith("--") else f"{where}{key!r}"
        raise InputError(f"unknown {name}{nearest(key, known)}" if where.endswith("--") else f"{name} is unknown{nearest(key, known)}")


def _negations(cls: type) -> list[str]:
    return [f"no_{item.name}" for item in fields(cls) if item.default is True]


def _typed(name: str, value: Any, hint: Any) -> Any:
    """The value as its type hint wants it, or InputError."""
    if hint == JSON:
        return _json_object(name, value)
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    if value is None and type(None) in options:
        return None
    hint = next(option for option in options if option is not type(None))
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise InputError(f"{name} must be one of {', '.join(map(str, get_args(hint)))}, got {value!r}")
    elif hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    elif get_origin(hint) is list:
        value = [value] if isinstance(value, str) else value
        if not isinstance(value, list) or not all(isinstance(item, get_args(hint)[0]) for item in value):
            raise InputError(f"{name} must be a list of {get_args(hint)[0].__name__}, got {value!r}")
    elif not isinstance(value, hint) or (hint is not bool and isinstance(value, bool)):
        raise InputError(f"{name} must be of type {_type_name(hint)}, got {value!r}")
    return value


def _json_object(name: str, value: Any) -> dict[str, Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise InputError(f'{name} must be a JSON object such as {{"key": 1}} ({error}), got {value!r}') from None
    if value is not None and not isinstance(value, dict):
        raise InputError(f"{name} must be a mapping of settings, got {value!r}")
    return value or {}


def _default(item: Field[Any]) -> Any:
    return item.default_factory() if item.default_factory is not MISSING else item.default


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value)) or "none"
    return '""' if value == "" else str(value).lower() if isinstance(value, bool) else str(value)


def _type_name(hint: Any) -> str:
    if hint == JSON:
        return "JSON"
    options = [
        option for option in (get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)) if option is not type(None)
    ]
    if get_origin(options[0]) is Literal:
        return "|".join(map(str, get_args(options[0])))
    if get_origin(options[0]) is list:
        return f"{_type_name(get_args(options[0])[0])} ..."
    return {str: "text", int: "int", float: "number", bool: "true|false"}[options[0]]
