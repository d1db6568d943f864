"""The training loop: phases of a recipe, checkpoints, curves, and the weights folder at the end."""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from rrl_match.errors import RRLMatchError
from rrl_match.modeling import RRLNet
from rrl_match.pretrained import save_folder
from rrl_match.training.alignment import align
from rrl_match.training.batches import draw_batch
from rrl_match.training.card import calibrated_config, model_card, rounded
from rrl_match.training.datasets import Source, check_sources, hold_back
from rrl_match.training.network import TrainingRRLNet, set_norm_momentum
from rrl_match.training.norms import BATCHES, reestimate_norms
from rrl_match.training.phases import FullTraining, Pretraining, TrainingPhase
from rrl_match.training.recipe import Recipe
from rrl_match.training.run_folder import RunFolder
from rrl_match.training.sampling import PatchSampler
from rrl_match.training.validation import MOST_LOCATIONS, ValidationSet

logger = logging.getLogger(__name__)


class Trainer:
    """Trains an :class:`RRLNet` by a recipe; a run that was interrupted resumes from its last checkpoint.

    What a step sees depends on the seed and the step's number alone, so a resumed run continues the same curve.

    Args:
        recipe: what to do.
        sources: registered training images; `recipe.val_fraction` of each is kept for validation.
        out: folder for ``checkpoint.pt``, ``log.jsonl``, TensorBoard's files and, at the end, ``weights/``; one that
            all processes can write to.
        seed: of initialisation, patches, augmentation and mining.
        precision: "bf16" or "fp32".
        device: "auto" for CUDA if available, or "cpu".
        compile: compile all parts but the heads, which fuses the memory-bound norms and activations.
        start: weights to start from instead of random ones.
        checkpoint_every, validate_every: steps between checkpoints, and between validations.

    Raises:
        ValueError: an option is unknown, two sources have one name, or the weights to start from do not fit the recipe.
        DataError: a source has too few images to train and to validate on.
    """

    validation_locations, norm_batches = MOST_LOCATIONS, BATCHES

    def __init__(
        self,
        recipe: Recipe,
        sources: Sequence[Source],
        out: Path,
        *,
        seed: int = 0,
        precision: str = "bf16",
        device: str = "auto",
        compile: bool = False,
        start: RRLNet | None = None,
        checkpoint_every: int = 100,
        validate_every: int = 400,
    ) -> None:
        if precision not in ("bf16", "fp32"):
            raise ValueError(f"precision must be 'bf16' or 'fp32', got {precision!r}")
        if device not in ("auto", "cpu"):
            raise ValueError(f"device must be 'auto' or 'cpu', got {device!r}")
        check_sources(sources)
        self.recipe, self.seed = recipe, seed
        self.checkpoint_every, self.validate_every = checkpoint_every, validate_every
        # Without CUDA, Accelerator would choose MPS, where several processes do not find each other.
        on_cpu = device == "cpu" or not torch.cuda.is_available()
        self.accelerator = Accelerator(cpu=on_cpu, mixed_precision="no")  # autocast is set in the phases
        self.precision = torch.bfloat16 if precision == "bf16" else torch.float32
        self.device = self.accelerator.device
        self.folder = RunFolder(out, writable=self.accelerator.is_main_process)
        torch.manual_seed(seed)
        self.model = build_model(recipe, start, self.device)
        self.network = self.model.prune()
        self._split(align(sources, out / "alignment.json") if recipe.align else sources)
        self.phases = build_phases(recipe, self.model, self.precision)
        self.average: AveragedModel | None = None
        self.best: dict[str, Any] = {"fpr95": math.inf}
        self.done = 0  # steps, over all phases
        self.seconds = 0.0
        if compile:
            for module in self.model.parts():
                module.compile()

    def _split(self, sources: Sequence[Source]) -> None:
        """Divide the images into those to train on and those to validate on."""
        kept, held_back = zip(*(hold_back(source, self.recipe.val_fraction) for source in sources), strict=True)
        size = self.network.config.patch_size
        self.sampler = PatchSampler(kept, size, self.device)
        each = self.validation_locations // len(sources)
        self.validation = [ValidationSet(source, size, self.device, each) for source in held_back]
        self.images = {
            name: [f"{source.name}/{pair.name}" for source in part for pair in source.pairs]
            for name, part in (("train", kept), ("held_back", held_back))
        }

    def train(self) -> Path:
        """Run the remaining steps of all phases. Returns the folder with the best weights."""
        state = self.folder.read_checkpoint(self._identity())
        if state:
            self.model.load_state_dict(state["model"])
            self.done, self.seconds, self.best = state["done"], state["seconds"], state["best"]
            logger.info("resuming from step %d", self.done)
        if len(set(gather_object([self.done]))) > 1:
            raise ValueError(
                f"the processes found different checkpoints: {self.folder.path} must be a folder that all can write to"
            )
        self.folder.open_log(self.done)
        self.folder.write_text("recipe.json", self.recipe.to_json())
        first = 0
        for phase in self.phases:
            if self.done < first + phase.schedule.steps:
                self._run(phase, first, state)
                state = None
            first += phase.schedule.steps
        self.folder.close_log()
        if self.accelerator.is_main_process:
            self._save_best()
        self.accelerator.wait_for_everyone()
        return self.folder.path / "weights"

    def _run(self, phase: TrainingPhase, first: int, state: dict[str, Any] | None) -> None:
        """Run the remaining steps of a phase.

        Args:
            phase: of :attr:`phases`.
            first: number of its first step, counted over all phases.
            state: the checkpoint to resume from, if any.
        """
        last = first + phase.schedule.steps
        optimizer, lr_schedule = self._optimizer(phase, state)
        model, optimizer = self.accelerator.prepare(phase.model.train(), optimizer)
        with self._progress(phase, first) as bar:
            for step in bar:
                began = time.perf_counter()
                values = self._step(phase, model, optimizer, step, first)
                lr_schedule.step()
                self.done = step + 1
                self.seconds += time.perf_counter() - began
                bar.set_postfix(loss=values["loss"], **self._best_so_far(), refresh=False)
                self.folder.log(self.done, phase.name, {"seconds": round(self.seconds, 1), **values})
                if phase.validated and (self.done == last or self.done % self.validate_every == 0):
                    self._validate()
                if self.done == last or self.done % self.checkpoint_every == 0:
                    self._write_checkpoint(phase.name, optimizer, lr_schedule)
        self.accelerator.free_memory()

    def _optimizer(self, phase: TrainingPhase, state: dict[str, Any] | None) -> tuple[Any, LambdaLR]:
        """Optimizer, learning-rate schedule and, as :attr:`average`, the averaged weights of a phase, resumed."""
        optimizer = phase.optimizer()
        lr_schedule = LambdaLR(optimizer, phase.schedule.lr_factor)
        if phase.averaged and self.recipe.ema_decay:
            self.average = AveragedModel(self.network, multi_avg_fn=get_ema_multi_avg_fn(self.recipe.ema_decay))
        if state and state["phase"] == phase.name:
            optimizer.load_state_dict(state["optimizer"])
            lr_schedule.load_state_dict(state["schedule"])
            if self.average:
                self.average.load_state_dict(state["average"])
        return optimizer, lr_schedule

    def _progress(self, phase: TrainingPhase, first: int) -> tqdm[int]:
        """The remaining steps of a phase, with a progress bar."""
        return tqdm(
            range(self.done, first + phase.schedule.steps),
            phase.name,
            phase.schedule.steps,
            initial=self.done - first,
            disable=not self.accelerator.is_main_process,
            mininterval=0.5 if os.isatty(2) else 10,  # seconds between lines of a bar that goes to a file
        )

    def _step(self, phase: TrainingPhase, model: nn.Module, optimizer: Any, step: int, first: int) -> dict[str, float]:
        """Draw a batch and update the weights; the loss and its terms."""
        generator = torch.Generator().manual_seed(self._step_seed(step))
        batch = draw_batch(self.sampler, self.recipe, phase.schedule, generator)
        terms = phase.step(model, batch, step - first, generator)
        loss = torch.stack(list(terms.values())).sum()
        values = _as_numbers(loss, terms, self.done + 1)
        self.accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        if self.average:
            self.average.update_parameters(self.network)
        return values

    def _step_seed(self, step: int) -> int:
        """Differs between seeds, steps and processes."""
        process: int = self.accelerator.process_index
        return (self.seed * 1_000_003 + step) * 4099 + process

    def _validate(self) -> None:
        """Measure the weights and their average on the held-back images; the best so far are kept."""
        if not self.accelerator.is_main_process:
            return
        self._score_held_back("validation", self.network)
        if self.average:
            averaged = cast(RRLNet, self.average.module)
            reestimate_norms(averaged, self.sampler, self.recipe, self.precision, self.norm_batches)
            self._score_held_back("validation_average", averaged)

    def _score_held_back(self, label: str, network: RRLNet) -> None:
        """Log FPR95 of every source; the mean over sources, each on its own negatives, picks the weights."""
        by_source = {}
        for source in self.validation:
            fpr95 = source.score(network, self.precision).fpr95()
            by_source[source.name] = sum(fpr95.values()) / len(fpr95)
            logger.info("step %d, %s, FPR95 in percent, %s: %s", self.done, label, source.name, rounded(fpr95))
            values = {f"fpr95_{kind}": value for kind, value in rounded(fpr95).items()}
            self.folder.log(self.done, f"{label}/{source.name}", values)
        mean = sum(by_source.values()) / len(by_source)
        self.folder.log(self.done, label, {"fpr95": round(mean, 4)})
        logger.info("step %d, %s, FPR95 in percent, mean of the sources: %.3f", self.done, label, mean)
        if mean <= self.best["fpr95"]:
            weights = {k: v.detach().to("cpu", copy=True) for k, v in network.state_dict().items()}
            self.best = {"fpr95": mean, "by_source": by_source, "step": self.done, "network": weights}

    def _best_so_far(self) -> dict[str, str]:
        """For the bar: FPR95 of the best weights, each source in percent."""
        return {name: f"{value:.1f}" for name, value in self.best.get("by_source", {}).items()}

    def _write_checkpoint(self, phase: str, optimizer: Any, lr_schedule: LambdaLR) -> None:
        if self.accelerator.is_main_process:
            self.folder.write_checkpoint(
                {
                    "phase": phase,
                    "done": self.done,
                    "seconds": self.seconds,
                    **self._identity(),
                    "model": self.model.state_dict(),
                    "average": self.average.state_dict() if self.average else None,
                    "optimizer": optimizer.state_dict(),
                    "schedule": lr_schedule.state_dict(),
                    "best": self.best,
                }
            )

    def _identity(self) -> dict[str, Any]:
        """What a run must have in common with a checkpoint to resume from it."""
        return {
            "recipe": self.recipe.to_json(),
            "seed": self.seed,
            "precision": str(self.precision),
            "processes": self.accelerator.num_processes,
            "images": self.images,
        }

    def _save_best(self) -> None:
        """Write the best weights so far as a folder that `from_pretrained` loads, with a calibrated threshold."""
        network = RRLNet(self.network.config)
        network.load_state_dict(self.best["network"])
        scores = {source.name: source.score(network.eval(), torch.float32) for source in self.validation}
        kept, held_back = (len(names) for names in self.images.values())
        training = {
            "data": f"{', '.join(scores)}: {kept} image pairs to train on, {held_back} held back",
            "recipe": self.recipe.summary,
            "seed": self.seed,
            "steps": self.done,
            "best_step": self.best["step"],
            "hours": round(self.seconds / 3600, 2),
            "hardware": _hardware(self.device),
        }
        config = calibrated_config(self.recipe.modalities, network.config, scores, training)
        save_folder(self.folder.path / "weights", network, config, model_card(config))


def build_model(recipe: Recipe, start: RRLNet | None, device: torch.device) -> TrainingRRLNet:
    """The training graph of a recipe, with random weights or those to start from.

    Raises:
        ValueError: the weights' descriptors are not of the recipe's length.
    """
    if start and start.config.descriptor_dim != recipe.descriptor_dim:
        raise ValueError(
            f"the weights to start from have descriptors of length {start.config.descriptor_dim}, "
            f"the recipe asks for {recipe.descriptor_dim}: set descriptor_dim in the recipe to that of the weights"
        )
    config = start.config if start else recipe.network
    config = dataclasses.replace(config, descriptor_dim=recipe.descriptor_dim, standardise=recipe.standardise)
    network = RRLNet(config)
    if start:
        network.load_state_dict(start.state_dict())
    model = TrainingRRLNet(network, recipe.heads)
    model.to(device)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    set_norm_momentum(model, recipe.norm_momentum)
    return model


def build_phases(recipe: Recipe, model: TrainingRRLNet, precision: torch.dtype) -> list[TrainingPhase]:
    """The phases of a recipe, in order."""
    phases: list[TrainingPhase] = []
    if recipe.pretraining:
        phases.append(Pretraining(recipe, recipe.pretraining, model.prune(), precision))
    phases.append(FullTraining(recipe, recipe.training, model, precision))
    return phases


def _as_numbers(loss: Tensor, terms: dict[str, Tensor], step: int) -> dict[str, float]:
    """The loss and its terms as numbers, fetched from the device at once.

    Raises:
        RRLMatchError: the loss is not finite; the weights are still those before the step.
    """
    numbers = torch.stack([loss, *terms.values()]).detach().tolist()
    values = {name: round(value, 5) for name, value in zip(["loss", *terms], numbers, strict=True)}
    if not math.isfinite(numbers[0]):
        raise RRLMatchError(f"the loss of step {step} is not finite: {values}")
    return values


def _hardware(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{os.cpu_count()} CPU cores"
