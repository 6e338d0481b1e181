"""Nothing that a checkpoint brings is executed."""

from __future__ import annotations

import ast
import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_models import byte_tokenizer

from jrt_eval.errors import UserError
from jrt_eval.models import load_model
from jrt_eval.models.context import context_length_of
from jrt_eval.models.tokenizers import load_tokenizer

ROOT = Path(__file__).parents[2]
WITHOUT = ("PeftModel.from_pretrained",)  # gets a model, and runs no code of the adapter's folder


def _calls(tree: ast.AST) -> Iterator[ast.Call]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).rsplit(".", 1)[-1] in (
            "from_pretrained",
            "load_dataset",
        ):
            yield node


def test_every_loader_says_whether_it_trusts_foreign_code() -> None:
    files = [
        path
        for folder in ("jrt_eval", "model_adapters", "benchmarks", "tests")
        for path in (ROOT / folder).rglob("*.py")
    ]
    found, silent = 0, []
    for path in files:
        for call in _calls(ast.parse(path.read_text(encoding="utf-8"))):
            found += 1
            given = {keyword.arg for keyword in call.keywords}
            if "trust_remote_code" not in given and ast.unparse(call.func) not in WITHOUT:
                silent.append(f"{path.relative_to(ROOT)}:{call.lineno}")
    assert found > 7
    assert silent == []


@pytest.mark.parametrize("model_type", ["llama", "something_new"])
def test_modelling_code_of_a_checkpoint_is_not_run(tmp_path: Path, model_type: str) -> None:
    ran = tmp_path / "ran"
    for name in ("modeling_evil", "configuration_evil", "tokenization_evil"):
        (tmp_path / f"{name}.py").write_text(f"open({str(ran)!r}, 'w')\nclass Evil: pass\n")
    auto = {"AutoConfig": "configuration_evil.Evil", "AutoModelForCausalLM": "modeling_evil.Evil",
            "AutoTokenizer": ["tokenization_evil.Evil", None]}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type, "auto_map": auto, "vocab_size": 64}))
    byte_tokenizer(64).save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text()) | {
        "auto_map": auto,
        "tokenizer_class": "Evil",
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError):
        load_model(tmp_path, device="cpu")
    context_length_of(str(tmp_path))
    with contextlib.suppress(UserError):  # transformers may also read the files without the code
        load_tokenizer(tmp_path)
    assert not ran.exists()
