"""The Hub's real client against a small local server that answers the requests it makes."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections import namedtuple
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from networks import TINY

from rrl_match.hub import find_folder
from rrl_match.modeling import RRLNet
from rrl_match.pretrained import ModelConfig, save_folder

pytestmark = pytest.mark.slow  # the Hub's client runs in processes of its own

COMMIT, OTHER_COMMIT = "a" * 40, "b" * 40
TOKEN = "hf_secret"
PAGE = b"<!DOCTYPE html><html><body>Please log in to this network</body></html>"

# Runs each call of a list and prints a line of JSON for it: the modalities or the error, how long the client would have
# slept, and the URL of an upload. The last line has the addresses that were connected to.
CLIENT = """
import json, sys, time

slept = []
time.sleep = slept.append  # otherwise the client waits 23 s for a server that is gone
contacted = set()
def watch(event, args):
    if event == "socket.connect" and isinstance(args[1], tuple):
        contacted.add(f"{args[1][0]}:{args[1][1]}")
    if event == "socket.getaddrinfo":
        contacted.add(f"{args[0]}:{args[1]}")
sys.addaudithook(watch)

from rrl_match import RRLMatcher, RRLMatchError, hub

calls, manifest = json.loads(sys.argv[1])
released = hub._manifest()
for call in calls:
    known = {**released, **(manifest if call.pop("released", False) else {})}
    hub._manifest = lambda: known
    repo_id, push = call.pop("repo_id"), call.pop("push", None)
    try:
        matcher = RRLMatcher.from_pretrained(repo_id, device="cpu", dtype="float32", **call)
        outcome = {"modalities": matcher.modalities}
        if push:
            outcome["commit"] = matcher.push_to_hub(**push)
    except RRLMatchError as error:
        outcome = {"error": type(error).__name__, "message": str(error)}
    print(json.dumps({**outcome, "slept": sum(slept)}))
    slept.clear()
print(json.dumps(sorted(contacted)))
"""

Request = namedtuple("Request", "method path authorised")


class Hub(BaseHTTPRequestHandler):
    """Downloads from, and uploads to, the server's `files` {(repo, commit, file): bytes}.

    The server has `branches` {(repo, name): commit}, a set `private` of repos that need the token, and `faults`
    {(repo, file): fault}, where a fault is an HTTP status, or a status and the Hub's error code, or

    - "page": another server answers with a page and status 200; "page for the file": only to GET;
    - "drop": the connection breaks after half of the file, always; "drop once": the first time;
    - "change once": a byte of the file is changed the first time;
    - "silence": there is no answer.
    """

    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.send_file()

    def do_GET(self):
        self.send_file()

    def do_PUT(self):
        content = self.read()
        self.server.uploads[self.path.removeprefix("/upload/")] = content
        self.reply(200)

    def do_POST(self):
        content = self.read()
        if self.path == "/api/repos/create":
            wanted = json.loads(content)
            repo = f"{wanted['organization']}/{wanted['name']}"
            if repo == "owner/forbidden" or not self.is_authorised():
                return self.reply(403, "Forbidden")
            if wanted.get("private") or wanted.get("visibility") == "private":
                self.server.private.add(repo)
            return self.reply_json({"url": f"{self.server.endpoint}/{repo}"})
        if self.path == "/api/validate-yaml":
            return self.reply_json({})
        if re.fullmatch(r"/[^/]+/[^/]+\.git/info/lfs/objects/batch", self.path):
            objects = [
                {**o, "actions": {"upload": {"href": f"{self.server.endpoint}/upload/{o['oid']}"}}}
                for o in json.loads(content)["objects"]
            ]
            return self.reply_json({"transfer": "basic", "objects": objects})
        repo, action, branch = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(\w+)/([^/?]+).*", self.path).groups()
        if action == "branch":
            return self.reply_json({})
        if action == "preupload":
            modes = [
                {"path": f["path"], "uploadMode": mode, "shouldIgnore": False}
                for f in json.loads(content)["files"]
                for mode in ["lfs" if f["path"].endswith(".safetensors") else "regular"]
            ]
            return self.reply_json({"files": modes})
        assert action == "commit", self.path
        commit = hashlib.sha1(content).hexdigest()
        self.server.branches[repo, branch] = commit
        for line in map(json.loads, content.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                self.server.files[repo, commit, value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.server.files[repo, commit, value["path"]] = self.server.uploads[value["oid"]]
        url = f"{self.server.endpoint}/{repo}/commit/{commit}"
        return self.reply_json({"commitUrl": url, "commitOid": commit})

    def send_file(self):
        self.note()
        found = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.path)
        repo, revision, file = found.groups() if found else ("", "", "")
        if repo in self.server.private and not self.is_authorised():
            return self.reply(401, "RepoNotFound")
        fault = self.server.faults.get((repo, file))
        if isinstance(fault, str) and fault.endswith("once") and self.command == "GET":
            del self.server.faults[repo, file]
        if isinstance(fault, int):
            return self.reply(fault)
        if isinstance(fault, tuple):
            return self.reply(*fault)
        if fault == "silence":
            self.server.closing.wait(60)
            self.close_connection = True
            return None
        if fault == "page" or (fault == "page for the file" and self.command == "GET"):
            return self.reply(200, content=PAGE, headers={"Content-Type": "text/html"})
        commit = self.server.branches.get((repo, revision), revision)
        content = self.server.files.get((repo, commit, file))
        if content is None:
            repos = {key[0] for key in self.server.files}
            commits = {key[1] for key in self.server.files if key[0] == repo}
            code = "EntryNotFound" if commit in commits else "RevisionNotFound" if repo in repos else "RepoNotFound"
            return self.reply(404, code)
        headers = {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'}
        if fault == "change once":
            content = content[:-1] + bytes([content[-1] ^ 1])
        start, end = 0, len(content) // 2 if fault in ("drop", "drop once") else len(content)
        if wanted := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start = int(wanted[1])
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self.close_connection = end < len(content)
        headers["Content-Length"] = str(len(content) - start)
        return self.reply(206 if wanted else 200, content=content[start:end], headers=headers)

    def is_authorised(self):
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def note(self):
        self.server.requests.append(Request(self.command, self.path, "Authorization" in self.headers))

    def read(self):
        self.note()
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def reply_json(self, value):
        self.reply(200, content=json.dumps(value).encode(), headers={"Content-Type": "application/json"})

    def reply(self, status, code="", content=b"", headers=None):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        if code:
            self.send_header("X-Error-Code", code)
            self.send_header("X-Error-Message", code)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *args):
        pass


def load(calls, home, endpoint, manifest, **options):
    """Outcomes of calls {name: arguments} in a fresh process, its stderr, and the addresses that it connected to."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING")) and "proxy" not in k.lower()}
    clean.pop("XDG_CACHE_HOME", None)
    env = clean | {
        "HOME": str(home.parent / "user"),
        "HF_HOME": str(home),
        "HF_ENDPOINT": endpoint,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "OMP_NUM_THREADS": "1",
        **options,
    }
    done = subprocess.run(
        [sys.executable, "-c", CLIENT, json.dumps([list(calls.values()), manifest])],
        env=env,
        cwd=home.parent,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *outcomes, contacted = map(json.loads, done.stdout.splitlines())
    return dict(zip(calls, outcomes, strict=True)), done.stderr, contacted


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    """Outcomes of calls while the server runs, without and with a token; in offline mode; and after it has stopped."""
    tmp = tmp_path_factory.mktemp("hub")
    files, folders = {}, {}
    for commit, band in ((COMMIT, "new"), (OTHER_COMMIT, "old")):
        folders[band] = save_folder(tmp / band, RRLNet(TINY), ModelConfig((band, "nir"), network=TINY), "")
        for path in folders[band].iterdir():
            files["owner/good", commit, path.name] = path.read_bytes()
    good = {key[2]: content for key, content in files.items() if key[1] == COMMIT}
    config, weights = good["config.json"], good["model.safetensors"]
    faults = {
        ("owner/drops-once", "model.safetensors"): "drop once",
        ("owner/drops", "model.safetensors"): "drop",
        ("owner/drops-card", "README.md"): "drop",
        ("owner/page", "config.json"): "page",
        ("owner/page-for-config", "config.json"): "page for the file",
        ("owner/page-for-weights", "model.safetensors"): "page for the file",
        ("owner/changed", "model.safetensors"): "change once",
        ("owner/gated", "config.json"): (403, "GatedRepo"),
        ("owner/down", "config.json"): 503,
        ("owner/busy", "config.json"): 429,
        ("owner/silent", "config.json"): "silence",
    }
    for repo in {"owner/private", "owner/released", *(repo for repo, _ in faults)}:
        files.update({(repo, COMMIT, name): content for name, content in good.items()})
    files["owner/drops-card", COMMIT, "README.md"] = b"# A card"
    files["owner/empty", COMMIT, "README.md"] = b""
    files.update({("owner/pickle", COMMIT, name): config for name in ("config.json", "pytorch_model.bin", "model.pt")})
    for repo, content in {
        "owner/cut-off": weights[:-9],
        "owner/infinite": weights[:-2] + b"\x00\x7c",  # float16
        "owner/renamed": weights.replace(b"metric.head.2", b"metric.tail.2"),
    }.items():
        files[repo, COMMIT, "config.json"], files[repo, COMMIT, "model.safetensors"] = config, content
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in good.items()}
    manifest = {repo: {"repo_id": f"owner/{repo}", "files": sums} for repo in ("released", "changed")}

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.files, server.faults, server.uploads, server.requests = files, faults, {}, []
    server.private, server.closing = {"owner/private"}, threading.Event()
    server.branches = {(repo, "main"): COMMIT for repo, _, _ in files} | {("owner/good", "old"): OTHER_COMMIT}
    server.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()

    online = {
        "first": {"repo_id": "owner/good"},
        "revision": {"repo_id": "owner/good", "revision": "old"},
        "again": {"repo_id": "owner/good", "force_download": True},
        "other cache": {"repo_id": "owner/good", "cache_dir": str(tmp / "cache")},
        "unknown repo": {"repo_id": "owner/nothing"},
        "unknown revision": {"repo_id": "owner/good", "revision": "v9"},
        "no config": {"repo_id": "owner/empty"},
        "pickle alone": {"repo_id": "owner/pickle"},
        "private, no token": {"repo_id": "owner/private"},
        "private, wrong token": {"repo_id": "owner/private", "token": "hf_wrong"},
        "private": {"repo_id": "owner/private", "token": TOKEN},
        "gated": {"repo_id": "owner/gated"},
        "drops once": {"repo_id": "owner/drops-once"},
        "drops": {"repo_id": "owner/drops"},
        "card drops": {"repo_id": "owner/drops-card"},
        "page": {"repo_id": "owner/page"},
        "page for config": {"repo_id": "owner/page-for-config"},
        "page for weights": {"repo_id": "owner/page-for-weights"},
        "down": {"repo_id": "owner/down"},
        "busy": {"repo_id": "owner/busy"},
        "cut off": {"repo_id": "owner/cut-off"},
        "infinite": {"repo_id": "owner/infinite"},
        "renamed": {"repo_id": "owner/renamed"},
        "released": {"repo_id": "owner/released", "released": True},
        "changed": {"repo_id": "owner/changed", "released": True},
        "changed, cached": {"repo_id": "owner/changed", "released": True, "local_files_only": True},
        "mended": {"repo_id": "owner/changed", "released": True, "force_download": True},
        "push": {
            "repo_id": str(folders["new"]),
            "push": {"repo_id": "owner/pushed", "token": TOKEN, "private": True},
        },
        "push a branch": {
            "repo_id": str(folders["old"]),
            "push": {"repo_id": "owner/pushed", "token": TOKEN, "revision": "v2", "commit_message": "Second"},
        },
        "push, forbidden": {"repo_id": str(folders["new"]), "push": {"repo_id": "owner/forbidden", "token": TOKEN}},
        "push, bad name": {"repo_id": str(folders["new"]), "push": {"repo_id": "a/b/c", "token": TOKEN}},
        "pushed": {"repo_id": "owner/pushed", "token": TOKEN},
        "pushed branch": {"repo_id": "owner/pushed", "token": TOKEN, "revision": "v2"},
    }
    with_token = {
        "HF_TOKEN": {"repo_id": "owner/private"},
        "token=False": {"repo_id": "owner/private", "token": False, "cache_dir": str(tmp / "empty cache")},
        "silent": {"repo_id": "owner/silent"},
    }
    offline = {
        "HF_HUB_OFFLINE": {"repo_id": "owner/good"},
        "HF_HUB_OFFLINE, not cached": {"repo_id": "owner/other"},
        "HF_HUB_OFFLINE, by force": {"repo_id": "owner/good", "force_download": True},
    }
    gone = {
        "cached": {"repo_id": "owner/good", "local_files_only": True},
        "cached revision": {"repo_id": "owner/good", "revision": "old", "local_files_only": True},
        "not cached": {"repo_id": "owner/other", "local_files_only": True},
        "commit": {"repo_id": "owner/good", "revision": COMMIT},
        "server gone": {"repo_id": "owner/good"},
        "server gone, not cached": {"repo_id": "owner/other"},
        "server gone, by force": {"repo_id": "owner/good", "force_download": True},
        "server gone, push": {"repo_id": str(folders["new"]), "push": {"repo_id": "owner/pushed", "token": TOKEN}},
    }
    quiet = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"}
    # With progress bars, even without a terminal.
    shown = {"HF_TOKEN": TOKEN, "HF_HUB_ETAG_TIMEOUT": "3", "TQDM_POSITION": "-1"}
    common = server.endpoint, manifest
    outcomes, stderr, contacted = load(online, tmp / "home", *common, **quiet)
    requests = list(server.requests)
    # A commit is loaded in a separate process, to tell its requests from the others.
    more, bars, addresses = load(with_token, tmp / "other home", *common, **shown)
    outcomes |= more
    requests_before = len(server.requests)
    more, _, none = load(offline | {"pinned": gone["commit"]}, tmp / "home", *common, **quiet, HF_HUB_OFFLINE="1")
    outcomes |= more
    more, _, addresses_of_commit = load({"commit, server there": gone["commit"]}, tmp / "home", *common, **quiet)
    outcomes |= more
    requests_since = len(server.requests) - requests_before
    server.closing.set()
    server.shutdown()
    server.server_close()
    thread.join()
    more, _, last = load(gone, tmp / "home", *common, **quiet)
    return {
        "outcomes": outcomes | more,
        "calls": online | with_token | offline | gone,
        "requests": requests,
        "unwanted requests": (requests_since, none, addresses_of_commit),
        "addresses": {*contacted, *addresses, *last},
        "endpoint": server.endpoint,
        "stderr": stderr,
        "bars": bars,
        "files": files,
        "folders": folders,
        "branches": server.branches,
        "home": tmp,
    }


@pytest.mark.parametrize(
    "call",
    [
        "first",
        "again",
        "other cache",
        "private",
        "drops once",
        "card drops",
        "released",
        "mended",
        "pushed",
        "HF_TOKEN",
        "HF_HUB_OFFLINE",
        "pinned",
        "commit, server there",
        "cached",
        "commit",
        "server gone",
    ],
)
def test_loads(session, call):
    assert session["outcomes"][call]["modalities"] == ["new", "nir"]


@pytest.mark.parametrize("call", ["revision", "cached revision", "pushed branch"])
def test_loads_a_revision(session, call):
    assert session["outcomes"][call]["modalities"] == ["old", "nir"]


NOT_FOUND = {
    "unknown repo": "Repository Not Found",
    "unknown revision": "revision 'v9' of 'owner/good'.*Revision Not Found",
    "no config": r"config\.json",
    "pickle alone": r"model\.safetensors",
    "private, no token": "401",
    "private, wrong token": "401",
    "token=False": "401",
    "gated": "(?i)gated",
    "drops": "OSError|ProtocolError|Consistency",
    "page": "X-Repo-Commit|locate the file on the Hub",
    "page for config": r"should be of size \d+ but has size \d+",
    "page for weights": r"should be of size \d+ but has size \d+",
    "down": "503",
    "busy": "429",
    "silent": "(?i)timed? ?out",
    "HF_HUB_OFFLINE, not cached": "(?i)offline",
    "HF_HUB_OFFLINE, by force": "(?i)offline",
    "not cached": "outgoing traffic has been disabled",
    "server gone, not cached": "(?i)connect",
    "server gone, by force": "(?i)connect",
}


@pytest.mark.parametrize("call", NOT_FOUND)
def test_weights_that_cannot_be_downloaded(session, call):
    """The message names the request, the cause and the way out."""
    outcome = session["outcomes"][call]
    assert outcome["error"] == "WeightsNotFoundError"
    assert re.search(
        f"^could not load .*'{session['calls'][call]['repo_id']}' from the Hugging Face Hub, .*"
        "Check the name, the token and the connection, or give a local folder$",
        outcome["message"],
        re.DOTALL,
    )
    assert re.search(NOT_FOUND[call], outcome["message"], re.DOTALL), outcome["message"]


BROKEN = {
    "cut off": "cannot be read as safetensors, it may be cut off",
    "infinite": "holds NaN or infinity",
    "renamed": "lacks metric.head.2",
    "changed": r"model\.safetensors is not the released file",
    "changed, cached": r"model\.safetensors is not the released file",
}


@pytest.mark.parametrize("call", BROKEN)
def test_broken_downloads_are_refused(session, call):
    outcome = session["outcomes"][call]
    assert outcome["error"] == "WeightsError"
    assert re.search(rf"models--owner--.*{BROKEN[call]}.*force_download=True", outcome["message"])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("push, forbidden", "'owner/forbidden'.*403.*the write permission of the token"),
        ("push, bad name", "'a/b/c'.*Check the name"),
        ("server gone, push", "'owner/pushed'.*(?i:connect).*and the connection"),
    ],
)
def test_uploads_that_fail(session, call, message):
    assert session["outcomes"][call]["error"] == "RRLMatchError"
    assert re.search(f"could not upload to {message}", session["outcomes"][call]["message"], re.DOTALL)


@pytest.mark.parametrize(("call", "branch", "folder"), [("push", "main", "new"), ("push a branch", "v2", "old")])
def test_push(session, call, branch, folder):
    commit = session["branches"]["owner/pushed", branch]
    assert session["outcomes"][call]["commit"] == f"{session['endpoint']}/owner/pushed/commit/{commit}"
    pushed = {
        name: content
        for (repo, of, name), content in session["files"].items()
        if (repo, of) == ("owner/pushed", commit)
    }
    assert pushed == {path.name: path.read_bytes() for path in session["folders"][folder].iterdir()}


def test_no_silent_wait(session):
    """Only a download that breaks is tried again, soon and with a message on stderr."""
    waits = {call: outcome["slept"] for call, outcome in session["outcomes"].items() if outcome["slept"]}
    assert set(waits) <= {"drops", "drops once", "card drops"}
    assert max(waits.values(), default=0) <= 10
    assert not waits or "Trying to resume" in session["stderr"]


def test_tokens_are_not_revealed(session):
    assert not any("hf_" in outcome.get("message", "") for outcome in session["outcomes"].values())
    assert "hf_" not in session["stderr"] + session["bars"]
    for request in session["requests"]:
        if request.authorised:
            assert re.search(r"owner/(private|pushed|forbidden)|/upload/|/api/", request.path), request


def test_config_is_requested_first(session):
    """The Hub counts downloads by it."""
    first = {}
    for request in session["requests"]:
        if found := re.fullmatch(r"/(.+)/resolve/[^/]+/(.+)", request.path):
            first.setdefault(found[1], found[2])
    assert set(first.values()) == {"config.json"}


def test_weights_are_of_the_same_commit_as_the_config(session):
    paths = [request.path for request in session["requests"]]
    assert f"/owner/good/resolve/{COMMIT}/model.safetensors" in paths
    assert not [path for path in paths if path.endswith("main/model.safetensors")]


def test_only_config_weights_and_card_are_requested(session):
    asked = {request.path.rsplit("/", 1)[1] for request in session["requests"] if "/resolve/" in request.path}
    assert asked == {"config.json", "model.safetensors", "README.md"}


def test_a_file_in_the_cache_is_not_fetched_again(session):
    fetched = [request.path for request in session["requests"] if request.method == "GET"]
    assert fetched.count(f"/owner/good/resolve/{OTHER_COMMIT}/model.safetensors") == 1
    # the first time, with force_download, and into the other cache
    assert fetched.count(f"/owner/good/resolve/{COMMIT}/model.safetensors") == 3


def test_a_pinned_commit_and_offline_mode_make_no_request(session):
    assert session["unwanted requests"] == (0, [], [])


def test_caches_are_where_they_should_be(session):
    home = session["home"]
    for cache in (home / "home" / "hub", home / "cache", home / "other home" / "hub"):
        assert list(cache.glob("models--owner--*/snapshots/*/model.safetensors"))
    assert not (home / "user").exists()


def test_no_other_address_is_contacted(session):
    assert session["addresses"] == {session["endpoint"].removeprefix("http://")}


def test_progress_bar_is_the_hubs(session):
    assert re.search(r"model\.safetensors: 100%", session["bars"])
    assert "%|" not in session["stderr"]


@pytest.mark.parametrize("name", ["a" * 5000, "owner/" + "a" * 5000, "owner/a..b", "owner/-", "a\0b", "\ud800/x"])
def test_invalid_names(name, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", lambda *a, **k: pytest.fail("asked the Hub"))
    with pytest.raises(FileNotFoundError, match=r"local folder|the path of a folder"):
        find_folder(name, revision=COMMIT)


@pytest.mark.parametrize("revision", [5, b"main", ["main"]])
def test_revision_of_another_type(revision):
    with pytest.raises(TypeError, match="revision must be"):
        find_folder("owner/name", revision=revision)
