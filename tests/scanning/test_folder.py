"""A scan folder never costs anybody a file that is not a scan's."""

import pytest

import outlierscope as osc
from outlierscope.errors import UserError
from outlierscope.scanning.scan import check_folder, clear_folder
from tests.model.tiny import tiny_llama

IDS = [list(range(64))]


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", ["notes.txt", "parts/data.csv", "resume/cv.pdf"])
def test_a_folder_with_other_files_is_refused(tmp_path, name, overwrite):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("mine")
    first = name.split("/")[0]
    with pytest.raises(
        UserError, match=rf"holds {first}, which is of no scan; name a folder that is new or empty"
    ):
        osc.scan(osc.wrap(tiny_llama()), IDS, out=tmp_path, overwrite=overwrite)
    assert path.read_text() == "mine"


def test_overwriting_removes_the_old_scan_and_nothing_else(tmp_path):
    scan = osc.scan(osc.wrap(tiny_llama()), IDS, out=tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "resume").mkdir()
    (tmp_path / "resume" / "cv.pdf").write_text("mine")
    check_folder(scan.folder, overwrite=True)
    clear_folder(scan.folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt", "resume"]
    assert (tmp_path / "resume" / "cv.pdf").read_text() == "mine"


def test_what_a_kill_left_half_written_is_no_obstacle(tmp_path):
    (tmp_path / "resume").mkdir()
    for name in (".findings.parquet.x1", "resume/.cursor.json.ab", "resume/state-00000002.safetensors"):
        (tmp_path / name).write_text("half")
    assert osc.scan(osc.wrap(tiny_llama()), IDS, out=tmp_path).folder == tmp_path
    assert not (tmp_path / "resume").exists()
