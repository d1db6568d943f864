"""Register a list of image pairs with Ray Data, on one machine or on a cluster.

    pip install 'rrl-match[ray]'
    python examples/register_ray.py --demo demo                            # registers a short list
    python examples/register_ray.py PAIRS.csv OUT --actors 16 --gpus 0.5   # joins the cluster at RAY_ADDRESS

The list and the results are those of `rrl-match register --pairs PAIRS.csv --out OUT`: a folder for each pair, the
table `registrations.csv` in the order of the list, and `index.html`. The images and OUT must be on storage that all
nodes share.

Repeat the command after an interruption, or after adding pairs: pairs that were registered with the same options are
kept. A pair whose worker is killed is repeated, an error is its pair's row.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import ray
import torch
from example_pair import IMAGES
from ray.data import DataContext

from rrl_match.io.batch import Options, registered, write_list
from rrl_match.io.pairs import Pair, read_pairs, table


class Registrar:
    """An actor that holds a matcher, on a GPU if Ray assigned one, and registers pairs."""

    def __init__(self, options: Options, folder: Path) -> None:
        torch.set_num_threads(1)
        self.options, self.folder, self.matcher = options, folder, options.matcher()

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        masks = (Path(row[mask]) if row[mask] else None for mask in ("mask_a", "mask_b"))
        pair = Pair(row["name"], Path(row["image_a"]), Path(row["image_b"]), *masks)
        return {"record": json.dumps(registered(self.matcher, pair, self.options, self.folder))}


def register_list(
    pairs: list[Pair], options: Options, folder: Path, actors: int = 2, gpus: float = 0
) -> list[dict[str, Any]]:
    """The records of pairs, in their order; the table grows as they come."""
    DataContext.get_current().execution_options.preserve_order = True
    rows = [{field: str(value or "") for field, value in pair._asdict().items()} for pair in pairs]
    records = ray.data.from_items(rows, override_num_blocks=len(rows)).map(  # a worker that dies loses one pair
        Registrar,
        fn_constructor_args=(options, folder),
        compute=ray.data.ActorPoolStrategy(size=actors),
        num_cpus=1,
        num_gpus=gpus,
    )
    return write_list(pairs, (json.loads(row["record"]) for row in records.iter_rows()), folder)


def write_demo(folder: Path) -> Path:
    """A list of the example images; the third pair shows two different places."""
    folder.mkdir(parents=True, exist_ok=True)
    names = ["naip_visible", "naip_nir", "sentinel_optical", "sentinel_radar"]
    a, b, c, d = (IMAGES / f"{name}.jpg" for name in names)
    path = folder / "pairs.csv"
    path.write_text(f"name,image_a,image_b\nnaip,{a},{b}\nsentinel,{c},{d}\nmixed,{c},{b}\n", encoding="utf-8")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", nargs="?", type=Path, help="CSV with columns image_a, image_b")
    parser.add_argument("out", nargs="?", type=Path, help="folder for the results")
    parser.add_argument(
        "--demo", type=Path, metavar="FOLDER", help="write FOLDER/pairs.csv and register it into FOLDER/results"
    )
    parser.add_argument("--weights", default="universal", help="a bundled name, a folder or a Hub repo id")
    parser.add_argument("--model", default="affine", help="translation, similarity, affine or homography")
    parser.add_argument("--actors", type=int, default=2, help="number of actors; each uses one CPU")
    parser.add_argument("--gpus", type=float, default=0, help="GPUs of each actor; 0.5 for two actors on each")
    parser.add_argument("--local", type=int, metavar="CPUS", help="start Ray on this machine with this many CPUs")
    args = parser.parse_args()
    if args.demo:
        args.pairs, args.out, args.local = write_demo(args.demo), args.demo / "results", args.local or 2
    if not (args.pairs and args.out):
        parser.error("give PAIRS.csv and OUT, or --demo FOLDER")
    pairs, options = read_pairs(args.pairs), Options(args.weights, "auto" if args.gpus else "cpu", args.model)
    options.matcher()  # raises here if there is none, not in each actor
    if args.local:
        ray.init("local", num_cpus=args.local, include_dashboard=False, object_store_memory=200_000_000)
    print(table(register_list(pairs, options, args.out.resolve(), args.actors, args.gpus)))


if __name__ == "__main__":
    main()
