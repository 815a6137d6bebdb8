"""The whole pipeline on a tiny model: what a run leaves behind is complete, exact, resumable and runs by itself."""

import json
import shutil
import sys
from contextlib import contextmanager

import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp
from typer.testing import CliRunner

import mlprune_jax
from mlprune_jax import pipeline
from mlprune_jax.cli import app
from mlprune_jax.config.loading import load_config
from mlprune_jax.config.settings import BlockStage, RunConfig
from mlprune_jax.errors import ConfigError
from mlprune_jax.inference.runtime import compile_model
from mlprune_jax.inference.service import load as load_to_serve
from mlprune_jax.inference.stored import load_masks
from mlprune_jax.models.pretrained import load_pretrained
from mlprune_jax.pipeline.evaluation import evaluate_folder, inspect_folder
from mlprune_jax.pipeline.folder import RunFolder
from mlprune_jax.pruning.density import HeadRowCost, dense_size, density
from mlprune_jax.pruning.granularity import HEAD, MATRICES, ROW, find_groups, matrix_shapes
from mlprune_jax.training.speed import Meter
from mlprune_jax.training.teaching import ask_teacher
from tests.documents import examples, execute
from tests.inference.conftest import close
from tests.pipeline.conftest import GEOMETRY, Killed

TARGET = 0.4
STAGES = ("dense", "heads_rows", "blocks")


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
    """A finished run; tests that change it take a copy."""
    folder = tmp_path_factory.mktemp("runs") / "all"
    pipeline.run(tiny.config(), folder, command="mlprune prune --test", quiet=True)
    return folder


@pytest.fixture
def copied(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "copy")


@pytest.fixture
def no_training(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a stage was trained")

    monkeypatch.setattr("mlprune_jax.pipeline.stages.fit", refuse)


def summary_of(folder):
    return json.loads((folder / "summary.json").read_text())


def load(folder):
    return load_pretrained(folder, num_labels=2, kind="classification")


def encoder_layers(model):
    return [model.params["bert"]["encoder"][f"layer_{i}"] for i in range(model.config.num_hidden_layers)]


def kernel(layer, matrix):
    group, name = matrix.split("/")
    return np.asarray(layer[group][name]["kernel"])


def kept_tiles(array, side=8):
    n_in, n_out = array.shape
    return array.reshape(n_in // side, side, n_out // side, side).any((1, 3))


def count(model, *, tiles):
    """Encoder parameters, counted from the weights: kernels (or their tiles that are not zero) and all vectors."""
    total = 0
    for layer in encoder_layers(model):
        for matrix in MATRICES:
            array = kernel(layer, matrix)
            total += kept_tiles(array).sum() * 64 if tiles else array.size
        total += sum(leaf.size for leaf in vectors(layer))
    return int(total)


def vectors(tree):
    for node in tree.values():
        if isinstance(node, dict):
            yield from vectors(node)
        elif node.ndim == 1:
            yield node


def same_weights(first, second):
    return (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()


def test_folder_is_complete(finished):
    run = json.loads((finished / "run.json").read_text())
    assert (run["state"], run["seed"], run["command"]) == ("finished", 0, "mlprune prune --test")
    assert {"python", "jax", "flax", "mlprune_jax"} <= run["versions"].keys()
    assert {path.name for path in finished.iterdir()} == {
        "config.resolved.yaml",
        "run.json",
        "metrics.jsonl",
        "stages",
        "final",
        "summary.json",
        ".lock",
    }
    assert {path.parent.name for path in (finished / "stages").glob("*/stage.json")} == set(STAGES)
    names = {path.name for path in (finished / "final").iterdir()}
    assert {"config.json", "model.safetensors", "pruning.json", "masks.safetensors", "tokenizer.json"} <= names
    assert not [path for path in finished.rglob("*") if path.suffix in (".bin", ".pt", ".pkl", ".tmp")]


@pytest.mark.parametrize("part", ["params", "scores", "thresholds", "masks"])
def test_what_was_learned_is_read_part_by_part_with_plain_orbax_calls(finished, part):
    folder = str(finished / "stages" / "blocks" / "learned")
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    with context:
        alone = ocp.load(folder, {part: ocp.metadata(folder).metadata[part]})
    assert alone.keys() == {part}
    whole = ocp.load(folder)
    jax.tree.map(np.testing.assert_array_equal, alone[part], whole[part])
    if part == "masks":
        jax.tree.map(np.testing.assert_array_equal, alone["masks"], load_masks(finished / "final"))


def test_what_a_stage_learned_becomes_its_model(finished):
    """As docs/own-loop.md has it; a stage without recovery ends with what was learned, less what was masked."""
    _, example = examples("docs/own-loop.md")
    done = execute(example.replace("/home/me/runs/mrpc", str(finished)), mp=mlprune_jax)
    stored = load(finished / "stages" / "heads_rows")
    assert stored.config == done["small_config"]
    jax.tree.map(np.testing.assert_array_equal, done["small"], stored.params)


def test_metrics_are_lines_of_json(finished):
    entries = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    stages = list(dict.fromkeys(entry["stage"] for entry in entries))
    assert stages == ["dense", "heads_rows", "blocks", "blocks.recover"]
    last = {entry["stage"]: entry for entry in entries}
    assert all(entry["step"] == entry["steps"] and np.isfinite(entry["loss"]) for entry in last.values())


def test_what_is_not_finite_is_json_too(tmp_path):
    """Found by review: other readers refuse Python's NaN, just in the lines that one looks for."""
    RunFolder(tmp_path).log({"stage": "dense", "step": 1, "loss": float("nan"), "task": [float("inf"), 0.5]})
    line = (tmp_path / "metrics.jsonl").read_text()
    assert line == '{"stage": "dense", "step": 1, "loss": null, "task": [null, 0.5]}\n'


def test_resolved_config_is_the_config(finished, tiny):
    assert load_config(RunConfig, finished / "config.resolved.yaml") == tiny.config()


def test_summary_counts_what_the_weights_hold(finished):
    summary, final = summary_of(finished), load(finished / "final")
    kept = count(final, tiles=True)
    assert summary["final"]["encoder_parameters"] == {"kept": kept, "dense": dense_size(final.config)}
    assert TARGET - 0.005 <= kept / dense_size(final.config) <= TARGET
    assert summary["final"]["density"]["encoder"] == pytest.approx(kept / dense_size(final.config), abs=1e-6)
    assert summary["target_density"] == TARGET
    assert {"accuracy", "loss", "examples"} <= summary["final"].keys()
    assert set(summary["stages"]) == set(STAGES)
    assert all(stage["seconds"] >= 0 for stage in summary["stages"].values())
    head_row = load(finished / "stages" / "heads_rows")
    assert summary["stages"]["heads_rows"]["encoder_parameters"]["kept"] == count(head_row, tiles=False)
    assert summary["stages"]["heads_rows"]["density"]["encoder"] <= 0.5
    assert summary["stages"]["dense"]["density"]["encoder"] == 1


def test_layers_tell_the_shapes_of_the_weights(finished):
    final = load(finished / "final")
    layers = summary_of(finished)["final"]["layers"]
    stored = json.loads((finished / "final" / "pruning.json").read_text())
    assert stored["kept"] == layers
    assert stored["block_shape"] == "8x8"
    for told, layer in zip(layers, encoder_layers(final), strict=True):
        arrays = {matrix: kernel(layer, matrix) for matrix in MATRICES}
        assert arrays["attention/query"].shape == (32, told["heads"] * 8)
        assert arrays["attention/output"].shape == (told["heads"] * 8, told["attention_output"])
        assert arrays["ffn/intermediate"].shape == (32, told["ffn"])
        assert arrays["ffn/output"].shape == (told["ffn"], told["ffn_output"])
        for matrix, array in arrays.items():
            tiles = kept_tiles(array)
            assert told["blocks"][matrix] == f"{tiles.sum()}/{tiles.size}"


def test_masks_are_where_the_tiles_are(finished):
    final, masks = load(finished / "final"), load_masks(finished / "final")
    assert masks is not None
    for i, layer in enumerate(encoder_layers(final)):
        for matrix in MATRICES:
            mask = kernel(masks["bert"]["encoder"][f"layer_{i}"], matrix)
            np.testing.assert_array_equal(
                mask.reshape(kept_tiles(kernel(layer, matrix)).shape), kept_tiles(kernel(layer, matrix))
            )


def test_every_stage_folder_loads(finished):
    for folder in (*(finished / "stages" / name for name in STAGES), finished / "stages" / "heads_rows" / "teacher"):
        model = load(folder)
        assert not model.fresh_head
        for layer, shape in zip(encoder_layers(model), model.config.layer_shapes, strict=True):
            sizes = matrix_shapes(model.config, shape)
            assert {matrix: kernel(layer, matrix).shape for matrix in MATRICES} == sizes
    assert load(finished / "stages" / "dense").config.layers == ()


def test_pruning_leaves_the_embeddings_as_the_dense_stage_trained_them(finished, tiny):
    """Steps 1 and 2, and the recovery of the second."""
    start, dense, *pruned = (
        load(folder).params["bert"]["embeddings"] for folder in (tiny.model, *(finished / "stages" / n for n in STAGES))
    )
    assert not np.array_equal(start["word"]["embedding"], dense["word"]["embedding"])
    for embeddings in pruned:
        jax.tree.map(np.testing.assert_array_equal, embeddings, dense)


def test_blocks_are_taught_by_what_step_1_left_before_it_was_rounded(copied, monkeypatch):
    (copied / "summary.json").unlink()
    shutil.rmtree(copied / "stages" / "blocks")

    class SeenError(Exception):
        pass

    def stop(context, student, teacher):
        raise SeenError(student, teacher)

    monkeypatch.setattr(sys.modules["mlprune_jax.pipeline.run"], "block_stage", stop)
    with pytest.raises(SeenError) as seen:
        pipeline.resume(copied, quiet=True)
    folder = copied / "stages" / "heads_rows"
    for found, wanted in zip(seen.value.args, (load(folder), load(folder / "teacher")), strict=True):
        assert found.config == wanted.config
        jax.tree.map(np.testing.assert_array_equal, found.params, wanted.params)
    rows = [[len(shape.ffn or range(64)) for shape in model.config.layer_shapes] for model in seen.value.args]
    assert rows[0] == [-(-units // 8) * 8 for units in rows[1]] != rows[1]


def test_final_runs_from_its_folder_alone(finished, tiny, tmp_path):
    alone = shutil.copytree(finished / "final", tmp_path / "elsewhere")
    summary = summary_of(finished)
    scored = evaluate_folder(alone, data=str(tiny.data), batch_size=24)
    assert {key: scored[key] for key in ("accuracy", "loss", "examples")} == {
        key: summary["final"][key] for key in ("accuracy", "loss", "examples")
    }
    # A run knows its own data; other batches give the same up to the order of sums.
    own = evaluate_folder(finished)
    assert own["accuracy"] == scored["accuracy"]
    assert own["loss"] == pytest.approx(scored["loss"], rel=1e-5)


def test_inspect_says_what_the_summary_says(finished):
    summary, told = summary_of(finished), inspect_folder(finished)
    assert told["layers"] == summary["final"]["layers"] == inspect_folder(finished / "final")["layers"]
    assert told["final"]["accuracy"] == summary["final"]["accuracy"]


def test_resume_of_a_finished_run_trains_nothing(finished, no_training):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    assert pipeline.resume(finished, quiet=True) == summary_of(finished)
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_lost_summary_is_written_again_without_training(copied, finished, no_training):
    (copied / "summary.json").unlink()
    shutil.rmtree(copied / "final")
    summary = pipeline.resume(copied, quiet=True)
    assert {**summary, "seconds": None} == {**summary_of(finished), "seconds": None}
    assert same_weights(copied / "final", finished / "final")


def test_resume_says_that_a_run_is_finished_where_a_kill_came_before_that(copied):
    folder = RunFolder(copied)
    folder.describe(state="running")
    pipeline.resume(copied, quiet=True)
    assert json.loads((copied / "run.json").read_text())["state"] == "finished"


@pytest.mark.parametrize("half_written", [False, True])
def test_resumed_stage_is_bit_identical(copied, finished, half_written):
    (copied / "summary.json").unlink()
    shutil.rmtree(copied / "final")
    if half_written:  # a model that looks complete, but is of a stage that did not finish
        (copied / "stages" / "blocks" / "stage.json").unlink()
        (copied / "stages" / "blocks" / "leftover").touch()
    else:
        shutil.rmtree(copied / "stages" / "blocks")
    pipeline.resume(copied, quiet=True)
    assert same_weights(copied / "final", finished / "final")
    assert summary_of(copied)["final"] == summary_of(finished)["final"]
    assert json.loads((copied / "run.json").read_text())["state"] == "finished"
    assert not (copied / "stages" / "blocks" / "leftover").exists()


LEARNED = {"densities": "learned"}
MAGNITUDE = {"densities": "equal", "score_init": "magnitude", "score_learning_rate": 0.0}


@pytest.mark.parametrize(
    ("alone", "settings"),
    [("blocks", {}), ("heads_rows", {}), ("heads_rows", LEARNED), ("blocks", LEARNED), ("blocks", MAGNITUDE)],
    ids=["blocks", "heads_rows", "heads_rows by thresholds", "blocks by thresholds", "blocks by magnitude"],
)
def test_one_pruning_stage_alone(finished, tiny, tmp_path, alone, settings):
    """Dense is disabled too: the model is fine-tuned already."""
    stages = {name: {**tiny.settings["prune"][name], "enabled": name == alone} for name in ("blocks", "heads_rows")}
    stages[alone] |= settings
    config = tiny.config(
        model=str(finished / "stages" / "dense"), dense={"enabled": False}, prune={"density": TARGET, **stages}
    )
    summary = pipeline.run(config, tmp_path / "run", quiet=True)
    final = load(tmp_path / "run" / "final")
    kept = count(final, tiles=alone == "blocks")
    assert summary["final"]["encoder_parameters"]["kept"] == kept
    assert TARGET - 0.005 <= kept / dense_size(final.config) <= TARGET
    assert set(summary["stages"]) == {alone}
    assert bool(final.config.layers) == (alone == "heads_rows")


def test_a_really_pruned_model_answers_packed_as_with_zeros(finished, tiny, tmp_path):
    stages = {name: {**tiny.settings["prune"][name], "enabled": name == "blocks"} for name in ("blocks", "heads_rows")}
    stages["blocks"] |= {"shape": "16x16", "recover": 0.0}
    start = str(finished / "stages" / "dense")
    config = tiny.config(model=start, dense={"enabled": False}, prune={"density": 0.5, **stages})
    pipeline.run(config, tmp_path / "run", quiet=True)
    served = load_to_serve(tmp_path / "run").served
    size = {"batch_sizes": [2], "lengths": [24]}
    packed = compile_model(served, implementation="xla", **size)
    zeros = compile_model(served._replace(masks=None), **size)  # which knows nothing of tiles
    assert "xla" in {each.choice.implementation for each in packed.decisions(2, 24)}
    inputs = np.random.default_rng(0).integers(1, served.config.vocab_size, (2, 24)), np.array([24, 9])
    close(packed.logits(*inputs), zeros.logits(*inputs))


def test_a_recovery_of_logits_asks_the_teacher_once(tiny, tmp_path, monkeypatch):
    """Of variants too, which have no labels; and ends where one does that asks it in every step."""
    stage = {**tiny.settings["dense"], "recover": 0.75, "epochs": 3}
    prune = {"density": 0.5, "heads_rows": stage, "blocks": {"enabled": False}}
    distillation = {"recovery": "logits", "variants": 1}
    config = tiny.config(prune=prune, distillation=distillation, dense={"enabled": False}, log_every=1)
    asked, outside = [], []

    class Watched(Meter):
        @contextmanager
        def left_out(self):
            outside.append(True)
            with super().left_out():
                yield
            outside.pop()

    def counting(*arguments):
        asked.append(arguments)
        assert outside  # its answers are no part of a step's time
        return ask_teacher(*arguments)

    def killed(*_):
        raise Killed

    monkeypatch.setattr("mlprune_jax.pipeline.stages.ask_teacher", counting)
    monkeypatch.setattr("mlprune_jax.pipeline.stages.Meter", Watched)
    with monkeypatch.context() as patched:
        patched.setattr(RunFolder, "finish", killed)
        with pytest.raises(Killed):
            pipeline.run(config, tmp_path / "once", quiet=True)
    once = pipeline.resume(tmp_path / "once", quiet=True)["final"]
    assert len(asked) == 1  # found by review: and again for a training whose last step was saved
    lines = [json.loads(line) for line in (tmp_path / "once" / "metrics.jsonl").read_text().splitlines()]
    recovery = [line for line in lines if line["stage"] == "heads_rows.recover"]
    assert len(recovery) == 3 * 0.75 * 64 / 8  # as many steps as without variants
    answered = asked[0][2]
    assert len(answered) == 2 * 64
    assert len(set(answered.input_ids[answered.offsets[:-1]])) == 1  # variants keep their markers
    assert {line["task"] for line in recovery} == {0}
    assert 0 not in {line["task"] for line in lines if line["stage"] == "heads_rows"}
    monkeypatch.setattr("mlprune_jax.pipeline.stages._answers_once", lambda *_: False)
    always = pipeline.run(config, tmp_path / "always", quiet=True)["final"]
    assert once["loss"] == pytest.approx(always["loss"], rel=1e-3)


@pytest.mark.parametrize(("densities", "low", "high"), [("learned", -0.5, 0.5), ("soft", 0.25, 0.75)])
def test_scores_start_from_fishers_order(finished, tiny, tmp_path, densities, low, high):
    """Those that do not learn end as they began, evenly spaced, in each group, or all under one threshold."""
    fisher = {"score_init": "fisher", "score_scale": 0.5, "score_learning_rate": 0.0, "accumulate": 2}
    stage = {**tiny.settings["prune"]["heads_rows"], **fisher, "densities": densities, "recover": 0.0}
    dense = {"model": str(finished / "stages" / "dense"), "dense": {"enabled": False}}
    prune = {"density": TARGET, "heads_rows": stage, "blocks": {"enabled": False}}
    pipeline.run(tiny.config(**dense, prune=prune), tmp_path / "run", quiet=True)
    scores = ocp.load(tmp_path / "run" / "stages" / "heads_rows" / "learned")["scores"]
    orders = [np.concatenate(list(scores.values()))] if densities == "soft" else scores.values()
    for found in orders:
        np.testing.assert_allclose(np.sort(found), np.linspace(low, high, found.size), atol=1e-6)
    assert any(not np.array_equal(found, np.sort(found)) for found in scores.values())


def test_heads_and_rows_alone_in_multiples(finished, tiny, tmp_path):
    """What each layer keeps is a multiple of 16, two heads of 8 among it, at the density that was asked for."""
    stage = {**tiny.settings["prune"]["heads_rows"], "multiple_of": 16}
    dense = {"model": str(finished / "stages" / "dense"), "dense": {"enabled": False}}
    prune = {"density": TARGET, "heads_rows": stage, "blocks": {"enabled": False}}
    pipeline.run(tiny.config(**dense, prune=prune), tmp_path / "run", quiet=True)
    final = load(tmp_path / "run" / "final")
    cost = HeadRowCost(GEOMETRY, find_groups(GEOMETRY, (HEAD, ROW)), (16, 16))
    fields = {"attention": "heads"}
    places = {group.name: group.name.removeprefix("layer_").split("/") for group in cost.groups}
    ids = {n: getattr(final.config.layer_shapes[int(i)], fields.get(part, part)) for n, (i, part) in places.items()}
    kept = {group.name: group.size if ids[group.name] is None else len(ids[group.name]) for group in cost.groups}
    for group in cost.groups:
        assert kept[group.name] % (2 if group.name.endswith("/attention") else 16) == 0
    assert count(final, tiles=False) == cost.count(kept) <= TARGET * dense_size(GEOMETRY)
    for group in cost.groups:  # as much as fits: one step more of any is too much
        assert kept[group.name] == group.size or density(cost, kept | {group.name: kept[group.name] + 1}) > TARGET


def test_heads_rows_from_a_given_folder(finished, tiny, tmp_path):
    """The student starts shrunk already, and ends at the density of the dense encoder that is asked for."""
    given = str(finished / "stages" / "heads_rows")
    stage = {**tiny.settings["prune"]["heads_rows"], "start_from": given}
    config = tiny.config(
        model=str(finished / "stages" / "dense"),
        dense={"enabled": False},
        prune={"density": 0.3, "heads_rows": stage, "blocks": {"enabled": False}},
    )
    summary = pipeline.run(config, tmp_path / "run", quiet=True)
    final, start = load(tmp_path / "run" / "final"), load(finished / "stages" / "heads_rows")
    assert summary["final"]["encoder_parameters"]["kept"] == count(final, tiles=False)
    assert 0.295 <= count(final, tiles=False) / dense_size(final.config) <= 0.3
    for kept, had in zip(final.config.layer_shapes, start.config.layer_shapes, strict=True):
        assert set(kept.heads or range(4)) <= set(had.heads or range(4))
        assert set(kept.ffn or range(64)) <= set(had.ffn or range(64))


def test_soft_scores_start_above_zero(tiny):
    stage = {**tiny.settings["prune"]["blocks"], "score_scale": 0}
    with pytest.raises(ValueError, match=r"all scores must start there.*got fisher and 0"):
        tiny.config(prune={"density": 0.4, "blocks": stage})


@pytest.mark.parametrize(
    ("stage", "run", "told"),
    [
        (
            {"densities": "learned", "score_init": "fisher"},
            {},
            r"score_init fisher spreads scores over.*score_scale above 0",
        ),
        (
            {"densities": "learned", "score_init": "uniform"},
            {},
            r"score_init uniform spreads scores over.*score_scale above 0",
        ),
        ({"ramp": [0.8, 0.2]}, {}, r"ramp \[0\.8, 0\.2\] ends before it begins"),
        ({"steer_by_count": False}, {}, "densities soft is steered by the count"),
        ({"teacher": "dense"}, {"distillation": None}, "names a teacher, and distillation is null"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(tiny, stage, run, told):
    with pytest.raises(ValueError, match=told):
        tiny.config(prune={"density": 0.4, "blocks": {**tiny.settings["prune"]["blocks"], **stage}}, **run)


def test_variants_without_a_recovery_are_refused(tiny):
    prune, distillation = tiny.settings["prune"], {"recovery": "logits", "variants": 1}
    assert tiny.config(distillation=distillation).distillation.variants == 1
    with pytest.raises(ValueError, match="variants is for recovery, and no stage has any"):
        tiny.config(prune={**prune, "blocks": {**prune["blocks"], "recover": 0.0}}, distillation=distillation)


def test_tiles_of_blocks_round_alone(tiny):
    stage = {**tiny.settings["prune"]["heads_rows"], "multiple_of": 8}
    with pytest.raises(ValueError, match=r"heads_rows\.multiple_of is for heads and rows alone"):
        tiny.config(prune={**tiny.settings["prune"], "heads_rows": stage})


def test_settings_of_thresholds_are_refused_where_there_are_none():
    with pytest.raises(ValueError, match="has no thresholds: threshold_start, threshold_gradient would do nothing"):
        BlockStage(threshold_start=9, threshold_gradient="boundary")


@pytest.mark.parametrize(("density", "first", "idle"), [(0.5, None, True), (0.5, 0.75, False), (0.4, None, False)])
def test_blocks_with_nothing_to_remove_are_said(tiny, tmp_path, caplog, density, first, idle):
    prune = tiny.settings["prune"]
    stage = {**prune["heads_rows"], "density": first}
    pipeline.plan(tiny.config(prune={**prune, "density": density, "heads_rows": stage}), tmp_path / "run")
    assert ("prune.blocks has no tile to remove" in caplog.text) == idle


def test_density_of_the_only_stage_is_the_density(tiny):
    stage = {**tiny.settings["prune"]["heads_rows"], "density": 0.5}
    with pytest.raises(ValueError, match=r"heads_rows.density 0.5 contradicts density 0.4"):
        tiny.config(prune={"density": 0.4, "heads_rows": stage, "blocks": {"enabled": False}})


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"two_sided": False}, "prune.blocks is soft without two_sided"),
        ({**BlockStage().model_dump(), "densities": "learned"}, "prune.blocks has densities learned with the scores"),
        ({"densities": "learned"}, None),
        ({}, None),
    ],
)
def test_settings_of_two_methods_are_said(tiny, tmp_path, caplog, settings, told):
    stage = {**settings, **tiny.settings["prune"]["blocks"]}
    prune = {**tiny.settings["prune"], "density": 0.4, "blocks": stage}
    pipeline.plan(tiny.config(prune=prune), tmp_path / "run")
    assert [told in message for message in caplog.messages if "prune." in message] == ([True] if told else [])


def test_plan_writes_nothing(tiny, tmp_path, monkeypatch, no_training):
    monkeypatch.chdir(tmp_path)
    plan = pipeline.plan(tiny.config(), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []
    assert (plan["model"], plan["task"], plan["block"]) == (str(tiny.model), "demo", "8x8")
    assert plan["examples"] == {"train": 64, "dev": 24}
    assert plan["encoder_parameters"] == 2 * 8544
    assert plan["stages"] == {
        "dense": {"steps": 8, "density": 1.0},
        "heads_rows": {"steps": 8, "density": 0.5},
        "blocks": {"steps": 8, "density": 0.4},
    }


def test_plan_counts_the_steps_of_both_trainings_of_a_stage(tiny, tmp_path):
    """Each takes one at least."""
    stage = {**tiny.settings["dense"], "epochs": 0.01, "recover": 0.5}
    prune = {"density": 0.4, "heads_rows": stage, "blocks": {**stage, "shape": "8x8", "recover": 0.0}}
    stages = pipeline.plan(tiny.config(prune=prune), tmp_path / "run")["stages"]
    assert {name: each["steps"] for name, each in stages.items()} == {"dense": 8, "heads_rows": 2, "blocks": 1}


def test_plan_of_the_demo_names_no_scratch_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = CliRunner().invoke(app, ["demo", "--dry-run", "--json"])
    assert told.exit_code == 0
    assert json.loads(told.stdout)["model"] == "demo"
    assert list(tmp_path.iterdir()) == []


def test_plan_refuses_a_used_folder(tiny, tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ConfigError, match="is not empty"):
        pipeline.plan(tiny.config(), tmp_path)
