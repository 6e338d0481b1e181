"""The JRT objective, computed by hand, and how rows become batches."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from jrt_eval.data.rows import IGNORED_LABEL, TokenRows
from jrt_eval.models.recurrent.model import PAD_TOKEN
from jrt_eval.training.batches import Layout, Plan, collate
from jrt_eval.training.objective import Trainable


class _Table(nn.Module):
    """Logits that depend on the position alone: p(token) at position i is table[i]."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = nn.Parameter(table.log())

    def hidden(self, inputs: Tensor, **_: Tensor) -> tuple[Tensor, None]:
        return self.table.expand(len(inputs), -1, -1), None

    def logits(self, x: Tensor) -> Tensor:
        return x


def _rows(*rows: tuple[list[int], list[int], int]) -> TokenRows:
    tokens = np.concatenate([np.asarray(t, dtype=np.uint16) for t, _, _ in rows])
    flags = np.concatenate([np.asarray(f, dtype=np.uint8) for _, f, _ in rows])
    offsets = np.cumsum([0, *(len(t) for t, _, _ in rows)])
    return TokenRows(tokens, flags, offsets, np.asarray([p for _, _, p in rows]))


def test_the_jrt_loss_by_hand() -> None:
    """M = 3, L = 5, five tokens. Position 1 is masked; NTP counts positions 3 and 4."""
    table = torch.tensor(
        [
            [0.2, 0.2, 0.2, 0.2, 0.2],
            [0.1, 0.2, 0.5, 0.1, 0.1],
            [0.2, 0.2, 0.2, 0.2, 0.2],
            [0.05, 0.05, 0.1, 0.4, 0.4],
            [0.7, 0.1, 0.1, 0.05, 0.05],
        ]
    )
    row = [1, 2, 3, 0, 4, 0]  # L + 1 tokens: position 3 is followed by 4, position 4 by 0
    rows = _rows((row, [0] * 6, 0))
    layout = Layout(encoder=3, mask_probability=0.0, mask_token=9)
    batch = collate(rows, np.asarray([0]), 5, layout, seed=None)
    assert batch.labels.tolist() == [[IGNORED_LABEL, IGNORED_LABEL, IGNORED_LABEL, 4, 0]]
    masked = torch.full((1, 5), IGNORED_LABEL)
    masked[0, 1] = row[1]
    sums = Trainable(_Table(table), encoder=True)(
        inputs=torch.from_numpy(batch.inputs),
        labels=torch.from_numpy(batch.labels),
        weights=torch.from_numpy(batch.weights),
        masked=masked,
        left_pads=torch.from_numpy(batch.left_pads),
        encoder_lengths=torch.from_numpy(batch.encoder_lengths),
    )
    ntp = -(math.log(0.4) + math.log(0.7)) / 2
    mlm = -math.log(0.5)
    loss = sums.ntp / batch.weights.sum() + 0.25 * sums.mlm / 1
    assert float(loss.detach()) == pytest.approx(ntp + 0.25 * mlm, rel=1e-6)


def test_masks_hide_tokens_of_the_encoder_alone() -> None:
    rows = _rows(([5] * 2001, [0] * 2001, 0))
    layout = Layout(encoder=1000, mask_probability=0.15, mask_token=7)
    batch = collate(rows, np.asarray([0]), 2000, layout, seed=(3, 1))
    hidden = batch.masked[0] != IGNORED_LABEL
    assert 0.11 < hidden[:1000].mean() < 0.19
    assert not hidden[1000:].any()
    assert (batch.inputs[0][hidden] == 7).all()
    assert (batch.masked[0][hidden] == 5).all()
    assert (batch.inputs[0][~hidden] == 5).all()
    again = collate(rows, np.asarray([0]), 2000, layout, seed=(3, 1))
    other = collate(rows, np.asarray([0]), 2000, layout, seed=(3, 2))
    assert (again.inputs == batch.inputs).all()
    assert (other.inputs != batch.inputs).any()


def test_a_short_prompt_ends_where_the_encoder_ends() -> None:
    rows = _rows(([1, 2, 3, 4, 5], [0, 0, 0, 1, 1], 3))
    batch = collate(rows, np.asarray([0]), 8, Layout(encoder=5, boundary=True, context_weight=0.1), None)
    assert batch.inputs.tolist() == [[PAD_TOKEN, PAD_TOKEN, 1, 2, 3, 4, 0, 0]]
    assert batch.left_pads.tolist() == [2]
    assert batch.labels.tolist() == [
        [IGNORED_LABEL] * 4 + [4, 5] + [IGNORED_LABEL] * 2
    ]  # position M-1 predicts the answer's first token
    strict = collate(rows, np.asarray([0]), 8, Layout(encoder=5), None)
    assert strict.labels.tolist() == [[IGNORED_LABEL] * 5 + [5] + [IGNORED_LABEL] * 2]
    causal = collate(rows, np.asarray([0]), 8, Layout(context_weight=0.1), None)
    assert causal.inputs[0, :4].tolist() == [1, 2, 3, 4]
    assert causal.weights[0, :5].tolist() == pytest.approx([0.1, 0.1, 1, 1, 0])


def test_the_plan_visits_every_row_once_an_epoch() -> None:
    rows = _rows(*([([1] * n, [0] * n, 0) for n in [5] * 12 + [9] * 8 + [40]]))
    plan = Plan(rows, [4, 8], batch_size=4, layout=Layout(), seed=1)
    assert plan.per_epoch == 5
    for epoch in range(2):
        batches = [plan.batch(epoch * 5 + i) for i in range(5)]
        assert sorted(int(i) for _, part in batches for i in part) == list(range(20))  # the longest row fits nowhere
        assert all({len(rows.row(int(i))[0]) - 1 for i in part} == {length} for length, part in batches)
    first = [plan.batch(i)[1].tolist() for i in range(10)]
    assert first[:5] != first[5:]
    assert [plan.batch(i)[1].tolist() for i in range(10)] == first


def test_short_rows_come_first() -> None:
    rows = _rows(*([([1] * n, [0] * n, 0) for n in [5] * 16 + [9] * 16 + [17] * 16]))
    plan = Plan(rows, [4, 8, 16], batch_size=4, layout=Layout(), seed=1, opening=60)
    lengths = [plan.batch(i)[0] for i in range(60)]
    assert set(lengths[:20]) == {4}
    assert set(lengths[20:40]) == {4, 8}
    assert set(lengths[40:]) == {4, 8, 16}
    seen = [int(i) for number in range(60, 72) for i in plan.batch(number)[1]]
    assert sorted(seen) == list(range(48))  # then come whole epochs
    again = Plan(rows, [4, 8, 16], batch_size=4, layout=Layout(), seed=1, opening=60)
    assert all((again.batch(i)[1] == plan.batch(i)[1]).all() for i in (3, 59, 70))


def test_a_short_batch_has_a_short_encoder() -> None:
    rows = _rows(
        ([1, 2, 3, 4, 5], [0, 0, 0, 1, 1], 3), ([1] * 9 + [2], [0] * 9 + [1], 9), ([1] * 18, [0] * 17 + [1], 17)
    )
    layout = Layout(encoder=12, boundary=True, tail=3, context_weight=0.0)
    plan = Plan(rows, [8, 16, 20], batch_size=1, layout=layout, seed=0)
    assert plan.buckets.tolist() == [0, 1, 2]  # the last prompt is longer than M: its question is not encoded
    short = collate(rows, np.asarray([0]), 8, layout, seed=None)
    assert short.encoder_lengths.tolist() == [5]
    assert short.left_pads.tolist() == [2]
    assert short.labels[0, 4:6].tolist() == [4, 5]
    assert collate(rows, np.asarray([1]), 16, layout, seed=None).encoder_lengths.tolist() == [12]


def test_rows_may_weigh_the_same() -> None:
    rows = _rows(([1, 2, 3, 4, 5], [0, 0, 1, 1, 1], 2), ([1, 2, 3, 4, 5], [0, 0, 0, 0, 1], 4))
    batch = collate(rows, np.asarray([0, 1]), 4, Layout(context_weight=0.0, per_row=True), seed=None)
    assert batch.weights.sum(1).tolist() == pytest.approx([1, 1])
    assert batch.weights[0].tolist() == pytest.approx([0, 1 / 3, 1 / 3, 1 / 3])


def test_text_is_cut_into_windows(tmp_path: Path) -> None:
    import json

    from jrt_eval.data.cache import open_rows
    from jrt_eval.data.config import Data
    from jrt_eval.data.text import load_tokenizer

    texts = ["Annual report of Varel Group.", "Its founder is Ada Holm.", "Price: 40 euros."] * 8
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts[:12]))
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": texts[12:]}), tmp_path / "b.parquet")
    rows = open_rows(Data(lengths=[16], files=[str(tmp_path / "*.*")]), "mini", tmp_path / "cache")
    tokenizer = load_tokenizer("mini")
    stream = [i for t in texts for i in [*tokenizer(t)["input_ids"], tokenizer.eos_token_id]]
    assert len(rows) == len(stream) // 17
    assert rows.tokens.tolist() == stream[: 17 * len(rows)]
    assert rows.tokens.dtype == np.uint16
    again = open_rows(Data(lengths=[16], files=[str(tmp_path / "*.*")]), "mini", tmp_path / "cache")
    assert isinstance(again.tokens, np.memmap)


def test_records_with_completions(tmp_path: Path) -> None:
    import json

    from jrt_eval.data.cache import open_rows
    from jrt_eval.data.config import Data
    from jrt_eval.data.text import load_tokenizer

    records = [{"prompt": "Colour:", "completion": " blue\n"}, {"prompt": "x " * 50, "completion": " y\n"}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    rows = open_rows(Data(lengths=[20], files=[str(tmp_path / "a.jsonl")]), "mini", tmp_path / "cache")
    assert len(rows) == 1  # the second has no room for its answer
    tokens, flags, prompt = rows.row(0)
    assert load_tokenizer("mini").decode(tokens.tolist()) == "Colour: blue\n"
    assert flags.tolist() == [0] * prompt + [1] * (len(tokens) - prompt)
    bad = tmp_path / "bad.jsonl"
    for line, says in [("{}", "no text field 'text'"), ("nonsense", "not JSON"), ("[1]", "expected an object")]:
        bad.write_text(line + "\n")
        from jrt_eval.errors import UserError

        with pytest.raises(UserError, match=says):
            open_rows(Data(lengths=[20], files=[str(bad)]), "mini", tmp_path / "cache")
