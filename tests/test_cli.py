"""The command line as a user calls it: separate processes, what is printed and the exit codes."""

import os
import subprocess
import sys

import pytest


def run(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "outlierscope", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        **options,
    )


def one_line(result, code=2):
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    return lines[0]


def test_version():
    from outlierscope import __version__

    assert run("--version").stdout.strip() == f"outlierscope {__version__}"


def test_help_imports_nothing_heavy():
    code = (
        "import sys; sys.argv = ['outlierscope', '--help']\n"
        "from outlierscope.cli import main\n"
        "try: main()\n"
        "except SystemExit as stop: assert stop.code == 0, stop.code\n"
        "heavy = {'torch', 'transformers', 'numpy', 'pandas', 'pyarrow', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "scan" in result.stdout


def test_scan_help_has_examples():
    text = run("scan", "--help").stdout
    assert "Examples:" in text
    assert "outlierscope scan ./my-checkpoint --data my.jsonl --tokens 200000" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tokens", "0"], "tokens must be a whole number of at least 1, not 0"),
        (["--tokens", "many"], "Invalid value for '--tokens'"),
        (["--layers", "x"], "--layers wants numbers and ranges"),
        (["--sites", "residual"], "unknown site 'residual'"),
        (["--only", "colours"], "unknown kind 'colour'"),
        (["--only", "weights", "--fail-on", "massive"], "--fail-on: massive is left out by --only weights"),
        (["--only", "weights", "--device", "cpu"], "--only weight reads the files alone"),
        (["--seed", "99999999999999999999999"], "seed must be a whole number from 0"),
        (["--threshold", "six_sigma.sigma=nan"], "--threshold wants"),
        (["--threshold", "six_sigma"], "--threshold wants CRITERION.FIELD=NUMBER"),
        (["--threshold", "seven.sigma=1"], "unknown criterion 'seven'"),
        (["--threshold", "six_sigma.height=1"], "six_sigma has no threshold 'height'"),
        (["--fail-on", "everything"], "unknown criterion 'everything'"),
        (["--frobnicate"], "No such option"),
        (["--device", "toaster"], "toaster"),
        (["--dtype", "float3"], "float3"),
        (["/no/such/model"], "/no/such/model"),
    ],
)
def test_wrong_use_is_one_line_and_exit_code_2(tmp_path, arguments, message):
    assert message in one_line(run("scan", *arguments, cwd=tmp_path))
    assert not list(tmp_path.iterdir()), "nothing may be left half-written"


def test_report_of_what_is_no_scan(tmp_path):
    assert "is not a scan folder" in one_line(run("report", tmp_path))


def test_shell_completion():
    def complete(**variables):
        return run(env=os.environ | {name.upper(): value for name, value in variables.items()}).stdout

    assert "_outlierscope_completion" in complete(_outlierscope_complete="source_bash")
    words = complete(_outlierscope_complete="complete_bash", comp_words="outlierscope sc", comp_cword="1")
    assert words.split() == ["scan"]


def test_interrupting_says_how_to_go_on():
    code = (
        "from outlierscope import cli\n"
        "def interrupt(**_): raise KeyboardInterrupt\n"
        "cli.app = interrupt\n"
        "cli.main()"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "--resume" in one_line(result, 130)
