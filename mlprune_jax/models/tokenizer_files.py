"""The files that make up a tokenizer, kept beside every model that is written."""

from __future__ import annotations

import shutil
from pathlib import Path

from mlprune_jax.models.hf_config import read_config
from mlprune_jax.models.model_folder import CONFIG, read_model_json, write_model_json

SETTINGS = "tokenizer_config.json"
NAMES = ("tokenizer.json", SETTINGS, "vocab.txt", "bpe.codes", "special_tokens_map.json", "added_tokens.json")
_INPUTS = ["input_ids", "token_type_ids", "attention_mask"]


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy a tokenizer beside a BERT that was made of its model, or that began fresh where the source has none.

    Its class is written down where the source leaves it to be told by its ``config.json``, which is another there. If
    the source knew no token types, the BERT has been trained with them, and the tokenizer is told to give them.
    """
    for name in NAMES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    if not (source / CONFIG).is_file():
        return
    _, told, family = read_config(source)
    settings = read_model_json(target / SETTINGS) if (target / SETTINGS).is_file() else {}
    kind = settings.get("tokenizer_class") or told.get("tokenizer_class") or family.tokenizer
    wanted = settings | ({"tokenizer_class": kind} if kind else {})
    wanted |= {"model_input_names": _INPUTS} if family.absent else {}
    if wanted != settings:
        write_model_json(target / SETTINGS, wanted)
