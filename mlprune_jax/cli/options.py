"""The options that commands share, and how their values become settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mlprune_jax.errors import ConfigError

if TYPE_CHECKING:
    from mlprune_jax.config.settings import RunConfig

Folder = Annotated[Path, typer.Argument(metavar="RUN_OR_FOLDER", help="A run's folder, or a model folder.")]
ConfigFile = Annotated[Path, typer.Argument(metavar="FILE", help="A YAML config, or a recipe's name.")]
Config = Annotated[
    Path | None, typer.Option("--config", help="A YAML config or a recipe's name; the options below override it.")
]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="The run's folder; new or empty.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", metavar="PLACE=VALUE", help="Override one setting.")]
Seed = Annotated[int | None, typer.Option(help="Seed of everything random; the config's otherwise.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only the result.")]
SkipDamaged = Annotated[bool, typer.Option("--skip-damaged", help="Leave damaged lines out, and say so.")]
Offline = Annotated[bool, typer.Option("--offline", help="Never ask the Hugging Face hub.")]
DType = Annotated[str | None, typer.Option(help="float32, bfloat16 or float16; bfloat16 on accelerators if unset.")]
Implementation = Annotated[
    Literal["reference", "dense", "xla", "mosaic_gpu", "triton"] | None,
    typer.Option(help="Of every block-sparse product; by measured cost if unset."),
]
Coordinator = Annotated[
    str | None, typer.Option(metavar="HOST:PORT", help="Of process 0, of several; srun and mpirun tell it.")
]
Processes = Annotated[int | None, typer.Option(min=1, help="How many processes a run has.")]
Process = Annotated[int | None, typer.Option(min=0, help="Which of them this is, from 0.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of a failure.")]


def load_settings(path: Path | None, overrides: list[str]) -> RunConfig:
    from mlprune_jax.config.loading import load_config
    from mlprune_jax.config.settings import RunConfig

    return load_config(RunConfig, path, overrides)


def as_overrides(options: dict[str, str | float | None], overrides: list[str] | None) -> list[str]:
    """Options become overrides, quoted so that a folder named 2024 stays text; ``--set`` has the last word."""
    given = [f"{place}={json.dumps(v, ensure_ascii=False)}" for place, v in options.items() if v is not None]
    return given + (overrides or [])


def names(text: str) -> tuple[str, ...]:
    """``"id,label"`` as names."""
    return tuple(name.strip() for name in text.split(","))


def numbers(text: str, option: str) -> list[int]:
    """``"1,8,32"`` as numbers."""
    parts = names(text)
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ConfigError(f"{option} takes numbers of at least 1 with commas between, got {text!r}")
    return [int(part) for part in parts]
