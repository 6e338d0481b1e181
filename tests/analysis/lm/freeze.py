"""Make the frozen result trees under tests/analysis/frozen: `freeze.py FOLDER VERSION` with that lm-eval on the path.

Runs the reader on six documents and takes out of the result file what describes the machine.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from make_tasks import make


def freeze(folder: Path, version: str) -> None:
    tasks = make(folder / "tasks", 6)
    runs = folder / f"lm_eval-{version}"
    command = [sys.executable, str(Path(__file__).with_name("reader.py")), "--model", "reader", "--model_args"]
    command += [f"pretrained=acme/reader-{version},memory=200", "--tasks", "facts,colours_choice", "--include_path"]
    command += [str(tasks), "--output_path", str(runs), "--log_samples"]
    subprocess.run(command, check=True, cwd=folder, env={**os.environ, "JRT_EVAL_AUTOLOAD": "0", "HF_HUB_OFFLINE": "1"})
    for path in runs.rglob("*.json"):
        data = json.loads(path.read_text(encoding="utf-8"))
        data["pretty_env_info"] = ""
        data["git_hash"] = "0000000"
        text = json.dumps(data, indent=2, ensure_ascii=False).replace(str(folder), "")
        path.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    freeze(Path(sys.argv[1]), sys.argv[2])
