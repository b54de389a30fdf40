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
    from pydantic import BaseModel

    from .processes import Processes
    from .profile_files import Request
    from .progress import PlainProgress, RichProgress

# Torch and everything else that takes long to import is imported inside the verbs: help and usage errors come at once.

Parameters = ParamSpec("Parameters")

INTERRUPTED = 130
"""What shells report for a program that Ctrl-C ended."""
GOAL_MISSED = 3
SCHEMA_FILE = "recipe.schema.json"
STANDARD_OUTPUT = Path("-")

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
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished run.")]
RecipeDirOption = Annotated[
    Path | None,
    typer.Option("--recipe-dir", metavar="FOLDER", help="Where the recipe's relative paths start, if it has moved."),
]
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
            again = "; the same command continues from here" if verb.__name__ in ("run", "export") else ""
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
    torchrun --nproc-per-node 2 -m potstill.pipeline run digits
    """
    from .recipe import load_recipe, recipe_file

    with _joined() as processes:
        file = processes.first_in_main(lambda: recipe_file(recipe))
        loaded = processes.first_in_main(lambda: load_recipe(file, changes))
        target = folder or runs_dir / loaded.name
        if not processes.main:
            from .following import follow

            follow(loaded, directory=file.parent.resolve(), folder=target, processes=processes, until=until)
            return
        from .runner import run as run_recipe

        with _progress() as progress:
            report = run_recipe(
                loaded,
                directory=file.parent.resolve(),
                folder=target,
                progress=progress,
                fresh=fresh,
                until=until,
                processes=processes,
            )
    from .views.terminal import print_report

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


@app.command()
@_told
def profile(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE...", help="ONNX or engine files; others stand beside the first."),
    ] = [],  # noqa: B006, typer copies it
    runtimes: Annotated[
        list[str], typer.Option("--runtime", help="Run the files in this one; may be given several times.")
    ] = [],  # noqa: B006, likewise
    device: Annotated[str | None, typer.Option(help="Such as cpu; each runtime has a default.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="Inside one call of the engine.")] = 1,
    batches: Annotated[str, typer.Option("--batch", metavar="N,N", help="Batch sizes, for a free first size.")] = "",
    shapes: Annotated[
        list[str],
        typer.Option("--shape", metavar="NAME=N,N,...", help="Sizes of an input; may be repeated."),
    ] = [],  # noqa: B006, likewise
    inputs: Annotated[
        Path | None, typer.Option(metavar="FILE.npz", help="An array for each input, in place of random ones.")
    ] = None,
    layers: Annotated[bool, typer.Option("--layers", help="Show each layer's time, by the runtime's profile.")] = False,
    offline: Annotated[bool, typer.Option("--offline", help="Find the batch size of the highest throughput.")] = False,
    server: Annotated[
        float | None, typer.Option(metavar="P99_MS", help="Find the highest rate of queries within this p99.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the numbers here, too; - prints nothing else.")
    ] = None,
    self_check: Annotated[
        bool, typer.Option("--self-check", help="Measure how far verdicts can be trusted on this machine.")
    ] = False,
    comparisons: Annotated[int, typer.Option(min=1, help="Of a self-check, of either kind.")] = 20,
    verbose: VerboseOption = False,
) -> None:
    """Time ONNX and engine files in turns.

    Any file that a runtime here can open, ours or not, with random inputs or given ones. With --self-check, compares an
    engine with itself and with a slower one, and ends with 3 where the verdicts are worse than they should be.

    \b
    potstill profile model.onnx model-int8.onnx --batch 1,32 --layers
    potstill profile model.onnx --runtime onnxruntime --server 5 --json profile.json
    potstill profile --self-check
    """
    from .profile_request import request_of

    request = request_of(
        files, runtimes, device=device, threads=threads, batches=batches, shapes=shapes, inputs=inputs, layers=layers,
        offline=offline, server_ms=server,
    )  # fmt: skip
    _demand_folder_of(json_file)
    quiet = json_file == STANDARD_OUTPUT
    if self_check:
        _self_check(request, comparisons, json_file)
        return
    from .profiling import profile as profiled
    from .views.profile_views import print_profile

    with _progress() as progress:
        found = profiled(request, progress.say)
    if not quiet:
        print_profile(found)
    _write_json(json_file, found)


@app.command()
@_told
def export(
    run: RunArgument,
    target: Annotated[
        list[str], typer.Option("--target", metavar="YAML", help="As in a recipe's `targets`; may be given repeatedly.")
    ],
    step: Annotated[str | None, typer.Option(metavar="STEP", help="Of this step, in place of the last one.")] = None,
    recipe_dir: RecipeDirOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Turn a finished run's model into more engines.

    They are proven and measured as the run's own, and go into its folder and report.

    \b
    potstill export runs/digits --target '{runtime: onnxruntime, precision: [fp32], threads: 2}'
    """
    from .finished_run import FinishedRun
    from .further_engines import add_engines
    from .recipe import targets_from
    from .views.terminal import print_engines

    finished = FinishedRun.load(run, recipe_dir)
    wanted = targets_from(target, finished.recipe)
    with _progress() as progress:
        engines = add_engines(finished, wanted, step=step, progress=progress)
    print_engines("Engines", engines)
    typer.echo(f"report: {run / 'report.html'}")


@app.command()
@_told
def bundle(
    run: RunArgument,
    output: Annotated[Path, typer.Option("--output", metavar="FOLDER", help="The folder to make.")],
    engine: Annotated[
        str | None, typer.Option(metavar="LABEL", help="Such as 'onnxruntime cpu int8'; without, the final one.")
    ] = None,
    triton: Annotated[bool, typer.Option("--triton", help="With a model repository for Triton.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a bundle that is there.")] = False,
    recipe_dir: RecipeDirOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Make a folder to deploy of one engine.

    Its manifest says what it takes, gives and was measured to be; its example runs without potstill.

    \b
    potstill bundle runs/digits --output deploy/digits --triton
    """
    from .bundling import bundle as make_bundle
    from .finished_run import FinishedRun

    finished = FinishedRun.load(run, recipe_dir)
    with _progress() as progress:
        manifest = make_bundle(finished, output, engine=engine, triton=triton, replace=force, progress=progress)
    score = manifest.measured.score
    typer.echo(f"{manifest.engine.target}: {manifest.metric.name} {score.value:.4g}, the same from the folder alone")
    typer.echo(f"bundle: {output}")


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


def _self_check(request: "Request", comparisons: int, json_file: Path | None) -> None:
    from .self_checking import self_checked
    from .views.profile_views import print_self_check

    with _progress() as progress:
        found = self_checked(request, comparisons, progress)
    if json_file != STANDARD_OUTPUT:
        print_self_check(found)
    _write_json(json_file, found)
    if not found.passed:
        raise typer.Exit(GOAL_MISSED)


def _demand_folder_of(json_file: Path | None) -> None:
    """Asked before minutes of timing, whose numbers would have nowhere to go."""
    if json_file not in (None, STANDARD_OUTPUT) and not json_file.parent.is_dir():
        raise UsageError(f"--json {json_file}: there is no folder {json_file.parent}; make it first")


def _write_json(file: Path | None, value: "BaseModel") -> None:
    if file is None:
        return
    text = value.model_dump_json(indent=1)
    if file == STANDARD_OUTPUT:
        typer.echo(text)
        return
    from .files import write_atomically
    from .storage_errors import storage_errors

    with storage_errors(file.parent):
        write_atomically(file, text.encode() + b"\n")
    typer.echo(f"numbers: {file}")


def _schema_text() -> str:
    import json

    from .recipe_schema import json_schema

    return json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"


def _joined() -> "AbstractContextManager[Processes]":
    """The processes that `torchrun` started together with this one; a process by itself imports nothing for it."""
    from .processes import joined

    return joined()


def _progress() -> "AbstractContextManager[PlainProgress | RichProgress]":
    """Bars on a terminal, plain lines elsewhere; both on stderr, so that stdout holds results."""
    from .progress import PlainProgress, RichProgress

    return RichProgress(sys.stderr) if sys.stderr.isatty() else nullcontext(PlainProgress(sys.stderr))
