"""The maintainers' script that adds weights to the released ones."""

import hashlib
import json

import pytest
from release import main
from training_run import tiny_network

from rrl_match import RRLMatcher
from rrl_match.pretrained import ModelConfig, save_folder


@pytest.fixture
def run_weights(tmp_path):
    network = tiny_network()
    config = ModelConfig(("vis", "nir"), network=network.config, dtype="float32", metrics={"held_back_fpr95": {}})
    return save_folder(tmp_path / "start", network, config, "the run's own card")


def test_release_adds_weights_to_the_manifest(tmp_path, run_weights, capsys):
    released = tmp_path / "released"
    rows = [{"data": "vis-nir", "negatives": "random", "category": c, "FPR95": 1.23} for c in ("forest", "mean")]
    (tmp_path / "metrics.json").write_text(json.dumps({"rows": rows}))
    card = tmp_path / "card.md"
    card.write_text("written by hand", encoding="utf-8")
    options = ["--metrics", str(tmp_path / "metrics.json"), "--card", str(card)]
    for name in ("one", "other", "one"):
        main([str(run_weights), str(released), name, *options])
        assert capsys.readouterr().out == f"released: {released / name}\n"
    manifest = json.loads((released / "manifest.json").read_text(encoding="utf-8"))
    assert list(manifest) == ["one", "other"]
    for file, digest in manifest["one"]["files"].items():
        assert hashlib.sha256((released / "one" / file).read_bytes()).hexdigest() == digest
    assert set(manifest["one"]["files"]) == {"config.json", "model.safetensors"}
    config = RRLMatcher.from_pretrained(released / "one", device="cpu").config
    assert config.metrics == {
        "held_back_fpr95": {},
        "benchmark_fpr95": {"vis-nir": {"random": {"forest": 1.23, "mean": 1.23}}},
    }
    assert (released / "one" / "README.md").read_text(encoding="utf-8") == "written by hand"
    assert json.loads((released / "results" / "patches_one.json").read_text()) == {"rows": rows}


def test_card_of_the_run_is_kept_by_default(tmp_path, run_weights):
    main([str(run_weights), str(tmp_path / "released"), "one"])
    assert (tmp_path / "released" / "one" / "README.md").read_text(encoding="utf-8") == "the run's own card"
