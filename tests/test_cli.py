"""The command line as a user calls it: what is printed, what is left behind and the exit codes."""

import json
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


@pytest.fixture
def call(monkeypatch, capsys):
    """Function from arguments to exit code, stdout and stderr, in this process: imports take seconds."""

    def main(*arguments):
        from outlierscope import cli

        monkeypatch.setattr(sys, "argv", ["outlierscope", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out, err = capsys.readouterr()
        return stop.value.code or 0, out, err

    return main


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
        (["--only", "colours"], "unknown kind 'colours'"),
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
def test_wrong_use_is_one_line_and_exit_code_2(call, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = call("scan", *arguments)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1, err
    assert message in err
    assert not list(tmp_path.iterdir()), "nothing may be left half-written"


def test_errors_of_a_process_of_its_own(tmp_path):
    assert "/no/such/model" in one_line(run("scan", "/no/such/model", cwd=tmp_path))
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


WORDS = "the a cat dog man sea boat went saw to and was old calm day . , : !"
FILES = {
    "scan.json",
    "findings.parquet",
    "stats-00000.safetensors",
    "stats-weights.safetensors",
    "examples-00000.safetensors",
    "report.html",
}
JSON_KEYS = {
    "model",
    "description",
    "verdict",
    "formats",
    "outliers",
    "heads",
    "attention",
    "read",
    "figures_read",
    "not_observed",
    "files",
    "next",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny Llama with a tokenizer of a few words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from tests.model.tiny import save, tiny_llama

    vocabulary = {word: index for index, word in enumerate(["<unk>", "<s>", "</s>", *WORDS.split()])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    folder = save(tiny_llama(), tmp_path_factory.mktemp("model") / "tiny")
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    wrapped.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def text_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "sea.txt"
    path.write_text("the old man went to the sea, and the sea was calm. the dog saw a boat! " * 40)
    return path


@pytest.fixture
def scan_it(call, model, text_file, tmp_path):
    """A quick scan of the tiny model into ``tmp_path / "scan"``, with further options."""

    def scan(*options):
        data = () if "--text" in options or "--data" in options else ("--data", text_file)
        small = ("--tokens", 400, "--length", 32, "--batch", 4, "--out", tmp_path / "scan")
        return call("scan", model, *data, *small, *options)

    return scan


def test_a_scan_prints_a_summary_and_leaves_its_files(scan_it, tmp_path):
    code, out, err = scan_it()
    assert (code, err) == (0, "")
    assert {path.name for path in (tmp_path / "scan").iterdir()} == FILES
    assert "OUTLIERS" in out
    assert "scan" in out.partition("FILES")[2], "where the files are"
    assert json.loads((tmp_path / "scan" / "scan.json").read_text())["read"]["tokens"] >= 400
    code, out, err = scan_it()
    assert (code, out) == (2, "")
    assert err.startswith("outlierscope: ")
    assert "already holds a scan; choose another --out, or replace it with --overwrite" in err
    assert scan_it("--overwrite")[0] == 0


def test_json_is_all_that_goes_to_stdout(scan_it, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal, so that progress is drawn
    code, out, err = scan_it("--json")
    assert code == 0
    summary = json.loads(out)
    assert out.startswith("{")
    assert summary.keys() >= JSON_KEYS
    assert "tokens" in err, "progress goes to stderr"


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--fail-on", "six_sigma", "--threshold", "six_sigma.sigma=2"], 3, "--fail-on: six_sigma found\n"),
        (["--fail-on", "weight_row, six_sigma", "--threshold", "six_sigma.sigma=2"], 3, "six_sigma found\n"),
        (["--fail-on", "six_sigma", "--threshold", "six_sigma.sigma=20"], 0, ""),
        (
            ["--fail-on", "sink", "--text", "the old man went to the sea"],
            1,
            "--fail-on: sink could not be judged",
        ),
    ],
)
def test_fail_on(scan_it, tmp_path, options, code, message):
    result, out, err = scan_it(*options)
    assert result == code, err
    assert message in err if message else not err
    assert "OUTLIERS" in out, "the summary is printed whatever the verdict"
    assert {path.name for path in (tmp_path / "scan").iterdir()} == FILES


def test_what_is_found_outweighs_what_could_not_be_judged(scan_it):
    text = "the old man went to the sea"
    options = ("--fail-on", "sink,six_sigma", "--threshold", "six_sigma.sigma=1.5", "--text", text)
    code, _, err = scan_it(*options)
    assert code == 3
    assert "--fail-on: sink could not be judged" in err
    assert "--fail-on: six_sigma found" in err


def test_one_text(scan_it, tmp_path):
    assert scan_it("--text", "the cat saw the dog")[0] == 0
    manifest = json.loads((tmp_path / "scan" / "scan.json").read_text())
    assert (manifest["read"]["sequences"], manifest["read"]["tokens"]) == (1, 5)
    assert manifest["corpus"]["source"]["title"] == "--text"
    code, _, err = scan_it("--overwrite", "--text", "the cat", "--data", "other.txt")
    assert code == 2
    assert "--text and --data exclude each other" in err


def test_weights_alone(call, model, tmp_path):
    code, out, err = call("scan", model, "--only", "weight", "--out", tmp_path / "scan", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)
    assert {path.name for path in (tmp_path / "scan").iterdir()} == FILES
    assert json.loads((tmp_path / "scan" / "scan.json").read_text())["anatomy"]["proved"] is None


def test_report_rewrites_the_page(scan_it, call, tmp_path):
    from outlierscope import Scan

    scan_it()
    page = tmp_path / "scan" / "report.html"
    before = page.read_text()
    page.write_text("lost")
    code, out, err = call("report", tmp_path / "scan")
    assert (code, out, err) == (0, f"{page}\n", "")
    assert page.read_text() == before
    assert Scan.open(tmp_path / "scan").manifest["files"].keys() == FILES - {"scan.json"}


@pytest.fixture
def interrupted(scan_it, monkeypatch):
    """Function that begins a scan, which Ctrl-C ends in its third batch."""

    def scan():
        from outlierscope.scanning.forward import TappedModel

        observe = TappedModel.observe

        def interrupt(self, batch, measurements):
            if batch.number == 2:
                raise KeyboardInterrupt
            return observe(self, batch, measurements)

        with monkeypatch.context() as patch:
            patch.setattr(TappedModel, "observe", interrupt)
            return scan_it()

    return scan


def test_an_interrupted_scan_says_how_to_go_on(interrupted):
    code, out, err = interrupted()
    assert (code, out) == (130, "")
    assert err.startswith("outlierscope: interrupted; "), repr(err)
    assert "goes on with the same command and --resume" in err
    assert len(err.splitlines()) == 1


def test_an_interrupted_scan_goes_on(scan_it, interrupted, tmp_path):
    from outlierscope import Scan

    scan_it()
    whole = Scan.open((tmp_path / "scan").rename(tmp_path / "whole"))
    assert interrupted()[0] == 130
    assert [path.name for path in (tmp_path / "scan").iterdir()] == ["resume"]
    code, _, err = scan_it()
    assert code == 2
    assert "holds an unfinished scan; go on with --resume, or start again with --overwrite" in err
    code, _, err = scan_it("--resume", "--seed", 1)
    assert code == 2
    assert "seed was 0 and is 1 now" in err
    assert scan_it("--resume")[0] == 0
    resumed = Scan.open(tmp_path / "scan")
    assert resumed.findings.equals(whole.findings)
    for name in FILES - {"scan.json", "report.html"}:
        assert resumed.manifest["files"][name] == whole.manifest["files"][name], name


LINES = ['{"text": "the cat saw the dog"}', '{"body": "the dog", "title": "a day"}']


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        ("broken.jsonl", [LINES[0], '{"text": "the'], [], "broken.jsonl:2: broken JSON"),
        (
            "list.jsonl",
            ["[1]", LINES[0]],
            [],
            "list.jsonl:1: holds a list of other things; every line must hold one",
        ),
        ("other.jsonl", LINES[1:], [], "other.jsonl:1: no column 'text'; there are: body, title; choose one"),
        ("named.jsonl", LINES, ["--column", "body"], "named.jsonl:1: no column 'body'; there are: text"),
        ("ids.jsonl", ['{"text": [3, 64]}'], [], "holds the token id 64, but the model knows 64 tokens"),
        ("empty.jsonl", [], [], "empty.jsonl is empty; give a file with text in it"),
        ("blank.txt", ["", " "], [], "blank.txt holds only white space"),
        ("table.csv", ["a,b"], [], "table.csv: unknown file type '.csv'"),
    ],
)
def test_wrong_data_is_one_line_and_leaves_nothing(scan_it, tmp_path, name, content, options, message):
    (tmp_path / name).write_text("\n".join(content))
    code, out, err = scan_it("--data", tmp_path / name, *options)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1, err
    assert message in err
    assert not (tmp_path / "scan").exists()


def test_data_that_break_off_later_are_one_line_too(scan_it, tmp_path):
    path = tmp_path / "late.jsonl"
    path.write_text("".join(line + "\n" for line in [LINES[0]] * 20 + ["{"]))
    code, _, err = scan_it("--data", path)
    assert code == 2
    assert len(err.splitlines()) == 1, err
    assert f"{path}:21: broken JSON" in err
    assert not (tmp_path / "scan" / "scan.json").exists()


def test_a_model_that_is_no_transformer(call, tmp_path):
    from transformers import ResNetConfig, ResNetModel

    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    ResNetModel(config).save_pretrained(tmp_path / "resnet")
    code, out, err = call("scan", tmp_path / "resnet", "--out", tmp_path / "scan")
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1, err
    assert "ResNetModel has no stack of blocks that attend" in err
    assert not (tmp_path / "scan").exists()
