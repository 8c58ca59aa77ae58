"""What files sources give, under which names, and what their sidecars say of them."""

from __future__ import annotations

import pickle
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from index_samples import write

from tritonrag.corpus import Source, find_files
from tritonrag.corpus.downloads import AHEAD, read_ahead
from tritonrag.corpus.sidecars import Refused
from tritonrag.documents import SourceFile, parse_document, read_file
from tritonrag.errors import InvalidRequest, SetupError
from tritonrag.metadata import Metadata


def test_folders_give_known_kinds_relative_to_them(tmp_path: Path) -> None:
    for name in ("b.md", "sub/A.TXT", "sub/x.png", ".git/c.md", ".hidden.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("text")
    files, failures, *_ = find_files([tmp_path, tmp_path / "b.md"])
    assert [file.source for file in files] == ["b.md", "sub/A.TXT"]
    assert failures == []


def test_what_cannot_be_found_is_named(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    (tmp_path / "a.exe").write_text("x")
    paths = [empty, tmp_path / "none.md", tmp_path / "a.exe"]
    files, failures, *_ = find_files(paths)
    assert files == []
    assert [failure.name for failure in failures] == [str(path) for path in paths]
    reasons = ["holds no file", "no such file", "not a kind"]
    assert all(map(str.startswith, [failure.reason for failure in failures], reasons))


def test_two_files_of_one_name_are_not_mixed_up(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.md").write_text(folder)
    files, failures, *_ = find_files([tmp_path / "a", tmp_path / "b"])
    assert [file.path for file in files] == [tmp_path / "a" / "x.md"]
    assert "common folder" in failures[0].reason


def test_a_name_keeps_sources_apart(tmp_path: Path) -> None:
    write(tmp_path / "a", x="a")
    write(tmp_path / "b", x="b")
    found = find_files([f"hr={tmp_path / 'a'}", tmp_path / "b", f"it={tmp_path / 'b' / 'x.md'}"])
    assert [file.source for file in found.files] == ["hr/x.md", "it/x.md", "x.md"]
    assert found.failures == []


def test_a_file_with_an_equals_sign_is_a_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a=b.md").write_text("text")
    assert [file.source for file in find_files(["a=b.md"]).files] == ["a=b.md"]
    assert Source.parse("a=b") == Source("b", "a")
    assert Source.parse("./a=b") == Source("./a=b")
    assert Source.parse("s3://bucket/a=b") == Source("s3://bucket/a=b")


def test_a_url_holds_no_password() -> None:
    with pytest.raises(InvalidRequest, match="holds no password") as caught:
        Source.parse("s3://me:secret@bucket/x")
    assert "secret" not in str(caught.value)


def test_an_unknown_store_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="ftp:// is no source"):
        find_files(["ftp://host/x"])
    with pytest.raises(SetupError, match="gs:// needs a package more: `pip install gcsfs`"):
        find_files(["gs://bucket/x"])


def test_sidecars_and_flags(tmp_path: Path) -> None:
    write(tmp_path, a="A.", b="B.", c="C.")
    (tmp_path / "a.md.meta.json").write_text('{"tags": ["x"], "access": "hr", "n": 1}')
    (tmp_path / "b.md.meta.yaml").write_text("access: []\ncreated: 2026-03-31\ntitle: Bee\n")
    found = find_files([tmp_path], {"tags": ["all"], "access": ["staff"], "n": 2})
    assert [dict(file.metadata) for file in found.files] == [
        {"tags": ["all", "x"], "access": ["hr"], "n": 1},
        {"tags": ["all"], "access": [], "created": "2026-03-31", "title": "Bee", "n": 2},
        {"tags": ["all"], "access": ["staff"], "n": 2},
    ]
    assert find_files([tmp_path / "a.md"]).files[0].metadata["access"] == ["hr"]
    document = parse_document(found.files[1], b"---\ntags: own\naccess: board\n---\nB.")
    assert document.title == "Bee"
    assert document.metadata == Metadata(("all", "own"), (), "2026-03-31", "", {"n": 2})


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("a.md.meta.json", '{"access": [1.5]}', "a.md.meta.json: metadata: `access` holds 1.5"),
        ("a.md.meta.json", "{", "a.md.meta.json: cannot be read: JSONDecodeError"),
        ("a.md.meta.json", "[1]", "expected names and values"),
        ("a.md.meta.yaml", "access:", "`access` has no value"),
        ("a.md.meta.yaml", "Access: hr", "'Access' is not a name; write `access`"),
        ("a.md.meta.yaml", "source: b.md", "`source` is where the file lies"),
        ("a.md.meta.yaml", "title: ''", "`title` is ''"),
        ("a.md.meta.yaml", "n: 0x" + "f" * 9000, "`n` is a huge number"),
        ("a.md.meta.yaml", "a: &a [x,x]\nb: &b [*a,*a]\nc: [*b,*b]", "`a` is .'x', 'x'."),
        ("a.md.meta.yaml", "tags: " + "x" * 70_000, "over 64 KiB"),
    ],
)
def test_a_document_with_a_bad_sidecar_is_refused(
    tmp_path: Path, name: str, text: str, reason: str
) -> None:
    write(tmp_path, a="A.")
    (tmp_path / name).write_text(text)
    (file,) = find_files([tmp_path]).files
    with pytest.raises(InvalidRequest, match=reason):
        read_file(file)


def test_two_sidecars_or_one_without_a_document(tmp_path: Path) -> None:
    write(tmp_path, a="A.")
    for name in ("a.md.meta.json", "a.md.meta.yaml", "b.md.meta.json", "c.png", "c.png.meta.json"):
        (tmp_path / name).write_text("{}")
    found = find_files([tmp_path])
    with pytest.raises(InvalidRequest, match="two sidecars"):
        read_file(found.files[0])
    assert [(Path(each.name).name, each.reason) for each in found.failures] == [
        ("b.md.meta.json", "a sidecar of 'b.md', which is not there")
    ]


def test_given_metadata_is_checked(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="`created` is 'soon'"):
        find_files([tmp_path], {"created": "soon"})


class Slow:
    """Readers that remember who read, and how many at a time."""

    def __init__(self) -> None:
        self.read: list[str] = []
        self.lock = threading.Lock()

    def file(self, name: str) -> SourceFile:
        return SourceFile(Path(name), name, url=f"s3://b/{name}", reader=SlowReader(self, name))


@dataclass(frozen=True)
class SlowReader:
    owner: Slow
    name: str

    def read(self, limit: int) -> bytes:
        with self.owner.lock:
            self.owner.read.append(self.name)
        if self.name == "bad":
            raise InvalidRequest("bad")
        return self.name.encode()[:limit]


def test_files_are_read_ahead_once_each_and_in_bounds() -> None:
    slow = Slow()
    names = [f"{number:02}" for number in range(40)]
    wanted = set(names) - {"03"}
    with read_ahead(map(slow.file, names), wanted) as files:
        assert slow.read == []
        assert read_file(files[0]) == b"00"
        assert "03" not in slow.read
        assert len(slow.read) <= AHEAD + 1
        assert [read_file(file).decode() for file in files[1:]] == names[1:]
    assert sorted(slow.read) == names


def test_files_that_are_skipped_do_not_hold_up_the_others() -> None:
    slow = Slow()
    names = [f"{number:02}" for number in range(60)]
    with read_ahead(map(slow.file, names), set(names)) as files:
        assert [read_file(file) for file in files[45:]]
        time.sleep(0.05)
        assert read_file(files[2]) == b"02"
    assert set(names[45:]) <= set(slow.read)


def test_a_fault_comes_with_its_own_file() -> None:
    slow = Slow()
    with read_ahead(map(slow.file, ["bad", "good"]), {"bad", "good"}) as files:
        with pytest.raises(InvalidRequest, match="bad"):
            read_file(files[0])
        assert read_file(files[1]) == b"good"


def test_another_process_gets_no_reader() -> None:
    refused = SourceFile(Path("a"), "a", url="s3://b/a", reader=Refused("no"))
    with read_ahead([refused], {"a"}) as files:
        sent = pickle.loads(pickle.dumps(files[0]))
    assert (sent, sent.reader) == (refused, None)
