import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from rrl_match.modeling import RRLNet, RRLNetConfig
from rrl_match.training.network import ContrastivePretraining, TrainingRRLNet
from rrl_match.training.throughput import StepRates, matrix_rate, step_flops


class Product(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16 * 16, 3)

    def forward(self, patches_a, patches_b):
        return self.linear(patches_a.flatten(1)) * self.linear(patches_b.flatten(1))


def test_flops_of_one_product_by_hand():
    """Two products of (5, 256) by (256, 3), a multiply-add as two, thrice for forward and backward."""
    assert step_flops(Product(), batch_size=5, size=16) == 3 * 2 * (2 * 5 * 256 * 3)


def test_flops_of_the_graphs_are_those_of_a_real_step():
    model = TrainingRRLNet(RRLNet(RRLNetConfig(descriptor_dim=16)))
    rows = torch.tensor([[0, 0], [1, 1], [0, 1], [1, 0]])
    patches = torch.rand(2, 1, 64, 64)
    for module, inputs in (
        (model, (patches, patches, lambda _: rows)),
        (ContrastivePretraining(model.network), (patches, patches)),
    ):
        with FlopCounterMode(display=False) as counter:
            outputs = module(*inputs)
            tensors = [t for o in outputs for t in (o.values() if isinstance(o, dict) else o)]
            sum(t.sum() for t in tensors).backward()
        counted = step_flops(module, batch_size=2, size=64)
        # the first convolution's input needs no gradient: a little less is really done
        assert 0.95 * counted < counter.get_total_flops() <= counted


def test_counting_leaves_the_model_as_it_was():
    model = ContrastivePretraining(RRLNet(RRLNetConfig(descriptor_dim=16))).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    step_flops(model, batch_size=4, size=64)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_matrix_rate_is_a_rate():
    assert 1e8 < matrix_rate(torch.device("cpu"), torch.float32) < 1e15


def test_rates_of_a_step(monkeypatch):
    monkeypatch.setattr("rrl_match.training.throughput.matrix_rate", lambda *_: 1e6)
    rates = StepRates(Product(), 5, 16, 10, torch.device("cpu"), torch.float32)  # 46080 operations
    assert rates.of(0.5) == {"pairs_s": "20", "of_matrix_rate": "9%"}
