"""The command line: parses, delegates, and turns failures into one screen and an exit code.

Only typer is imported here, so that ``mlprune --help`` answers at once; each command imports what it runs.
"""

from __future__ import annotations

from typing import Annotated

import typer

from mlprune_jax.cli import configs, models, runs, sweeps

app = typer.Typer(
    help="Make BERT-family encoders small and fast by learned structured pruning (MLPruning, in JAX).",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for command in (runs.demo, runs.prune, runs.resume, sweeps.sweep):
    app.command()(command)
app.command("eval")(models.evaluate)
for command in (models.inspect, models.verify, models.predict, models.bench, models.export):
    app.command()(command)

config_app = typer.Typer(help="Check, show, list and describe config files.", no_args_is_help=True)
for command in (configs.check, configs.show, configs.schema):
    config_app.command()(command)
config_app.command("list")(configs.list_recipes)
app.add_typer(config_app, name="config")


def _show_version(asked: bool) -> bool:
    if asked:
        from importlib.metadata import version

        typer.echo(version("mlprune_jax"))
        raise typer.Exit
    return asked


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None: ...


def main() -> None:
    """Run the command line; the exit codes are those of `mlprune_jax.errors`."""
    app(prog_name="mlprune")
