"""The training loop.

A step is a pure function of the configuration and its number: batches, masks and learning rates come from (seed, step).
So a resumed run repeats the losses of an uninterrupted one.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from jrt_eval.data.cache import open_rows
from jrt_eval.data.rows import IGNORED_LABEL, TokenRows
from jrt_eval.errors import UserError
from jrt_eval.files import lock, reason, remove_unfinished
from jrt_eval.models.tokenizers import tokenizer_folder
from jrt_eval.training import checkpoint
from jrt_eval.training.batches import Batch, Layout, Plan, collate
from jrt_eval.training.config import Config, encoder_length
from jrt_eval.training.metrics import MetricsFile, progress_bar, tensorboard_writer
from jrt_eval.training.objective import LossSums, Trainable, build_model
from jrt_eval.training.optimizer import learning_rate, make_optimizer
from jrt_eval.training.stopping import StopRequest
from jrt_eval.training.validation import tensors, validate

log = logging.getLogger(__name__)

COLUMNS = ("step", "loss", "ntp", "mlm", "lr", "grad_norm", "tokens", "tokens_per_second", "seconds")
VALIDATION_COLUMNS = ("step", "loss", "answer_tokens", "answers")
# The keys that may differ when a run is resumed.
_MAY_CHANGE = {
    *("output", "cache", "save_every", "keep", "log_every", "tensorboard", "export_dtype", "compile", "init_from"),
    *("validate_every", "validation_batches", "validation", "micro_batch", "backend", "precision"),
}


def train(config: Config, *, progress: bool = True) -> Path:
    """Train as `config` says, resuming from the newest intact checkpoint. Returns the folder of the last checkpoint.

    On SIGTERM or Ctrl-C a run with one process finishes its step, writes a checkpoint and raises `SystemExit`. Raises
    `UserError` if another process trains in the same output folder, or if loss or weights are no longer finite.
    """
    from accelerate import Accelerator

    config.check()
    accelerator = Accelerator(mixed_precision="no")  # the run enters autocast itself
    torch.set_float32_matmul_precision("high")
    output = Path(config.output)
    with ExitStack() as stack:
        if accelerator.is_main_process:
            stack.enter_context(_only_run(output))
        run = TrainingRun(config, accelerator, output)
        stop = stack.enter_context(StopRequest(enabled=accelerator.num_processes == 1))
        records = stack.enter_context(RunRecords(run, progress))
        for step, batch in _ahead(run.batch, range(run.start + 1, config.steps + 1)):
            result = run.train_step(step, batch)
            records.add(step, result)
            last = step == config.steps
            if run.validation_rows is not None and (step % config.validate_every == 0 or last):
                records.add_validation(step, run.validate())
            if step % config.save_every == 0 or last or stop.signal is not None:
                run.check_finite(step, result.loss)
                run.save(step)
                records.restart_clock()
            if stop.signal is not None and not last:
                log.warning(
                    "%s: stopped after step %d of %d; the same command resumes there",
                    stop.signal.name,
                    step,
                    config.steps,
                )
                raise SystemExit(128 + stop.signal)
        run.export()
    return checkpoint.existing(run.root)[-1]


def _only_run(output: Path) -> AbstractContextManager[None]:
    """The lock of an output folder, which is created."""
    try:
        (output / "checkpoints").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to output {output}: {reason(error)}") from None
    return lock(
        output / ".lock", f"another run trains in {output} ({{holder}}): wait for it to end, or set another output"
    )


@dataclass(frozen=True)
class StepResult:
    """Losses and gradient norm of a step, on the device (reading them waits for it); learning rate, tokens read."""

    loss: Tensor
    ntp: Tensor
    mlm: Tensor
    grad_norm: Tensor
    rate: float
    tokens: int


class TrainingRun:
    """One process of a run: data, model and optimiser, restored to the step `start`."""

    def __init__(self, config: Config, accelerator: Any, output: Path) -> None:
        self.config, self.accelerator, self.output = config, accelerator, output
        self.device: torch.device = accelerator.device
        self.world, self.rank = accelerator.num_processes, accelerator.process_index
        self.micro_batch = config.micro_batch or config.batch_size // self.world
        if not self.micro_batch or config.batch_size % (self.micro_batch * self.world):
            raise UserError(
                f"batch_size {config.batch_size} does not split over {self.world} processes "
                f"in pieces of {self.micro_batch}"
            )
        self.layout = layout_of(config)
        self.rows = open_rows(config.data, config.tokenizer, Path(config.cache))
        self.validation_rows = (
            None if config.validation is None else open_rows(config.validation, config.tokenizer, Path(config.cache))
        )
        opening = round(config.curriculum * config.steps)
        self.plan = Plan(self.rows, config.data.lengths, config.batch_size, self.layout, config.seed, opening)
        self.model = build_model(config.model, config.backend, config.seed)
        _check_vocabulary(self.rows, self.model)
        if config.init_from is not None:
            checkpoint.load_weights(Path(config.init_from), self.model, start=True)
        self.trainable = Trainable(self.model, encoder=self.layout.encoder is not None).to(self.device)
        self.optimizer = make_optimizer(self.trainable, config.optimizer, self.device)
        self.root = output / "checkpoints"
        with accelerator.main_process_first():  # the main process sets damaged checkpoints aside
            self.start = self._resume()
        self.wrapped, self.optimizer = accelerator.prepare(self.trainable, self.optimizer)
        if config.compile:  # in place, so the keys of state_dict stay as they are
            self.wrapped.compile(dynamic=False)
        self._unchecked: tuple[int, Tensor] | None = None

    def batch(self, step: int) -> Batch:
        """The whole batch of a step, for all processes."""
        length, indices = self.plan.batch(step - 1)
        return collate(self.rows, indices, length, self.layout, (self.config.seed, step))

    def train_step(self, step: int, batch: Batch) -> StepResult:
        """Forward and backward passes over this process's share of the batch, then an update of the weights."""
        config = self.config
        rate = learning_rate(config.optimizer, step, config.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        ntp, mlm = self._accumulate_gradients(batch)
        norm = self.accelerator.clip_grad_norm_(self.trainable.parameters(), config.optimizer.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.world > 1:
            ntp, mlm = self.accelerator.reduce(ntp), self.accelerator.reduce(mlm)
        loss = ntp + config.objective.mlm_weight * mlm
        # The loss is read one step late, so that the device does not wait for the host.
        if self._unchecked is not None:
            self._check_loss(*self._unchecked)
        self._unchecked = (step, loss)
        return StepResult(loss, ntp, mlm, norm, rate, batch.tokens)

    def _accumulate_gradients(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Losses of this process's share, each divided by the weight of the whole batch.

        So neither the size of a micro-batch nor the number of processes changes the gradient.
        """
        weight = max(float(batch.weights.sum()), 1e-8)
        masked = max(int((batch.masked != IGNORED_LABEL).sum()), 1)
        ntp, mlm = torch.zeros((), device=self.device), torch.zeros((), device=self.device)
        pieces = np.arange(self.config.batch_size).reshape(-1, self.world, self.micro_batch)[:, self.rank]
        for number, piece in enumerate(pieces):
            synchronise = number == len(pieces) - 1
            with nullcontext() if synchronise else self.accelerator.no_sync(self.wrapped), self.autocast():
                sums: LossSums = self.wrapped(**tensors(batch, piece, self.device))
                part_ntp, part_mlm = sums.ntp / weight, sums.mlm / masked
                loss = part_ntp + self.config.objective.mlm_weight * part_mlm
                # DistributedDataParallel averages over the processes; these are parts of a sum.
                self.accelerator.backward(loss * self.world)
            ntp, mlm = ntp + part_ntp.detach(), mlm + part_mlm.detach()
        return ntp, mlm

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16")

    def validate(self) -> dict[str, float]:
        """Loss and accuracy on the validation rows."""
        config = self.config
        assert config.validation is not None
        assert self.validation_rows is not None
        return validate(
            self.wrapped,
            self.validation_rows,
            config.validation.lengths,
            self.layout,
            self.device,
            batch_size=config.micro_batch or config.batch_size,
            batches=config.validation_batches,
            autocast=self.autocast(),
        )

    def check_finite(self, step: int, loss: Tensor) -> None:
        """Raise `UserError` unless the loss, the weights and the optimiser state are finite after `step`."""
        self._check_loss(step, loss)
        name = checkpoint.non_finite(self.model, self.optimizer)
        if name is not None:
            raise UserError(f"{name} is not finite after step {step}; {self._last_good()}")

    def save(self, step: int) -> None:
        """Write the checkpoint of `step`; the other processes wait."""
        if self.accelerator.is_main_process:
            state = {"config": _identity(self.config), **self.plan.position(step)}
            tokenizer = tokenizer_folder(self.config.tokenizer)
            checkpoint.save(
                self.root, step, self.model, self.optimizer, self.config.model, tokenizer, state, self.config.keep
            )
        self.accelerator.wait_for_everyone()

    def export(self) -> None:
        """Write the final weights in `export_dtype`, if that is set."""
        if self.accelerator.is_main_process and self.config.export_dtype is not None:
            dtype = getattr(torch, self.config.export_dtype)
            tokenizer = tokenizer_folder(self.config.tokenizer)
            checkpoint.export_model(self.output / "model", self.model, self.config.model, tokenizer, dtype)

    def _resume(self) -> int:
        """Restore the newest intact checkpoint and return its step, or 0 if there is none.

        A damaged checkpoint gets another name, so that it neither counts as one to keep nor hides the one before it.
        """
        if self.accelerator.is_main_process:
            remove_unfinished(self.root)
        found = checkpoint.existing(self.root)
        for folder in reversed(found):
            try:
                saved = checkpoint.read_checkpoint(folder)
                _check_same_run(saved.state["config"], _identity(self.config), folder)
                checkpoint.restore(saved, self.model, self.optimizer)
            except checkpoint.DamagedCheckpoint as error:
                aside = folder.with_name(f"damaged-{folder.name}-{time.time_ns()}")
                log.warning("%s is damaged (%s): renamed to %s", folder, error, aside.name)
                folder.rename(aside)
                continue
            if folder != found[-1]:
                log.warning("resuming from %s", folder)
            return saved.step
        if found:
            raise UserError(
                f"no checkpoint under {self.root} is intact; run the same command to train from the start, "
                "or set another output"
            )
        return 0

    def _check_loss(self, step: int, loss: Tensor) -> None:
        if not math.isfinite(value := float(loss)):
            raise UserError(
                f"the loss is {value} at step {step}; {self._last_good()}. A lower optimizer.lr or a longer warmup may help"
            )

    def _last_good(self) -> str:
        good = checkpoint.existing(self.root)
        return f"the last good checkpoint is {good[-1]}" if good else "no checkpoint was written yet"


class RunRecords:
    """Metrics files, TensorBoard and the progress bar of a run; only the main process writes them."""

    def __init__(self, run: TrainingRun, progress: bool) -> None:
        config, main = run.config, run.accelerator.is_main_process
        self.config, self.step, self.tokens = config, run.start, 0
        self.bar = progress_bar(config.steps, run.start, progress and main)
        self.tensorboard: Any = None
        self.metrics: MetricsFile | None = None
        self.validations: MetricsFile | None = None
        if main:
            self.tensorboard = tensorboard_writer(run.output / "tensorboard") if config.tensorboard else None
            self.metrics = MetricsFile(run.output / "metrics.csv", COLUMNS, run.start, self.tensorboard, "train/")
            self.validations = MetricsFile(
                run.output / "validation.csv", VALIDATION_COLUMNS, run.start, self.tensorboard, "validation/"
            )
        self.began = self.clock = time.perf_counter()

    def __enter__(self) -> RunRecords:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()
        if self.tensorboard is not None:
            self.tensorboard.close()

    def add(self, step: int, result: StepResult) -> None:
        """Count a step; every `log_every` steps, and at the end, write a row of metrics."""
        self.tokens += result.tokens
        if step % self.config.log_every and step != self.config.steps:
            return
        loss, now = float(result.loss), time.perf_counter()
        speed = self.tokens / (now - self.clock)
        if self.metrics is not None:
            self.metrics.add(
                step=step,
                loss=loss,
                ntp=float(result.ntp),
                mlm=float(result.mlm),
                lr=result.rate,
                grad_norm=float(result.grad_norm),
                tokens=self.tokens,
                tokens_per_second=speed,
                seconds=now - self.began,
            )
        self.bar.set_postfix_str(f"loss {loss:.4f}, {speed:,.0f} tokens/s")
        self.bar.update(step - self.step)
        self.step, self.tokens, self.clock = step, 0, now

    def add_validation(self, step: int, values: dict[str, float]) -> None:
        if self.validations is not None:
            self.validations.add(step=step, **values)
        self.restart_clock()

    def restart_clock(self) -> None:
        """Leave out of the next tokens/s what was not training."""
        self.clock = time.perf_counter()


def layout_of(config: Config) -> Layout:
    """How the rows of a run are placed in a batch."""
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


def _ahead(make: Callable[[int], Batch], steps: Iterable[int], depth: int = 3) -> Iterator[tuple[int, Batch]]:
    """(step, make(step)) for each step, computed by a thread up to `depth` steps ahead."""
    waiting: deque[tuple[int, Future[Batch]]] = deque()
    with ThreadPoolExecutor(1) as thread:
        for step in steps:
            waiting.append((step, thread.submit(make, step)))
            if len(waiting) > depth:
                first, batch = waiting.popleft()
                yield first, batch.result()
        while waiting:
            first, batch = waiting.popleft()
            yield first, batch.result()


def _check_vocabulary(rows: TokenRows, model: nn.Module) -> None:
    embedding = next(module for module in model.modules() if isinstance(module, nn.Embedding))
    if rows.largest >= embedding.num_embeddings:
        raise UserError(
            f"the data holds token {rows.largest}, the model has {embedding.num_embeddings} rows (vocab_size): "
            "use the tokenizer that the model is made for"
        )


def _identity(config: Config) -> dict[str, Any]:
    """The keys that must not change when a run is resumed, as JSON would give them back."""
    fixed = {key: value for key, value in asdict(config).items() if key not in _MAY_CHANGE}
    identity: dict[str, Any] = json.loads(json.dumps(fixed))
    return identity


def _check_same_run(found: dict[str, Any], wanted: dict[str, Any], folder: Path) -> None:
    changed = [key for key in wanted if found.get(key) != wanted[key]]
    if changed:
        raise UserError(
            f"{folder} was written by a run with another {', '.join(changed)}; "
            "set another output, or start from its weights with init_from"
        )
