"""Settings: a YAML file, changed by `a.b=c` overrides, becomes a dataclass.

Numbers are read as in YAML 1.2, so `8e-4` is a number, `1:30` and `2026-01-31` are text, and `010` is not octal.
Duplicate keys, numbers that are not finite or exceed 64 bits, and files that expand to more than 100,000 values through
their aliases are refused. Every error is a `UserError` that names the file and the key.
"""

from __future__ import annotations

import dataclasses
import math
import re
import types
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar, Union

import yaml

from jrt_eval.errors import UserError, nearest
from jrt_eval.files import MEBIBYTE, read_text

T = TypeVar("T")

_MOST_VALUES = 100_000
_DEEPEST = 100
_NAMES: dict[Any, str] = {int: "an integer", float: "a number", str: "text", bool: "true or false"}


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the scalars of YAML 1.2."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":int", ":float", ":timestamp"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"[-+]?(0|[1-9][0-9_]*)$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"(?=.*[.eE])[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$"
    ),
    list("-+.0123456789"),
)


def read_settings(path: Path, overrides: Iterable[str] = (), what: str = "settings file") -> dict[str, Any]:
    """The mapping in a YAML file of at most 1 MiB, with `overrides` applied (`apply_overrides`).

    what: names the kind of file in error messages.
    """
    content = parse_yaml(read_text(path, MEBIBYTE), str(path))
    if not isinstance(content, dict):
        raise UserError(f"{path}: a {what} holds keys and values, this one holds {shown(content)}")
    apply_overrides(content, overrides)
    return content


def load(cls: type[T], path: Path, overrides: Iterable[str] = (), what: str = "settings file") -> T:
    """The dataclass `cls` from a YAML file and overrides."""
    return build(cls, read_settings(path, overrides, what), str(path))


def parse_yaml(text: str, where: str) -> Any:
    """The value of a YAML document, made of dict, list, str, int, float, bool and None."""
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _check_node(node, where)
            value = loader.construct_document(node)
        finally:
            loader.dispose()
    except RecursionError:
        raise UserError(f"{where}: it is nested too deeply") from None
    except yaml.YAMLError as error:
        raise UserError(f"{where}: not valid YAML: {' '.join(str(error).split())[:300]}") from None
    except UserError:
        raise
    except (ValueError, TypeError, LookupError) as error:  # a number of thousands of digits, `!!int ''`
        raise UserError(f"{where}: {' '.join(str(error).split())[:300]}") from None
    check_values(value, where)
    return _unshared(value)


def apply_overrides(content: dict[str, Any], overrides: Iterable[str]) -> None:
    """Set `a.b=c` in nested mappings, in order. Values are YAML; missing mappings on the way are created."""
    for override in overrides:
        dotted, equals, text = override.partition("=")
        parents = dotted.strip().split(".")
        if not equals or not all(parents):
            raise UserError(f"--set {shown(override)}: write key=value, for example --set optimizer.lr=5e-4")
        *parents, last = parents
        target = content
        for parent in parents:
            if target.get(parent) is None:
                target[parent] = {}
            target = target[parent]
            if not isinstance(target, dict):
                raise UserError(f"--set {shown(override)}: {parent!r} is a value and has no keys")
        target[last] = parse_yaml(text, f"--set {shown(override)}")


def build(cls: type[T], content: Any, where: str) -> T:
    """The dataclass `cls` from a mapping, recursively, each value checked against its field's type."""
    if not isinstance(content, dict):
        raise UserError(f"{where}: expected keys and values, got {shown(content)}")
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    values = {}
    for key, value in content.items():
        if key not in fields:
            raise UserError(f"{where}: unknown key {shown(key)}{nearest(str(key), list(fields))}")
        values[key] = _convert(hints[key], value, f"{where}: {key}")
    required = [
        f.name
        for f in fields.values()
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING and f.name not in values
    ]
    if required:
        raise UserError(f"{where}: {', '.join(required)} must be given")
    return cls(**values)


def check_values(value: Any, where: str) -> None:
    """Refuse numbers that are not finite or need more than 64 bits, text that is no Unicode, and other types."""
    if isinstance(value, dict):
        for key, element in value.items():
            check_values(key, where)
            check_values(element, f"{where}: {key}" if isinstance(key, str) else where)
    elif isinstance(value, list):
        for element in value:
            check_values(element, where)
    elif isinstance(value, str):
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise UserError(f"{where}: {shown(value)} contains half of a surrogate pair, which is not Unicode text")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise UserError(f"{where}: {value} is not a finite number (write it in quotes if it is text)")
    elif isinstance(value, int):
        if not -(2**63) <= value < 2**63:
            raise UserError(f"{where}: an integer of {value.bit_length()} bits; at most 64 are supported")
    elif value is not None:
        raise UserError(f"{where}: {shown(value)} is neither text, a number, a list nor a mapping")


def shown(value: Any) -> str:
    """`repr(value)` for an error message, cut to 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _unshared(value: Any) -> Any:
    """A copy in which aliases are values of their own, so that changing one place changes no other."""
    if isinstance(value, dict):
        return {key: _unshared(element) for key, element in value.items()}
    return [_unshared(element) for element in value] if isinstance(value, list) else value


def _check_node(node: yaml.Node, where: str) -> None:
    """Refuse duplicate keys, recursion, deep nesting, and aliases that multiply into very many values."""
    sizes: dict[int, int] = {}
    open_nodes: set[int] = set()

    def size(node: yaml.Node, depth: int) -> int:
        if id(node) in open_nodes:
            raise UserError(f"{where}: line {node.start_mark.line + 1} contains itself through an alias")
        if depth > _DEEPEST:
            raise UserError(f"{where}: line {node.start_mark.line + 1} is nested more than {_DEEPEST} deep")
        if id(node) in sizes:
            return sizes[id(node)]
        open_nodes.add(id(node))
        total = 1
        if isinstance(node, yaml.MappingNode):
            _check_keys(node, where)
            total += sum(size(key, depth + 1) + size(value, depth + 1) for key, value in node.value)
        elif isinstance(node, yaml.SequenceNode):
            total += sum(size(item, depth + 1) for item in node.value)
        open_nodes.discard(id(node))
        if total > _MOST_VALUES:
            raise UserError(f"{where}: it expands to more than {_MOST_VALUES:,} values")
        sizes[id(node)] = total
        return total

    size(node, 0)


def _check_keys(node: yaml.MappingNode, where: str) -> None:
    seen: set[tuple[str, str]] = set()
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
            if (key.tag, key.value) in seen:
                raise UserError(f"{where}: line {key.start_mark.line + 1} gives {shown(key.value)} a second time")
            seen.add((key.tag, key.value))


def _convert(hint: Any, value: Any, where: str) -> Any:
    """`value` as the type `hint`; raises `UserError` if it is of another."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        return _convert_union(arguments, value, where)
    if dataclasses.is_dataclass(hint):
        return build(hint, value, where)  # type: ignore[arg-type]
    if origin is list:
        return [_convert(arguments[0], element, where) for element in (value if isinstance(value, list) else [value])]
    if origin is tuple:
        return _convert_tuple(arguments, value, where)
    if origin is typing.Literal:
        if value not in arguments:
            known = ", ".join(map(str, arguments))
            close = nearest(str(value), [str(a) for a in arguments])
            raise UserError(f"{where}: expected one of {known}, got {shown(value)}{close}")
        return value
    if origin is dict:
        if not isinstance(value, dict):
            raise UserError(f"{where}: expected keys and values, got {shown(value)}")
        return {_convert(arguments[0], k, where): _convert(arguments[1], v, f"{where}: {k}") for k, v in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is int and isinstance(value, float) and value.is_integer() and abs(value) < 2**63:
        return int(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise UserError(f"{where}: expected {_NAMES.get(hint, hint.__name__)}, got {shown(value)}")
    return value


def _convert_union(options: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in options:
        return None
    others = [option for option in options if option is not type(None)]
    for option in others[:-1]:
        try:
            return _convert(option, value, where)
        except UserError:
            continue
    return _convert(others[-1], value, where)


def _convert_tuple(items: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    """items: a type for each element, or one and an ellipsis."""
    if not isinstance(value, (list, tuple)):
        raise UserError(f"{where}: expected a list, got {shown(value)}")
    if items[1:] == (...,):
        items = (items[0],) * len(value)
    if len(value) != len(items):
        raise UserError(f"{where}: expected a list of {len(items)}, got {shown(value)}")
    return tuple(_convert(item, element, where) for item, element in zip(items, value, strict=True))
