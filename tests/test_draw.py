"""Pictures of results: what `benchmarks/draw.py` reads, and that nothing of it is out of sight."""

import importlib.util
import json
from pathlib import Path

import pytest

figure = pytest.importorskip("matplotlib.figure", reason="of the extra report")


@pytest.fixture
def draw(tmp_path, monkeypatch):
    """The program, with no results yet."""
    spec = importlib.util.spec_from_file_location("draw", Path(__file__).parents[1] / "benchmarks" / "draw.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "RESULTS", tmp_path)
    return module


@pytest.mark.parametrize("metric", ["accuracy", "f1", "mcc", "pearson"])
def test_a_score_in_points(draw, metric):
    assert draw.score({metric: 0.5, "loss": 1.0, "examples": 4}) == 50


def test_a_score_of_nothing_known_says_so(draw):
    with pytest.raises(SystemExit, match=r"none of accuracy, .* among loss, examples"):
        draw.score({"loss": 1.0, "examples": 4})


@pytest.mark.parametrize("final", [0.75, 1.0])
def test_a_model_above_its_dense_original_is_in_sight(draw, tmp_path, final):
    stages = {name: {"mcc": mcc, "density": {"encoder": mcc}} for name, mcc in (("dense", 0.875), ("blocks", final))}
    (tmp_path / "minilm_a_seed0.json").write_text(json.dumps({"stages": stages}))
    row = {"variant": "packed", "speedup_within_rounds": 2.0, "batch": 1, "length": 8}
    (tmp_path / "bench_minilm_a_seed0.json").write_text(json.dumps({"rows": [row]}))
    axes = figure.Figure().subplots()
    draw.draw_speed(axes)
    low, lost = axes.get_ylim()[0], 100 * (0.875 - final)
    assert low < lost if lost < 0 else low == 0
