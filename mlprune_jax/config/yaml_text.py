"""The YAML of config files: YAML 1.2's plain scalars, merge keys, no duplicate keys, no tags.

PyYAML follows YAML 1.1, where ``lr: 3e-5`` is a string, ``no`` is a boolean, ``010`` is 8, a repeated key silently
wins over the first and ``!!`` tags build objects. In a config each of these is a trap, so the loader has none of them.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

import yaml
from yaml.constructor import ConstructorError
from yaml.events import CollectionStartEvent, ScalarEvent
from yaml.nodes import CollectionNode, MappingNode, Node, ScalarNode

from mlprune_jax.errors import ConfigError

MAX_VALUES = 10_000  # of one document, each alias counted as what it stands for

# What a plain (unquoted) scalar means, and the characters it may start with; everything else is text.
PLAIN_SCALARS: dict[str, tuple[re.Pattern[str], str]] = {
    "tag:yaml.org,2002:null": (re.compile(r"(?:~|null|Null|NULL|)\Z"), "~nN"),
    "tag:yaml.org,2002:bool": (re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z"), "tTfF"),
    "tag:yaml.org,2002:int": (re.compile(r"[-+]?(?:0|[1-9][0-9]*)\Z"), "-+0123456789"),
    "tag:yaml.org,2002:float": (
        re.compile(r"[-+]?(?:(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.inf)\Z|\.nan\Z"),
        "-+.0123456789",
    ),
}


class ConfigLoader(yaml.SafeLoader):
    """Reads one config document; `read_yaml` is the way to call it."""

    yaml_implicit_resolvers: Any = {}  # noqa: RUF012 -- PyYAML's own class attribute, filled below

    def get_single_node(self) -> Node | None:
        """Refuse a document whose aliases multiply: a few lines of them can stand for billions of values."""
        top: Any = super().get_single_node()
        count, pending = 0, [top]
        while pending and count <= MAX_VALUES:
            node = pending.pop()
            count += 1
            if isinstance(node, MappingNode):
                pending += [part for pair in node.value for part in pair]
            elif isinstance(node, CollectionNode):
                pending += node.value
        if pending:
            raise ConstructorError(None, None, f"stands for more than {MAX_VALUES} values", top.start_mark)
        return top

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        """Refuse tags where they stand."""
        event: Any = self.peek_event()
        if isinstance(event, ScalarEvent | CollectionStartEvent) and event.tag is not None:
            raise ConstructorError(None, None, f"tags are not supported, got {event.tag!r}", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Build a dict whose keys are text exactly as written, each given once; ``<<`` fills in what is not given."""
        given: dict[Hashable, Any] = {}
        merged: dict[Hashable, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, ScalarNode):
                raise ConstructorError(None, None, "a key must be plain text", key_node.start_mark)
            key = key_node.value
            if key == "<<" and key_node.style is None:
                merged |= self._merged(value_node)
                continue
            if key in given:
                raise ConstructorError(None, None, f"key {key!r} is given twice", key_node.start_mark)
            given[key] = self.construct_object(value_node, deep=deep)
        return merged | given

    def _merged(self, node: Node) -> dict[Hashable, Any]:
        """What ``<<: *name`` or ``<<: [*first, *second]`` stands for; of several, the first wins."""
        value = self.construct_object(node, deep=True)
        sources = value if isinstance(value, list) else [value]
        if not all(isinstance(source, dict) for source in sources):
            raise ConstructorError(None, None, "<< takes a mapping or a list of them", node.start_mark)
        return {key: item for source in reversed(sources) for key, item in source.items()}


class ConfigDumper(yaml.SafeDumper):
    """Writes what `ConfigLoader` reads back equal; quotes what any reader, 1.1 or 1.2, could take for a number."""

    def represent_str(self, data: str) -> ScalarNode:
        """Escape line breaks: PyYAML's unescaped forms turn the rarer ones (U+0085, U+2028) into plain newlines."""
        style = None if data.isprintable() else '"'
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)


ConfigDumper.add_representer(str, ConfigDumper.represent_str)

for _tag, (_pattern, _first) in PLAIN_SCALARS.items():
    # An empty plain scalar is null; PyYAML looks it up under the empty string.
    _firsts = [*_first, ""] if _tag.endswith("null") else [*_first]
    ConfigLoader.add_implicit_resolver(_tag, _pattern, _firsts)
    ConfigDumper.add_implicit_resolver(_tag, _pattern, _firsts)


def read_yaml(text: str, *, source: str) -> Any:
    """Parse one YAML document into dicts, lists, text, numbers, booleans and None.

    Args:
        text: the document.
        source: where the text comes from, named in errors.

    Returns:
        What the document holds; None where it is empty.

    Raises:
        ConfigError: where it is not YAML, or uses what configs do not support.
    """
    try:
        return _unshared(ConfigLoader(text).get_single_data())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"{source}{place}: {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise ConfigError(f"{source}: nested too deeply") from error
    except ValueError as error:
        # Python refuses to convert an integer of thousands of digits.
        raise ConfigError(f"{source}: {error}") from error


def _unshared(data: Any) -> Any:
    """A copy in which two aliases of one value are two values, so that setting one leaves the other."""
    if isinstance(data, dict):
        return {key: _unshared(value) for key, value in data.items()}
    return [_unshared(item) for item in data] if isinstance(data, list) else data


def write_yaml(data: Any) -> str:
    """Format plain data as YAML that `read_yaml` turns back into equal data."""
    return yaml.dump(data, Dumper=ConfigDumper, sort_keys=False, allow_unicode=True, width=100)
