"""Draws what the runs in benchmarks/results reached: points lost against density, and against measured speed.

    python benchmarks/draw.py [--out docs/pictures]

Needs the extra ``report``. Runs are ``minilm_*_seed*.json`` (the stages of one run), ``curve_*.json`` (a run a density,
dense first) and ``controls_*.json`` (benchmarks/controls.py); speeds are ``bench_*.json`` (`mlprune bench RUN --json`),
named after the runs they measure.
"""

import argparse
import re
from pathlib import Path
from statistics import mean

import matplotlib  # type: ignore[import-not-found]  # of the extra "report"
from matplotlib import pyplot  # type: ignore[import-not-found]

from mlprune_jax.files import read_json

RESULTS = Path(__file__).parent / "results"
METRICS = ("accuracy", "pearson", "f1", "mcc")


def score(report):
    for name in METRICS:
        if name in report:
            return 100 * report[name]
    raise SystemExit(f"none of {', '.join(METRICS)} is among {', '.join(report)}")


def curves():
    """Density and points lost: of every stage, by run, and of runs to several densities from one dense model."""
    measured = {path.stem: list(read_json(path)["stages"].values()) for path in RESULTS.glob("minilm_*_seed*.json")}
    measured |= {path.stem: read_json(path)["runs"] for path in RESULTS.glob("curve_*.json")}
    return {
        name: [(each["density"]["encoder"], score(reports[0]) - score(each)) for each in reports]
        for name, reports in sorted(measured.items())
    }


def ways():
    """Points lost with each seed, by file of controls and way."""
    found = {}
    for path in sorted(RESULTS.glob("controls_*.json")):
        seeds = read_json(path)["seeds"].values()
        for way in next(iter(seeds)):
            if way != "dense":
                lost = [100 * (seed["dense"]["score"] - seed[way]["score"]) for seed in seeds if way in seed]
                found[f"{path.stem.removeprefix('controls_')}: {way.replace('_', ' ')}"] = lost
    return found


def means(curves):
    """Curves whose names differ by their seed alone as one: the means of their points."""
    alike = {}
    for name, points in curves.items():
        alike.setdefault(re.sub(r"_seed\d+$", "", name), []).append(points)
    return {
        f"{name} ({len(found)})": [tuple(map(mean, zip(*points, strict=True))) for points in zip(*found, strict=True)]
        for name, found in alike.items()
    }


def draw_density(axes):
    axes.set_prop_cycle(color=pyplot.colormaps["tab20"](range(20)))
    for name, points in means(curves()).items():
        axes.plot(*zip(*points, strict=True), marker="o", label=name.removeprefix("minilm_"))
    axes.invert_xaxis()
    axes.set(
        xlabel="encoder parameters kept", ylabel="points lost", title="a run's stages (seeds); curve: a run a density"
    )
    axes.legend(fontsize=8)


def draw_ways(axes):
    found = sorted(ways().items(), key=lambda item: mean(item[1]))
    for place, (_, lost) in enumerate(found):
        axes.barh(place, mean(lost), color="tab:blue")
        axes.plot(lost, [place] * len(lost), "k.", markersize=4)
    axes.set_yticks(range(len(found)), [name for name, _ in found], fontsize=8)
    axes.invert_yaxis()
    axes.set_xscale("symlog", linthresh=1)  # controls may lose everything, and a good way gains
    axes.set(xlabel="points lost", title="same density and epochs; dots are seeds")


def draw_speed(axes):
    lost_by_run = {name: points[-1][1] for name, points in curves().items()}
    for path in sorted(RESULTS.glob("bench_*.json")):
        run = path.stem.removeprefix("bench_")
        rows = read_json(path)["rows"]
        last = [row for row in rows if row["variant"] == rows[-1]["variant"]]
        lost = lost_by_run[run]
        gains = [row["speedup_within_rounds"] for row in last]
        axes.plot(gains, [lost] * len(last), marker="o", label=run.removeprefix("minilm_"))
        for row, gain in zip(last, gains, strict=True):
            text = f"batch {row['batch']} x {row['length']}"
            axes.annotate(text, (gain, lost), (0, 6), textcoords="offset points", ha="center", fontsize=8)
    if axes.dataLim.ymin >= 0:  # else a model above its dense original would be out of sight
        axes.set_ylim(bottom=0)
    axes.margins(x=0.15)
    axes.legend(fontsize=8)
    axes.set(xlabel="times as fast as its dense original", ylabel="points lost", title="measured speed")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs" / "pictures")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    matplotlib.rcParams["svg.hashsalt"] = "mlprune"  # the same picture from the same results
    for name, draw in (("density", draw_density), ("ways", draw_ways), ("speed", draw_speed)):
        figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
        draw(axes)
        figure.savefig(args.out / f"{name}.svg", metadata={"Date": None})
        pyplot.close(figure)


if __name__ == "__main__":
    main()
