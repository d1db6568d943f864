"""Score a Parquet dataset of patch pairs with Ray Data, on this machine or on a cluster of any size.

    pip install 'rrl-match[ray]'
    python examples/score_ray.py --demo demo                      # writes a small dataset and scores it
    python examples/score_ray.py PAIRS OUT --actors 16 --gpus 1   # joins the cluster that RAY_ADDRESS names

PAIRS, a file, a folder or an address such as s3://bucket/pairs, has a row for each pair: `key`, a string or an integer
of its own, and one of

- `patch_a`, `patch_b`: 64 x 64 grey values, 8 bit, row by row, as bytes; or tensors of any kind that the matcher takes;
- `image_a`, `x_a`, `y_a`, `image_b`, `x_b`, `y_b`: paths of two 8-bit pictures, as the workers see them, and keypoints.

OUT, on storage that all nodes share, gets

- `sorted`: `key` and `score`, by key from file to file;
- `parts`: the same in the order of computing, written as it goes along;
- `done`: Ray's checkpoint of the keys in `parts`. Repeat a command that was stopped or killed, or repeat it after pairs
  were added, and only what is missing is computed. A folder is for one dataset and one set of weights.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from numpy.typing import NDArray
from ray.data import DataContext, SaveMode
from ray.data.checkpoint import CheckpointConfig
from rendered_scene import render_pair

from rrl_match import RRLMatcher, extract_patches

Batch = dict[str, NDArray[Any]]


class Scorer:
    """An actor: holds a matcher, on the GPU where Ray gave it one, and scores batch after batch."""

    def __init__(self, weights: str) -> None:
        self.matcher = RRLMatcher.from_pretrained(weights)

    def __call__(self, batch: Batch) -> Batch:
        patches_a, patches_b = (self.patches(batch, band) for band in "ab")
        return {"key": batch["key"], "score": self.matcher.score(patches_a, patches_b)}

    def patches(self, batch: Batch, band: str) -> NDArray[Any]:
        size = self.matcher.patch_size
        if f"patch_{band}" in batch:
            patches = batch[f"patch_{band}"]
            if len(patches) and isinstance(patches[0], bytes):
                return np.stack([np.frombuffer(grey, np.uint8).reshape(size, size) for grey in patches])
            return patches
        paths = batch[f"image_{band}"].astype(str)
        points = np.stack([batch[f"x_{band}"], batch[f"y_{band}"]], axis=1)
        patches = np.empty((len(paths), size, size), np.uint8)
        for path in np.unique(paths):
            picture = cv2.imread(path, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
            if picture is None:
                raise FileNotFoundError(f"{path} cannot be read as a picture")
            if picture.dtype != np.uint8:
                raise ValueError(f"{path} is {picture.dtype}, not 8-bit: cut its patches and pass these as tensors")
            rows = paths == path
            patches[rows], _ = extract_patches(np.asarray(picture[..., ::-1]), points[rows], size)
        return patches


def score_dataset(
    pairs: str, out: str, weights: str = "vis-nir", actors: int = 2, gpus: float = 0, batch: int = 256, part: int = 4096
) -> None:
    """Score what is not in `out` yet, in parts of so many pairs, then sort all of it by key."""
    context = DataContext.get_current()
    context.execution_options.preserve_order = True  # of the sorted blocks, on their way into numbered files
    context.checkpoint_config = CheckpointConfig("key", f"{out}/done", delete_checkpoint_on_success=False)
    try:
        dataset = ray.data.read_parquet(pairs).repartition(target_num_rows_per_block=part)
        dataset.map_batches(
            Scorer,
            fn_constructor_args=(weights,),
            batch_size=min(batch, part),
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=actors),
            num_cpus=1,
            num_gpus=gpus,
        ).write_parquet(f"{out}/parts")
    finally:
        context.checkpoint_config = None
    by_key = ray.data.read_parquet(f"{out}/parts").sort("key")
    by_key.write_parquet(f"{out}/sorted", mode=SaveMode.OVERWRITE, min_rows_per_file=1_000_000)


def write_demo(folder: Path, count: int = 96, files: int = 4) -> Path:
    """Pairs cut from rendered pictures, every second one of two different places; their keys in no order."""
    visible, infrared, a_to_b = render_pair()
    rng = np.random.default_rng(0)
    points_a = rng.uniform((150, 150), (visible.shape[1] - 150, visible.shape[0] - 150), (count, 2))
    points_b = points_a @ a_to_b[:, :2].T + a_to_b[:, 2]
    points_b[1::2] = np.roll(points_b[1::2], 1, axis=0)
    patches_a, patches_b = extract_patches(visible, points_a)[0], extract_patches(infrared, points_b)[0]
    folder.mkdir(parents=True, exist_ok=True)
    for k, rows in enumerate(np.array_split(rng.permutation(count), files)):
        columns = {
            "key": [f"{'other' if n % 2 else 'same'}/{n:04d}" for n in rows],
            "patch_a": [patches_a[n].tobytes() for n in rows],
            "patch_b": [patches_b[n].tobytes() for n in rows],
        }
        pq.write_table(pa.table(columns), folder / f"{k:03d}.parquet")
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", nargs="?", help="Parquet file, folder or address")
    parser.add_argument("out", nargs="?", help="folder or address")
    parser.add_argument(
        "--demo", type=Path, metavar="FOLDER", help="write FOLDER/pairs and score it into FOLDER/scores"
    )
    parser.add_argument("--weights", default="vis-nir", help="a bundled name, a folder or a Hub repo id")
    parser.add_argument("--actors", type=int, default=2, help="at most; each takes a CPU, and keeps it busy")
    parser.add_argument("--gpus", type=float, default=0, help="of each actor; half a one lets two share it")
    parser.add_argument("--batch", type=int, default=256, help="pairs that an actor computes at once")
    parser.add_argument("--part", type=int, default=4096, help="pairs in a file of parts: what a killed actor loses")
    parser.add_argument("--local", type=int, metavar="CPUS", help="start a small Ray here, rather than join a cluster")
    args = parser.parse_args()
    if args.demo:
        args.pairs, args.out = str(write_demo(args.demo / "pairs")), str(args.demo / "scores")
        args.local, args.part = args.local or 3, 16
    if not (args.pairs and args.out):
        parser.error("give PAIRS and OUT, or --demo FOLDER")
    pairs, out = (path if "://" in path else str(Path(path).resolve()) for path in (args.pairs, args.out))
    if args.local:
        ray.init("local", num_cpus=args.local, include_dashboard=False, object_store_memory=200_000_000)
    score_dataset(pairs, out, args.weights, args.actors, args.gpus, args.batch, args.part)
    print(f"{ray.data.read_parquet(f'{out}/sorted').count()} scores by key in {out}/sorted")
    if args.demo:
        scores = pq.read_table(f"{out}/sorted").to_pydict()
        for name in ("same", "other"):
            mean = np.mean([v for k, v in zip(scores["key"], scores["score"], strict=True) if k.startswith(name)])
            print(f"mean score of {name} places: {mean:.3f}")


if __name__ == "__main__":
    main()
