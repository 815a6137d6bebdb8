"""One of several processes of a run: ``worker.py COORDINATOR PROCESSES PROCESS COMMAND...``, as `mlprune` would be."""

import sys

import jax

from mlprune_jax.training.processes import join


def main() -> None:
    coordinator, processes, process, *command = sys.argv[1:]
    jax.config.update("jax_disable_most_optimizations", True)
    join(coordinator, int(processes), int(process), patience=60)
    from mlprune_jax.cli import app

    app(command)


if __name__ == "__main__":
    main()
