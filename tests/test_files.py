"""Small files are replaced in one piece, and are on disk before they take the old one's place."""

import os
from pathlib import Path

import pytest

from mlprune_jax.files import is_temporary, write_text


def test_a_file_is_on_disk_before_it_takes_the_place_of_the_old(tmp_path, monkeypatch):
    """Or a power cut could leave an empty file under the name."""
    path, calls = tmp_path / "name.json", []
    path.write_text("old")
    sync, replace = os.fsync, Path.replace

    def syncing(number):
        calls.append(("on disk", os.fstat(number).st_size, path.read_text()))
        sync(number)

    def replacing(self, target):
        calls.append(("replaced", is_temporary(self), target))
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", syncing)
    monkeypatch.setattr(Path, "replace", replacing)
    write_text(path, "newer")
    assert calls == [("on disk", 5, "old"), ("replaced", True, path)]
    assert [found.read_text() for found in tmp_path.iterdir()] == ["newer"]


def test_a_write_that_fails_leaves_the_old_file_and_names_it(tmp_path, monkeypatch):
    path = tmp_path / "name.json"
    path.write_text("old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as raised:
        write_text(path, "new")
    assert raised.value.filename == str(path)
    assert path.read_text() == "old"
