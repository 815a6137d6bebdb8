"""What can be said of a schedule before anything is trained."""

import pytest

from mlprune_jax.errors import ConfigError
from mlprune_jax.pipeline.feasible import check_schedules
from tests.pipeline.conftest import GEOMETRY


@pytest.mark.parametrize("start", [None, "pretrained"])
def test_blocks_are_to_go_from_what_heads_and_rows_leave(tiny, start):
    """From a half to 0.4 is a way of a fifth, which 10 steps of 0.9 go; from everything to 0.4 they do not arrive."""
    settings = tiny.settings["prune"]
    slow = {"densities": "learned", "threshold_learning_rate": 0.9, "short_schedule": "refuse", "start_from": start}
    heads_rows = {**settings["heads_rows"], "density": 0.5, "short_schedule": "allow"}
    prune = tiny.config(
        prune={**settings, "density": 0.4, "heads_rows": heads_rows, "blocks": {**settings["blocks"], **slow}}
    ).prune
    students, steps = dict.fromkeys(("heads_rows", "blocks"), GEOMETRY), dict.fromkeys(("heads_rows", "blocks"), 10)
    if start is None:
        check_schedules(prune, students, steps)
    else:
        with pytest.raises(ConfigError, match=r"must fall by 5\.\d for density 0\.4, but 10 steps"):
            check_schedules(prune, students, steps)
