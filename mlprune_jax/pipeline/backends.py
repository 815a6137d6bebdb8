"""Where the runs of a sweep are performed: one after another here, as jobs of SLURM, or as tasks of Ray.

A backend takes jobs and gives events, ``(name, what changed)``, while they begin and end. Whoever performs a run
resumes it where its folder holds one, so that performing it twice does no harm.
"""

from __future__ import annotations

import importlib
import logging
import shlex
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any, NamedTuple

from mlprune_jax.config.loading import load_config
from mlprune_jax.config.settings import RunConfig
from mlprune_jax.errors import ConfigError, MLPruneError, Preempted
from mlprune_jax.pipeline.folder import RunFolder
from mlprune_jax.pipeline.run import resume, run
from mlprune_jax.training.interrupt import SIGNALS

_log = logging.getLogger(__name__)

POLL_SECONDS = 5.0
PATIENCE_SECONDS = 1200.0
"""How long a job that an earlier sweep submitted is waited for while SLURM tells nothing of it: submitit asks ever more
seldom, some ten times in this. To take such a job for dead at once would submit a run twice."""

SLURM_DEFAULTS = {"name": "mlprune", "slurm_additional_parameters": {"requeue": True}}
"""Without its requeue flag, some clusters refuse to queue a job again."""

CLUSTERS = ("slurm", "local")
OF_SEVERAL_PROCESSES = ("nodes", "tasks_per_node", "ntasks", "ntasks_per_node", "ntasks-per-node")
"""Under submitit's names and sbatch's."""

Event = tuple[str, dict[str, Any]]


class Job(NamedTuple):
    """A run to perform.

    Attributes:
        name: of the run.
        config: its YAML file.
        workdir: its folder.
        submitted: id of the job that was submitted for it earlier, if any.
    """

    name: str
    config: Path
    workdir: Path
    submitted: str | None = None


class Place(NamedTuple):
    """What all jobs of a sweep share.

    Attributes:
        logs: folder for what the scheduler's jobs write.
        resources: passed on to the scheduler as they are.
        quiet: show no progress.
        stopping: whether the sweep was asked to stop.
    """

    logs: Path
    resources: Mapping[str, Any]
    quiet: bool
    stopping: Callable[[], bool]


def perform(config: Path, workdir: Path, quiet: bool) -> dict[str, Any]:
    """Start a run, or resume it where its folder holds one, and say how it ended: nothing is raised but by signals."""
    try:
        if RunFolder(workdir).resolved.is_file():
            resume(workdir, quiet=quiet)
        else:
            command = shlex.join(["mlprune", "prune", "--config", str(config), "-o", str(workdir)])
            run(load_config(RunConfig, config), workdir, command=command, quiet=quiet)
    except Preempted as error:
        return {"state": "stopped", "reason": error.message}
    except MLPruneError as error:
        _log.debug("%s failed", workdir.name, exc_info=True)  # for --debug
        return {"state": "failed", "reason": str(error)}
    except Exception as error:  # a defect that one run meets is no reason to end the others
        _log.exception("%s failed", workdir.name)
        return {"state": "failed", "reason": _one_line(error)}
    return {"state": "finished", "reason": None}


def check_no_resources(resources: Mapping[str, Any]) -> None:
    """Refuse what this process cannot give itself."""
    if resources:
        raise ConfigError("--resource is for schedulers", hint="leave it out, or choose --backend slurm or ray")


def on_this_machine(jobs: Sequence[Job], place: Place) -> Iterator[Event]:
    """One run after another in this process."""
    for job in jobs:
        if place.stopping():
            return
        yield job.name, {"state": "running"}
        outcome = perform(job.config, job.workdir, place.quiet)
        yield job.name, outcome
        if outcome["state"] == "stopped":  # the signal went to the run
            return


class SlurmRun:
    """What a job does; submitit requeues a job that can say, as ``checkpoint``, what it does the next time."""

    def __call__(self, config: Path, workdir: Path, quiet: bool) -> dict[str, Any]:
        """Perform the run; warned by SLURM, save its state first and have submitit requeue the job then."""
        submitit = _imported("submitit")
        warned = []

        def stop(*_: object) -> None:
            # Not a second SIGTERM, which ends a run at once: the run's own handler, as long as it waits for a first.
            warned.append(True)
            handler = signal.getsignal(signal.SIGTERM)
            if callable(handler):
                handler(signal.SIGTERM, None)

        number = getattr(signal, f"SIG{submitit.JobEnvironment.USR_SIG}")
        requeue = signal.signal(number, stop)
        outcome = _perform_elsewhere(config, workdir, quiet)
        if warned and outcome["state"] == "stopped" and callable(requeue):
            requeue(number, None)  # submitit's handler, which ends this process
        return outcome

    def checkpoint(self, *arguments: Any) -> Any:
        """The same again: the run's folder says where to go on."""
        return _imported("submitit").helpers.DelayedSubmission(self, *arguments)


def check_slurm(resources: Mapping[str, Any]) -> None:
    """Refuse resources that submitit does not know, or that are for several processes."""
    with TemporaryDirectory() as scratch:
        _executor(Path(scratch), resources)


def on_slurm(jobs: Sequence[Job], place: Place) -> Iterator[Event]:
    """A job array through submitit; jobs that an earlier sweep submitted and that are alive are waited for."""
    submitit = _imported("submitit")
    executor = _executor(place.logs, place.resources)
    kind = {"slurm": submitit.SlurmJob, "local": submitit.LocalJob}[executor.cluster]
    earlier = {job.name: kind(place.logs, job.submitted) for job in jobs if job.submitted}
    waiting = {name: job for name, job in earlier.items() if not _has_ended(job)}
    new = [job for job in jobs if job.name not in waiting]
    columns = zip(*((job.config, job.workdir, place.quiet) for job in new), strict=True)
    with _refusals_told():
        submitted = executor.map_array(SlurmRun(), *columns) if new else []
    waiting |= {job.name: handle for job, handle in zip(new, submitted, strict=True)}
    for name, handle in waiting.items():
        yield name, {"state": "running", "job": str(handle.job_id)}
    patient_until = time.monotonic() + PATIENCE_SECONDS
    while waiting and not place.stopping():
        for name, handle in list(waiting.items()):
            if _has_ended(handle):
                outcome = _outcome(handle.result)
            elif name in earlier and handle.state == "UNKNOWN" and time.monotonic() > patient_until:
                told = f"SLURM tells nothing of job {handle.job_id}, and it left no result"
                outcome = {"state": "failed", "reason": f"{told}; see by `squeue` that it is gone"}
            else:
                continue
            del waiting[name]
            yield name, outcome | {"job": None}
        if waiting:
            time.sleep(POLL_SECONDS)


def _executor(logs: Path, resources: Mapping[str, Any]) -> Any:
    """What submits jobs of one process with these resources."""
    submitit = _imported("submitit")
    named = dict(resources)
    cluster = named.pop("cluster", "slurm")
    if cluster not in CLUSTERS:
        raise ConfigError(f"--resource cluster takes {' or '.join(CLUSTERS)}, got {cluster!r}")
    with _refusals_told():
        executor = submitit.AutoExecutor(logs, cluster=cluster, slurm_max_num_timeout=1000)
        executor.update_parameters(**SLURM_DEFAULTS | named)
    found = executor.parameters | executor.parameters.get("additional_parameters", {})
    for name in OF_SEVERAL_PROCESSES:
        if found.get(name, 1) != 1:
            raise ConfigError(
                f"--resource: {name} is {found[name]}, and a job of a sweep is one process",
                hint="leave it out; for a run of several processes see docs/schedulers.md",
            )
    return executor


@contextmanager
def _refusals_told() -> Iterator[None]:
    """What submitit refuses, or sbatch by a RuntimeError of it, as a `ConfigError`."""
    try:
        yield
    except (RuntimeError, NameError, AssertionError, TypeError, ValueError) as error:
        raise ConfigError(
            f"submitit: {error}",
            hint="--resource takes submitit's names, such as timeout_min=60, and what the cluster has: slurm_partition",
        ) from error


def _has_ended(job: Any) -> bool:
    """Whether a job left a result or is dead; submitit takes one that is suspended for dead."""
    return job.done() and (job.state != "SUSPENDED" or job.paths.result_pickle.exists())


def on_ray(jobs: Sequence[Job], place: Place) -> Iterator[Event]:
    """Tasks of Ray; asked to stop, those that run save their state first. Ray starts a task anew whose worker died."""
    ray, task = _imported("ray"), _task(place.resources)
    if not ray.is_initialized():
        handlers = {number: signal.getsignal(number) for number in SIGNALS}
        ray.init(log_to_driver=not place.quiet)
        for number, handler in handlers.items():  # Ray's own would end this process at once
            signal.signal(number, handler)
    waiting = {task.remote(job.config, job.workdir, place.quiet): job.name for job in jobs}
    for name in waiting.values():
        yield name, {"state": "running"}
    cancelled = False
    while waiting:
        if place.stopping() and not cancelled:
            cancelled = True
            for reference in waiting:
                ray.cancel(reference)
        for reference in ray.wait(list(waiting), num_returns=1, timeout=POLL_SECONDS)[0]:
            outcome = _outcome(lambda reference=reference: ray.get(reference))
            if cancelled and outcome["state"] == "failed":
                outcome = {"state": "stopped", "reason": "cancelled, as asked"}
            yield waiting.pop(reference), outcome


def _task(resources: Mapping[str, Any]) -> Any:
    """What Ray performs a run with."""
    try:
        return _imported("ray").remote(_perform_elsewhere).options(**resources)
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"ray: {error}", hint="--resource takes the options of a Ray task, such as num_gpus=1"
        ) from error


class Backend(NamedTuple):
    """Somewhere to perform runs.

    Attributes:
        check: refuses resources that it cannot give, or itself where its package is missing; nothing is written.
        perform: performs jobs.
    """

    check: Callable[[Mapping[str, Any]], object]
    perform: Callable[[Sequence[Job], Place], Iterator[Event]]


BACKENDS = {
    "local": Backend(check_no_resources, on_this_machine),
    "slurm": Backend(check_slurm, on_slurm),
    "ray": Backend(_task, on_ray),
}


def _outcome(result: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a job elsewhere returned; one that died has failed."""
    try:
        return result()
    except Exception as error:
        return {"state": "failed", "reason": _one_line(error)}


def _one_line(error: Exception) -> str:
    """An error by its last line: schedulers' hold the whole traceback of the job."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip(" -")]
    return f"{type(error).__name__}: {lines[-1] if lines else 'no message'}"[:300]


def _imported(name: str) -> ModuleType:
    """A scheduler's package, which is imported where it is used."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(f"this backend needs {name}: {error}", hint=f"pip install {name}") from error


def _perform_elsewhere(config: Path, workdir: Path, quiet: bool) -> dict[str, Any]:
    """`perform` in a process of a scheduler, where no command line has set up the log."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("mlprune_jax").setLevel(logging.WARNING if quiet else logging.INFO)
    return perform(config, workdir, quiet)
