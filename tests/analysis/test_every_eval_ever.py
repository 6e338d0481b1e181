"""Scores in Every Eval Ever's format: the fields, types and values that its schema 0.3.0 asks for."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from made_runs import write_run

from jrt_eval.analysis.every_eval_ever import export
from jrt_eval.cli import cli
from jrt_eval.errors import UserError

# Facts about the schema: required fields (with their types) of each object that we write, and its closed sets of values.
REQUIRED: dict[str, dict[str, type]] = {
    "": {
        "schema_version": str, "evaluation_id": str, "retrieved_timestamp": str, "source_metadata": dict,
        "eval_library": dict, "model_info": dict, "evaluation_results": list,
    },
    "source_metadata": {"source_type": str, "source_organization_name": str, "evaluator_relationship": str},
    "eval_library": {"name": str, "version": str},
    "model_info": {"name": str, "id": str, "additional_details": dict},
    "model_info.additional_details": {"deployment_type": str, "model_availability": str},
    "result": {"evaluation_name": str, "source_data": dict, "metric_config": dict, "score_details": dict},
    "result.source_data": {"dataset_name": str, "source_type": str},
    "result.metric_config": {"lower_is_better": bool},
    "result.score_details": {"score": float},
}  # fmt: skip
ALLOWED = {
    "source_metadata.source_type": {"documentation", "evaluation_run"},
    "source_metadata.evaluator_relationship": {"first_party", "third_party", "collaborative", "other"},
    "model_info.additional_details.deployment_type": {"self_deployed", "externally_managed", "unknown"},
    "model_info.additional_details.model_availability": {"open_weights", "closed_weights", "unknown"},
    "result.source_data.source_type": {"url", "hf_dataset", "other"},
    "result.metric_config.score_type": {"binary", "continuous", "levels"},
}
TOP = {*REQUIRED[""], "evaluation_timestamp", "detailed_evaluation_results"}  # no other fields are allowed there
ARGUMENTS = {"temperature", "top_p", "top_k", "max_tokens"}  # those of the allowed ones that we write


def at(record: dict[str, Any], path: str) -> Any:
    for key in filter(None, path.split(".")):
        record = record[key]
    return record


def check(record: dict[str, Any]) -> None:
    """Raise AssertionError where a record is not as the schema wants it."""
    assert set(record) <= TOP
    roots = [({"result": result} | record) for result in record["evaluation_results"]]
    assert roots
    for root in roots:
        for path, fields in REQUIRED.items():
            for name, kind in fields.items():
                assert isinstance(at(root, path)[name], kind), (path, name)
        for path, values in ALLOWED.items():
            assert at(root, path) in values, path
        assert {"min_score", "max_score"} <= set(root["result"]["metric_config"])  # of continuous scores
        generation = root["result"]["generation_config"]
        assert set(generation["generation_args"]) <= ARGUMENTS
        for details in (generation["additional_details"], record["model_info"]["additional_details"]):
            assert all(isinstance(value, str) for value in details.values())
    assert re.fullmatch(r"\d+", record["retrieved_timestamp"])
    assert "/" in record["model_info"]["id"]


def write_some(folder: Path) -> None:
    task = {"dataset_path": "hazyresearch/based-fda", "test_split": "validation"}
    write_run(folder, "state-spaces/mamba-1.4b", {"jrt_fda": [1.0, 0.0, 1.0, 1.0]}, task=task,
              config__gen_kwargs={"temperature": 0.5, "max_gen_toks": 48, "do_sample": True})  # fmt: skip
    write_run(folder, "./my-ckpt", {"arc": [1.0], "hellaswag": [0.5]}, metric="acc", name=".__my-ckpt")
    write_run(folder, "m", {"wiki": [12.5]}, metric="perplexity", higher_is_better={"wiki": {"perplexity": False}})
    write_run(folder, "n", {"odd": [1.0]}, result={"contains,none": float("nan")})


def test_records_are_as_the_schema_wants_them(tmp_path: Path) -> None:
    write_some(tmp_path / "runs")
    files, _ = export([tmp_path / "runs"], tmp_path / "out", organization="Us", relationship="third_party")
    records = {record["model_info"]["name"]: record for record in (json.loads(file.read_text()) for file in files)}
    assert set(records) == {"state-spaces/mamba-1.4b", "./my-ckpt", "m"}  # a score that is no number is no score
    for record in records.values():
        check(record)
    mamba = records["state-spaces/mamba-1.4b"]
    (result,) = mamba["evaluation_results"]
    assert (mamba["model_info"]["developer"], result["evaluation_name"]) == ("state-spaces", "jrt_fda")
    assert result["score_details"] == {
        "score": 0.75,
        "uncertainty": {"num_samples": 4, "standard_error": {"value": 0.1}},
    }
    assert result["generation_config"]["generation_args"] == {"temperature": 0.5, "max_tokens": 48}
    assert result["source_data"] == {
        "dataset_name": "fda", "source_type": "hf_dataset", "hf_repo": "hazyresearch/based-fda",
        "hf_split": "validation", "samples_number": 4,
    }  # fmt: skip
    assert result["metric_config"]["lower_is_better"] is False
    assert records["./my-ckpt"]["model_info"]["id"] == "unknown/my-ckpt"
    assert {r["evaluation_name"] for r in records["./my-ckpt"]["evaluation_results"]} == {"arc", "hellaswag"}
    perplexity = records["m"]["evaluation_results"][0]["metric_config"]
    assert perplexity["lower_is_better"] is True
    assert (perplexity["min_score"], perplexity["max_score"]) == (None, None)


def test_files_have_the_projects_layout_and_the_same_name_again(tmp_path: Path) -> None:
    write_some(tmp_path / "runs")
    names = [
        sorted(file.relative_to(tmp_path / "out").as_posix() for file in files)
        for files in (export([tmp_path / "runs"], tmp_path / "out", organization="Us")[0] for _ in range(2))
    ]
    assert names[0] == names[1]
    uuid4 = r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"
    assert all(re.fullmatch(rf"data/[^/]+/[^/]+/[^/]+/{uuid4}\.json", name) for name in names[0])
    assert any(name.startswith("data/fda/state-spaces/mamba-1.4b/") for name in names[0])


def test_the_command(tmp_path: Path) -> None:
    write_some(tmp_path / "runs")
    arguments = ["collect", str(tmp_path / "runs"), "--to", "every_eval_ever"]
    refused = CliRunner().invoke(cli, arguments)
    assert isinstance(refused.exception, UserError)
    assert "--organization" in str(refused.exception)
    done = CliRunner().invoke(cli, [*arguments, "-o", str(tmp_path / "out"), "--organization", "Us"])
    assert done.exit_code == 0, done.exception
    assert "3 runs as JSON files" in done.output


@pytest.mark.parametrize(("organization", "relationship"), [("", "other"), ("Us", "friends")])
def test_what_is_asked_for_must_make_sense(organization: str, relationship: str, tmp_path: Path) -> None:
    with pytest.raises(UserError):
        export([tmp_path], tmp_path / "out", organization=organization, relationship=relationship)
