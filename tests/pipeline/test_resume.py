"""Stopped anywhere, a run goes on to the same weights, bit for bit."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from functools import partial

import jax
import numpy as np
import pytest
from filelock import FileLock
from orbax.checkpoint import v1 as ocp
from safetensors.numpy import load_file, save_file

from mlprune_jax import pipeline
from mlprune_jax.config.loading import dump_config
from mlprune_jax.errors import ConfigError, IntegrityError, Preempted
from mlprune_jax.inference.service import load
from mlprune_jax.manifest import MANIFEST
from mlprune_jax.models.pretrained import save_pretrained
from mlprune_jax.pipeline.evaluation import evaluate_folder, inspect_folder
from mlprune_jax.pipeline.run import FREE_TO_CHANGE
from mlprune_jax.pipeline.verification import verify_folder
from mlprune_jax.training.keeper import Keeper
from mlprune_jax.training.metrics import evaluate
from mlprune_jax.training.speed import RATES
from mlprune_jax.training.teaching import ask_teacher
from tests.documents import ROOT
from tests.pipeline.conftest import Killed

pytestmark = pytest.mark.filterwarnings("ignore:Sharding info not provided")

TRAININGS = {"dense": 8, "heads_rows": 4, "heads_rows.recover": 4, "blocks": 4, "blocks.recover": 4}


def config(tiny, **more):
    stage = tiny.settings["dense"]
    prune = {
        "density": 0.4,
        "heads_rows": {**stage, "recover": 0.5, "score_init": "constant"},
        "blocks": {**stage, "shape": "8x8", "recover": 0.5},
    }
    return tiny.config(prune=prune, checkpoint_steps=3, log_every=1, **more)


@pytest.fixture(scope="module")
def undisturbed(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    pipeline.run(config(tiny), folder, quiet=True)
    return folder


def weights(folder):
    """Every array that the run leaves: models, masks, and what was learned."""
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.safetensors")}
    for stage in ("heads_rows", "blocks"):
        learned, _ = jax.tree_util.tree_flatten_with_path(ocp.load(str(folder / "stages" / stage / "learned")))
        found |= {f"{stage}{jax.tree_util.keystr(path)}": np.asarray(leaf).tobytes() for path, leaf in learned}
    return found


def metrics(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in RATES} for line in lines]


def kill_at(monkeypatch, at, error):
    """End the run after so many steps of all stages together."""
    taken, after = [0], Keeper.after

    def counted(self, number, state):
        after(self, number, state)
        taken[0] += 1
        if taken[0] == at:
            raise error

    monkeypatch.setattr(Keeper, "after", counted)


def test_killed_in_every_training(undisturbed, tiny, tmp_path, monkeypatch):
    run = tmp_path / "run"
    # Steps that each process takes, first those again that were not saved, and where it is killed.
    lives = {
        ("dense", 5): 5,
        ("heads_rows", 2): 5 + 2,
        ("heads_rows.recover", 1): 4 + 1,
        ("blocks", 1): 4 + 1,
        ("blocks.recover", 4): 4 + 4,
    }
    for number, (place, steps) in enumerate(lives.items()):
        with monkeypatch.context() as patched:
            kill_at(patched, steps, Killed)
            with pytest.raises(Killed):
                pipeline.resume(run, quiet=True) if number else pipeline.run(config(tiny), run, quiet=True)
        last = metrics(run)[-1]
        assert (last["stage"], last["step"]) == place
    pipeline.resume(run, quiet=True)
    assert weights(run) == weights(undisturbed)
    assert metrics(run) == metrics(undisturbed)
    assert not (run / "checkpoints").exists()


def test_a_request_to_stop_saves_the_step_it_came_in(undisturbed, tiny, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        after = Keeper.after

        def asked(self, number, state):
            if number == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            after(self, number, state)

        patched.setattr(Keeper, "after", asked)
        with pytest.raises(Preempted, match="after step 2"):
            pipeline.run(config(tiny), tmp_path / "run", quiet=True)
    assert [path.name for path in (tmp_path / "run" / "checkpoints" / "dense").iterdir()] == ["00000002"]
    assert json.loads((tmp_path / "run" / "run.json").read_text())["state"] == "stopped"
    pipeline.resume(tmp_path / "run", quiet=True)
    assert weights(tmp_path / "run") == weights(undisturbed)


@pytest.fixture(scope="module")
def once_stopped(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "stopped"
    with pytest.MonkeyPatch.context() as patched:
        kill_at(patched, sum(TRAININGS.values()), Killed)
        with pytest.raises(Killed):
            pipeline.run(config(tiny), folder, quiet=True)
    return folder


@pytest.fixture
def stopped(once_stopped, tmp_path):
    """A run killed in its last training, after checkpoints of steps 3 and 4 of it; each test has a copy."""
    return shutil.copytree(once_stopped, tmp_path / "stopped")


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_settings_that_training_depends_on_may_not_change(stopped, undisturbed):
    path = stopped / "config.resolved.yaml"
    free = path.read_text().replace("checkpoint_minutes: 10.0", "checkpoint_minutes: 1.0")
    assert free != path.read_text()
    path.write_text(free.replace("seed: 0", "seed: 1"))
    with pytest.raises(ConfigError, match="another config"):
        pipeline.resume(stopped, quiet=True)
    path.write_text(free)
    pipeline.resume(stopped, quiet=True)
    assert weights(stopped) == weights(undisturbed)


@pytest.mark.parametrize("change", ["seed", "data", "model"])
def test_what_a_run_began_with_may_not_change_before_its_first_checkpoint(tiny, tmp_path, monkeypatch, change):
    """Found by review: where no checkpoint was there to compare with, the rest of a run had another seed, or model."""
    for name in ("model", "data"):
        shutil.copytree(getattr(tiny, name), tmp_path / name)
    settings = config(tiny).model_copy(update={name: str(tmp_path / name) for name in ("model", "data")})
    with monkeypatch.context() as patched:
        kill_at(patched, 1, Killed)
        with pytest.raises(Killed):
            pipeline.run(settings, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run" / "checkpoints").exists()
    if change == "seed":
        path = tmp_path / "run" / "config.resolved.yaml"
        path.write_text(path.read_text().replace("seed: 0", "seed: 1"))
    elif change == "data":
        path = tmp_path / "data" / "train.tsv"
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    else:
        flip_weight(tmp_path / "model" / "model.safetensors")
    told = {"seed": "config", "data": "training data", "model": "model"}[change]
    with pytest.raises(ConfigError, match=f"was begun with another {told} than"):
        pipeline.resume(tmp_path / "run", quiet=True)


@pytest.mark.parametrize("chooses", [True, False])
def test_the_dev_split_may_not_change_where_it_chooses_the_state(tiny, tmp_path, monkeypatch, chooses):
    def killed(*arguments, **more):
        raise Killed

    monkeypatch.setattr("mlprune_jax.pipeline.stages.fit", killed)
    data = shutil.copytree(tiny.data, tmp_path / "data")
    more = {"evaluate_steps": 4} if chooses else {}
    with pytest.raises(Killed):
        pipeline.run(config(tiny, data=str(data), **more), tmp_path / "run", quiet=True)
    identity = json.loads((tmp_path / "run" / "run.json").read_text())["identity"]
    assert identity.keys() == {"config", "training data", "model"} | ({"dev data"} if chooses else set())
    (data / "dev.tsv").write_text("".join((data / "dev.tsv").read_text().splitlines(keepends=True)[:-1]))
    refused = (ConfigError, "was begun with another dev data than") if chooses else (Killed, None)
    with pytest.raises(refused[0], match=refused[1]):
        pipeline.resume(tmp_path / "run", quiet=True)


def flip_weight(path):
    weights = load_file(path)
    name = "bert.pooler.dense.bias"
    save_file(weights | {name: weights[name] + 1}, path)


@pytest.mark.parametrize("damage", ["gone", "flipped", "killed over its manifest"])
def test_a_finished_run_gets_its_final_model_again(undisturbed, tmp_path, monkeypatch, damage):
    copied = shutil.copytree(undisturbed, tmp_path / "copy")
    if damage == "gone":
        shutil.rmtree(copied / "final")
    elif damage == "killed over its manifest":
        (copied / "final" / MANIFEST).rename(copied / "final" / f".{MANIFEST}.tmp")
    else:
        flip(copied / "final" / "model.safetensors")
    monkeypatch.setattr("mlprune_jax.pipeline.stages.fit", lambda *_, **__: pytest.fail("a stage was trained"))
    assert pipeline.resume(copied, quiet=True)["final"] == json.loads((copied / "summary.json").read_text())["final"]
    assert verify_folder(copied)["checked"] == 4
    assert weights(copied) == weights(undisturbed)


def test_damaged_lines_of_the_log_do_not_stop_a_run(stopped, undisturbed):
    with (stopped / "metrics.jsonl").open("a") as log:
        log.write("\0\0\n[1]\n{}\n")
    pipeline.resume(stopped, quiet=True)
    assert weights(stopped) == weights(undisturbed)


def test_a_damaged_stage_is_refused(stopped, undisturbed):
    flip(stopped / "stages" / "dense" / "model.safetensors")
    with pytest.raises(IntegrityError, match=r"stages/dense is damaged: model.safetensors has changed"):
        pipeline.resume(stopped, quiet=True)
    with pytest.raises(IntegrityError, match=r"model.safetensors has changed"):
        verify_folder(stopped)


def test_verify_counts_what_it_has_seen(undisturbed):
    told = verify_folder(undisturbed)
    assert told["checked"] == 4  # three stages and the final model
    assert told["files"] > 20
    assert verify_folder(undisturbed / "final")["checked"] == 1


@pytest.mark.parametrize("folder", ["final", "stages/heads_rows"])
def test_verify_notices_a_lost_manifest(undisturbed, tmp_path, folder):
    copied = shutil.copytree(undisturbed, tmp_path / "copy")
    (copied / folder / MANIFEST).unlink()
    with pytest.raises(IntegrityError, match=MANIFEST):
        verify_folder(copied)


@pytest.mark.parametrize("folder", ["final", "stages/dense"])
def test_verify_misses_what_a_finished_run_has_lost(undisturbed, tmp_path, folder):
    copied = shutil.copytree(undisturbed, tmp_path / "sweep" / "runs" / "copy")
    shutil.rmtree(copied / folder)
    with pytest.raises(IntegrityError, match=folder):
        verify_folder(tmp_path / "sweep")


def test_a_stage_without_a_manifest_is_one_that_a_run_was_killed_in(stopped):
    before = verify_folder(stopped)["checked"]
    (stopped / "stages" / "dense" / MANIFEST).unlink()
    assert verify_folder(stopped)["checked"] == before - 1


def test_a_damaged_model_answers_nothing(undisturbed, tmp_path):
    copied = shutil.copytree(undisturbed, tmp_path / "copy")
    flip(copied / "final" / "model.safetensors")
    for use in (evaluate_folder, inspect_folder, load):
        with pytest.raises(IntegrityError, match=r"final is damaged: model\.safetensors has changed"):
            use(copied)


def test_another_model_saved_over_a_finished_one_is_no_damage(undisturbed, tmp_path):
    folder = shutil.copytree(undisturbed / "final", tmp_path / "copy")
    model = load(folder).served
    params = jax.tree.map(lambda leaf: leaf + 1, model.params)
    save_pretrained(folder, model.config, params, kind=model.kind, labels=("0", "1"))
    assert load(folder).served.params["head"]["bias"][0] == params["head"]["bias"][0]


def test_a_request_between_two_stages(tiny, tmp_path, monkeypatch):
    def asked(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(*arguments)

    monkeypatch.setattr("mlprune_jax.pipeline.scoring.evaluate", asked)
    with pytest.raises(Preempted, match=r"before stage heads_rows(.|\n)*mlprune resume /"):
        pipeline.run(config(tiny), tmp_path / "run", quiet=True)


def test_a_request_while_a_teacher_is_asked_once(tiny, tmp_path, monkeypatch):
    """Found by review: all of its batches ran before the signal was heeded."""
    answered = []

    def forward(params, batch):
        if not answered:
            os.kill(os.getpid(), signal.SIGTERM)
        answered.append(batch)
        return np.zeros((len(batch["labels"]), 2), np.float32), np.zeros(len(batch["labels"]), np.float32)

    monkeypatch.setattr("mlprune_jax.pipeline.stages.make_forward", lambda *_: forward)
    stage = {**tiny.settings["prune"]["heads_rows"], "epochs": 2, "score_init": "constant"}
    prune = {"density": 0.4, "heads_rows": stage, "blocks": {"enabled": False}}
    logits_alone = {"hidden_weight": 0, "attention_weight": 0}
    settings = tiny.config(dense={"enabled": False}, prune=prune, distillation=logits_alone)
    with pytest.raises(Preempted, match="while a teacher answered"):
        pipeline.run(settings, tmp_path / "run", quiet=True)
    assert len(answered) == 1


def test_what_a_teacher_answered_outlives_a_kill(tiny, tmp_path, monkeypatch, caplog):
    """Learning and recovery compare the same logits; damaged ones are asked for again."""
    asked = []

    def counting(*arguments):
        asked.append(arguments)
        return ask_teacher(*arguments)

    monkeypatch.setattr("mlprune_jax.pipeline.stages.ask_teacher", counting)
    stage = {**tiny.settings["prune"]["heads_rows"], "epochs": 3, "recover": 0.5, "score_init": "constant"}
    prune = {"density": 0.4, "heads_rows": stage, "blocks": {"enabled": False}}
    logits_alone = {"hidden_weight": 0, "attention_weight": 0}
    settings = tiny.config(dense={"enabled": False}, prune=prune, distillation=logits_alone)
    pipeline.run(settings, tmp_path / "whole", quiet=True)
    assert len(asked) == 1
    run = tmp_path / "run"
    begin, go_on = partial(pipeline.run, settings, run), partial(pipeline.resume, run)
    for start, steps in ((begin, 12 + 3), (go_on, 4)):  # killed in recovery, twice
        with monkeypatch.context() as patched:
            kill_at(patched, steps, Killed)
            with pytest.raises(Killed):
                start(quiet=True)
    assert len(asked) == 2
    (answers,) = run.glob("checkpoints/answers-*/array.npy")
    answers.write_bytes(answers.read_bytes()[:-8] + bytes(8))
    pipeline.resume(run, quiet=True)
    assert len(asked) == 3
    assert "array.npy has changed; it is worked out again" in caplog.text
    model = "final/model.safetensors"
    assert (run / model).read_bytes() == (tmp_path / "whole" / model).read_bytes()
    assert not (run / "checkpoints").exists()


def test_a_kill_costs_the_answers_of_one_part(tiny, tmp_path, monkeypatch):
    """Found at work: a teacher that was stopped after twenty minutes began anew."""
    asked = []

    def killed_once(forward, params, part, *more):
        asked.append(part.digest())
        if len(asked) == 2:
            raise Killed
        return ask_teacher(forward, params, part, *more)

    monkeypatch.setattr("mlprune_jax.pipeline.stages.ask_teacher", killed_once)
    monkeypatch.setattr("mlprune_jax.training.teaching.PART", 24)
    stage = {**tiny.settings["prune"]["heads_rows"], "epochs": 2, "score_init": "constant"}
    prune = {"density": 0.4, "heads_rows": stage, "blocks": {"enabled": False}}
    logits_alone = {"hidden_weight": 0, "attention_weight": 0}
    settings = tiny.config(dense={"enabled": False}, prune=prune, distillation=logits_alone)
    with pytest.raises(Killed):
        pipeline.run(settings, tmp_path / "run", quiet=True)
    pipeline.resume(tmp_path / "run", quiet=True)
    first, *others = asked  # 24, 24 and 16 examples
    assert len(others) == 3
    assert others[0] == others[1] != others[2]
    assert first not in others


def test_one_process_per_folder(stopped):
    with FileLock(stopped / ".lock"), pytest.raises(ConfigError, match="another process runs in"):
        pipeline.resume(stopped, quiet=True)


def test_the_command_line_stops_with_75_and_survives_sigkill(undisturbed, tiny, tmp_path):
    """Whole processes: asked to stop once, killed once."""
    (tmp_path / "config.yaml").write_text(dump_config(config(tiny)))
    run, program = tmp_path / "run", [sys.executable, "-c", "from mlprune_jax.cli import main; main()"]
    environment = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}

    def start(*arguments):
        streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
        return subprocess.Popen([*program, *arguments], **streams, text=True, env=environment)

    def until(process, text):
        for line in process.stderr:
            if text in line:
                return

    def ended(process):
        process.communicate(timeout=300)
        return process.returncode

    process = start("prune", "--config", str(tmp_path / "config.yaml"), "-o", str(run))
    until(process, "dense 3/8")
    process.send_signal(signal.SIGTERM)
    assert ended(process) == 75
    process = start("resume", str(run))
    until(process, "heads_rows 3/4")
    process.kill()
    assert ended(process) == -signal.SIGKILL
    assert ended(start("resume", str(run))) == 0
    assert weights(run) == weights(undisturbed)


def test_a_stopped_run_may_change_what_the_document_says():
    text = (ROOT / "docs/long-runs.md").read_text(encoding="utf-8")
    said = re.search(r"these may be changed:\n\n(.*?)\n\n", text, re.S)
    assert said is not None
    assert sorted(FREE_TO_CHANGE) == sorted(re.findall(r"`(\w+)`", said[1]))
