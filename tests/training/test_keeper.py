"""When a state is saved, and that a signal is a request to stop."""

import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest

from mlprune_jax.errors import Preempted
from mlprune_jax.training.checkpoint import Checkpoints
from mlprune_jax.training.interrupt import StopRequest
from mlprune_jax.training.keeper import Keeper
from mlprune_jax.training.state import TrainState

STATE = TrainState(np.zeros((), np.int32), np.zeros((), np.int32), {}, ())


class Recorder(Checkpoints):
    """Checkpoints that only remember what they were asked."""

    def __init__(self):
        self.newest, self.calls = None, []

    def save(self, step, tree):
        self.newest = step
        self.calls.append(step)

    def wait(self):
        self.calls.append("wait")


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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_a_request(number):
    before = signal.getsignal(number)
    with StopRequest() as stopping:
        assert not stopping()
        os.kill(os.getpid(), number)
        assert stopping()
    assert signal.getsignal(number) is before


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
