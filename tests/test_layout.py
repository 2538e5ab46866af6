"""The architecture as rules over the imports, read from the source: nothing is imported here.

An import inside a function or under TYPE_CHECKING counts like any other: to know a name is to
depend on it. That ``import minisgl.a.b`` also runs ``minisgl/__init__`` is Python's doing and does
not count.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "minisgl"

# Rooms upwards. A room imports itself and what stands before it; rooms on one floor share nothing.
GROUND = (("sampling", "display"), ("request",), ("core",), ("config", "registry"), ("resolve",))
HOST = (("kvcache",), ("scheduler",), ("trace",), ("engine",))
TORCH = (
    ("kernel", "distributed"),
    ("attention",),
    ("layers",),
    ("models",),
    ("quantize", "executor"),
)
VIEWS = (("inspector",),)
TOP = (
    ("tokenizer", "message", "tiny"),
    ("build",),
    ("llm", "whatif", "attach"),
    ("bench", "server", "demo", "lab", "calibrate"),
    ("__init__",),
    ("__main__",),
)
FLOORS = GROUND + HOST + TORCH + VIEWS + TOP

# The seam: all of the host engine that the torch side may know.
SEAM = {
    "minisgl.sampling",
    "minisgl.core",
    "minisgl.config",
    "minisgl.resolve",
    "minisgl.registry",
    "minisgl.engine.runner",
}
# The host engine counts, it does not compute.
NOT_ON_THE_HOST = {"torch", "transformers", "safetensors", "tokenizers", "triton", "flashinfer"}


def rooms(*floors: tuple[str, ...]) -> set[str]:
    return {room for floor in floors for room in floor}


@functools.cache
def modules() -> dict[str, ast.Module]:
    """Every module of the package by dotted name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = ["minisgl", *path.relative_to(PACKAGE).with_suffix("").parts]
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text(encoding="utf-8"), str(path))
    return found


def room_of(module: str) -> str:
    """``minisgl.kvcache.radix`` -> ``kvcache``; the package itself is the room ``__init__``."""
    return module.split(".")[1] if "." in module else "__init__"


@functools.cache
def imports(module: str) -> frozenset[str]:
    """What a module imports, anywhere in it: modules of ours, and other packages' top names."""
    found: set[str] = set()
    for node in ast.walk(modules()[module]):
        if isinstance(node, ast.Import):
            found.update(_ours(alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively; write the whole name"
            assert node.module is not None
            found.update(_ours(f"{node.module}.{alias.name}") for alias in node.names)
    return frozenset(found - {module})


def _ours(name: str) -> str:
    """The module behind an imported name: its longest part that is one of our modules."""
    parts = name.split(".")
    if parts[0] != "minisgl":
        return parts[0]
    while len(parts) > 1 and ".".join(parts) not in modules():
        parts.pop()
    return ".".join(parts)


def ours() -> Iterator[tuple[str, str]]:
    """Each (module, module of ours that it imports)."""
    for module in modules():
        for target in sorted(imports(module)):
            if target.split(".")[0] == "minisgl":
                yield module, target


def test_every_room_has_its_floor() -> None:
    assert {room_of(module) for module in modules()} <= rooms(*FLOORS)


def test_rooms_import_only_rooms_below_them() -> None:
    floor = {room: level for level, floor in enumerate(FLOORS) for room in floor}
    upwards = [
        f"{module} imports {target}"
        for module, target in ours()
        if room_of(module) != room_of(target) and floor[room_of(module)] <= floor[room_of(target)]
    ]
    assert upwards == []


def test_the_host_engine_knows_no_tensor() -> None:
    host = rooms(*GROUND, *HOST)
    found = {
        module: bad
        for module in modules()
        if room_of(module) in host
        if (bad := imports(module) & NOT_ON_THE_HOST)
    }
    assert found == {}


def test_host_engine_and_views_import_nothing_of_the_torch_side() -> None:
    above, torch = rooms(*GROUND, *HOST, *VIEWS), rooms(*TORCH)
    crossing = [edge for edge in ours() if room_of(edge[0]) in above and room_of(edge[1]) in torch]
    assert crossing == []


def test_the_torch_side_knows_of_the_host_engine_only_the_seam() -> None:
    torch = rooms(*TORCH)
    crossing = [
        (module, target)
        for module, target in ours()
        if room_of(module) in torch and room_of(target) not in torch and target not in SEAM
    ]
    assert crossing == []


def test_no_module_imports_itself_in_a_circle() -> None:
    graph = {module: {t for m, t in ours() if m == module} for module in modules()}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path[path.index(module) :], module))
        if module not in done:
            for target in sorted(graph[module]):
                visit(target, (*path, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_public_names_say_what_they_are() -> None:
    written = {module: tree for module, tree in modules().items() if tree.body}
    missing = [module for module, tree in written.items() if not ast.get_docstring(tree)]
    for module, tree in written.items():
        missing += [f"{module}.{n}" for n, node in _public(tree) if not ast.get_docstring(node)]
    assert missing == []


def _public(
    parent: ast.Module | ast.ClassDef, prefix: str = ""
) -> Iterator[tuple[str, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Public classes, functions and methods; a method of one statement may speak for itself."""
    for node in parent.body:
        if not isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        if node.name.startswith("_"):
            continue
        if prefix and not isinstance(node, ast.ClassDef) and len(node.body) == 1:
            continue
        yield prefix + node.name, node
        if isinstance(node, ast.ClassDef):
            yield from _public(node, f"{node.name}.")
