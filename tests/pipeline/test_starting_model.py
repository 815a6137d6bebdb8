"""A run starts from a model that other software fine-tuned, as it was meant there."""

import shutil
import sys

import numpy as np
import pytest

from mlprune_jax import pipeline
from mlprune_jax.data.demo import DEMO
from mlprune_jax.inference.service import load
from mlprune_jax.inference.stored import save_masks
from mlprune_jax.models.pretrained import load_pretrained, save_pretrained
from mlprune_jax.pipeline.evaluation import evaluate_folder
from mlprune_jax.pipeline.given import load_given
from tests.pipeline.conftest import GEOMETRY
from tests.pipeline.test_bad_input import write_headless


def test_its_classes_are_matched_by_name(tiny, tmp_path, monkeypatch):
    """Found by review: an MNLI model of other software had its classes renamed, and none of them moved."""
    loaded = load_pretrained(tiny.model, num_labels=2, kind="classification")
    other = shutil.copytree(tiny.model, tmp_path / "other")
    save_pretrained(other, loaded.config, loaded.params, kind="classification", labels=("1", "0"))

    class SeenError(Exception):
        pass

    def stop(context, student, teacher):
        raise SeenError(student.params["head"], teacher.params["head"])

    monkeypatch.setattr(sys.modules["mlprune_jax.pipeline.run"], "head_row_stage", stop)
    with pytest.raises(SeenError) as seen:
        pipeline.run(tiny.config(model=str(other), dense={"enabled": False}), tmp_path / "run", quiet=True)
    for head in seen.value.args:
        np.testing.assert_array_equal(head["kernel"], loaded.params["head"]["kernel"][:, ::-1])


def test_a_run_is_evaluated_and_goes_on_from_any_folder(tiny, tmp_path, monkeypatch):
    """Found by review: "--data glue/SST-2" was stored so, and taken for a data set on the hub elsewhere."""
    for name in ("model", "data"):
        shutil.copytree(getattr(tiny, name), tmp_path / name)
    prune = {"density": 1.0, "heads_rows": {"enabled": False}, "blocks": {"enabled": False}}
    monkeypatch.chdir(tmp_path)
    pipeline.run(tiny.config(model="model", data="data", prune=prune), tmp_path / "run", quiet=True)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert evaluate_folder(tmp_path / "run")["data"] == str(tmp_path / "data")
    (tmp_path / "run" / "summary.json").unlink()
    assert pipeline.resume(tmp_path / "run", quiet=True)["model"] == str(tmp_path / "model")


def test_fishers_order_of_an_untrained_head_is_said_to_say_little(tiny, tmp_path, caplog):
    write_headless(tmp_path / "headless", tiny)
    stage = {**tiny.settings["prune"]["heads_rows"], "start_from": "pretrained"}
    for init, told in (("fisher", True), ("constant", False)):
        prune = {"density": 0.5, "heads_rows": {**stage, "score_init": init}, "blocks": {"enabled": False}}
        pipeline.plan(tiny.config(model=str(tmp_path / "headless"), prune=prune), tmp_path / "run")
        assert ("Fisher's order says little" in caplog.text) == told
        caplog.clear()


def test_a_head_that_is_missing_is_drawn_from_the_runs_seed(tiny, tmp_path):
    """That of the starting model, and that of a model which a stage starts from."""
    base = tmp_path / "headless"
    write_headless(base, tiny)
    stage = {**tiny.settings["prune"]["blocks"], "start_from": str(base)}

    def heads(seed):
        config = tiny.config(model=str(base), seed=seed, prune={**tiny.settings["prune"], "blocks": stage})
        given = load_given(config, base, DEMO, 2)
        assert given.start.fresh_head
        return [model.params["head"]["kernel"] for model in (given.start.model, given.named[str(base)])]

    for one, again, other in zip(heads(1), heads(1), heads(0), strict=True):
        np.testing.assert_array_equal(one, again)
        assert not np.any(one == other)


def test_pruned_tiles_of_a_starting_model_are_not_lost_unsaid(tiny, tmp_path, caplog):
    """Found by review: a model of density 0.30 was fine-tuned into one of 0.50, and nothing told."""
    pruned = shutil.copytree(tiny.model, tmp_path / "pruned")
    pipeline.plan(tiny.config(model=str(pruned)))
    assert "grow back" not in caplog.text
    save_masks(pruned, {"encoder": {"mask": np.zeros(2, bool)}})
    pipeline.plan(tiny.config(model=str(pruned)))
    assert "pruned has pruned tiles: training lets them grow back" in caplog.text
    caplog.clear()
    stage = {**tiny.settings["prune"]["heads_rows"], "start_from": str(pruned)}
    pipeline.plan(tiny.config(prune={**tiny.settings["prune"], "heads_rows": stage}))
    assert "pruned has pruned tiles" in caplog.text


def test_a_fresh_one_is_trained_and_serves(tiny, tmp_path):
    """Found by CI: `make demo` alone starts from a folder that holds a tokenizer and no model."""
    fresh = dict(model="demo", data="demo", geometry=GEOMETRY.model_dump(exclude={"layers", "vocab_size"}))
    prune = {"density": 1.0, "heads_rows": {"enabled": False}, "blocks": {"enabled": False}}
    dense = {**tiny.settings["dense"], "epochs": 0.004}
    pipeline.run(tiny.config(**fresh, dense=dense, prune=prune), tmp_path / "run", quiet=True)
    assert load(tmp_path / "run").compile(batch_sizes=[1])(["the film is good"])
