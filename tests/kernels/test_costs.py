"""Dispatch by measured cost: interpolation, the rule without measurements, and tables that are damaged or foreign."""

import json
from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import KernelError, block_sparse_matmul, choose, choose_for, device, load_table
from pallas_kernels.block_sparse_matmul import costs, implementations, workloads
from pallas_kernels.block_sparse_matmul.costs import CostTable, Entry, find_table, save_table, user_table_path
from pallas_kernels.block_sparse_matmul.implementations import runnable
from pallas_kernels.device import hardware_name

SQUARE, TALL = (512, 512), (2048, 512)


def entry(ratio, density, tokens, shape=SQUARE, implementation="xla", dtype="float32", block_shape=(32, 32)):
    """A cell in which the implementation is `ratio` times as fast as dense."""
    return Entry(dtype, shape, block_shape, density, tokens, {"dense": 1e-3 * ratio, implementation: 1e-3})


TABLE = CostTable(
    "Test CPU, 2 cores",
    {"date": "2026-01-01"},
    (
        entry(4.0, 0.1, 128),
        entry(1.0, 0.3, 128),
        entry(16.0, 0.1, 2048),
        entry(1.0, 0.3, 2048),
        entry(9.0, 0.1, 128, TALL),
        entry(0.5, 0.1, 128, block_shape=(16, 16)),
    ),
)


def chosen(shape=SQUARE, block_shape=(32, 32), density=0.1, tokens=128, dtype="float32", table=TABLE, **options):
    return choose(
        shape, block_shape, density, tokens, dtype, **{"table": table, "device_kind": TABLE.hardware, **options}
    )


@pytest.mark.parametrize(
    ("facts", "ratio"),
    [
        ({}, 4.0),
        ({"density": 0.2}, 2.0),  # halfway between 4 and 1, in logarithms
        ({"tokens": 512}, 8.0),  # halfway between 4 and 16
        ({"density": 0.2, "tokens": 512}, 8**0.5),
        ({"density": 0.05}, 4.0),  # fewer blocks than were measured gain no less
        ({"tokens": 100_000}, 16.0),
        ({"shape": (1024, 512)}, 6.0),  # halfway between the two matrices
        ({"shape": TALL}, 9.0),
    ],
    ids=str,
)
def test_ratio_is_interpolated(facts, ratio):
    found = chosen(**facts)
    assert found.ratio == pytest.approx(ratio)
    assert found.implementation == "xla"


def test_the_nearer_of_two_matrices_counts_more():
    """At 640, 512 is a quarter less and 1000 twice a quarter more: weights of 2 and 1 on the ratios' logarithms."""
    both = replace(TABLE, entries=(entry(8.0, 0.1, 128), entry(27.0, 0.1, 128, (1000, 512))))
    assert chosen(table=both, shape=(640, 512)).ratio == pytest.approx(4.0 * 3.0)


@pytest.mark.parametrize(
    "facts",
    [
        {"density": 0.3},  # as fast as dense
        {"density": 0.28},  # 1.15 times as fast: less than the margin
        {"density": 0.9},  # beyond what was measured
        {"block_shape": (16, 16)},  # slower than dense
        {"allowed": ()},
        {"allowed": ("mosaic_gpu",)},
    ],
    ids=str,
)
def test_dense_where_the_gain_is_not_sure(facts):
    assert chosen(**facts).implementation == "dense"


def test_beyond_what_was_measured_a_product_must_gain_more():
    both = replace(TABLE, entries=(entry(1.25, 0.1, 128), entry(1.25, 0.1, 128, TALL)))
    shapes = SQUARE, (1024, 512), (1024, 600), (512, 500), (500, 512)
    found = [chosen(table=both, shape=shape) for shape in shapes]
    assert [choice.ratio for choice in found] == pytest.approx([1.25] * 5)
    assert [choice.implementation for choice in found] == ["xla", "xla", "xla", "dense", "dense"]
    assert [chosen(table=both, tokens=n).implementation for n in (128, 129)] == ["xla", "dense"]


def test_more_blocks_never_gain_more():
    table = replace(TABLE, entries=(entry(2.0, 0.1, 128), entry(1.2, 0.2, 128), entry(3.0, 0.3, 128)))
    assert [chosen(table=table, density=d).ratio for d in (0.1, 0.2, 0.3)] == pytest.approx([2.0, 1.2, 1.2])


def test_reason_is_one_line_for_people():
    assert chosen(density=0.2).reason == "measured: xla 2.00x dense at 512x512 32x32 density 0.20, 128 tokens, float32"
    assert chosen(tokens=3).reason.startswith("no measurement")


def test_fastest_of_several_wins():
    entries = (*TABLE.entries, entry(5.0, 0.1, 128, implementation="triton"))
    assert chosen(table=replace(TABLE, entries=entries)).implementation == "triton"
    assert chosen(table=replace(TABLE, entries=entries), allowed=("xla",)).implementation == "xla"


@pytest.mark.parametrize(
    "facts",
    [
        {"device_kind": "Other CPU", "table": None},
        {"dtype": "bfloat16"},
        {"shape": (128, 512)},
        {"tokens": 63},
        {"block_shape": (64, 64)},
    ],
    ids=str,
)
def test_what_was_not_measured_goes_by_the_rule(facts):
    found = chosen(**{"density": 0.2} | facts)
    assert (found.implementation, found.ratio) == ("dense", None)
    assert "no measurement" in found.reason


RULE = [
    # platform, block side, density, tokens, dtype, size, picked
    ("gpu", 64, 0.05, 4096, "bfloat16", 768, "dense"),  # no GPU has a table in the package
    ("gpu", 64, 0.05, 4096, "float32", 768, "dense"),
    ("cpu", 32, 0.10, 8, "float32", 768, "xla"),
    ("cpu", 32, 0.10, 7, "float32", 768, "dense"),
    ("cpu", 32, 0.11, 4096, "float32", 768, "dense"),
    ("cpu", 16, 0.05, 4096, "float32", 768, "dense"),
    ("cpu", 64, 0.05, 4096, "bfloat16", 768, "dense"),
    ("cpu", 64, 0.05, 4096, "float32", 256, "dense"),
    ("tpu", 64, 0.05, 4096, "bfloat16", 768, "dense"),
]


@pytest.mark.parametrize(("platform", "side", "density", "tokens", "dtype", "size", "picked"), RULE)
def test_rule_without_measurements(platform, side, density, tokens, dtype, size, picked):
    found = choose((size, size), (side, side), density, tokens, dtype, device_kind="unheard of", platform=platform)
    assert found.implementation == picked


@pytest.mark.parametrize(
    ("capability", "loads", "found"),
    [
        ((8, 0), True, {"triton", "xla"}),
        ((9, 0), True, {"mosaic_gpu", "triton", "xla"}),
        ((9, 0), False, {"mosaic_gpu", "xla"}),
        ((10, 0), True, {"triton", "xla"}),  # Blackwell has no wgmma
        ((12, 0), False, {"xla"}),
    ],
)
def test_what_a_gpu_can_run(monkeypatch, capability, loads, found):
    """A jax-triton that is installed and does not fit is as good as none."""

    def load():
        if not loads:
            raise KernelError("does not fit")

    monkeypatch.setattr(implementations, "compute_capability", lambda: capability)
    monkeypatch.setattr(implementations, "load", load)
    monkeypatch.setattr(implementations, "_triton_loads", implementations._triton_loads.__wrapped__)  # not cached
    w = workloads.make_matrix((64, 64), (32, 32), 0.75, jnp.bfloat16)
    assert set(runnable(w)) == found


def test_table_round_trip(tmp_path):
    path = tmp_path / "deeper" / "table.json"
    for entries in ((), TABLE.entries[:1], TABLE.entries):
        save_table(replace(TABLE, entries=entries), path)
        assert load_table(path) == replace(TABLE, entries=entries)
    assert [each.name for each in path.parent.iterdir()] == ["table.json"]


def damaged(place, value):
    def change(raw):
        *parents, last = place
        for parent in parents:
            raw = raw[parent]
        raw[last] = value

    return change


DAMAGE = {
    "format must be 1": damaged(["format"], 2),
    "hardware must be a str, got 3": damaged(["hardware"], 3),
    "entries must be a list": damaged(["entries"], {}),
    "measured must be a dict": damaged(["measured"], None),
    r"entries\[1\].tokens is not usable: -1": damaged(["entries", 1, "tokens"], -1),
    r"entries\[1\].tokens is not usable: True": damaged(["entries", 1, "tokens"], True),
    r"entries\[0\].density is not usable: 1.5": damaged(["entries", 0, "density"], 1.5),
    r"entries\[0\].shape is not usable: .512": damaged(["entries", 0, "shape"], [512]),
    r"entries\[0\].block_shape is not usable": damaged(["entries", 0, "block_shape"], "32x32"),
    r"entries\[0\].dtype is not usable": damaged(["entries", 0, "dtype"], 32),
    r"entries\[2\].seconds is not usable: {'xla'": damaged(["entries", 2, "seconds"], {"xla": 1.0}),
    r"entries\[2\].seconds is not usable: .* 'fast'": damaged(["entries", 2, "seconds"], {"dense": 1.0, "fast": 1.0}),
    r"entries\[2\].seconds is not usable: .*nan": damaged(["entries", 2, "seconds"], {"dense": float("nan")}),
    r"entries\[3\] must have dtype, shape": damaged(["entries", 3], {"dtype": "float32"}),
    r"entries\[4\]\.activation is not usable: 'relu'": damaged(["entries", 4, "activation"], "relu"),
}


@pytest.mark.parametrize("message", DAMAGE)
def test_damaged_table_names_file_and_place(tmp_path, message):
    path = tmp_path / "table.json"
    save_table(TABLE, path)
    raw = json.loads(path.read_text())
    DAMAGE[message](raw)
    path.write_text(json.dumps(raw))
    with pytest.raises(KernelError, match=f"table.json: {message}"):
        load_table(path)


def test_a_table_that_is_passed_is_of_this_device(tmp_path):
    """Found by review: another device's was left out, and nothing said so."""
    with pytest.raises(KernelError, match=r"the cost table is of 'Test CPU, 2 cores', and this device is 'other'"):
        chosen(device_kind="other")
    of_all = replace(TABLE, hardware="EPYC, avx2, 2 cores")
    assert chosen(table=of_all, device_kind="EPYC (family 25, model 1), avx2, 2 cores") == chosen()
    save_table(TABLE, tmp_path / "table.json")
    assert chosen(table=tmp_path / "table.json") == chosen(table=str(tmp_path / "table.json")) == chosen()
    with pytest.raises(KernelError, match=r"nowhere.json cannot be read"):
        chosen(table=tmp_path / "nowhere.json")


@pytest.mark.parametrize("text", ["", "{", "[]"])
def test_what_is_no_table_is_refused(tmp_path, text):
    (tmp_path / "table.json").write_text(text)
    with pytest.raises(KernelError, match=r"table\.json"):
        load_table(tmp_path / "table.json")
    with pytest.raises(KernelError, match=r"nowhere.json cannot be read"):
        load_table(tmp_path / "nowhere.json")


def test_packaged_tables_are_sound():
    for path in costs.PACKAGED.glob("*.json"):
        table = load_table(path)
        assert path.name == costs.file_name(table.hardware)
        assert {"date", "jax", "command", "commit", "hardware"} <= set(table.measured)
        assert find_table(table.hardware) is not None


def test_users_table_goes_first(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(costs, "PACKAGED", tmp_path / "packaged")
    assert find_table(TABLE.hardware) is None
    packaged = replace(TABLE, entries=TABLE.entries[:4])  # of one kind: float32, 512x512, 32x32
    users = replace(TABLE, entries=TABLE.entries[:1])
    save_table(packaged, tmp_path / "packaged" / costs.file_name(TABLE.hardware))
    assert find_table(TABLE.hardware) == packaged
    path = user_table_path(TABLE.hardware)
    assert path == tmp_path / "mlprune" / "costs" / "test-cpu-2-cores.json"
    save_table(users, path)
    assert find_table(TABLE.hardware) == users
    # What the user's table says nothing of is still known from the package's.
    save_table(TABLE, tmp_path / "packaged" / path.name)
    assert find_table(TABLE.hardware) == replace(users, entries=users.entries + TABLE.entries[4:])
    beside = replace(TABLE, entries=(replace(TABLE.entries[0], at_once=2),))
    save_table(beside, tmp_path / "packaged" / path.name)
    assert find_table(TABLE.hardware) == replace(users, entries=users.entries + beside.entries)
    path.write_text("{")
    with pytest.raises(KernelError, match=r"test-cpu-2-cores\.json cannot be read"):
        find_table(TABLE.hardware)


def test_a_table_from_before_generations_were_told_apart_stands_in(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(costs, "PACKAGED", tmp_path / "packaged")
    of_all, of_one = replace(TABLE, hardware="EPYC, avx2, 2 cores"), "EPYC (family 25, model 1), avx2, 2 cores"
    save_table(of_all, tmp_path / "packaged" / costs.file_name(of_all.hardware))
    assert find_table(of_one) == replace(TABLE, hardware=of_one)
    own = CostTable(of_one, {}, TABLE.entries[:1])
    save_table(own, tmp_path / "packaged" / costs.file_name(of_one))
    assert find_table(of_one) == own


def test_cpus_of_one_name_are_told_apart_by_generation(monkeypatch):
    told = "vendor_id : AuthenticAMD\ncpu family : 25\nmodel : 17\nmodel name : EPYC\nflags : sse avx2\n"
    monkeypatch.setattr(device, "Path", lambda _: SimpleNamespace(read_text=lambda **_: told))
    monkeypatch.setattr(device, "cores", lambda: 4)
    device._cpu_model_and_flags.cache_clear()
    try:
        assert hardware_name() == "EPYC (family 25, model 17), avx2, 4 cores"
        assert device.any_generation(hardware_name()) == "EPYC, avx2, 4 cores"
    finally:
        device._cpu_model_and_flags.cache_clear()


def test_cores_are_those_that_the_process_may_use(monkeypatch):
    monkeypatch.delenv("NPROC", raising=False)
    monkeypatch.setattr(device.os, "sched_getaffinity", lambda _: {3}, raising=False)
    assert device.cores() == 1


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), RuntimeError("no home directory")])
def test_a_home_that_cannot_be_read_has_no_table(monkeypatch, error):
    """Found by review: in a container of another user no packed model could be compiled."""

    def unreadable(*_):
        raise error

    monkeypatch.setattr(costs, "user_table_path", unreadable)
    assert find_table("EPYC, avx2, 2 cores of nobody's") is None


def test_a_matrix_runs_by_the_users_table(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    w = workloads.make_matrix((64, 64), (32, 32), 0.75, jnp.float32)
    cell = entry(3.0, 0.75, 8, (64, 64))
    for seconds, picked in (({"dense": 3.0, "xla": 1.0}, "xla"), ({"dense": 1.0, "xla": 3.0}, "dense")):
        table = CostTable(hardware_name(), {}, (replace(cell, seconds=seconds),))
        save_table(table, user_table_path(hardware_name()))
        assert choose_for(w, 8).implementation == picked
        traced = str(jax.make_jaxpr(lambda x: block_sparse_matmul(x, w))(jnp.ones((8, 64))))
        assert traced.count("dot_general") == {"dense": 1, "xla": 2}[picked]  # a product for each column of tiles
    # Padding blocks of a matrix without a pattern are computed, and so counted.
    assert "density 2.00" in choose_for(w.without_pattern(), 8).reason


def test_calls_side_by_side_have_measurements_of_their_own():
    beside = replace(TABLE, entries=(*TABLE.entries, replace(entry(6.0, 0.1, 128), at_once=2)))
    assert chosen(table=beside).ratio == pytest.approx(4.0)
    assert chosen(table=beside, side_by_side=True).ratio == pytest.approx(6.0)
    assert chosen(side_by_side=True).ratio == pytest.approx(4.0)  # none measured: as if alone


def test_what_follows_a_product_has_measurements_of_its_own():
    """The GELU that a kernel fuses and a dense product does not is no gain where no GELU follows."""
    followed = replace(TABLE, entries=(*TABLE.entries, replace(entry(6.0, 0.1, 128), activation="gelu")))
    assert chosen(table=followed, activation="gelu").ratio == pytest.approx(6.0)
    assert chosen(table=followed).ratio == pytest.approx(4.0)
    assert chosen(activation="gelu").ratio == pytest.approx(4.0)  # none measured: as if nothing followed
    alone = replace(TABLE, entries=(replace(entry(6.0, 0.1, 128), activation="gelu"),))
    assert chosen(table=alone).ratio is None


def test_a_table_from_before_kinds_were_told_apart(tmp_path):
    save_table(TABLE, tmp_path / "new.json")
    text = (tmp_path / "new.json").read_text()
    (tmp_path / "old.json").write_text(text.replace(', "at_once": 1, "activation": null', ""))
    assert "at_once" not in (tmp_path / "old.json").read_text()
    assert load_table(tmp_path / "old.json") == TABLE


def test_cores_are_counted_as_xla_counts_its_threads(monkeypatch):
    monkeypatch.delenv("NPROC", raising=False)
    visible = device.cores()
    monkeypatch.setenv("NPROC", str(visible + 3))
    assert device.cores() == visible + 3
    for told, counted in ("0", 1), ("", visible), ("many", visible):
        monkeypatch.setenv("NPROC", told)
        assert device.cores() == counted
