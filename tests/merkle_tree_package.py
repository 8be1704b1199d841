"""The real @openzeppelin/merkle-tree, installed once into a cache folder, and scripts run over it by node."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

VERSION = "1.0.8"


def install() -> Path | str:
    """The folder whose node_modules has the package, or why there is none."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        return "node and npm are not installed (Debian: apt-get install nodejs npm)"
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    folder = cache / "openledger-tests" / f"merkle-tree-{VERSION}"
    if not (folder / "node_modules/@openzeppelin/merkle-tree/package.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        command = ["npm", "install", "--prefix", str(folder), "--no-audit", "--no-fund", "--silent"]
        done = subprocess.run(
            [*command, f"@openzeppelin/merkle-tree@{VERSION}"], capture_output=True, text=True, check=False, timeout=300
        )
        if done.returncode:
            return f"npm could not install @openzeppelin/merkle-tree: {done.stderr.strip()[-200:]}"
    return folder


def run(folder: Path, script: str, value: Any = None) -> Any:
    """What `script` returns, as JSON; it sees `StandardMerkleTree` and `input`."""
    code = f"""
        const {{ StandardMerkleTree }} = require('@openzeppelin/merkle-tree');
        const input = JSON.parse(require('fs').readFileSync(0, 'utf8'));
        process.stdout.write(JSON.stringify((() => {{ {script} }})()));
    """
    done = subprocess.run(
        ["node", "-e", code],
        input=json.dumps(value),
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)
