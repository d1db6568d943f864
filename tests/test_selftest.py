import json
import subprocess
import sys
import zlib

import numpy as np
import pytest
import torch

import rrl_match.selftest
from rrl_match import RRLMatcher, WeightsError, __version__
from rrl_match.cli.main import main
from rrl_match.hub import bundled_names, stored_scores
from rrl_match.selftest import BOUNDS, reference_scores, run_checks, stored_pairs, versions


@pytest.fixture
def released(monkeypatch, weights_folder):
    """A random network under the name "vis-nir", and its stored scores."""
    stored = {}
    load = RRLMatcher.from_pretrained
    monkeypatch.setattr(RRLMatcher, "from_pretrained", lambda _, **options: load(weights_folder, **options))
    monkeypatch.setattr(rrl_match.selftest, "bundled_names", lambda: ["vis-nir"])
    monkeypatch.setattr(rrl_match.selftest, "stored_scores", stored.get)
    return stored


def test_stored_pairs_have_not_changed():
    patches_a, patches_b = stored_pairs()
    assert (patches_a.shape, patches_a.dtype, patches_b.shape, patches_b.dtype) == ((8, 64, 64), np.uint8) * 2
    assert (zlib.crc32(patches_a.tobytes()), zlib.crc32(patches_b.tobytes())) == (2853155562, 766664553)


def test_bundled_weights_give_the_scores_of_their_release(capsys):
    assert main(["selftest"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["rrl_match", __version__]
    assert lines[-1] == "all checks passed"
    for name in bundled_names():
        for dtype in ("float32", "float16", "bfloat16"):
            assert any(line.split()[:4] == [name, "cpu", dtype, "ok"] for line in lines), (name, dtype)


def test_stored_scores_are_spread():
    for name in bundled_names():
        scores = stored_scores(name)
        if scores is not None:
            assert len(scores) == len(stored_pairs()[0])
            assert np.ptp(scores) > 0.1


def test_reference_scores_are_those_of_float32_on_a_cpu(matcher, weights_folder):
    scores = reference_scores(matcher)
    np.testing.assert_allclose(scores, matcher.score(*stored_pairs()), rtol=0, atol=1e-6)
    assert json.loads(json.dumps(scores)) == scores
    with pytest.raises(ValueError, match="float32 on the CPU"):
        reference_scores(RRLMatcher.from_pretrained(weights_folder, device="cpu", dtype="bfloat16"))


def test_checks_cover_every_dtype(released, matcher):
    released["vis-nir"] = reference_scores(matcher)
    checks = [check for check in run_checks() if check.device == "cpu"]
    assert [check.dtype for check in checks] == list(BOUNDS)
    assert all(check.passed and check.released for check in checks)
    assert checks[0].deviation < checks[-1].deviation


def test_other_scores_than_stored_fail(released, matcher, capsys):
    scores = reference_scores(matcher)
    released["vis-nir"] = [scores[0] + 2 * BOUNDS[torch.float32], *scores[1:]]
    assert main(["selftest"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert next(line for line in lines if "float32" in line).split()[3:5] == ["FAILED", "deviation"]
    assert lines[-1].endswith("checks failed")


def test_without_stored_scores_the_dtypes_are_compared(released, capsys):
    assert main(["selftest"]) == 0
    assert "no scores stored at release" in capsys.readouterr().out


@pytest.mark.parametrize("error", [WeightsError("changed"), ValueError("overflows"), RuntimeError("no kernel")])
def test_a_check_that_raises_fails(released, monkeypatch, capsys, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(RRLMatcher, "from_pretrained", fail)
    assert main(["selftest"]) == 1
    assert f"FAILED  {type(error).__name__}: {error}" in capsys.readouterr().out


def test_scores_that_are_not_finite_fail(released, monkeypatch, capsys):
    monkeypatch.setattr(RRLMatcher, "score", lambda *_: np.full(8, np.nan, np.float32))
    assert not any(check.passed for check in run_checks())


def test_nothing_bundled_fails(monkeypatch, capsys):
    monkeypatch.setattr(rrl_match.selftest, "bundled_names", list)
    assert main(["selftest"]) == 1
    assert "not installed" in capsys.readouterr().out


def test_versions_for_bug_reports():
    found = versions()
    assert list(found)[:8] == [
        "rrl_match", "torch", "numpy", "cv2", "huggingface_hub", "safetensors", "python", "system"
    ]  # fmt: skip
    assert found["torch"] == torch.__version__
    assert all(found.values())


@pytest.mark.slow
def test_runs_as_a_module():
    result = subprocess.run([sys.executable, "-m", "rrl_match", "--help"], capture_output=True, text=True, check=True)
    assert "selftest" in result.stdout
    assert "export" in result.stdout
