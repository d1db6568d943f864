"""Score a Parquet dataset of patch pairs with Ray Data, on one machine or on a cluster.

    pip install 'rrl-match[ray]'
    python examples/score_ray.py --demo demo                      # writes a small dataset and scores it
    python examples/score_ray.py PAIRS OUT --actors 16 --gpus 1   # joins the cluster at RAY_ADDRESS

PAIRS is a file, a folder or an address such as s3://bucket/pairs. It has a row for each pair: a unique `key`, string or
integer, and either

- `patch_a`, `patch_b`: 64 x 64 grey values, 8 bit, row by row, as bytes; or tensors of any kind that the matcher takes;
- or `image_a`, `x_a`, `y_a`, `image_b`, `x_b`, `y_b`: paths of two 8-bit images on every worker, and keypoints.

OUT must be on storage that all nodes can write to. It gets

- `sorted`: `key` and `score`, ordered by key across files;
- `parts`: the same in the order of computing, written along the way;
- `done`: Ray's checkpoint of the keys in `parts`.

Repeat the command after an interruption, or after adding pairs: only missing scores are computed. Use one OUT for one
dataset and one set of weights.
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
from example_pair import read_pair
from numpy.typing import NDArray
from ray.data import DataContext, SaveMode
from ray.data.checkpoint import CheckpointConfig

from rrl_match import RRLMatcher, extract_patches

Batch = dict[str, NDArray[Any]]


class Scorer:
    """An actor that holds a matcher, on a GPU if Ray assigned one, and scores batches."""

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
            image = cv2.imread(path, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
            if image is None:
                raise FileNotFoundError(f"{path} cannot be read as an image")
            if image.dtype != np.uint8:
                raise ValueError(f"{path} is {image.dtype}, not 8-bit: pass its patches instead, as tensors")
            rows = paths == path
            patches[rows], _ = extract_patches(np.asarray(image[..., ::-1]), points[rows], size)
        return patches


def score_dataset(
    pairs: str,
    out: str,
    weights: str = "vis-nir",
    actors: int = 2,
    gpus: float = 0,
    batch_size: int = 256,
    part: int = 4096,
) -> None:
    """Score the pairs that are not in `out` yet, then sort all scores by key."""
    context = DataContext.get_current()
    context.execution_options.preserve_order = True  # numbered files keep the sorted order
    context.checkpoint_config = CheckpointConfig("key", f"{out}/done", delete_checkpoint_on_success=False)
    try:
        dataset = ray.data.read_parquet(pairs).repartition(target_num_rows_per_block=part)
        dataset.map_batches(
            Scorer,
            fn_constructor_args=(weights,),
            batch_size=min(batch_size, part),
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=actors),
            num_cpus=1,
            num_gpus=gpus,
        ).write_parquet(f"{out}/parts")
    finally:
        context.checkpoint_config = None
    by_key = ray.data.read_parquet(f"{out}/parts").sort("key")
    by_key.write_parquet(f"{out}/sorted", mode=SaveMode.OVERWRITE, min_rows_per_file=1_000_000)


def write_demo(folder: Path, count: int = 96, files: int = 4) -> Path:
    """Patch pairs of the NAIP images in random order; every second pair shows two different locations."""
    visible, infrared, a_to_b = read_pair("naip")
    rng = np.random.default_rng(0)
    points_a = rng.uniform(150, 500, (count, 2))
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
    parser.add_argument("--actors", type=int, default=2, help="largest number of actors; each uses one CPU")
    parser.add_argument("--gpus", type=float, default=0, help="GPUs of each actor; 0.5 for two actors on each")
    parser.add_argument("--batch-size", type=int, default=256, help="pairs that an actor scores at once")
    parser.add_argument(
        "--part", type=int, default=4096, help="pairs per file of `parts`; an actor that dies loses one"
    )
    parser.add_argument(
        "--local", type=int, metavar="CPUS", help="start Ray on this machine with this many CPUs, at least 3"
    )
    args = parser.parse_args()
    if args.demo:
        args.pairs, args.out = str(write_demo(args.demo / "pairs")), str(args.demo / "scores")
        args.local, args.part = args.local or 3, 16
    if not (args.pairs and args.out):
        parser.error("give PAIRS and OUT, or --demo FOLDER")
    if args.local and args.local < 3:  # to resume: an actor that scores, one that drops finished keys, and a task
        parser.error("--local must be at least 3: with fewer CPUs, a run that resumes waits for itself")
    pairs, out = (path if "://" in path else str(Path(path).resolve()) for path in (args.pairs, args.out))
    if args.local:
        ray.init("local", num_cpus=args.local, include_dashboard=False, object_store_memory=200_000_000)
    score_dataset(pairs, out, args.weights, args.actors, args.gpus, args.batch_size, args.part)
    print(f"{ray.data.read_parquet(f'{out}/sorted').count()} scores by key in {out}/sorted")
    if args.demo:
        scores = pq.read_table(f"{out}/sorted").to_pydict()
        for name in ("same", "other"):
            mean = np.mean([v for k, v in zip(scores["key"], scores["score"], strict=True) if k.startswith(name)])
            print(f"mean score of {name} locations: {mean:.3f}")


if __name__ == "__main__":
    main()
