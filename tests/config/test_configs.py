"""The recipes in configs/: each validates, fits on a page, and starts with its claim."""

from pathlib import Path

import pytest

from mlprune_jax.config.loading import dump_config, load_config
from mlprune_jax.config.settings import PruneStage, RunConfig

FOLDER = Path(__file__).parents[2] / "configs"
RECIPES = sorted(FOLDER.glob("*.yaml"))


def test_there_are_recipes():
    assert {"demo", "published"} <= {path.stem for path in RECIPES}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_validates_and_survives_its_own_dump(path, tmp_path):
    config = load_config(RunConfig, path)
    (tmp_path / "again.yaml").write_text(dump_config(config), encoding="utf-8")
    assert load_config(RunConfig, tmp_path / "again.yaml") == config


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_short_and_its_header_is_a_claim(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    header = lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))]
    assert len(lines) <= 25
    assert all(len(line) <= 120 for line in lines)
    assert len(header) >= 2, "what it is, then the command"
    claim = " ".join(header).lower()
    assert "command: " in claim
    assert "score" in claim
    assert "time" in claim


def test_published_differs_from_the_defaults_as_published():
    config = load_config(RunConfig, FOLDER / "published.yaml")
    for stage in (config.prune.heads_rows, config.prune.blocks):
        assert (stage.threshold_start, stage.threshold_learning_rate, stage.score_learning_rate) == (10, 1e-2, 1e-2)
        assert (stage.max_strength, stage.min_strength, stage.weak_strength, stage.weak_below) == (20000, 50, 10, 3e-4)
        assert (stage.ramp, stage.recover, stage.steer_by_count, stage.final_cut) == (None, 0, False, False)
    assert config.prune.heads_rows.start_from == "pretrained"
    assert (config.task, config.distillation.average, config.prune.blocks.shape) == ("qqp", "all", (16, 16))


def test_densities_by_threshold_have_the_published_scores_and_penalty():
    soft, learned = PruneStage(), PruneStage(densities="learned")
    names = ("score_init", "score_scale", "two_sided", "max_strength", "clip")
    assert soft.densities == "soft"
    assert [getattr(soft, name) for name in names] == ["fisher", 0.3, True, 2000, "weights"]
    assert [getattr(learned, name) for name in names] == ["constant", 0, False, 20000, "all"]
    assert PruneStage(densities="equal", clip="weights").clip == "weights"
    assert PruneStage.model_validate(soft.model_dump()) == soft


def test_a_complete_config_that_changes_densities_alone_mixes_methods():
    """Found by review: `config show` names every default, so that one word no longer brings the others along."""
    complete = PruneStage().model_dump()
    assert PruneStage.model_validate(complete | {"densities": "learned"}).mixes_methods
    assert not PruneStage.model_validate(complete).mixes_methods
    assert not PruneStage(densities="learned").mixes_methods
    assert not PruneStage.model_validate(complete | {"densities": "learned", "clip": "all"}).mixes_methods
