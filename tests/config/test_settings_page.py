"""docs/settings.md has every setting, and says of it what its class's docstring says."""

import json
from inspect import get_annotations
from pathlib import Path
from typing import Any

import pytest

from mlprune_jax.config.distillation import Distillation
from mlprune_jax.config.geometry import Frozen, LayerShape, ModelConfig
from mlprune_jax.config.loading import config_schema
from mlprune_jax.config.settings import (
    BlockStage,
    DenseStage,
    HeadRowStage,
    Prune,
    PruneStage,
    RunConfig,
    TrainSettings,
)
from mlprune_jax.config.task import TaskSettings

PAGE = (Path(__file__).parents[2] / "docs/settings.md").read_text(encoding="utf-8")
SECTIONS = {
    "The run": RunConfig,
    "The task and its data": TaskSettings,
    "How any stage trains": TrainSettings,
    "`dense`": DenseStage,
    "`prune`": Prune,
    "`prune.heads_rows` and `prune.blocks`": PruneStage,
    "`prune.heads_rows` alone": HeadRowStage,
    "`prune.blocks` alone": BlockStage,
    "`distillation`": Distillation,
    "`geometry`": ModelConfig,
    "`geometry.layers`": LayerShape,
}


def rows(heading: str) -> list[tuple[str, ...]]:
    """Key, default and meaning of each row of a section's table."""
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return [tuple(line.strip("| ").split(" | ")[:3]) for line in section.splitlines() if line.startswith("| `")]


def default(setting: dict[str, Any]) -> str:
    value = setting.get("default", "required")
    if isinstance(value, dict):
        return "below"
    return f"{value:g}" if isinstance(value, float) else json.dumps(value).strip('"')


@pytest.mark.parametrize("heading", SECTIONS)
def test_the_page_has_each_setting_with_its_default_and_meaning(heading):
    cls = SECTIONS[heading]
    settings = config_schema(cls)["properties"]
    own = [name for name in get_annotations(cls) if name in settings]
    assert rows(heading) == [(f"`{name}`", default(settings[name]), settings[name]["description"]) for name in own]


def test_no_part_of_a_run_is_left_out_of_the_page():
    parts = SECTIONS.values()
    assert {"RunConfig", *config_schema(RunConfig)["$defs"]} <= {cls.__name__ for cls in parts}
    assert {base for cls in parts for base in cls.__mro__ if issubclass(base, Frozen)} == {Frozen, *parts}
