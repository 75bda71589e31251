"""The rules of CONTRIBUTING.md, read from the syntax tree."""

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = {"fused_loss": "fused_loss", "kernels": "fused_loss.kernels"}
FOLDERS |= {"export": "fused_loss.export", "bench": "fused_loss.bench"}
# A module imports what stands to its left, and its own layer.
ORDER = (
    {"signals"},
    {"spec"},
    {"checks", "kernels"},
    {"autograd", "options"},
    {"denominators", "functional"},
    {"drop_in"},
    {"modules"},
    {"export"},
    {"bench"},
    {"demo"},
    {"cli"},
    {"__main__"},
)
RANK = {layer: rank for rank, layers in enumerate(ORDER) for layer in layers}


def modules() -> dict[str, Path]:
    """Every module of the package by its installed name."""
    found = {}
    for folder, package in FOLDERS.items():
        for path in sorted((ROOT / folder).glob("*.py")):
            name = package if path.stem == "__init__" else f"{package}.{path.stem}"
            found[name] = path
    return found


MODULES = modules()
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}
every_module = pytest.mark.parametrize("module", MODULES)


def shown(module: str) -> str:
    return MODULES[module].relative_to(ROOT).as_posix()


def layer(module: str) -> str:
    if module == "fused_loss":  # the door stands where the last thing behind it does
        return "modules"
    name = module.split(".")[1]
    return "demo" if name.startswith("demo") else name


def imports(nodes: list[ast.AST]) -> Iterator[str]:
    """The modules that these statements import: ours to the file, others as they are written."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            assert node.module
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in MODULES else node.module


def running(tree: ast.AST) -> Iterator[ast.AST]:
    """The nodes that run at all: nothing under TYPE_CHECKING."""
    for node in ast.iter_child_nodes(tree):
        if not _typing_only(node):
            yield node
            yield from running(node)


def _typing_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def at_import(tree: ast.AST) -> Iterator[ast.AST]:
    """The nodes that run when the module is imported: no function body, no TYPE_CHECKING."""
    for node in ast.iter_child_nodes(tree):
        if not _typing_only(node) and not isinstance(node, ast.FunctionDef | ast.Lambda):
            yield node
            yield from at_import(node)


def test_every_module_has_its_layer():
    assert {layer(module) for module in MODULES} <= RANK.keys()
    assert set(FOLDERS) == {path.name for path in ROOT.iterdir() if (path / "__init__.py").exists()}
    nested = [path for folder in FOLDERS for path in (ROOT / folder).glob("*/*.py")]
    assert not nested, "a new sub-folder goes into setup.py, and here"


@every_module
def test_imports_point_one_way(module: str):
    mine = layer(module)
    for imported in imports(list(ast.walk(TREES[module]))):
        if not imported.startswith("fused_loss"):
            continue
        assert imported in MODULES, f"{shown(module)} imports {imported}, which does not exist"
        theirs = layer(imported)
        assert theirs == mine or RANK[theirs] < RANK[mine], f"{shown(module)} imports {imported}"
        assert (mine, theirs) != ("export", "kernels"), f"{shown(module)} imports {imported}"


def test_no_import_goes_in_a_circle():
    waiting = {
        module: {i for i in imports(list(at_import(tree))) if i in MODULES}
        for module, tree in TREES.items()
    }
    while waiting:
        ready = {module for module, needs in waiting.items() if not needs & waiting.keys()}
        assert ready, f"a circle among {sorted(waiting)}"
        waiting = {module: needs for module, needs in waiting.items() if module not in ready}


@every_module
def test_triton_is_imported_in_its_own_files_only(module: str):
    """The kernels', and the one that compiles them ahead of time."""
    loads = {name.partition(".")[0] for name in imports(list(ast.walk(TREES[module])))}
    allowed = shown(module).startswith("kernels/triton_") or shown(module) == "bench/ahead.py"
    assert allowed or "triton" not in loads


@pytest.mark.parametrize("module", [name for name in MODULES if RANK[layer(name)] < RANK["export"]])
def test_the_loss_needs_nothing_but_torch(module: str):
    needs = {name.partition(".")[0] for name in imports(list(running(TREES[module])))}
    standard = {
        "__future__",
        "collections",
        "contextlib",
        "dataclasses",
        "functools",
        "math",
        "numbers",
    }
    standard |= {"os", "re", "signal", "sys", "threading", "types", "typing"}
    standard |= {"importlib", "json", "pathlib", "tempfile", "warnings"}  # tiles on disk
    allowed = standard | {"torch", "fused_loss"}
    assert needs - {"triton"} <= allowed
    # A file of kernels is imported within a function: `import fused_loss` does not load triton.
    if not shown(module).startswith("kernels/triton_"):
        loaded = imports(list(at_import(TREES[module])))
        assert not [name for name in loaded if name.startswith("fused_loss.kernels.triton_")]


# What may wait for an accelerator: its result lies on the host.
SYNCS = ("item", "tolist", "nonzero", "any", "all", "cpu", "numpy", "equal", "allclose", "unique")
SYNCS += ("masked_select", "synchronize", "is_nonzero", "argwhere", "int", "float", "bool")
ALLOWED = {
    # Only of a tensor that is on the CPU already.
    ("kernels/eager.py", "item"): 1,
    ("kernels/eager_numbers.py", "item"): 2,
    ("kernels/eager_classification.py", "item"): 1,
    ("kernels/eager_softmax.py", "all"): 2,
    ("kernels/eager_softmax.py", "item"): 1,
    ("kernels/eager_softmax.py", "bool"): 1,
    ("kernels/native.py", "item"): 3,
    ("kernels/native_heads.py", "item"): 9,
    ("kernels/native_heads.py", "equal"): 1,
    # `index_error`: called for CPU tensors, and under FUSED_LOSS_DEBUG=1. And a scalar of NumPy's.
    ("fused_loss/spec.py", "int"): 2,
    ("fused_loss/spec.py", "a boolean index"): 1,
    # A conversion of dtypes, and a scalar of NumPy's.
    ("fused_loss/spec.py", "float"): 2,
    # Of Python numbers: alpha, the pair of weights, a normalizer, a dimension, what repr shows.
    ("fused_loss/options.py", "float"): 1,
    ("kernels/reference.py", "int"): 5,
    ("fused_loss/modules.py", "float"): 1,
    ("kernels/triton_heads.py", "float"): 1,
    ("kernels/triton_plan.py", "float"): 1,
    ("kernels/ops.py", "float"): 1,
    # Of a tile's figures; the clock of FUSED_LOSS_AUTOTUNE=1, which times on request.
    ("kernels/triton_autotune.py", "int"): 3,
    ("kernels/triton_autotune.py", "synchronize"): 1,
}


def reads(tree: ast.AST) -> Iterator[str]:
    """The calls and subscripts that may wait for an accelerator, by name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            function = node.func
            name = function.attr if isinstance(function, ast.Attribute) else ""
            if isinstance(function, ast.Name) and function.id in ("int", "float", "bool"):
                literal = all(isinstance(value, ast.Constant) for value in node.args)
                name = "" if literal else function.id
            along = name in ("any", "all") and node.args  # a dimension: a tensor again
            if name in SYNCS and not along:
                yield name
        elif isinstance(node, ast.Subscript):
            inner = list(ast.walk(node.slice))
            if any(isinstance(x, ast.Compare | ast.Invert) for x in inner):
                yield "a boolean index"


def test_no_value_of_a_tensor_is_read():
    found = Counter(
        (shown(module), name)
        for module, tree in TREES.items()
        if RANK[layer(module)] < RANK["export"]
        for name in reads(tree)
    )
    assert dict(found) == ALLOWED


def test_what_is_read_is_seen():
    source = "x.item(); y[y > 0]; torch.equal(a, b); float(x); float('inf'); z[~m]; any(q); x[0]"
    source += "; m.any(1, keepdim=True); m.all()"
    assert sorted(reads(ast.parse(source))) == sorted(
        ["item", "a boolean index", "equal", "float", "a boolean index", "all"]
    )


# The command line imports a command when it is asked for, by name.
def test_the_commands_of_the_command_line_exist():
    from fused_loss.cli import COMMANDS

    source = (ROOT / "setup.py").read_text(encoding="utf-8")
    assert "fused-loss = fused_loss.cli:main" in source
    for command in COMMANDS.values():
        functions = {
            node.name: len(node.args.args)
            for node in TREES[command.module].body
            if isinstance(node, ast.FunctionDef)
        }
        assert functions.get("configure") == 1, command.module
        assert functions.get("run") == 1, command.module
        assert f'"{command.extra}": [' in source


# A source file is tested in test_<folder>_<file>.py; these are tested where it says.
ELSEWHERE = {
    "fused_loss/__main__.py": "test_fused_loss_cli.py",
    "fused_loss/drop_in.py": "test_fused_loss_functional_torch.py",
    "kernels/eager_classification.py": "test_kernels_eager.py",
    "kernels/eager_regression.py": "test_kernels_eager.py",
    "kernels/triton_few.py": "test_kernels_triton_split.py",
    "kernels/triton_targets.py": "test_kernels_triton_reduce.py",
    "kernels/triton_tiles.py": "test_kernels_triton_reduce.py",
    "kernels/triton_heads.py": "test_kernels_triton_launch.py",
    "kernels/triton_grid.py": "test_kernels_triton_plan.py",
    "kernels/triton_scaling.py": "test_kernels_triton_plan.py",
    "kernels/triton_counts.py": "test_kernels_triton_launch.py",
    "bench/ahead.py": "test_kernels_compiled.py",
    "bench/calls.py": "test_kernels_compiled.py",
    "bench/tables.py": "test_bench_report.py",
}


@every_module
def test_every_file_has_its_tests(module: str):
    path = MODULES[module]
    if path.stem == "__init__":
        doors = [node for node in TREES[module].body if not _is_door(node)]
        assert not doors, f"{shown(module)} is a door: no logic"
        return
    if path.stem.startswith("test_"):
        return
    own = list((ROOT / "tests").glob(f"test_{path.parent.name}_{path.stem}*.py"))
    elsewhere = ELSEWHERE.get(shown(module))
    assert bool(own) != bool(elsewhere), f"{shown(module)}: {own or 'no test file'}"
    assert elsewhere is None or (ROOT / "tests" / elsewhere).exists()


def _is_door(node: ast.stmt) -> bool:
    """An import, a docstring, `__all__` or `__version__`."""
    return isinstance(node, ast.Import | ast.ImportFrom | ast.Assign) or (
        isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    )


@every_module
def test_a_file_has_one_role_and_the_length_of_one(module: str):
    lines = len(MODULES[module].read_text(encoding="utf-8").splitlines())
    kernels = any(
        isinstance(node, ast.FunctionDef) and "triton.jit" in map(ast.unparse, node.decorator_list)
        for node in TREES[module].body
    )
    assert lines <= (300 if kernels else 400)


def test_a_test_file_is_short():
    long = {
        path.name: lines
        for path in sorted((ROOT / "tests").glob("*.py"))
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > 350
    }
    assert not long


@every_module
def test_docstrings_say_what_is_raised(module: str):
    tree = TREES[module]
    assert ast.get_docstring(tree) or MODULES[module].stem == "__init__"
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    for node in (*tree.body, *(method for owner in classes for method in owner.body)):
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            raised = [ast.unparse(error) for error in raises(node)]
            said = ast.get_docstring(node) or ""
            assert not raised or "Raises:" in said, f"{shown(module)}: {node.name} raises {raised}"


def raises(function: ast.AST) -> Iterator[ast.expr]:
    """What a function raises itself; a usage error is argparse's to tell."""
    for node in ast.iter_child_nodes(function):
        if isinstance(node, ast.Raise) and node.exc and "ArgumentTypeError" not in ast.dump(node):
            yield node.exc
        if not isinstance(node, ast.FunctionDef):
            yield from raises(node)


@pytest.mark.parametrize("package", ["fused_loss", "fused_loss.export", "fused_loss.bench"])
def test_what_is_exported_is_documented(package: str):
    import importlib

    door = importlib.import_module(package)
    for name in door.__all__:
        exported = getattr(door, name)
        if callable(exported):
            assert exported.__doc__, f"{package}.{name}"
            assert not exported.__doc__.startswith(f"{name}("), f"{package}.{name}: generated"
