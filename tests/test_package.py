"""The package as a whole: the wheel that users install, the order of the layers, and the house's checks."""

from __future__ import annotations

import ast
import inspect
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from email.parser import Parser
from pathlib import Path
from types import FunctionType

import pytest
from conftest import REPOSITORY

import zoo_seg
from zoo_seg.backbones.registry import list_backbones
from zoo_seg.families.registry import list_families
from zoo_seg.manifest import aliases, get_model
from zoo_seg.zoo import EXPORTS, stub

PACKAGE = REPOSITORY / "zoo_seg"
MODULES = sorted(PACKAGE.rglob("*.py"))


def command(*arguments: str | Path, cwd: Path = REPOSITORY, **environment: str) -> subprocess.CompletedProcess[str]:
    result = subprocess.run(
        [str(argument) for argument in arguments],
        cwd=cwd,
        env={**{name: value for name, value in os.environ.items() if name != "PYTHONPATH"}, **environment},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result


# --- the wheel ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    command(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder)
    (path,) = folder.glob("*.whl")
    return path


def test_wheel_holds_the_package_and_its_manifest_only(wheel: Path) -> None:
    assert wheel.stat().st_size < 8_000_000
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        manifest = archive.read("zoo_seg/weights_manifest.json")
        metadata = archive.read(next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA")))
        licences = [name for name in archive.namelist() if name.endswith("LICENSE")]
    modules = {path.relative_to(REPOSITORY).as_posix() for path in MODULES}
    packaged = {f"zoo_seg/packaged/{path.name}" for path in (PACKAGE / "packaged").iterdir()}
    others = (
        "__init__.pyi",
        "py.typed",
        "weights_manifest.json",
        "packaged/street.jpg",
        "demo/page.css",
        "demo/page.js",
    )
    assert names == modules | packaged | {f"zoo_seg/{name}" for name in others}
    assert manifest == (REPOSITORY / "weights_manifest.json").read_bytes()
    assert licences
    facts = Parser().parsestr(metadata.decode())
    assert (facts["Version"], facts["License-Expression"]) == (zoo_seg.__version__, "Apache-2.0")
    assert not [line for line in facts.get_all("Requires-Dist", []) if "<" in line], "no upper pins"


def test_installed_wheel_works_by_itself(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "site"
    command(sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--quiet", "--target", target, wheel)
    code = "import zoo_seg.manifest as m; print(m.published_manifest())"
    found = command(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(target))
    assert Path(found.stdout.strip()) == target / "zoo_seg" / "weights_manifest.json"
    listed = command(sys.executable, "-m", "zoo_seg", "list", cwd=tmp_path, PYTHONPATH=str(target))
    assert f"\n{len(zoo_seg.list_weights())} weights;" in listed.stdout
    (script,) = (target / ("Scripts" if os.name == "nt" else "bin")).glob("zoo-seg*")
    assert command(script, "list", cwd=tmp_path, PYTHONPATH=str(target)).stdout == listed.stdout


def test_manifest_stands_in_the_repository_once() -> None:
    skipped = {".git", ".venv", "build", "dist"}
    found = [path for path in REPOSITORY.rglob("weights_manifest.json") if not skipped & set(path.parts)]
    assert found == [REPOSITORY / "weights_manifest.json"]
    assert not any(path.is_symlink() for path in PACKAGE.rglob("*"))


# --- the names ----------------------------------------------------------------------------------


def test_every_public_name_is_there() -> None:
    factories = {name for model in zoo_seg.list_models() for name in (model, *aliases(model))}
    assert {*EXPORTS, *factories} <= set(dir(zoo_seg))
    assert set(zoo_seg.__all__) == {*EXPORTS, *factories}
    for name in zoo_seg.__all__:
        assert getattr(zoo_seg, name) is not None
    everything: dict[str, object] = {}
    exec("from zoo_seg import *", everything)
    assert set(zoo_seg.__all__) <= set(everything)
    assert not hasattr(zoo_seg, "unet_resnet50")
    assert not hasattr(zoo_seg, "_hidden")


@pytest.mark.parametrize("model", zoo_seg.list_models())
def test_a_factory_is_a_function_like_others(model: str) -> None:
    factory = getattr(zoo_seg, model)
    assert isinstance(factory, FunctionType)
    assert factory.__name__ == factory.__qualname__ == model
    assert all(getattr(zoo_seg, alias) is factory for alias in aliases(model))
    assert pickle.loads(pickle.dumps(factory)) is factory
    signature = inspect.signature(factory)
    defaults = {name: parameter.default for name, parameter in signature.parameters.items()}
    assert defaults == {"pretrained": None, "num_classes": None, "in_chans": 3, "progress": True}
    assert signature.parameters["num_classes"].kind is inspect.Parameter.KEYWORD_ONLY
    assert factory.__doc__
    assert factory.__doc__.startswith(get_model(model).title)


def test_the_stub_has_the_manifest_s_names() -> None:
    """`zoo-seg manifest stub > zoo_seg/__init__.pyi` writes it."""
    assert (PACKAGE / "__init__.pyi").read_text(encoding="utf-8") == stub()
    names = {
        node.asname if isinstance(node, ast.alias) else node.name if isinstance(node, ast.FunctionDef) else node.id
        for node in ast.walk(ast.parse(stub()))
        if isinstance(node, ast.alias | ast.FunctionDef)
        or (isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store))
    }
    assert names - {None} == set(zoo_seg.__all__)


def test_names_and_verbs_that_need_no_torch_load_none() -> None:
    for code in ("zoo_seg.fcn_r50_os8; dir(zoo_seg)", "from zoo_seg.cli.main import main; main(['list'])"):
        command(sys.executable, "-c", f"import sys, zoo_seg; {code}; assert 'torch' not in sys.modules")


# --- the layers ---------------------------------------------------------------------------------

LAYERS = [
    # a later line may use an earlier one, never the reverse
    {"errors", "settings", "text", "version"},
    {"decode"},
    {"manifest"},
    {"info"},
    {"transformers"},
    {"config"},
    {"keymap"},
    {"layers"},
    {"backbones"},
    {"families"},
    {"network"},
    {"hub"},
    {"checkpoints"},
    {"images"},
    {"saving"},
    {"pretrained"},
    {"inference"},
    {"data"},
    {"model"},
    {"factory"},
    {"evaluation"},
    {"training"},
    {"export"},
    {"scale"},
    {"demo"},
    {"zoo"},
    {"__init__"},
    {"cli"},
    {"__main__"},
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
LAZY = {("zoo", "factory"), ("inference", "export")}
"""`import zoo_seg` loads no torch, so the factories are reached when they are called; `predict` has networks traced
where it is told to compute in another runtime."""


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(REPOSITORY).with_suffix("").parts)


def unit(module: str) -> str:
    """`zoo_seg.hub.cache` -> `hub`: the line above that a module belongs to."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """(module, only for type checkers) of every import of this package, wherever it stands in the file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            names = [
                f"{node.module}.{alias.name}" if node.module == "zoo_seg" else str(node.module) for alias in node.names
            ]
        for name in names:
            if name.split(".")[0] == "zoo_seg":
                exists = (REPOSITORY / Path(*name.split("."))).with_suffix(".py").exists()
                exists = exists or REPOSITORY.joinpath(*name.split("."), "__init__.py").exists()
                yield name if exists else "zoo_seg", id(node) in for_types


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_imports_point_down(path: Path) -> None:
    user = unit(module_name(path))
    assert user in RANK, f"{path.name} stands in no layer"
    for module, only_types in imports(path):
        used = unit(module)
        if used == user or only_types or (user, used) in LAZY:
            continue
        assert RANK[used] < RANK[user], f"{module_name(path)} imports {module}, which stands above it"


def test_the_walk_sees_what_it_should() -> None:
    found = {module for module, _ in imports(PACKAGE / "factory.py")}
    assert {"zoo_seg.manifest", "zoo_seg.model", "zoo_seg.network", "zoo_seg.pretrained"} <= found
    assert ("zoo_seg.factory", False) in set(imports(PACKAGE / "zoo.py"))  # inside a function
    assert ("zoo_seg.model", True) in set(imports(PACKAGE / "zoo.py"))


def test_no_folder_holds_a_circle() -> None:
    graph: dict[str, set[str]] = {}
    for path in MODULES:
        name = module_name(path)
        used = {module for module, only_types in imports(path) if not only_types and unit(module) == unit(name)}
        graph[name] = used - {name}
    while free := [name for name, used in graph.items() if not used & graph.keys()]:
        for name in free:
            del graph[name]
    assert not graph, f"these import one another: {sorted(graph)}"


def test_modules_are_imported_by_name_in_few_places_only() -> None:
    """`importlib` could get around the order: lazy names, verbs of the command line, and the two registries use it."""
    users = [module_name(path) for path in MODULES if "import_module" in path.read_text(encoding="utf-8")]
    assert users == ["zoo_seg.__init__", "zoo_seg.backbones.registry", "zoo_seg.cli.main", "zoo_seg.families.registry"]


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_only_families_and_backbones_know_other_projects_names(path: Path) -> None:
    foreign = ("decode_head", "auxiliary_decoder", "ppm_net", "fpn_convs", "conv_seg", "psp_modules")
    known = [name for name in foreign if f"{name}." in path.read_text(encoding="utf-8")]
    assert not known or path.parent.name in ("families", "backbones"), known


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_no_module_asks_which_family_it_has(path: Path) -> None:
    names = {*list_families(), *list_backbones()}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Compare) and path.parent.name not in ("families", "backbones"):
            compared = {each.value for each in ast.walk(node) if isinstance(each, ast.Constant)}
            assert not compared & names, f"{path}:{node.lineno}"


# --- the house's checks -------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ["mypy", "--no-error-summary"],
        ["ruff", "check", "."],
        ["ruff", "format", "--check", "--config", 'extend-exclude = ["*.md"]', "."],
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_checkers_find_nothing(arguments: list[str]) -> None:
    command(sys.executable, "-m", *arguments)
