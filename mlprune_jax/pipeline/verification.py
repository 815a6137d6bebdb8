"""A run's folder checked against its manifests, without loading anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mlprune_jax.errors import DataError, IntegrityError
from mlprune_jax.files import SUMMARY_AGAIN, AnyPath, home_path, read_json
from mlprune_jax.manifest import MANIFEST, check_manifest
from mlprune_jax.pipeline.folder import SUMMARY
from mlprune_jax.training.checkpoint import QUARANTINE, SAVING


def verify_folder(path: AnyPath) -> dict[str, Any]:
    """See that everything finished under a folder is what was written.

    Args:
        path: a run, a folder that holds some, or any folder of one that has a manifest. Checkpoints are checked too,
            those in quarantine left out; of a finished run, what its summary names must be there.

    Returns:
        ``{"folder", "checked": folders, "files": count}``.

    Raises:
        DataError: no such folder, or nothing in it that was finished.
        IntegrityError: damage; the message has a line for each folder.
    """
    path = home_path(path)
    if not path.is_dir():
        raise DataError(f"no folder {str(path)!r}", hint="pass a run's folder, or a folder of it")
    folders, files, damage = {manifest.parent for manifest in path.rglob(MANIFEST)}, 0, []
    for summary in sorted(path.rglob(SUMMARY)):
        try:
            stages = read_json(summary).get("stages", ())
            folders |= {summary.parent / "final", *(summary.parent / "stages" / name for name in stages)}
        except IntegrityError as error:
            damage.append(error.message)
    folders = {folder for folder in folders if not _unfinished(folder.relative_to(path))}
    if not (folders or damage):
        raise DataError(f"{path} holds nothing with a {MANIFEST}", hint="only what a run has finished can be verified")
    for folder in sorted(folders):
        try:
            files += len(check_manifest(folder)["files"])
        except IntegrityError as error:
            damage.append(error.message)
    if damage:
        raise IntegrityError(
            "\n".join(damage),
            hint="take it from a copy; `mlprune resume` writes final/ again where that is gone or damaged, and trains "
            f"a stage of an unfinished run again where its folder was removed; {SUMMARY_AGAIN}",
        )
    return {"folder": str(path), "checked": len(folders), "files": files}


def _unfinished(folder: Path) -> bool:
    return any(part == QUARANTINE or part.endswith(SAVING) for part in folder.parts)
