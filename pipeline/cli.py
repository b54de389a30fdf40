"""The command line: the verbs, and the only place that prints."""

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from enum import StrEnum
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ParamSpec

import typer

from .errors import PotstillError, UsageError

if TYPE_CHECKING:
    from .progress import PlainProgress, RichProgress

# Torch and everything else that takes long to import is imported inside the verbs: help and usage errors come at once.

Parameters = ParamSpec("Parameters")

INTERRUPTED = 130
"""What shells report for a program that Ctrl-C ended."""
GOAL_MISSED = 3
SCHEMA_FILE = "recipe.schema.json"

app = typer.Typer(
    name="potstill",
    help="From a recipe to a measured, deployable engine.\n\n"
    "Exit codes: 0 done, 1 failed, 2 invalid recipe or usage, 3 done but a goal was missed or `--fail-if` met.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # rich takes longer to import than all of --help may
    pretty_exceptions_enable=False,
)

RecipeArgument = Annotated[str, typer.Argument(help="A recipe's file, or the name of one that comes with potstill.")]
SetOption = Annotated[
    list[str], typer.Option("--set", metavar="PATH=VALUE", help="Change a setting; may be given several times.")
]
RunsDirOption = Annotated[Path, typer.Option("--runs-dir", help="The run goes to a folder in here, called like it.")]
FolderOption = Annotated[Path | None, typer.Option("--folder", help="The run's folder itself, in place of --runs-dir.")]
VerboseOption = Annotated[bool, typer.Option("--verbose", "-v", help="Show the traceback of known errors, too.")]


class Kind(StrEnum):
    """What `potstill list` can list."""

    STAGES = "stages"
    KNOWLEDGE = "knowledge"
    MODELS = "models"
    DATA = "data"
    RUNTIMES = "runtimes"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code. Without `argv`, the process's own arguments are taken."""
    try:
        app(args=None if argv is None else list(argv), prog_name="potstill")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


def _told(verb: Callable[Parameters, None]) -> Callable[Parameters, None]:
    """Known errors become a few lines and an exit code; Ctrl-C becomes 130. Others keep their traceback."""

    @wraps(verb)
    def wrapped(*args: Parameters.args, **kwargs: Parameters.kwargs) -> None:
        try:
            verb(*args, **kwargs)
        except PotstillError as error:
            if kwargs.get("verbose"):
                raise
            typer.echo(f"potstill: {error}", err=True)
            raise typer.Exit(error.exit_code) from error
        except KeyboardInterrupt as interrupt:
            again = "; the same command continues from here" if verb.__name__ == "run" else ""
            typer.echo(f"\npotstill: interrupted{again}", err=True)
            raise typer.Exit(INTERRUPTED) from interrupt

    return wrapped


@app.command()
@_told
def run(
    recipe: RecipeArgument,
    changes: SetOption = [],  # noqa: B006, typer copies it
    fresh: Annotated[bool, typer.Option("--fresh", help="Throw away what an earlier run left in the folder.")] = False,
    until: Annotated[str | None, typer.Option(metavar="STEP", help="Stop after this step.")] = None,
    runs_dir: RunsDirOption = Path("runs"),
    folder: FolderOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Run a recipe, or continue it where it stopped.

    Every stage ends in an engine that is measured; the run ends with a report and with its goals.

    \b
    potstill run configs/digits.yaml
    potstill run digits --set stages.distill.epochs=3 --until distill
    """
    from .recipe import load_recipe, recipe_file

    file = recipe_file(recipe)
    loaded = load_recipe(file, changes)
    target = folder or runs_dir / loaded.name

    from .runner import run as run_recipe
    from .views.terminal import print_report

    with _progress() as progress:
        report = run_recipe(
            loaded, directory=file.parent.resolve(), folder=target, progress=progress, fresh=fresh, until=until
        )
    print_report(report)
    typer.echo(f"report: {target / 'report.html'}")
    missed = [goal for goal in report.goals if not goal.met]
    if missed:
        raise typer.Exit(GOAL_MISSED)


@app.command()
@_told
def check(
    recipe: RecipeArgument,
    changes: SetOption = [],  # noqa: B006, typer copies it
    runs_dir: RunsDirOption = Path("runs"),
    folder: FolderOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Rehearse a run without training.

    Finds wrong keys, impossible orders, missing packages, shapes that do not fit, failing exports and too little disk.

    \b
    potstill check configs/digits.yaml
    """
    from .recipe import load_recipe, recipe_file

    file = recipe_file(recipe)
    loaded = load_recipe(file, changes)
    target = folder or runs_dir / loaded.name

    from .preflight import check as check_recipe

    with _progress() as progress:
        findings = check_recipe(loaded, directory=file.parent.resolve(), folder=target, progress=progress)
    for finding in findings:
        typer.echo(finding)
    typer.echo(f"{file}: can be run")


@app.command()
@_told
def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...", help="Folders of runs, their report.json, or JSON files of `potstill profile`."
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", metavar="FOLDER", help="Write compare.html, compare.md and compare.json here, too."),
    ] = None,
    budgets: Annotated[
        list[str],
        typer.Option("--budget", metavar="NAME=VALUE", help="Draw a line at a p50_ms or a metric; may be repeated."),
    ] = [],  # noqa: B006, typer copies it
    fail_if: Annotated[
        list[str],
        typer.Option("--fail-if", metavar="CONDITION", help="End with 3 where the first run is so; may be repeated."),
    ] = [],  # noqa: B006, likewise
    baseline: Annotated[
        Path | None,
        typer.Option("--baseline", metavar="RUN", help="What all are compared with, and regressions are told from."),
    ] = None,
    verbose: VerboseOption = False,
) -> None:
    """Set runs and profiles side by side.

    Says which differences are within noise, and ends with 3 where an engine is not as demanded.

    \b
    potstill compare runs/digits runs/digits-wide --output compared
    potstill compare runs/digits --fail-if 'p99_ms>2' --fail-if 'accuracy<0.92'
    potstill compare runs/digits --baseline main/report.json --fail-if 'regression>5%'
    """
    from .comparison.request import compared_as_asked
    from .files import write_atomically
    from .storage_errors import storage_errors
    from .views.compare_views import comparison_files, print_comparison

    compared = compared_as_asked(runs, baseline=baseline, fail_if=fail_if, budgets=budgets)
    print_comparison(compared)
    if output is not None:
        with storage_errors(output):
            output.mkdir(parents=True, exist_ok=True)
            for name, text in comparison_files(compared).items():
                write_atomically(output / name, text.encode())
        typer.echo(f"comparison: {output / 'compare.html'}")
    if any(each.failed for each in compared.judgements):
        raise typer.Exit(GOAL_MISSED)


@app.command(name="list")
@_told
def list_(
    kind: Annotated[Kind, typer.Argument(help="What to list.")],
    markdown: Annotated[bool, typer.Option("--markdown", help="Of knowledge: as the tables in the docs.")] = False,
) -> None:
    """List what a recipe can name.

    Each with the keys that may stand beside it.

    \b
    potstill list stages
    """
    from .errors import UsageError
    from .listing import entries, footnote, knowledge_markdown

    if markdown:
        if kind is not Kind.KNOWLEDGE:
            raise UsageError(f"--markdown: only `potstill list knowledge` has it, not {kind.value}")
        typer.echo(knowledge_markdown(), nl=False)
        return
    found = entries(kind.value)
    width = max(len(entry.name) for entry in found)
    group = ""
    for entry in found:
        if entry.group != group:
            group = entry.group
            typer.echo(f"{group}:")
        typer.echo(f"{entry.name:{width}}  {entry.description}")
        for line in entry.details:
            typer.echo(f"{'':{width}}  {line}")
        if entry.keys:
            typer.echo(f"{'':{width}}  keys: {', '.join(entry.keys)}")
    if footnote(kind.value):
        typer.echo(footnote(kind.value))


@app.command()
@_told
def schema() -> None:
    """Print the JSON schema of recipes.

    For editors, which complete and explain keys with it, and for other tools.

    \b
    potstill schema > recipe.schema.json
    """
    typer.echo(_schema_text(), nl=False)


@app.command()
@_told
def doctor() -> None:
    """Say what this machine can build and run, and why not.

    \b
    potstill doctor
    """
    from .doctor import findings

    for line in findings():
        typer.echo(line)


@app.command()
@_told
def init(
    file: Annotated[Path, typer.Argument(help="The recipe to write; an existing file is never replaced.")] = Path(
        "recipe.yaml"
    ),
) -> None:
    """Write a commented recipe to begin with.

    Beside it goes the schema that lets editors complete its keys.

    \b
    potstill init my_recipe.yaml
    """
    starter = (Path(__file__).parent / "starter.yaml").read_text(encoding="utf-8")
    if file.exists():
        raise UsageError(f"{file} exists; name another file, or remove it first")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(starter, encoding="utf-8")
        file.with_name(SCHEMA_FILE).write_text(_schema_text(), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{file}: cannot be written: {error.strerror}; name a file in another folder") from error
    typer.echo(f"{file} and {file.with_name(SCHEMA_FILE)} are written; next: potstill check {file}")


def _schema_text() -> str:
    import json

    from .recipe_schema import json_schema

    return json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"


def _progress() -> "AbstractContextManager[PlainProgress | RichProgress]":
    """Bars on a terminal, plain lines elsewhere; both on stderr, so that stdout holds results."""
    from .progress import PlainProgress, RichProgress

    return RichProgress(sys.stderr) if sys.stderr.isatty() else nullcontext(PlainProgress(sys.stderr))
