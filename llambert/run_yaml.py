"""A run file as YAML: keys and the task's words as written, no key twice, no doubtful boolean."""

import re
from typing import Any

import yaml

from llambert.errors import UserError

# Sections whose values have no known type, so that none makes a boolean of a word.
UNTYPED = {"chat_template_kwargs", "engine_kwargs"}
_WORDS = {"yes", "no", "on", "off"}  # booleans in YAML 1.1


class _Loader(yaml.SafeLoader):
    """YAML with keys as written, words of `task` as written, and no key given twice.

    YAML 1.1 makes booleans of yes, no, on and off, and numbers of 1 and 1_0; as labels they are
    words, and outside `task` only true and false are booleans. A date is a text.
    """


def _construct_section(loader: _Loader, node: yaml.MappingNode) -> dict[str, Any]:
    pairs = _pairs(node)
    for key, value in pairs:
        if key in UNTYPED:
            _refuse_words(value, key)
    return {
        key: _words(value) if key == "task" else loader.construct_object(value, deep=True)
        for key, value in pairs
    }


_Loader.add_constructor("tag:yaml.org,2002:map", _construct_section)
_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern)
        for tag, pattern in resolvers
        if tag not in ("tag:yaml.org,2002:bool", "tag:yaml.org,2002:timestamp")
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)


def _pairs(node: yaml.MappingNode) -> list[tuple[str, yaml.Node]]:
    """The mapping's keys, as written, with their values; a key given twice is refused.

    Keys merged with `<<` come first, and those of the mapping itself take their place.
    """
    own: dict[str, yaml.Node] = {}
    merged: dict[str, yaml.Node] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise UserError(f"the key in line {line} is not a word", "write `key: value`")
        if key.value in own:
            raise UserError(f"{key.value!r} is given twice (line {line})", "keep one of the two")
        if key.tag != "tag:yaml.org,2002:merge":
            own[key.value] = value
        else:
            bases = value.value if isinstance(value, yaml.SequenceNode) else [value]
            if not all(isinstance(base, yaml.MappingNode) for base in bases):
                raise UserError(f"'<<' in line {line} merges no section", "write `<<: *name`")
            for base in reversed(bases):  # of several, the first one counts
                merged |= _pairs(base)
    return list((merged | own).items())


def _words(node: yaml.Node, listed: bool = False) -> Any:
    """A node of `task` with every scalar as it is written; an empty one outside lists is None."""
    if isinstance(node, yaml.MappingNode):
        return {key: _words(value, listed) for key, value in _pairs(node)}
    if isinstance(node, yaml.SequenceNode):
        return [_words(item, listed=True) for item in node.value]
    empty = _is_plain(node) and node.value in ("", "~", "null")
    return None if empty and not listed else node.value


def _is_plain(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.style is None  # without quotes


def _refuse_words(node: yaml.Node, name: str) -> None:
    """Refuse what reads as a boolean and would be a text, which a chat template takes for true."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            _refuse_words(value, f"{name}.{key.value}")
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _refuse_words(item, name)
    elif _is_plain(node) and node.value.lower() in _WORDS:
        raise UserError(
            f"{name} is {node.value}, which is a text here and neither true nor false",
            f"write true or false, or {node.value!r} in quotes for the text",
        )


def read(path: str) -> dict[str, Any]:
    """The run file at `path`, as it is written.

    Raises:
        UserError: no such file, not YAML, or a value that may mean two things.
    """
    try:
        with open(path, encoding="utf-8") as file:
            values = yaml.load(file, Loader=_Loader)
    except FileNotFoundError:
        raise UserError(f"no such file: {path!r}", "check the path of the run file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path!r}: {error}", "give a YAML file") from None
    except (yaml.YAMLError, RecursionError) as error:  # the latter: an alias inside its own anchor
        raise UserError(
            f"{path!r} is not YAML: {error}",
            "mend the line named above; quote a text that holds { } [ ] : or #",
        ) from None
    if not isinstance(values, dict):
        raise UserError(f"{path!r} holds no fields", "`llambert schema` prints every field")
    return values


def read_value(text: str, key: tuple[str, ...]) -> Any:
    """The value that an override gives the field at `key`.

    Raises:
        UserError: there is none, or it may mean two things.
        yaml.YAMLError: it is not YAML.
    """
    node = yaml.compose(text, Loader=_Loader)
    if node is None:  # an empty text, or a comment alone
        raise UserError(f"--set {'.'.join(key)} has no value", "write '' for an empty text")
    if UNTYPED & set(key):
        _refuse_words(node, ".".join(key))
    return _words(node) if key[0] == "task" else yaml.load(text, Loader=_Loader)
