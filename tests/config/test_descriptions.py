"""The docstrings of the settings' classes are the descriptions of the schema."""

import re

from mlprune_jax.config.geometry import Frozen
from mlprune_jax.config.loading import config_schema
from mlprune_jax.config.settings import BlockStage, HeadRowStage, RunConfig


def test_the_schema_describes_every_setting_and_part_in_one_line():
    schema = config_schema(RunConfig)
    parts = [schema, *schema["$defs"].values()]
    told = [item["description"] for part in parts for item in (part, *part["properties"].values())]
    assert len(told) > 100
    assert all(re.fullmatch(r"\S.{9,}", text) for text in told)
    assert not any(word in text for text in told for word in ("``", "Attributes", "|"))


def test_a_class_says_of_an_inherited_setting_what_it_says_anew():
    stage, first = (config_schema(cls)["properties"] for cls in (BlockStage, HeadRowStage))
    assert stage["max_strength"]["description"] != first["max_strength"]["description"]
    assert stage["recover"]["description"] == first["recover"]["description"]


def test_settings_without_a_word_have_a_schema_all_the_same():
    class Bare(Frozen):
        rate: float = 0.5

    assert "description" not in config_schema(Bare)["properties"]["rate"]
