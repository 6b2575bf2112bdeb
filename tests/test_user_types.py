"""Pyright understands a user's script; mypy does in `make check`."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parent / "typed_script.py"


def test_pyright_finds_the_mistakes_in_a_users_script_and_nothing_else(tmp_path: Path) -> None:
    settings = {"typeCheckingMode": "standard", "reportUnnecessaryTypeIgnoreComment": "error"}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    (tmp_path / SCRIPT.name).write_text(SCRIPT.read_text())
    checker = [sys.executable, "-m", "basedpyright", "--pythonpath", sys.executable]
    command = [*checker, "--outputjson", "--project", str(tmp_path)]
    said = subprocess.run(command, capture_output=True, text=True).stdout
    found = [d for d in json.loads(said)["generalDiagnostics"] if d["severity"] == "error"]
    assert [(d["range"]["start"]["line"] + 1, d["message"]) for d in found] == []
    assert json.loads(said)["summary"]["filesAnalyzed"] == 1
