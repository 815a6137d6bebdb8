"""MLPruning beside other ways to choose what stays, at the same density, shapes, epochs, teacher and recovery.

    python benchmarks/controls.py FOLDER --config configs/minilm_stsb_d20.yaml --model MODEL --data GLUE/STS-B
        [--seeds 0,1] [--only NAME,NAME] [--json FILE]

The config has one pruning stage. Each seed has a dense run, which all ways start from and learn from. Started again on
the same folder, it goes on where it stopped; what is finished, under the same settings, is only read.
"""

import argparse
import json
from pathlib import Path

from describe import describe

from mlprune_jax.config.loading import load_config
from mlprune_jax.config.settings import RunConfig
from mlprune_jax.files import read_json
from mlprune_jax.pipeline import resume, run
from mlprune_jax.pipeline.grid import after_dense, dense_alone, with_whole_paths

# Of every way all settings that make it one are named, so that none depends on what a config chose. Steps and rates are
# the config's, the same for all, and so is the strength where a way does not name it.
LEARNED = {
    "densities": "learned",
    "threshold_gradient": "sum",
    "clip": "weights",
    "two_sided": False,
    "score_init": "constant",
    "score_scale": 0,
}
EQUAL = LEARNED | {"densities": "equal"}
SOFT = LEARNED | {"densities": "soft", "score_scale": 0.3, "two_sided": True}
FISHER = {"score_init": "fisher", "score_scale": 0.5}
WAYS = {
    "mlpruning": LEARNED | {"clip": "all"},
    "mlpruning_clip_weights": LEARNED,
    "mlpruning_strength20000": LEARNED | {"max_strength": 20000},
    "mlpruning_boundary": LEARNED | {"threshold_gradient": "boundary"},
    "mlpruning_fisher": LEARNED | FISHER,
    "movement_hard": EQUAL,
    "movement_soft": SOFT,
    "movement_soft_fisher": SOFT | {"score_init": "fisher"},
    "fisher": EQUAL | FISHER | {"score_learning_rate": 0},
    "magnitude": EQUAL | {"score_init": "magnitude", "score_learning_rate": 0},
    "random": EQUAL | {"score_init": "kaiming_uniform", "score_learning_rate": 0},
}


def read_settings(config):
    """All that a run of ``config`` reads: of a stage that is switched off nothing, whatever its defaults are now."""
    told = with_whole_paths(config).model_dump()
    for stages, name in ((told, "dense"), (told["prune"], "heads_rows"), (told["prune"], "blocks")):
        if not stages[name]["enabled"]:
            del stages[name]
    return told


def finish(folder, config):
    """The summary of a run in ``folder``: read, gone on with, or begun; one of other settings is refused."""
    stored = folder / "config.resolved.yaml"
    if stored.exists() and read_settings(load_config(RunConfig, stored)) != read_settings(config):
        raise SystemExit(f"{folder} holds a run of other settings: choose another folder")
    if not (folder / "summary.json").exists():
        if stored.exists():
            resume(folder)
        else:
            run(config, folder)
    return read_json(folder / "summary.json")


def row(summary, density=True):
    final = summary["final"]
    told = {"score": final[summary["metric"]], "seconds": summary["seconds"]}
    return told | {"density": final["density"]["encoder"], "layers": final["layers"]} if density else told


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--only", default=",".join(WAYS))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    ways = args.only.split(",")
    if unknown := set(ways) - WAYS.keys():
        parser.error(f"--only: no way {', '.join(sorted(unknown))}; there are {', '.join(WAYS)}")
    plain = load_config(RunConfig, args.config)
    stages = [name for name in ("heads_rows", "blocks") if getattr(plain.prune, name).enabled]
    if len(stages) != 1 or not plain.dense.enabled:
        parser.error(f"{args.config}: ways are compared of a dense stage and one pruning stage")
    stage = stages[0]
    strength = {"max_strength": getattr(plain.prune, stage).max_strength}  # of all ways that name none
    result = describe() | {"config": args.config.name, "stage": stage, "seeds": {}}
    for seed in map(int, args.seeds.split(",")):
        common, dense = [f"model={args.model}", f"data={args.data}", f"seed={seed}"], args.folder / f"dense_seed{seed}"
        alone = dense_alone(load_config(RunConfig, args.config, common))
        found = result["seeds"][seed] = {"dense": row(finish(dense, alone), density=False)}
        for way in ways:
            named = strength | WAYS[way]
            settings = [f"prune.{stage}.{key}={json.dumps(value)}" for key, value in named.items()]
            config = after_dense(load_config(RunConfig, args.config, common + settings), dense)
            found[way] = row(finish(args.folder / f"{way}_seed{seed}", config))
            print(seed, way, {k: v for k, v in found[way].items() if k != "layers"}, flush=True)
            if args.json:
                args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
