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


ENTRY = "core/__main__.py"
FOLDERS = {  # folder: the folders that it may import, and does; `core` is offload_core, `runtime` the one in it
    "core": "",
    "core/trace": "core",
    "core/settings": "core",
    "core/planning": "core core/trace",
    "core/files": "core core/planning",
    "core/cli": "core core/files core/planning core/settings core/trace",
    "runtime/files": "core",
    "runtime/tensors": "core core/files runtime/files",
    "runtime/device": "core core/planning runtime/files runtime/tensors",
    "runtime/host": "core/planning runtime/device runtime/files runtime/tensors",
    "runtime/layers": (
        "core core/files core/planning core/trace runtime/device runtime/files runtime/host runtime/tensors"
    ),
    "runtime/patches": "core runtime/device runtime/layers runtime/tensors",
    "runtime/engine": (
        "core core/files core/planning core/trace runtime/device runtime/host runtime/layers runtime/patches "
        "runtime/tensors"
    ),
    "runtime": "runtime/device runtime/engine runtime/host runtime/layers",
    "bridge/app": "core core/trace runtime runtime/device runtime/engine runtime/layers",
    "bridge/requests": "core core/settings",
    "bridge/memory": "bridge/app core core/planning core/settings runtime runtime/engine runtime/host runtime/layers",
    "bridge/files": "bridge/app bridge/requests core core/files core/planning",
    "bridge/planning": "bridge/app bridge/memory bridge/requests core core/planning core/settings runtime/layers",
    "bridge/component": (
        "bridge/app bridge/files bridge/memory bridge/planning bridge/requests core core/files core/planning "
        "core/settings runtime runtime/files runtime/host runtime/layers runtime/patches runtime/tensors"
    ),
    "bridge/report": (
        "bridge/app bridge/component bridge/memory bridge/planning bridge/requests core core/planning "
        "core/planning core/settings core/trace"
    ),
    "bridge/load": (
        "bridge/app bridge/component bridge/files bridge/memory bridge/planning bridge/report bridge/requests core "
        "core/files core/settings runtime/host"
    ),
    "bridge/server": (
        "bridge/app bridge/component bridge/files bridge/load bridge/planning bridge/report bridge/requests core "
        "core/planning core/settings core/trace"
    ),
    "bridge": "bridge/app bridge/files bridge/load bridge/report bridge/requests core/settings",
    "nodes": "bridge bridge/server",
    ENTRY: "core/cli",
}


def files(layer: str):
    """The Python files of a layer, in all of its folders; those of the runtime are a layer of their own."""
    inner = ROOT / "offload_core" / "runtime"
    paths = sorted((ROOT / layer).rglob("*.py"))
    return [path for path in paths if layer != "offload_core" or inner not in path.parents]


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
                assert module in ("bridge.api", "bridge.server.start"), f"{path.name} imports ..{module}"


def test_folders_import_each_other_as_the_table_says():
    """Both ways: an import that the table lacks, and an entry that no import needs. No folder leads back to itself."""
    imported: dict[str, set[str]] = {folder: set() for folder in FOLDERS}
    for importer, module in imports_between_folders():
        imported[importer].add(folder_of(module))
    assert imported == {folder: set(allowed.split()) for folder, allowed in FOLDERS.items()}
    done: set[str] = set()
    while ready := {folder for folder in FOLDERS if folder not in done and set(FOLDERS[folder].split()) <= done}:
        done |= ready
    assert done == set(FOLDERS)


def test_a_folder_is_entered_by_the_modules_that_it_names():
    """`__all__` of a folder's `__init__` lists the modules that other folders import, all of them and no others."""
    entered: dict[str, set[str]] = {folder: set() for folder in FOLDERS}
    for _, module in imports_between_folders():
        if module not in FOLDERS:
            entered[folder_of(module)].add(module.rpartition("/")[2])
    no_list_of_modules = {ENTRY, "nodes", "runtime"}  # the app and programs import names of the last two
    for folder in FOLDERS.keys() - no_list_of_modules:
        assert sorted(entered[folder]) == interface(folder), folder


def interface(folder: str) -> list[str]:
    path = ROOT / folder.replace("runtime", "core/runtime").replace("core", "offload_core") / "__init__.py"
    for statement in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "__all__":
            return list(ast.literal_eval(statement.value))
    raise AssertionError(f"{folder} does not say which of its modules others may import")


def short(path: str) -> str:
    return path.replace("offload_core/runtime", "runtime").replace("offload_core", "core")


def folder_of(module: str) -> str:
    return module if module in FOLDERS else module.rpartition("/")[0]


def imports_between_folders():
    """(importing folder, imported module or package), as short paths, of each import from another folder."""
    paths = [path for layer in ALLOWED for path in files(layer)]
    modules = {short(module_name(path).replace(".", "/")) for path in paths}
    for path in paths:
        folder = folder_of(short(path.relative_to(ROOT).as_posix()))
        for dotted in imported_modules(path):
            module = short(dotted.replace(".", "/"))
            if module in modules and folder_of(module) != folder:
                yield folder, module


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
        "import importlib\n"
        "before = set(sys.modules)  # site packages of the environment bring some of their own\n"
        "import offload_core\n"
        f"for module in {[module_name(path) for path in files('offload_core') if path.name != '__main__.py']}:\n"
        "    importlib.import_module(module)\n"
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
    """`getattr(comfy.something, "name", default)` and its like belong into bridge/app/compat.py."""
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
                    assert not probed, f"{path.name}:{call.lineno} asks the app for a feature; see bridge/app/compat.py"


def test_the_versions_that_are_promised_are_those_that_are_tested():
    source = (ROOT / "bridge" / "app" / "compat.py").read_text(encoding="utf-8")
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
