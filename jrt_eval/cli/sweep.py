"""`jrt-eval sweep`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from jrt_eval.sweep import spec


class DefaultRun(click.Group):
    """`jrt-eval sweep FILE` means `jrt-eval sweep run FILE`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("-h", "--help"):
            args = ["run", *args]
        return super().parse_args(ctx, args)


@click.group(cls=DefaultRun, context_settings={"help_option_names": ["-h", "--help"]})
def sweep() -> None:
    """Run models x tasks x settings through lm_eval; nothing finished is ever done twice.

    \b
    jrt-eval sweep table1_hazy                  run a sweep file that comes along, into runs/table1_hazy
    jrt-eval sweep my.yaml -o runs/my --dry-run what it would do
    jrt-eval sweep status runs/my               where it stands, from any shell
    jrt-eval sweep list                         the sweep files that come along
    jrt-eval sweep run --help                   all options of a run
    """


@sweep.command()
@click.argument("file")
@click.option("-o", "--output", "folder", type=click.Path(path_type=Path), help="Its folder; default runs/NAME.")
@click.option("--dry-run", is_flag=True, help="List the jobs with estimated tokens, and run nothing.")
@click.option(
    "--resume/--no-resume",
    default=True,
    help="Run only what is missing or was made by other settings or versions (default); or all, from the start.",
)
@click.option("--engine", type=click.Choice(["local", "ray"]), help="Default: ray with --address, else local.")
@click.option("--address", help="A running Ray cluster: auto, HOST:PORT, ray://HOST:PORT.")
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a key of the file, e.g. --set limit=20."
)
def run(
    file: str,
    folder: Path | None,
    dry_run: bool,
    resume: bool,
    engine: str | None,
    address: str | None,
    overrides: tuple[str, ...],
) -> None:
    """Run a sweep file, given by path or, for one that comes along, by name. Exit status 0: every result is there."""
    from jrt_eval.sweep import run as runner

    if address and engine == "local":
        raise click.UsageError("--address is for --engine ray")
    loaded = spec.load(file, overrides)
    place = folder or Path("runs") / loaded.name
    if dry_run:
        runner.dry_run(loaded, place)
        return
    chosen: runner.Engine | None = None
    if address or engine == "ray":
        from jrt_eval.sweep.ray_engine import RayEngine

        chosen = RayEngine(address)
    sys.exit(runner.run_sweep(loaded, place, engine=chosen, resume=resume))


@sweep.command()
@click.argument("folder", type=click.Path(path_type=Path))
def status(folder: Path) -> None:
    """Say where a sweep stands. Exit status 0: every result is there; 3: running; 1: something is missing."""
    from jrt_eval.sweep import run as runner
    from jrt_eval.sweep import watch

    place, found, jobs = runner.load_plan(folder)
    alive = place.locked()
    views = watch.snapshot(place, jobs, alive=alive)
    title = f"{found['name']} in {folder} ({'running' if alive else 'not running'})"
    if sys.stdout.isatty():
        try:
            from rich.console import Console

            Console().print(watch.table(views, title, watch.summary(views)))
        except ImportError:
            click.echo("\n".join([title, *watch.lines(views), watch.summary(views)]))
    else:
        click.echo("\n".join([title, *watch.lines(views), watch.summary(views)]))
    sys.exit(0 if all(view.state == "done" for view in views) else 3 if alive else 1)


@sweep.command("list")
def list_files() -> None:
    """The sweep files that come along."""
    for name in spec.shipped():
        loaded = spec.load(name)
        click.echo(f"{name:<14} {loaded.description}")
