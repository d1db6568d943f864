from __future__ import annotations

import ast
import json
import subprocess
import sys
from importlib import metadata, resources
from pathlib import Path

import pytest

import rrl_match

PACKAGE = Path(rrl_match.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))
NAMES = [
    "DataError",
    "ExportError",
    "Features",
    "ImageError",
    "Matches",
    "MissingExtraError",
    "Near",
    "RRLMatchError",
    "RRLMatcher",
    "Registration",
    "ScoringError",
    "Search",
    "Transform",
    "WeightsError",
    "WeightsNotFoundError",
    "__version__",
    "extract_patches",
    "percentile_range",
    "register",
]

# Prints what a fresh process looks like before and after the import.
WATCH = """
import json, os, random, sys, threading
import numpy, torch

def state():
    return {
        "threads": [torch.get_num_threads(), torch.get_num_interop_threads(), threading.active_count()],
        "default dtype": str(torch.get_default_dtype()),
        "tf32": [torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32],
        "matmul precision": torch.get_float32_matmul_precision(),
        "cudnn": [torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic],
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "autograd": torch.is_grad_enabled(),
        "seeds": [torch.get_rng_state().tolist(), random.getstate()[1], numpy.random.get_state()[1].tolist()],
        "environment": {k: v for k, v in os.environ.items() if k != "LD_LIBRARY_PATH"},  # OpenCV's loader sets it
        "folder": os.getcwd(),
    }

before = state()
import rrl_match
imported = sorted(sys.modules)
after = state()
matcher = rrl_match.RRLMatcher.from_pretrained(sys.argv[1], device="cpu")
matcher.score(numpy.zeros((1, 64, 64), "uint8"), numpy.zeros((1, 64, 64), "uint8"))
used = state()
changed = [[name for name in before if before[name] != later[name]] for later in (after, used)]
sys.stderr.write(json.dumps([imported, *changed]))
"""


def imports(path):
    """Modules that a source file imports anywhere, and the names that it imports from them."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.module, alias.name) for alias in node.names)


def module_name(path):
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


def outer(path):
    """Top-level names of the other packages that a source file imports."""
    return {module.split(".")[0] for module, _ in imports(path)} - set(sys.stdlib_module_names) - {"rrl_match"}


def is_training(path):
    return "training" in path.relative_to(PACKAGE).parts


INFERENCE_SOURCES = [path for path in SOURCES if not is_training(path)]


def named(paths):
    return [pytest.param(path, id=module_name(path)) for path in paths]


def test_public_names():
    assert rrl_match.__all__ == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_public_names_have_docstrings(name):
    value = getattr(rrl_match, name)
    assert isinstance(value, str) or value.__doc__
    if isinstance(value, type) and not issubclass(value, Exception):
        public = {k: v for k, v in vars(value).items() if not k.startswith("_") and callable(getattr(value, k))}
        assert [
            k for k, v in public.items() if not (getattr(v, "__func__", v).__doc__ or k.startswith("to_json"))
        ] == []


def test_version():
    assert rrl_match.__version__ == metadata.version("rrl-match")


@pytest.fixture(scope="module")
def fresh_process(weights_folder):
    done = subprocess.run(
        [sys.executable, "-c", WATCH, str(weights_folder)],
        cwd=weights_folder,  # the installed package, not the checkout
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done


def test_import_and_use_print_nothing(fresh_process):
    assert fresh_process.stdout == ""
    assert fresh_process.stderr.startswith("[["), "only what the watcher wrote"


def test_import_and_use_change_no_global_setting(fresh_process):
    _, by_import, by_use = json.loads(fresh_process.stderr)
    assert (by_import, by_use) == ([], [])


@pytest.mark.parametrize(
    "module",
    [
        "rrl_match.training",
        "sklearn",
        "h5py",
        "accelerate",
        "typer",
        "tensorboard",
        "torchvision",
        "pandas",
        "onnx",
    ],
)
def test_import_leaves_extras_alone(fresh_process, module):
    assert module not in json.loads(fresh_process.stderr)[0]


@pytest.mark.parametrize(
    ("package", "users"),
    [
        (
            "rasterio",
            {f"rrl_match.io.{name}" for name in ("georeferencing", "rasters", "report", "reprojection", "warping")},
        ),
        ("safetensors", {"rrl_match.pretrained"}),
        ("onnx", {"rrl_match.export"}),
        ("onnxruntime", {"rrl_match.export"}),
    ],
)
def test_users_of_a_package(package, users):
    assert {module_name(path) for path in INFERENCE_SOURCES if package in outer(path)} <= users


def test_the_hub_is_used_in_one_place():
    users = {
        (module_name(path), f"{module}.{name}")
        for path in INFERENCE_SOURCES
        for module, name in imports(path)
        if module.split(".")[0] in ("huggingface_hub", "httpx", "requests", "urllib", "socket") and name != "quote"
    }
    assert {user for user, what in users if what != "huggingface_hub.utils.tqdm"} == {"rrl_match.hub"}


@pytest.mark.parametrize("path", named(SOURCES))
def test_functions_and_classes_are_short(path):
    """The public entry point is long by its docstrings, overloads and signatures; CONTRIBUTING.md has the count."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        lines = getattr(node, "end_lineno", 0) - getattr(node, "lineno", 0) + 1
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            lines -= len((ast.get_docstring(node) or "").splitlines())
            assert lines <= 50, node.name
        if isinstance(node, ast.ClassDef) and node.name != "RRLMatcher":
            assert lines < 250, node.name


def test_runtime_needs_only_what_it_declares():
    declared = {"cv2", "huggingface_hub", "numpy", "safetensors", "torch", "typing_extensions"}
    extras = {
        "export.py": {"onnx", "onnxruntime", "onnxscript"},
        **{key: {"rasterio"} for key in ("georeferencing.py", "rasters.py", "reprojection.py", "warping.py")},
    }
    for path in INFERENCE_SOURCES:
        assert outer(path) <= declared | extras.get(path.name, set()), path.name


def test_installed_package_is_typed_and_has_its_weights():
    assert (resources.files("rrl_match") / "py.typed").is_file()
    weights = resources.files("rrl_match.weights")
    for name, released in json.loads((weights / "manifest.json").read_text(encoding="utf-8")).items():
        assert set(released) == {"repo_id", "files", "selftest"}
        assert {"config.json", "model.safetensors"} <= set(released["files"])
        assert (weights / name / "README.md").is_file()
