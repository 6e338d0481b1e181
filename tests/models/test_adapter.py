"""The lm-eval adapter: what a document gets does not depend on its neighbours, and lm-eval's contract is kept."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from jrt_eval.model_adapters.jrt import JRTLM
from lm_eval.api.instance import Instance
from tiny_models import byte_tokenizer, mamba_layout, spelled, tiny

from jrt_eval.errors import UserError
from jrt_eval.models import save_pretrained
from jrt_eval.models.stopping import StopStrings

FAMILIES = ["jrt", "based", "based_decay", "attn", "mamba", "mamba2", "llama", "rwkv"]
LENGTHS = [1, 2, 9, 24, 25, 130, 700, 3000]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny checkpoint of any family."""
    root, made = tmp_path_factory.mktemp("checkpoints"), {}

    def get(family: str) -> Path:
        folder = root / family
        if family in made:
            return folder
        if family.startswith("mamba"):
            mamba_layout(folder, 2 if family == "mamba2" else 1)
        elif family == "llama":
            from transformers import LlamaConfig, LlamaForCausalLM

            torch.manual_seed(0)
            shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
            LlamaForCausalLM(LlamaConfig(vocab_size=256, max_position_embeddings=4096, **shape)).save_pretrained(folder)
        elif family == "rwkv":  # recurrent, and cannot mask padding
            from transformers import RwkvConfig, RwkvForCausalLM

            torch.manual_seed(0)
            shape = {"hidden_size": 32, "attention_hidden_size": 32, "num_hidden_layers": 2, "context_length": 4096}
            RwkvForCausalLM(RwkvConfig(vocab_size=256, **shape)).save_pretrained(folder)
        else:
            save_pretrained(tiny(family), folder)
        made[family] = True
        return folder

    return get


def make(folder: Path | str, **kwargs: Any) -> JRTLM:
    return JRTLM(str(folder), **{"tokenizer": byte_tokenizer(251, end=0), "device": "cpu", "max_length": 4096} | kwargs)


def generations(prompts: list[str], **kwargs: Any) -> list[Instance]:
    kwargs = {"until": [], "max_gen_toks": 4} | kwargs
    return [Instance("generate_until", {}, (prompt, kwargs), i) for i, prompt in enumerate(prompts)]


def pairs(texts: list[tuple[str, str]]) -> list[Instance]:
    return [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(texts)]


def text(length: int, seed: int = 0) -> str:
    draw = random.Random(1000 * length + seed)
    return spelled([draw.randrange(1, 251) for _ in range(length)])


@pytest.mark.parametrize("family", FAMILIES)
def test_neighbours_do_not_matter(folders: Callable[[str], Path], family: str) -> None:
    lengths = LENGTHS if family not in ("rwkv",) else LENGTHS[:-2]
    prompts = [text(n) for n in lengths]
    asked = [(prompt, text(3 + i % 3, seed=1)) for i, prompt in enumerate(prompts)]
    order = random.Random(5).sample(range(len(prompts)), len(prompts))
    texts, logps = [], []
    for batch_size in (1, 3, 8):
        lm = make(folders(family), batch_size=batch_size)
        given = order if batch_size == 3 else range(len(prompts))
        got = dict(zip(given, lm.generate_until(generations([prompts[i] for i in given]), True), strict=True))
        texts.append([got[i] for i in range(len(prompts))])
        scored = dict(zip(given, lm.loglikelihood(pairs([asked[i] for i in given]), True), strict=True))
        logps.append([scored[i] for i in range(len(prompts))])
    assert texts[0] == texts[1] == texts[2]
    assert all(len(t) > 0 for t in texts[0])
    for other in logps[1:]:
        assert [x[0] for x in other] == pytest.approx([x[0] for x in logps[0]], abs=1e-4)
        assert [x[1] for x in other] == [x[1] for x in logps[0]]


@pytest.mark.parametrize("family", FAMILIES)
def test_loglikelihood_is_the_sum_of_token_log_probabilities(folders: Callable[[str], Path], family: str) -> None:
    """By hand, from whole-sequence logits; JRT's context is longer than its encoder."""
    lm = make(folders(family), batch_size=2)
    context, continuation = text(40), text(5, seed=2)
    tokens = lm.tok_encode(context + continuation)
    with torch.no_grad():
        logits = lm._model_call(torch.tensor([tokens]))[0].log_softmax(-1)
    expected = sum(logits[39 + i, token].item() for i, token in enumerate(tokens[40:]))
    greedy = all(logits[39 + i].argmax() == token for i, token in enumerate(tokens[40:]))
    ((logp, is_greedy),) = lm.loglikelihood(pairs([(context, continuation)]), True)
    assert logp == pytest.approx(expected, abs=1e-4)
    assert is_greedy == greedy
    # the greedy continuation says that it is greedy
    (answer,) = lm.generate_until(generations([context], max_gen_toks=3), True)
    assert lm.loglikelihood(pairs([(context, answer)]), True)[0][1] is True


@pytest.mark.parametrize("family", FAMILIES)
def test_rolling_and_multiple_choice(folders: Callable[[str], Path], family: str) -> None:
    lm = make(folders(family), batch_size=3, max_length=32)
    document = text(100)
    (total,) = lm.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (document,), 0)], True)
    # lm-eval's windows: each token once, up to 32 tokens of context
    tokens = [lm.prefix_token_id, *lm.tok_encode(document)]
    parts = [(tokens[:1], tokens[1:33])] + [([tokens[i - 1]], tokens[i : i + 32]) for i in (33, 65)]
    first, second, last = (sum(x[0] for x in lm._loglikelihood_tokens([(None, *p)], True)) for p in parts)
    end = [(None, tokens[101 - 33 : 97], tokens[97:])]
    assert total == pytest.approx(first + second + last + lm._loglikelihood_tokens(end, True)[0][0], abs=1e-3)

    context = text(30)
    choices = [text(n, seed=n) for n in (1, 2, 4, 1)]
    together = lm.loglikelihood(pairs([(context, c) for c in choices]), True)
    alone = [lm.loglikelihood(pairs([(context, c)]), True)[0] for c in choices]
    assert [x[0] for x in together] == pytest.approx([x[0] for x in alone], abs=1e-4)


@pytest.mark.parametrize("max_length", [4096, 40])
def test_a_transformers_model_answers_as_in_the_hf_backend(folders: Callable[[str], Path], max_length: int) -> None:
    """What lm-eval's own tests ask of its HF model, asked of both on one checkpoint: texts, log p, rolling, tokens."""
    from lm_eval.models.huggingface import HFLM

    tokenizer = byte_tokenizer(251, end=0)
    hf = HFLM(
        str(folders("llama")), tokenizer=tokenizer, device="cpu", dtype="float32", max_length=max_length, batch_size=3
    )
    ours = make(folders("llama"), tokenizer=tokenizer, max_length=max_length, batch_size=3)
    prompts = [text(n) for n in (1, 12, 35, 60)]
    scored = pairs([(p, text(1 + i, seed=3)) for i, p in enumerate(prompts)] + [("", text(5)), (prompts[1], text(39))])
    rolled = [Instance("loglikelihood_rolling", {}, (text(n),), n) for n in (1, 39, 40, 41, 130)]
    stop = hf.generate_until(generations(prompts[1:2], max_gen_toks=9), True)[0][4]
    for kwargs in ({"max_gen_toks": 9}, {"max_gen_toks": 9, "until": [stop]}):
        asked = generations(prompts, **kwargs)
        assert ours.generate_until(asked, True) == hf.generate_until(asked, True)
    ours_scored, hf_scored = ours.loglikelihood(scored, True), hf.loglikelihood(scored, True)
    assert [x[0] for x in ours_scored] == pytest.approx([x[0] for x in hf_scored], abs=1e-4)
    assert [x[1] for x in ours_scored] == [x[1] for x in hf_scored]
    rolling = ours.loglikelihood_rolling(rolled, True)
    assert rolling == pytest.approx(hf.loglikelihood_rolling(rolled, True), abs=1e-3)
    for string in (text(9), "", text(3) + "<end>"):
        assert ours.tok_encode(string) == hf.tok_encode(string)
        assert ours.tok_decode(ours.tok_encode(string)) == hf.tok_decode(hf.tok_encode(string))
    assert ours.eot_token_id == hf.eot_token_id and ours.prefix_token_id == hf.prefix_token_id


def test_a_shared_context_is_read_once(folders: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    lm = make(folders("jrt"), batch_size=2)
    rows = []
    read = lm.model._read

    def counted(prompts: list[list[int]], short_prompt: str) -> Any:
        rows.append(len(prompts))
        return read(prompts, short_prompt)

    monkeypatch.setattr(lm.model, "_read", counted)
    lm.loglikelihood(pairs([(text(30), text(2, seed=s)) for s in range(6)] + [(text(31), text(2))]), True)
    assert sum(rows) == 2


def test_short_prompts(folders: Callable[[str], Path]) -> None:
    """Each way of filling the encoder (M = 24), against the same model called by hand."""
    folder = folders("jrt")
    prompt, long = text(10), text(30)
    by = {way: make(folder, short_prompt=way) for way in ("left_pad", "read_twice", "iterate")}
    ids = by["iterate"].tok_encode(prompt)
    model: Any = by["iterate"].model
    padded = {"left_pad": [220] * 14 + ids, "read_twice": [220] * 4 + ids + ids, "iterate": ids}
    answers = {}
    for way, tokens in padded.items():
        pads = torch.tensor([len(tokens) - len(ids) * (2 if way == "read_twice" else 1)])
        with torch.no_grad():
            encoded = torch.tensor([0 if way == "iterate" else 24])
            logits = model(torch.tensor([tokens]), encoder_lengths=encoded, pads=pads).logits[0, -1].log_softmax(-1)
        ((logp, _),) = by[way].loglikelihood(pairs([(prompt, spelled([7]))]), True)
        assert logp == pytest.approx(logits[7].item(), abs=1e-4)
        answers[way] = logp
    assert len({round(a, 3) for a in answers.values()}) == 3
    # a context of more than half the encoder: its own end stands in front
    assert model.prepare_prompt(list(range(20)), "read_twice") == ([16, 17, 18, 19, *range(20)], 0, 24)
    # nothing to fill
    same = {way: lm.loglikelihood(pairs([(long, spelled([7]))]), True)[0][0] for way, lm in by.items()}
    assert len(set(same.values())) == 1


def test_only_the_context_is_encoded(folders: Callable[[str], Path]) -> None:
    """What a continuation's first token gets does not depend on the tokens behind it."""
    lm = make(folders("jrt"))
    context = text(6)
    first = lm.loglikelihood(pairs([(context, spelled([9]))]), True)[0][0]
    scored = lm.model.score([lm.tok_encode(context)] * 2, [[9, 3, 5], [9, 4, 8]])
    assert [x[0][0].item() for x in scored] == pytest.approx([first, first], abs=1e-5)


def test_stop_strings(folders: Callable[[str], Path]) -> None:
    lm = make(folders("jrt"), batch_size=4)
    prompts = [text(n) for n in (5, 30, 60)]
    free = lm.generate_until(generations(prompts, max_gen_toks=12), True)
    assert all(len(t) == 12 for t in free)
    until = [free[0][3:5], free[1][7]]  # one spans two tokens
    cut = lm.generate_until(generations(prompts, max_gen_toks=12, until=until), True)
    for whole, short in zip(free, cut, strict=True):
        assert short == min((whole.split(term)[0] for term in until), key=len)
    assert lm.generate_until(generations(prompts[:1], max_gen_toks=12, until=free[0][3:5]), True) == cut[:1]


def test_a_stop_string_that_begins_inside_a_token(shared: Path, tmp_path: Path) -> None:
    """GPT-2 has tokens such as `.\\n\\n`: the stop is text, wherever tokens end."""
    from jrt_eval.models.tokenizers import load_tokenizer

    save_pretrained(tiny("based", vocab_size=50257), tmp_path)
    lm = JRTLM(str(tmp_path), tokenizer=load_tokenizer(shared / "data" / "gpt2"), device="cpu")
    tokens = lm.tok_encode("It is 1991.\n\nNext") + lm.tok_encode("日本")
    stops = ["\n\nN", "本"]
    test = StopStrings(stops, lm.tok_decode, lm._token_texts)
    met = [test([tokens[: i + 1]])[0] for i in range(len(tokens))]
    texts = [lm.tok_decode(tokens[: i + 1]) for i in range(len(tokens))]
    completes = [
        any(text.count(stop) > before.count(stop) for stop in stops)
        for before, text in zip(["", *texts], texts, strict=False)
    ]
    assert sum(completes) == 2
    assert all(m for m, c in zip(met, completes, strict=True) if c)
    assert test([tokens[:2], tokens, []]) == [False, True, False]  # any rows, in any order
    unrelated = lm.tok_encode(" unrelated")[0]
    assert not test.may_end(unrelated)
    assert lm._text(tokens, [], ["\n\nN", "本"]) == "It is 1991."


def test_a_batch_ends_when_every_row_has_stopped(
    folders: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = make(folders("based"), batch_size=4)
    prompts = [text(n) for n in (5, 9)]
    free = lm.generate_until(generations(prompts, max_gen_toks=30), True)
    steps, step = [], lm.model.step
    monkeypatch.setattr(lm.model, "step", lambda *a: steps.append(1) or step(*a))
    lm.generate_until(generations(prompts, max_gen_toks=30, until=[free[0][1], free[1][4]]), True)
    assert len(steps) <= 4


def test_end_of_text(folders: Callable[[str], Path]) -> None:
    """The end token stops a row and is not text; so does a special token named in `until`."""
    free = make(folders("based")).generate_until(generations([text(8)], max_gen_toks=9), True)[0]
    lm = make(folders("based"), tokenizer=byte_tokenizer(251, end=ord(free[4]) - 0x100))
    stopped = lm.generate_until(generations([text(8)], max_gen_toks=9, until=["<end>"]), True)
    assert stopped == [free[: free.index(free[4])]]


def test_generation_arguments(folders: Callable[[str], Path]) -> None:
    lm = make(folders("jrt"), batch_size=2)
    prompts = [text(5), text(7)]
    torch.manual_seed(3)
    first = lm.generate_until(generations(prompts, do_sample=True, temperature=5.0, max_gen_toks=8), True)
    torch.manual_seed(3)
    assert first == lm.generate_until(generations(prompts, do_sample=True, temperature=5.0, max_gen_toks=8), True)
    assert first != lm.generate_until(generations(prompts, do_sample=True, temperature=5.0, max_gen_toks=8), True)
    greedy = lm.generate_until(generations(prompts, max_gen_toks=8), True)
    for narrow in ({"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}):
        assert (
            lm.generate_until(generations(prompts, do_sample=True, temperature=1.0, max_gen_toks=8, **narrow), True)
            == greedy
        )
    assert lm.generate_until(generations(prompts, max_new_tokens=8, max_gen_toks=None, temperature=0.0), True) == greedy
    with pytest.raises(UserError, match="did you mean 'temperature'"):
        lm.generate_until(generations(prompts, temperatur=1), True)
    mixed = generations(prompts[:1], max_gen_toks=8) + generations(prompts[1:], max_gen_toks=3)
    assert lm.generate_until(mixed, True) == [greedy[0], greedy[1][:3]]


def test_context_that_is_too_long_is_cut_at_its_beginning(folders: Callable[[str], Path]) -> None:
    lm = make(folders("based"), max_length=20)
    long = text(50)
    assert lm.generate_until(generations([long]), True) == lm.generate_until(generations([long[-16:]]), True)
    whole, cut = lm.loglikelihood(pairs([(long, "ĂĂĂ"), (long[-18:], "ĂĂĂ")]), True)
    assert whole == pytest.approx(cut)
    with pytest.raises(UserError, match="max_length=20"):
        lm.generate_until(generations([long], max_gen_toks=20), True)


def test_empty_contexts_and_continuations(folders: Callable[[str], Path]) -> None:
    lm = make(folders("jrt"))
    assert len(lm.generate_until(generations([""]), True)) == 1
    ((empty, _),) = lm.loglikelihood(pairs([("", "Ăă")]), True)
    assert empty == pytest.approx(lm.model.score([[0]], [lm.tok_encode("Ăă")])[0][0].sum().item(), abs=1e-5)


def test_a_context_of_spaces(shared: Path, tmp_path: Path) -> None:
    save_pretrained(tiny("jrt", vocab_size=50257), tmp_path)
    lm = JRTLM(str(tmp_path), tokenizer=str(shared / "data" / "gpt2"), device="cpu")
    spaces, empty = lm.loglikelihood(pairs([(" ", "A town"), ("", " A town")]), True)
    assert spaces == pytest.approx(empty)


def test_prompts_are_tokenized_together_as_each_by_itself(folders: Callable[[str], Path]) -> None:
    tokenizer = byte_tokenizer(251, end=0)
    tokenizer.bos_token = tokenizer.eos_token
    lm = make(folders("based"), tokenizer=tokenizer)
    contexts = [text(9), tokenizer.bos_token + text(3), "", text(40)]
    for lm.add_bos_token in (None, True, False):
        assert lm._prompts(contexts) == [lm.tok_encode(c) or [lm.prefix_token_id] for c in contexts]


def test_arguments_as_text(folders: Callable[[str], Path]) -> None:
    given = f"pretrained={folders('jrt')},max_length=512,dtype=bfloat16,short_prompt=iterate,add_bos_token=False"
    lm = JRTLM.create_from_arg_string(given, {"batch_size": "auto:4", "max_batch_size": None, "device": "cpu"}
                                      | {"tokenizer": byte_tokenizer()})  # fmt: skip
    assert (lm.max_length, lm.model.dtype, lm.short_prompt, lm.batch_size) == (512, torch.bfloat16, "iterate", "auto")
    lm = JRTLM(
        checkpoint_name=str(folders("based")), tokenizer=byte_tokenizer(), device="cpu", batch_size="7", max_length="99"
    )
    assert (lm.batch_size, lm.max_length) == (7, 99)


def test_arguments_given_twice(folders: Callable[[str], Path], caplog: pytest.LogCaptureFixture) -> None:
    """Once in --model_args and once as lm-eval's own option."""
    given = {"pretrained": str(folders("jrt")), "tokenizer": byte_tokenizer(), "device": "cpu", "batch_size": "3"}
    lm = JRTLM.create_from_arg_obj(given, {"batch_size": 1, "max_batch_size": None, "device": "cuda:0"})
    assert (lm.device, lm.batch_size) == (torch.device("cpu"), 3)
    assert caplog.messages == ["device=cpu of --model_args is used, not --device cuda:0"]
    text = f"pretrained={folders('jrt')},device=cpu"
    lm = JRTLM.create_from_arg_string(text, {"device": "cpu", "batch_size": 2, "tokenizer": byte_tokenizer()})
    assert (lm.device, lm.batch_size) == (torch.device("cpu"), 2)
    assert len(caplog.messages) == 1


@pytest.mark.parametrize(
    ("argument", "says"),
    [
        ({"short_prompt": "leftpad"}, "did you mean 'left_pad'"),
        ({"backend": "cdua"}, "did you mean 'cuda'"),
        ({"pretraned": "x"}, "did you mean 'pretrained'"),
        ({"batch_size": "many"}, "batch_size=many"),
        ({"max_length": 0}, "max_length=0"),
        ({"dtype": "float8"}, "dtype 'float8'"),
        ({"trust_remote_code": "perhaps"}, "trust_remote_code=perhaps"),
        ({"device": "gpu"}, "device=gpu"),
    ],
)
def test_bad_arguments(folders: Callable[[str], Path], argument: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        make(folders("based"), **argument)


def test_automatic_batch_size(folders: Callable[[str], Path]) -> None:
    prompts = [text(n) for n in (5, 900, 30)]
    auto, one = make(folders("jrt"), batch_size="auto"), make(folders("jrt"))
    assert auto.generate_until(generations(prompts), True) == one.generate_until(generations(prompts), True)
    assert auto.batch_sizes == {904: 9}  # 8,192 tokens at once off the GPU


def test_chat_template_is_refused(folders: Callable[[str], Path]) -> None:
    lm = make(folders("jrt"))
    for call in (lambda: lm.apply_chat_template([{"role": "user", "content": "x"}]), lambda: lm.chat_template(True)):
        with pytest.raises(UserError, match="drop --apply_chat_template"):
            call()


def test_mixed_precision(folders: Callable[[str], Path]) -> None:
    exact, mixed = make(folders("jrt")), make(folders("jrt"), mixed_precision_dtype="bfloat16")
    assert mixed.model.dtype == torch.float32
    a, b = (lm.loglikelihood(pairs([(text(30), text(4))]), True)[0][0] for lm in (exact, mixed))
    assert a != b
    assert a == pytest.approx(b, abs=0.5)


def test_what_the_results_file_says(folders: Callable[[str], Path]) -> None:
    info = make(folders("jrt"), revision=7).get_model_info()
    assert info["model_family"] == "jrt"
    assert info["model_num_parameters"] == tiny("jrt").num_parameters()
    assert info["model_state_bytes"] == tiny("jrt").state_size(4096)
    assert (info["model_dtype"], info["model_revision"], info["model_encoder_length"]) == ("float32", "7", 24)


def test_cached_requests(folders: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """lm-eval's --use_cache: the second run asks the model nothing."""
    from lm_eval.api.model import CachingLM

    lm = make(folders("based"), batch_size=2)
    asked = generations([text(5), text(9)]), pairs([(text(8), text(2))])
    cached = CachingLM(lm, str(tmp_path / "cache.db"))
    first = cached.generate_until(asked[0]), cached.loglikelihood(asked[1])
    monkeypatch.setattr(lm, "generate_until", None)
    monkeypatch.setattr(lm, "loglikelihood", None)
    again = CachingLM(lm, str(tmp_path / "cache.db"))
    assert again.generate_until(asked[0]) == first[0]
    assert [tuple(x) for x in again.loglikelihood(asked[1])] == first[1]
