"""From real models to the page: lm_eval with two tiny models on the read-twice tasks, then collect, compare, report."""

from __future__ import annotations

import json
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from conftest import lm_eval
from transformers import AutoTokenizer

from jrt_eval._version import __version__
from jrt_eval.analysis import compare_variants, load_results
from jrt_eval.analysis.comparison import POOLED
from jrt_eval.analysis.documents import document_data
from jrt_eval.analysis.failures import failure_table
from jrt_eval.analysis.report import make_parts
from jrt_eval.cli import cli


def make_models(folder: Path, tokenizer: Path) -> None:
    """A JRT-RNN and a GPT-2, random, a few thousand parameters beside the embedding, with GPT-2's tokenizer."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from jrt_eval.models import from_config, save_pretrained

    mixer = {"_target_": "PrefixLinearAttention", "feature_dim": 4, "num_heads": 2, "enc_length": 128}
    config = {"vocab_size": 50257, "n_embd": 16, "n_head": 2, "n_layer": 2, "n_inner": 32, "n_positions": 0,
              "max_position_embeddings": 0, "pad_vocab_size_multiple": 8, "activation_function": "swiglu",
              "rms_norm": True, "tie_word_embeddings": True, "alt_mixer_layers": [1], "alt_mixer": mixer,
              "mixer": {"_target_": "BaseConv", "expand_proj": 4, "kernel_sizes": 3}}  # fmt: skip
    save_pretrained(from_config(config, seed=0), folder / "tiny-jrt")
    torch.manual_seed(0)
    gpt2 = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=512))
    gpt2.save_pretrained(folder / "tiny-gpt2")
    for name in ("tiny-jrt", "tiny-gpt2"):
        for file in tokenizer.iterdir():
            shutil.copy(file, folder / name)


@pytest.fixture(scope="module")
def real(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `runs` of the two models, and of a reader that finds some answers: two tasks, once and twice."""
    folder = tmp_path_factory.mktemp("real")
    make_models(folder, shared / "data" / "gpt2")
    hub = (shared / "data" / "hub").resolve()
    metadata = json.dumps({"data_dir": str(hub), "context_length": 200, "tokenizer": "tiny-gpt2"})
    rest = f"--tasks jrt_fda,jrt_fda_twice,jrt_squad,jrt_squad_twice --metadata '{metadata}' "
    rest += "--gen_kwargs max_gen_toks=4 --batch_size 8 --output_path runs --log_samples --device cpu "
    lm_eval(
        f"--model jrt {rest} --model_args dtype=float32,pretrained=tiny-jrt,tokenizer=tiny-jrt",
        f"--model hf {rest} --model_args dtype=float32,pretrained=tiny-gpt2",
        f"--model reader {rest} --model_args memory=600,pretrained=acme/reader",
        cwd=folder,
        autoload=True,
    )
    return folder


def run(*arguments: str) -> str:
    done = CliRunner().invoke(cli, list(arguments))
    assert done.exit_code == 0, (done.output, done.exception)
    return done.output


def rows(shared: Path, name: str) -> list[dict[str, Any]]:
    lines = (shared / "data" / "hub" / name / "validation.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_collect_compare_report(real: Path, shared: Path, tmp_path: Path) -> None:
    out = run("collect", str(real / "runs"), "-o", str(tmp_path / "out"), "--strict")
    assert out.startswith(f"{tmp_path / 'out'}: 3 runs, ")
    results = load_results(tmp_path / "out")
    scores, frame = results.scores, results.predictions
    files = [json.loads(path.read_text(encoding="utf-8")) for path in (real / "runs").rglob("results_*.json")]
    theirs = {
        (data["model_name"], task, key.split(",")[0]): value
        for data in files
        for task, values in data["results"].items()
        for key, value in values.items()
        if key.endswith(",none") and "_stderr" not in key
    }
    keys = zip(scores["model"].astype(str), scores["task"].astype(str), scores["metric"].astype(str), strict=True)
    assert dict(zip(keys, scores["value"], strict=True)) == theirs
    assert {k[2] for k in theirs} == {"contains", "exact_match", "f1", "truncated"}
    assert scores["stderr"].notna().all()
    assert scores["jrt_eval_version"].unique().tolist() == [__version__]
    assert scores["lm_eval_version"].unique().tolist() == [version("lm_eval")]
    assert scores["context_length"].unique().tolist() == [200]

    # what the models read, in their own tokens
    tokenizer = AutoTokenizer.from_pretrained(str(real / "tiny-gpt2"), trust_remote_code=False)
    some = frame.groupby(["model", "task"], observed=True).head(2)
    assert len(some) == 24
    for row in some.itertuples():
        assert len(tokenizer(row.prompt)["input_ids"]) == row.prompt_tokens
        assert row.doc_tokens >= row.answer_token
        assert row.targets[0].lower() in row.prompt.lower()

    # several questions on a document: FDA names its file, SQuAD names each question, but some rows share the passage
    table = compare_variants(results, models=["acme/reader"]).table.set_index("dataset")
    fda, squad = rows(shared, "based-fda"), rows(shared, "based-squad")
    kept = frame[(frame["task"] == "jrt_fda") & (frame["model"] == "acme/reader")]["row"]
    assert table.loc["fda", ["n", "documents"]].tolist() == [len(kept), len({fda[r]["file_name"] for r in kept})]
    assert table.loc["squad", ["n", "documents"]].tolist() == [6, len({row["text"][:50] for row in squad})]
    assert table.loc[POOLED, "documents"] == table["documents"].iloc[:2].sum() < table.loc[POOLED, "n"]
    reader = scores[(scores["model"] == "acme/reader") & (scores["metric"] == "contains")].set_index("task")["value"]
    assert reader["jrt_fda"] > 0
    assert table.loc["fda", "gain"] == pytest.approx(reader["jrt_fda_twice"] - reader["jrt_fda"])
    shown = run("compare", str(tmp_path / "out"), "--versus", "tiny-gpt2", "acme/reader", "--task", "fda")
    assert f"{100 * reader['jrt_fda']:+.1f}" in shown  # the random model has no answer right
    by_length = run("compare", str(tmp_path / "out"), "--table", "by-length")
    assert "tokens of the document" in by_length
    modes = failure_table(results, "contains")
    assert modes["n"].sum() == len(frame) == 3 * 2 * (len(kept) + 6)

    # the page's browser: once before twice, and a question even where the once prompt ends without a cue
    index = document_data(results, "contains").index
    assert all(question for _, _, _, question, _ in index["documents"])
    assert [answer[2] for answer in index["answers"]] == [0, 1] * (len(frame) // 2)
    assert "length" not in make_parts(results).tables  # one window, though the groups' rows name none

    run("report", str(tmp_path / "out"), "-o", str(tmp_path / "r.html"), "--published", "--plots", str(tmp_path / "p"))
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    for text in ("tiny-jrt", "tiny-gpt2", "acme/reader", version("lm_eval"), f">{__version__}</td>"):
        assert text in page
    assert (tmp_path / "p" / "gain.png").stat().st_size > 3000
