"""Commands on config files: check, show, list, describe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mlprune_jax.cli.options import ConfigFile, Debug, Json, Overrides, load_settings
from mlprune_jax.cli.perform import Switches, failures_told, perform
from mlprune_jax.report.json_text import to_json


def check(file: ConfigFile, overrides: Overrides = None, as_json: Json = False, debug: Debug = False) -> None:
    """Validate a config file and name everything that is wrong with it."""

    def work() -> dict[str, Any]:
        load_settings(file, overrides or [])
        return {"config": str(file), "valid": True}

    perform(work, Switches(as_json, debug=debug))


def show(
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="A YAML config or a recipe's name; the demo's if none.")
    ] = None,
    overrides: Overrides = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Print a config with every default filled in; what each setting means: docs/settings.md, or `config schema`."""
    from mlprune_jax.config.loading import dump_config, packaged_config

    with failures_told(debug=debug):
        config = load_settings(file or packaged_config("demo"), overrides or [])
        text = to_json(config.model_dump(mode="json")) if as_json else dump_config(config).rstrip()
    typer.echo(text)


def list_recipes(as_json: Json = False, debug: Debug = False) -> None:
    """Name the recipes that come with the package; every FILE of a config may be one of them."""
    from mlprune_jax.config.loading import packaged_names

    with failures_told(debug=debug):
        names = packaged_names()
    typer.echo(to_json(names) if as_json else "\n".join(names))


def schema() -> None:
    """Print the JSON Schema of config files, for editors: what each setting means, and the values it may have."""
    from mlprune_jax.config.loading import config_schema as schema_of
    from mlprune_jax.config.settings import RunConfig

    typer.echo(to_json(schema_of(RunConfig)))
