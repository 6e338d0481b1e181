"""Every Python process of the tests imports this at its start: lm-eval reads its own task files, parsed, from one file.

lm-eval parses 14,000 task files whenever it starts, which takes six seconds, and the tests start it dozens of times. The
first process writes what it parsed to the file that JRT_EVAL_TEST_TASKS names, and the others read that: half a second.
Task files elsewhere are parsed as always.
"""

import os
import sys

MODULE = "lm_eval.tasks._index"


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


class Finder:
    """Finds lm-eval's module as the other finders do, and calls `remember` after its import."""

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name != MODULE:
            return None
        sys.meta_path.remove(cls)
        spec = next(filter(None, (finder.find_spec(name, path, target) for finder in sys.meta_path)), None)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module):
                execute(module)
                remember(module)

            spec.loader.exec_module = exec_module
        return spec


if "JRT_EVAL_TEST_TASKS" in os.environ and MODULE not in sys.modules:
    sys.meta_path.insert(0, Finder)
