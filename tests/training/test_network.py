import dataclasses

import pytest
import torch

from rrl_match.modeling import RRLNet, RRLNetConfig
from rrl_match.training.decoder import Decoder, upsample
from rrl_match.training.network import ContrastivePretraining, TrainingConfig, TrainingRRLNet, set_norm_momentum

SMALL = RRLNetConfig(encoder_channels=(4, 4, 8, 8, 16), metric_channels=(4, 8, 8, 8, 8), hidden=(8, 4))


def count(module):
    return sum(p.numel() for p in module.parameters())


def patches(n, seed=0):
    return torch.rand(n, 1, 64, 64, generator=torch.Generator().manual_seed(seed))


def test_sizes_are_the_published_ones():
    model = TrainingRRLNet()
    assert count(model) == 12_816_740
    assert count(model.prune()) == 9_394_105
    values = [v for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")]
    assert sum(v.numel() for v in values) == 12_829_412


@pytest.mark.parametrize("standardise", [False, True])
def test_pruning_returns_the_network_that_was_trained(standardise):
    network = RRLNet(dataclasses.replace(SMALL, standardise=standardise))
    model = TrainingRRLNet(network).eval()
    assert model.prune() is network
    with torch.no_grad():
        a, b = patches(3), patches(3, seed=1)
        assert torch.equal(torch.sigmoid(model(a, b).logits), network(a, b))


def test_heads_are_those_of_the_published_code():
    model = TrainingRRLNet(RRLNet(SMALL)).eval()
    output = model(patches(2), patches(2, seed=1))
    assert set(output.interaction_logits) == {3, 4, 5}
    assert set(output.metric_logits) == {3, 4}


@pytest.mark.parametrize(("interaction", "metric"), [((1, 2, 3, 4, 5), (1, 2, 3, 4)), ((2,), ()), ((), (1,))])
def test_heads_at_other_stages(interaction, metric):
    model = TrainingRRLNet(RRLNet(SMALL), TrainingConfig(interaction, metric)).eval()
    output = model(patches(3), patches(3, seed=1))
    assert tuple(output.interaction_logits) == interaction
    assert tuple(output.metric_logits) == metric
    for logits in (output.logits, *output.interaction_logits.values(), *output.metric_logits.values()):
        assert logits.shape == (3,)


def test_without_decoders_the_rest_is_the_same():
    model = TrainingRRLNet(RRLNet(SMALL)).eval()
    lean = TrainingRRLNet(RRLNet(SMALL), TrainingConfig(decoders=False)).eval()
    lean.load_state_dict(model.state_dict(), strict=False)
    assert not [name for name in lean.state_dict() if name.startswith("decoder")]
    assert not {type(part).__name__ for part in lean.parts()} & {"Decoder"}
    output, expected = lean(patches(2), patches(2, seed=1)), model(patches(2), patches(2, seed=1))
    assert output.reconstructions is None
    assert torch.equal(output.logits, expected.logits)
    assert torch.equal(output.interaction_logits[5], expected.interaction_logits[5])


@pytest.mark.parametrize("descriptor_dim", [0, 8])
def test_pairs_are_those_chosen_and_each_patch_is_encoded_once(descriptor_dim):
    config = RRLNetConfig(64, SMALL.encoder_channels, SMALL.metric_channels, SMALL.hidden, descriptor_dim)
    model = TrainingRRLNet(RRLNet(config)).eval()
    index_pairs = torch.tensor([[0, 0], [1, 1], [0, 1], [2, 0], [2, 2]])
    encoded, seen = [], []
    model.network.encoder_a.register_forward_hook(lambda module, args, maps: encoded.append(len(args[0])))
    a, b = patches(3), patches(3, seed=1)

    def pair_up(descriptors):
        seen.append(descriptors)
        return index_pairs

    with torch.no_grad():
        output = model(a, b, pair_up)
        assert encoded == [3]
        expected = model(a[index_pairs[:, 0]], b[index_pairs[:, 1]])
    torch.testing.assert_close(output.logits, expected.logits)
    for k in (3, 4):
        torch.testing.assert_close(output.metric_logits[k], expected.metric_logits[k])
        torch.testing.assert_close(output.interaction_logits[k], expected.interaction_logits[k])
    assert [r.shape for r in output.reconstructions] == [(3, 1, 64, 64)] * 2
    if descriptor_dim:
        assert [d.shape for d in output.descriptors] == [(3, 8), (3, 8)]
        torch.testing.assert_close(output.descriptors[0].norm(dim=1), torch.ones(3))
        assert seen[0] is output.descriptors
    else:
        assert output.descriptors is None
        assert seen == [None]


def test_gradients_of_repeated_patches_do_not_depend_on_threads():
    """Otherwise a resumed run would differ from one without interruption."""
    model = TrainingRRLNet(RRLNet(SMALL)).eval()
    index_pairs = torch.randint(3, (48, 2), generator=torch.Generator().manual_seed(0))
    gradients = []
    for _ in range(6):
        model.zero_grad()
        model(patches(3), patches(3, seed=1), lambda descriptors: index_pairs).logits.sum().backward()
        gradients.append([p.grad.clone() for p in model.network.encoder_b.parameters()])
        for seen, first in zip(gradients[-1], gradients[0], strict=True):
            assert torch.equal(seen, first)


def test_upsample_as_tensorflow_1_does():
    x = torch.tensor([[0.0, 4.0], [8.0, 20.0]])[None, None]
    expected = torch.tensor([[0, 2, 4, 4], [4, 8, 12, 12], [8, 14, 20, 20], [8, 14, 20, 20]], dtype=torch.float32)
    assert torch.equal(upsample(x), expected[None, None])


def test_upsample_keeps_batch_and_channels_apart():
    x = torch.arange(2 * 3.0)[:, None, None].reshape(2, 3, 1, 1) * torch.ones(2, 3, 4, 5)
    up = upsample(x)
    assert up.shape == (2, 3, 8, 10)
    assert torch.equal(up[:, :, 0, 0], torch.arange(6.0).reshape(2, 3))
    assert torch.equal(up, up[:, :, :1, :1].expand_as(up))


@pytest.mark.parametrize(("channels", "size"), [((16, 32, 64, 128, 256), 64), ((4, 8), 16)])
def test_decoder_gives_the_patch_back_in_the_unit_range(channels, size):
    smallest = size >> (len(channels) - 1)
    with torch.no_grad():
        out = Decoder(channels, size)(torch.randn(2, channels[-1], smallest, smallest))
    assert out.shape == (2, 1, size, size)
    assert 0 <= out.min() <= out.max() <= 1


@pytest.mark.parametrize("standardise", [False, True])
def test_contrastive_pretraining_trains_the_networks_own_encoders(standardise):
    network = RRLNet(dataclasses.replace(SMALL, descriptor_dim=8, standardise=standardise))
    model = ContrastivePretraining(network)
    own = {id(p) for p in network.parameters()}
    assert all(id(p) in own for p in model.parameters())
    encoders = (network.encoder_a, network.encoder_b, network.descriptor_a, network.descriptor_b)
    assert count(model) == sum(count(module) for module in encoders)
    a, b = patches(2), patches(2, seed=1)
    model.eval()
    network.eval()
    expected = network.describe(network.encode(a, "a"), "a"), network.describe(network.encode(b, "b"), "b")
    for seen, wanted in zip(model(a, b), expected, strict=True):
        assert seen.shape == (2, 8)
        assert torch.equal(seen, wanted)


def test_norm_momentum_is_set_everywhere():
    model = TrainingRRLNet(RRLNet(SMALL))
    set_norm_momentum(model, 0.25)
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert {m.momentum for m in norms} == {0.25}
