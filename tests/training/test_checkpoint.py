"""Checkpoints: what comes back is what was saved, or it is found, set aside, and the one before is used."""

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlprune_jax import manifest
from mlprune_jax.errors import ConfigError, IntegrityError, MLPruneError
from mlprune_jax.files import write_json
from mlprune_jax.manifest import MANIFEST
from mlprune_jax.training.checkpoint import QUARANTINE, Checkpoints
from pallas_kernels.device import cores, hardware_name

IDENTITY = {"config": "a", "training data": "b"}


class State(NamedTuple):
    step: Any
    trained: dict[str, Any]
    opt_state: Any


def state(step, width=4):
    key = jax.random.fold_in(jax.random.key(7), step)
    trained = {"params": {"w": jax.random.normal(key, (3, width))}, "thresholds": {"head": jnp.float32(step)}}
    return State(
        jnp.int32(step), trained, (jax.tree.map(lambda leaf: leaf + 1, trained), (), jnp.ones(2, jnp.bfloat16) * step)
    )


def checkpoints(folder, *, keep=2, identity=IDENTITY):
    return Checkpoints(folder, identity=identity, keep=keep)


def same(found, wanted):
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(np.asarray(one, np.float64), np.asarray(other, np.float64))


def steps(folder):
    return sorted(path.name for path in folder.iterdir() if path.name != QUARANTINE)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Checkpoints after steps 5 and 9; tests that damage them take a copy."""
    folder = tmp_path_factory.mktemp("saved") / "two"
    saved = checkpoints(folder)
    for step in (5, 9):
        saved.save(step, state(step))
    saved.wait()
    return folder


@pytest.fixture
def copied(two, tmp_path):
    return shutil.copytree(two, tmp_path / "copy")


def test_nothing_saved_yet(tmp_path):
    assert checkpoints(tmp_path / "none").restore(state(0)) is None


def test_the_newest_comes_back_bit_for_bit(two):
    found = checkpoints(two)
    same(found.restore(state(0)), state(9))
    assert found.newest == 9


def test_only_the_newest_stay(tmp_path):
    saved = checkpoints(tmp_path, keep=2)
    for step in (1, 2, 3, 10):
        saved.save(step, state(step))
    saved.wait()
    assert steps(tmp_path) == ["00000003", "00000010"]


def test_what_changes_after_the_call_is_not_saved(tmp_path):
    """The step donates the buffers of the state that is being saved."""
    saved = checkpoints(tmp_path)
    given = state(1)
    saved.save(1, given)
    jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf * 0, tree), donate_argnums=0)(given)
    saved.wait()
    same(saved.restore(state(0)), state(1))


def empty(path):
    path.write_bytes(b"")


def delete(path):
    path.unlink()


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def zero(path):
    path.write_bytes(bytes(path.stat().st_size))


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [empty, delete, truncate, zero, flip])
def test_any_damage_is_found_and_the_checkpoint_before_is_used(two, tmp_path, damage, caplog):
    written = [path for path in sorted((two / "00000009").rglob("*")) if path.is_file()]
    files = [path.relative_to(two) for path in written if damage is delete or path.stat().st_size]
    assert len(files) >= 4
    for number, file in enumerate(files):
        folder = shutil.copytree(two, tmp_path / str(number))
        damage(folder / file)
        caplog.clear()
        same(checkpoints(folder).restore(state(0)), state(5))
        assert file.name in caplog.text
        assert (folder / QUARANTINE / "00000009").is_dir()


def test_with_none_whole_nothing_starts_again_silently(copied):
    for step in ("00000005", "00000009"):
        flip(copied / step / MANIFEST)
    for _ in range(2):  # not at the second try either
        with pytest.raises(IntegrityError, match=r"no checkpoint in .* is whole"):
            checkpoints(copied).restore(state(0))


def test_leftovers_of_a_kill_are_swept(copied):
    (copied / "00000012.saving" / "state").mkdir(parents=True)
    same(checkpoints(copied).restore(state(0)), state(9))
    assert steps(copied) == ["00000005", "00000009"]


@pytest.mark.parametrize(
    ("identity", "like", "told"),
    [
        ({**IDENTITY, "config": "c"}, state(0), "another config than"),
        ({**IDENTITY, "training data": "c"}, state(0), "another training data than"),
        (IDENTITY, state(0, width=5), r"does not fit: .* is float32\[3, 4\] there and float32\[3, 5\] here"),
        (IDENTITY, state(0)._replace(step=jnp.float32(0)), r"is int32\[\] there and float32\[\] here"),
    ],
)
def test_checkpoints_of_something_else_are_refused_and_kept(copied, identity, like, told):
    with pytest.raises(ConfigError, match=told):
        checkpoints(copied, identity=identity).restore(like)
    assert steps(copied) == ["00000005", "00000009"]


def test_another_schema_is_refused(copied):
    path = copied / "00000009" / MANIFEST
    content = json.loads(path.read_text()) | {"schema": 99}
    del content["sha256"]
    write_json(path, content | {"sha256": manifest._digest_of(content)})
    with pytest.raises(IntegrityError, match="schema 99"):
        manifest.check_manifest(copied / "00000009")


def test_a_full_disk_stops_the_run_and_spares_what_is_there(copied, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    saved = checkpoints(copied)
    monkeypatch.setattr("mlprune_jax.training.checkpoint.write_manifest", full)
    saved.save(12, state(12))
    with pytest.raises(MLPruneError, match="No space left on device"):
        saved.wait()
    assert steps(copied) == ["00000005", "00000009"]
    same(checkpoints(copied).restore(state(0)), state(9))


def test_a_save_that_failed_is_told_by_the_next(copied, monkeypatch):
    written = manifest.write_manifest
    outcomes = iter([OSError(28, "No space left on device")])

    def full_once(folder, **facts):
        for error in outcomes:
            raise error
        written(folder, **facts)

    saved = checkpoints(copied)
    monkeypatch.setattr("mlprune_jax.training.checkpoint.write_manifest", full_once)
    saved.save(12, state(12))
    with pytest.raises(MLPruneError, match=r"00000012.*No space left on device"):
        saved.save(13, state(13))
    saved.save(14, state(14))  # told once
    saved.wait()
    assert steps(copied) == ["00000009", "00000014"]


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(MLPruneError, match="cannot write "):
        checkpoints(tmp_path / "file" / "below").save(1, state(1))


@pytest.mark.filterwarnings("ignore:Sharding info not provided")
def test_parts_are_read_with_plain_orbax_calls(two):
    from orbax.checkpoint import v1 as ocp

    tree = ocp.load(str(two / "00000009" / "state"))
    np.testing.assert_array_equal(tree["trained"]["params"]["w"], state(9).trained["params"]["w"])


def test_the_best_stays_beside_the_newest_and_comes_back(tmp_path):
    saved = checkpoints(tmp_path / "kept", keep=2)
    for step, metric in ((1, 0.5), (2, 0.9), (3, None), (4, 0.9), (5, 0.7), (6, None)):
        saved.save(step, state(step), metric)
    saved.wait()
    assert steps(tmp_path / "kept") == ["00000002", "00000005", "00000006"]
    again = checkpoints(tmp_path / "kept")
    same(again.restore(state(0)), state(6))
    assert (again.newest, again.best) == (6, (0.9, 2))
    same(again.restore_best(state(0)), state(2))


def test_a_best_that_is_damaged_is_told_and_no_worse_one_taken(tmp_path):
    """Found by review: with steps 1 and 3 alone, the second best came back as the best."""
    saved = checkpoints(tmp_path / "kept", keep=2)
    for step, metric in ((1, 0.5), (2, 0.9), (3, None), (4, 0.6)):
        saved.save(step, state(step), metric)
    saved.wait()
    (tmp_path / "kept" / "00000002" / MANIFEST).unlink()
    for _ in range(2):  # the second time it lies in quarantine
        with pytest.raises(IntegrityError, match="00000002, which measured best, is damaged or gone"):
            checkpoints(tmp_path / "kept").restore(state(0))


def test_a_best_that_is_damaged_while_training_goes_on_is_not_taken(tmp_path):
    saved = checkpoints(tmp_path, keep=1)
    for step, metric in ((1, 0.9), (2, 0.5)):
        saved.save(step, state(step), metric)
    saved.wait()
    again = checkpoints(tmp_path, keep=1)
    same(again.restore(state(0)), state(2))
    flip(max((tmp_path / "00000001" / "state").rglob("*"), key=lambda path: path.is_file() and path.stat().st_size))
    with pytest.raises(IntegrityError, match="00000001 is damaged"):
        again.restore_best(state(0))


def test_where_the_newest_was_the_best_and_is_damaged_the_one_before_goes_on(tmp_path):
    """Found by review: the best before it had been removed, though the one before names it."""
    saved = checkpoints(tmp_path / "kept", keep=2)
    for step, metric in ((1, 0.9), (2, 0.5), (3, 0.6), (4, 0.95)):
        saved.save(step, state(step), metric)
    saved.wait()
    (tmp_path / "kept" / "00000004" / MANIFEST).unlink()
    again = checkpoints(tmp_path / "kept", keep=1)
    same(again.restore(state(0)), state(3))
    assert again.best == (0.9, 1)
    same(again.restore_best(state(0)), state(1))
    again.save(4, state(4), 0.95)
    again.wait()
    assert steps(tmp_path / "kept") == ["00000004"]


def test_an_old_one_that_cannot_be_removed_ends_nothing(copied, monkeypatch):
    rename = Path.rename

    def busy(self, target):
        if self.name == "00000005":
            raise OSError(16, "Device or resource busy")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", busy)
    saved = checkpoints(copied)
    saved.save(10, state(10))
    saved.wait()
    assert steps(copied) == ["00000005", "00000009", "00000010"]


def test_damage_to_an_old_one_ends_nothing_while_it_is_not_needed(copied):
    (copied / "00000009" / MANIFEST).write_text("{")
    saved = checkpoints(copied)
    saved.save(10, state(10))
    saved.wait()
    assert steps(copied) == ["00000005", "00000009", "00000010"]  # which of them is the best is not known


def test_what_cannot_be_read_though_it_is_whole_is_not_called_damaged(two, monkeypatch):
    def load(*_):
        raise ValueError("RESOURCE_EXHAUSTED: out of memory")

    monkeypatch.setattr("mlprune_jax.training.checkpoint.ocp.load", load)
    with pytest.raises(MLPruneError, match="though its files are whole: ValueError: RESOURCE_EXHAUSTED") as failure:
        checkpoints(two).restore(state(0))
    assert not isinstance(failure.value, IntegrityError)


def test_a_kill_while_an_old_one_is_removed_leaves_nothing_damaged(copied, monkeypatch, caplog):
    saved = checkpoints(copied, keep=1)
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)  # what is to be removed is left as it is
    saved.save(10, state(10))
    saved.wait()
    monkeypatch.undo()
    again = checkpoints(copied)
    same(again.restore(state(0)), state(10))
    assert not caplog.messages
    assert steps(copied) == ["00000010"]


def test_a_checkpoint_of_other_devices_is_told(copied, caplog):
    path = copied / "00000009" / MANIFEST
    facts = json.loads(path.read_text())
    del facts["sha256"]
    facts["engine"] = facts["engine"].replace("1 x", "8 x")
    write_json(path, facts | {"sha256": manifest._digest_of(facts)})
    same(checkpoints(copied).restore(state(0)), state(9))
    here = f"{hardware_name()} in 1 process"
    assert f"was saved by 8 x {here}; by 1 x {here} the last bits may come out otherwise" in caplog.text


def test_a_checkpoint_of_other_cores_is_told(copied, caplog, monkeypatch):
    """Found by a newcomer: to jax a CPU is one device, but the sums of two threads are not those of one."""
    same(checkpoints(copied).restore(state(0)), state(9))
    assert not caplog.messages
    monkeypatch.setenv("NPROC", str(cores() + 1))
    same(checkpoints(copied).restore(state(0)), state(9))
    assert f"{cores()} cores in 1 process the last bits may come out otherwise" in caplog.text


def test_a_metric_that_is_no_number_is_never_the_best(tmp_path):
    saved = checkpoints(tmp_path / "kept", keep=1)
    for step, metric in ((1, float("nan")), (2, 0.5), (3, float("nan"))):
        saved.save(step, state(step), metric)
    saved.wait()
    assert saved.best == (0.5, 2)
    assert steps(tmp_path / "kept") == ["00000002", "00000003"]
