"""Commands on finished models: evaluate, look into, check, predict, time, export."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from mlprune_jax.cli.options import (
    Debug,
    DType,
    Folder,
    Implementation,
    Json,
    Offline,
    Quiet,
    SkipDamaged,
    names,
    numbers,
)
from mlprune_jax.cli.perform import Switches, perform
from mlprune_jax.errors import ConfigError


def evaluate(
    folder: Folder,
    against: Annotated[
        Path | None, typer.Option(metavar="RUN_OR_FOLDER", help="A model to compare it with, example by example.")
    ] = None,
    data: Annotated[str | None, typer.Option(metavar="FOLDER", help="The task's data; the run's otherwise.")] = None,
    split: Annotated[str, typer.Option(help="Which part of the data.")] = "dev",
    skip_damaged: SkipDamaged = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Examples in one step.")] = 64,
    as_json: Json = False,
    quiet: Quiet = False,
    offline: Offline = False,
    debug: Debug = False,
) -> None:
    """Evaluate a finished model, dense or pruned, on any data of its task."""

    def work() -> dict[str, Any]:
        from mlprune_jax.pipeline import evaluation

        return evaluation.evaluate_folder(
            folder,
            against=against,
            data=data,
            split=split,
            skip_damaged=skip_damaged,
            batch_size=batch_size,
            offline=offline,
        )

    perform(work, Switches(as_json, quiet, offline, debug))


def inspect(folder: Folder, as_json: Json = False, debug: Debug = False) -> None:
    """Show what a model keeps, layer by layer."""

    def work() -> dict[str, Any]:
        from mlprune_jax.pipeline import evaluation

        return evaluation.inspect_folder(folder)

    perform(work, Switches(as_json, offline=True, debug=debug))


def verify(folder: Folder, as_json: Json = False, debug: Debug = False) -> None:
    """See that every model, stage and checkpoint of a run is what was written."""

    def work() -> dict[str, Any]:
        from mlprune_jax.pipeline.verification import verify_folder

        return verify_folder(folder)

    perform(work, Switches(as_json, offline=True, debug=debug))


def predict(
    folder: Folder,
    source: Annotated[
        str,
        typer.Option("--input", "-i", metavar="FILE", help="tsv, csv, jsonl or SQuAD json; - reads standard input."),
    ],
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="FILE", help="jsonl; - writes standard output.")
    ] = "-",
    table_format: Annotated[
        str | None, typer.Option("--format", help="tsv, csv, jsonl or json; the file's ending else.")
    ] = None,
    columns: Annotated[
        str | None, typer.Option(help="Columns of the texts, a,b for pairs; the task's otherwise.")
    ] = None,
    keep: Annotated[str | None, typer.Option(help="Columns that come back with each prediction, id,label say.")] = None,
    task: Annotated[
        str | None, typer.Option(help="What the model is for, squad2 say, where its folder does not tell.")
    ] = None,
    skip_damaged: SkipDamaged = False,
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
            columns=names(columns) if columns else None,
            keep=names(keep) if keep else (),
            task=task,
            skip_damaged=skip_damaged,
            batch_size=batch_size,
            lengths=numbers(seq, "--seq") if seq else None,
            dtype=dtype,
            implementation=implementation,
        )
        return None if to_stdout else {"predictions": count, "output": output}

    perform(work, Switches(quiet=quiet, offline=True, debug=debug))


def bench(
    folder: Annotated[Path | None, typer.Argument(metavar="RUN_OR_FOLDER", help="A finished model.")] = None,
    batch: Annotated[str, typer.Option(help="Batch sizes.")] = "1,8,32",
    seq: Annotated[
        str | None, typer.Option(help="Lengths in tokens; 128 if unset, or as many as the model has positions.")
    ] = None,
    dtype: DType = None,
    rounds: Annotated[int, typer.Option(min=1, help="Measurements of each variant.")] = 10,
    implementation: Implementation = None,
    calibrate: Annotated[bool, typer.Option("--calibrate", help="First measure this device's cost table.")] = False,
    seconds: Annotated[float, typer.Option(min=1, help="Of --calibrate; called again, it goes on.")] = 300.0,
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
        result = benching.calibrate_device(seconds) if calibrate else {}
        if folder is None:
            return result
        result |= benching.bench_to_file(
            folder,
            output,
            batches=numbers(batch, "--batch"),
            lengths=numbers(seq, "--seq") if seq else None,
            dtype=dtype,
            rounds=rounds,
            implementation=implementation,
        )
        return result if as_json or why else {name: value for name, value in result.items() if name != "decisions"}

    perform(work, Switches(as_json, quiet, offline=True, debug=debug))


def export(
    folder: Folder,
    to: Annotated[
        Literal["hf", "stablehlo", "onnx"],
        typer.Option(help="hf: a dense Hugging Face folder, zeros where something was removed; the others: small."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="New or empty.")],
    dtype: Annotated[str, typer.Option(help="float32; for stablehlo also bfloat16 or float16.")] = "float32",
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write a finished model for other software: transformers and what reads its folders, jax alone, ONNX."""

    def work() -> dict[str, Any]:
        from mlprune_jax.inference.export import export_model

        return export_model(folder, output, to, dtype=dtype)

    perform(work, Switches(as_json, quiet, offline=True, debug=debug))


def _text_input() -> io.TextIOWrapper:
    """Standard input as files are read: UTF-8 with or without a mark, whatever the locale."""
    return io.TextIOWrapper(sys.stdin.buffer, encoding="utf-8-sig", errors="surrogateescape", newline="\n")
