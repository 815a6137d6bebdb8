"""The hub: the cache first, never a long wait, never half a file. All against sockets of this machine."""

import contextlib
import http.server
import json
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mlprune_jax.data import hub
from mlprune_jax.errors import DataError, ModelError

COMMIT = "c" * 40
FILES = {"config.json": b"{}", "vocab.txt": b"[PAD]\n", "model.safetensors": b"weights", "pytorch_model.bin": b"no"}


@pytest.fixture(autouse=True)
def on_this_machine(monkeypatch, tmp_path):
    """The network counts as on, the caches are empty, and no proxy is set."""
    for name in ("HF_HUB_OFFLINE", "http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf"))


@contextlib.contextmanager
def listening():
    """A port that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@contextlib.contextmanager
def serving(answer):
    """A port where ``answer(path)`` gives (status, headers, body) of each request."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            status, headers, body = answer(self.path)
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, format, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def closed_port():
    with listening() as port:
        pass
    return port


def refuse(path):
    return 403, {}, b""


@contextlib.contextmanager
def within(seconds):
    start = time.monotonic()
    yield
    assert time.monotonic() - start < seconds


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_silent_or_closed_hub_is_not_reachable(monkeypatch, closed_port, scheme):
    with listening() as silent:
        for port in (silent, closed_port):
            monkeypatch.setenv("HF_ENDPOINT", f"{scheme}://127.0.0.1:{port}")
            with within(2):
                assert not hub.reachable(0.3)


def test_any_answer_counts(monkeypatch):
    with serving(refuse) as port:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}/")
        assert hub.reachable()


@pytest.mark.parametrize("variable", ["http_proxy", "ALL_PROXY"])
def test_a_proxy_is_asked_instead_of_the_hub(monkeypatch, closed_port, variable):
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed_port}")
    with serving(refuse) as port:
        monkeypatch.setenv(variable, f"127.0.0.1:{port}")
        assert hub.reachable()
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        assert not hub.reachable()


def test_a_slow_name_lookup_and_a_nonsense_address_are_bounded(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://[")
    assert not hub.reachable()
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.invalid")

    def slow(*_, **__):
        time.sleep(1)
        raise socket.gaierror("not known")

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    with within(0.8):
        assert not hub.reachable(0.1)


@pytest.mark.parametrize(
    ("value", "flag", "off"), [("", False, False), ("0", False, False), ("true", False, True), ("1", True, True)]
)
def test_offline(monkeypatch, value, flag, off):
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    assert hub.offline(flag) is off
    assert hub.offline(True)


def test_without_a_hub_a_download_fails_fast_and_says_what_to_do(monkeypatch, closed_port):
    with listening() as silent:
        address = f"http://127.0.0.1:{silent}"
        monkeypatch.setenv("HF_ENDPOINT", address)
        with within(4), pytest.raises(DataError, match=f"nor in the cache.*{address} did not answer") as caught:
            hub.download_dataset("nyu-mll/glue", "rte", "train")
    assert "local folder" in str(caught.value)
    address = f"http://127.0.0.1:{closed_port}"
    monkeypatch.setenv("HF_ENDPOINT", address)
    with within(2), pytest.raises(ModelError, match=f"complete in the hub's cache, and {address} did not answer"):
        hub.download_model("org/name")


def test_offline_asks_nobody(monkeypatch):
    monkeypatch.setattr(hub, "reachable", lambda: pytest.fail("probed"))
    with pytest.raises(DataError, match="the network is off"):
        hub.download_dataset("nyu-mll/glue", None, "train", offline=True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError, match="the network is off"):
        hub.download_model("org/name")


@pytest.mark.parametrize("name", ["../x", "a/b/c", "", "/etc", "a/../b", "a b", "a\n"])
def test_what_is_no_name_on_the_hub(name):
    with pytest.raises(ModelError, match="not a name on the hub"):
        hub.download_model(name)
    for arguments in ((name, None, "train"), ("org/name", name or "/", "train"), ("org/name", None, name)):
        with pytest.raises(DataError, match="not a name on the hub"):
            hub.download_dataset(*arguments)


def script(tmp_path, code):
    path = tmp_path / "script.py"
    path.write_text(code)
    return path


def test_a_script_is_ended_at_its_deadline(tmp_path):
    assert hub.run_with_deadline(script(tmp_path, "import sys; print(sys.argv[1])"), "x", seconds=30.0) == "x\n"
    with pytest.raises(RuntimeError, match=r"^why$"):
        hub.run_with_deadline(script(tmp_path, "import sys; sys.exit('noise\\nwhy')"), seconds=30.0)
    with pytest.raises(RuntimeError, match="exit status 7"):
        hub.run_with_deadline(script(tmp_path, "import os; os._exit(7)"), seconds=30.0)
    with within(10), pytest.raises(TimeoutError, match=r"0\.3 s"):
        hub.run_with_deadline(script(tmp_path, "import time; time.sleep(60)"), seconds=0.3)


def test_the_working_directory_does_not_shadow_libraries(tmp_path, monkeypatch):
    (tmp_path / "json.py").write_text("raise SystemExit('shadowed')")
    monkeypatch.chdir(tmp_path)
    hub.run_with_deadline(script(tmp_path, "import json"), seconds=30.0)


def test_a_data_set_is_fetched_once_and_never_left_half_written(monkeypatch, tmp_path):
    monkeypatch.setattr(hub, "reachable", lambda: True)

    def broken(_, *arguments, seconds):
        Path(arguments[-1]).write_text("half")
        raise TimeoutError("not finished within 1 s")

    monkeypatch.setattr(hub, "run_with_deadline", broken)
    with pytest.raises(DataError, match=r"could not be fetched .*: not finished within 1 s"):
        hub.download_dataset("org/name", None, "train")
    assert not [p for p in (tmp_path / "cache").rglob("*") if p.is_file()]

    monkeypatch.setattr(hub, "run_with_deadline", lambda _, *a, seconds: Path(a[-1]).write_text("whole"))
    path = hub.download_dataset("org/name", None, "train")
    monkeypatch.setattr(hub, "reachable", lambda: pytest.fail("probed"))
    assert hub.download_dataset("org/name", None, "train") == path
    assert path.read_text() == "whole"
    assert path.parent.name == "default"


def test_a_cache_that_cannot_be_written(monkeypatch, tmp_path):
    monkeypatch.setattr(hub, "reachable", lambda: True)
    (tmp_path / "cache").write_text("a file, not a folder")
    with pytest.raises(DataError, match="could not be fetched"):
        hub.download_dataset("org/name", None, "train")


def test_the_export_writes_class_names(tmp_path):
    import datasets

    features = datasets.Features(text=datasets.Value("string"), label=datasets.ClassLabel(names=["no", "yes"]))
    rows = datasets.Dataset.from_dict({"text": ["a\u2028", "b"], "label": [1, -1]}, features=features)
    (tmp_path / "data").mkdir()
    rows.to_parquet(tmp_path / "data" / "train.parquet")
    out = tmp_path / "out.jsonl"
    code = Path(hub.__file__).with_name("hub_child.py")
    hub.run_with_deadline(code, "dataset", str(tmp_path / "data"), "", "train", str(out), seconds=60.0)
    written = [json.loads(line) for line in out.read_text().split("\n")[:-1]]
    assert written == [{"text": "a\u2028", "label": "yes"}, {"text": "b"}]


def model_hub(files):
    """Answers of a hub that holds one model, org/name."""

    def answer(path):
        path = path.partition("?")[0]
        kind = {"Content-Type": "application/json"}
        if path.startswith("/api/models/org/name/tree/"):
            tree = [{"type": "file", "path": n, "size": len(b), "oid": "0" * 40} for n, b in files.items()]
            return 200, kind, json.dumps(tree).encode()
        if path.startswith("/api/models/org/name"):
            return 200, kind, json.dumps({"id": "org/name", "sha": COMMIT, "siblings": []}).encode()
        name = path.rpartition("/")[2]
        if path == f"/org/name/resolve/{COMMIT}/{name}" and name in files:
            return 200, {"ETag": f'"{name}"', "X-Repo-Commit": COMMIT}, files[name]
        return 404, {}, b""

    return answer


def test_a_model_is_downloaded_without_its_pickles_and_found_again_offline(monkeypatch):
    with serving(model_hub(FILES)) as port:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
        folder = hub.download_model("org/name", seconds=60.0)
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors", "vocab.txt"]
    assert (folder / "model.safetensors").read_bytes() == b"weights"
    assert hub.download_model("org/name", offline=True) == folder
    # The hub's newest libraries notice a missing file by themselves, older caches by what is checked here.
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="nor complete in the hub's cache"):
        hub.download_model("org/name", offline=True)


def test_a_model_that_came_without_its_tokenizer_is_fetched_whole(monkeypatch, tmp_path):
    """Found by review: who had loaded the weights alone in torch was told to pass a folder with a tokenizer."""
    cache = tmp_path / "hf" / "models--org--name"
    folder = cache / "snapshots" / COMMIT  # as transformers leaves it, file by file
    folder.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes(FILES[name])
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(COMMIT)
    assert hub.download_model("org/name", offline=True) == folder  # nobody can be asked
    with serving(model_hub(FILES)) as port:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
        assert (hub.download_model("org/name", seconds=60.0) / "vocab.txt").is_file()


def test_a_shard_that_did_not_come_is_missed(tmp_path):
    (tmp_path / "vocab.txt").touch()
    weights = {"weight_map": {"w": "model-00001-of-00002.safetensors", "v": "model-00002-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(weights))
    (tmp_path / "model-00001-of-00002.safetensors").touch()
    assert hub._lacks_parts(tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").touch()
    assert not hub._lacks_parts(tmp_path)


def test_a_model_of_pickles_only_and_one_that_does_not_exist(monkeypatch):
    with serving(model_hub({name: FILES[name] for name in ("config.json", "pytorch_model.bin")})) as port:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
        with pytest.raises(ModelError, match=r"no config.json with safetensors weights; it holds config.json"):
            hub.download_model("org/name", seconds=60.0)
        with pytest.raises(ModelError, match="'org/other' could not be fetched from http://127"):
            hub.download_model("org/other", seconds=60.0)


def test_the_room_imports_no_heavy_library():
    folder = Path(hub.__file__).parent
    modules = [f"mlprune_jax.data.{p.stem}" for p in folder.glob("*.py") if p.stem != "__init__"]
    code = f"import sys, {', '.join(modules)}; print(*sys.modules)"
    loaded = subprocess.check_output([sys.executable, "-c", code], cwd=folder.parents[1], text=True).split()
    assert not {"jax", "flax", "transformers", "datasets", "huggingface_hub", "grain", "pydantic"} & set(loaded)
