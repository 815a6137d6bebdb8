"""The files that make up a tokenizer, kept beside every model that is written."""

from __future__ import annotations

import shutil
from pathlib import Path

from mlprune_jax.models.hf_config import read_config
from mlprune_jax.models.model_folder import CONFIG, read_model_json, write_model_json

SETTINGS = "tokenizer_config.json"
NAMES = ("tokenizer.json", SETTINGS, "vocab.txt", "special_tokens_map.json", "added_tokens.json")


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy a tokenizer beside a BERT that was made of its model, or that began fresh where the source has none.

    Its class is written down where the source leaves it to be told by its ``model_type``, which the target has not.
    """
    for name in NAMES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    told = read_config(source).family.tokenizer if (source / CONFIG).is_file() else None
    settings = read_model_json(target / SETTINGS) if (target / SETTINGS).is_file() else {}
    if told and not settings.get("tokenizer_class"):
        write_model_json(target / SETTINGS, settings | {"tokenizer_class": told})
