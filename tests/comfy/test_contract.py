"""What the pack relies on in ComfyUI: the table is true of the one that runs, notices every rename, and names all there is."""

from __future__ import annotations
import __future__

import ast
import dataclasses
import functools
import importlib
import importlib.util
import inspect
import logging
import re
import sys
import types
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

REPO = Path(__file__).resolve().parents[2]
OUTSIDE = [path for path in sorted((REPO / "nodes").rglob("*.py")) if path.parent.name != "compat"]
MOVED = "moved-elsewhere"


@pytest.fixture(scope="module")
def contract(pack: ModuleType) -> ModuleType:
    return importlib.import_module(f"{pack.__name__}.nodes.compat.contract")


@pytest.fixture(scope="module")
def table(pack: ModuleType) -> tuple:
    return importlib.import_module(f"{pack.__name__}.nodes.compat.table").TABLE


@pytest.fixture
def off(contract: ModuleType, monkeypatch: pytest.MonkeyPatch):
    """`off(feature)`: as if a name that it needs had moved."""

    def off(feature: str) -> None:
        feature = contract.Feature[feature]
        moved = contract.Moved(contract.Name("comfy.somewhere.something", (feature,)), "is gone")
        monkeypatch.setitem(contract._off, feature, [moved])

    return off


def test_the_table_is_true_of_this_comfyui(contract, table):
    assert [str(moved) for moved in contract.compare(table)] == []
    assert contract.what_is_off() == []


# ---- every rename is noticed -------------------------------------------------------------------------------------------


@functools.cache
def parsed(module: str) -> tuple[ast.Module, dict[str, list[tuple[int, ast.AST, str]]]]:
    """A module's source, and where its words are: statement, node, attribute of the node. Names of torch's are torch's."""
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    places: dict[str, list[tuple[int, ast.AST, str]]] = {}
    for number, statement in enumerate(tree.body):
        for node in ast.walk(statement):
            if isinstance(node, ast.alias) or (
                isinstance(node, ast.Attribute) and ast.unparse(node).startswith("torch.")
            ):
                continue
            for field in ("id", "attr", "arg", "name", "value"):
                word = getattr(node, field, None)
                if isinstance(word, str):
                    places.setdefault(word.lstrip("-").replace("-", "_"), []).append((number, node, field))
    return tree, places


@functools.cache
def renamed(module: str, word: str) -> ModuleType:
    """A copy of a module with another name for `word`: what comes from the first place on was made anew."""
    tree, places = parsed(module)
    found = places.get(word) or places[word.replace("-", "_")]
    before = [getattr(node, field) for _, node, field in found]
    for (_, node, field), value in zip(found, before, strict=True):
        setattr(
            node,
            field,
            re.sub(r"\w[\w-]*", MOVED if value.startswith("-") else MOVED.replace("-", "_"), value, count=1),
        )
    try:
        start = 0 if module == "comfy.cli_args" else min(number for number, _, _ in found)
        code = compile(
            ast.Module(tree.body[start:], []), module, "exec", __future__.annotations.compiler_flag, dont_inherit=True
        )
    finally:
        for (_, node, field), value in zip(found, before, strict=True):
            setattr(node, field, value)
    copy = types.ModuleType(module)
    # What modules register in tables of their own goes to copies of these.
    real = vars(importlib.import_module(module))
    copy.__dict__.update({k: v.copy() if isinstance(v, (dict, list, set)) else v for k, v in real.items()})
    copy.__dict__.pop(word, None)
    exec(code, copy.__dict__)
    return copy


def module_of(path: str) -> str:
    while path not in sys.modules:
        path = path.rpartition(".")[0]
    return path


def in_force(contract: ModuleType, name):
    """Which of two ways to use a name this ComfyUI has."""
    first = dataclasses.replace(name, otherwise=None)
    return first if contract.difference(first) is None else name.otherwise


def words(name) -> Iterator[str]:
    """All of an entry that could be called otherwise."""
    yield name.path.removesuffix(".__init__").rpartition(".")[2]
    yield from name.mentions.split()
    yield from (argument.strip().rstrip("=") for argument in (name.call or "").split(",") if argument.endswith("="))
    yield from (name.parameters or "").split()
    yield from (name.sets or "").split()


def test_each_rename_is_noticed(contract, table):
    missed, tried = [], 0
    for name in (in_force(contract, name) for name in table):
        module = module_of(name.path)
        for word in words(name):
            copies = {module: renamed(module, word)}
            tried += 1
            if contract.difference(name, lambda path: copies.get(path) or importlib.import_module(path)) is None:  # noqa: B023
                missed.append(f"{name.path}: {word}")
    assert missed == [] and tried > 300


def test_what_a_rename_is_called(contract, table):
    """The text that a user reads, of the rename that ComfyUI 0.32.0 made for Gemma 4, and of others."""
    name = next(n for n in table if n.path == "comfy.ops.cast_bias_weight")
    missing = {"comfy.ops": SimpleNamespace(), "comfy": SimpleNamespace()}
    assert contract.difference(name, lambda path: missing[path]) == "is gone"
    other = SimpleNamespace(cast_bias_weight=lambda s, input, dtype=None: None)
    assert "cannot be called as (s, input, dtype=, " in contract.difference(name, lambda _: other)

    class TextEncoder:
        def __init__(self, dtype_llama=None, device="cpu", dtype=None, text_projection_type="", model_options=None):
            self.dtypes = self.compat_mode = self.text_projection_type = self.text_encoder_key = None
            self.gemma3_12b = self.text_embedding_projection = None

    name = next(n for n in table if n.path == "comfy.text_encoders.lt.LTXAVTEModel" and n.otherwise)

    def load(path: str) -> SimpleNamespace:
        if path != "comfy.text_encoders.lt":
            raise ImportError(path)
        return SimpleNamespace(LTXAVTEModel=TextEncoder)

    assert "text_encoder_model" in contract.difference(name, load)
    assert "text_encoder_key" in contract.difference(name.otherwise, load)


# ---- the table names all that is used ----------------------------------------------------------------------------------


def bound(path: Path) -> dict[str, str]:
    """The names of a compat module that stand for something of ComfyUI's, and for what."""
    found = {}
    for statement in ast.parse(path.read_text(encoding="utf-8")).body:
        if not (isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name)):
            continue
        for call in ast.walk(statement.value):
            if isinstance(call, ast.Call) and ast.unparse(call.func) in ("contract.get", "contract.module"):
                rest = ast.unparse(statement.value).partition(ast.unparse(call))[2].strip("()")
                found[statement.targets[0].id] = ast.literal_eval(call.args[0]) + rest
    return found


def chains(path: Path) -> Iterator[str]:
    """Dotted names in a file, as far as they go."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and id(node) not in inner and re.fullmatch(r"[\w.]+", ast.unparse(node)):
            yield ast.unparse(node)


def uses() -> set[str]:
    """Every path of ComfyUI's that the pack names, by what the names of compat stand for."""
    compat = REPO / "nodes" / "compat"
    names = {path: bound(path) for path in compat.glob("*.py")}
    public = {name: target for path in names for name, target in names[path].items() if not name.startswith("_")}
    found = {target for path in names for target in names[path].values()}
    for path in names:
        for chain in chains(path):
            first, _, rest = chain.partition(".")
            if first in names[path]:
                found.add(f"{names[path][first]}.{rest}")
    for path in OUTSIDE:
        for chain in chains(path):
            first, _, rest = chain.removeprefix("compat.").partition(".")
            if chain.startswith("compat.") and first in public:
                found.add(f"{public[first]}.{rest}".rstrip("."))
    return {path.removesuffix(".__init__").removesuffix(".__name__") for path in found}


def test_the_table_has_every_path_that_the_pack_names(contract, table):
    paths = {n.path.removesuffix(".__init__") for name in table for n in (name, name.otherwise) if n}
    named = {".".join(path.split(".")[:count]) for path in paths for count in range(1, 9)}
    unnamed = [path for path in sorted(uses()) if path not in named and path not in sys.modules]
    assert unnamed == []
    assert len(uses()) > 50
    for path in (REPO / "nodes" / "compat").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):  # modules come by contract.module
                assert not [alias.name for alias in node.names if alias.name.startswith("comfy")], path.name
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module.startswith("comfy"):
                assert {f"{node.module}.{alias.name}" for alias in node.names} <= named, path.name


def test_the_table_has_every_attribute_that_the_pack_uses(table):
    """As far as can be told: what neither the pack nor Python nor torch nor the public API has is ComfyUI's."""
    known = {word for name in table for n in (name, name.otherwise) if n for word in [*words(n), *n.path.split(".")]}
    for name in (*(REPO / "nodes").rglob("*.py"), *(REPO / "hlwq_core").rglob("*.py")):
        for node in ast.walk(ast.parse(name.read_text(encoding="utf-8"))):
            known.update(vars(node).get(field) for field in ("name", "arg", "asname") if vars(node).get(field))
            if isinstance(node, (ast.Name, ast.Attribute)) and isinstance(node.ctx, ast.Store):
                known.add(node.id if isinstance(node, ast.Name) else node.attr)
    for thing in (
        torch.nn,
        torch.cuda,
        torch.compiler,
        torch.version,
        torch.compiler.__class__,
        logging.getLogger(),
        logging.makeLogRecord({}),
        ThreadPoolExecutor,
        torch,
        torch.Tensor,
        torch.nn.Module(),
        torch.device("cpu"),
        torch.nn.functional,
        str,
        dict,
        list,
        Path(),
    ):
        known.update(dir(thing))
    foreign = {}
    for path in OUTSIDE:
        if path.parent.name != "running" and path.name not in ("gemma.py", "model_loading.py", "load_upscaler.py"):
            continue  # the others have to do with the public API, the server and files
        for chain in chains(path):
            first, *rest = chain.split(".")
            if first in sys.stdlib_module_names or first in ("io", "ui", "folder_paths"):
                continue
            foreign.update({word: path.name for word in rest if word not in known})
    assert foreign == {}


def test_private_attributes_are_used_in_compat_alone(table):
    core = [name for name in table if not name.path.startswith("comfy_kitchen.")]  # whose names packed_tensor.py keeps
    private = {word for name in core for word in words(name) if re.match(r"_[a-z]", word)} | {
        "_v_block",
        "_comfy_graph",
    }
    for path in OUTSIDE:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            word = (
                node.attr if isinstance(node, ast.Attribute) else node.value if isinstance(node, ast.Constant) else None
            )
            defined = path.name == "recorded_blocks.py" and word == "_process_transformer_blocks"  # overridden there
            assert not isinstance(word, str) or word not in private or defined, f"{path.name}:{node.lineno} uses {word}"


def test_the_table_has_every_method_that_the_pack_overrides(pack, table):
    """Of our classes that derive from ComfyUI's: what both have."""
    importlib.import_module(f"{pack.__name__}.nodes.extension")
    paths = {name.path for name in table}
    classes = [
        kind
        for module in list(sys.modules.values())
        if getattr(module, "__name__", "").startswith(pack.__name__ + ".")
        for kind in vars(module).values()
        if isinstance(kind, type) and kind.__module__ == module.__name__
    ]
    packed = importlib.import_module(f"{pack.__name__}.nodes.running.packed_ops").PackedOperations
    torchs = {"__torch_function__", *dir(torch.nn.Module)} - {"__init__", "forward"}  # the same in every ComfyUI
    unnamed, seen = [], 0
    for kind in {*classes, packed.Linear}:
        ours = [base for base in kind.__mro__ if base.__module__.startswith(pack.__name__)]
        theirs = [base for base in kind.__mro__ if base.__module__.partition(".")[0] in ("comfy", "comfy_kitchen")]
        for method in {name for base in ours for name, value in vars(base).items() if callable(value)}:
            origins = [base for base in theirs if method in vars(base) and method not in torchs]
            seen += bool(origins)
            # The table may have it by a base or by a module that hands the class on.
            known = {f"{base.__module__}.{base.__qualname__}.{method}" for base in origins}
            known |= {
                path
                for path in paths
                if method == "__init__" and path.endswith(tuple(f".{b.__name__}" for b in theirs))
            }
            listed = any(
                method in name.mentions.split()
                for name in table
                if name.path.endswith(tuple(b.__name__ for b in origins))
            )
            if origins and not known & paths and not listed:
                unnamed.append(f"{kind.__name__}.{method} ({', '.join(sorted(known))})")
    assert unnamed == [] and seen > 15


# ---- what moved switches off what needs it -----------------------------------------------------------------------------


def test_one_line_in_the_log_names_version_name_and_effect(contract, table, caplog, monkeypatch):
    monkeypatch.setattr(contract, "_off", {})
    monkeypatch.setattr(contract, "version", lambda: "9.9.9")
    gone = dataclasses.replace(table[0], path="comfy.ops.run_no_op", features=(contract.Feature.KEPT_DECODED,))
    contract.check([*table, gone])
    (line,) = [record.getMessage() for record in caplog.records if record.name == "hlwq"]
    assert "9.9.9" in line and "comfy.ops.run_no_op is gone" in line and "decoded layers are not kept" in line
    assert not contract.works(contract.Feature.KEPT_DECODED) and contract.works(contract.Feature.LOADING)


def test_the_report_says_what_is_off(load, off):
    off("KEPT_DECODED")
    report = load()[3]
    assert "comfy.somewhere.something is gone. decoded layers are not kept." in report


@pytest.mark.parametrize(
    ("feature", "node", "arguments"),
    [
        ("LOADING", "load_checkpoint.HLWQLoadCheckpoint", ["LTX-2.3-tiny-HLWQ-Q5"]),
        ("TEXT_ENCODER", "text_encoder.HLWQLoadTextEncoder", ["gemma_3_tiny.safetensors", "LTX-2.3-tiny-HLWQ-Q5"]),
        ("UPSCALERS", "load_upscaler.HLWQLoadUpscaler", ["ltx-2.3-spatial-upscaler-x2-1.1-tiny.safetensors"]),
        ("UPSCALERS", "upscale_latent.HLWQUpscaleLatent", ["spatial"]),
    ],
)
def test_nodes_that_cannot_work_say_so_before_they_run(pack, comfy_base, off, feature, node, arguments):
    errors = importlib.import_module(f"{pack.__name__}.hlwq_core.errors")
    module, name = node.split(".")
    node = getattr(importlib.import_module(f"{pack.__name__}.nodes.{module}"), name)
    arguments = dict(zip(inspect.signature(node.validate_inputs).parameters, arguments, strict=True))
    off(feature)
    said = node.validate_inputs(**arguments)
    assert "comfy.somewhere.something is gone" in said and "what to do: update ComfyUI-HLWQ" in said
    rest = [name for name in inspect.signature(node.execute).parameters if name not in arguments]
    with pytest.raises(errors.UnsupportedError, match="does not fit this ComfyUI"):
        node.execute(**arguments, **{name: None for name in rest if name in ("latent", "vae", "frame_rate")})


def test_a_model_samples_without_all_that_may_be_off(load, sample, pack, off, contract):
    model = load()[0]
    expected = sample(model, steps=1)
    for feature in contract.Feature:
        if feature.name != "LOADING":
            off(feature.name)
    assert all(map(torch.equal, sample(load()[0], steps=1), expected))


def test_without_loras_they_are_refused_not_forgotten(load, sample, pack, off):
    errors = importlib.import_module(f"{pack.__name__}.hlwq_core.errors")
    model = load()[0]
    key = next(
        name for name, _ in importlib.import_module(f"{pack.__name__}.nodes.running.patchers").packed_modules(model)
    )
    patched = model.clone()
    weight = model.get_key_patches(key)[key][0][0] if hasattr(model, "get_key_patches") else None
    assert weight is not None
    patched.add_patches({key: ("diff", (torch.zeros(tuple(weight.shape)),))}, 1.0)
    off("LORA")
    with pytest.raises(errors.UnsupportedError, match="LoRAs and other patches"):
        sample(patched, steps=1)


def test_without_saving_it_is_refused(load, pack, off):
    errors = importlib.import_module(f"{pack.__name__}.hlwq_core.errors")
    model = load()[0]
    off("SAVING")
    with pytest.raises(errors.UnsupportedError, match="cannot be saved"):
        model.state_dict_for_saving()


# ---- names that are gone -----------------------------------------------------------------------------------------------


def test_a_stand_in_can_be_named_and_derived_from_and_refuses_use(contract, pack):
    errors = importlib.import_module(f"{pack.__name__}.hlwq_core.errors")
    gone = contract.get("comfy.ops.manual_castle")

    class Derived(gone.Linear):
        def forward(self, x):
            return x

    for use in (gone, gone.Linear, Derived, contract.module("comfy.nowhere").function):
        with pytest.raises(errors.UnsupportedError, match="comfy") as caught:
            use(1, a=2)
        assert caught.value.fix and contract.version() in str(caught.value)
    assert not hasattr(gone, "__wrapped__") and not isinstance(torch.zeros(1), gone)


def test_the_pack_starts_in_a_comfyui_that_lacks_names(pack, comfy_base, monkeypatch, caplog):
    """A second copy of the pack, imported after text encoder, upscalers and the reader of aimdo have moved."""
    import comfy.ldm.lightricks.latent_upsampler as latent_upsampler
    import comfy.text_encoders.lt as lt
    import comfy_aimdo.host_buffer

    for module, name in ((lt, "LTXAVTEModel"), (latent_upsampler, "LatentUpsampler")):
        monkeypatch.delattr(module, name)
    monkeypatch.setitem(sys.modules, "comfy_aimdo.host_buffer", None)  # as if it were not there
    monkeypatch.delattr(comfy_aimdo, "host_buffer")
    name = "comfyui_hlwq_elsewhere"
    try:
        spec = importlib.util.spec_from_file_location(
            name, REPO / "__init__.py", submodule_search_locations=[str(REPO)]
        )
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        text_encoder = importlib.import_module(f"{name}.nodes.text_encoder")
        upscaler = importlib.import_module(f"{name}.nodes.load_upscaler")
        loader = importlib.import_module(f"{name}.nodes.load_checkpoint")
        said = [record.getMessage() for record in caplog.records if record.name == "hlwq"]
        # Where ComfyUI is older than LTX-2.5 its text encoder's constructor tells so: without it Gemma 4 is missed too.
        assert len(said) in (3, 4) and all("is not as this pack knows it" in line for line in said)
        assert any("HLWQ Load Text Encoder cannot load" in line for line in said)
        assert any("comfy_aimdo.host_buffer.HostBuffer is gone" in line for line in said)
        assert "LTXAVTEModel is gone" in text_encoder.HLWQLoadTextEncoder.validate_inputs("x", "y")
        assert "LatentUpsampler is gone" in upscaler.HLWQLoadUpscaler.validate_inputs("x")
        assert loader.HLWQLoadCheckpoint.validate_inputs("LTX-2.3-tiny-HLWQ-Q5") is True
    finally:
        for loaded in [module for module in sys.modules if module.partition(".")[0] == name]:
            del sys.modules[loaded]
