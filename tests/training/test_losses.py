import math
import sys
import types

import pytest
import torch
from torch import nn

from rrl_match.training.losses import PerceptualLoss, contrastive_loss, gradient_loss, matching_loss


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_matching_loss_by_hand(smoothing):
    logits, labels = [2.0, -1.0, 0.5], [1.0, 0.0, 0.0]
    expected = 0.0
    for x, y in zip(logits, labels, strict=True):
        target = y * (1 - smoothing) + smoothing / 2
        expected -= target * math.log(sigmoid(x)) + (1 - target) * math.log(1 - sigmoid(x))
    loss = matching_loss(torch.tensor(logits), torch.tensor(labels), smoothing)
    assert float(loss) == pytest.approx(expected / 3, rel=1e-5)


def test_matching_loss_of_sure_logits_is_finite():
    assert float(matching_loss(torch.tensor([-500.0, 500.0]), torch.tensor([0.0, 1.0]))) == 0
    assert float(matching_loss(torch.tensor([-500.0]), torch.tensor([1.0]))) == 500


@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_contrastive_loss_against_a_loop(temperature):
    g = torch.Generator().manual_seed(0)
    n = 5
    a, b = (nn.functional.normalize(torch.randn(n, 4, generator=g)) for _ in range(2))
    negative = torch.rand(n, n, generator=g) < 0.6
    negative = (negative | negative.T) & ~torch.eye(n, dtype=torch.bool)
    assert 0 < negative.sum() < n * (n - 1)
    expected = 0.0
    for one, other in ((a, b), (b, a)):
        for i in range(n):
            similarity = [math.exp(float(one[i] @ other[j]) / temperature) for j in range(n)]
            expected -= math.log(similarity[i] / sum(similarity[j] for j in range(n) if j == i or negative[i, j])) / (
                2 * n
            )
    assert float(contrastive_loss(a, b, negative, temperature)) == pytest.approx(expected, rel=1e-4)


def test_contrastive_loss_without_negatives_is_zero_with_a_finite_gradient():
    a = nn.functional.normalize(torch.randn(3, 4)).requires_grad_()
    loss = contrastive_loss(a, a.detach().clone(), torch.zeros(3, 3, dtype=torch.bool), 0.07)
    loss.backward()
    assert float(loss.detach()) == 0
    assert torch.equal(a.grad, torch.zeros(3, 4))


def test_gradient_loss_is_zero_where_gradients_agree():
    patches = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert float(gradient_loss(patches, patches)) == 0
    assert float(gradient_loss(patches * 0.5 + 0.25, patches * 0.5)) == pytest.approx(0, abs=1e-6)
    assert float(gradient_loss(patches.flip(3), patches)) > 0.1
    assert float(gradient_loss(torch.zeros_like(patches), patches)) > 0.1


def test_gradient_loss_by_hand():
    reconstruction = torch.tensor([[0.0, 0.3], [0.0, 0.5]])[None, None]
    # down the columns: 0 and 0.2, mean 0.1; along the rows: 0.3 and 0.5, mean 0.4
    assert float(gradient_loss(reconstruction, torch.zeros(1, 1, 2, 2))) == pytest.approx(0.5)


def test_perceptual_loss_without_torchvision_says_what_to_do(monkeypatch):
    for name in ("torchvision", "torchvision.models"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match="pip install torchvision"):
        PerceptualLoss()


def test_perceptual_loss_compares_features_of_normalised_colours(monkeypatch):
    layers = [nn.Conv2d(3, 1, 1, bias=False)] + [nn.Identity() for _ in range(35)]
    nn.init.ones_(layers[0].weight)
    fake = types.ModuleType("torchvision.models")
    fake.VGG19_Weights = types.SimpleNamespace(IMAGENET1K_V1="imagenet")
    # What comes after the 36th layer must not be used.
    fake.vgg19 = lambda weights: types.SimpleNamespace(features=nn.Sequential(*layers, nn.Flatten(), nn.Linear(1, 1)))
    monkeypatch.setitem(sys.modules, "torchvision", types.ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.models", fake)
    loss = PerceptualLoss()
    assert not [p for p in loss.parameters() if p.requires_grad]
    a = torch.full((2, 1, 4, 4), 0.5, requires_grad=True)
    assert float(loss(a, a).detach()) == 0
    value = loss(a, torch.full((2, 1, 4, 4), 0.25))
    assert float(value.detach()) == pytest.approx((0.25 / 0.229 + 0.25 / 0.224 + 0.25 / 0.225) ** 2, rel=1e-4)
    value.backward()
    assert (a.grad > 0).all()
