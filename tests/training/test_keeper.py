"""When a state is saved, and that a signal is a request to stop."""

import itertools
import os
import signal
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlprune_jax.errors import Preempted
from mlprune_jax.manifest import write_manifest
from mlprune_jax.training.checkpoint import Checkpoints
from mlprune_jax.training.interrupt import StopRequest
from mlprune_jax.training.keeper import Keeper
from mlprune_jax.training.loop import fit
from mlprune_jax.training.mesh import Layout
from mlprune_jax.training.speed import Meter
from mlprune_jax.training.state import Fixed, TrainState

STATE = TrainState(*[np.zeros((), np.int32)] * 3, {}, ())


class Recorder(Checkpoints):
    """Checkpoints that only remember what they were asked."""

    def __init__(self):
        self.newest, self.best, self.calls = None, None, []

    def save(self, step, tree, metric=None):
        self.newest = step
        self.calls.append(step)

    def wait(self):
        self.calls.append("wait")

    def close(self):
        pass


def kept(**options):
    recorder = Recorder()
    return recorder, Keeper(recorder, **{"steps": None, "minutes": 1e9, **options})


def test_every_so_many_steps_and_at_the_end():
    recorder, keeper = kept(steps=3)
    for number in range(1, 8):
        keeper.after(number, STATE)
    keeper.finish(7, STATE)
    assert recorder.calls == [3, 6, 7, "wait"]


def test_every_so_many_minutes(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    recorder, keeper = kept(minutes=2.0)
    for number in range(1, 10):
        now[0] += 50
        keeper.after(number, STATE)
    assert recorder.calls == [3, 6, 9]


def test_nothing_is_saved_twice():
    recorder, keeper = kept(steps=2)
    keeper.after(2, STATE)
    keeper.finish(2, STATE)
    assert recorder.calls == [2, "wait"]


def test_asked_to_stop_it_saves_first():
    recorder, keeper = kept(stopping=lambda: True)
    with pytest.raises(Preempted, match="after step 4"):
        keeper.after(4, STATE)
    assert recorder.calls == [4, "wait"]


@jax.jit
def count_step(state, fixed, batch, key):
    return state._replace(step=state.step + 1), {"skipped": state.skipped, "drawn": jax.random.uniform(key)}


def train(keeper, log, *, steps, log_every, seed=0):
    """`fit` over a step that only counts, and tells what it draws."""
    state = TrainState(*[jnp.int32(0)] * 3, {}, ())
    batches = [{"input_ids": np.zeros((1, 1), np.int32)}] * steps
    more = {"seed": seed, "log": log, "log_every": log_every, "keeper": keeper, "layout": Layout(), "meter": Meter()}
    return fit(count_step, state, Fixed({}), batches, steps=steps, **more)


def test_what_a_step_draws_follows_the_seed():
    def drawn(seed):
        logged = []
        train(kept()[1], lambda _, values: logged.append(values["drawn"]), steps=1, log_every=1, seed=seed)
        return logged

    assert drawn(0) == drawn(0) != drawn(1)


@pytest.mark.parametrize("at", [2, 3, 4, 5])
def test_what_is_due_is_logged_before_a_stop(at):
    """After the last step too, as the training that goes on takes none. Found by review."""
    logged, asked = [], itertools.count(1)
    _, keeper = kept(stopping=lambda: next(asked) == at)
    with pytest.raises(Preempted):
        train(keeper, lambda number, values: logged.append(number), steps=5, log_every=3)
    assert logged == [number for number in (3, 5) if number <= at]


def test_the_host_is_few_steps_ahead_of_the_device(monkeypatch):
    """Found by a stop that took two minutes: all steps up to the next line of the log were queued."""
    waits, after = [], []
    monkeypatch.setattr("jax.block_until_ready", waits.append)

    class Counting(Keeper):
        def after(self, number, state):
            after.append((number, len(waits)))

    train(Counting(Recorder(), steps=None, minutes=1e9), lambda *_: None, steps=6, log_every=100)
    assert after == [(1, 0), (2, 0), (3, 1), (4, 2), (5, 3), (6, 4)]


def test_a_training_that_fails_leaves_no_save_under_way(tmp_path, monkeypatch):
    """Or the next one in this process would find files that are still being written."""
    started = threading.Event()

    def slowly(folder, **facts):
        started.set()
        time.sleep(0.5)
        write_manifest(folder, **facts)

    def log(number, values):
        assert started.wait(20)
        raise ZeroDivisionError

    monkeypatch.setattr("mlprune_jax.training.checkpoint.write_manifest", slowly)
    keeper = Keeper(Checkpoints(tmp_path, identity={}, keep=2), steps=1, minutes=1e9)
    with pytest.raises(ZeroDivisionError):
        train(keeper, log, steps=2, log_every=2)
    assert [path.name for path in tmp_path.iterdir()] == ["00000001"]


def test_what_is_measured_is_saved_and_the_best_comes_back(tmp_path):
    scores = {2: 0.25, 4: 0.75, 6: 0.5}
    keeper = Keeper(
        Checkpoints(tmp_path, identity={}, keep=1),
        steps=None,
        minutes=1e9,
        evaluate=lambda number, state: scores.get(number),
    )
    for number in range(1, 7):
        state = STATE._replace(step=np.asarray(number, np.int32))
        keeper.after(number, state)
    keeper.finish(6, state)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000004", "00000006"]
    assert int(keeper.best(state).step) == 4
    keeper.close()


def test_nothing_measured_gives_the_last_state(tmp_path):
    keeper = Keeper(Checkpoints(tmp_path, identity={}, keep=1), steps=None, minutes=1e9)
    assert keeper.best(STATE) is STATE
    assert keeper.newest() == "no checkpoint yet"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_a_request(number):
    before = signal.getsignal(number)
    with StopRequest() as stopping:
        assert not stopping()
        os.kill(os.getpid(), number)
        assert stopping()
    assert signal.getsignal(number) is before


def test_a_request_within_another_passes_on_what_it_was_asked():
    with StopRequest() as outer:
        with StopRequest():
            pass
        assert not outer()
        with StopRequest():
            os.kill(os.getpid(), signal.SIGTERM)
        assert outer()


def test_a_second_signal_ends_the_process():
    program = """if True:
        import os, signal, time
        from mlprune_jax.training.interrupt import StopRequest
        with StopRequest():
            os.kill(os.getpid(), signal.SIGINT)
            print("still here", flush=True)
            os.kill(os.getpid(), signal.SIGTERM)
            print("too late", flush=True)
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, "still here\n")


def test_in_another_thread_nothing_is_caught():
    before, seen = signal.getsignal(signal.SIGTERM), []

    def work():
        with StopRequest() as stopping:
            seen.append((stopping(), signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(False, before)]
