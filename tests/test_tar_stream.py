"""The stream of a tar archive: an end that is missing, and headers that are damaged, are not the end of the archive."""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path

import pytest

from asrkit.corpus import open_corpus
from asrkit.corpus.tar_stream import members_of
from asrkit.errors import DataError

NAMES = [f"es/clips/{number}.mp3" for number in range(5)]


def plain_tar() -> tuple[bytes, list[int]]:
    """A tar of five clips, and where each member starts."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:") as tar:
        for name in NAMES:
            info = tarfile.TarInfo(name)
            info.size = 700
            tar.addfile(info, io.BytesIO(bytes(700)))
        places = [member.offset for member in tar.getmembers()]
    return stream.getvalue(), places


def names_in(path: Path) -> list[str]:
    return [name for name, _, _ in members_of(path, whole=True)]


@pytest.mark.fault
@pytest.mark.parametrize("ending", ["tar", "tar.gz"])
def test_a_damaged_header_is_not_the_end(tmp_path: Path, ending: str) -> None:
    whole, places = plain_tar()
    path = tmp_path / f"cv.{ending}"
    damaged = bytearray(whole)
    damaged[places[3] + 148] ^= 1  # the checksum of the fourth header
    for content, wanted in ((whole, NAMES), (bytes(damaged), None)):
        path.write_bytes(gzip.compress(content) if ending == "tar.gz" else content)
        if wanted:
            assert names_in(path) == wanted
            continue
        with pytest.raises(DataError, match="no whole tar archive") as caught:
            names_in(path)
        assert caught.value.reason == "not_archive"


@pytest.mark.fault
@pytest.mark.parametrize("beyond", [0, 100, 600])
def test_a_tar_without_checksum_that_is_cut_is_found_out(tmp_path: Path, beyond: int) -> None:
    """Between two members, in a header, in a clip."""
    whole, places = plain_tar()
    path = tmp_path / "cv.tar"
    path.write_bytes(whole[: places[3] + beyond])
    with pytest.raises(DataError, match="no whole tar archive") as caught:
        names_in(path)
    assert caught.value.reason == "not_archive"


def test_an_archive_whose_list_was_cleaned_away_is_listed_again(tmp_path: Path) -> None:
    tables = {
        f"es/{split}.tsv": f"client_id\tpath\tsentence\ns\t{i}.mp3\thola\n" for i, split in ((0, "train"), (1, "dev"))
    }
    with tarfile.open(tmp_path / "cv.tar.gz", "w:gz") as tar:
        for name, content in {**tables, NAMES[0]: "a", NAMES[1]: "bb"}.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content.encode()))
    first = open_corpus(tmp_path / "cv.tar.gz", cache=tmp_path / "cache")
    first.fetch(first.read("train"))  # type: ignore[attr-defined]
    (folder,) = (tmp_path / "cache").iterdir()
    files = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    kept = folder / "es" / "clips" / "0.mp3"
    before = kept.stat().st_mtime_ns
    (folder / "members.tsv").unlink()
    (folder / "es" / "dev.tsv").unlink()
    again = open_corpus(tmp_path / "cv.tar.gz", cache=tmp_path / "cache")
    again.fetch(again.read("train"))  # type: ignore[attr-defined]
    assert {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()} == files
    assert kept.stat().st_mtime_ns == before
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [folder.name]
