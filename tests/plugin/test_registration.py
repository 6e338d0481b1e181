"""lm_eval finds our models and tasks as soon as jrt-eval is installed. Each case runs in a fresh interpreter."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from jrt_eval import plugin


def run_python(code: str, **environment: str) -> str:
    """The output of `code` in a fresh interpreter, outside the checkout."""
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=Path(sys.executable).parent,
        env={**os.environ, **environment},
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def lm_eval(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "lm_eval", *arguments],
        capture_output=True,
        text=True,
        cwd=Path(sys.executable).parent,
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize("name", sorted(plugin.MODELS))
def test_model_names_reach_the_adapter(name: str) -> None:
    code = f"from lm_eval.api.registry import get_model; print(get_model({name!r}).__name__)"
    assert run_python(code) == "JRTLM"


def test_nothing_is_imported_before_lm_eval_is() -> None:
    code = "import sys; print(sorted(m for m in sys.modules if m.startswith(('jrt_eval', 'lm_eval', 'torch'))))"
    assert run_python(code) == "['jrt_eval_autoload']"


def test_registering_imports_no_adapter_and_no_torch() -> None:
    code = (
        "import sys; from lm_eval.api.registry import model_registry; assert 'jrt' in model_registry;"
        "print('torch' in sys.modules, 'jrt_eval.model_adapters' in sys.modules)"
    )
    assert run_python(code) == "False False"


def test_hook_leaves_the_import_system_as_it_was() -> None:
    code = (
        "import sys, lm_eval.evaluator, lm_eval.tasks, lm_eval.api.registry as r, jrt_eval_autoload as a;"
        "print(a.Finder in sys.meta_path, type(r.__loader__).__name__, type(r.__spec__.loader).__name__)"
    )
    assert run_python(code) == "False SourceFileLoader SourceFileLoader"


def test_looking_for_the_module_does_not_use_up_the_hook() -> None:
    code = (
        "import importlib.util; importlib.util.find_spec('lm_eval.api.registry');"
        "from lm_eval.api.registry import model_registry; print('jrt' in model_registry)"
    )
    assert run_python(code) == "True"


SEES_US = (
    "from lm_eval.api.registry import model_registry as m; from lm_eval.tasks import TaskManager;"
    "print('jrt' in m, 'jrt_sample' in TaskManager().all_tasks, end=' ');"
    "import jrt_eval; jrt_eval.register(); jrt_eval.register();"
    "print('jrt' in m, 'jrt_sample' in TaskManager().all_tasks)"
)


def test_switched_off_by_environment_and_on_by_call() -> None:
    assert run_python(SEES_US, JRT_EVAL_AUTOLOAD="0") == "False False True True"


@pytest.mark.parametrize(
    ("value", "off"),
    [("0", True), ("false", True), ("False", True), ("no", True), ("off", True), ("", True), (" ", True), ("1", False), ("yes", False)],
)  # fmt: skip
def test_values_that_switch_it_off(value: str, off: bool) -> None:
    code = "import sys, jrt_eval_autoload as hook; print(hook.switched_off(), hook.Finder not in sys.meta_path)"
    assert run_python(code, JRT_EVAL_AUTOLOAD=value) == f"{off} {off}"


def test_a_missing_hook_module_prints_nothing(tmp_path: Path) -> None:
    shutil.copy(Path(__file__).parents[2] / "jrt_eval_autoload.pth", tmp_path)
    code = f"import site; site.addsitedir({str(tmp_path)!r}); import sys; print('jrt_eval_autoload' in sys.modules)"
    # -S: without site-packages, where the module is installed.
    result = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True)
    assert (result.stdout, result.stderr) == ("False\n", "")


def test_the_start_up_line_imports_the_hook(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    for name in ("jrt_eval_autoload.pth", "jrt_eval_autoload.py"):
        shutil.copy(root / name, tmp_path)
    code = f"import site; site.addsitedir({str(tmp_path)!r}); import sys; print('jrt_eval_autoload' in sys.modules)"
    result = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True)
    assert (result.stdout, result.stderr) == ("True\n", "")


def test_an_error_in_our_package_does_not_break_lm_eval(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['jrt_eval'] = None\n")
    code = "from lm_eval.api.registry import get_model; print(get_model('dummy').__name__)"
    assert run_python(code, PYTHONPATH=str(tmp_path)) == "DummyLM"


def test_a_users_task_of_the_same_name_wins(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("task: jrt_sample\ndataset_path: json\ndoc_to_text: mine\ndoc_to_target: x\n")
    code = (
        "from lm_eval.tasks import TaskManager;"
        f"t = TaskManager(include_path={str(tmp_path)!r});"
        "e = t.task_index['jrt_sample']; print(e['yaml_path'] if isinstance(e, dict) else e.yaml_path, t.include_path)"
    )
    assert run_python(code) == f"{tmp_path / 'mine.yaml'} {tmp_path}"


def test_without_defaults_only_the_users_tasks() -> None:
    code = "from lm_eval.tasks import TaskManager; print(TaskManager(include_defaults=False).all_tasks)"
    assert run_python(code) == "[]"


# How lm-eval's coming releases find plugins: entry points of the group, recorded as placeholders at the first look-up,
# names that are taken left alone. Run against the installed release, into whose registry it is put before ours loads.
COMING_RELEASE = """
import importlib.metadata as md, json, sys
from lm_eval.api import registry as r

def load_plugins(group, reg):
    found = []
    for ep in md.entry_points(group=group):
        if ep.name not in reg:
            reg.register(ep.name, target=ep)
            found.append(ep.name)
    return found

r.load_plugins = load_plugins
for name in list(r.model_registry._objs):
    if name in ("jrt", "jrt_lm", "based_lm"):
        del r.model_registry._objs[name]
from jrt_eval import plugin
plugin.register_models()
before = [n for n in plugin.MODELS if n in r.model_registry]
found = load_plugins("lm_eval.models", r.model_registry)
print(json.dumps([before, sorted(found), r.get_model("jrt_lm").__name__]))
"""


def test_coming_releases_find_us_by_entry_point() -> None:
    before, found, adapter = json.loads(run_python(COMING_RELEASE))
    assert before == []
    assert found == sorted(plugin.MODELS)
    assert adapter == "JRTLM"


def test_entry_points_are_the_models_of_the_plugin() -> None:
    from importlib.metadata import entry_points

    declared = {ep.name: ep.value for ep in entry_points(group="lm_eval.models") if ep.value.startswith("jrt_eval")}
    assert declared == plugin.MODELS


def test_user_errors_are_one_line_in_lm_eval() -> None:
    result = lm_eval("run", "--model", "jrt", "--model_args", "pretrained=/no/such/folder", "--tasks", "jrt_sample")
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert result.stderr.strip().splitlines()[-1].startswith("jrt-eval: error: ")
