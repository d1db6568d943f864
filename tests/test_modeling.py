from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from rrl_match.inference import InferenceRRLNet
from rrl_match.modeling import RRLNet, RRLNetConfig
from rrl_match.modeling.attention import MGLA, AxisGate, local_kernel_size
from rrl_match.modeling.blocks import ConvUnit
from rrl_match.modeling.encoder import ALFE
from rrl_match.modeling.interaction import FIL
from rrl_match.modeling.metric import ScoreHead
from rrl_match.modeling.network import standardise, unshuffle

TINY = RRLNetConfig(
    patch_size=16, encoder_channels=(2, 3, 4, 5, 6), metric_channels=(3, 4, 5, 6, 7), hidden=(5, 4), descriptor_dim=8
)


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.fixture(scope="module")
def published():
    with torch.device("meta"):
        return RRLNet().eval()


def randomised(module):
    """Batch norms away from the identity, so that a forgotten one shows."""
    for norm in module.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            for value in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
                torch.nn.init.uniform_(value, 0.5, 1.5)
    return module.eval().requires_grad_(False)


def test_published_number_of_values(published):
    assert sum(p.numel() for p in published.parameters()) == 9_394_105
    statistics = sum(b.numel() for name, b in published.named_buffers() if "running" in name)
    assert 9_394_105 + statistics == 9_404_025


def test_published_cost(published):
    pair = torch.empty(1, 1, 64, 64, device="meta"), torch.empty(1, 1, 64, 64, device="meta")
    with FlopCounterMode(display=False) as whole:
        published(*pair)
    with FlopCounterMode(display=False) as encoder:
        published.encoder_a(pair[0])
    assert whole.get_total_flops() / 1e9 == pytest.approx(1.25, abs=0.01)
    assert encoder.get_total_flops() / 1e9 == pytest.approx(0.152, abs=0.002)


def test_shapes_of_all_maps(published):
    patches = torch.empty(2, 1, 64, 64, device="meta")
    maps_a, maps_b = published.encode(patches, "a"), published.encode(patches, "b")
    expected = [(2, 16, 64, 64), (2, 32, 32, 32), (2, 64, 16, 16), (2, 128, 8, 8), (2, 256, 4, 4)]
    assert [tuple(m.shape) for m in maps_a] == expected
    assert [tuple(m.shape) for m in maps_b] == expected
    private = [fil(a, b)[0] for fil, a, b in zip(published.interactions, maps_a, maps_b, strict=True)]
    assert [p.shape[1] for p in private] == [32, 64, 128, 256, 512]
    related = [tuple(m.shape[1:]) for m in published.metric(private)]
    assert related == [(32, 64, 64), (64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4)]
    assert published(patches, patches).shape == (2,)


@pytest.mark.parametrize(
    ("length", "kernel"), [(1, 1), (4, 1), (8, 3), (16, 3), (32, 3), (64, 3), (128, 5), (256, 5), (512, 5), (2048, 7)]
)
def test_local_kernel_size(length, kernel):
    assert local_kernel_size(length) == kernel


def test_kernels_of_the_published_attention(published):
    kernels = [
        [gate.conv.kernel_size[0] for gate in stage.attention.children()] for stage in published.encoder_a.stages
    ]
    assert kernels == [[3, 3, 3], [3, 3, 3], [3, 3, 3], [5, 3, 3], [5, 1, 1]]


def test_axis_gate_by_hand():
    gate = AxisGate(4).requires_grad_(False)  # kernel 1
    gate.conv.weight.fill_(2.0)
    gate.conv.bias.fill_(-1.0)
    x = torch.tensor([[[0.0, 0.0], [0.0, 4.0], [0.0, 0.0], [0.0, 0.0]]])  # means 0 and 1 over the axis
    weight = torch.e / (1 + torch.e)
    expected = torch.sigmoid(torch.tensor([[-1.0, 2 * 4 * weight - 1, -1.0, -1.0]]))
    torch.testing.assert_close(gate(x), expected)


@pytest.mark.parametrize(("channels", "size"), [(3, 4), (4, 8), (130, 4)])
def test_mgla_against_loops(channels, size):
    mgla = MGLA(channels, size).requires_grad_(False)
    x = torch.randn(2, channels, size, size)
    expected = x.clone()
    for n in range(len(x)):
        for axis, gate in enumerate((mgla.channel_gate, mgla.row_gate, mgla.column_gate)):
            slices = x[n].unbind(axis)
            mean = sum(slices) / len(slices)
            weights = mean.exp() / mean.exp().sum()
            context = [float((piece * weights).sum()) for piece in slices]
            kernel, half = gate.conv.weight.flatten().tolist(), gate.conv.kernel_size[0] // 2
            for i in range(len(context)):
                local = float(gate.conv.bias)
                for k, weight in enumerate(kernel):
                    if 0 <= i + k - half < len(context):
                        local += weight * context[i + k - half]
                expected[n].select(axis, i).mul_(torch.sigmoid(torch.tensor(local)))
    torch.testing.assert_close(mgla(x), expected, rtol=1e-4, atol=1e-5)


def test_mgla_tells_rows_from_columns():
    mgla = MGLA(2, 8).requires_grad_(False)
    x = torch.randn(1, 2, 8, 8)
    assert not torch.allclose(mgla(x), mgla(x.mT).mT)


def test_conv_unit_by_hand():
    unit = ConvUnit(1, 1, 3).eval().requires_grad_(False)
    unit.conv.weight.copy_(torch.tensor([[[[0.0, 0.0, 0.0], [0.0, 1.0, 10.0], [0.0, 0.0, 0.0]]]]))
    unit.conv.bias.fill_(0.5)
    unit.norm.weight.fill_(2.0)
    unit.norm.bias.fill_(-1.0)
    unit.norm.running_mean.fill_(3.0)
    unit.norm.running_var.fill_(0.249)  # and eps 0.001: the deviation is 0.5
    x = torch.tensor([[[[1.0, 0.0], [0.0, 2.0]]]])
    # conv: [[1.5, .5], [20.5, 2.5]], and "same" padding; norm: 4 (x - 3) - 1; negative ones times 0.1
    torch.testing.assert_close(unit(x), torch.tensor([[[[-0.7, -1.1], [69.0, -0.3]]]]))
    assert (unit.norm.eps, unit.norm.momentum) == (1e-3, 0.01)


def test_fil_by_hand():
    fil = FIL(1).eval().requires_grad_(False)
    weights = {"value_a": 2.0, "gate_a": 0.5, "value_b": 1.0, "gate_b": 3.0}
    for name, weight in weights.items():
        unit = getattr(fil, name)
        unit.conv.weight.fill_(weight)
        unit.conv.bias.zero_()
        unit.norm.running_var.fill_(0.999)  # and eps 0.001: the norm does nothing
    private, (common_a, common_b) = fil(torch.full((1, 1, 1, 1), 1.0), torch.full((1, 1, 1, 1), -2.0))
    gate_a, gate_b = torch.sigmoid(torch.tensor([0.5, -6.0]))
    value_a, value_b = 2.0, -0.2  # leaky: 0.1 * -2
    torch.testing.assert_close(common_a.squeeze(), value_a * gate_b)
    torch.testing.assert_close(common_b.squeeze(), value_b * gate_a)
    expected = torch.stack([value_a * (1 - gate_b), -value_b * (1 - gate_a)])
    torch.testing.assert_close(private.flatten(), expected)


def test_score_head_against_loops():
    head = ScoreHead(2, (3, 2)).requires_grad_(False)
    x = torch.randn(2, 2, 4, 4)
    dense = [layer for layer in head if isinstance(layer, torch.nn.Linear)]
    for n, logit in enumerate(head(x)):
        values = [float(x[n, c].sum()) / 16 for c in range(2)]
        for k, layer in enumerate(dense):
            out = [
                sum(float(w) * v for w, v in zip(row, values, strict=True)) + float(bias)
                for row, bias in zip(layer.weight, layer.bias, strict=True)
            ]
            values = [max(v, 0.0) for v in out] if k < 2 else out
        assert float(logit) == pytest.approx(values[0], abs=1e-6)


def test_encoder_pools_from_the_second_stage_on():
    encoder = randomised(ALFE((2, 3), 4))
    x = torch.rand(1, 1, 4, 4)
    first, second = encoder.stages
    expected = [first.attention(first.unit(x))]
    expected.append(second.attention(torch.nn.functional.max_pool2d(second.unit(expected[0]), 2)))
    for got, want in zip(encoder(x), expected, strict=True):
        torch.testing.assert_close(got, want)


def test_metric_takes_the_pooled_map_before_the_private_features():
    net = randomised(RRLNet(TINY))
    private = [torch.randn(1, 2 * c, 16 >> k, 16 >> k) for k, c in enumerate(TINY.encoder_channels)]
    x = net.metric.stages[0](private[0])
    for stage, features in zip(net.metric.stages[1:], private[1:], strict=True):
        x = stage(torch.cat([torch.nn.functional.max_pool2d(x, 2), features], 1))
    torch.testing.assert_close(net.metric(private)[-1], x)


def test_forward_is_the_sigmoid_of_the_logits():
    net = randomised(RRLNet(TINY))
    a, b = torch.rand(3, 1, 16, 16), torch.rand(3, 1, 16, 16)
    scores = net(a, b)
    assert scores.shape == (3,)
    torch.testing.assert_close(scores, torch.sigmoid(net.logits(net.encode(a, "a"), net.encode(b, "b"))))


def test_standardised_patches_have_one_mean_and_contrast():
    patches = 0.3 + 0.1 * torch.rand(3, 1, 16, 16)
    seen = standardise(patches)
    torch.testing.assert_close(seen.mean((1, 2, 3)), torch.full((3,), 0.5), rtol=0, atol=1e-5)
    torch.testing.assert_close(seen.std((1, 2, 3), correction=0), torch.full((3,), 0.2), rtol=0.01, atol=0)
    torch.testing.assert_close(standardise(0.2 + 0.5 * patches), seen, rtol=0, atol=2e-3)


def test_standardised_patch_without_contrast_is_flat():
    seen = standardise(torch.full((1, 1, 16, 16), 0.7))
    torch.testing.assert_close(seen, torch.full((1, 1, 16, 16), 0.5), rtol=0, atol=1e-3)


def test_standardised_hot_spot_is_clipped():
    patches = torch.zeros(1, 1, 16, 16)
    patches[..., 3, 4] = 1
    seen = standardise(patches)
    assert seen.max() == 1
    assert seen.argmax() == 3 * 16 + 4


def test_network_prepares_patches_if_its_config_says_so(network, patches_a, patches_b):
    net = RRLNet(dataclasses.replace(network.config, standardise=True)).eval().requires_grad_(False)
    net.load_state_dict(network.state_dict())
    a, b = (torch.from_numpy(p)[:, None] / 255 for p in (patches_a, patches_b))
    torch.testing.assert_close(net(a, b), network(standardise(a), standardise(b)))
    torch.testing.assert_close(net(0.1 + 0.2 * a, 0.5 * b), net(a, b), rtol=0, atol=0.01)
    assert (network(a, b) - net(a, b)).abs().max() > 0.05
    inference = InferenceRRLNet(net, torch.device("cpu"), torch.float32)
    scores = inference.score(inference.encode(a, "a"), inference.encode(b, "b"))
    torch.testing.assert_close(scores, net(a, b), rtol=0, atol=1e-5)


def test_order_of_the_bands_matters(network, patches_a, patches_b):
    a, b = (torch.from_numpy(patches[:2]).unsqueeze(1) / 255 for patches in (patches_a, patches_b))
    assert not torch.allclose(network(a, b), network(b, a), atol=0.01)


def test_descriptors_have_unit_length_and_a_head_per_band():
    net = randomised(RRLNet(TINY))
    maps = net.encode(torch.rand(3, 1, 16, 16), "a")
    a, b = net.describe(maps, "a"), net.describe(maps, "b")
    assert a.shape == (3, 8)
    torch.testing.assert_close(a.norm(dim=1), torch.ones(3))
    assert not torch.allclose(a, b)


def test_published_network_has_no_descriptors(published):
    assert not [name for name, _ in published.named_parameters() if "descriptor" in name]


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("encoder_a.stages.0.unit.conv.weight", (16, 1, 3, 3)),
        ("encoder_b.stages.4.unit.norm.running_var", (256,)),
        ("encoder_a.stages.3.attention.channel_gate.conv.weight", (1, 1, 5)),
        ("encoder_b.stages.4.attention.row_gate.conv.bias", (1,)),
        ("encoder_b.stages.1.attention.column_gate.conv.weight", (1, 1, 3)),
        ("interactions.2.value_a.conv.weight", (64, 64, 1, 1)),
        ("interactions.4.gate_b.norm.weight", (256,)),
        ("metric.stages.0.0.conv.weight", (32, 32, 3, 3)),
        ("metric.stages.4.1.norm.bias", (512,)),
        ("metric.head.2.weight", (512, 512)),
        ("metric.head.4.weight", (256, 512)),
        ("metric.head.6.weight", (1, 256)),
    ],
)
def test_names_in_released_files(published, name, shape):
    assert tuple(published.state_dict()[name].shape) == shape


def test_names_of_the_descriptor_heads():
    names = set(RRLNet(TINY).state_dict())
    assert {"descriptor_a.norm.running_mean", "descriptor_b.projection.weight"} <= names
    assert "descriptor_a.projection.bias" not in names


def test_unshuffled_blocks_become_channels():
    patches = torch.arange(2 * 16.0).view(2, 1, 4, 4)
    blocks = unshuffle(patches, 2)
    assert blocks[0, :, 0, 0].tolist() == [0, 1, 4, 5]
    assert torch.equal(blocks, torch.nn.functional.pixel_unshuffle(patches, 2))
    assert unshuffle(patches[:0], 2).shape == (0, 4, 2, 2)
    assert unshuffle(patches, 1) is patches


def test_unshuffling_shrinks_all_maps():
    config = RRLNetConfig(encoder_channels=(4, 8, 8), metric_channels=(4, 8, 8), hidden=(8,), unshuffle=4)
    network = RRLNet(config).eval()
    maps = network.encode(torch.rand(2, 1, 64, 64), "b")
    assert [tuple(m.shape) for m in maps] == [(2, 4, 16, 16), (2, 8, 8, 8), (2, 8, 4, 4)]
    assert network(torch.rand(2, 1, 64, 64), torch.rand(2, 1, 64, 64)).shape == (2,)
