"""A run's folder: who may write in it, and what is told where nothing can be written."""

import errno
import fcntl
import os
from types import SimpleNamespace

import numpy as np
import pytest
from filelock import FileLock
from orbax.checkpoint import v1 as ocp

from mlprune_jax.errors import ConfigError, MLPruneError
from mlprune_jax.files import write_json
from mlprune_jax.pipeline.folder import RunFolder
from mlprune_jax.pipeline.run import _finish
from mlprune_jax.training.checkpoint import save_state


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path / "run")


def fails(code):
    def fail(*_):
        raise OSError(code, os.strerror(code))

    return fail


def test_what_was_killed_before_it_began_can_be_started_again(folder):
    with folder.locked():
        (folder.root / ".config.resolved.yaml.tmp").touch()  # as a kill within `write_text` leaves it
    folder.check_unused()


def test_a_folder_that_is_not_empty_is_refused(folder):
    folder.root.mkdir()
    (folder.root / "notes.txt").touch()
    with pytest.raises(ConfigError, match="is not empty") as refused:
        folder.check_unused()
    assert "resume" not in refused.value.hint  # there is no run to go on with
    folder.resolved.touch()
    with pytest.raises(ConfigError) as refused:
        folder.check_unused()
    assert refused.value.hint.startswith(f"continue it with `mlprune resume {folder.root}`")


def test_a_damaged_summary_is_written_again(folder, caplog):
    folder.root.mkdir()
    assert folder.read_summary() is None
    write_json(folder.summary, {"final": {}})
    assert folder.read_summary() == {"final": {}}
    folder.summary.write_text("")
    assert folder.read_summary() is None
    assert "summary.json cannot be read" in caplog.text


def test_one_process_at_a_time(folder):
    folder.root.mkdir()
    with FileLock(folder.root / ".lock"), pytest.raises(ConfigError, match="another process runs in") as refused:
        folder.locked().__enter__()
    assert "remove" not in refused.value.hint


@pytest.mark.filterwarnings("ignore:.*flock")
def test_a_lock_that_can_outlive_its_process_is_named(folder, monkeypatch):
    """On a file system without flock, filelock takes the file itself for the lock."""
    monkeypatch.setattr(fcntl, "flock", fails(errno.ENOSYS))
    with folder.locked(), pytest.raises(ConfigError, match="another process runs in") as refused:
        folder.locked().__enter__()
    assert refused.value.hint.endswith(f"if none runs there any more, remove {folder.root / '.lock'}")


def test_a_file_system_that_cannot_lock_is_named(folder, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", fails(errno.ENOLCK))
    with pytest.raises(ConfigError, match=r"cannot lock .*run: .*No locks available"):
        folder.locked().__enter__()


def test_a_state_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(ocp, "save", lambda *_, **__: fails(errno.ENOSPC)())
    with pytest.raises(MLPruneError, match=r"cannot write .*learned: OSError: .*No space left"):
        save_state(tmp_path / "learned", {"w": np.ones(2)})


def test_what_failed_first_is_told_on_a_full_disk(folder, monkeypatch):
    folder.root.mkdir()

    def finish():
        monkeypatch.setattr(os, "fsync", fails(errno.ENOSPC))
        raise MLPruneError("the model cannot be written")

    with pytest.raises(MLPruneError, match="the model cannot be written"):
        _finish(SimpleNamespace(folder=folder, identity={}, finish=finish))
