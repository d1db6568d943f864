"""Command line of the trainer and of what measures: ``python -m rrl_match.training --help`` lists the commands."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

from rrl_match.errors import RRLMatchError

try:
    import typer
except ImportError as error:
    raise SystemExit("training needs more than rrl-match itself: pip install 'rrl-match[train]'") from error

app = typer.Typer(help=__doc__, no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False)


@app.command()
def train(
    data: Annotated[Path, typer.Option(help="Folder with a manifest.csv and the pictures it names.")],
    out: Annotated[
        Path, typer.Option(help="Folder for checkpoints, log and weights; an interrupted run goes on from it.")
    ],
    recipe: Annotated[str, typer.Option(help="A recipe of the package, or a JSON file.")] = "vis-nir",
    seed: int = 0,
    precision: Annotated[str, typer.Option(help="bf16 or fp32.")] = "bf16",
    device: Annotated[str, typer.Option(help="auto or cpu.")] = "auto",
    compile: Annotated[bool, typer.Option(help="Compile all but the heads; needs a C++ compiler on a CPU.")] = False,
    start: Annotated[str | None, typer.Option(help="Weights to start from: a name or a folder.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of the main phase, instead of the recipe's.")] = None,
    pretraining_steps: Annotated[int | None, typer.Option(help="Steps of pretraining; 0 leaves it out.")] = None,
    checkpoint_every: Annotated[int, typer.Option(min=1, help="Steps.")] = 100,
    validate_every: Annotated[int, typer.Option(min=1, help="Steps.")] = 400,
) -> None:
    """Train an RRL-Net; the best weights end up in OUT/weights."""
    import dataclasses

    from rrl_match.hub import find_folder
    from rrl_match.pretrained import load_folder
    from rrl_match.training.datasets import read_pairs
    from rrl_match.training.recipe import Recipe
    from rrl_match.training.trainer import Trainer

    plan = Recipe.load(recipe)
    if steps is not None:
        plan = dataclasses.replace(plan, training=dataclasses.replace(plan.training, steps=steps))
    if pretraining_steps == 0:
        plan = dataclasses.replace(plan, pretraining=None)
    elif pretraining_steps is not None:
        if not plan.pretraining:
            raise ValueError(f"recipe {recipe!r} has no pretraining whose steps could be set")
        plan = dataclasses.replace(plan, pretraining=dataclasses.replace(plan.pretraining, steps=pretraining_steps))
    pairs = read_pairs(data)
    trainer = Trainer(
        plan,
        pairs,
        out,
        seed=seed,
        precision=precision,
        device=device,
        compile=compile,
        start=load_folder(find_folder(start))[0] if start else None,
        data=f"{data.resolve().name}: ",
        checkpoint_every=checkpoint_every,
        validate_every=validate_every,
    )
    typer.echo(f"weights: {trainer.train()}")


@app.command()
def evaluate(
    weights: Annotated[str, typer.Option(help="A bundled name, a folder or a Hub repo id.")],
    benchmark: Annotated[Path, typer.Option(help=".npz with patches_a, patches_b, category, pairs and kind.")],
    device: str = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    save: Annotated[Path | None, typer.Option(help="Write the figures as JSON as well.")] = None,
) -> None:
    """Print FPR95 by category, in percent, and other figures of weights on a patch benchmark."""
    from rrl_match.matcher import RRLMatcher
    from rrl_match.training.evaluation import Benchmark
    from rrl_match.training.evaluation import evaluate as figures_of

    matcher = RRLMatcher.from_pretrained(weights, device=device, dtype=dtype)
    result = figures_of(matcher, Benchmark.load(benchmark), progress=True)
    _show(f"{weights} on {benchmark.name}, {matcher.dtype} on {matcher.device}", result, save)


@app.command()
def rival(
    name: Annotated[str, typer.Argument(help="2-channel or hardnet.")],
    data: Annotated[Path, typer.Option(help="Folder with a manifest.csv and the pictures it names.")],
    benchmark: Annotated[Path, typer.Option(help=".npz as evaluate reads it.")],
    recipe: Annotated[str, typer.Option(help="Whose patches and augmentation: a recipe or a JSON file.")] = "vis-nir",
    steps: int = 2000,
    places: int = 256,
    pictures: int = 16,
    learning_rate: float = 1e-3,
    seed: int = 0,
    device: str = "auto",
    save: Annotated[Path | None, typer.Option(help="Write the figures as JSON as well.")] = None,
) -> None:
    """Train another network on the same patches and print its figures on a benchmark, to compare RRL-Net with."""
    from rrl_match.training.datasets import read_pairs
    from rrl_match.training.evaluation import Benchmark
    from rrl_match.training.recipe import Phase, Recipe
    from rrl_match.training.rivals import evaluate_rival, train_rival

    phase = Phase(steps, places, pictures, learning_rate)
    places_and_pairs = Benchmark.load(benchmark)
    network = train_rival(name, read_pairs(data), Recipe.load(recipe), phase, seed=seed, device=device)
    result = evaluate_rival(network, places_and_pairs)
    _show(f"{name} on {benchmark.name}", result, save)


def _show(what: str, result: dict[str, dict[str, dict[str, float]]], save: Path | None) -> None:
    import json

    from rrl_match.training.evaluation import table

    typer.echo(f"{what}; all figures in percent")
    for line in table(result):
        typer.echo(line)
    if save:
        save.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


@app.command()
def offsets(
    weights: Annotated[str, typer.Option(help="A bundled name, a folder or a Hub repo id.")],
    data: Annotated[Path, typer.Option(help="Folder with a manifest.csv and the pictures it names.")],
    picture: Annotated[Path, typer.Option(help="PNG to draw the curve into.")],
    split: Annotated[str, typer.Option(help="Which of the manifest's pictures.")] = "test",
    places: Annotated[int, typer.Option(min=1, help="How many places, over all pictures.")] = 300,
    device: str = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
) -> None:
    """Measure how the score falls off with the offset between the patches, and draw it."""
    from rrl_match.matcher import RRLMatcher
    from rrl_match.training.datasets import read_pairs
    from rrl_match.training.offsets import plot, score_over_offset

    matcher = RRLMatcher.from_pretrained(weights, device=device, dtype=dtype)
    curve = score_over_offset(matcher, read_pairs(data, split), places=places)
    title = f"{matcher.modalities[0]} against {matcher.modalities[1]}, {curve.scores.shape[2]} places"
    plot(curve, matcher.threshold, title, picture)
    for name, value in curve.figures(matcher.threshold).items():
        typer.echo(f"{name}: {value:.3g}")


@app.command()
def recall(
    weights: Annotated[str, typer.Option(help="A bundled name, a folder or a Hub repo id.")],
    benchmark: Annotated[Path, typer.Option(help=".npz as evaluate reads it.")],
    candidates: Annotated[list[int], typer.Option(min=1, help="How many; may be given several times.")] = [8, 16, 32],  # noqa: B006
    device: str = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
) -> None:
    """Print how often the descriptors propose the true partner among all patches of its category, in percent."""
    from rrl_match.matcher import RRLMatcher
    from rrl_match.training.evaluation import Benchmark
    from rrl_match.training.shortlist import shortlist_recall, table

    matcher = RRLMatcher.from_pretrained(weights, device=device, dtype=dtype)
    result = shortlist_recall(matcher, Benchmark.load(benchmark), candidates)
    typer.echo(f"{weights} on {benchmark.name}, {matcher.dtype} on {matcher.device}; recall in percent")
    for line in table(result):
        typer.echo(line)


@app.command()
def repeatability(
    data: Annotated[Path, typer.Option(help="Folder with a manifest.csv and the pictures it names.")],
    split: Annotated[str, typer.Option(help="Which of the manifest's pictures.")] = "train",
    pictures: Annotated[
        int | None, typer.Option(min=1, help="Of so many pairs, spread evenly; all unless given.")
    ] = None,
    keypoints: Annotated[list[int], typer.Option(min=1, help="How many; may be given several times.")] = [500, 2000],  # noqa: B006
    tolerance: Annotated[float, typer.Option(help="Pixels between a keypoint and its true place.")] = 3.0,
    smooth: Annotated[float, typer.Option(min=0, help="Sigma in pixels to smooth the pictures with first.")] = 0.0,
) -> None:
    """Print how often detectors find a keypoint of one band in the other, in percent, and how often chance does."""
    from rrl_match.training.datasets import read_pairs
    from rrl_match.training.repeatability import repeatability as measure
    from rrl_match.training.repeatability import table

    pairs = read_pairs(data, split)
    pairs = pairs[:: -(-len(pairs) // (pictures or len(pairs)))]
    typer.echo(f"{data.resolve().name}, {len(pairs)} pairs of split {split}; within {tolerance:g} px, in percent")
    for line in table(measure(pairs, keypoints, tolerance=tolerance, smooth=smooth)):
        typer.echo(line)


@app.command()
def convert(
    file: Annotated[Path, typer.Argument(help="HDF5 file written by the authors' Keras code, training or test graph.")],
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    modalities: Annotated[tuple[str, str], typer.Option(help="Names of band A and band B.")] = ("vis", "nir"),
    threshold: Annotated[float, typer.Option(help="Score above which a pair is called a match.", min=0, max=1)] = 0.5,
) -> None:
    """Turn a model of the authors' Keras code into a weights folder."""
    from rrl_match.pretrained import ModelConfig, save_folder
    from rrl_match.training.card import model_card
    from rrl_match.training.convert import load_keras_weights
    from rrl_match.training.network import TrainingRRLNet

    network = load_keras_weights(file)
    if isinstance(network, TrainingRRLNet):
        network = network.prune()
    training = {"data": "", "recipe": f"converted from {file.name}, trained with the authors' code"}
    config = ModelConfig(modalities, threshold, network.config, "float32", training)
    typer.echo(f"weights: {save_folder(out, network, config, model_card(config))}")


@app.command()
def release(
    run_weights: Annotated[Path, typer.Argument(help="Weights folder of a training run, OUT/weights.")],
    released: Annotated[Path, typer.Argument(help="Folder of released weights: weights in a checkout.")],
    name: Annotated[str, typer.Argument(help="Name they are loaded by.")],
    figures: Annotated[Path | None, typer.Option(help="What evaluate --save wrote, for the config.")] = None,
    card: Annotated[Path | None, typer.Option(help="Model card, instead of the run's own.")] = None,
) -> None:
    """Put weights among the released ones, with their figures, and update the manifest of sha256 sums."""
    import json

    from rrl_match.training.release import release as copy_and_sign

    metrics = {}
    if figures:
        by_kind = json.loads(figures.read_text(encoding="utf-8"))
        metrics["benchmark_fpr95"] = {
            kind: {name: round(values["FPR95"], 2) for name, values in by_category.items()}
            for kind, by_category in by_kind.items()
        }
    typer.echo(f"released: {copy_and_sign(run_weights, released, name, metrics, card)}")


def main() -> None:
    """Run a command; mistakes are told in a line."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        app()
    except (RRLMatchError, ValueError, OSError, ImportError) as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
