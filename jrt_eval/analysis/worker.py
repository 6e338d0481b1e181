"""`python -m jrt_eval.analysis.worker`: parse sample files in a process of its own.

A job per line on standard input, its outcome per line on standard output. A plain process, not multiprocessing: a
user's script that calls `collect` needs no `if __name__ == "__main__"`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import orjson

from jrt_eval.analysis.samples import BadSamples, write_part


def run_job(job: dict[str, Any]) -> dict[str, Any]:
    """Parse one byte range: `{"rows", "metrics", "filters"}`, or `{"reason"}` where the file is unusable."""
    try:
        part = write_part(Path(job["path"]), Path(job["target"]), job["run"], job["start"], job["end"])
    except BadSamples as error:
        return {"reason": str(error)}
    except OSError as error:
        if error.filename is not None and str(error.filename) == job["target"]:
            return {"error": f"cannot write {error.filename}: {error.strerror}"}
        return {"reason": f"cannot be read ({error.strerror or error})"}
    return {"rows": part.rows, "metrics": list(part.metrics), "filters": list(part.filters)}


def main() -> None:
    for line in sys.stdin.buffer:
        sys.stdout.buffer.write(orjson.dumps(run_job(orjson.loads(line))) + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
