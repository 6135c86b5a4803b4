"""The rooms of the package: arrows point downward only, no circle of imports, and nerfstudio in its own rooms alone.

An import counts wherever it stands: at the top of a module, within a function, for the type checker alone, or as a
module's name in a string, as a package's lazy exports have it.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "cds_nerf"

TOP, BASE = "the top", "the base"
ROOMS = {
    TOP: (TOP, "image", "nerf", "evaluation", "fields", "guidance", "diffusion", BASE),
    "image": ("image", "guidance", "diffusion", BASE),
    "nerf": ("nerf", "fields", "guidance", "diffusion", BASE),
    "evaluation": ("evaluation", BASE),
    "fields": ("fields", BASE),
    "guidance": ("guidance", "diffusion", BASE),
    "diffusion": ("diffusion", BASE),
    BASE: (BASE,),
}
"""What each room may import. A package in `cds_nerf/` is a room, a module in it belongs to the base."""
IN_TOP = ("", "__main__", "cli", "recipe", "report", "shapes")
"""What stands above the rooms, by its name within `cds_nerf`; "" is its `__init__.py`, which exports from the rooms."""
WITH_NERFSTUDIO = (TOP, "nerf", "fields")


@dataclass(frozen=True)
class Import:
    """That one module names another."""

    file: Path
    line: int
    module: str
    imported: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


def modules_of(package: Path) -> dict[str, Path]:
    """The files of a package's modules, by their dotted names."""
    modules = {}
    for file in sorted(package.rglob("*.py")):
        parts = file.relative_to(package.parent).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return modules


def imports_of(package: Path) -> list[Import]:
    """All imports of the package's modules, of its own modules and of others."""
    modules = modules_of(package)
    found = []
    for module, file in modules.items():
        text = file.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text, str(file))):
            imported: set[str] = set()
            if isinstance(node, ast.Import):
                imported = {name.name for name in node.names}
            elif isinstance(node, ast.ImportFrom):
                base = _base(node, module, file)
                names = [f"{base}.{name.name}" for name in node.names]
                imported = {name if name in modules else base for name in names}
            elif "import_module" in text and isinstance(node, ast.Constant) and isinstance(node.value, str):
                imported = {node.value} if node.value in modules or _is_nerfstudio(node.value) else set()
            found += [Import(file.relative_to(package.parent), node.lineno, module, name) for name in sorted(imported)]
    return found


def _base(node: ast.ImportFrom, module: str, file: Path) -> str:
    """What stands between `from` and `import`, in full."""
    if not node.level:
        return node.module or ""
    package = module.split(".") if file.name == "__init__.py" else module.split(".")[:-1]
    return ".".join([*package[: len(package) - node.level + 1], *filter(None, [node.module])])


def _is_nerfstudio(name: str) -> bool:
    return name.split(".")[0] == "nerfstudio" and all(part.isidentifier() for part in name.split("."))


def room_of(module: str) -> str:
    """The room in which a module of the package stands."""
    _, _, within = module.partition(".")
    name = within.split(".")[0]
    if name in IN_TOP:
        return TOP
    return name if name in ROOMS else BASE


def unknown_rooms(package: Path) -> list[str]:
    """The packages in the package that have no place in `ROOMS`."""
    known = {*ROOMS, *IN_TOP}
    return [
        f"{file.parent.relative_to(package.parent)}/ is no known room: say in ROOMS what it may import"
        for file in sorted(package.glob("*/__init__.py"))
        if file.parent.name not in known
    ]


def broken_arrows(package: Path) -> list[str]:
    """Each import of a room that the importing room may not know."""
    modules = modules_of(package)
    return [
        f"{one}: {room} imports {one.imported} of {target}; it may import {', '.join(ROOMS[room])} alone"
        for one in imports_of(package)
        if one.imported in modules
        for room, target in [(room_of(one.module), room_of(one.imported))]
        if target not in ROOMS[room]
    ]


def imports_of_nerfstudio(package: Path) -> list[str]:
    """Each import of nerfstudio in a room that works without it."""
    return [
        f"{one}: {room_of(one.module)} imports {one.imported}; only {', '.join(WITH_NERFSTUDIO)} may"
        for one in imports_of(package)
        if _is_nerfstudio(one.imported) and room_of(one.module) not in WITH_NERFSTUDIO
    ]


def circles(package: Path) -> list[str]:
    """Each circle of imports, the shortest one through a module, told by the imports that close it."""
    arrows: dict[str, dict[str, Import]] = {module: {} for module in modules_of(package)}
    for one in imports_of(package):
        if one.imported in arrows:
            arrows[one.module].setdefault(one.imported, one)
    told = []
    seen: set[str] = set()
    for module in arrows:
        circle = _shortest_circle(module, arrows)
        if circle and not seen.intersection(one.module for one in circle):
            seen.update(one.module for one in circle)
            told.append("a circle of imports: " + ", ".join(f"{one} imports {one.imported}" for one in circle))
    return told


def _shortest_circle(start: str, arrows: dict[str, dict[str, Import]]) -> list[Import]:
    paths: list[list[Import]] = [[one] for one in arrows[start].values()]
    reached: set[str] = set()
    for path in paths:  # grows within: breadth first
        end = path[-1].imported
        if end == start:
            return path
        if end not in reached:
            reached.add(end)
            paths.extend([*path, one] for one in arrows[end].values())
    return []


CHECKS = (unknown_rooms, broken_arrows, imports_of_nerfstudio, circles)


@pytest.mark.parametrize("check", CHECKS)
def test_package_keeps_to_its_rooms(check) -> None:
    assert check(PACKAGE) == []


def write(folder: Path, files: dict[str, str]) -> Path:
    """A made-up package; each of its folders is a package."""
    package = folder / "cds_nerf"
    for name, text in files.items():
        path = package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        for parent in path.relative_to(folder).parents[:-1]:
            (folder / parent / "__init__.py").touch()
    return package


def test_downward_imports_are_allowed_wherever_they_stand(tmp_path: Path) -> None:
    package = write(
        tmp_path,
        {
            "__init__.py": "from cds_nerf.nerf.trainer import Trainer\nfrom cds_nerf.image import edit",
            "cli.py": "import cds_nerf.recipe.stages\nfrom cds_nerf.image.edit import edit",
            "recipe/stages.py": "from ..nerf import trainer\nfrom ..shapes import prior",
            "shapes/prior.py": "import nerfstudio.cameras",
            "nerf/trainer.py": "import nerfstudio\nfrom cds_nerf.fields import field\nfrom cds_nerf import errors",
            "fields/field.py": "from nerfstudio.cameras import cameras",
            "image/edit.py": "def edit():\n    from cds_nerf.guidance.cds import score",
            "guidance/cds.py": "from cds_nerf.diffusion import prior\nfrom .config import Config",
            "guidance/config.py": "from cds_nerf.errors import UserError",
            "diffusion/prior.py": "import diffusers\nhint = 'nerfstudio.cameras'",
            "errors.py": "import sys",
        },
    )
    assert [check(package) for check in CHECKS] == [[], [], [], []]


@pytest.mark.parametrize(
    ("files", "check", "told"),
    [
        (
            {"diffusion/prior.py": "\nfrom cds_nerf.guidance.cds import score", "guidance/cds.py": ""},
            broken_arrows,
            ["cds_nerf/diffusion/prior.py:2: diffusion imports cds_nerf.guidance.cds of guidance"],
        ),
        (
            {"fields/field.py": "def f():\n    import cds_nerf.diffusion.prior", "diffusion/prior.py": ""},
            broken_arrows,
            ["cds_nerf/fields/field.py:2: fields imports cds_nerf.diffusion.prior of diffusion"],
        ),
        (
            {"image/edit.py": "if TYPE_CHECKING:\n    from ..nerf import trainer", "nerf/trainer.py": ""},
            broken_arrows,
            ["cds_nerf/image/edit.py:2: image imports cds_nerf.nerf.trainer of nerf"],
        ),
        (
            {"nerf/trainer.py": "import_module('cds_nerf.image.edit')  # on demand", "image/edit.py": ""},
            broken_arrows,
            ["cds_nerf/nerf/trainer.py:1: nerf imports cds_nerf.image.edit of image"],
        ),
        (
            {"files.py": "from cds_nerf.diffusion import prior", "diffusion/prior.py": ""},
            broken_arrows,
            ["cds_nerf/files.py:1: the base imports cds_nerf.diffusion.prior of diffusion"],
        ),
        (
            {"guidance/cds.py": "from cds_nerf import CDSGuidance"},
            broken_arrows,
            ["cds_nerf/guidance/cds.py:1: guidance imports cds_nerf of the top"],
        ),
        (
            {"image/edit.py": "import nerfstudio.cameras", "errors.py": "import_module('nerfstudio.utils')"},
            imports_of_nerfstudio,
            [
                "cds_nerf/errors.py:1: the base imports nerfstudio.utils",
                "cds_nerf/image/edit.py:1: image imports nerfstudio.cameras",
            ],
        ),
        (
            {
                "image/a.py": "from cds_nerf.image.b import B",
                "image/b.py": "def f():\n    from cds_nerf.image import c",
                "image/c.py": "if TYPE_CHECKING:\n    from .a import A",
                "image/d.py": "from cds_nerf.image.a import A",
            },
            circles,
            [
                "a circle of imports: cds_nerf/image/a.py:1 imports cds_nerf.image.b, "
                "cds_nerf/image/b.py:2 imports cds_nerf.image.c, cds_nerf/image/c.py:2 imports cds_nerf.image.a"
            ],
        ),
        (
            {"guidance/__init__.py": "from cds_nerf.guidance.cds import A", "guidance/cds.py": "from . import A"},
            circles,
            ["a circle of imports: cds_nerf/guidance/__init__.py:1 imports cds_nerf.guidance.cds"],
        ),
        ({"toys/a.py": ""}, unknown_rooms, ["cds_nerf/toys/ is no known room"]),
    ],
)
def test_what_is_not_allowed_is_told_by_file_and_line(tmp_path: Path, files, check, told) -> None:
    found = check(write(tmp_path, files))
    assert len(found) == len(told)
    assert all(message.startswith(start) for message, start in zip(found, told, strict=True)), found
