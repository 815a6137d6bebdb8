"""Schedulers by doubles of the few calls that are used; the real packages where they are installed."""

import importlib.util
import os
import signal
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from mlprune_jax.errors import ConfigError
from mlprune_jax.pipeline import backends
from mlprune_jax.pipeline.backends import BACKENDS, Job, Place, SlurmRun, on_ray, on_slurm
from mlprune_jax.training.interrupt import StopRequest

FINISHED = {"state": "finished", "reason": None}


def performed(config: Path, workdir: Path, quiet: bool) -> dict:
    """Stands in for `perform`: runs named bad die, others finish."""
    if workdir.name == "bad":
        raise RuntimeError("Traceback:\n  a long one\nkilled by the system\n")
    return FINISHED


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(backends, "perform", performed)
    monkeypatch.setattr(backends, "POLL_SECONDS", 0.01)


def jobs(tmp_path, *names, **submitted):
    return [Job(name, tmp_path / f"{name}.yaml", tmp_path / name, submitted.get(name)) for name in names]


def place(tmp_path, stopping=bool, **resources):
    return Place(tmp_path / "jobs", resources, True, stopping)


STATES = {"4": "SUSPENDED", "5": "UNKNOWN", "6": "READY", "7": "PENDING", "8": "CANCELLED by 0"}
INCOMPLETE = ("READY", "PENDING", "RUNNING", "UNKNOWN", "REQUEUED", "COMPLETING", "PREEMPTED")  # submitit's own


class SlurmJob:
    """A job of the double, its state by its id; asked again, it is done, but for one that SLURM does not know."""

    def __init__(self, folder, job_id, work=lambda: FINISHED):
        self.job_id, self.state, self.work = job_id, STATES.get(job_id, "RUNNING"), work
        self.paths = SimpleNamespace(result_pickle=folder / f"{job_id}_0_result.pkl")
        self.asked = False

    def done(self):
        if self.asked and self.state != "UNKNOWN":
            self.state = "COMPLETED"
        self.asked = True
        return self.paths.result_pickle.exists() or self.state not in INCOMPLETE

    def result(self):
        assert self.state == "COMPLETED"
        return self.work()


class Executor:
    def __init__(self, folder, *, cluster, slurm_max_num_timeout):
        self.folder, self.cluster, self.parameters = folder, cluster, {}

    def update_parameters(self, **parameters):
        if "nonsense" in parameters:
            raise NameError("Parameter 'nonsense' is unknown")
        self.parameters.update(parameters)

    def map_array(self, function, *columns):
        rows = list(zip(*columns, strict=True))
        if self.parameters.get("slurm_partition") == "mistyped":
            raise RuntimeError("sbatch: error: invalid partition specified: mistyped")
        SUBMITTED.append((self.parameters, [workdir.name for _, workdir, _ in rows]))
        return [SlurmJob(self.folder, f"9_{i}", lambda row=row: function(*row)) for i, row in enumerate(rows)]


SUBMITTED = []


@pytest.fixture
def submitit(monkeypatch):
    double = ModuleType("submitit")
    vars(double).update(
        AutoExecutor=Executor,
        SlurmJob=SlurmJob,
        LocalJob=SlurmJob,
        JobEnvironment=SimpleNamespace(USR_SIG="USR2"),
        helpers=SimpleNamespace(DelayedSubmission=lambda *call: call),
    )
    monkeypatch.setitem(sys.modules, "submitit", double)
    before = signal.getsignal(signal.SIGUSR2)
    SUBMITTED.clear()
    yield double
    signal.signal(signal.SIGUSR2, before)


def test_slurm_submits_one_array_and_tells_how_its_jobs_ended(submitit, tmp_path):
    events = list(on_slurm(jobs(tmp_path, "good", "bad"), place(tmp_path, timeout_min=60)))
    requeued = {"slurm_additional_parameters": {"requeue": True}}
    assert [({"name": "mlprune", "timeout_min": 60, **requeued}, ["good", "bad"])] == SUBMITTED
    assert events == [
        ("good", {"state": "running", "job": "9_0"}),
        ("bad", {"state": "running", "job": "9_1"}),
        ("good", FINISHED | {"job": None}),
        ("bad", {"state": "failed", "reason": "RuntimeError: killed by the system", "job": None}),
    ]


@pytest.mark.parametrize("alive", "467")
def test_slurm_jobs_of_an_earlier_sweep_are_waited_for(submitit, tmp_path, alive):
    events = list(on_slurm(jobs(tmp_path, "alive", "gone", "new", alive=alive, gone="8"), place(tmp_path)))
    assert [names for _, names in SUBMITTED] == [["gone", "new"]]
    assert ("alive", FINISHED | {"job": None}) in events


def test_a_job_that_slurm_does_not_know_is_waited_for_but_not_for_ever(submitit, tmp_path, monkeypatch):
    """Found by review: sacct lists a job late, or fails, and its run was submitted twice."""
    monkeypatch.setattr(backends, "PATIENCE_SECONDS", 0.05)
    events = list(on_slurm(jobs(tmp_path, "unknown", unknown="5"), place(tmp_path)))
    assert SUBMITTED == []
    assert events[0] == ("unknown", {"state": "running", "job": "5"})
    assert "SLURM tells nothing of job 5" in events[-1][1]["reason"]
    assert (events[-1][1]["state"], events[-1][1]["job"]) == ("failed", None)


def test_a_job_that_left_a_result_is_over_whatever_slurm_says(submitit, tmp_path):
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "5_0_result.pkl").touch()
    list(on_slurm(jobs(tmp_path, "failed", failed="5"), place(tmp_path)))
    assert [names for _, names in SUBMITTED] == [["failed"]]


def test_asked_to_stop_the_sweep_leaves_slurm_jobs_running(submitit, tmp_path):
    events = list(on_slurm(jobs(tmp_path, "good"), place(tmp_path, stopping=lambda: True)))
    assert [change["state"] for _, change in events] == ["running"]


@pytest.mark.parametrize(
    ("resources", "message"),
    [
        ({"nonsense": 1}, "nonsense"),
        ({"cluster": "moon"}, "cluster takes slurm or local, got 'moon'"),
        # Found by review: all of these began the run, and one that finished was told as failed.
        ({"nodes": 2}, "nodes is 2, and a job of a sweep is one process"),
        ({"tasks_per_node": 8}, "tasks_per_node is 8"),
        ({"additional_parameters": {"ntasks": 4}}, "ntasks is 4"),
    ],
)
def test_wrong_resources_are_refused_before_anything_is_written(submitit, tmp_path, resources, message):
    with pytest.raises(ConfigError, match=message):
        BACKENDS["slurm"].check(resources)
    with pytest.raises(ConfigError, match=message):
        list(on_slurm(jobs(tmp_path, "good"), place(tmp_path, **resources)))
    assert SUBMITTED == []
    BACKENDS["slurm"].check({"timeout_min": 60, "nodes": 1, "tasks_per_node": 1})


def test_what_sbatch_refuses_is_told(submitit, tmp_path):
    with pytest.raises(ConfigError, match="mistyped"):
        list(on_slurm(jobs(tmp_path, "good"), place(tmp_path, slurm_partition="mistyped")))


@pytest.mark.parametrize(("number", "requeued"), [(signal.SIGUSR2, [signal.SIGUSR2]), (signal.SIGTERM, [])])
def test_a_warned_slurm_job_saves_and_is_requeued_and_a_cancelled_one_only_saves(
    submitit, tmp_path, monkeypatch, number, requeued
):
    def run(config, workdir, quiet):
        with StopRequest() as stopping:
            os.kill(os.getpid(), number)
            assert stopping()
            os.kill(os.getpid(), signal.SIGUSR2 if requeued else signal.SIGWINCH)  # a second warning does no harm
        return {"state": "stopped", "reason": "as asked"}

    monkeypatch.setattr(backends, "perform", run)
    called = []
    signal.signal(signal.SIGUSR2, lambda number, frame: called.append(number))
    assert SlurmRun()(Path("c"), Path("w"), True)["state"] == "stopped"
    assert called == requeued
    again = SlurmRun().checkpoint(Path("c"), Path("w"), True)
    assert (type(again[0]), *again[1:]) == (SlurmRun, Path("c"), Path("w"), True)


class Task:
    """A remote function of the double: what it is given is performed when its result is asked for."""

    def __init__(self, function):
        self.function = function

    def options(self, **resources):
        if "nonsense" in resources:
            raise ValueError("invalid option keyword nonsense")
        return self

    def remote(self, *arguments):
        return lambda: self.function(*arguments)


@pytest.fixture
def ray(monkeypatch):
    double, cancelled = ModuleType("ray"), set()

    def get(reference):
        if reference in cancelled:
            raise RuntimeError("this task was cancelled")
        return reference()

    vars(double).update(
        is_initialized=lambda: False,
        init=lambda log_to_driver: None,
        remote=Task,
        wait=lambda references, num_returns, timeout: (references[:1], references[1:]),
        get=get,
        cancel=cancelled.add,
    )
    monkeypatch.setitem(sys.modules, "ray", double)


def test_ray_performs_every_run(ray, tmp_path):
    events = list(on_ray(jobs(tmp_path, "good", "bad"), place(tmp_path, num_gpus=1)))
    assert events[2:] == [
        ("good", FINISHED),
        ("bad", {"state": "failed", "reason": "RuntimeError: killed by the system"}),
    ]
    with pytest.raises(ConfigError, match="nonsense"):
        BACKENDS["ray"].check({"nonsense": 1})


def test_asked_to_stop_ray_tasks_are_cancelled_and_their_end_is_awaited(ray, tmp_path):
    events = list(on_ray(jobs(tmp_path, "good", "bad"), place(tmp_path, stopping=lambda: True)))
    assert [change["state"] for _, change in events] == ["running", "running", "stopped", "stopped"]


@pytest.mark.parametrize(("backend", "package"), [("slurm", "submitit"), ("ray", "ray")])
def test_without_the_package_the_error_says_how_to_install_it(monkeypatch, backend, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError) as raised:
        BACKENDS[backend].check({})
    assert raised.value.hint == f"pip install {package}"


def test_resources_are_for_schedulers():
    BACKENDS["local"].check({})
    with pytest.raises(ConfigError, match="--resource is for schedulers"):
        BACKENDS["local"].check({"num_gpus": 1})


@pytest.mark.multiprocess
@pytest.mark.skipif(importlib.util.find_spec("submitit") is None, reason="submitit is not installed: extra slurm")
def test_a_real_job_on_this_machine(tmp_path, monkeypatch):
    """Whole: submitit's own process loads the job and tells what its run, whose config is absent, failed of."""
    monkeypatch.undo()
    events = list(on_slurm(jobs(tmp_path, "good"), place(tmp_path, cluster="local", timeout_min=2)))
    assert events[-1][1]["state"] == "failed"
    assert "there is no config file" in events[-1][1]["reason"]


@pytest.mark.multiprocess
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed: extra ray")
@pytest.mark.filterwarnings("ignore")
def test_a_real_task(tmp_path, monkeypatch):
    monkeypatch.undo()
    import ray

    try:
        events = list(on_ray(jobs(tmp_path, "good"), place(tmp_path, num_cpus=1)))
    finally:
        ray.shutdown()
    assert "there is no config file" in events[-1][1]["reason"]
