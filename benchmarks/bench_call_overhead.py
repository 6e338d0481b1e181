"""What one call of a decode step costs besides its arithmetic: steps on a CPU whose tensors have next to no elements.

Prints the minimum over rounds of the time per call, in microseconds. With --before FOLDER, a folder that has another version of the package
(`jrt_eval`, built), the two versions alternate, and the ratio of their minima follows.
Usage: python benchmarks/bench_call_overhead.py [--before FOLDER]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys

ROUNDS = 7

# Runs in a process of its own. Names of older versions of the package are tried too.
MEASURE = """
import json, sys, time
if sys.argv[1]:
    sys.path.insert(0, sys.argv[1])
    sys.meta_path[:] = [finder for finder in sys.meta_path if "ScikitBuild" not in type(finder).__name__]
import torch
from jrt_eval import kernels
torch.set_num_threads(1)

def named(*names):
    return next(getattr(kernels, name) for name in names if hasattr(kernels, name))

step = named("taylor_linear_attention_step", "taylor_step")
window = named("sliding_window_attention_step", "sliding_window_step")
x = torch.ones(1, 1, 1)
state = kernels.TaylorState(torch.zeros(1, 1, 3, 1), torch.ones(1, 1, 3))
ring = kernels.WindowState(torch.ones(1, 2, 1, 1), torch.ones(1, 2, 1, 1), torch.zeros(1, dtype=torch.int64))
runs = {
    "taylor_linear_attention_step": lambda: step(x, x, x, state),
    "sliding_window_attention_step": lambda: window(x, x, x, ring),
}
found = {}
with torch.no_grad():
    for name, run in runs.items():
        times = []
        for _ in range(30):
            start = time.perf_counter()
            for _ in range(1000):
                run()
            times.append(time.perf_counter() - start)
        found[name] = min(times) / 1000
print(json.dumps(found))
"""


def measure(folder: str) -> dict[str, float]:
    done = subprocess.run([sys.executable, "-P", "-c", MEASURE, folder], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"bench_call_overhead.py: {done.stderr.strip().splitlines()[-1]}")
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", default="", help="a folder with another version of the package")
    folder = parser.parse_args().before
    rounds = [(measure(""), measure(folder) if folder else {}) for _ in range(ROUNDS)]
    for name in rounds[0][0]:
        now = min(found[name] for found, _ in rounds) * 1e6
        line = f"{name}: {now:.2f} us"
        if folder:
            before = min(found[name] for _, found in rounds) * 1e6
            line += f", before {before:.2f} us, ratio {now / before:.3f}"
        print(line)


if __name__ == "__main__":
    main()
