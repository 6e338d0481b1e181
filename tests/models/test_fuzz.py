"""Any change to a checkpoint's files ends in a model or a tokenizer that works, or in one line."""

from __future__ import annotations

import base64
import copy
import json
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from tiny_models import byte_tokenizer, tiny

from jrt_eval.errors import UserError
from jrt_eval.models import load_model, save_pretrained
from jrt_eval.models.tokenizers import load_tokenizer
from jrt_eval.prompts.tokenization import Tokenizer

TEXT = "Ĩello, e\u0301 ﬁ 日本語  x"
ODD = st.sampled_from(
    [None, True, -1, 0, 1, 3, 2**31, 2**63, 10**30, 1e300, -0.5, float("nan"), float("inf"), "", "abc", "x" * 300, "\x00", "\ud800", "../..",
     [], {}, [[]], [None], {"type": "Digits"}, {"_target_": "os.system"}]
)  # fmt: skip
FUZZ = settings(deadline=None, database=None, suppress_health_check=list(HealthCheck))


def one_line(error: UserError) -> None:
    assert "\n" not in str(error) and len(str(error)) < 1500


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    inner = [place for key, element in list(items)[:12] for place in places(element, (*path, key))]
    return [path, *inner] if path else inner


def change_value(data: st.DataObject, raw: Any) -> str:
    """The JSON text of `raw` with one to three values replaced or keys removed."""
    raw = copy.deepcopy(raw)
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from(places(raw)))
        target = raw
        for key in path[:-1]:
            target = target[key]
        if data.draw(st.integers(0, 3)) or not isinstance(target, dict):
            target[path[-1]] = copy.deepcopy(data.draw(ODD))
        else:
            del target[path[-1]]
        if not places(raw):
            break
    return json.dumps(raw)


def change_bytes(data: st.DataObject, raw: bytes) -> bytes:
    content = bytearray(raw)
    for _ in range(data.draw(st.integers(1, 4))):
        at = int(data.draw(st.floats(0, 1)) * min(len(content), data.draw(st.sampled_from([10**9, 5000, 200]))))
        content[at : at + data.draw(st.sampled_from([0, 1, 8, 10**6]))] = data.draw(
            st.binary(max_size=8) | st.sampled_from([b"\xff" * 8, b"\0" * 8, b"9" * 20, b'"', b"{", b"]"])
        )
    return bytes(content)


def try_model(folder: Path) -> None:
    try:
        model: Any = load_model(folder, device="cpu", backend="torch")
        with torch.no_grad():
            logits = model(torch.arange(8)[None]).logits
    except UserError as error:
        one_line(error)
    else:
        assert logits.shape[:2] == (1, 8)


@pytest.fixture(scope="module", params=["jrt", "based"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz") / request.param
    save_pretrained(tiny(request.param), folder, safetensors=request.param == "based")
    return folder


@seed(0)
@settings(FUZZ, max_examples=60)
@given(data=st.data())
def test_config_json(checkpoint: Path, data: st.DataObject) -> None:
    file = checkpoint / "config.json"
    whole = file.read_bytes()
    try:
        if data.draw(st.integers(0, 3)):
            file.write_text(change_value(data, json.loads(whole)))
        else:
            file.write_bytes(change_bytes(data, whole))
        try_model(checkpoint)
    finally:
        file.write_bytes(whole)


@seed(0)
@settings(FUZZ, max_examples=60)
@given(data=st.data())
def test_weight_files(checkpoint: Path, data: st.DataObject) -> None:
    (file,) = [path for path in checkpoint.iterdir() if path.suffix in (".bin", ".safetensors")]
    whole = file.read_bytes()
    try:
        if file.suffix == ".bin" and data.draw(st.booleans()):
            with zipfile.ZipFile(file) as archive:
                parts = {name: archive.read(name) for name in archive.namelist()}
            with zipfile.ZipFile(file, "w") as archive:  # the checksums of the changed parts are right
                for name, part in parts.items():
                    archive.writestr(name, change_bytes(data, part) if name.endswith("data.pkl") else part)
        else:
            file.write_bytes(change_bytes(data, whole))
        try_model(checkpoint)
    finally:
        file.write_bytes(whole)


def try_tokenizer(folder: Path) -> None:
    try:
        tokenizer = Tokenizer("mine", load_tokenizer(folder))
        (ids,) = tokenizer.encode([TEXT])
    except UserError as error:
        one_line(error)
    else:
        assert all(isinstance(i, int) for i in ids)


@seed(0)
@settings(FUZZ, max_examples=60)
@given(data=st.data())
def test_tokenizer_files(tmp_path: Path, data: st.DataObject) -> None:
    folder = tmp_path / "tokenizer"
    byte_tokenizer(251, end=0).save_pretrained(folder)
    file = folder / data.draw(st.sampled_from(["tokenizer.json", "tokenizer_config.json"]))
    if data.draw(st.integers(0, 3)):
        file.write_text(change_value(data, json.loads(file.read_bytes())))
    else:
        file.write_bytes(change_bytes(data, file.read_bytes()))
    try_tokenizer(folder)


def charsmap(*units: int) -> str:
    return base64.b64encode(struct.pack(f"<{len(units) + 1}I", 4 * len(units), *units) + b"abc\0").decode()


@pytest.mark.parametrize(
    "part",
    [
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "!"}},  # panics when it is read
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": charsmap(2**30, 7)}},
        {"normalizer": {"type": "Replace", "pattern": {"String": ""}, "content": "xy"}},
        {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
        {"truncation": {"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 5}},
    ],
)
def test_a_tokenizer_that_panics(tmp_path: Path, part: dict[str, Any]) -> None:
    """A panic in Rust is no Exception: it would go past every `except Exception`, lm-eval's too."""
    byte_tokenizer(251, end=0).save_pretrained(tmp_path)
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | part))
    if "truncation" in part:  # the prompts' tokenizer turns it off
        try_tokenizer(tmp_path)
        return
    with pytest.raises(UserError, match=r"cannot load the tokenizer of|fails on a text") as raised:
        Tokenizer("mine", load_tokenizer(tmp_path)).encode([TEXT])
    one_line(raised.value)
