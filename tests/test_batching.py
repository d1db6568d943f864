from __future__ import annotations

import pytest
import torch

from rrl_match import batching
from rrl_match.batching import choose_batch_size, run_in_batches

CPU = torch.device("cpu")


def batches(count, batch_size, limit=None, **options):
    """The calls (start, stop) that run_in_batches makes of work that runs out of memory beyond `limit` rows."""
    calls = []

    def work(start, stop):
        if limit is not None and stop - start > limit:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        calls.append((start, stop))

    return calls, run_in_batches(work, count, batch_size, CPU, **options)


@pytest.mark.parametrize(
    ("count", "batch_size", "expected"),
    [(5, 2, [(0, 2), (2, 4), (4, 5)]), (4, 4, [(0, 4)]), (3, 100, [(0, 3)]), (0, 4, [])],
)
def test_consecutive_batches(count, batch_size, expected):
    assert batches(count, batch_size) == (expected, batch_size)


def test_smaller_batches_once_memory_runs_out(caplog):
    calls, size = batches(20, 16, limit=5)
    assert calls == [(0, 4), (4, 8), (8, 12), (12, 16), (16, 20)]
    assert size == 4
    assert [record.getMessage() for record in caplog.records] == [
        "out of memory with a batch of 16: continuing with 8",
        "out of memory with a batch of 8: continuing with 4",
    ]


def test_no_memory_for_a_single_row():
    with pytest.raises(torch.cuda.OutOfMemoryError):
        batches(3, 2, limit=0)


def test_progress_bar_counts_the_rows(capfd):
    batches(20, 16, limit=5)
    assert capfd.readouterr() == ("", "")
    batches(20, 16, limit=5, progress="encoding")
    shown = capfd.readouterr().err
    assert "encoding" in shown
    assert "20/20" in shown


def test_at_most_one_batch_runs_ahead(monkeypatch):
    """On CUDA: batch k + 2 is prepared only after batch k is done."""
    log = []

    class Event:
        def __init__(self, number):
            self.number = number

        def synchronize(self):
            log.append(f"waited for {self.number}")

    class Stream:
        def record_event(self):
            return Event(sum(entry.startswith("launched") for entry in log) - 1)

    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream())
    run_in_batches(lambda start, stop: log.append(f"launched {start}"), 4, 1, torch.device("cuda"))
    assert log == [
        "launched 0",
        "launched 1",
        "waited for 0",
        "launched 2",
        "waited for 1",
        "launched 3",
        "waited for 2",
    ]


@pytest.mark.parametrize(
    ("device", "dtype", "expected"),
    [("cpu", "float32", 16), ("cpu", "bfloat16", 32), ("cuda", "float32", 256), ("cuda", "float16", 512)],
)
def test_default_batch_size(device, dtype, expected):
    assert choose_batch_size(None, torch.device(device), getattr(torch, dtype)) == expected
    assert choose_batch_size(7, torch.device(device), getattr(torch, dtype)) == 7


@pytest.mark.parametrize("batch_size", [0, -1, 2.0, "8", [8], True])
def test_bad_batch_size(batch_size):
    with pytest.raises(ValueError, match="batch_size must be a positive integer or None, got"):
        choose_batch_size(batch_size, CPU, torch.float32)


def test_threads_are_limited_before_the_first_batch(monkeypatch):
    order = []
    monkeypatch.setattr(batching, "limit_threads_after_fork", lambda: order.append("limit"))
    run_in_batches(lambda start, stop: order.append("work"), 1, 1, CPU)
    assert order == ["limit", "work"]
