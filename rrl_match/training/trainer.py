"""The training loop: phases of a recipe, checkpoints, curves, and the weights folder at the end."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import time
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from rrl_match.errors import RRLMatchError
from rrl_match.modeling import RRLNet, RRLNetConfig
from rrl_match.pretrained import ModelConfig, save_folder
from rrl_match.training.augment import augment, mixed_grey
from rrl_match.training.card import model_card
from rrl_match.training.datasets import PatchBatch, PatchSampler, PicturePair, hold_back
from rrl_match.training.losses import PerceptualLoss, contrastive_loss, gradient_loss, matching_loss
from rrl_match.training.mining import mine_pairs, surely_different
from rrl_match.training.network import (
    ContrastivePretraining,
    Descriptors,
    TrainingOutput,
    TrainingRRLNet,
    set_norm_momentum,
    take_rows,
)
from rrl_match.training.recipe import Phase, Recipe
from rrl_match.training.throughput import matrix_rate, step_flops
from rrl_match.training.validation import ValidationSet

logger = logging.getLogger(__name__)


class Trainer:
    """Trains an :class:`RRLNet` by a recipe; a run that was killed goes on from its last checkpoint.

    What a step sees depends on the seed and the step's number alone, so a resumed run continues the same curve.

    Args:
        recipe: what to do.
        pairs: registered training pictures; every `recipe.held_back`-th is kept for validation.
        out: folder for ``checkpoint.pt``, ``log.jsonl``, TensorBoard's files and, at the end, ``weights/``; one that
            all processes share.
        seed: of initialisation, patches, augmentation and mining.
        precision: "bf16" or "fp32".
        device: "auto" takes CUDA where there is one, "cpu" never does.
        compile: compile all but the heads, so that norms and activations, bound by memory, are fused.
        start: weights to start from instead of random ones.
        data: where the pictures are from, for the model card; their number is added.
        checkpoint_every, validate_every: steps between checkpoints, and between validations.
    """

    def __init__(
        self,
        recipe: Recipe,
        pairs: list[PicturePair],
        out: Path,
        *,
        seed: int = 0,
        precision: str = "bf16",
        device: str = "auto",
        compile: bool = False,
        start: RRLNet | None = None,
        data: str = "",
        checkpoint_every: int = 100,
        validate_every: int = 400,
    ) -> None:
        self.recipe, self.out, self.seed, self.data = recipe, out, seed, data
        self.checkpoint_every, self.validate_every = checkpoint_every, validate_every
        if precision not in ("bf16", "fp32"):
            raise ValueError(f"precision must be 'bf16' or 'fp32', got {precision!r}")
        if device not in ("auto", "cpu"):
            raise ValueError(f"device must be 'auto' or 'cpu', got {device!r}")
        if start and start.config.descriptor_dim != recipe.descriptor_dim:
            raise ValueError(
                f"the weights to start from have descriptors of length {start.config.descriptor_dim}, "
                f"the recipe asks for {recipe.descriptor_dim}: set descriptor_dim in the recipe to that of the weights"
            )
        # without CUDA, Accelerator would take MPS, and leave several processes unaware of each other
        on_cpu = device == "cpu" or not torch.cuda.is_available()
        self.accelerator = Accelerator(cpu=on_cpu, mixed_precision="no")  # precision is our own affair
        self.precision = torch.bfloat16 if precision == "bf16" else torch.float32
        self.device = self.accelerator.device
        torch.manual_seed(seed)
        wanted = RRLNetConfig(descriptor_dim=recipe.descriptor_dim, standardise=recipe.standardise)
        network = RRLNet(dataclasses.replace(start.config, standardise=recipe.standardise) if start else wanted)
        if start:
            network.load_state_dict(start.state_dict())
        self.model = TrainingRRLNet(network, recipe.heads).to(self.device)
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        set_norm_momentum(self.model, recipe.norm_momentum)
        size = network.config.patch_size
        kept, held_back = hold_back(pairs, recipe.held_back)
        self.sampler = PatchSampler(kept, size, self.device)
        self.pictures = {"train": [p.name for p in kept], "held_back": [p.name for p in held_back]}
        self.validation = ValidationSet(PatchSampler(held_back, size, self.device))
        self.perceptual = PerceptualLoss().to(self.device) if recipe.losses.perceptual else None
        self.phases: list[tuple[str, Phase, nn.Module]] = [("training", recipe.training, self.model)]
        if recipe.pretraining:
            self.phases.insert(0, ("pretraining", recipe.pretraining, ContrastivePretraining(self.model.network)))
        self.average: AveragedModel | None = None
        self.best: dict[str, Any] = {"fpr95": math.inf}
        self.done = 0  # steps, over all phases
        self.seconds = 0.0
        if compile:
            net, decoders = self.model.network, (self.model.decoder_a, self.model.decoder_b)
            for module in (net.encoder_a, net.encoder_b, *net.interactions, net.metric, *decoders):
                module.compile()

    def train(self) -> Path:
        """Run what is left of all phases. Returns the folder with the best weights."""
        self.out.mkdir(parents=True, exist_ok=True)
        state = self._read_checkpoint()
        if len(set(gather_object([self.done]))) > 1:
            raise ValueError(f"the processes found different checkpoints: {self.out} must be a folder that all share")
        self._forget_log_after(self.done)
        if self.accelerator.is_main_process:
            (self.out / "recipe.json").write_text(self.recipe.to_json(), encoding="utf-8")
        first = 0
        for name, phase, model in self.phases:
            if self.done < first + phase.steps:
                self._run_phase(name, phase, model, first, state)
                state = None
            first += phase.steps
        if self.accelerator.is_main_process:
            self._release()
        self.accelerator.wait_for_everyone()
        return self.out / "weights"

    # One phase

    def _run_phase(self, name: str, phase: Phase, model: nn.Module, first: int, state: dict[str, Any] | None) -> None:
        whole = model is self.model  # the whole graph, which alone can score pairs, or the encoders
        optimizer = self._optimizer(phase, model)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, phase.rate)
        if whole and self.recipe.ema_decay:
            self.average = AveragedModel(self.model.network, multi_avg_fn=get_ema_multi_avg_fn(self.recipe.ema_decay))
        if state and state["phase"] == name:
            optimizer.load_state_dict(state["optimizer"])
            schedule.load_state_dict(state["schedule"])
            if self.average:
                self.average.load_state_dict(state["average"])
        work = step_flops(model, phase.places, self.model.network.config.patch_size)
        peak = matrix_rate(self.device, self.precision)
        pairs = phase.places * (2 if whole else 1) * self.accelerator.num_processes
        model, optimizer = self.accelerator.prepare(model.train(), optimizer)
        terms_of = self._training_step if whole else self._pretraining_step
        is_main, last = self.accelerator.is_main_process, first + phase.steps
        writer = SummaryWriter(str(self.out), purge_step=self.done + 1) if is_main else None
        steps = range(self.done, last)
        interval = 0.5 if os.isatty(2) else 10  # seconds between lines of a bar that goes to a file
        with tqdm(
            steps, name, phase.steps, initial=self.done - first, disable=not is_main, mininterval=interval
        ) as bar:
            for step in bar:
                began = time.perf_counter()
                generator = torch.Generator().manual_seed(self._step_seed(step))
                batch = self.sampler.draw(phase.places, phase.pictures, self.recipe.geometry, generator)
                terms = terms_of(model, batch, generator)
                loss = torch.stack(list(terms.values())).sum()
                values = self._checked(loss, terms)
                self.accelerator.backward(loss)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
                if self.average:
                    self.average.update_parameters(self.model.network)
                self.done, elapsed = step + 1, time.perf_counter() - began
                self.seconds += elapsed
                rates = {"pairs_s": round(pairs / elapsed), "of_matrix_rate": f"{work / elapsed / peak:.0%}"}
                bar.set_postfix(loss=values["loss"], **rates, refresh=False)
                self._log(writer, name, {"seconds": round(self.seconds, 1), **values})
                if whole and (self.done == last or self.done % self.validate_every == 0):
                    self._validate(writer)
                if self.done == last or self.done % self.checkpoint_every == 0:
                    self._write_checkpoint(name, optimizer, schedule)
        if writer:
            writer.close()
        self.accelerator.free_memory()

    def _checked(self, loss: Tensor, terms: dict[str, Tensor]) -> dict[str, float]:
        """The loss and its terms as numbers, fetched from the device at once.

        Raises:
            RRLMatchError: the loss is not finite; the weights are still those before the step.
        """
        numbers = torch.stack([loss, *terms.values()]).detach().tolist()
        values = {name: round(value, 5) for name, value in zip(["loss", *terms], numbers, strict=True)}
        if not math.isfinite(numbers[0]):
            raise RRLMatchError(f"the loss of step {self.done + 1} is not finite: {values}")
        return values

    def _step_seed(self, step: int) -> int:
        """Differs between seeds, steps and processes."""
        process: int = self.accelerator.process_index
        return (self.seed * 1_000_003 + step) * 4099 + process

    def _optimizer(self, phase: Phase, model: nn.Module) -> torch.optim.Optimizer:
        """One group for the encoders, whose rate may differ while the whole graph is trained, one for the rest."""
        recipe, network = self.recipe, self.model.network
        encoders = nn.ModuleList([network.encoder_a, network.encoder_b]).parameters()
        of_encoders = {id(p) for p in encoders}
        factor = recipe.encoder_learning_rate if model is self.model else 1.0
        groups: list[dict[str, Any]] = [
            {"params": [p for p in model.parameters() if id(p) in of_encoders], "lr": phase.learning_rate * factor},
            {"params": [p for p in model.parameters() if id(p) not in of_encoders]},
        ]
        if recipe.optimizer == "nadam":
            return torch.optim.NAdam(groups, lr=phase.learning_rate, weight_decay=recipe.weight_decay)
        return torch.optim.AdamW(groups, lr=phase.learning_rate, weight_decay=recipe.weight_decay, fused=True)

    def _patches(self, batch: PatchBatch, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The batch's patches of both bands, augmented and as the encoders want them, (N, 1, S, S)."""
        photometry = self.recipe.photometry
        grey_a = mixed_grey(batch.colour_a, photometry, generator)
        patches_a = augment(grey_a, photometry, generator)
        patches_b = augment(batch.patches_b, photometry, generator)
        return self.model.network.prepare(patches_a), self.model.network.prepare(patches_b)

    def _pretraining_step(self, model: nn.Module, batch: PatchBatch, generator: torch.Generator) -> dict[str, Tensor]:
        negative = surely_different(batch.picture, batch.position, self.recipe.negative_distance)
        patches = self._patches(batch, generator)
        with self._autocast():
            descriptors_a, descriptors_b = model(*patches)
        return {"contrastive": contrastive_loss(descriptors_a, descriptors_b, negative, self.recipe.temperature)}

    def _training_step(self, model: nn.Module, batch: PatchBatch, generator: torch.Generator) -> dict[str, Tensor]:
        patches = self._patches(batch, generator)
        negative = surely_different(batch.picture, batch.position, self.recipe.negative_distance)
        with self._autocast():
            output = model(*patches, lambda descriptors: self._mined(descriptors, negative, generator))
        return self._loss_terms(output, patches, negative)

    def _mined(self, descriptors: Descriptors, negative: Tensor, generator: torch.Generator) -> Tensor:
        """Index pairs (P, 2) that a step shows the metric network."""
        similarity = (
            descriptors[0] @ descriptors[1].T if descriptors else torch.zeros(negative.shape, device=self.device)
        )
        step = self.done - (self.recipe.pretraining.steps if self.recipe.pretraining else 0)
        return mine_pairs(similarity, negative, self.recipe.hard_share(step), generator)

    def _autocast(self) -> torch.autocast:
        """For the network and the similarities that pairs are mined by; augmentation and losses are in float32."""
        return torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32)

    def _loss_terms(
        self, output: TrainingOutput, patches: tuple[Tensor, Tensor], negative: Tensor
    ) -> dict[str, Tensor]:
        """All terms, weighted; their sum is the loss."""
        weights, smoothing = self.recipe.losses, self.recipe.label_smoothing
        labels = torch.zeros(len(output.logits), device=self.device)
        labels[: len(negative)] = 1
        terms = {"match": matching_loss(output.logits, labels, smoothing)}
        for k, logits in output.metric_logits.items():
            terms[f"metric_{k}"] = weights.metric_stages * matching_loss(logits, labels, smoothing)
        for k, logits in output.interaction_logits.items():
            terms[f"interaction_{k}"] = weights.interaction * matching_loss(logits, labels, smoothing)
        for band, seen, wanted in zip("ab", (output.reconstruction_a, output.reconstruction_b), patches, strict=True):
            terms[f"pixel_{band}"] = weights.pixel * nn.functional.mse_loss(seen.float(), wanted)
            if self.perceptual:
                terms[f"perceptual_{band}"] = weights.perceptual * self.perceptual(seen, wanted)
            else:
                terms[f"gradient_{band}"] = weights.gradient * gradient_loss(seen, wanted)
        if output.descriptors and weights.contrastive:
            a, b = output.descriptors
            terms["contrastive"] = weights.contrastive * contrastive_loss(a, b, negative, self.recipe.temperature)
        return terms

    # Validation, checkpoints, release

    def _validate(self, writer: SummaryWriter | None) -> None:
        """Figures on the held-back pictures, of the weights and of their average; the best so far are kept."""
        if not self.accelerator.is_main_process:
            return
        self._score_held_back(writer, "validation", self.model.network)
        if self.average:
            averaged = cast(RRLNet, self.average.module)
            self._settle_norms(averaged)
            self._score_held_back(writer, "validation_average", averaged)

    def _score_held_back(self, writer: SummaryWriter | None, label: str, network: RRLNet) -> None:
        scores = self.validation.score(network, self.precision)
        figures = {kind: scores.fpr95(kind) for kind in scores.kinds()}
        mean = sum(figures.values()) / len(figures)
        if mean <= self.best["fpr95"]:
            weights = {k: v.detach().to("cpu", copy=True) for k, v in network.state_dict().items()}
            self.best = {"fpr95": mean, "step": self.done, "network": weights}
        logger.info("step %d: FPR95 in percent, %s: %s", self.done, label, figures)
        self._log(writer, label, {f"fpr95_{kind}": round(value, 4) for kind, value in figures.items()})

    @torch.no_grad()
    def _settle_norms(self, network: RRLNet, batches: int = 32) -> None:
        """Statistics of the batch norms for averaged weights, from training batches that are the same every time.

        Statistics that were averaged along belong to none of the networks that they come from: with them, the average
        of weights that still move scores next to nothing right.
        """
        for norm in network.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.reset_running_stats()
                norm.momentum = None  # the plain mean over all batches
        phase = self.recipe.training
        network.train()
        for k in range(batches):
            generator = torch.Generator().manual_seed(k)
            batch = self.sampler.draw(phase.places, phase.pictures, self.recipe.geometry, generator)
            negative = surely_different(batch.picture, batch.position, self.recipe.negative_distance)
            patches_a, patches_b = self._patches(batch, generator)
            with self._autocast():
                maps_a, maps_b = network.encoder_a(patches_a), network.encoder_b(patches_b)
                descriptors = (
                    (network.describe(maps_a, "a"), network.describe(maps_b, "b"))
                    if network.config.descriptor_dim
                    else None
                )
                rows_a, rows_b = self._mined(descriptors, negative, generator).unbind(1)
                network.logits([take_rows(m, rows_a) for m in maps_a], [take_rows(m, rows_b) for m in maps_b])
        network.eval()

    def _log(self, writer: SummaryWriter | None, phase: str, values: dict[str, float]) -> None:
        """One line of ``log.jsonl``, and TensorBoard's curves; on the main process only."""
        if not writer:
            return
        with open(self.out / "log.jsonl", "a", encoding="utf-8") as f:
            f.write(json.dumps({"step": self.done, "phase": phase, **values}) + "\n")
        for key, value in values.items():
            if key != "seconds":
                writer.add_scalar(f"{phase}/{key}", value, self.done)

    def _write_checkpoint(self, phase: str, optimizer: Any, schedule: Any) -> None:
        if not self.accelerator.is_main_process:
            return
        state = {
            "phase": phase,
            "done": self.done,
            "seconds": self.seconds,
            **self._identity(),
            "model": self.model.state_dict(),
            "average": self.average.state_dict() if self.average else None,
            "optimizer": optimizer.state_dict(),
            "schedule": schedule.state_dict(),
            "best": self.best,
        }
        partial = self.out / "checkpoint.pt.partial"
        torch.save(state, partial)
        os.replace(partial, self.out / "checkpoint.pt")

    def _identity(self) -> dict[str, Any]:
        """What a run must have in common with a checkpoint to go on from it."""
        return {
            "recipe": self.recipe.to_json(),
            "seed": self.seed,
            "precision": str(self.precision),
            "processes": self.accelerator.num_processes,
            "pictures": self.pictures,
        }

    def _read_checkpoint(self) -> dict[str, Any] | None:
        path = self.out / "checkpoint.pt"
        if not path.is_file():
            return None
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        other = [name for name, value in self._identity().items() if state.get(name) != value]
        if other:
            raise ValueError(
                f"{path} is of a run with another {' and '.join(other)}: choose another folder or delete it"
            )
        self.model.load_state_dict(state["model"])
        self.done, self.seconds, self.best = state["done"], state["seconds"], state["best"]
        logger.info("resuming from step %d", self.done)
        return state

    def _forget_log_after(self, step: int) -> None:
        """Drop lines of steps that a killed run logged after its last checkpoint, and that come again."""
        path = self.out / "log.jsonl"
        if not self.accelerator.is_main_process or not path.is_file():
            return
        kept = []
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
            if not line.endswith("\n") or json.loads(line)["step"] > step:  # the last line may be torn
                break
            kept.append(line)
        partial = self.out / "log.jsonl.partial"
        partial.write_text("".join(kept), encoding="utf-8")
        os.replace(partial, path)

    def _release(self) -> None:
        """Write the best weights so far as a folder that `from_pretrained` loads, with a calibrated threshold."""
        network = RRLNet(self.model.network.config)
        network.load_state_dict(self.best["network"])
        scores = self.validation.score(network.eval(), torch.float32)
        kept, held_back = (len(names) for names in self.pictures.values())
        config = ModelConfig(
            modalities=self.recipe.modalities,
            threshold=scores.threshold(),
            network=network.config,
            training={
                "data": f"{self.data}{kept} picture pairs to train on, {held_back} held back",
                "recipe": self.recipe.summary,
                "seed": self.seed,
                "steps": self.done,
                "best_step": self.best["step"],
                "hours": round(self.seconds / 3600, 2),
                "hardware": _hardware(self.device),
            },
            metrics={"held_back_fpr95": {kind: round(scores.fpr95(kind), 3) for kind in scores.kinds()}},
        )
        save_folder(self.out / "weights", network, config, model_card(config))


def _hardware(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{os.cpu_count()} CPU cores"
