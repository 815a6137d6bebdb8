"""From a YAML file and dotted overrides to validated settings, and back; every failure is one `ConfigError`."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from mlprune_jax.config.yaml_text import read_yaml, write_yaml
from mlprune_jax.errors import ConfigError
from mlprune_jax.files import AnyPath, home_path

Settings = TypeVar("Settings", bound=BaseModel)

MAX_BYTES = 1 << 20  # a config is a page; anything larger is another file given by mistake
_BOUNDS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}
COMPLETE_ONE = "`mlprune config show` prints a complete config, the demo's"
MAX_SHOWN = 12  # wrong settings named in one message


def load_config(
    cls: type[Settings], path: AnyPath | None, overrides: Sequence[str] = (), defaults: Mapping[str, Any] | None = None
) -> Settings:
    """Read settings from a YAML file, apply dotted overrides, validate.

    Args:
        cls: the pydantic class to build.
        path: a YAML file, ``~`` for a home, or the name of a packaged recipe, as ``minilm_mrpc_d20``; None starts from
            nothing, so that the defaults and the overrides decide.
        overrides: ``"place.of.key=value"`` each, the value in YAML; later ones win.
        defaults: settings that hold where the file and the overrides have none.

    Returns:
        The validated settings.

    Raises:
        ConfigError: where the file cannot be read or any setting is wrong; the message names all of them.
    """
    data = deepcopy(dict(defaults or {})) | ({} if path is None else _read_mapping(_file_or_recipe(home_path(path))))
    for override in overrides:
        _apply_override(data, override)
    try:
        return cls.model_validate(data)
    except ValidationError as error:
        raise _config_error(cls, data, error, source=str(path) if path else "settings") from error


def packaged_config(name: str) -> Path:
    """The recipe ``configs/<name>.yaml``."""
    return _recipe_folder() / f"{name}.yaml"


def packaged_names() -> list[str]:
    """The names of all recipes, sorted."""
    return sorted(path.stem for path in _recipe_folder().glob("*.yaml"))


def _recipe_folder() -> Path:
    """Inside the package where a wheel put it, else in the checkout."""
    package = Path(__file__).parents[1]
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def _file_or_recipe(path: Path) -> Path:
    return packaged_config(str(path)) if not os.path.isfile(path) and str(path) in packaged_names() else path


def dump_config(model: BaseModel) -> str:
    """Format settings as YAML; `load_config` of the text gives equal settings."""
    return write_yaml(model.model_dump(mode="json"))


def config_schema(cls: type[BaseModel]) -> dict[str, Any]:
    """The JSON Schema of a settings class, for editors' completion and checks."""
    return _in_standard_words(cls.model_json_schema())


def _in_standard_words(schema: Any) -> Any:
    """A schema in JSON Schema's words for bounds: behind a validator of our own, pydantic leaves them in its own."""
    if isinstance(schema, list):
        return [_in_standard_words(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    return {_BOUNDS.get(key, key): _in_standard_words(value) for key, value in schema.items()}


def _read_mapping(path: Path) -> dict[str, Any]:
    # os.path answers False where pathlib raises: no permission, a name too long, a NUL inside.
    if os.path.isdir(path):
        raise ConfigError(f"{path} is a folder, not a config file", hint="name the YAML file inside it")
    if not os.path.exists(path):  # a pipe is as good as a file
        raise ConfigError(f"there is no config file {path}", hint=_nearby_files(path))
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
        text = raw.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}", hint="a config is a YAML text file in UTF-8") from error
    if len(raw) > MAX_BYTES:
        raise ConfigError(f"{path} is larger than {MAX_BYTES} bytes", hint="a config is a YAML text file of one page")
    data = read_yaml(text, source=str(path))
    if data is None:
        raise ConfigError(f"{path} is empty", hint=COMPLETE_ONE)
    if not isinstance(data, dict):
        raise ConfigError(
            f"{path}: the top level must be `key: value` lines, got {_shown(data)}",
            hint=COMPLETE_ONE,
        )
    return data


def _nearby_files(path: Path) -> str:
    """Name the config the user probably meant, where the folder or the package has one."""
    try:
        names = sorted(p.name for p in path.parent.glob("*.y*ml"))
    except (OSError, ValueError):
        names = []
    if near := difflib.get_close_matches(path.name, names, n=1):
        return f"did you mean {path.parent / near[0]}?"
    if near := difflib.get_close_matches(path.stem, packaged_names(), n=1):
        return f"did you mean the packaged recipe {near[0]}? It goes by its name alone"
    return "check the path after --config; `mlprune config list` names the packaged recipes"


def _apply_override(data: dict[str, Any], override: str) -> None:
    place, equals, text = override.partition("=")
    keys = [key.strip() for key in place.split(".")]
    if not equals or not all(keys):
        raise ConfigError(f"cannot read the override {_shown(override)}", hint="write --set place.of.key=value")
    value = read_yaml(text, source=f"--set {_short(override)}")
    for depth, key in enumerate(keys[:-1], start=1):
        if data.get(key) is None:
            data[key] = {}
        data = data[key]
        if not isinstance(data, dict):
            above = ".".join(keys[:depth])
            raise ConfigError(
                f"cannot set {'.'.join(keys)}: {above} is {_shown(data)}, which has no keys",
                hint=f"set {above} as a whole",
            )
    data[keys[-1]] = value


def _config_error(cls: type[BaseModel], data: Any, error: ValidationError, *, source: str) -> ConfigError:
    lines = list(dict.fromkeys(_problem(cls, data, detail) for detail in error.errors(include_url=False)))
    if len(lines) == 1:
        return ConfigError(f"{source}: {lines[0]}")
    shown = [f"  {line}" for line in lines[:MAX_SHOWN]]
    if len(lines) > MAX_SHOWN:
        shown.append(f"  and {len(lines) - MAX_SHOWN} more")
    return ConfigError("\n".join([f"{source}: {len(lines)} settings are wrong", *shown]))


def _problem(cls: type[BaseModel], data: Any, detail: ErrorDetails) -> str:
    """One line, ``place: what, got value``, from one of pydantic's errors."""
    kind, value = detail["type"], detail["input"]
    keys = _place(data, detail["loc"], missing=kind == "missing")
    place = ".".join(keys) or "settings"
    if kind == "extra_forbidden":
        return f"{place}: unknown key{_suggestion(cls, keys)}"
    if kind == "missing":
        return f"{place}: is required and not given"
    what = detail["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ").removeprefix("Input ")
    what = what[:1].lower() + what[1:]
    if kind in ("value_error", "assertion_error"):
        # Our own validator, which may have said what it got; one of several settings names those that do not fit.
        told = ", got " in what or isinstance(value, dict | BaseModel)
        return f"{place}: {what}" if told else f"{place}: {what}, got {_shown(value)}"
    return f"{place}: {what.partition(', got ')[0]}, got {_shown(value)}"


def _place(data: Any, loc: tuple[int | str, ...], *, missing: bool) -> list[str]:
    """The keys of ``loc`` that stand in the data: pydantic adds the names of a union's branches, which do not."""
    keys = []
    for part in loc[:-1] if missing else loc:
        here: Any = dict(enumerate(data)) if isinstance(data, list) else data
        if isinstance(here, dict) and part in here:
            data = here[part]
            keys.append(str(part))
    return [*keys, str(loc[-1])] if missing else keys


def _suggestion(cls: type[BaseModel], keys: list[str]) -> str:
    """The nearest known name, at the same place first; failing that, what may stand there."""
    known = list(_dotted_names(cls))
    parent = ".".join(keys[:-1])
    siblings = [name for name in known if name.rpartition(".")[0] == parent]
    for names in (siblings, known):
        # The outermost setting of a name is the likeliest one meant.
        places = {name.rpartition(".")[2]: name for name in reversed(names)}
        near = difflib.get_close_matches(keys[-1], places, n=1)
        if near:
            return f", did you mean {places[near[0]]}?"
    return f"; known here: {', '.join(name.rpartition('.')[2] for name in siblings)}" if siblings else ""


def _dotted_names(cls: type[BaseModel], prefix: str = "", above: tuple[type, ...] = ()) -> Iterator[str]:
    yield from (prefix + name for name in cls.model_fields)
    for name, field in cls.model_fields.items():
        for nested in _models_in(field.annotation):
            if nested not in above:
                yield from _dotted_names(nested, f"{prefix}{name}.", (*above, cls))


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The settings classes an annotation such as ``Blocks | None`` can hold directly."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)


def _shown(value: Any) -> str:
    return _short(repr(value))


def _short(text: str, limit: int = 80) -> str:
    return text if len(text) <= limit else f"{text[: limit - 3]}..."
