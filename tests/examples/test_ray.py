"""The examples that score a Parquet dataset and register a list of pairs with Ray, on a local Ray with two actors.

Nothing here waits for a time to pass: a machine that is busy only takes longer.
"""

import csv
import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import psutil
import pytest

from rrl_match import RRLMatcher, extract_patches

if importlib.util.find_spec("ray") is None:
    pytest.skip("needs Ray: pip install 'rrl-match[ray]'", allow_module_level=True)
import pyarrow as pa
import pyarrow.parquet as pq

pytestmark = pytest.mark.slow
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(scope="module")
def start():
    """Starts an example; Ray's own files go to a temporary folder whose path is short enough for its sockets."""
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_TMPDIR": folder, "HF_HUB_OFFLINE": "1"}
        environment["RAY_worker_niceness"] = "0"  # at Ray's 15, workers would stand still beside other tests
        environment.pop("RAY_ADDRESS", None)
        processes = []

        def start(*arguments, script="score_ray.py"):
            command = [sys.executable, str(EXAMPLES / script), *map(str, arguments)]
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
            processes.append(subprocess.Popen(command, env=environment, start_new_session=True, **pipes))
            return processes[-1]

        yield start
        for process in processes:
            if process.poll() is None:  # a test failed while it ran
                kill(process)


def kill(process):
    """End an example, and wait for Ray's processes, which end after the one that started them."""
    started = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    psutil.wait_procs(started)


def wait_until(condition, process):
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)


def finish(process):
    output, _ = process.communicate()
    assert process.returncode == 0, output
    return output


def read(folder):
    """Rows of the Parquet files in a folder, in the order of their names."""
    tables = [pq.read_table(path) for path in sorted(folder.glob("*.parquet"))]
    return [row for table in tables for row in table.to_pylist()]


def test_demo(start, tmp_path):
    output = finish(start("--demo", tmp_path))
    assert "96 scores by key" in output
    pairs = {row["key"]: row for row in read(tmp_path / "pairs")}
    scores = read(tmp_path / "scores" / "sorted")
    assert [row["key"] for row in scores] == sorted(pairs)
    grey = [[np.frombuffer(pairs[row["key"]][f"patch_{band}"], np.uint8) for row in scores] for band in "ab"]
    patches = [np.stack(band).reshape(-1, 64, 64) for band in grey]
    expected = RRLMatcher.from_pretrained("vis-nir", device="cpu").score(*patches)
    np.testing.assert_allclose([row["score"] for row in scores], expected, rtol=0, atol=1e-3)
    assert len(list((tmp_path / "scores" / "parts").glob("*.parquet"))) > 1, "something to resume from"


def test_too_few_cpus_to_resume(start, tmp_path):
    process = start(tmp_path / "pairs", tmp_path / "scores", "--local", 2)
    assert "--local must be at least 3" in process.communicate()[0]
    assert process.returncode == 2


@pytest.fixture
def add_pairs(tmp_path):
    """A function that adds a file of pairs to a dataset: paths of two images, and keypoints."""
    rng = np.random.default_rng(0)
    for name, shape in (("a.png", (200, 240, 3)), ("b.png", (200, 240))):
        coarse = rng.integers(0, 256, (25, 30, *shape[2:]), dtype=np.uint8)
        cv2.imwrite(str(tmp_path / name), cv2.resize(coarse, shape[1::-1], interpolation=cv2.INTER_NEAREST))

    def add(name, keys):
        count = len(keys)
        columns = {"key": rng.permutation(keys)}
        for band in "ab":
            columns[f"image_{band}"] = [str(tmp_path / f"{band}.png")] * count
            columns[f"x_{band}"], columns[f"y_{band}"] = rng.uniform(40, 160, (2, count))
        (tmp_path / "pairs").mkdir(exist_ok=True)
        pq.write_table(pa.table(columns), tmp_path / "pairs" / name)

    return add


def test_killed_run_resumes(start, tmp_path, add_pairs, weights_folder):
    add_pairs("0.parquet", np.arange(0, 80))
    out = tmp_path / "scores"
    command = [tmp_path / "pairs", out, "--weights", weights_folder, "--actors", 1, "--part", 8, "--local", 3]

    def parts():
        """Time at which each file of scores was written, for those that the script has committed."""
        committed = {path.stem for path in out.glob("done/*.parquet")}
        written = {path: path.stat().st_mtime_ns for path in out.glob("parts/*.parquet")}
        return {path.name: when for path, when in written.items() if path.stem.rpartition("-")[0] in committed}

    process = start(*command)
    wait_until(parts, process)
    kill(process)
    before = parts()

    add_pairs("1.parquet", np.arange(80, 110))  # pairs that arrived since
    finish(start(*command))
    after = parts()
    assert before.items() < after.items(), "what was scored is kept, the rest is added"
    assert sorted(row["key"] for row in read(out / "parts")) == list(range(110)), "each once"
    scores = read(out / "sorted")
    assert [row["key"] for row in scores] == list(range(110))

    rows = sorted(read(tmp_path / "pairs"), key=lambda row: row["key"])
    patches = []
    for band in "ab":
        image = cv2.imread(str(tmp_path / f"{band}.png"))[..., ::-1]
        points = [(row[f"x_{band}"], row[f"y_{band}"]) for row in rows]
        patches.append(extract_patches(np.ascontiguousarray(image), points)[0])
    expected = RRLMatcher.from_pretrained(weights_folder, device="cpu").score(*patches)
    np.testing.assert_allclose([row["score"] for row in scores], expected, rtol=0, atol=1e-3)

    finish(start(*command))  # nothing is left to score
    assert parts() == after
    assert read(out / "sorted") == scores


@pytest.fixture
def pairs(tmp_path):
    """A list of five pairs that are refused but take a while to read, and one whose image is missing."""
    for name in ("a.png", "b.png"):
        cv2.imwrite(str(tmp_path / name), np.zeros((4000, 4000), np.uint8))
    names = ["one", "two", "three", "four", "five"]
    rows = [f"{name},a.png,b.png" for name in names] + ["six,missing.png,b.png"]
    (tmp_path / "pairs.csv").write_text("\n".join(["name,image_a,image_b", *rows]) + "\n", encoding="utf-8")
    return tmp_path / "pairs.csv", [*names, "six"]


def test_register_with_two_workers_one_of_them_killed(start, tmp_path, pairs, weights_folder):
    path, names = pairs
    out = tmp_path / "out"
    command = [path, out, "--weights", weights_folder, "--local", 2]
    process = start(*command, script="register_ray.py")

    def workers():
        children = psutil.Process(process.pid).children(recursive=True)
        return [one for one in children if "Registrar" in "".join(one.cmdline())]

    wait_until(lambda: list(out.glob("*/registration.json")), process)
    (killed, *_), alive = workers(), len(workers())
    killed.kill()
    assert "0 registered, 5 refused, 1 with errors" in finish(process)
    assert alive == 2
    with (out / "registrations.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == names
    assert rows[-1]["reason"].endswith("missing.png does not exist")
    assert (out / "index.html").is_file()

    written = {file: file.stat().st_mtime_ns for file in out.glob("*/registration.json")}
    assert "0 registered, 5 refused, 1 with errors" in finish(start(*command, script="register_ray.py"))
    assert {file: file.stat().st_mtime_ns for file in out.glob("*/registration.json")} == written
