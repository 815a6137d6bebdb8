"""The hub, without waiting for it: cache first, then a short probe, then a download under a deadline.

The hub libraries retry a refused connection for a minute and wait without end for a silent one; their own timeouts do
not bound that. So a download runs in a process of its own that is ended at the deadline.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import ssl
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from mlprune_jax.data import hub_child
from mlprune_jax.errors import DataError, ModelError

_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"
DATASET_ID = rf"{_NAME}/{_NAME}"
MODEL_ID = rf"{_NAME}(/{_NAME})?"
_CHILD = Path(hub_child.__file__)
_PROBE_SECONDS = 2.0


def offline(flag: bool = False) -> bool:
    """Whether the network is off: by the flag, or by ``HF_HUB_OFFLINE`` in the environment."""
    return flag or os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


def endpoint() -> str:
    """The hub's address: ``HF_ENDPOINT`` where set."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def cache_folder() -> Path:
    """The folder of this library in the user's cache (``XDG_CACHE_HOME``, else ``~/.cache``)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "mlprune_jax"


def reachable(timeout: float = _PROBE_SECONDS) -> bool:
    """Whether the hub, or the proxy in front of it, answers at all within ``timeout`` seconds.

    A connection alone proves little: some firewalls accept it and never answer.
    """
    answers: list[bool] = []
    # In a thread because looking up a host name cannot be given a timeout.
    probe = threading.Thread(target=lambda: answers.append(_answers(timeout)), daemon=True)
    probe.start()
    probe.join(timeout)
    return answers == [True]


def _answers(timeout: float) -> bool:
    try:
        url = urlsplit(endpoint())
        peer = _proxy(url) or url
        host, port = peer.hostname or "", peer.port or (443 if peer.scheme == "https" else 80)
        with socket.create_connection((host, port), timeout) as plain:
            if peer.scheme == "https":
                with ssl.create_default_context().wrap_socket(plain, server_hostname=host):
                    return True
            if peer.scheme == "http":
                plain.sendall(f"HEAD {endpoint()} HTTP/1.1\r\nHost: {url.netloc}\r\nConnection: close\r\n\r\n".encode())
                return bool(plain.recv(1))
            return True  # a SOCKS proxy
    except ssl.SSLCertVerificationError:
        return True  # it answered; whether to trust it is for the download to decide
    except (OSError, ValueError):
        return False


def _proxy(url: SplitResult) -> SplitResult | None:
    proxies = urllib.request.getproxies()
    address = proxies.get(url.scheme) or proxies.get("all")
    if not address or urllib.request.proxy_bypass(url.hostname or ""):
        return None
    return urlsplit(address if "://" in address else f"http://{address}")


def run_with_deadline(script: Path, *arguments: str, seconds: float) -> str:
    """Run a Python script in a process of its own and end it at the deadline.

    Args:
        script: the file to run.
        arguments: its command line.
        seconds: wall-clock time it gets.

    Returns:
        What it printed.

    Raises:
        TimeoutError: the deadline passed.
        RuntimeError: it failed; the message is the last line it wrote to stderr.
    """
    # -P: a file "datasets.py" in the working directory must not be taken for the library.
    command = [sys.executable, "-P", str(script), *arguments]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=seconds,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise TimeoutError(f"not finished within {seconds:g} s") from None
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1])
    return done.stdout


def download_dataset(
    hub_id: str, config: str | None, split: str, *, offline: bool = False, seconds: float = 600.0
) -> Path:
    """One split of a hub data set, as a jsonl file in the user's cache.

    Class ids are stored as class names; rows without a label lack the key.

    Args:
        hub_id: "org/name".
        config: the data set's configuration, None for its default.
        split: its split, in the hub's words ("validation").
        offline: only look into the cache.
        seconds: deadline of the download.

    Raises:
        DataError: it is not in the cache and cannot be fetched.
    """
    what = f"data set {hub_id!r} ({config or 'default'}, {split})"
    if not re.fullmatch(DATASET_ID, hub_id) or not all(re.fullmatch(_NAME, part) for part in (config or "x", split)):
        raise DataError(f"{what}: not a name on the hub", hint="write it as 'org/name', or pass a local folder")
    target = cache_folder() / "datasets" / hub_id.replace("/", "--") / (config or "default") / f"{split}.jsonl"
    if target.is_file():
        return target
    _require_hub(DataError, f"{what} is neither a folder here nor in the cache ({target})", offline)
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        run_with_deadline(_CHILD, "dataset", hub_id, config or "", split, str(part), seconds=seconds)
        part.replace(target)
    except (OSError, RuntimeError) as error:  # TimeoutError is an OSError
        raise _failed(DataError, what, error) from None
    finally:
        with contextlib.suppress(OSError):
            part.unlink()
    return target


def download_model(hub_id: str, *, offline: bool = False, seconds: float = 1800.0) -> Path:
    """The folder of a hub model in the hub libraries' own cache: settings, tokenizer and safetensors weights.

    Args:
        hub_id: "org/name", or "name" for the oldest models.
        offline: only look into the cache.
        seconds: deadline of the download.

    Raises:
        ModelError: it is not in the cache and cannot be fetched, or has no safetensors weights.
    """
    what = f"model {hub_id!r}"
    if not re.fullmatch(MODEL_ID, hub_id):
        raise ModelError(f"{what}: not a name on the hub", hint="write it as 'org/name', or pass a local folder")
    folder = _cached_model(hub_id)
    if folder is None or (_lacks_parts(folder) and _may_ask(offline)):
        _require_hub(ModelError, f"{what} is neither a folder here nor complete in the hub's cache", offline)
        try:
            folder = Path(run_with_deadline(_CHILD, "model", hub_id, seconds=seconds).splitlines()[-1])
        except (OSError, RuntimeError) as error:
            raise _failed(ModelError, what, error) from None
    if not _has_model(folder):
        held = ", ".join(sorted(p.name for p in folder.iterdir())) or "nothing"
        raise ModelError(
            f"{what} has no config.json with safetensors weights; it holds {held}",
            hint="save it once with save_pretrained(folder) of transformers and pass the folder",
        )
    return folder


def _cached_model(hub_id: str) -> Path | None:
    try:
        folder = Path(hub_child.model(hub_id, cached=True))
    except (OSError, ValueError):  # absent, incomplete, or a name the hub would refuse
        return None
    # Caches of older hub libraries do not know what is missing after an interrupted download.
    return folder if _has_model(folder) else None


def _has_model(folder: Path) -> bool:
    return (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))


def _lacks_parts(folder: Path) -> bool:
    """Whether a model came file by file, as transformers caches it, and its tokenizer or a shard did not yet come."""
    named: set[str] = set()
    for index in folder.glob("*.safetensors.index.json"):
        with contextlib.suppress(OSError, ValueError, LookupError, AttributeError):  # who reads it tells what is wrong
            named |= set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    tokenizer = any((folder / name).is_file() for name in ("tokenizer.json", "vocab.txt"))
    return not tokenizer or not all((folder / name).is_file() for name in named)


def _may_ask(flag: bool) -> bool:
    return not offline(flag) and reachable()


def _require_hub(kind: type[DataError | ModelError], missing: str, flag: bool) -> None:
    hint = "pass a local folder, or fetch it once with the network on"
    if offline(flag):
        raise kind(f"{missing}, and the network is off (offline, or HF_HUB_OFFLINE)", hint=hint)
    if not reachable():
        raise kind(f"{missing}, and {endpoint()} did not answer within {_PROBE_SECONDS:g} s", hint=hint)


def _failed(kind: type[DataError | ModelError], what: str, error: Exception) -> DataError | ModelError:
    return kind(
        f"{what} could not be fetched from {endpoint()}: {error}",
        hint="check the name and the network, or pass a local folder; a second try resumes",
    )
