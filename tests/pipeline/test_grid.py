"""Which runs a sweep has, what they are called, and that a shared dense stage changes nothing."""

import json

import pytest

from mlprune_jax import pipeline
from mlprune_jax.config.loading import dump_config, load_config
from mlprune_jax.config.settings import RunConfig
from mlprune_jax.errors import ConfigError
from mlprune_jax.pipeline.grid import (
    after_dense,
    common_settings,
    dense_alone,
    expand,
    read_axes,
    read_values,
    with_whole_paths,
)

AXES = {"prune.density": [0.5, 0.4], "seed": [0, 1]}


@pytest.fixture
def base(tiny, tmp_path):
    path = tmp_path / "base.yaml"
    path.write_text(dump_config(tiny.config()))
    return path


def names(runs):
    return [run.name for run in runs]


def test_every_combination_after_the_dense_stages(base, tmp_path):
    runs = expand(base, [], AXES, tmp_path)
    assert names(runs) == [
        "dense_seed-0",
        "dense_seed-1",
        "density-0.5_seed-0",
        "density-0.5_seed-1",
        "density-0.4_seed-0",
        "density-0.4_seed-1",
    ]
    assert [run.after for run in runs[2:]] == ["dense_seed-0", "dense_seed-1"] * 2
    assert [(run.config.prune.density, run.config.seed) for run in runs[2:]] == [(0.5, 0), (0.5, 1), (0.4, 0), (0.4, 1)]


def test_settings_of_pruning_share_a_dense_stage_and_others_do_not(base, tmp_path):
    axes = {"seed": [0], "prune.blocks.shape": ["8x8", "16x16"], "distillation.temperature": [1.0, 2.0]}
    runs = expand(base, [], axes | {"dense.learning_rate": [1e-3, 1e-4]}, tmp_path)
    assert names(runs)[:2] == ["dense_seed-0_dense.learning_rate-0.001", "dense_seed-0_dense.learning_rate-0.0001"]
    assert len(runs) == 2 + 8
    assert runs[2].name == "seed-0_blocks.shape-8x8_distillation.temperature-1.0_dense.learning_rate-0.001"


def test_without_a_dense_stage_nothing_is_shared(base, tmp_path):
    assert names(expand(base, ["dense.enabled=false"], {"seed": [3]}, tmp_path)) == ["seed-3"]
    alone = ["prune.heads_rows.enabled=false", "prune.blocks.enabled=false"]
    assert names(expand(base, alone, {"seed": [3]}, tmp_path)) == ["seed-3"]


def test_pretrained_stays_the_model_before_the_dense_stage(tiny, tmp_path):
    stage = tiny.settings["dense"]
    config = tiny.config(
        prune={"heads_rows": {**stage, "start_from": "pretrained"}, "blocks": {**stage, "teacher": "dense"}}
    )
    shared = after_dense(config, tmp_path / "dense")
    assert shared.model == str(tmp_path / "dense" / "final")
    assert shared.prune.heads_rows.start_from == str(tiny.model)
    assert (shared.prune.heads_rows.teacher, shared.prune.blocks.teacher) == (None, "dense")


def test_a_fresh_pretrained_model_cannot_be_named_so_nothing_is_shared(tiny):
    fresh = dict(model="demo", data="demo", geometry={"hidden_size": 32, "num_attention_heads": 4})
    assert dense_alone(tiny.config(**fresh)) is not None
    assert dense_alone(tiny.config(**fresh, prune={"heads_rows": {"start_from": "pretrained"}})) is None


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"prune.density": [0.5, 2]}, "prune.density: should be less than or equal to 1, got 2"),
        ({"seed": [0], "prune.nothing": [1]}, "prune.nothing: unknown key"),
        ({"seed": [0], "prune.heads_rows.teacher": ["a/b", "a-b"]}, "would be named"),
        # Found by review: all were run at the last density, or twice, whatever their names said.
        ({"prune.density": [0.5, 0.4], "prune": [{"density": 0.3}]}, "prune and prune.density are both"),
        ({"distillation": [None, {}], "distillation.temperature": [2.0]}, "distillation and distillation.temp.* both"),
        ({"seed": [0, 0.0]}, "dense_seed-0 and dense_seed-0.0 would be the same run"),
        ({"prune.density": [1, 1.0], "dense.enabled": [False]}, "density-1.0_.* would be the same run"),
    ],
)
def test_what_cannot_run_is_refused_at_once(base, tmp_path, axes, message):
    with pytest.raises(ConfigError, match=message):
        expand(base, [], axes, tmp_path)


def test_any_text_can_be_varied(base, tmp_path):
    runs = expand(base, ["dense.enabled=false"], {"data": ["/data/é", "/data/😀"]}, tmp_path)
    assert [run.config.data for run in runs] == ["/data/é", "/data/😀"]


def test_a_long_value_makes_no_long_name(base, tmp_path):
    """Found by review: the file system refused it once the sweep had begun."""
    teachers = [f"/scratch/{'a/' * 200}{name}" for name in "xy"]
    runs = expand(base, ["dense.enabled=false"], {"seed": [0], "prune.heads_rows.teacher": teachers}, tmp_path)
    assert len({run.name for run in runs}) == 2
    assert all(len(run.name) == 200 and run.name.startswith("seed-0_heads_rows.teacher-") for run in runs)


def test_the_hub_stays_the_hub_beside_a_folder_of_that_name(base, tmp_path, monkeypatch):
    (tmp_path / "hub").mkdir()
    monkeypatch.chdir(tmp_path)
    config = load_config(RunConfig, base)
    for data, whole in (("hub", "hub"), ("./hub", str(tmp_path / "hub"))):
        named = config.model_copy(update={"model": "org/bert", "geometry": None, "data": data})
        assert with_whole_paths(named).data == whole


def test_what_a_config_needs_may_be_varied_alone(tiny, tmp_path):
    path = tmp_path / "no_model.yaml"
    path.write_text(json.dumps({k: v for k, v in tiny.settings.items() if k not in ("model", "task")}))
    axes = read_axes(path, [], None, None, ["model=/a,/b", "task=demo,rte"])
    assert axes["seed"] == [0]
    assert {(run.config.model, run.config.task) for run in expand(path, ["dense.enabled=false"], axes, tmp_path)} == {
        (model, task) for model in ("/a", "/b") for task in ("demo", "rte")
    }
    common = common_settings(path, ["task=mrpc"], axes)
    assert (common.model, common.task) == ("/a", "mrpc")
    with pytest.raises(ConfigError, match="task: is required"):
        read_axes(path, [], None, None, ["model=/a,/b"])


def test_values_are_yaml():
    assert read_values("0.5,1e-3, 16x16,[0.0, 0.6],null", "--vary") == [0.5, 1e-3, "16x16", [0.0, 0.6], None]
    for text in ("", "[", "a: b: c"):
        with pytest.raises(ConfigError, match="--seeds"):
            read_values(text, "--seeds")


def test_axes_of_a_command_line(base):
    assert read_axes(base, ["seed=7"], None, None, []) == {"prune.density": [0.4], "seed": [7]}
    assert read_axes(base, [], "0.5", "0,1", ["prune.blocks.shape=8x8"]) == {
        "prune.density": [0.5],
        "seed": [0, 1],
        "prune.blocks.shape": ["8x8"],
    }
    assert list(read_axes(base, [], None, None, ["prune={density: 0.3},{density: 0.2}"])) == ["seed", "prune"]
    for place in ("seed", " seed "):
        with pytest.raises(ConfigError, match="seed is varied twice"):
            read_axes(base, [], None, "0", [f"{place}=1"])
    with pytest.raises(ConfigError, match=r"prune\.density is varied twice"):
        read_axes(base, [], "0.5", None, ["prune. density=0.4"])
    with pytest.raises(ConfigError, match="cannot read --vary"):
        read_axes(base, [], None, None, ["seed"])


@pytest.mark.slow
def test_a_shared_dense_stage_gives_the_weights_of_a_whole_run(tiny, tmp_path):
    """Step 1 starts from the dense model and step 2 from the pretrained one, so that both are seen to be the same."""
    stage = tiny.settings["dense"]
    prune = {
        "density": 0.4,
        "heads_rows": {**stage, "recover": 0.5},
        "blocks": {**stage, "shape": "8x8", "recover": 0.0, "start_from": "pretrained"},
    }
    # Found by review: variants came from the embeddings of the starting model, which is another one then.
    config = tiny.config(prune=prune, distillation={"recovery": "logits", "variants": 1})
    pipeline.run(config, tmp_path / "whole", quiet=True)
    pipeline.run(dense_alone(config), tmp_path / "dense", quiet=True)
    pipeline.run(after_dense(config, tmp_path / "dense"), tmp_path / "shared", quiet=True)
    for file in ("stages/heads_rows/model", "stages/blocks/model", "final/model", "final/masks"):
        whole, shared = ((tmp_path / run / f"{file}.safetensors").read_bytes() for run in ("whole", "shared"))
        assert whole == shared, file
