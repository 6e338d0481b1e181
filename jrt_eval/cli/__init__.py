"""The command `jrt-eval`: a module per subcommand, imported when it is called."""

from __future__ import annotations

from importlib import import_module

import click

from jrt_eval._version import __version__
from jrt_eval.errors import UserError, install_excepthook, nearest
from jrt_eval.files import reason

# subcommand -> (module:object, its line in `jrt-eval --help`)
COMMANDS = {
    "demo": ("jrt_eval.cli.demo:demo", "Evaluate small bundled models, read once and read twice."),
    "train": ("jrt_eval.cli.train:train", "Train a model from scratch, or resume."),
    "synthetic": (
        "jrt_eval.cli.synthetic:synthetic",
        "Measure accuracy against state size on set disjointness.",
    ),
    "doctor": ("jrt_eval.cli.doctor:doctor", "Show what works on this machine, and how to fix the rest."),
    "sweep": ("jrt_eval.cli.sweep:sweep", "Run models x tasks x settings through lm_eval; resumable."),
    "collect": ("jrt_eval.cli.collect:collect", "Collect lm-eval output into data frames (parquet, CSV)."),
    "scores": ("jrt_eval.cli.scores:scores", "Show the scores of any lm-eval results."),
    "compare": (
        "jrt_eval.cli.compare:compare",
        "Compare read twice with read once, or models, on the same documents.",
    ),
    "audit": ("jrt_eval.cli.audit:audit", "Name the protocol of every task in lm-eval output, with warnings."),
    "parity": ("jrt_eval.cli.parity:parity", "Compare two runs of one model, for example on two backends."),
    "report": ("jrt_eval.cli.report:report", "Write one HTML page: conclusion, tables, plots, documents."),
    "bench": ("jrt_eval.cli.bench:bench", "Measure the kernels and the models on this machine."),
}


class LazyGroup(click.Group):
    """A click group whose commands are imported when they are named."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command = getattr(import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            ctx.fail(f"no command {args[0]!r}{nearest(args[0], list(COMMANDS))}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="jrt-eval")
def cli() -> None:
    """Measure how well recurrent language models recall their context, read once and read twice.

    Evaluations run through lm-eval, which finds the models and tasks of jrt-eval by itself:

    \b
    lm_eval --model jrt --model_args pretrained=hazyresearch/JRT-1B-50B \\
            --tasks jrt_prompt --output_path runs --log_samples
    jrt-eval collect runs                   # data frames
    jrt-eval compare runs                   # gains with intervals
    jrt-eval report runs -o report.html     # tables, plots, documents

    `jrt-eval COMMAND --help` explains each command.
    """


def main() -> None:
    """The console script: user errors are one line on stderr and exit code 1, and so is a file that the system refuses."""
    install_excepthook()
    try:
        cli()
    except OSError as error:
        if error.filename is None:
            raise
        raise UserError(f"cannot use {error.filename}: {reason(error)}") from error
