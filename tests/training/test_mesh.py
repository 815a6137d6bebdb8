"""Where arrays lie: what is split, what is copied, and what cannot be split."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from mlprune_jax.errors import ConfigError
from mlprune_jax.training.mesh import Layout

FOUR_DEVICES = """if True:
    import json, sys
    from pathlib import Path
    import jax, numpy as np
    from mlprune_jax.errors import ConfigError
    from mlprune_jax.training.checkpoint import Checkpoints
    from mlprune_jax.training.mesh import Layout
    folder = Path(sys.argv[1])
    tree = {"big": np.arange(2.0 * 2**14, dtype=np.float32).reshape(2, -1), "small": np.ones(4, np.float32)}
    layout = Layout(fsdp=2)
    placed = layout.place(tree)
    split = Checkpoints(folder / "split", identity={}, keep=1)
    split.save(1, placed)
    split.wait()
    like = layout.place({"w": np.zeros((2, 2**14), np.float32)})
    whole = Checkpoints(folder / "whole", identity={}, keep=1).restore(like)
    turned = Layout(devices=jax.devices()[::-1])
    batch = turned.batch({"input_ids": np.arange(8).reshape(8, 1)})
    layout.check_rows(8, "a batch")
    try:
        layout.check_rows(6, "a batch")
    except ConfigError as error:
        refused = str(error)
    parts = lambda leaf: [shard.data.shape for shard in leaf.addressable_shards]
    print(json.dumps({
        "devices": jax.device_count(),
        "refused": refused,
        "big": parts(placed["big"]),
        "small": parts(placed["small"]),
        "back": bool((layout.to_host(placed)["big"] == tree["big"]).all()),
        "restored": parts(whole["w"]),
        "sum": float(np.asarray(whole["w"]).sum()),
        "rows": [shard.data.tolist() for shard in batch["input_ids"].addressable_shards],
    }))
"""


def test_one_device_holds_everything():
    layout = Layout()
    tree = {"w": np.zeros((4, 2**14), np.float32)}
    assert layout.shardings(tree)["w"].spec == PartitionSpec()
    assert layout.place(tree)["w"].shape == (4, 2**14)
    layout.check_rows(3, "a batch")


def test_fsdp_must_divide_the_devices():
    with pytest.raises(ConfigError, match="fsdp 3 does not divide"):
        Layout(fsdp=3)


def test_on_four_devices_and_back(tmp_path):
    """Parameters are split over ``fsdp``, rows over all; a checkpoint of four devices is read on one, and back."""
    from mlprune_jax.training.checkpoint import Checkpoints

    written = Checkpoints(tmp_path / "whole", identity={}, keep=1)
    written.save(1, {"w": jax.device_put(np.ones((2, 2**14), np.float32))})
    written.wait()
    environment = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", FOUR_DEVICES, str(tmp_path)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["devices"] == 4
    assert told["refused"].startswith("a batch of 6 rows cannot be split over 4 devices")
    assert told["big"] == [[2, 2**13]] * 4
    assert told["small"] == [[4]] * 4
    assert told["back"]
    assert told["restored"] == [[2, 2**13]] * 4
    assert told["sum"] == 2.0 * 2**14
    assert told["rows"] == [[[0], [1]], [[2], [3]], [[4], [5]], [[6], [7]]]
    like = {"big": jax.ShapeDtypeStruct((2, 2**14), np.float32), "small": jax.ShapeDtypeStruct((4,), np.float32)}
    whole = Checkpoints(tmp_path / "split", identity={}, keep=1).restore(like)
    np.testing.assert_array_equal(whole["big"], np.arange(2.0 * 2**14, dtype=np.float32).reshape(2, -1))
