"""Checkpoints of training state: the only file that imports orbax.

``<folder>/<step>/`` holds ``state/``, which plain orbax calls read, and a manifest. It appears under that name once
both are complete; until then it is called ``<step>.saving``.
"""

from __future__ import annotations

import contextlib
import logging
import math
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from mlprune_jax.errors import ConfigError, IntegrityError, MLPruneError
from mlprune_jax.files import read_json
from mlprune_jax.manifest import MANIFEST, check_manifest, write_manifest
from mlprune_jax.training.processes import agree, first_alone, is_first
from pallas_kernels.device import hardware_name

_log = logging.getLogger(__name__)

STATE = "state"
SAVING = ".saving"
QUARANTINE = "quarantine"


def save_state(folder: Path, tree: Any) -> None:
    """Write a pytree of arrays to ``folder``; the folder appears only once it is complete.

    Raises:
        MLPruneError: it cannot be written.
    """
    try:
        ocp.save(str(folder.resolve()), tree, overwrite=True)
    except Exception as error:
        raise _unwritten(folder, error) from error


class Checkpoints:
    """The newest and the best checkpoints of one training: written in the background, verified before one is used.

    Of several processes each writes what it holds, into a folder that all of them see; the first names and removes.

    Args:
        folder: theirs alone; made with the first of them.
        identity: what must be the same for a checkpoint to go on from, as plain data.
        keep: how many of the newest stay; what was the best when one of them was saved stays too.
    """

    def __init__(self, folder: Path, *, identity: dict[str, Any], keep: int):
        self.folder, self._identity, self._keep = folder, identity, keep
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self.newest: int | None = None
        self.best: tuple[float, int] | None = None

    def save(self, step: int, tree: Any, metric: float | None = None) -> None:
        """Copy the state from the device and write it while training goes on; an earlier save is waited for.

        Args:
            step: its name.
            tree: the state.
            metric: on the dev split; of several checkpoints with one, the first with the highest is the best.

        Raises:
            MLPruneError: the earlier save failed, or this one cannot begin; earlier checkpoints stay as they are.
        """
        self.wait()
        metric = None if metric is None or math.isnan(metric) else metric
        saving = self.folder / f"{step:08d}{SAVING}"
        facts = {"identity": self._identity, "step": step, "leaves": _leaves(tree)}
        facts["engine"] = _engine()
        try:
            saving.mkdir(parents=True, exist_ok=True)
            writing = ocp.save_async(str((saving / STATE).resolve()), tree, overwrite=True)
        except Exception as error:
            raise _unwritten(saving, error) from error
        self.newest = step
        if metric is not None and (self.best is None or metric > self.best[0]):
            self.best = metric, step
        facts["best"] = self.best and {"metric": self.best[0], "step": self.best[1]}
        self._pending = self._worker.submit(self._commit, writing.result, saving, facts)

    def saved(self) -> bool:
        """Whether no save is under way."""
        return self._pending is None or self._pending.done()

    def wait(self) -> None:
        """Wait until the last save is on disk.

        Raises:
            MLPruneError: it could not be written.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Let a save that is under way end, however it ends; nothing can be saved afterwards."""
        self._worker.shutdown()

    def restore(self, like: Any) -> Any | None:
        """The newest state whose files are all as they were written; damaged ones are moved to ``quarantine``.

        Args:
            like: a state of the same tree, shapes and dtypes. Arrays come back laid out as its own are, whatever
                devices and processes wrote them; of a shape, on the first device.

        Returns:
            The state, or ``None`` where nothing was saved yet.

        Raises:
            ConfigError: the checkpoint is of other settings, other data, or a model of other shapes.
            IntegrityError: there are checkpoints, and all of them are damaged, or the best is.
            MLPruneError: its files are whole, and yet it cannot be read.
        """
        step = agree(first_alone(lambda: self._newest_whole(like)) or 0)
        if step == 0:
            return None
        folder = self.folder / f"{step:08d}"
        best = read_json(folder / MANIFEST)["best"]
        self.newest, self.best = step, best and (best["metric"], best["step"])
        return _load_whole(folder / STATE, like)

    def restore_best(self, like: Any) -> Any:
        """The state with the best metric; ``save`` was told one at least once.

        Raises:
            IntegrityError: it is damaged.
            MLPruneError: its files are whole, and yet it cannot be read.
        """
        assert self.best is not None
        folder = self.folder / f"{self.best[1]:08d}"
        first_alone(lambda: check_manifest(folder))
        return _load_whole(folder / STATE, like)

    def _newest_whole(self, like: Any) -> int | None:
        """The step of the newest checkpoint whose files are whole; damaged ones are set aside."""
        for leftover in self.folder.glob(f"*{SAVING}"):  # of a run that was killed while it saved, or removed
            shutil.rmtree(leftover)
        steps = sorted((path for path in self.folder.glob("[0-9]*") if path.is_dir()), reverse=True)
        whole = []
        for folder in steps:
            try:
                whole.append((folder, check_manifest(folder)))
            except IntegrityError as error:
                self._set_aside(folder, error)
        if whole:
            folder, facts = whole[0]
            self._check_same(folder, facts, like)
            self._check_best(facts["best"], {int(folder.name) for folder, _ in whole})
            return int(facts["step"])
        if steps or (self.folder / QUARANTINE).is_dir():
            raise IntegrityError(
                f"no checkpoint in {self.folder} is whole; damaged ones lie in {self.folder / QUARANTINE}",
                hint=f"remove {self.folder} to train this stage from its start again",
            )
        return None

    def _check_best(self, best: dict[str, Any] | None, whole: set[int]) -> None:
        """See that the state which measured best is there: going on without it would end with a worse one."""
        if best is not None and best["step"] not in whole:
            raise IntegrityError(
                f"{self.folder / format(best['step'], '08d')}, which measured best, is damaged or gone",
                hint=f"take it from a copy (a damaged one lies in {QUARANTINE}/), or remove {self.folder} to train "
                "this stage from its start again",
            )

    def _check_same(self, folder: Path, facts: dict[str, Any], like: Any) -> None:
        differing = [name for name, value in self._identity.items() if facts["identity"].get(name) != value]
        if differing:
            raise ConfigError(
                f"{folder} was saved with another {' and another '.join(differing)} than this run has",
                hint="put back what was changed (mlprune's version may be), or start a new run in another folder",
            )
        wanted, found = _leaves(like), facts["leaves"]
        odd = [name for name in sorted(wanted.keys() | found.keys()) if wanted.get(name) != found.get(name)]
        if odd:
            raise ConfigError(
                f"{folder} does not fit: {odd[0]} is {found.get(odd[0])} there and {wanted.get(odd[0])} here",
                hint="resume with the version of mlprune_jax that wrote it",
            )
        now = _engine()
        if (before := facts.get("engine", now)) != now:
            _log.warning("%s was saved by %s; by %s the last bits may come out otherwise", folder, before, now)

    def _commit(self, written: Callable[[], Any], saving: Path, facts: dict[str, Any]) -> None:
        try:
            written()
            if not is_first():
                return
            write_manifest(saving, **facts)
            target = saving.with_name(saving.name.removesuffix(SAVING))
            shutil.rmtree(target, ignore_errors=True)
            saving.rename(target)
        except Exception as error:
            shutil.rmtree(saving, ignore_errors=True)
            raise _unwritten(saving, error) from error
        with contextlib.suppress(OSError, IntegrityError):  # the new one is saved: room is made with the next
            self._make_room()

    def _make_room(self) -> None:
        """Remove what is not among the newest, and was not the best when one of those was saved."""
        whole = sorted(path for path in self.folder.glob("[0-9]*") if not path.name.endswith(SAVING))
        bests = (read_json(kept / MANIFEST)["best"] for kept in whole[-self._keep :])
        wanted = {best["step"] for best in bests if best is not None}
        for old in whole[: -self._keep]:
            if int(old.name) not in wanted:
                # Renamed first: a kill then leaves nothing that looks like a damaged checkpoint.
                shutil.rmtree(old.rename(old.with_name(old.name + SAVING)))

    def _set_aside(self, folder: Path, error: IntegrityError) -> None:
        place = self.folder / QUARANTINE / folder.name
        place.parent.mkdir(exist_ok=True)
        shutil.rmtree(place, ignore_errors=True)
        folder.rename(place)
        _log.warning("%s; moved to %s, the one before is tried", error.message, place)


def _load_whole(folder: Path, like: Any) -> Any:
    """Read a state whose files are as they were written: what fails then is no damage, and nothing is to be removed."""
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None) or here), like
    )
    try:
        return ocp.load(str(folder.resolve()), abstract)
    except Exception as error:
        raise MLPruneError(
            f"cannot read the checkpoint {folder}, though its files are whole: {_told(error)}",
            hint="see that memory suffices, that the files may be read, and that orbax is the version that wrote them",
        ) from error


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _unwritten(folder: Path, error: Exception) -> MLPruneError:
    return MLPruneError(
        f"cannot write {folder}: {_told(error)}",
        hint="see that the disk has space and can be written, then `mlprune resume`; earlier checkpoints are whole",
    )


def _engine() -> str:
    """What the last bits of a sum depend on; to jax a CPU is one device, whatever its cores."""
    devices, processes = jax.device_count(), jax.process_count()
    return f"{devices} x {hardware_name()} in {processes} process{'es' if processes > 1 else ''}"


def _leaves(tree: Any) -> dict[str, str]:
    """Dtype and shape of every leaf, by its path."""
    found, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in found}
