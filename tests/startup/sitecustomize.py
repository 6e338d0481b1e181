"""Every Python process of the tests imports this at its start: it saves the seconds that lm-eval spends on other things.

lm-eval parses 14,000 task files whenever it starts, which takes six seconds, and the tests start it dozens of times. The
first process writes what it parsed to the file that JRT_EVAL_TEST_TASKS names, and the others read that: half a second.
Task files elsewhere are parsed as always.

After each run lm-eval describes the machine for its results file, and asks pip for all packages: two seconds, left out.
"""

import os
import sys


def remember(index):
    """Replace `load_yaml` in lm-eval's module by one that knows the files of lm-eval itself."""
    import pickle
    from pathlib import Path

    file, own = Path(os.environ["JRT_EVAL_TEST_TASKS"]), Path(index.__file__).parent
    parse, build = index.load_yaml, index.TaskIndex.build
    known = {}

    def load_yaml(path, *, resolve_func, recursive):
        key = str(path), resolve_func, recursive
        if not path.is_relative_to(own):
            return parse(path, resolve_func=resolve_func, recursive=recursive)
        if key not in known and file.exists():  # each entry is handed out once, since its reader may change it
            known.update(pickle.loads(file.read_bytes()))
        if key in known:
            return known.pop(key)
        return parsed.setdefault(key, parse(path, resolve_func=resolve_func, recursive=recursive))

    parsed = {}

    def build_and_save(paths, **options):
        found = build(paths, **options)
        if parsed and not file.exists():
            part = file.with_name(f"{file.name}.{os.getpid()}")
            part.write_bytes(pickle.dumps(parsed))
            part.replace(file)
        return found

    index.load_yaml, index.TaskIndex.build = load_yaml, staticmethod(build_and_save)


def describe_nothing(collect_env):
    """Replace the description of the machine."""
    collect_env.get_pretty_env_info = str


AFTER = {"lm_eval.tasks._index": remember, "torch.utils.collect_env": describe_nothing}


class Finder:
    """Finds these modules as the other finders do, and calls a function of `AFTER` after their import."""

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name not in AFTER:
            return None
        change = AFTER.pop(name)
        others = [finder for finder in sys.meta_path if finder is not cls]
        spec = next(filter(None, (finder.find_spec(name, path, target) for finder in others)), None)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module):
                execute(module)
                change(module)

            spec.loader.exec_module = exec_module
        return spec


if "JRT_EVAL_TEST_TASKS" in os.environ and not AFTER.keys() & sys.modules.keys():
    sys.meta_path.insert(0, Finder)
