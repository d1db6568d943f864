"""Export the network to ONNX, score patch pairs in ONNX Runtime, and compare with the matcher.

    pip install 'rrl-match[onnx]'
    python examples/export_onnx.py [FOLDER] [--weights vis-nir]

The exported file needs neither PyTorch nor rrl-match. It takes patches (N, 1, 64, 64), float32 in [0, 1].
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnxruntime
from example_pair import read_pair

from rrl_match import RRLMatcher, extract_patches
from rrl_match.export import export_onnx


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("export_onnx_out"))
    parser.add_argument("--weights", default="vis-nir", help="a bundled name, a folder or a Hub repo id")
    args = parser.parse_args()

    matcher = RRLMatcher.from_pretrained(args.weights, device="cpu", dtype="float32")
    (scorer,) = export_onnx(matcher, args.folder, ["scorer"])
    print(f"{scorer.path}: {scorer.path.stat().st_size / 1e6:.1f} MB, within {scorer.deviation:.1e} of PyTorch")

    visible, infrared, a_to_b = read_pair("naip")
    points = np.random.default_rng(0).uniform(200, 500, (32, 2))
    patches_a, _ = extract_patches(visible, points)
    patches_b, _ = extract_patches(infrared, points @ a_to_b[:, :2].T + a_to_b[:, 2])
    patches_b[16:] = np.roll(patches_b[16:], 1, axis=0)  # the second half shows different locations

    session = onnxruntime.InferenceSession(scorer.path, providers=["CPUExecutionProvider"])
    feed = {"patches_a": patches_a[:, None] / np.float32(255), "patches_b": patches_b[:, None] / np.float32(255)}
    (scores,) = session.run(["scores"], feed)
    threshold = float(session.get_modelmeta().custom_metadata_map["threshold"])
    matched = scores > threshold
    print(f"above {threshold:.3f}: {matched[:16].sum()} of 16 true pairs, {matched[16:].sum()} of 16 false ones")
    print(f"largest difference from the matcher: {np.abs(scores - matcher.score(patches_a, patches_b)).max():.1e}")


if __name__ == "__main__":
    main()
