"""A sweep's bookkeeping, with runs that only pretend; `test_grid` trains."""

import json
import os
import shutil
import signal
import sys

import pytest
from typer.testing import CliRunner

from mlprune_jax.cli import app
from mlprune_jax.config.loading import dump_config, load_config
from mlprune_jax.config.settings import RunConfig
from mlprune_jax.errors import ConfigError, IntegrityError, MLPruneError, Preempted
from mlprune_jax.files import write_text
from mlprune_jax.manifest import write_manifest
from mlprune_jax.pipeline import backends
from mlprune_jax.pipeline.sweep import sweep
from mlprune_jax.pipeline.verification import verify_folder
from mlprune_jax.training.interrupt import StopRequest

AXES = {"prune.density": [0.5, 0.4], "seed": [0]}
NAMES = ["dense_seed-0", "density-0.5_seed-0", "density-0.4_seed-0"]


@pytest.fixture
def base(tiny, tmp_path):
    path = tmp_path / "base.yaml"
    path.write_text(dump_config(tiny.config()))
    return path


class Pretended:
    """Stands in for the pipeline: records what it is asked for, and writes what a finished run leaves."""

    def __init__(self):
        self.made, self.workdirs = [], []
        self.failures = {}

    def run(self, config, workdir, *, command, quiet):
        self._end("run", workdir, config)

    def resume(self, workdir, *, quiet):
        self._end("resume", workdir, load_config(RunConfig, workdir / "config.resolved.yaml"))

    def _end(self, how, workdir, config):
        self.made.append((how, workdir.name))
        self.workdirs.append(workdir)
        workdir.mkdir(parents=True, exist_ok=True)
        (workdir / "config.resolved.yaml").write_text(dump_config(config))
        if workdir.name in self.failures:
            raise self.failures[workdir.name]
        density = {"encoder": config.prune.density, "linear": config.prune.density}
        final = {"accuracy": 0.75, "density": density}
        summary = {"task": "demo", "metric": "accuracy", "final": final, "seconds": 1.5}
        (workdir / "summary.json").write_text(json.dumps(summary))
        (workdir / "final").mkdir(exist_ok=True)
        write_manifest(workdir / "final")


@pytest.fixture
def pretended(monkeypatch):
    double = Pretended()
    monkeypatch.setattr(backends, "run", double.run)
    monkeypatch.setattr(backends, "resume", double.resume)
    return double


def states(folder):
    return {name: run["state"] for name, run in json.loads((folder / "sweep.json").read_text())["runs"].items()}


def test_every_run_is_made_and_reported(base, pretended, tmp_path):
    told = sweep(base, [], AXES, tmp_path / "s")
    assert pretended.made == [("run", name) for name in NAMES]
    assert states(tmp_path / "s") == dict.fromkeys(NAMES, "finished")
    assert [(run["run"], run["value"], run["density"], run["seconds"]) for run in told["runs"]] == [
        ("dense_seed-0", 0.75, 1.0, 1.5),
        ("density-0.5_seed-0", 0.75, 0.5, 1.5),
        ("density-0.4_seed-0", 0.75, 0.4, 1.5),
    ]
    lines = (tmp_path / "s" / "sweep.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == told["runs"]
    stored = load_config(RunConfig, tmp_path / "s" / "configs" / "density-0.5_seed-0.yaml")
    assert stored.model == str(tmp_path / "s" / "runs" / "dense_seed-0" / "final")


def test_a_folder_may_be_in_ones_home(base, pretended, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert sweep(base, [], AXES, "~/s")["folder"] == str(tmp_path / "s")
    assert verify_folder("~/s")["checked"] == 3


def test_started_again_finished_runs_are_skipped(base, pretended, tmp_path):
    first = sweep(base, [], AXES, tmp_path / "s")
    assert sweep(base, [], AXES, tmp_path / "s") == first
    assert len(pretended.made) == 3


def test_another_grid_adds_runs(base, pretended, tmp_path):
    sweep(base, [], AXES, tmp_path / "s")
    told = sweep(base, [], AXES | {"seed": [0, 1]}, tmp_path / "s")
    assert [name for _, name in pretended.made[3:]] == ["dense_seed-1", "density-0.5_seed-1", "density-0.4_seed-1"]
    assert len(told["runs"]) == 6
    assert len(json.loads((tmp_path / "s" / "sweep.json").read_text())["grids"]) == 2


def test_other_settings_are_refused_by_name(base, pretended, tmp_path):
    sweep(base, [], AXES, tmp_path / "s")
    with pytest.raises(ConfigError, match=r"dense.epochs was 1.0 and is 2.0"):
        sweep(base, ["dense.epochs=2"], AXES, tmp_path / "s")
    sweep(base, ["log_every=7"], AXES, tmp_path / "s")


@pytest.mark.parametrize(
    ("given", "axes", "message"),
    [
        (["data=here"], {}, "data was '.*/x/here' and is '.*/y/here'"),
        ([], {"data": ["here"]}, "another run named .*data-here, of {.*'data': '.*/x/here'}"),
        ([], {"prune": [{"density": 0.4, "heads_rows": {"teacher": "here"}}]}, "another run .*'teacher': '.*/x/here'"),
    ],
)
def test_a_path_means_what_it_meant_where_the_sweep_began(base, pretended, tmp_path, monkeypatch, given, axes, message):
    """Found by review: the same command, called from another folder, mixed two data sets."""
    for folder in ("x", "y"):
        (tmp_path / folder / "here").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "x")
    sweep(base, given, {"seed": [0]} | axes, tmp_path / "s")
    configs = [path.read_text() for path in (tmp_path / "s" / "configs").glob("seed-*")]
    assert configs
    assert all(str(tmp_path / "x" / "here") in config for config in configs)
    monkeypatch.chdir(tmp_path / "y")
    with pytest.raises(ConfigError, match=message):
        sweep(base, given, {"seed": [0]} | axes, tmp_path / "s")
    assert len(pretended.made) == 2


def test_links_of_a_path_stay_as_they_are(base, pretended, tmp_path, monkeypatch):
    """Found by review: what a link leads to may have another path on another node."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    monkeypatch.chdir(tmp_path)
    sweep(base, [], AXES, "link/s")
    stored = load_config(RunConfig, tmp_path / "real" / "s" / "configs" / f"{NAMES[1]}.yaml")
    assert stored.model == str(tmp_path / "link" / "s" / "runs" / NAMES[0] / "final")
    assert {workdir.parent for workdir in pretended.workdirs} == {tmp_path / "link" / "s" / "runs"}


def test_a_sweep_over_what_the_config_lacks(base, pretended, tmp_path):
    """Each of its runs has a value of its own: others may be added, and one without is compared with the first."""
    lacking = tmp_path / "lacking.yaml"
    lacking.write_text("".join(line for line in base.read_text().splitlines(True) if not line.startswith("model:")))
    sweep(lacking, [], AXES | {"model": ["/a", "/b"]}, tmp_path / "s")
    sweep(lacking, [], AXES | {"model": ["/c"]}, tmp_path / "s")
    assert len(states(tmp_path / "s")) == 3 * len(NAMES)
    with pytest.raises(ConfigError, match="model was '/a' and is "):
        sweep(base, [], AXES, tmp_path / "s")
    with pytest.raises(ConfigError, match="model: is required"):
        sweep(lacking, [], AXES, tmp_path / "s")


def test_a_setting_that_some_runs_took_from_the_config_may_not_change(base, pretended, tmp_path):
    sweep(base, [], AXES, tmp_path / "s")
    sweep(base, [], AXES | {"model": ["/a"]}, tmp_path / "s")
    with pytest.raises(ConfigError, match=r"model was '.*' and is '/b'"):
        sweep(base, ["model=/b"], AXES | {"model": ["/a"]}, tmp_path / "s")


def test_before_any_run_has_begun_settings_may_be_mended(base, pretended, tmp_path, monkeypatch):
    def refused(config, workdir, *, command, quiet):
        raise ConfigError("no such data")

    with monkeypatch.context() as patched:
        patched.setattr(backends, "run", refused)
        with pytest.raises(MLPruneError, match="0 of 3 runs are finished"):
            sweep(base, ["data=nowhere"], AXES, tmp_path / "s")
    sweep(base, [], AXES, tmp_path / "s")
    assert states(tmp_path / "s") == dict.fromkeys(NAMES, "finished")


def test_a_damaged_book_is_refused(base, pretended, tmp_path):
    sweep(base, [], AXES, tmp_path / "s")
    for damage in ("{", "{}"):
        (tmp_path / "s" / "sweep.json").write_text(damage)
        with pytest.raises(IntegrityError, match=r"sweep\.json"):
            sweep(base, [], AXES, tmp_path / "s")


def test_a_folder_of_something_else_is_refused_and_left_alone(base, pretended, tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "thesis.tex").touch()
    with pytest.raises(ConfigError, match="holds no sweep and is not empty"):
        sweep(base, [], AXES, tmp_path / "s")
    assert [path.name for path in (tmp_path / "s").iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("name", ["sweep.json", "dense_seed-0.yaml", "density-0.4_seed-0.yaml"])
@pytest.mark.parametrize("part", ["before", "within", "after"])
def test_killed_over_its_first_files_the_same_command_goes_on(base, pretended, tmp_path, monkeypatch, name, part):
    """Found by review: what a kill had left was taken for something else's."""

    class Killed(BaseException):
        pass

    def killed(path, text):
        if path.name == name and part == "within":
            path.with_name(f".{path.name}.tmp").write_text(text[:9])
        elif path.name != name or part == "after":
            write_text(path, text)
        if path.name == name:
            raise Killed

    with monkeypatch.context() as patched:
        patched.setattr("mlprune_jax.pipeline.sweep.write_text", killed)
        patched.setattr("mlprune_jax.files.write_text", killed)
        with pytest.raises(Killed):
            sweep(base, [], AXES, tmp_path / "s")
    assert pretended.made == []
    sweep(base, [], AXES, tmp_path / "s")
    assert states(tmp_path / "s") == dict.fromkeys(NAMES, "finished")
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize(
    ("failure", "told"),
    [
        (MLPruneError("no such data", hint="mend it"), "no such data\n  hint: mend it"),
        (ValueError("a\nb"), "ValueError: b"),
    ],
    ids=["told", "defect"],
)
def test_a_failing_run_does_not_end_the_others(base, pretended, tmp_path, failure, told):
    pretended.failures["density-0.5_seed-0"] = failure
    with pytest.raises(MLPruneError, match=rf"2 of 3 runs are finished.*\n  density-0.5_seed-0: {told}") as raised:
        sweep(base, [], AXES, tmp_path / "s")
    assert raised.value.exit_code == 1
    assert states(tmp_path / "s") == dict(zip(NAMES, ("finished", "failed", "finished"), strict=True))
    pretended.failures.clear()
    sweep(base, [], AXES, tmp_path / "s")
    assert pretended.made[3:] == [("resume", "density-0.5_seed-0")]


@pytest.mark.parametrize(("failure", "debug"), [(ValueError("a defect"), False), (ConfigError("no such data"), True)])
def test_the_traceback_of_a_failed_run_is_logged(base, pretended, tmp_path, caplog, failure, debug):
    """Of what a user can act on with --debug alone."""
    pretended.failures["density-0.4_seed-0"] = failure
    for option, shown in (([], not debug), (["--debug"], True)):
        caplog.clear()
        CliRunner().invoke(app, ["sweep", "--config", str(base), "-o", str(tmp_path / "s"), *option])
        assert any(record.exc_info and record.exc_info[1] is failure for record in caplog.records) == shown


def test_without_its_dense_stage_no_run_begins(base, pretended, tmp_path):
    pretended.failures["dense_seed-0"] = MLPruneError("no such data")
    with pytest.raises(MLPruneError, match=r"density-0\.4_seed-0: needs dense_seed-0, which failed"):
        sweep(base, [], AXES, tmp_path / "s")
    assert pretended.made == [("run", "dense_seed-0")]


@pytest.mark.parametrize("damage", ["gone", "damaged"])
def test_a_dense_model_that_is_still_needed_is_brought_back(base, pretended, tmp_path, damage):
    """Found by review: its summary alone was looked at, and every other run failed."""
    pretended.failures[NAMES[2]] = MLPruneError("no space left")
    with pytest.raises(MLPruneError):
        sweep(base, [], AXES, tmp_path / "s")
    final = tmp_path / "s" / "runs" / NAMES[0] / "final"
    shutil.rmtree(final)
    if damage == "damaged":
        final.mkdir()
    pretended.failures.clear()
    sweep(base, [], AXES, tmp_path / "s")
    assert pretended.made[3:] == [("resume", NAMES[0]), ("resume", NAMES[2])]
    shutil.rmtree(final)
    sweep(base, [], AXES, tmp_path / "s")
    assert len(pretended.made) == 5  # nobody needs it any more


@pytest.mark.parametrize("stopped", NAMES[:2])
def test_a_run_that_was_stopped_stops_the_sweep_and_is_resumed(base, pretended, tmp_path, stopped):
    pretended.failures[stopped] = Preempted("stopped after step 3")
    with pytest.raises(Preempted, match=f"{NAMES.index(stopped)} of 3 runs are finished"):
        sweep(base, [], AXES, tmp_path / "s")
    assert pretended.made[-1] == ("run", stopped)
    assert states(tmp_path / "s")[stopped] == "stopped"
    pretended.failures.clear()
    sweep(base, [], AXES, tmp_path / "s")
    assert ("resume", stopped) in pretended.made


def test_a_stop_hides_no_failure(base, pretended, tmp_path):
    """Found by review: only that the sweep was stopped was told."""
    pretended.failures = {NAMES[1]: MLPruneError("no such data"), NAMES[2]: Preempted("stopped after step 3")}
    told = rf"stopped; 1 of 3 runs are finished; failed:\n  {NAMES[1]}: no such data\n  hint: go on"
    with pytest.raises(Preempted, match=told):
        sweep(base, [], AXES, tmp_path / "s")


def test_a_signal_between_two_runs(base, pretended, tmp_path, monkeypatch):
    def run(config, workdir, *, command, quiet):
        pretended.run(config, workdir, command=command, quiet=quiet)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(backends, "run", run)
    with pytest.raises(Preempted, match="1 of 3 runs"):
        sweep(base, [], AXES, tmp_path / "s")
    assert pretended.made == [("run", "dense_seed-0")]


def test_a_signal_that_a_run_has_no_step_left_for_stops_the_sweep(base, pretended, tmp_path, monkeypatch):
    def interrupted(*arguments, **more):
        with StopRequest():  # a run's own, asked after its last step
            pretended.run(*arguments, **more)
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(backends, "run", interrupted)
    with pytest.raises(Preempted, match="1 of 3 runs"):
        sweep(base, [], AXES, tmp_path / "s")
    assert pretended.made == [("run", NAMES[0])]


def test_a_run_whose_folder_is_gone_waits_and_spoils_no_other_result(base, pretended, tmp_path):
    sweep(base, [], AXES, tmp_path / "s")
    shutil.rmtree(tmp_path / "s" / "runs" / NAMES[1])
    told = sweep(base, [], AXES | {"prune.density": [0.3]}, tmp_path / "s")
    assert {run["run"]: run["state"] for run in told["runs"]}[NAMES[1]] == "waiting"
    assert len((tmp_path / "s" / "sweep.jsonl").read_text().splitlines()) == 3
    sweep(base, [], AXES, tmp_path / "s")
    assert pretended.made[-1] == ("run", NAMES[1])


@pytest.mark.parametrize("damage", ["", "[]", "{}", '{"final": 1, "task": "demo", "metric": "accuracy"}'])
def test_a_damaged_summary_costs_no_other_result(base, pretended, tmp_path, damage):
    """Found by review: the sweep ended before it wrote any, and `verify` before it looked any further."""
    sweep(base, [], AXES, tmp_path / "s")
    summary = tmp_path / "s" / "runs" / NAMES[1] / "summary.json"
    summary.write_text(damage)
    with pytest.raises(MLPruneError, match=rf"2 of 3 runs are finished.*\n  {NAMES[1]}: .*summary.json") as raised:
        sweep(base, [], AXES, tmp_path / "s")
    assert "summary.json may be removed" in raised.value.message
    assert len((tmp_path / "s" / "sweep.jsonl").read_text().splitlines()) == 2
    summary.unlink()
    sweep(base, [], AXES, tmp_path / "s")
    assert pretended.made[3:] == [("resume", NAMES[1])]


def test_verify_has_a_line_for_each_damaged_folder(base, pretended, tmp_path):
    sweep(base, [], AXES, tmp_path / "s")
    (tmp_path / "s" / "runs" / NAMES[1] / "summary.json").write_text("{")
    shutil.rmtree(tmp_path / "s" / "runs" / NAMES[2] / "final")
    with pytest.raises(IntegrityError) as raised:
        verify_folder(tmp_path / "s")
    assert [name for line in raised.value.message.splitlines() for name in NAMES if name in line] == NAMES[1:]
    assert "summary.json may be removed" in (raised.value.hint or "")


def test_another_run_of_the_same_name_is_refused(base, pretended, tmp_path):
    sweep(base, [], AXES | {"data": ["a/b"]}, tmp_path / "s")
    with pytest.raises(ConfigError, match="has another run named dense_seed-0_data-a-b"):
        sweep(base, [], AXES | {"data": ["a b"]}, tmp_path / "s")


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--resource", "num_gpus=1"], "--resource is for schedulers"),
        (["--backend", "slurm"], "this backend needs submitit"),
        (["--backend", "ray"], "this backend needs ray"),
    ],
)
def test_what_no_run_could_have_is_refused_before_anything_is_written(
    base, pretended, tmp_path, monkeypatch, wrong, message, more
):
    """Found by review: the folder was a sweep's by then, and a dry run said nothing."""
    for package in ("submitit", "ray"):
        monkeypatch.setitem(sys.modules, package, None)
    done = CliRunner().invoke(app, ["sweep", "--config", str(base), "-o", str(tmp_path / "s"), *wrong, *more])
    assert (done.exit_code, message in done.stderr) == (2, True)
    assert not (tmp_path / "s").exists()


def test_a_dry_run_refuses_what_the_sweep_refuses(base, pretended, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    sweep(base, [], AXES | {"data": ["a/b"]}, tmp_path / "s")
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    options = ["sweep", "--config", str(base), "-o", "~/s", "--dry-run"]
    for more, message in ((["--set", "dense.epochs=2"], "other settings"), (["--vary", "data=a b"], "another run")):
        done = CliRunner().invoke(app, [*options, *more])
        assert (done.exit_code, message in done.stderr) == (2, True)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == written


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_a_folder_that_no_run_could_use_is_refused_first(base, pretended, tmp_path, more):
    done = CliRunner().invoke(app, ["sweep", "--config", str(base), "-o", str(tmp_path / "[s]"), *more])
    assert done.exit_code == 2
    assert "brackets" in done.stderr
    assert not (tmp_path / "[s]").exists()


def test_the_command_line(base, pretended, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_VERBOSITY", "JAX_COMPILATION_CACHE_DIR"):
        monkeypatch.setenv(name, "set by a test")
    options = ["sweep", "--config", str(base), "--densities", "0.5,0.4", "--vary", "prune.blocks.shape=8x8", "-o", "s"]
    planned = CliRunner().invoke(app, [*options, "--dry-run", "--json"])
    assert planned.exit_code == 0
    assert not (tmp_path / "s").exists()
    told = CliRunner().invoke(app, [*options, "--json"])
    assert told.exit_code == 0
    runs = [run["run"] for run in json.loads(told.stdout)["runs"]]
    assert runs == [run["run"] for run in json.loads(planned.stdout)["runs"]]
    assert runs == [NAMES[0], *(f"{name}_blocks.shape-8x8" for name in NAMES[1:])]
    table = CliRunner().invoke(app, options).stdout
    assert table.split()[:2] == ["folder", "s"]
    assert "density-0.5_seed-0_blocks.shape-8x8  finished  accuracy" in table
    varied = ["--vary", "model=/a", "--vary", "task=mrpc", "--vary", "data=/d"]
    assert CliRunner().invoke(app, ["sweep", "-o", "t", *varied, "--dry-run"]).exit_code == 0
    for wrong in (["--resource", "x"], ["--resource", "gpus=1"], ["--densities", ""], ["--backend", "lsf"]):
        assert CliRunner().invoke(app, [*options[:3], "-o", "t", *wrong]).exit_code == 2
