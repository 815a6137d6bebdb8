"""Which folder a model's name stands for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mlprune_jax.errors import ModelError
from mlprune_jax.models.pretrained import resolve_model


@pytest.fixture
def hub(monkeypatch):
    """A stand-in for the hub that notes what it is asked for."""
    asked = []

    def download_model(hub_id: str, *, offline: bool = False) -> Path:
        asked.append((hub_id, offline))
        return Path("downloaded")

    monkeypatch.setattr("mlprune_jax.data.hub.download_model", download_model)
    return asked


def test_a_local_folder_is_taken_without_the_hub(saved, hub, monkeypatch):
    assert resolve_model(str(saved)) == resolve_model(saved) == saved
    monkeypatch.chdir(saved.parent)
    assert resolve_model("model") == Path("model")
    monkeypatch.setenv("HOME", str(saved.parent))
    assert resolve_model("~/model") == saved
    with pytest.raises(ModelError, match="is a file"):
        resolve_model(saved / "config.json")
    assert hub == []


@pytest.mark.parametrize("name", ["bert-base-uncased", "google-bert/bert-base-uncased", "a/b_c.d-1"])
def test_hub_ids_go_to_the_hub(hub, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    assert resolve_model(name, offline=True) == Path("downloaded")
    assert hub == [(name, True)]


PATHS = ["./x", "../x", "~/x", "~nobody-here/x", "/x", "runs/x/final", "x/", "x/../y", Path("x/y"), "x" * 5000 + "/y/z"]
NEITHER = ["", " ", "a b", "-x", "a..b", "x\0y", "bert\n", "bért"]


@pytest.mark.parametrize("name", [*PATHS, *NEITHER])
def test_a_path_that_is_not_there_never_becomes_a_hub_id(hub, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=r"not found|cannot use"):
        resolve_model(name)
    assert hub == []


def test_the_module_needs_neither_jax_nor_transformers():
    code = (
        "import sys, mlprune_jax.models.pretrained; "
        "print([m for m in ('jax', 'flax', 'torch', 'transformers', 'huggingface_hub') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
