"""Members of tar files that are no plain files: the indexed and the streamed reader give the same, or both refuse."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.data.toys import jpeg, write_tar

from unlabeled.data.sources.tar import stream as tar_stream
from unlabeled.data.sources.tar.index import load_index
from unlabeled.data.sources.tar.stream import read_tar
from unlabeled.errors import UserError

Sample = tuple[str, dict[str, bytes]]


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar_stream, "WAIT", 0.0)
    monkeypatch.setattr(tar_stream, "_TARGETS", {})


def indexed(tar: Path) -> list[Sample]:
    index = load_index(tar, None)
    data = tar.read_bytes()
    return [(index.keys[row], {field: data[index.offsets[row, column] :][: index.sizes[row, column]]
                               for column, field in enumerate(index.fields) if index.offsets[row, column] >= 0})
            for row in range(len(index.keys))]


def both(tar: Path) -> list[Sample]:
    """Return the samples of a tar file, the same by both readers."""
    samples = indexed(tar)
    for _ in range(2):  # the second time links are known
        assert [(member.key, member.fields) for member in read_tar(str(tar))] == samples
    return samples


def refused(tar: Path, text: str) -> None:
    """Assert that both readers refuse the file in one line that names it, at once."""
    for read in (indexed, lambda tar: list(read_tar(str(tar)))):
        with pytest.raises(UserError) as error:
            read(tar)
        assert str(error.value).startswith(f"shard {tar}")
        assert text in str(error.value)
        assert "\n" not in str(error.value)
        assert "tries" not in str(error.value)


def tar_of(path: Path, *members: tuple[str, bytes | str | None], kind: bytes = tarfile.LNKTYPE,
           form: int = tarfile.GNU_FORMAT, change: Callable[[tarfile.TarInfo], None] | None = None) -> Path:
    """Write members: bytes are files, text is what a member of `kind` links to, None is one without content."""
    with tarfile.open(path, "w", format=form) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, bytes):
                info.size = len(content)
                if change is not None:
                    change(info)
                tar.addfile(info, io.BytesIO(content))
            else:
                info.type, info.linkname = kind, content or ""
                tar.addfile(info)
    return path


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_hard_links_are_the_files_that_they_link_to(tmp_path: Path, form: int) -> None:
    long = "deep/" + "x" * 60 + "/" + "y" * (25 if form == tarfile.USTAR_FORMAT else 180)
    tar = tar_of(tmp_path / "x.tar", ("./a.jpg", b"image"), ("a.cls", b"1"), (f"{long}.jpg", b"long"), ("plain", b"7"),
                 ("b.jpg", "a.jpg"), ("b.cls", "./a.cls"), ("c.jpg", "b.jpg"), ("c.cls", "plain"),
                 ("d.jpg", f"{long}.jpg"), ("also", "a.jpg"), ("e.jpg", "also"),
                 form=form)
    samples = both(tar)
    assert samples == [
        ("./a", {"jpg": b"image"}), ("a", {"cls": b"1"}), (long, {"jpg": b"long"}),
        ("b", {"jpg": b"image", "cls": b"1"}),
        ("c", {"jpg": b"image", "cls": b"7"}), ("d", {"jpg": b"long"}), ("e", {"jpg": b"image"})]


@pytest.mark.skipif(shutil.which("tar") is None, reason="no tar command")
@pytest.mark.parametrize("form", ["gnu", "pax", "ustar", "oldgnu"])
def test_what_gnu_tar_makes_of_linked_files(tmp_path: Path, form: str) -> None:
    folder = tmp_path / "set"
    (folder / "other").mkdir(parents=True)
    (folder / "a.jpg").write_bytes(jpeg(0))
    (folder / "a.cls").write_bytes(b"0")
    (folder / "b.jpg").hardlink_to(folder / "a.jpg")
    (folder / "b.cls").write_bytes(b"1")
    (folder / "other" / "c.jpg").hardlink_to(folder / "a.jpg")
    (folder / "other" / "c.cls").hardlink_to(folder / "b.cls")
    tar = tmp_path / "x.tar"
    subprocess.run(["tar", f"--format={form}", "--sort=name", "-cf", tar, "-C", folder, "."], check=True)
    assert {key: fields for key, fields in both(tar)} == {
        "./a": {"jpg": jpeg(0), "cls": b"0"}, "./b": {"jpg": jpeg(0), "cls": b"1"},
        "./other/c": {"jpg": jpeg(0), "cls": b"1"}}


@pytest.mark.parametrize("target", ["a.jpg", "b.jpg", "absent.jpg", "c.jpg", "folder", ""])
def test_a_hard_link_to_no_earlier_file_is_refused(tmp_path: Path, target: str) -> None:
    tar = tar_of(tmp_path / "x.tar", ("a.jpg", target), ("c.jpg", b"later"))
    refused(tar, f"member a.jpg is a hard link to {target or '.'}, which is no file before it in the shard")
    tar = tar_of(tmp_path / "y.tar", ("a", target), ("c.jpg", b"no part of a sample is passed over"))
    assert len(both(tar)) == 1


@pytest.mark.parametrize(("kind", "text"), [
    (tarfile.SYMTYPE, "member a.jpg is a symbolic link; pack what it points to, with tar --dereference"),
    (tarfile.CHRTYPE, "member a.jpg is a device"), (tarfile.BLKTYPE, "member a.jpg is a device"),
    (tarfile.FIFOTYPE, "member a.jpg is a named pipe"), (b"M", "is a part of a file that another volume begins"),
    (b"Q", "is of the unknown kind 'Q'"), (b"S", "is a sparse file; pack it without --sparse"),
])
def test_what_is_no_file_is_refused_where_it_belongs_to_a_sample(tmp_path: Path, kind: bytes, text: str) -> None:
    refused(tar_of(tmp_path / "x.tar", ("b.jpg", b"image"), ("a.jpg", "b.jpg"), kind=kind), text)
    tar = tar_of(tmp_path / "y.tar", ("b.jpg", b"image"), ("latest", "b.jpg"), ("c.jpg", b"more"), kind=kind)
    assert [key for key, _ in both(tar)] == ["b", "c"]


def test_folders_volume_names_and_common_headers_are_passed_over(tmp_path: Path) -> None:
    for kind in (tarfile.DIRTYPE, b"V", b"D"):
        tar = tar_of(tmp_path / "x.tar", ("v1.2", None), ("b.jpg", b"image"), kind=kind)
        assert both(tar) == [("b", {"jpg": b"image"})]
    with tarfile.open(tar, "w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "made by git"}) as made:
        made.addfile(tarfile.TarInfo("b.jpg"))
    assert both(tar) == [("b", {"jpg": b""})]
    with tarfile.open(tar, "w", format=tarfile.PAX_FORMAT, pax_headers={"path": "all.jpg"}) as made:
        made.addfile(tarfile.TarInfo("b.jpg"))
    refused(tar, "gives all members one path; pack it anew")


@pytest.mark.skipif(shutil.which("tar") is None, reason="no tar command")
@pytest.mark.parametrize("form", [["--format=gnu"], *(["--format=pax", f"--sparse-version={version}"]
                                                      for version in ("0.0", "0.1", "1.0"))])
def test_sparse_files_are_refused_in_every_form(tmp_path: Path, form: list[str]) -> None:
    with open(tmp_path / "a.bmp", "wb") as file:
        file.write(b"begin")
        file.seek(1 << 20)
        file.write(b"end")
    (tmp_path / "b.jpg").write_bytes(b"image")
    tar = tmp_path / "x.tar"
    subprocess.run(["tar", *form, "--hole-detection=raw", "-S", "-cf", tar, "-C", tmp_path, "b.jpg", "a.bmp"],
                   check=True)
    refused(tar, "a.bmp is a sparse file; pack it without --sparse")


def test_data_after_the_end_mark_is_refused(tmp_path: Path) -> None:
    first = write_tar(tmp_path / "a.tar", {"a.jpg": b"1"}).read_bytes()
    second = write_tar(tmp_path / "b.tar", {"b.jpg": b"2"}).read_bytes()
    tar = tmp_path / "x.tar"
    for content in (first + second, first[:1536] + second, first + b"x", first + bytes(3 << 20) + second):
        tar.write_bytes(content)
        refused(tar, "goes on after its end mark at byte 1024, as files do that cat has joined")
    for content in (first + bytes(512), first + bytes(5), first[:1536], first + bytes(3 << 20)):
        tar.write_bytes(content)
        assert both(tar) == [("a", {"jpg": b"1"})]


@pytest.mark.parametrize(("compress", "name", "tool"), [
    (gzip.compress, "gzip", "gunzip"), (bz2.compress, "bzip2", "bunzip2"), (lzma.compress, "xz", "unxz")])
def test_compressed_shards_stream_but_have_no_random_access(
        tmp_path: Path, compress: Callable[[bytes], bytes], name: str, tool: str) -> None:
    data = write_tar(tmp_path / "a.tar", {f"{i}.jpg": jpeg(i) for i in range(3)}).read_bytes()
    tar = tmp_path / "x.tar"
    tar.write_bytes(compress(data))
    assert [member.fields["jpg"] for member in read_tar(str(tar))] == [jpeg(i) for i in range(3)]
    with pytest.raises(UserError,
                       match=rf"x.tar is not a plain tar file: it is compressed \({name}\); unpack it with {tool}$"):
        load_index(tar, None)
    tar.write_bytes(compress(data)[:200])
    with pytest.raises(UserError, match=rf"x.tar is not a plain tar file: it is compressed \({name}\)"):
        load_index(tar, None)
    tar.write_bytes(compress(data)[:-30])
    with pytest.raises(UserError, match=r"x.tar cannot be read, 4 tries: "):
        list(read_tar(str(tar)))


def test_members_of_one_extension_are_refused_and_so_are_other_files(tmp_path: Path) -> None:
    tar = tar_of(tmp_path / "x.tar", ("a.jpg", b"1"), ("a.JPG", b"2"))
    refused(tar, "holds a.JPG twice")
    tar = tar_of(tmp_path / "x.tar", ("a.jpg", b"1"), ("b.jpg", b"2"), ("a.jpg", b"3"))
    assert [key for key, _ in both(tar)] == ["a", "b", "a"]  # as webdataset reads it
    for content, text in ((b"<html></html>", "a web page"), (b"PK\x03\x04" + bytes(600), "it is a zip archive"),
                          (b"<!DOCTYPE html>" + bytes(600), "a web page"),
                          (b"version https://git-lfs.github.com/spec/v1\n" + bytes(600), "git lfs pull"),
                          (b"\xff" * 1024, "no member header at byte 0")):
        tar.write_bytes(content)
        refused(tar, text)


def header(pax: bytes, body: bytes = b"image") -> bytes:
    """Return a tar file whose one member has a PAX header with these records."""
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, len(pax)
    member = tarfile.TarInfo("a.jpg")
    member.size = len(body)
    parts = [info.tobuf(tarfile.USTAR_FORMAT), pax.ljust(-(-len(pax) // 512) * 512, b"\0"),
             member.tobuf(tarfile.USTAR_FORMAT), body.ljust(512, b"\0"), bytes(1024)]
    return b"".join(parts)


@pytest.mark.parametrize("pax", [
    b"0 path=b.jpg\n", b"00000 \n", b"-5 path=b\n", b"99 path=b.jpg\n", b"12 path=b.jpg\n", b"path=b.jpg\n", b"\0" * 20,
    b"7 path\n", b"\xd9\xa3 x=\n", b"999999999999999999999 path=x\n", b"13 path=b.jpgx",
    b"29 size=99999999999999999999\n", b"28 size=9999999999999999999\n", b"11 size=-1\n", b"12 size=1_0\n",
    b"11 size=\xd9\xa3\n",
])
def test_damaged_pax_headers_neither_hang_nor_read_something_else(tmp_path: Path, pax: bytes) -> None:
    tar = tmp_path / "x.tar"
    tar.write_bytes(header(pax))
    refused(tar, "is damaged")


def test_sound_pax_headers_are_read(tmp_path: Path) -> None:
    tar = tmp_path / "x.tar"
    tar.write_bytes(header(b"14 path=b.jpg\n" + b"10 size=3\n" + b"12 comment=\n"))
    assert both(tar) == [("b", {"jpg": b"ima"})]


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.REGTYPE])
@pytest.mark.parametrize("size", [b"77777777777\0", b"\x80" + b"\0" * 3 + b"\x7f" * 8, b"\xff" * 12,
                                  b"\x80" + b"\xff" * 11, b"99999999999\0"])
def test_sizes_that_cannot_be(tmp_path: Path, kind: bytes, size: bytes) -> None:
    info = tarfile.TarInfo("a.jpg")
    info.type = kind
    data = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    data[124:136], data[148:156] = size, b" " * 8
    data[148:156] = b"%06o\0 " % sum(data)
    tar = tmp_path / "x.tar"
    tar.write_bytes(bytes(data) + bytes(1024))
    for read in (indexed, lambda tar: list(read_tar(str(tar)))):
        with pytest.raises(UserError,
                           match=r"shard .*x.tar:? (is damaged|is truncated|member a.jpg is of [0-9]+ bytes|"
                           r"cannot be read, 4 tries: unexpected end)"):
            read(tar)


def test_times_in_gnu_headers_are_no_part_of_a_name(tmp_path: Path) -> None:
    """Where ustar has the front of a long name, incremental GNU archives have times."""
    tar = tar_of(tmp_path / "a.tar", ("a.jpg", b"image"), ("a.cls", b"3"))
    data = bytearray(tar.read_bytes())
    for start in (0, 1024):
        assert data[start + 257 : start + 265] == b"ustar  \0"
        data[start + 345 : start + 357] = b"14000000000\0"
        data[start + 148 : start + 156] = b" " * 8
        data[start + 148 : start + 156] = b"%06o\0 " % sum(data[start : start + 512])
    tar.write_bytes(data)
    assert both(tar) == [("a", {"jpg": b"image", "cls": b"3"})]
