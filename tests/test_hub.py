"""The Hub's real client against a small server on this machine that speaks as much of the Hub as it asks for."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from rrl_match import ModelConfig
from rrl_match.modeling import RRLNet, RRLNetConfig
from rrl_match.pretrained import save_folder

TINY = RRLNetConfig(encoder_channels=(2,) * 5, metric_channels=(2,) * 5, hidden=(2,))
COMMIT, OTHER_COMMIT = "a" * 40, "b" * 40

# Runs every call of a list, and prints a line of JSON for each: folder and modalities, or the error. Besides,
# the addresses that were connected to.
CLIENT = """
import json, sys, time

def refuse_to_wait(seconds):
    raise AssertionError(f"slept {seconds} s")

time.sleep = refuse_to_wait  # left to itself, the client waits 23 s in all for a server that has gone
contacted = set()
def watch(event, args):
    if event == "socket.connect" and isinstance(args[1], tuple):
        contacted.add(f"{args[1][0]}:{args[1][1]}")
    if event == "socket.getaddrinfo":
        contacted.add(f"{args[0]}:{args[1]}")
sys.addaudithook(watch)

from rrl_match import RRLMatcher, RRLMatchError, pretrained

calls, manifest = json.loads(sys.argv[1])
released = pretrained._manifest()
for call in calls:
    known = {**released, **(manifest if call.pop("released", False) else {})}
    pretrained._manifest = lambda: known
    repo_id = call.pop("repo_id")
    try:
        matcher = RRLMatcher.from_pretrained(repo_id, device="cpu", dtype="float32", **call)
        print(json.dumps({"modalities": matcher.modalities}))
    except RRLMatchError as error:
        print(json.dumps({"error": type(error).__name__, "message": str(error)}))
print(json.dumps(sorted(contacted)))
"""


class Hub(BaseHTTPRequestHandler):
    """HEAD and GET of /{repo}/resolve/{revision}/{file}, from the server's `files` {(repo, revision, file): bytes}."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.answer(with_content=False)

    def do_GET(self):
        self.answer(with_content=True)

    def answer(self, with_content):
        self.server.requests.append(f"{self.command} {self.path}")
        found = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.path)
        repo, revision, file = found.groups() if found else ("", "", "")
        commit = {"main": COMMIT, "old": OTHER_COMMIT}.get(revision, revision)
        content = self.server.files.get((repo, commit, file))
        if content is None:
            repos = {key[0] for key in self.server.files}
            commits = {key[1] for key in self.server.files if key[0] == repo}
            code = "EntryNotFound" if commit in commits else "RevisionNotFound" if repo in repos else "RepoNotFound"
            self.send_response(404)
            self.send_header("X-Error-Code", code)
            self.send_header("X-Error-Message", code)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("X-Repo-Commit", commit)
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if with_content:
            self.wfile.write(content)

    def log_message(self, *args):
        pass


def load(calls, home, endpoint, manifest=None):
    """Outcomes of the calls in a fresh process, and the addresses it connected to."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING")) and "proxy" not in k.lower()}
    env = clean | {
        "HF_HOME": str(home),
        "HF_ENDPOINT": endpoint,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", CLIENT, json.dumps([calls, manifest or {}])],
        env=env,
        cwd=home.parent,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *outcomes, contacted = map(json.loads, done.stdout.splitlines())
    return outcomes, contacted


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    """One process that loads from the server, and then one that starts after the server has gone."""
    tmp = tmp_path_factory.mktemp("hub")
    files = {}
    for commit, band in ((COMMIT, "new"), (OTHER_COMMIT, "old")):
        folder = save_folder(tmp / band, RRLNet(TINY), ModelConfig((band, "nir"), network=TINY), "")
        for path in folder.iterdir():
            files["owner/good", commit, path.name] = path.read_bytes()
    good = {key[2]: content for key, content in files.items() if key[1] == COMMIT}
    for name, content in good.items():
        files["owner/changed", COMMIT, name] = content
        files["owner/released", COMMIT, name] = content
        files["owner/cut-off", COMMIT, name] = content[:-9] if name == "model.safetensors" else content
    files["owner/empty", COMMIT, "README.md"] = b""
    sums = {k: hashlib.sha256(v).hexdigest() for k, v in good.items() if k != "README.md"}
    manifest = {
        "released": {"repo_id": "owner/released", "files": sums},
        "changed": {"repo_id": "owner/changed", "files": {**sums, "model.safetensors": "0" * 64}},
    }
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.files, server.requests = files, []
    endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    online = {
        "first": {"repo_id": "owner/good"},
        "revision": {"repo_id": "owner/good", "revision": "old"},
        "commit": {"repo_id": "owner/good", "revision": COMMIT},
        "unknown repo": {"repo_id": "owner/nothing"},
        "unknown revision": {"repo_id": "owner/good", "revision": "v9"},
        "no weights": {"repo_id": "owner/empty"},
        "cut off": {"repo_id": "owner/cut-off"},
        "released": {"repo_id": "owner/released", "released": True},
        "changed": {"repo_id": "owner/changed", "released": True},
        "other cache": {"repo_id": "owner/good", "cache_dir": str(tmp / "cache")},
        "again": {"repo_id": "owner/good", "force_download": True},
    }
    outcomes, contacted = load(list(online.values()), tmp / "home", endpoint, manifest)
    server.shutdown()
    server.server_close()
    thread.join()
    requests = list(server.requests)
    offline = {
        "cached": {"repo_id": "owner/good", "local_files_only": True},
        "cached revision": {"repo_id": "owner/good", "revision": "old", "local_files_only": True},
        "server gone": {"repo_id": "owner/good"},
        "cached, changed": {"repo_id": "owner/changed", "released": True, "local_files_only": True},
        "not cached": {"repo_id": "owner/other", "local_files_only": True},
        "not cached, server gone": {"repo_id": "owner/other"},
    }
    later, contacted_later = load(list(offline.values()), tmp / "home", endpoint, manifest)
    return {
        **dict(zip(online, outcomes, strict=True)),
        **dict(zip(offline, later, strict=True)),
        "requests": requests,
        "addresses": {*contacted, *contacted_later},
        "endpoint": endpoint.removeprefix("http://"),
        "cache": tmp / "cache",
    }


@pytest.mark.parametrize("call", ["first", "commit", "other cache", "again", "released", "cached", "server gone"])
def test_loads(session, call):
    assert session[call] == {"modalities": ["new", "nir"]}


@pytest.mark.parametrize("call", ["revision", "cached revision"])
def test_loads_a_revision(session, call):
    assert session[call] == {"modalities": ["old", "nir"]}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("unknown repo", "could not load 'owner/nothing' from the Hugging Face Hub.*Check the name"),
        ("unknown revision", "could not load revision 'v9' of 'owner/good' from.*Check the name"),
        ("no weights", "could not load 'owner/empty'.*config.json"),
        ("not cached", "could not load 'owner/other'.*local folder"),
        ("not cached, server gone", "could not load 'owner/other'.*connection, or give a local folder"),
    ],
)
def test_nothing_there(session, call, message):
    assert session[call]["error"] == "WeightsNotFoundError"
    assert re.search(message, session[call]["message"], re.DOTALL)


@pytest.mark.parametrize("call", ["changed", "cached, changed"])
def test_changed_weights(session, call):
    assert session[call]["error"] == "WeightsError"
    assert re.search(
        r"model\.safetensors is not the released file.*force_download=True; another revision needs",
        session[call]["message"],
    )


def test_cut_off_upload(session):
    assert session["cut off"]["error"] == "WeightsError"
    assert "cannot be read as safetensors" in session["cut off"]["message"]


def test_weights_are_of_the_same_commit_as_the_config(session):
    assert f"GET /owner/good/resolve/{COMMIT}/model.safetensors" in session["requests"]
    assert not [r for r in session["requests"] if r.endswith("main/model.safetensors")]


def test_only_config_and_weights_are_asked_for(session):
    assert {r.rsplit("/", 1)[1] for r in session["requests"]} <= {"config.json", "model.safetensors", "README.md"}


def test_a_file_in_the_cache_is_not_fetched_again(session):
    fetched = [r for r in session["requests"] if r.startswith(f"GET /owner/good/resolve/{OTHER_COMMIT}/model")]
    assert len(fetched) == 1
    # once at first, once into the other cache, once by force
    assert len([r for r in session["requests"] if r.startswith(f"GET /owner/good/resolve/{COMMIT}/model")]) == 3


def test_cache_dir(session):
    assert list(session["cache"].glob("models--owner--good/snapshots/*/model.safetensors"))


def test_no_other_address_is_contacted(session):
    assert session["addresses"] == {session["endpoint"]}
