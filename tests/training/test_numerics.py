"""Numbers that leave the finite range: skipped without a trace in the weights, counted, and in the end a stop."""

import jax
import numpy as np
import pytest

from mlprune_jax.config.settings import TrainSettings
from mlprune_jax.errors import NumericalError
from mlprune_jax.models.tasks import TaskModel, init_params
from mlprune_jax.training.checkpoint import Checkpoints
from mlprune_jax.training.keeper import Keeper
from mlprune_jax.training.loop import MAX_SKIPPED, fit
from mlprune_jax.training.mesh import Layout
from mlprune_jax.training.optimizer import plain_optimizer
from mlprune_jax.training.speed import Meter
from mlprune_jax.training.state import Fixed, init_state
from mlprune_jax.training.step import make_train_step
from tests.training.tiny import CONFIG

MODEL = TaskModel(CONFIG, "regression", 1)
OPTIMIZER = plain_optimizer(TrainSettings(learning_rate=1e-3), 40)
STEP = make_train_step(MODEL, OPTIMIZER)
STEPS = 20


class Watching(Keeper):
    """Remembers what the loop changed at each step."""

    def __init__(self, checkpoints):
        super().__init__(checkpoints, steps=5, minutes=1e9)
        self.seen = []

    def after(self, number, state):
        self.seen.append(jax.device_get((state.trained, state.opt_state)))
        super().after(number, state)


def batches(broken):
    """Batches whose targets are NaN in the ``broken`` steps."""
    for step in range(1, STEPS + 1):
        rng = np.random.default_rng(step)
        ids = rng.integers(1, 40, (4, 8)).astype(np.int32)
        labels = np.full(4, np.nan, np.float32) if step in broken else rng.normal(size=4).astype(np.float32)
        yield {
            "input_ids": ids,
            "attention_mask": np.ones_like(ids),
            "token_type_ids": np.zeros_like(ids),
            "labels": labels,
        }


def train(folder, broken):
    keeper, logged = Watching(Checkpoints(folder, identity={}, keep=2)), []
    state = init_state({"params": init_params(MODEL, 0)}, OPTIMIZER)

    def run():
        return fit(
            STEP,
            state,
            Fixed({}),
            batches(broken),
            steps=STEPS,
            seed=0,
            log=lambda number, values: logged.append((number, values)),
            log_every=1,
            keeper=keeper,
            layout=Layout(),
            meter=Meter(),
        )

    return run, keeper, logged


@pytest.mark.parametrize("seed", range(3))
def test_one_bad_step_anywhere_leaves_no_trace(tmp_path, seed, caplog):
    bad = int(np.random.default_rng(seed).integers(2, STEPS))
    run, keeper, logged = train(tmp_path, {bad})
    state = run()
    before, after = keeper.seen[bad - 2], keeper.seen[bad - 1]
    for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(a, b)
    assert [number for number, values in logged if values["skipped"]] == [bad]
    assert (int(state.skipped), int(state.skipped_in_all), int(state.step)) == (0, 1, STEPS)
    assert f"step {bad}: loss or gradient not finite" in caplog.text
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(state.trained)))


def test_a_gradient_that_is_not_finite_is_left_out_though_the_loss_is():
    """The squares of the errors are in float32's range, the square of the gradient's norm is not."""
    given = next(batches(set())) | {"labels": np.full(4, 9.2e18, np.float32)}
    state, layout = init_state({"params": init_params(MODEL, 0)}, OPTIMIZER), Layout()
    before = jax.device_get(state)
    after, metrics = jax.device_get(STEP(state, Fixed({}), layout.batch(given), layout.key(0)))
    assert np.isfinite(metrics["loss"])
    assert not np.isfinite(metrics["grad_norm"])
    assert (after.skipped, after.skipped_in_all, after.step) == (1, 1, 1)
    jax.tree.map(np.testing.assert_array_equal, (after.trained, after.opt_state), (before.trained, before.opt_state))


def test_many_in_a_row_end_the_run_and_say_what_is_left(tmp_path):
    first = 7
    run, _, logged = train(tmp_path, set(range(first, STEPS + 1)))
    with pytest.raises(NumericalError) as caught:
        run()
    last = first + MAX_SKIPPED - 1
    assert caught.value.exit_code == 5
    assert f"up to step {last}" in caught.value.message
    assert logged[-1][0] == last, "the metrics are written before the run ends"
    assert "00000015" in (caught.value.hint or "")
    with np.load(tmp_path / f"batch-{last:08d}.npz") as stored:
        assert np.isnan(stored["labels"]).all()
        assert stored["input_ids"].shape == (4, 8)
