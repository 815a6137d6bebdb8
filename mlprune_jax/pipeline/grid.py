"""The runs of a sweep: every combination of some settings' values, and the dense stages that they share.

The dense stage depends on nothing under ``prune`` and ``distillation``, so runs that differ in those alone begin with
the same one. It becomes a run of its own, and the others start from its final model: every stage that follows draws its
seeds from (seed, stage, step) and reads the dense model from a folder anyhow, so their weights are those of whole runs,
bit for bit.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

from mlprune_jax.config.loading import load_config
from mlprune_jax.config.settings import BlockStage, HeadRowStage, Prune, PruneStage, RunConfig
from mlprune_jax.config.yaml_text import read_yaml
from mlprune_jax.errors import ConfigError
from mlprune_jax.files import whole_path

Axes = Mapping[str, Sequence[Any]]
"""The values of each varied setting, by its place: ``{"prune.density": [0.5, 0.2], "seed": [0, 1]}``."""

DENSITY, SEED = "prune.density", "seed"
NOT_OF_DENSE = ("prune", "distillation")
LONGEST_NAME = 200
"""Bytes of a run's name: a file system takes 255, with ``dense_``, ``.yaml`` and the marks of a file being written."""


class SweepRun(NamedTuple):
    """One run of a sweep.

    Attributes:
        name: of its folder.
        settings: what the sweep sets for it, by place.
        config: all of its settings.
        after: the run whose dense model it starts from, if it shares one.
    """

    name: str
    settings: dict[str, Any]
    config: RunConfig
    after: str | None


def read_values(text: str, option: str) -> list[Any]:
    """``"0.5,0.3"`` as values, each in YAML.

    Raises:
        ConfigError: it holds none, or is no YAML.
    """
    values = read_yaml(f"[{text}]", source=f"{option} {text}")
    if not isinstance(values, list) or not values:
        raise ConfigError(f"{option} takes values with commas between, got {text!r}")
    return values


def read_axes(
    file: Path | None, overrides: Sequence[str], densities: str | None, seeds: str | None, vary: Sequence[str]
) -> dict[str, list[Any]]:
    """The varied settings of a command line; density and seed are always varied, over the config's own if not given.

    Raises:
        ConfigError: a setting is given twice or wrong, or an option cannot be read.
    """
    axes: dict[str, list[Any]] = {}
    given = [(DENSITY, "--densities", densities), (SEED, "--seeds", seeds)]
    for text in vary:
        place, equals, values = text.partition("=")
        if not (place.strip() and equals):
            raise ConfigError(f"cannot read --vary {text!r}", hint="write --vary place.of.key=value,value")
        given.append((".".join(key.strip() for key in place.split(".")), "--vary", values))
    for place, option, text in given:
        if text is None:
            continue
        if place in axes:
            raise ConfigError(f"{place} is varied twice", hint="name all of its values in one option")
        axes[place] = read_values(text, option)
    common = common_settings(file, overrides, axes)
    own = {DENSITY: [common.prune.density], SEED: [common.seed]}
    return {place: values for place, values in own.items() if not any(_within(place, outer) for outer in axes)} | axes


def common_settings(file: Path | None, overrides: Sequence[str], axes: Axes) -> RunConfig:
    """The settings that all runs have in common; what a config needs and only an axis gives is the first of that."""
    needed = (name for name, field in RunConfig.model_fields.items() if field.is_required())
    return load_config(RunConfig, file, overrides, {name: axes[name][0] for name in needed if axes.get(name)})


def expand(file: Path | None, overrides: Sequence[str], axes: Axes, runs_folder: Path) -> list[SweepRun]:
    """Every combination as a run, each shared dense stage before the runs that start from it.

    Args:
        file, overrides: the settings that all runs have in common, as `load_config` takes them.
        axes: the values of each varied setting.
        runs_folder: where the runs' folders will lie.

    Raises:
        ConfigError: a place lies within another, a combination is no valid config, or two are one run or have one name.
    """
    for inner, outer in itertools.permutations(axes, 2):
        if _within(inner, outer):
            raise ConfigError(
                f"{outer} and {inner} are both varied: the values of one would overwrite the other's",
                hint=f"write the values of {inner} into those of {outer}, or vary what {outer} holds one by one",
            )
    runs: dict[str, SweepRun] = {}
    for values in itertools.product(*axes.values()):
        given = dict(zip(axes, values, strict=True))
        varied = [f"{place}={json.dumps(value, ensure_ascii=False)}" for place, value in given.items()]
        config = with_whole_paths(load_config(RunConfig, file, [*overrides, *varied]))
        settings = {place: _as_read(value, attrgetter(place)(config)) for place, value in given.items()}
        after, dense = None, dense_alone(config)
        if dense is not None:
            of_dense = [place for place in axes if place.partition(".")[0] not in NOT_OF_DENSE]
            after = f"dense_{_name({place: given[place] for place in of_dense})}"
            _add(runs, SweepRun(after, {place: settings[place] for place in of_dense}, dense, None))
            config = after_dense(config, runs_folder / after)
        _add(runs, SweepRun(_name(given), settings, config, after))
    _check_distinct(runs.values())
    return sorted(runs.values(), key=lambda run: run.after is not None)


def dense_alone(config: RunConfig) -> RunConfig | None:
    """The run that is only the dense stage of ``config``; None where there is nothing to share."""
    stages = (config.prune.heads_rows, config.prune.blocks)
    if not config.dense.enabled or not any(stage.enabled for stage in stages):
        return None
    if config.geometry is not None and any("pretrained" in (s.start_from, s.teacher) for s in stages):
        # "pretrained" is then the model before the dense stage, and a fresh one lies in no folder to name instead.
        return None
    nothing = Prune(density=1.0, heads_rows=HeadRowStage(enabled=False), blocks=BlockStage(enabled=False))
    return config.model_copy(update={"prune": nothing, "distillation": None})


def after_dense(config: RunConfig, dense: Path) -> RunConfig:
    """``config`` from the final model of its dense stage's run on; "pretrained" stays the model before that stage."""
    dense = Path(os.path.abspath(dense))
    return config.model_copy(
        update={
            "model": str(dense / "final"),
            "data": str(dense / "demo") if config.geometry is not None else config.data,
            "geometry": None,
            "dense": config.dense.model_copy(update={"enabled": False}),
            "prune": _with_sources(config.prune, lambda source: config.model if source == "pretrained" else source),
        }
    )


def with_whole_paths(config: RunConfig) -> RunConfig:
    """The same settings with whole paths, so that the run goes on, and its model is evaluated, from any folder."""
    whole: dict[str, Any] = {
        "prune": _with_sources(config.prune, lambda s: s if s in ("dense", "pretrained") else whole_path(s))
    }
    if config.model != "demo":
        data = config.data if config.data == "hub" else whole_path(config.data)  # whatever else is called so here
        whole |= {"model": whole_path(config.model), "data": data}
    return config.model_copy(update=whole)


def _with_sources(prune: Prune, rename: Callable[[str], str]) -> Prune:
    """``prune`` with the models that its stages name renamed."""

    def renamed(stage: PruneStage) -> PruneStage:
        named = {use: getattr(stage, use) for use in ("start_from", "teacher")}
        return stage.model_copy(update={use: rename(source) for use, source in named.items() if source is not None})

    return prune.model_copy(update={"heads_rows": renamed(prune.heads_rows), "blocks": renamed(prune.blocks)})


def _as_read(given: Any, read: Any) -> Any:
    """A setting as it was given, but text as it was read: with whole paths."""
    if isinstance(given, Mapping):
        return {key: _as_read(value, getattr(read, key)) for key, value in given.items()}
    return read if isinstance(read, str) else given


def _within(place: str, outer: str) -> bool:
    """Whether a setting lies in another: ``prune.density`` in ``prune``."""
    return place.startswith(f"{outer}.")


def _add(runs: dict[str, SweepRun], run: SweepRun) -> None:
    if runs.setdefault(run.name, run).config != run.config:
        raise ConfigError(f"two different runs would be named {run.name}", hint="write one of the values differently")


def _check_distinct(runs: Iterable[SweepRun]) -> None:
    names: dict[RunConfig, str] = {}
    for run in runs:
        if (other := names.setdefault(run.config, run.name)) != run.name:
            raise ConfigError(f"{other} and {run.name} would be the same run", hint="name every value once")


def _name(settings: Mapping[str, Any]) -> str:
    """``density-0.5_seed-0_blocks.shape-16x16``: a folder's name that says what the sweep set."""
    parts = (f"{place.removeprefix('prune.')}-{value}" for place, value in settings.items())
    name = re.sub(r"[^\w.+-]+", "-", "_".join(parts))
    if len(name.encode()) <= LONGEST_NAME:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:12]
    return f"{name.encode()[: LONGEST_NAME - 13].decode(errors='ignore')}-{digest}"
