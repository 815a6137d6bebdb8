"""What the command line does around the pipeline: parsing, messages, exit codes, what is printed where."""

import json
import os
import sys
from importlib.metadata import version
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from typer.testing import CliRunner

from mlprune_jax import errors
from mlprune_jax.cli import app

CONFIG = "model: some/bert\ntask: mrpc\ndata: glue\nprune: {density: 0.3}\n"


@pytest.fixture
def invoke(tmp_path, monkeypatch):
    """Runs the command line in an empty folder that holds a config, c.yaml."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/mlprune", "prune", "a b"])
    # The commands set these for their process; the tests' own values must come back.
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_VERBOSITY", "JAX_COMPILATION_CACHE_DIR"):
        monkeypatch.setenv(name, "set by a test")
    (tmp_path / "c.yaml").write_text(CONFIG)

    def run(*args):
        return CliRunner().invoke(app, list(args))

    return run


@pytest.fixture
def pipeline(monkeypatch):
    """Stands in for the pipeline and the evaluation: records the calls, returns a result or raises."""
    calls = SimpleNamespace(made=[], result={"density": 0.2, "loss": float("nan")}, failure=None)

    def recorder(name):
        def call(*args, **kwargs):
            calls.made.append((name, args, kwargs))
            print("a library prints this")
            if calls.failure is not None:
                raise calls.failure
            return calls.result

        return call

    double, evaluation = ModuleType("mlprune_jax.pipeline"), ModuleType("mlprune_jax.pipeline.evaluation")
    vars(double).update({name: recorder(name) for name in ("run", "plan", "resume")}, evaluation=evaluation)
    vars(evaluation).update({name: recorder(name) for name in ("evaluate_folder", "inspect_folder")})
    monkeypatch.setattr("mlprune_jax.pipeline", double, raising=False)
    for module in (double, evaluation):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return calls


COMMANDS = ["demo", "prune", "resume", "sweep", "eval", "inspect", "config"]


def test_help_names_every_command(invoke):
    told = invoke("--help")
    assert told.exit_code == 0
    assert all(f" {command} " in told.stdout for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command(invoke, command):
    assert invoke(command, "--help").exit_code == 0


@pytest.mark.parametrize("args", [["prun"], ["prune", "--modle", "x"], ["prune", "--density", "x"], ["resume"]])
def test_wrong_usage_exits_2(invoke, args):
    told = invoke(*args)
    assert (told.exit_code, told.stdout) == (2, "")
    assert "Traceback" not in told.stderr


def test_prune_passes_the_config_on(invoke, pipeline, tmp_path):
    told = invoke("prune", "--config", "c.yaml", "--set", "prune.density=0.4", "--seed", "7", "-o", "out", "--quiet")
    assert told.exit_code == 0
    ((name, (config, workdir), kwargs),) = pipeline.made
    assert (name, str(workdir)) == ("run", "out")
    assert (config.model, config.prune.density, config.seed, config.offline) == ("some/bert", 0.4, 7, False)
    assert kwargs == {"command": "mlprune prune 'a b'", "quiet": True}


def test_prune_without_a_file(invoke, pipeline):
    options = {"--model": "2024", "--task": "sst2", "--data": "no: 1", "--density": "0.3", "--block": "16x64"}
    told = invoke("prune", *[part for item in options.items() for part in item], "--offline")
    assert told.exit_code == 0
    (config, workdir) = pipeline.made[0][1]
    assert (config.model, config.task, config.data, config.offline) == ("2024", "sst2", "no: 1", True)
    assert (config.prune.density, config.prune.blocks.shape) == (0.3, (16, 64))
    assert str(workdir) == "runs/sst2-0.3"


def test_set_has_the_last_word(invoke, pipeline):
    invoke("prune", "--config", "c.yaml", "--density", "0.5", "--set", "prune.density=0.6")
    assert pipeline.made[0][1][0].prune.density == 0.6


def test_dry_run_plans_only(invoke, pipeline):
    told = invoke("prune", "--config", "c.yaml", "-o", "out", "--dry-run", "--json")
    assert [name for name, *_ in pipeline.made] == ["plan"]
    assert json.loads(told.stdout) == {"workdir": "out", "density": 0.2, "loss": None}


@pytest.mark.parametrize("command", [["prune", "--config", "c.yaml", "-o", "out"], ["resume", "out"]])
def test_where_the_run_is_is_told(invoke, pipeline, command):
    assert json.loads(invoke(*command, "--json").stdout)["workdir"] == "out"


def test_the_version_is_told(invoke):
    assert invoke("--version").stdout.strip() == version("mlprune_jax")


def test_demo_runs_the_packaged_recipe(invoke, pipeline):
    assert invoke("demo").exit_code == 0
    (config, workdir) = pipeline.made[0][1]
    assert (config.task, str(workdir)) == ("demo", "runs/demo")


def test_a_default_folder_is_always_a_new_one(invoke, pipeline, tmp_path):
    for number in ("", "-2"):
        (tmp_path / f"runs/demo{number}").mkdir(parents=True)
    invoke("demo")
    assert str(pipeline.made[0][1][1]) == "runs/demo-3"


def test_resume_eval_inspect_delegate(invoke, pipeline):
    assert invoke("resume", "runs/x", "--quiet").exit_code == 0
    options = ["--data", "d", "--split", "test", "--batch-size", "8", "--against", "y"]
    assert invoke("eval", "runs/x", *options).exit_code == 0
    assert invoke("inspect", "runs/x").exit_code == 0
    assert [(name, [str(arg) for arg in args], kwargs) for name, args, kwargs in pipeline.made] == [
        ("resume", ["runs/x"], {"quiet": True}),
        (
            "evaluate_folder",
            ["runs/x"],
            {"against": Path("y"), "data": "d"}
            | {"split": "test", "skip_damaged": False, "batch_size": 8, "offline": False},
        ),
        ("inspect_folder", ["runs/x"], {}),
    ]


def test_json_is_alone_on_standard_output(invoke, pipeline):
    pipeline.result = {"loss": [float("inf"), 1.5], "name": "é"}
    told = invoke("eval", "runs/x", "--json")
    assert json.loads(told.stdout) == {"loss": [None, 1.5], "name": "é"}
    assert "a library prints this" in told.stderr


def test_result_is_readable_without_json(invoke, pipeline):
    told = invoke("eval", "runs/x")
    assert [line.split() for line in told.stdout.splitlines()] == [["density", "0.2"], ["loss", "nan"]]


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (errors.ConfigError("broken", hint="mend it"), 2),
        (errors.DataError("broken", hint="mend it"), 3),
        (errors.ModelError("broken", hint="mend it"), 3),
        (errors.IntegrityError("broken", hint="mend it"), 4),
        (errors.NumericalError("broken", hint="mend it"), 5),
        (errors.Preempted("broken", hint="mend it"), 75),
    ],
    ids=lambda value: type(value).__name__,
)
def test_failure_is_two_lines_and_a_code(invoke, pipeline, failure, code):
    pipeline.failure = failure
    told = invoke("prune", "--config", "c.yaml", "--json")
    assert (told.exit_code, told.stdout) == (code, "")
    assert told.stderr.splitlines() == ["a library prints this", "error: broken", "hint: mend it"]


@pytest.mark.parametrize(
    ("failure", "code", "message"),
    [
        (KeyboardInterrupt(), 130, "error: interrupted"),
        (OSError(28, "No space left on device", "out"), 1, "error: [Errno 28] No space left on device: 'out'"),
        (RuntimeError("a\nb" * 1000), 1, "error: unexpected RuntimeError: a ba b"),
    ],
    ids=["interrupt", "system", "defect"],
)
def test_other_failures(invoke, pipeline, failure, code, message):
    pipeline.failure = failure
    told = invoke("prune", "--config", "c.yaml")
    assert told.exit_code == code
    assert message in told.stderr
    assert "Traceback" not in told.stderr
    assert len(told.stderr) < 600


def test_debug_shows_the_traceback(invoke, pipeline):
    pipeline.failure = errors.DataError("broken")
    told = invoke("prune", "--config", "c.yaml", "--debug")
    assert told.exit_code == 3
    assert "Traceback (most recent call last)" in told.stderr


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "nothing to prune"),
        (["--config", "none.yaml"], "there is no config file none.yaml"),
        (["--config", "c.yaml", "--set", "prune.densty=0.2"], "prune.densty: unknown key, did you mean prune.density?"),
        (["--config", "c.yaml", "--density", "1.5"], "prune.density: should be less than or equal to 1, got 1.5"),
        (["--config", "c.yaml", "--density", "nan"], "prune.density"),
        (["--config", "c.yaml", "--block", "32"], "prune.blocks.shape: expected block_in x block_out"),
        (["--config", "c.yaml", "--seed", "-1"], "seed: should be greater than or equal to 0, got -1"),
        (["--model", "m"], "2 settings are wrong"),
    ],
)
def test_wrong_input_never_reaches_the_pipeline(invoke, pipeline, args, message):
    told = invoke("prune", *args)
    assert (told.exit_code, pipeline.made) == (2, [])
    assert message in told.stderr


@pytest.mark.parametrize(
    ("output", "hint"),
    [("c.yaml", "choose a new folder with -o"), ("full", "continue it with `mlprune resume full`")],
)
def test_a_used_folder_is_refused(invoke, tmp_path, output, hint):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "config.resolved.yaml").touch()
    told = invoke("prune", "--config", "c.yaml", "-o", output)
    assert told.exit_code == 2
    assert f"hint: {hint}" in told.stderr


def test_config_check(invoke):
    assert invoke("config", "check", "c.yaml").exit_code == 0
    told = invoke("config", "check", "c.yaml", "--set", "seed=x")
    assert told.exit_code == 2
    assert "seed: should be a valid integer" in told.stderr


def test_config_show_gives_a_config_that_means_the_same(invoke, tmp_path):
    shown = invoke("config", "show", "c.yaml", "--json")
    (tmp_path / "shown.yaml").write_text(invoke("config", "show", "c.yaml").stdout)
    assert json.loads(invoke("config", "show", "shown.yaml", "--json").stdout) == json.loads(shown.stdout)


def test_config_show_without_a_file_is_the_demo(invoke):
    assert json.loads(invoke("config", "show", "--json").stdout)["task"] == "demo"


def test_config_list_names_what_config_show_takes(invoke, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = invoke("config", "list").stdout.split()
    assert names == json.loads(invoke("config", "list", "--json").stdout)
    assert {"demo", "published", "minilm_sst2_d20"} <= {*names}
    assert json.loads(invoke("config", "show", "minilm_sst2_d20", "--json").stdout)["task"] == "sst2"


def test_config_schema(invoke):
    assert "prune" in json.loads(invoke("config", "schema").stdout)["properties"]


def test_without_a_home_commands_work_without_a_cache(invoke, pipeline, monkeypatch):
    """Found by review: every command ended in a traceback, for an account of a container's own, say."""
    for name in ("JAX_COMPILATION_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # as it is where there is none
    assert invoke("inspect", "run").exit_code == 0
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ
