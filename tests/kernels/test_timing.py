"""The timing helper: order of calls, percentiles and ratios, with a clock that the test turns."""

import jax.numpy as jnp
import pytest

from pallas_kernels import timing
from pallas_kernels.errors import KernelError


@pytest.fixture
def clock(monkeypatch):
    """A list holding the time; what a call adds to it is how long the call took."""
    now = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    return now


def test_calls_are_warmed_up_and_interleaved():
    order = []

    def call(name):
        order.append(name)
        return {"y": jnp.ones(2), "others": (jnp.zeros(1),)}

    found = timing.measure_interleaved({n: lambda n=n: call(n) for n in "AB"}, rounds=3, warmups=2)
    assert "".join(order) == "AABB" + "ABABAB"
    assert list(found) == ["A", "B"]
    assert all(len(t.seconds) == 3 and min(t.seconds) > 0 for t in found.values())


def test_repeats_are_averaged(clock):
    durations = iter([1.0, 3.0, 5.0, 7.0])

    def call():
        clock[0] += next(durations)
        return jnp.ones(1)

    found = timing.measure_interleaved({"A": call}, rounds=2, repeats=2, warmups=0)
    assert found["A"].seconds == (2.0, 6.0)


def test_percentiles():
    found = timing.summarize([float(i) for i in range(10, 0, -1)])
    assert (found.p50, found.p90, found.seconds[0]) == (5.5, 9.0, 10.0)
    assert timing.summarize([3.0]) == (3.0, 3.0, (3.0,))


def test_ratio_is_of_neighbours():
    # The machine is three times slower in the second round: the ratio of neighbours does not see it.
    assert timing.ratio(timing.summarize([2.0, 6.0, 2.0]), timing.summarize([1.0, 3.0, 1.0])) == 2.0


def test_bad_input():
    with pytest.raises(KernelError, match="rounds=0"):
        timing.measure_interleaved({}, rounds=0)
    with pytest.raises(KernelError, match="no measurement"):
        timing.summarize([])
    with pytest.raises(KernelError, match="1 and 2 rounds"):
        timing.ratio(timing.summarize([1.0]), timing.summarize([1.0, 2.0]))
