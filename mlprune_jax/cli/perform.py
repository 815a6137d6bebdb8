"""Around every command: prepare the process, print the result, tell a failure on one screen with its exit code."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import typer

from mlprune_jax.errors import MLPruneError
from mlprune_jax.report.json_text import to_json


class Switches(NamedTuple):
    """The flags that every command shares."""

    as_json: bool = False
    quiet: bool = False
    offline: bool = False
    debug: bool = False


def perform(work: Callable[[], dict[str, Any] | None], switches: Switches) -> None:
    """Do a command's work and print its result, if any; whatever else is printed goes to standard error."""
    from mlprune_jax.report.tables import print_result

    _prepare_process(switches)
    with failures_told(debug=switches.debug):
        with contextlib.redirect_stdout(sys.stderr):
            result = work()
        if result is None:
            return
        if switches.as_json:
            typer.echo(to_json(result))
        else:
            print_result(result)


def _prepare_process(switches: Switches) -> None:
    """Set what jax and the Hugging Face libraries read once, when they are imported."""
    if switches.offline:
        os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it reports that there is no torch, on every start
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if not cache.startswith("~"):  # there is a home
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.join(cache, "mlprune", "jax"))
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    level = logging.DEBUG if switches.debug else logging.WARNING if switches.quiet else logging.INFO
    logging.getLogger("mlprune_jax").setLevel(level)


@contextlib.contextmanager
def failures_told(*, debug: bool) -> Iterator[None]:
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
