"""A user's file that uses everything public; test_typing.py checks it with mypy --strict."""

from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from typing_extensions import assert_type

from rrl_match import (
    DataError,
    ExportError,
    Features,
    ImageError,
    Matches,
    MissingExtraError,
    Near,
    Registration,
    RRLMatcher,
    RRLMatchError,
    ScoringError,
    Search,
    Transform,
    WeightsError,
    WeightsNotFoundError,
    __version__,
    extract_patches,
    percentile_range,
    register,
)
from rrl_match.cli.main import main
from rrl_match.export import Exported, export_onnx, export_torch
from rrl_match.modeling import Band, RRLNet, RRLNetConfig
from rrl_match.pretrained import ModelConfig, load_folder, save_folder
from rrl_match.registration import Config, ErrorMap, Thumbnails, TiePoints
from rrl_match.selftest import Check, reference_scores, run_checks, versions
from rrl_match.training.convert import load_keras_weights
from rrl_match.training.datasets import ImagePair, PairSource, Source, read_source
from rrl_match.training.evaluation import Benchmark, Metrics, evaluate
from rrl_match.training.network import TrainingRRLNet
from rrl_match.training.recipe import Recipe
from rrl_match.training.trainer import Trainer
from rrl_match.transforms import Affine

assert_type(__version__, str)
errors: list[type[RRLMatchError]] = [DataError, ExportError, ImageError, MissingExtraError, ScoringError]
errors += [WeightsError, WeightsNotFoundError]

matcher = RRLMatcher.from_pretrained("vis-nir", device="cpu", dtype=torch.float32, local_files_only=True)
assert_type(matcher, RRLMatcher)
assert_type(matcher.modalities, tuple[str, str])
assert_type(matcher.threshold, float)
assert_type(matcher.patch_size, int)
assert_type(matcher.device, torch.device)
assert_type(matcher.dtype, torch.dtype)
assert_type(matcher.config, ModelConfig)
assert_type(RRLMatcher(RRLNet(), ModelConfig(("vis", "nir")), device="cpu", dtype="auto"), RRLMatcher)

visible, infrared = np.zeros((5, 64, 64), np.uint8), np.zeros((5, 64, 64), np.uint16)
one_visible, one_infrared = np.zeros((64, 64), np.uint8), np.zeros((64, 64), np.uint16)
visible_tensor, infrared_tensor = torch.zeros(5, 1, 64, 64), torch.zeros(5, 3, 64, 64)

assert_type(matcher.score(visible, infrared), NDArray[np.float32])
assert_type(matcher.score([one_visible], (one_infrared,), batch_size=8, progress=True), NDArray[np.float32])
assert_type(matcher.score(visible, infrared, value_range=(0, 255)), NDArray[np.float32])
assert_type(matcher.score(visible, infrared, value_range=(None, (0.5, 99))), NDArray[np.float32])
assert_type(matcher.score(visible_tensor, infrared_tensor), torch.Tensor)
assert_type(matcher.score([visible_tensor[0]], (infrared_tensor[0, :1],)), torch.Tensor)
assert_type(matcher.score_matrix(visible, infrared), NDArray[np.float32])
assert_type(matcher.score_matrix(visible_tensor, infrared_tensor), torch.Tensor)

features_a, features_b = matcher.encode(visible, "a"), matcher.encode(infrared_tensor, "b", value_range=(0, 1))
assert_type(features_a, Features)
assert_type(features_a.band, Band)
assert_type(features_a.encoder, int)
assert_type(features_a.maps, tuple[torch.Tensor, ...])
assert_type(features_a.descriptors, torch.Tensor)
assert_type(len(features_a), int)
assert_type(matcher.score_features(features_a, features_b, [(0, 0), (1, 2)]), NDArray[np.float32])
assert_type(matcher.score_features(features_a, features_b, np.array([[0, 0]])), NDArray[np.float32])
assert_type(matcher.score_features(features_a, features_b, torch.tensor([[0, 0]])), torch.Tensor)

assert_type(matcher.offsets(visible, infrared), NDArray[np.float32])
assert_type(matcher.offsets(visible_tensor, infrared_tensor), torch.Tensor)
keypoints = np.zeros((5, 2))
near = Near(radius=12, positions_a=keypoints, positions_b=[cv2.KeyPoint(1.0, 2.0, 3.0)] * 5)
assert_type(near.radius, float)
assert_type(near.positions_a, NDArray[np.float64])
assert_type(near.positions_b, NDArray[np.float64])
assert_type(near.mask(slice(0, 2)), torch.Tensor)
assert_type(near.pairs(), torch.Tensor)
assert_type(near.swapped(), Near)
matches = matcher.match(visible, infrared, candidates=None, mutual=False, threshold=0.5, near=near)
assert_type(matches, Matches[NDArray[np.int64], NDArray[np.float32]])
assert_type(matches.indices, NDArray[np.int64])
assert_type(matches.scores, NDArray[np.float32])
assert_type(matches.to_cv2(), list[cv2.DMatch])
assert_type(matches.to_kornia(), tuple[torch.Tensor, torch.Tensor])
tensor_matches = matcher.match(visible_tensor, infrared_tensor, index_pairs=[(0, 1)])
assert_type(tensor_matches.indices, torch.Tensor)
assert_type(tensor_matches.scores, torch.Tensor)
assert_type(matcher.match_features(features_a, features_b), Matches)

image = np.zeros((100, 100, 3), np.uint8)
patches, valid = extract_patches(image, keypoints)
assert_type(patches, NDArray[np.uint8])
assert_type(valid, NDArray[np.bool_])
assert_type(extract_patches(image.astype(np.float64), [(50, 40)])[0], NDArray[np.float32])
assert_type(extract_patches(one_infrared, torch.zeros(1, 2), 32, orientation=False)[0], NDArray[np.uint16])
assert_type(extract_patches(visible_tensor[0, 0], keypoints), tuple[torch.Tensor, torch.Tensor])
assert_type(percentile_range(image, 1, 99), tuple[float, float])

result = register(matcher, image, image, "affine")
assert_type(result, Registration)
assert_type(result.ok, bool)
assert_type(result.reason, str)
assert_type(result.matrix, NDArray[np.float64] | None)
assert_type(result.transform, Transform | None)
assert_type(result.rejected, Transform | None)
assert_type(result.model, str)
assert_type(result.advice, str)
assert_type(result.probability, float)
assert_type(result.overlap, float)
assert_type(result.agreement, float)
assert_type(result.notes, tuple[str, ...])
assert_type(result.tie_points, TiePoints)
assert_type(result.thumbnails, Thumbnails | None)
assert_type(result.tie_points.a, NDArray[np.float64])
assert_type(result.tie_points.scores, NDArray[np.float32])
assert_type(result.tie_points.inliers, NDArray[np.bool_])
assert_type(result.checkerboard(image, torch.zeros(100, 100)), NDArray[np.uint8])
assert_type(result.draw_matches([image, image], image), NDArray[np.uint8])
assert_type(result.error_map(image), NDArray[np.uint8])
assert_type(result.error_at([(1, 2)]), NDArray[np.float64])
assert_type(result.error, float)
assert_type(result.errors, ErrorMap)
assert_type(matches.draw(image, image, keypoints, keypoints), NDArray[np.uint8])
assert_type(result.warp(image, image.shape), NDArray[np.generic])
register(matcher, [image, image], [torch.zeros(100, 100)] * 2, mask_a=image[..., 0], value_range=(None, (0, 1)))
register(matcher, image, image, search=Search(rotation=10, scale=(0.9, 1.1)), config=Config(), progress=True)
transform = Transform.from_dict(Affine(np.eye(3)).to_dict())
assert_type(transform.inverse()([(1, 2)]), NDArray[np.float64])
assert_type(transform.jacobian([(1, 2)]), NDArray[np.float64])
assert_type(transform.between(transform, transform), Transform)
assert_type(transform.map(image.shape), NDArray[np.float32])
assert_type(transform.warp(image, image.shape, "cubic"), NDArray[np.generic])
search = Search(aspect=1.2, mirrored=True, shift=40)
assert_type(search.rotation, float)
assert_type(search.scale, tuple[float, float] | None)
assert_type(search.aspect, float)
assert_type(search.mirrored, bool)
assert_type(search.shift, float | None)
register(matcher, image, image, "translation", search=search, initial=transform, simplify=False)

assert_type(matcher.save_pretrained("weights"), Path)
assert_type(matcher.push_to_hub("owner/name", private=True), str)

assert_type(main(["selftest"]), int)
assert_type(export_onnx(matcher, "folder"), list[Exported])
assert_type(export_torch(matcher, Path("folder"), ["scorer"])[0].deviation, float)
assert_type(list(run_checks()), list[Check])
assert_type(reference_scores(matcher), list[float])
assert_type(versions(), dict[str, str])

network, config = load_folder("weights")
assert_type(network, RRLNet)
assert_type(network.config, RRLNetConfig)
assert_type(save_folder("weights", network, config, "# Card"), Path)

source = read_source("my-images=2", "train")
assert_type(source, PairSource)


class Archive:
    name, weight = "archive", 1.0
    pairs = (ImagePair("one", "yard", image, one_visible, np.eye(2, 3)),)


sources: list[Source] = [source, Archive()]
recipe = Recipe.load("vis-nir").with_steps(100, pretraining=0)
assert_type(recipe, Recipe)
assert_type(Trainer(recipe, sources, Path("run"), precision="fp32", start=network).train(), Path)
assert_type(evaluate(matcher, Benchmark.load("patches.npz")), Metrics)
assert_type(load_keras_weights("model.hdf5"), TrainingRRLNet | RRLNet)
