import json

import pytest
from training_run import RECIPE, replace

from rrl_match.modeling import RRLNetConfig
from rrl_match.training.recipe import Phase, Recipe, SyntheticBands

NAMES = [
    "optical-sar",
    "published",
    "universal",
    "universal-continued",
    "universal-lite",
    "vis-lwir",
    "vis-nir",
]


@pytest.mark.parametrize("name", NAMES)
def test_recipes_of_the_package_load(name, tmp_path):
    recipe = Recipe.load(name)
    of_any_sensor = {"universal", "universal-continued", "universal-lite"}
    expected = ("visible", "other") if name in of_any_sensor else tuple(name.split("-"))
    assert recipe.modalities == (("vis", "nir") if name == "published" else expected)
    (tmp_path / "own.json").write_text(recipe.to_json(), encoding="utf-8")
    assert Recipe.load(tmp_path / "own.json") == recipe


def test_fraction_of_hard_negatives_grows_from_the_first_to_the_last_step():
    steps = RECIPE.training.steps
    recipe = replace(RECIPE, hard_negatives=(0.2, 0.8))
    fractions = [recipe.hard_fraction(step) for step in range(steps)]
    assert fractions == pytest.approx([0.2 + 0.6 * k / (steps - 1) for k in range(steps)])
    assert recipe.hard_fraction(steps) == pytest.approx(0.8)  # after the last step, when norms are re-estimated


def test_published_recipe_is_the_published_one():
    recipe = Recipe.load("published")
    assert recipe.optimizer == "nadam"
    assert recipe.training.learning_rate == 2e-4
    assert recipe.pretraining is None
    assert recipe.hard_negatives == (0, 0)
    assert recipe.losses.metric_stages == recipe.losses.interaction == 1
    assert recipe.losses.pixel == 0.1
    assert recipe.descriptor_dim == RRLNetConfig().descriptor_dim == 0


MINIMAL = {
    "modalities": ["a", "b"],
    "summary": "",
    "training": {"steps": 1, "batch_size": 2, "images_per_batch": 2, "learning_rate": 1e-3},
}


def test_minimal_recipe_loads(tmp_path):
    (tmp_path / "own.json").write_text(json.dumps(MINIMAL))
    assert Recipe.load(str(tmp_path / "own.json")).training.warmup == 100


@pytest.mark.parametrize("name", ["nothing", "nothing.json", "../recipe", ""])
def test_unknown_recipe_is_named_with_the_known_ones(name):
    with pytest.raises(ValueError, match=f"no recipe .*{', '.join(NAMES)}"):
        Recipe.load(name)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '"vis-nir"',
        json.dumps({k: v for k, v in MINIMAL.items() if k != "modalities"}),
        json.dumps({k: v for k, v in MINIMAL.items() if k != "training"}),
        json.dumps(MINIMAL | {"training": None}),
        json.dumps(MINIMAL | {"training": 3}),
        json.dumps(MINIMAL | {"training": {"steps": 1}}),
        json.dumps(MINIMAL | {"learning_rat": 1}),
        json.dumps(MINIMAL | {"geometry": {"zooom": 2}}),
        json.dumps(MINIMAL | {"optimizer": "sgd"}),
        json.dumps(MINIMAL | {"hard_negatives": [0, 0.5]}),
        json.dumps(MINIMAL | {"modalities": ["vis"]}),
        json.dumps(MINIMAL | {"modalities": "ab"}),
        json.dumps(MINIMAL | {"held_back": 8}),
        json.dumps(MINIMAL | {"val_fraction": 0.9}),
    ],
)
def test_unusable_recipe_is_named(tmp_path, text):
    (tmp_path / "own.json").write_text(text)
    with pytest.raises(ValueError, match=r"own\.json"):
        Recipe.load(tmp_path / "own.json")


@pytest.mark.parametrize(
    "values",
    [
        {"optimizer": "sgd"},
        {"descriptor_dim": 0},
        {"modalities": ("vis",)},
        {"hard_negatives": 0.5},
        {"hard_negatives": (0.0, 1.5)},
        {"training": Phase(steps=0, batch_size=4, images_per_batch=2, learning_rate=1e-3)},
        {"training": Phase(steps=4, batch_size=0, images_per_batch=2, learning_rate=1e-3)},
        {"training": Phase(steps=4, batch_size=4, images_per_batch=2, learning_rate=1e-3, sources_per_batch=0)},
        {"training": Phase(steps=4, batch_size=4, images_per_batch=2, learning_rate=1e-3, sources_per_batch=3)},
        {"training": Phase(steps=4, batch_size=1, images_per_batch=2, learning_rate=1e-3, sources_per_batch=2)},
        {"val_fraction": 0.0},
        {"val_fraction": 0.6},
        {"synthetic": SyntheticBands(probability_a=-0.1)},
        {"synthetic": SyntheticBands(probability_a=0.6, probability_b=0.6)},
    ],
)
def test_recipe_that_cannot_be_trained_is_an_error(values):
    with pytest.raises(ValueError, match=next(iter(values))):
        replace(RECIPE, **values)


def test_learning_rate_warms_up_and_decays():
    phase = Phase(steps=10, batch_size=2, images_per_batch=2, learning_rate=1.0, warmup=4)
    factors = [phase.lr_factor(step) for step in range(11)]
    assert factors[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert factors[7] == pytest.approx(0.5)
    assert factors[10] == pytest.approx(0.0)
