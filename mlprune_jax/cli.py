"""The command line: parses, delegates, and turns failures into one screen and an exit code.

Only typer is imported here, so that ``mlprune --help`` answers at once; each command imports what it runs.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import typer

from mlprune_jax.errors import ConfigError, MLPruneError
from mlprune_jax.report.json_text import to_json

if TYPE_CHECKING:
    from mlprune_jax.config.settings import RunConfig

app = typer.Typer(
    help="Make BERT-family encoders small and fast by learned structured pruning (MLPruning, in JAX).",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
config_app = typer.Typer(help="Check, show and describe config files.", no_args_is_help=True)
app.add_typer(config_app, name="config")

Folder = Annotated[Path, typer.Argument(metavar="RUN_OR_FOLDER", help="A run's folder, or a model folder.")]
ConfigFile = Annotated[Path, typer.Argument(metavar="FILE", help="A YAML config.")]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="The run's folder; new or empty.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", metavar="PLACE=VALUE", help="Override one setting.")]
Seed = Annotated[int | None, typer.Option(help="Seed of everything random; the config's otherwise.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only the result.")]
Offline = Annotated[bool, typer.Option("--offline", help="Never ask the Hugging Face hub.")]
DType = Annotated[str | None, typer.Option(help="float32, bfloat16 or float16; bfloat16 on accelerators if unset.")]
Implementation = Annotated[
    Literal["reference", "dense", "xla", "mosaic_gpu", "triton"] | None,
    typer.Option(help="Of every block-sparse product; by measured cost if unset."),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of a failure.")]


class Switches(NamedTuple):
    """The flags that every command shares."""

    as_json: bool = False
    quiet: bool = False
    offline: bool = False
    debug: bool = False


@app.command()
def demo(
    output: Output = None,
    seed: Seed = None,
    overrides: Overrides = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan, train nothing.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Run the whole pipeline on generated data and a tiny model: minutes on two cores, no network."""

    def work() -> dict[str, Any]:
        from mlprune_jax.config.loading import packaged_config

        config = _load(packaged_config("demo"), _as_overrides({"seed": seed}, overrides))
        return _start(config, output or _next_free(Path("runs/demo")), dry_run=dry_run, quiet=quiet)

    _perform(work, Switches(as_json, quiet, offline=True, debug=debug))


@app.command()
def prune(
    config: Annotated[Path | None, typer.Option(help="A YAML config; the options below override it.")] = None,
    model: Annotated[str | None, typer.Option(metavar="FOLDER_OR_HUB_ID", help="The dense model.")] = None,
    task: Annotated[str | None, typer.Option(help="A task's name, such as mnli.")] = None,
    data: Annotated[str | None, typer.Option(metavar="FOLDER", help="The task's data.")] = None,
    density: Annotated[float | None, typer.Option(help="Fraction of the encoder's weights to keep, 0.2 say.")] = None,
    block: Annotated[str | None, typer.Option(metavar="INxOUT", help="Block shape, 32x32 say.")] = None,
    output: Output = None,
    overrides: Overrides = None,
    seed: Seed = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Validate and print the plan, train nothing.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    offline: Offline = False,
    debug: Debug = False,
) -> None:
    """Fine-tune, prune, distil and evaluate a model: dense -> heads and rows -> shrink -> blocks -> final."""

    def work() -> dict[str, Any]:
        if config is None and model is None and not overrides:
            raise ConfigError("nothing to prune", hint="give --config FILE, or --model, --task and --data")
        options = {
            "model": model,
            "task": task,
            "data": data,
            "prune.density": density,
            "prune.blocks.shape": block,
            "seed": seed,
            "offline": True if offline else None,
        }
        settings = _load(config, _as_overrides(options, overrides))
        workdir = output or _next_free(Path("runs") / f"{settings.task}-{settings.prune.density:g}")
        return _start(settings, workdir, dry_run=dry_run, quiet=quiet)

    _perform(work, Switches(as_json, quiet, offline, debug))


@app.command()
def resume(
    workdir: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run that was stopped.")],
    as_json: Json = False,
    quiet: Quiet = False,
    offline: Offline = False,
    debug: Debug = False,
) -> None:
    """Continue a stopped run from its newest whole checkpoint, with the settings it began with."""

    def work() -> dict[str, Any]:
        from mlprune_jax import pipeline

        return pipeline.resume(workdir, quiet=quiet)

    _perform(work, Switches(as_json, quiet, offline, debug))


@app.command("eval")
def evaluate(
    folder: Folder,
    data: Annotated[str | None, typer.Option(metavar="FOLDER", help="The task's data; the run's otherwise.")] = None,
    split: Annotated[str, typer.Option(help="Which part of the data.")] = "dev",
    batch_size: Annotated[int, typer.Option(min=1, help="Examples in one step.")] = 64,
    as_json: Json = False,
    quiet: Quiet = False,
    offline: Offline = False,
    debug: Debug = False,
) -> None:
    """Evaluate a finished model, dense or pruned, on any data of its task."""

    def work() -> dict[str, Any]:
        from mlprune_jax.pipeline import evaluation

        return evaluation.evaluate_folder(folder, data=data, split=split, batch_size=batch_size, offline=offline)

    _perform(work, Switches(as_json, quiet, offline, debug))


@app.command()
def inspect(folder: Folder, as_json: Json = False, debug: Debug = False) -> None:
    """Show what a model keeps, layer by layer."""

    def work() -> dict[str, Any]:
        from mlprune_jax.pipeline import evaluation

        return evaluation.inspect_folder(folder)

    _perform(work, Switches(as_json, offline=True, debug=debug))


@app.command()
def verify(folder: Folder, as_json: Json = False, debug: Debug = False) -> None:
    """See that every file of a run, its checkpoints included, is what was written."""

    def work() -> dict[str, Any]:
        from mlprune_jax.pipeline.verification import verify_folder

        return verify_folder(folder)

    _perform(work, Switches(as_json, offline=True, debug=debug))


@app.command()
def predict(
    folder: Folder,
    source: Annotated[
        str, typer.Option("--input", "-i", metavar="FILE", help="tsv, csv or jsonl; - reads standard input.")
    ],
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="FILE", help="jsonl; - writes standard output.")
    ] = "-",
    table_format: Annotated[
        str | None, typer.Option("--format", help="tsv, csv or jsonl; the file's ending else.")
    ] = None,
    columns: Annotated[
        str | None, typer.Option(help="Columns of the texts, a,b for pairs; the task's otherwise.")
    ] = None,
    skip_damaged: Annotated[bool, typer.Option("--skip-damaged", help="Leave damaged lines out, and say so.")] = False,
    batch_size: Annotated[int, typer.Option(min=1, max=65536, help="Texts in one step.")] = 32,
    seq: Annotated[str | None, typer.Option(help="Lengths in tokens, 32,128 say; those of training if unset.")] = None,
    dtype: DType = None,
    implementation: Implementation = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Predict for every row of a table, as it comes in, one JSON object a line."""
    to_stdout = output == "-"
    streams = (_text_input() if source == "-" else Path(source), sys.stdout if to_stdout else Path(output))

    def work() -> dict[str, Any] | None:
        from mlprune_jax.inference.predict import predict_file

        count = predict_file(
            folder,
            *streams,
            table_format=table_format,
            columns=tuple(name.strip() for name in columns.split(",")) if columns else None,
            skip_damaged=skip_damaged,
            batch_size=batch_size,
            lengths=_numbers(seq, "--seq") if seq else None,
            dtype=dtype,
            implementation=implementation,
        )
        return None if to_stdout else {"predictions": count, "output": output}

    _perform(work, Switches(quiet=quiet, offline=True, debug=debug))


@app.command()
def bench(
    folder: Annotated[Path | None, typer.Argument(metavar="RUN_OR_FOLDER", help="A finished model.")] = None,
    batch: Annotated[str, typer.Option(help="Batch sizes.")] = "1,8,32",
    seq: Annotated[str, typer.Option(help="Lengths in tokens.")] = "128",
    dtype: DType = None,
    rounds: Annotated[int, typer.Option(min=1, help="Measurements of each variant.")] = 10,
    implementation: Implementation = None,
    calibrate: Annotated[bool, typer.Option("--calibrate", help="First measure this device's cost table.")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="JSON file; a run's own bench.json else.")
    ] = None,
    why: Annotated[bool, typer.Option("--why", help="Also show how each matrix runs, and why.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Time a model: dense original, shrunk, and block-sparse side by side; with --calibrate, the device's products."""

    def work() -> dict[str, Any]:
        from mlprune_jax.inference import bench as benching

        if folder is None and not calibrate:
            raise ConfigError("nothing to time", hint="name a finished model, or pass --calibrate")
        result = {"table": str(benching.calibrate_device())} if calibrate else {}
        if folder is None:
            return result
        batches, lengths = (_numbers(text, name) for text, name in ((batch, "--batch"), (seq, "--seq")))
        result |= benching.bench_to_file(
            folder, output, batches=batches, lengths=lengths, dtype=dtype, rounds=rounds, implementation=implementation
        )
        return result if as_json or why else {name: value for name, value in result.items() if name != "decisions"}

    _perform(work, Switches(as_json, quiet, offline=True, debug=debug))


@config_app.command("check")
def config_check(file: ConfigFile, overrides: Overrides = None, as_json: Json = False, debug: Debug = False) -> None:
    """Validate a config file and name everything that is wrong with it."""

    def work() -> dict[str, Any]:
        _load(file, overrides or [])
        return {"config": str(file), "valid": True}

    _perform(work, Switches(as_json, debug=debug))


@config_app.command("show")
def config_show(
    file: Annotated[Path | None, typer.Argument(metavar="[FILE]", help="A YAML config; the demo's if none.")] = None,
    overrides: Overrides = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Print a config with every default filled in."""
    from mlprune_jax.config.loading import dump_config, packaged_config

    with _failures_told(debug=debug):
        config = _load(file or packaged_config("demo"), overrides or [])
        text = to_json(config.model_dump(mode="json")) if as_json else dump_config(config).rstrip()
    typer.echo(text)


@config_app.command("schema")
def config_schema() -> None:
    """Print the JSON Schema of config files, for editors."""
    from mlprune_jax.config.loading import config_schema as schema_of
    from mlprune_jax.config.settings import RunConfig

    typer.echo(to_json(schema_of(RunConfig)))


def main() -> None:
    """Run the command line; the exit codes are those of `mlprune_jax.errors`."""
    app(prog_name="mlprune")


def _load(path: Path | None, overrides: list[str]) -> RunConfig:
    from mlprune_jax.config.loading import load_config
    from mlprune_jax.config.settings import RunConfig

    return load_config(RunConfig, path, overrides)


def _as_overrides(options: dict[str, str | float | None], overrides: list[str] | None) -> list[str]:
    """Options become overrides, quoted so that a folder named 2024 stays text; ``--set`` has the last word."""
    given = [f"{place}={json.dumps(v, ensure_ascii=False)}" for place, v in options.items() if v is not None]
    return given + (overrides or [])


def _text_input() -> io.TextIOWrapper:
    """Standard input as files are read: strict UTF-8 with or without a mark, whatever the locale."""
    return io.TextIOWrapper(sys.stdin.buffer, encoding="utf-8-sig", errors="strict", newline="\n")


def _numbers(text: str, option: str) -> list[int]:
    """``"1,8,32"`` as numbers."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ConfigError(f"{option} takes numbers of at least 1 with commas between, got {text!r}")
    return [int(part) for part in parts]


def _next_free(folder: Path) -> Path:
    """``folder``, or the first of ``folder-2``, ``folder-3``, ... that does not exist yet."""
    free, number = folder, 1
    while free.exists():
        number += 1
        free = folder.with_name(f"{folder.name}-{number}")
    return free


def _start(config: RunConfig, workdir: Path, *, dry_run: bool, quiet: bool) -> dict[str, Any]:
    from mlprune_jax import pipeline

    if dry_run:
        return {"workdir": str(workdir), **pipeline.plan(config, workdir)}
    return pipeline.run(config, workdir, command=shlex.join(["mlprune", *sys.argv[1:]]), quiet=quiet)


def _perform(work: Callable[[], dict[str, Any] | None], switches: Switches) -> None:
    """Do a command's work and print its result, if any; whatever else is printed goes to standard error."""
    from mlprune_jax.report.tables import print_result

    _prepare_process(switches)
    with _failures_told(debug=switches.debug):
        with contextlib.redirect_stdout(sys.stderr):
            result = work()
        if switches.as_json:
            typer.echo(to_json(result))
        elif result is not None:
            print_result(result)


def _prepare_process(switches: Switches) -> None:
    """Set what jax and the Hugging Face libraries read once, when they are imported."""
    if switches.offline:
        os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it reports that there is no torch, on every start
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache / "mlprune" / "jax"))
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("mlprune_jax").setLevel(logging.WARNING if switches.quiet else logging.INFO)


@contextlib.contextmanager
def _failures_told(*, debug: bool) -> Iterator[None]:
    """Turn any failure into ``error:`` and ``hint:`` lines on standard error and the failure's exit code."""
    try:
        yield
    except (typer.Exit, BrokenPipeError):
        raise
    except KeyboardInterrupt:
        failure, code = MLPruneError("interrupted", hint="a run of `mlprune prune` goes on with `mlprune resume`"), 130
    except MLPruneError as error:
        failure, code = error, error.exit_code
    except OSError as error:
        failure, code = MLPruneError(f"{error}", hint="the system refused; --debug shows where"), 1
    except Exception as error:
        told = f"unexpected {type(error).__name__}: {' '.join(str(error).split())[:300]}"
        failure, code = MLPruneError(told, hint="a defect of mlprune: please report it, with what --debug prints"), 1
    else:
        return
    if debug:
        traceback.print_exc()
    typer.echo(f"error: {failure.message}", err=True)
    if failure.hint:
        typer.echo(f"hint: {failure.hint}", err=True)
    raise typer.Exit(code)
