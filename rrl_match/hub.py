"""Where weights come from: bundled names, folders and the Hugging Face Hub. The only user of the Internet."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from contextlib import suppress
from importlib import resources
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError

from rrl_match.errors import RRLMatchError, WeightsError, WeightsNotFoundError

CONFIG_FILE, WEIGHTS_FILE, CARD_FILE = "config.json", "model.safetensors", "README.md"
DEFAULT_WEIGHTS = "universal"

_REPO_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
_COMMIT = re.compile(r"[0-9a-f]{40}")

_logger = logging.getLogger(__name__)


def bundled_names() -> list[str]:
    """Names of the weights that are part of the package."""
    return sorted(_manifest())


def stored_scores(name: str) -> list[float] | None:
    """Scores of the selftest's pairs with bundled weights, stored at release (float32); None if none were stored."""
    scores: list[float] | None = _manifest()[name].get("selftest")
    return scores


def find_folder(
    name_or_path: str | os.PathLike[str],
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
    force_download: bool = False,
    local_files_only: bool = False,
) -> Path:
    """The weights folder of a bundled name, a local path or a Hub repo id, tried in this order.

    Released files are checked against the sha256 sums of the manifest, wherever they come from: the Hub client does not
    check the content of its downloads.

    Args:
        name_or_path: such as "vis-nir", "./my-weights" or "owner/name".
        revision, cache_dir, token, force_download, local_files_only: see ``huggingface_hub.hf_hub_download``.

    Raises:
        TypeError: not a name or a path.
        ValueError: a revision for weights that do not come from the Hub.
        WeightsNotFoundError: there are no weights of this name, or the Hub cannot be reached.
        WeightsError: a released file has changed.
    """
    if not isinstance(name_or_path, (str, os.PathLike)):
        raise TypeError(f"name_or_path must be a name, a folder or a Hub repo id, got {type(name_or_path).__name__}")
    if revision is not None and not isinstance(revision, str):
        raise TypeError(f"revision must be a branch, a tag or a commit, got {type(revision).__name__}")
    name = os.fspath(name_or_path)
    local = _local_folder(name)
    if local is not None:
        if revision is not None:
            raise ValueError(f"revision is for Hub repos, but {name!r} is local: leave it out")
        return local
    if not _REPO_ID.fullmatch(name):
        known = ", ".join(_manifest()) or "none, because rrl-match is not installed"
        raise WeightsNotFoundError(
            f"{name!r} is neither a bundled name ({known}) nor a folder: "
            'give one of these, the path of a folder, or a Hub repo id "owner/name"'
        )
    options = {
        "cache_dir": cache_dir,
        "token": token,
        "force_download": force_download,
        "local_files_only": local_files_only,
    }
    folder = _download(name, revision, options)
    _verify_release(folder, name)
    return folder


def _local_folder(name: str) -> Path | None:
    """The folder of a bundled name or a local path; None for anything else.

    Raises:
        WeightsError: a bundled file is missing or has changed.
    """
    manifest = _manifest()
    if name in manifest:
        folder = _weights_package() / name
        _verify(folder, manifest[name]["files"], "reinstall rrl-match")
        return folder
    return Path(name) if os.path.isdir(name) else None  # also false for names that cannot be paths


def _verify_release(folder: Path, repo_id: str) -> None:
    """Check a download of one of the released repos.

    Raises:
        WeightsError: a file is missing or has changed.
    """
    for released in _manifest().values():
        if released["repo_id"].lower() == repo_id.lower():
            _verify(
                folder,
                released["files"],
                "load it with force_download=True; other revisions need the version of rrl-match that they came with",
            )


def _download(repo_id: str, revision: str | None, options: dict[str, Any]) -> Path:
    """The folder in the Hub's cache with config and weights of one commit of a repo."""
    unreachable = None
    try:
        if _has_commit(repo_id, revision, options):  # a commit never changes: no need to ask
            options = {**options, "local_files_only": True}
        elif not options["local_files_only"]:
            unreachable = _connection_error(repo_id, revision, options["token"])
            options = {**options, "local_files_only": unreachable is not None}
        config = Path(huggingface_hub.hf_hub_download(repo_id, CONFIG_FILE, revision=revision, **options))
        # The folder in the cache is named by the commit. The weights must not come from a later one.
        weights = huggingface_hub.hf_hub_download(repo_id, WEIGHTS_FILE, revision=config.parent.name, **options)
    except Exception as error:  # of the client, its HTTP library or the operating system
        where = f"revision {revision!r} of " if revision else ""
        cause = unreachable or error
        raise WeightsNotFoundError(
            f"could not load {where}{repo_id!r} from the Hugging Face Hub, and there is no such folder: "
            f"{_describe(cause)}. Check the name, the token and the connection, or give a local folder"
        ) from cause
    with suppress(Exception):  # the model card is optional
        huggingface_hub.hf_hub_download(repo_id, CARD_FILE, revision=config.parent.name, **options)
    return Path(weights).parent


def _has_commit(repo_id: str, revision: str | None, options: dict[str, Any]) -> bool:
    """Whether the revision is a commit whose files are in the cache and may be used."""
    if options["force_download"] or not _COMMIT.fullmatch(revision or ""):
        return False
    cached = (
        huggingface_hub.try_to_load_from_cache(repo_id, file, cache_dir=options["cache_dir"], revision=revision)
        for file in (CONFIG_FILE, WEIGHTS_FILE)
    )
    return all(isinstance(path, str) for path in cached)


def _connection_error(repo_id: str, revision: str | None, token: str | bool | None) -> Exception | None:
    """Why the Hub does not answer, or None if it does.

    Asked first because the client would retry for half a minute, or as long as a busy server tells it to wait.
    """
    try:
        url = huggingface_hub.hf_hub_url(repo_id, CONFIG_FILE, revision=revision)
        huggingface_hub.get_hf_file_metadata(url, token=token)
    except HfHubHTTPError as error:  # an answer; if it concerns the request, the download gets it again
        status = error.response.status_code if error.response is not None else 0
        return error if status >= 500 or status in (408, 429) else None
    except Exception as error:  # of the HTTP library that the client uses
        return error
    return None


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".rstrip(".")


def _weights_package() -> Path:
    return Path(str(resources.files("rrl_match.weights")))


def _manifest() -> dict[str, Any]:
    """The released weights: ``{name: {"repo_id": ..., "files": {file: sha256}, "selftest": scores}}``."""
    try:
        text = (_weights_package() / "manifest.json").read_text(encoding="utf-8")
    except (ModuleNotFoundError, FileNotFoundError):  # not installed: folders can still be loaded
        return {}
    manifest: dict[str, Any] = json.loads(text)
    return manifest


def _verify(folder: Path, sums: dict[str, str], way_out: str) -> None:
    for file, expected in sums.items():
        path = folder / file
        if not path.is_file():
            raise WeightsNotFoundError(f"{path} is missing: {way_out}")
        digest = hashlib.sha256()
        with open(path, "rb") as f:
            while chunk := f.read(1 << 20):
                digest.update(chunk)
        if digest.hexdigest() != expected:
            raise WeightsError(
                f"{path} is not the released file (sha256 {digest.hexdigest()}, expected {expected}): {way_out}"
            )


def push_folder(
    folder: Path,
    repo_id: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    private: bool | None = None,
    commit_message: str = "Upload RRL-Net weights",
) -> str:
    """Upload a weights folder; the repo and the branch are created if they do not exist.

    Returns:
        the URL of the commit.

    Raises:
        RRLMatchError: the Hub cannot be reached or refuses the files.
    """
    try:
        api = huggingface_hub.HfApi(token=token)
        api.create_repo(repo_id, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        return str(
            api.upload_folder(repo_id=repo_id, folder_path=folder, revision=revision, commit_message=commit_message)
        )
    except Exception as error:  # of the client, its HTTP library or the operating system
        raise RRLMatchError(
            f"could not upload to {repo_id!r} on the Hugging Face Hub: {_describe(error)}. "
            "Check the name, the write permission of the token, and the connection"
        ) from error
