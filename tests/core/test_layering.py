"""The house rules that lint cannot prove by itself: what each layer may import, in the files and when imported."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.devkit.long_functions import long_functions
from tests.support.devkit.versions import APP_RELEASES, DEFAULT_APP, NEWEST_FRONTEND, OLDEST_APP

ROOT = Path(__file__).parents[2]
APP = {"comfy", "comfy_api", "comfy_execution", "comfy_extras", "folder_paths", "server", "execution", "nodes"}
ALLOWED = {
    "offload_core": set(sys.stdlib_module_names),
    "offload_core/runtime": set(sys.stdlib_module_names) | {"torch", "safetensors"},
    "bridge": set(sys.stdlib_module_names)
    | {"torch", "safetensors", "psutil", "aiohttp", "PIL"}
    | (APP - {"comfy_api", "nodes"}),
    "nodes": set(sys.stdlib_module_names) | {"comfy_api", "folder_paths"},
}
UPWARDS = {
    "offload_core": ("runtime", "bridge", "nodes"),
    "offload_core/runtime": ("bridge", "nodes"),
    "bridge": ("nodes",),
    "nodes": (),
}


def imports(path: Path):
    """(level, module) of every import in a file, wherever it stands."""
    for statement in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(statement, ast.Import):
            yield from ((0, alias.name) for alias in statement.names)
        elif isinstance(statement, ast.ImportFrom):
            yield statement.level, statement.module or ""


def files(layer: str):
    return sorted((ROOT / layer).glob("*.py"))


@pytest.mark.parametrize("layer", ALLOWED)
def test_each_layer_imports_only_what_it_may(layer):
    assert files(layer)
    for path in files(layer):
        for level, module in imports(path):
            if level == 0:
                assert module.split(".")[0] in ALLOWED[layer], f"{path.name} imports {module}"
            else:
                assert not any(part in UPWARDS[layer] for part in module.split(".")), (
                    f"{path.name} reaches up to {module}"
                )


def test_nodes_reach_the_bridge_through_its_api_only():
    for path in files("nodes"):
        for level, module in imports(path):
            if level == 2:
                assert module in ("bridge.api", "bridge"), f"{path.name} imports ..{module}"


def test_no_module_leads_back_to_itself():
    """By imports wherever they stand, those for annotations included."""
    paths = [path for layer in ALLOWED for path in files(layer)]
    edges = {module_name(path): set() for path in paths}
    for path in paths:
        edges[module_name(path)] = {name for name in imported_modules(path) if name in edges}
    done: set[str] = set()
    while ready := {name for name, targets in edges.items() if name not in done and targets <= done}:
        done |= ready
    left = {name: sorted(targets - done) for name, targets in edges.items() if name not in done}
    assert not left, f"these import each other: {left}"


def module_name(path: Path) -> str:
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return name.removesuffix(".__init__")


def imported_modules(path: Path):
    """Full names that relative imports in a file may mean: of modules, and of what is in them."""
    package = path.parent.relative_to(ROOT).parts
    for statement in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(statement, ast.ImportFrom) and statement.level:
            above = package[: len(package) - statement.level + 1]
            module = ".".join((*above, *filter(None, [statement.module])))
            names = {f"{module}.{alias.name}" for alias in statement.names}
            yield from names
            yield module


def run_fresh(code: str) -> str:
    """Run `code` in an interpreter that has the pack's root on its path and nothing else of ours."""
    script = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}"
    done = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_planning_half_imports_nothing_but_the_standard_library():
    code = (
        "import importlib, pkgutil\n"
        "before = set(sys.modules)  # site packages of the environment bring some of their own\n"
        "import offload_core\n"
        "for module in pkgutil.iter_modules(offload_core.__path__, 'offload_core.'):\n"
        "    if module.name not in ('offload_core.runtime', 'offload_core.__main__'):\n"
        "        importlib.import_module(module.name)\n"
        "tops = {name.split('.')[0] for name in set(sys.modules) - before}\n"
        "print(sorted(tops - set(sys.stdlib_module_names)))"
    )
    assert run_fresh(code) == "['offload_core']"


def test_the_packs_root_does_nothing_at_import():
    code = (
        "import importlib.util, threading, time\n"
        f"spec = importlib.util.spec_from_file_location('a-pack', {str(ROOT / '__init__.py')!r}, "
        f"submodule_search_locations=[{str(ROOT)!r}])\n"
        "module = importlib.util.module_from_spec(spec)\n"
        "sys.modules['a-pack'] = module\n"
        "before = set(sys.modules)\n"
        "spec.loader.exec_module(module)\n"
        "assert threading.active_count() == 1\n"
        "assert not hasattr(module, 'NODE_CLASS_MAPPINGS')\n"
        "print(sorted(set(sys.modules) - before))"
    )
    assert run_fresh(code) == "[]"


def test_the_runtime_does_not_know_the_app():
    code = "import offload_core.runtime\n" + f"print(sorted({APP!r} & set(sys.modules)))"
    assert run_fresh(code) == "[]"


def test_no_function_is_a_place_to_get_lost_in():
    """60 lines at most below the docstring; a node's schema is a table. A file has one idea, and no limit of lines."""
    for layer in ALLOWED:
        for path in files(layer):
            assert list(long_functions(path.read_text(encoding="utf-8"))) == [], path


def test_public_modules_say_what_they_do():
    for layer in ALLOWED:
        for path in files(layer):
            if path.name != "__main__.py":
                assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), f"{path} has no docstring"


def _app_aliases(tree: ast.Module) -> set[str]:
    """The names under which a file knows the app's modules and what it took out of them."""
    names = set()
    for statement in ast.walk(tree):
        if isinstance(statement, (ast.Import, ast.ImportFrom)):
            module = statement.module or "" if isinstance(statement, ast.ImportFrom) else ""
            for alias in statement.names:
                top = (module or alias.name).split(".")[0]
                if top in APP and getattr(statement, "level", 0) == 0:
                    names.add(alias.asname or (alias.name if module else top))
    return names


def test_the_app_is_asked_for_its_features_in_one_place():
    """`getattr(comfy.something, "name", default)` and its like belong into bridge/compat.py."""
    for layer in ("bridge", "nodes"):
        for path in files(layer):
            if path.name == "compat.py":
                continue
            tree = ast.parse(path.read_text(encoding="utf-8"))
            aliases = _app_aliases(tree)
            for call in ast.walk(tree):
                if isinstance(call, ast.Call) and getattr(call.func, "id", "") in ("getattr", "hasattr") and call.args:
                    root = call.args[0]
                    while isinstance(root, ast.Attribute):
                        root = root.value
                    probed = getattr(root, "id", "") in aliases
                    assert not probed, f"{path.name}:{call.lineno} asks the app for a feature; see bridge/compat.py"


def test_the_versions_that_are_promised_are_those_that_are_tested():
    source = (ROOT / "bridge" / "compat.py").read_text(encoding="utf-8")
    body = ast.parse(source).body
    assigned = {
        statement.targets[0].id: statement.value
        for statement in body
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name)
    }
    tested = ast.literal_eval(assigned["TESTED"])
    assert sorted(tested) == sorted(APP_RELEASES)
    assert tested[0] == OLDEST_APP and tested[-1] == DEFAULT_APP
    newest = ast.literal_eval(assigned["NEWEST_RUN"])
    metadata = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'requires-comfyui = ">={tested[0]}"' in metadata
    assert f"Run in ComfyUI {tested[0]} to {newest}" in metadata
    table = (ROOT / "README.md").read_text(encoding="utf-8").partition("### In which ComfyUI")[2].partition("###")[0]
    run = [row for row in table.splitlines() if "| run |" in row]
    for version in (*tested, newest, NEWEST_FRONTEND):
        assert any(version in row for row in run), f"the README's table does not say that {version} was run"
