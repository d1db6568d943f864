"""Break a weights folder in many ways and load each; test_fuzz_weights.py runs this in a process of its own.

Prints a JSON object: "outcomes", for each way {"refused": number, "loaded": number}; the growth of memory; and "wrong",
the cases that neither raised a WeightsError nor loaded exactly the values in the files.
"""

from __future__ import annotations

import copy
import json
import random
import struct
import sys
import tempfile
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import torch

from rrl_match import WeightsError
from rrl_match.modeling import RRLNet, RRLNetConfig
from rrl_match.pretrained import ModelConfig, load_folder, save_folder, stored_values

SEED = 0
COUNTS = {  # random inputs of each kind; the other kinds are tried in full
    "cut off": 300,
    "bits of the weights": 700,
    "bits of the header": 500,
    "bytes of the config": 700,
    "header": 500,
    "config": 900,
}
LIMIT = 1 << 30  # bytes that the process may allocate beyond those at the start
CONFIG = RRLNetConfig(1, encoder_channels=(1,), metric_channels=(2,), hidden=(2,))
DTYPES = {"F16": "<f2", "BF16": "<u2", "F32": "<f4"}

JUNK = [
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        2,
        3.0,
        0.5,
        1e308,
        float("nan"),
        float("inf"),
        2**31,
        2**32,
        2**63,
        2**64,
        -(2**63),
    ),
    *(
        10**40,
        "",
        "a",
        "rrl-net",
        "F64",
        "U8",
        "\x00",
        "é" * 50,
        "\ud800",
        [],
        [0],
        [1, 2],
        [[1]],
        [None],
        [-1],
        [2**62] * 2,
    ),
    *({}, {"a": 1}, {"dtype": "F16"}, [1] * 1000, "x" * 10_000, list(range(50))),
]


def mutated(rng, tree):
    """A copy of parsed JSON in which one thing, wherever in it, is gone, doubled, renamed or another one."""
    tree = copy.deepcopy(tree)
    spots = []

    def visit(node):
        for key in list(node) if isinstance(node, dict) else range(len(node)):
            spots.append((node, key))
            if isinstance(node[key], (dict, list)):
                visit(node[key])

    visit(tree)
    node, key = rng.choice(spots)
    change = rng.randrange(6)
    if change == 0:
        del node[key]
    elif change == 1 and isinstance(node, dict):
        node[rng.choice(["", "weight", "network", key + "x", "__metadata__"])] = node.pop(key)
    elif change == 2 and isinstance(node, list):
        node.insert(key, node[key])
    elif change == 3 and type(node[key]) is int:
        node[key] += rng.choice([-(2**40), -2, -1, 1, 2, 8, 2**40])
    elif change == 4:
        other, position = rng.choice(spots)
        other[position], node[key] = copy.deepcopy(node[key]), copy.deepcopy(other[position])
    else:
        node[key] = copy.deepcopy(rng.choice(JUNK))
    return tree


def flipped(rng, content, start=0, stop=None):
    """With one to three bits flipped between two positions."""
    content = bytearray(content)
    for _ in range(rng.randint(1, 3)):
        content[rng.randrange(start, stop or len(content))] ^= 1 << rng.randrange(8)
    return bytes(content)


def with_header(header, data, length=None):
    header = header if isinstance(header, bytes) else json.dumps(header).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def broken_weights(rng, good):
    """(way, content of model.safetensors)."""
    length = 8 + struct.unpack("<Q", good[:8])[0]
    header, data = json.loads(good[8:length]), good[length:]
    text = good[8:length].rstrip()
    for size in rng.sample(range(len(good)), COUNTS["cut off"]):
        yield "cut off", good[:size]
    for tail in (b"\0", b"\0" * 8, b"{}", data, good, b"\xff" * 10**6):
        yield "longer", good + tail
    for _ in range(COUNTS["bits of the weights"]):
        yield "bits of the weights", flipped(rng, good, length)
    for _ in range(COUNTS["bits of the header"]):
        yield "bits of the header", flipped(rng, good, 0, length)
    for _ in range(COUNTS["header"]):
        yield "header", with_header(mutated(rng, header), data)
    for n in (
        0,
        1,
        2,
        length - 9,
        length - 7,
        len(good),
        len(good) - 8,
        2**20,
        2**20 + 1,
        10**8,
        2**31,
        2**63,
        2**64 - 1,
    ):
        yield "length of the header", with_header(text, data, length=n)
    first = next(name for name in header if name != "__metadata__")
    entry = json.dumps(header[first]).encode()
    for middle in (
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b" " * 900_000,
        b" " * 2_000_000,
        b"{}",
        b"[]",
        b"null",
        b"",
        b"\xff\xfe" * 100,
        b'{"a":' + b"9" * 5000 + b"}",
        b"{" + b",".join(b'"%d":%s' % (k, entry) for k in range(10_000)) + b"}",
        text[:-1] + b"," + json.dumps(first).encode() + b":" + entry + b"}",  # the first tensor twice
        json.dumps({**header, "__metadata__": {str(k): "x" for k in range(30_000)}}).encode(),
        json.dumps({**header, "__metadata__": {"format": {"deep": []}}}).encode(),
    ):
        yield "absurd header", with_header(middle, data)
    every = [name for name in header if name != "__metadata__"]
    for change in (
        {name: {**header[name], "data_offsets": [0, len(data)]} for name in every},
        {name: {**header[name], "data_offsets": header[first]["data_offsets"]} for name in every},
        {name: {**header[name], "data_offsets": header[name]["data_offsets"][::-1]} for name in every},
        {name: {**header[name], "shape": [2**32, 2**32]} for name in every},
        {name: {**header[name], "shape": [2**62, 4, 0]} for name in every},
        {name: {**header[name], "shape": [-k for k in header[name]["shape"]]} for name in every},
        {name: {**header[name], "shape": [1] * 500 + header[name]["shape"]} for name in every},
        {name: {**header[name], "dtype": "F4"} for name in every},
    ):
        yield "absurd header", with_header(change, data)


def broken_configs(rng, good):
    """(way, content of config.json)."""
    tree = json.loads(good)
    for _ in range(COUNTS["bytes of the config"]):
        yield "bytes of the config", flipped(rng, good)
    for _ in range(COUNTS["config"]):
        yield "config", json.dumps(mutated(rng, mutated(rng, tree) if rng.random() < 0.3 else tree)).encode()
    for content in (
        good + b"}",
        b"\xef\xbb\xbf" + good,
        good.decode().encode("utf-16"),
        good.decode().encode("utf-32"),
        good.replace(b"nir", b"n\xefr"),
        good.replace(b'"threshold": 0.5', b'"threshold": 0.5, "threshold": 0.6'),
        good.replace(b'"hidden":', b'"hidden": [2], "hidden":'),
        good.replace(b"0.5", b"1e400"),
        good.replace(b"0.5", b"-Infinity"),
        good.replace(b"0.5", b"0." + b"5" * 5000),
        good.replace(b"0.5", b"9" * 5000),
        good.replace(b"{}", b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
        good.replace(b"{}", b"[" * 400_000 + b"]" * 400_000),
        good + b" " * 2_000_000,
        b'"' + b"a" * 2_000_000 + b'"',
        b"\0" * 1000,
    ):
        yield "absurd config", content


def values_of(content):
    """The values in a safetensors file, read without the library: {name: array}."""
    (length,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    values = {}
    for name, entry in header.items():
        if name != "__metadata__":
            start, stop = entry["data_offsets"]
            array = np.frombuffer(data[start:stop], DTYPES[entry["dtype"]])
            if entry["dtype"] == "BF16":
                array = (array.astype("<u4") << 16).view("<f4")
            values[name] = array.astype(np.float32).reshape(entry["shape"])
    return values


def equals_files(network, config, folder):
    """Whether a loaded network and config equal the folder's files, bit for bit."""
    tree = json.loads((folder / "config.json").read_bytes())
    shape = {**vars(CONFIG.__class__()), **tree.get("network", {})}
    described = {name: tuple(value) if isinstance(value, list) else value for name, value in shape.items()}
    expected = values_of((folder / "model.safetensors").read_bytes())
    loaded = stored_values(network)
    return (
        vars(config.network) == described
        and list(config.modalities) == tree["modalities"]
        and config.threshold == tree.get("threshold", 0.5)
        and set(loaded) == set(expected)
        and all(np.array_equal(loaded[name].numpy(), value) for name, value in expected.items())
        and not network.training
    )


def main():
    import resource  # not on Windows, where this module can still be imported

    rng = random.Random(SEED)
    torch.manual_seed(SEED)
    folder = Path(tempfile.mkdtemp())
    save_folder(folder, RRLNet(CONFIG), ModelConfig(("vis", "nir"), network=CONFIG), "")
    load_folder(folder)
    weights, config = ((folder / name).read_bytes() for name in ("model.safetensors", "config.json"))
    with open("/proc/self/statm") as statm:
        size = int(statm.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + LIMIT, size + LIMIT))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    outcomes, wrong = defaultdict(Counter), []

    def attempt(way):
        try:
            network, read = load_folder(folder)
        except WeightsError:
            outcomes[way]["refused"] += 1
        except BaseException as error:
            wrong.append(f"{way}: {type(error).__name__}: {error}"[:300])
        else:
            outcomes[way]["loaded"] += 1
            if not equals_files(network, read, folder):
                wrong.append(f"{way}: the network differs from the files")

    for way, content in broken_weights(rng, weights):
        (folder / "model.safetensors").write_bytes(content)
        attempt(way)
    with open(folder / "model.safetensors", "wb") as file:  # sparse: takes no disk space
        file.write(weights)
        file.truncate(1 << 40)
    attempt("a terabyte")
    (folder / "model.safetensors").write_bytes(weights)
    for way, content in broken_configs(rng, config):
        (folder / "config.json").write_bytes(content)
        attempt(way)
    with open(folder / "config.json", "wb") as file:
        file.write(config)
        file.truncate(1 << 40)
    attempt("a terabyte")
    growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    json.dump({"outcomes": outcomes, "wrong": wrong, "growth in MiB": growth}, sys.stdout)


if __name__ == "__main__":
    main()
