"""The training loop. What a step does is a pure function of the configuration and its number, so a resumed run repeats
what an unbroken one would have done: batches, masks and learning rates all come from (seed, step)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from queue import Queue
from threading import Thread
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from jrt_eval.data.rows import Rows, open_rows, tokenizer_folder
from jrt_eval.errors import UserError
from jrt_eval.training import checkpoint
from jrt_eval.training.batches import IGNORE, Batch, Layout, Plan, collate
from jrt_eval.training.config import Config, Data, encoder_length
from jrt_eval.training.metrics import Board, Metrics
from jrt_eval.training.objective import Sums, Trainable, build_model
from jrt_eval.training.optimizer import learning_rate, make_optimizer

COLUMNS = ("step", "loss", "ntp", "mlm", "lr", "grad_norm", "tokens", "tokens_per_second", "seconds")
VALIDATION_COLUMNS = ("step", "loss", "answer_tokens", "answers")
# What a resumed run may change.
_FREE = {"save_every", "keep", "log_every", "tensorboard", "cache", "export_dtype", "compile", "output"}
_FREE |= {"validate_every", "validation_batches", "validation", "micro_batch", "init_from", "backend", "precision"}


def layout_of(config: Config) -> Layout:
    objective = config.objective
    if objective.kind == "ntp":
        return Layout(context_weight=objective.context_weight, per_row=objective.per_row)
    return Layout(
        encoder=encoder_length(config.model),
        boundary=objective.boundary,
        tail=objective.tail,
        context_weight=objective.context_weight,
        per_row=objective.per_row,
        mask_probability=objective.mask_probability,
        mask_token=objective.mask_token_id,
    )


def train(config: Config, *, progress: bool = True) -> Path:
    """Train as `config` says, resuming from the newest checkpoint under `config.output`; returns the last one's folder."""
    from accelerate import Accelerator

    config.check()
    accelerator = Accelerator(mixed_precision="no")  # autocast is ours: accelerate fixes its own once per process
    torch.set_float32_matmul_precision("high")
    device = accelerator.device
    world, rank = accelerator.num_processes, accelerator.process_index
    micro = config.micro_batch or config.batch_size // world
    if config.batch_size % (micro * world):
        raise UserError(f"batch_size {config.batch_size} does not split over {world} processes in pieces of {micro}")
    output = Path(config.output)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to output {output}: {error.strerror}") from None

    rows = open_rows(config.data, config.tokenizer, Path(config.cache))
    layout = layout_of(config)
    opening = round(config.curriculum * config.steps)
    plan = Plan(rows, config.data.lengths, config.batch_size, layout, config.seed, opening)
    model = build_model(config.model, config.backend, config.seed)
    if config.init_from is not None:
        checkpoint.load_weights(Path(config.init_from), model, start=True)
    _check_vocabulary(rows, model)
    trainable = Trainable(model, encoder=layout.encoder is not None).to(device)
    optimizer = make_optimizer(trainable, config.optimizer, device)

    root = output / "checkpoints"
    root.mkdir(exist_ok=True)
    start = 0
    found = checkpoint.existing(root)
    if found:
        state = checkpoint.load_training(found[-1], model, optimizer)
        _same_run(state["config"], _identity(config), found[-1])
        start = int(state["step"])
    wrapped, optimizer = accelerator.prepare(trainable, optimizer)
    # Compiled in place: nn.Module.compile keeps the module, so state_dict keys stay as they are.
    if config.compile:
        wrapped.compile(dynamic=False)
    if config.validation is not None:
        validation_rows = open_rows(config.validation, config.tokenizer, Path(config.cache))

    def batch_of(step: int) -> Batch:
        length, indices = plan.batch(step - 1)
        return collate(rows, indices, length, layout, (config.seed, step))

    def mine(batch: Batch) -> list[dict[str, Tensor]]:
        pieces = np.arange(config.batch_size).reshape(-1, world, micro)[:, rank]
        return [_tensors(batch, piece, device) for piece in pieces]

    tokenizer = tokenizer_folder(config.tokenizer)
    tokens_seen, clock, last_logged = 0, time.perf_counter(), start
    pending: tuple[int, Tensor] | None = None  # a loss is looked at one step late, so that the device never waits
    with Board(output / "tensorboard", config.tensorboard and accelerator.is_main_process) as board:
        if accelerator.is_main_process:
            metrics = Metrics(output / "metrics.csv", COLUMNS, start, board, "train/")
            validations = Metrics(output / "validation.csv", VALIDATION_COLUMNS, start, board, "validation/")
        bar = _bar(config.steps, start, progress and accelerator.is_main_process)
        began = time.perf_counter()
        for step, batch in zip(
            range(start + 1, config.steps + 1), _ahead(batch_of, start + 1, config.steps), strict=True
        ):
            rate = learning_rate(config.optimizer, step, config.steps)
            for group in optimizer.param_groups:
                group["lr"] = rate
            # Normalised over the whole step, so accumulation and several processes change nothing.
            weight, masks = max(float(batch.weights.sum()), 1e-8), max(int((batch.masked != IGNORE).sum()), 1)
            ntp, mlm = torch.zeros((), device=device), torch.zeros((), device=device)
            pieces = mine(batch)
            for number, piece in enumerate(pieces):
                sync = number == len(pieces) - 1
                with _maybe_no_sync(accelerator, wrapped, sync), _autocast(config, device):
                    sums: Sums = wrapped(**piece)
                    part_ntp, part_mlm = sums.ntp / weight, sums.mlm / masks
                    loss = part_ntp + config.objective.mlm_weight * part_mlm
                    accelerator.backward(loss * world)  # DistributedDataParallel averages, these are parts of a sum
                ntp, mlm = ntp + part_ntp.detach(), mlm + part_mlm.detach()
            norm = accelerator.clip_grad_norm_(trainable.parameters(), config.optimizer.clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if world > 1:
                ntp, mlm = accelerator.reduce(ntp), accelerator.reduce(mlm)
            total = ntp + config.objective.mlm_weight * mlm
            _finite(pending, root)
            pending = (step, total)
            tokens_seen += batch.tokens

            if step % config.log_every == 0 or step == config.steps:
                _finite(pending, root)
                now = time.perf_counter()
                speed = tokens_seen / (now - clock)
                if accelerator.is_main_process:
                    metrics.add(
                        step=step,
                        loss=float(total),
                        ntp=float(ntp),
                        mlm=float(mlm),
                        lr=rate,
                        grad_norm=float(norm),
                        tokens=tokens_seen,
                        tokens_per_second=speed,
                        seconds=now - began,
                    )
                bar.set_postfix_str(f"loss {float(total):.4f}, {speed:,.0f} tokens/s")
                bar.update(step - last_logged)
                last_logged, tokens_seen, clock = step, 0, now
            if config.validation is not None and (step % config.validate_every == 0 or step == config.steps):
                values = validate(config, config.validation, validation_rows, layout, wrapped, accelerator)
                if accelerator.is_main_process:
                    validations.add(step=step, **values)
                clock = time.perf_counter()
            if step % config.save_every == 0 or step == config.steps:
                _finite(pending, root)
                if accelerator.is_main_process:
                    checkpoint.save(
                        root,
                        step,
                        model,
                        optimizer,
                        config.model,
                        tokenizer,
                        {"config": _identity(config), **plan.position(step)},
                        config.keep,
                    )
                accelerator.wait_for_everyone()
                clock = time.perf_counter()
        bar.close()
    if accelerator.is_main_process and config.export_dtype is not None:
        checkpoint.write_model(output / "model", model, config.model, tokenizer, getattr(torch, config.export_dtype))
    return checkpoint.existing(root)[-1]


@torch.no_grad()
def validate(
    config: Config, data: Data, rows: Rows, layout: Layout, model: nn.Module, accelerator: Any
) -> dict[str, float]:
    """Loss over the first batches, the share of answer tokens, and of rows whose answers are all right (teacher-forced)."""
    size = min(config.micro_batch or config.batch_size, len(rows))
    plan = Plan(rows, data.lengths, size, layout, seed=0)
    ntp = weight = right_tokens = right_rows = tokens = count = 0.0
    model.eval()
    for number in range(min(config.validation_batches, plan.per_epoch)):
        length, indices = plan.batch(number)
        batch = collate(rows, indices, length, layout, None)
        with _autocast(config, accelerator.device):
            sums: Sums = model(
                **_tensors(batch, np.arange(size), accelerator.device),
                answers=torch.from_numpy(batch.answers).to(accelerator.device),
            )
        assert sums.right_tokens is not None
        assert sums.right_rows is not None
        ntp, weight = ntp + float(sums.ntp), weight + float(batch.weights.sum())
        right_tokens, right_rows = right_tokens + float(sums.right_tokens), right_rows + float(sums.right_rows)
        tokens, count = tokens + float(batch.answers.sum()), count + float(batch.answers.any(1).sum())
    model.train()
    return {
        "loss": ntp / max(weight, 1e-8),
        "answer_tokens": right_tokens / max(tokens, 1),
        "answers": right_rows / max(count, 1),
    }


def _tensors(batch: Batch, rows: Any, device: torch.device) -> dict[str, Tensor]:
    arrays: dict[str, Any] = {
        "inputs": batch.inputs,
        "labels": batch.labels,
        "weights": batch.weights,
        "masked": batch.masked,
        "left_pads": batch.left_pads,
        "encoder_lengths": batch.encoder_lengths,
    }
    return {name: torch.from_numpy(array[rows]).to(device, non_blocking=True) for name, array in arrays.items()}


def _ahead(make: Callable[[int], Batch], first: int, last: int, depth: int = 3) -> Iterator[Batch]:
    """make(first) ... make(last), computed by a thread a few batches ahead."""
    queue: Queue[Batch | BaseException] = Queue(depth)

    def work() -> None:
        try:
            for step in range(first, last + 1):
                queue.put(make(step))
        except BaseException as error:  # noqa: BLE001 - handed to the consumer
            queue.put(error)

    Thread(target=work, daemon=True).start()
    for _ in range(first, last + 1):
        item = queue.get()
        if isinstance(item, BaseException):
            raise item
        yield item


def _maybe_no_sync(accelerator: Any, model: nn.Module, sync: bool) -> Any:
    from contextlib import nullcontext

    return nullcontext() if sync else accelerator.no_sync(model)


def _autocast(config: Config, device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16")


def _finite(pending: tuple[int, Tensor] | None, root: Path) -> None:
    if pending is not None and not math.isfinite(value := float(pending[1])):
        good = checkpoint.existing(root)
        where = f"the last good checkpoint is {good[-1]}" if good else "no checkpoint was written yet"
        raise UserError(
            f"the loss is {value} at step {pending[0]}; {where}. A lower optimizer.lr or longer warmup may help"
        )


def _check_vocabulary(rows: Rows, model: nn.Module) -> None:
    embedding = next(m for m in model.modules() if isinstance(m, nn.Embedding))
    largest = int(rows.tokens[: 10**7].max())
    if largest >= embedding.num_embeddings:
        raise UserError(
            f"the data holds token {largest}, the model has {embedding.num_embeddings} rows (vocab_size): "
            "take the tokenizer that the model is made for"
        )


def _identity(config: Config) -> dict[str, Any]:
    return {key: value for key, value in asdict(config).items() if key not in _FREE}


def _same_run(found: dict[str, Any], wanted: dict[str, Any], folder: Path) -> None:
    changed = [key for key in wanted if found.get(key) != wanted[key]]
    if changed:
        raise UserError(
            f"{folder} was written by a run with another {', '.join(changed)}; "
            "choose another output, or start from its weights with init_from"
        )


def _bar(steps: int, start: int, shown: bool) -> Any:
    from tqdm import tqdm

    return tqdm(total=steps, initial=start, unit="step", disable=not shown, dynamic_ncols=True)
