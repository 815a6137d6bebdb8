"""Runs as a process of its own, under a deadline set by `hub`: fetch a data set or a model from the hub.

``hub_child.py dataset ID CONFIG SPLIT JSONL`` or ``hub_child.py model ID``; prints the path it wrote. It imports
nothing of this library, so that it also runs where the library is not installed.
"""

import json
import sys
from pathlib import Path


def dataset(hub_id: str, config: str, split: str, path: str) -> str:
    """Write one split as jsonl, class ids as class names; an unlabelled row (id -1) has no such key."""
    import datasets

    rows = datasets.load_dataset(hub_id, config or None, split=split)
    classes = {name: kind for name, kind in rows.features.items() if isinstance(kind, datasets.ClassLabel)}
    with Path(path).open("w", encoding="utf-8") as file:
        for row in map(dict, rows):
            for name, kind in classes.items():
                label = row.pop(name)
                if label is not None and label >= 0:
                    row[name] = kind.int2str(label)
            file.write(json.dumps(row) + "\n")
    return path


def model(hub_id: str, *, cached: bool = False) -> str:
    """The folder of a model's settings, tokenizer and weights in the hub's own cache; pickles are never fetched.

    Args:
        hub_id: "org/name", or "name".
        cached: look into the cache only.
    """
    from huggingface_hub import snapshot_download

    wanted = ["*.json", "*.txt", "*.codes", "*.safetensors"]
    return snapshot_download(hub_id, local_files_only=cached, allow_patterns=wanted, ignore_patterns=["*/*"])


if __name__ == "__main__":
    try:
        print({"dataset": dataset, "model": model}[sys.argv[1]](*sys.argv[2:]))
    except Exception as error:  # whatever the libraries raise, the parent reports it in one line
        sys.exit(f"{type(error).__name__}: {' '.join(str(error).split())[:400]}")
