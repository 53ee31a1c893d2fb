"""Imports only point back along the flow of the data, and heavy packages load when they are used."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOW = ["base", "clips", "depth", "masks", "records", "shards", "stream", "train"]
# The one place that joins clips, depth and masks.
JOINS = {"records/generate.py"}


def imported_stages(path: Path, stage: str) -> set[str]:
    """The stages of vshard that a module imports, relative imports and those inside functions included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        modules = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = {0: "", 1: f"vshard.{stage}.", 2: "vshard."}[node.level]
            modules = [base + (node.module or "")] if node.module else [base + a.name for a in node.names]
        for module in modules:
            parts = module.split(".")
            if parts[0] in ("vshard_cli", "cli"):
                found.add("cli")
            if parts[0] == "vshard" and len(parts) > 1 and parts[1] in FLOW:
                found.add(parts[1])
    return found


@pytest.mark.parametrize("stage", FLOW)
def test_imports_point_back(stage: str) -> None:
    allowed = set(FLOW[: FLOW.index(stage) + 1])
    for path in sorted((ROOT / "vshard" / stage).glob("*.py")):
        ahead = imported_stages(path, stage) - allowed
        assert not ahead, f"{path.relative_to(ROOT)} imports {ahead}, which comes later in the flow"


def test_an_import_against_the_flow_is_seen(tmp_path: Path) -> None:
    module = tmp_path / "wrong.py"
    module.write_text("def f():\n    from ..train.run import train\n")
    assert imported_stages(module, "clips") == {"train"}
    module.write_text("import vshard_cli.main\nfrom vshard import stream\nimport vshard.shards.index\n")
    assert imported_stages(module, "clips") >= {"cli", "shards"}


def test_only_generate_joins_clips_depth_and_masks() -> None:
    for path in sorted((ROOT / "vshard").rglob("*.py")):
        stage = path.parent.name
        joined = imported_stages(path, stage) & {"clips", "depth", "masks"} - {stage}
        if str(path.relative_to(ROOT / "vshard").as_posix()) not in JOINS:
            assert not {"depth", "masks"} <= joined, path


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("vshard_cli.main", ["torch", "numpy", "av", "cv2"]),
        ("vshard.shards.run", ["torch", "click", "cv2"]),
        ("vshard.shards.pack", ["torch", "click", "cv2", "av"]),
        ("vshard.stream.order", ["torch", "click"]),
        ("vshard.train.plan", ["torch", "click"]),
        ("vshard_cli.generate", ["torch", "av", "cv2"]),
        ("vshard_cli.train", ["torch", "av", "cv2"]),
    ],
)
def test_importing_does_not_load(module: str, absent: list[str]) -> None:
    code = f"import sys, {module}; print([name for name in {absent!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
