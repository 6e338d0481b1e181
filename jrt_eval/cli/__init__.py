"""`jrt-eval`: a command per job, each imported when it is called."""

from __future__ import annotations

from importlib import import_module

import click

from jrt_eval._version import __version__
from jrt_eval.errors import install_excepthook, nearest

# command -> (module:object, the line that `jrt-eval --help` shows)
COMMANDS = {
    "demo": ("jrt_eval.cli.demo:demo", "Run the main job from end to end with small local models."),
    "train": ("jrt_eval.cli.train:train", "Train a model from scratch, or go on where it stopped."),
    "synthetic": (
        "jrt_eval.cli.synthetic:synthetic",
        "Set disjointness: accuracy against state size, as a sweep.",
    ),
    "doctor": ("jrt_eval.cli.doctor:doctor", "Say what is live here, and why the rest is not."),
    "sweep": ("jrt_eval.cli.sweep:sweep", "Run models x tasks x settings through lm_eval, resumable."),
    "collect": ("jrt_eval.cli.analysis:collect", "Collect lm-eval output into data frames (parquet, CSV)."),
    "compare": (
        "jrt_eval.cli.analysis:compare",
        "Once against twice, or model against model, on the same documents.",
    ),
    "report": ("jrt_eval.cli.analysis:report", "One HTML page: tables, plots and a browser of documents."),
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
    """Measure how well recurrent language models recall their context.

    \b
    lm_eval --model jrt --model_args pretrained=hazyresearch/JRT-1B-50B \\
            --tasks jrt_prompt --output_path runs --log_samples
    jrt-eval collect runs
    """


def main() -> None:
    """The console script: user errors are one line on stderr and exit code 1."""
    install_excepthook()
    cli()
