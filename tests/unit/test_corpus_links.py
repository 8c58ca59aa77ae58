"""Links in a source folder: what lies outside is refused and named, unless it is wanted."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from index_samples import add, write

from tritonrag.corpus import Found, find_files
from tritonrag.documents import read_file
from tritonrag.errors import InvalidRequest

OUTSIDE = "is a link that leads out of its folder; --follow-links indexes what such links lead to"


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    write(tmp_path / "docs", leave="# Leave\n\n30 days.")
    write(tmp_path / "docs" / "sub", vpn="# VPN\n\nToken.")
    write(tmp_path / "secret", pay="# Pay\n\nMonthly.")
    return tmp_path / "docs"


def read(found: Found) -> dict[str, str]:
    """Return the content of each file, or why it is refused."""
    said = {}
    for file in found.files:
        try:
            said[file.source] = read_file(file).decode()
        except InvalidRequest as error:
            said[file.source] = str(error)
    return said


@pytest.mark.parametrize("relative", [False, True])
def test_a_linked_file_outside_is_refused_and_named(docs: Path, relative: bool) -> None:
    target = "../secret/pay.md" if relative else docs.parent / "secret" / "pay.md"
    (docs / "pay.md").symlink_to(target)
    (docs / "shadow.txt").symlink_to("/etc/shadow")
    (docs / "passwd").symlink_to("/etc/passwd")
    found = find_files([docs])
    said = read(found)
    assert said["pay.md"] == said["shadow.txt"] == OUTSIDE
    assert found.unknown == [f"{docs}/passwd"]
    report = add(docs.parent / "index", docs)
    assert [(Path(each.name).name, each.reason) for each in report.failures] == [
        ("pay.md", OUTSIDE), ("shadow.txt", OUTSIDE)
    ]  # fmt: skip
    assert report.added == 2
    assert read(find_files([docs], follow_links=True))["pay.md"] == "# Pay\n\nMonthly."


def test_a_linked_folder_outside_is_named_and_not_gone_into(docs: Path) -> None:
    (docs / "more").symlink_to(docs.parent / "secret")
    (docs / "again").symlink_to("sub")
    found = find_files([docs])
    assert [file.source for file in found.files] == ["leave.md", "sub/vpn.md"]
    assert [(each.name, each.reason) for each in found.failures] == [(f"{docs}/more", OUTSIDE)]
    found = find_files([docs], follow_links=True)
    assert [file.source for file in found.files] == [
        "again/vpn.md", "leave.md", "more/pay.md", "sub/vpn.md"
    ]  # fmt: skip
    assert found.failures == []


def test_a_loop_of_links_ends(docs: Path) -> None:
    (docs / "sub" / "up").symlink_to("..")
    (docs / "sub" / "self").symlink_to(".")
    assert [file.source for file in find_files([docs]).files] == ["leave.md", "sub/vpn.md"]
    found = find_files([docs], follow_links=True)
    assert [file.source for file in found.files] == ["leave.md", "sub/vpn.md"]
    assert len(found.failures) == 2
    assert all("it would never end" in each.reason for each in found.failures)
    (docs / "a.md").symlink_to("b.md")
    (docs / "b.md").symlink_to("a.md")
    for follow in (False, True):
        said = read(find_files([docs], follow_links=follow))
        assert said["a.md"].startswith("cannot be read: Too many levels of symbolic links")


def test_links_among_folders_end_and_each_is_followed_once(docs: Path) -> None:
    folders = [docs / name for name in "abcdefgh"]
    for folder in folders:
        write(folder, own="# Own\n\nText.")
    for folder in folders:
        for other in folders:
            for number in range(2 * (other != folder)):
                (folder / f"to_{other.name}{number}").symlink_to(f"../{other.name}")
    found = find_files([docs], follow_links=True)
    assert {f"{folder.name}/own.md" for folder in folders} < {file.source for file in found.files}
    assert len(found.files) < 2 + 3 * len(folders)
    said = {each.reason for each in found.failures}
    assert said == {
        "is a link to a folder that it lies in; it would never end",
        "is a link to a folder that another link leads to, which is followed",
    }


def test_links_within_the_folder_are_files_like_others(docs: Path) -> None:
    """As a mounted ConfigMap has them."""
    shutil.move(docs / "leave.md", docs / "..2026")
    (docs / "..data").symlink_to("..2026")
    (docs / "leave.md").symlink_to("..data")
    assert read(find_files([docs]))["leave.md"] == "# Leave\n\n30 days."


def test_what_is_named_itself_may_be_a_link(docs: Path) -> None:
    (docs.parent / "linked").symlink_to(docs)
    (docs.parent / "linked.md").symlink_to(docs.parent / "secret" / "pay.md")
    said = read(find_files([docs.parent / "linked", docs.parent / "linked.md"]))
    assert sorted(said) == ["leave.md", "linked.md", "sub/vpn.md"]
    assert OUTSIDE not in said.values()


@pytest.mark.parametrize("alone", [False, True])
def test_a_linked_sidecar_outside_refuses_its_document(docs: Path, alone: bool) -> None:
    (docs.parent / "meta.yaml").write_text("access: []")
    (docs / "leave.md.meta.yaml").symlink_to("../meta.yaml")
    place = docs / "leave.md" if alone else docs
    assert read(find_files([place]))["leave.md"] == f"leave.md.meta.yaml: {OUTSIDE}"
    assert read(find_files([place], follow_links=True))["leave.md"].startswith("# Leave")


@pytest.mark.parametrize("follow", [False, True])
def test_a_link_does_not_leave_a_sidecar_behind(docs: Path, follow: bool) -> None:
    (docs / "leave.md.meta.yaml").write_text("access: [hr]")
    (docs / "open.md").symlink_to("leave.md")
    said = read(find_files([docs], follow_links=follow))
    assert said["leave.md"].startswith("# Leave")
    assert said["open.md"].startswith("is a link to a file with a sidecar")
    (docs / "open.md.meta.yaml").symlink_to("leave.md.meta.yaml")
    found = find_files([docs], follow_links=follow)
    assert all(file.metadata.get("access") == ["hr"] for file in found.files[:2])


@pytest.mark.parametrize("sidecar", ["b.md.meta.yaml", "c/real.md.META.YAML", "b.md.Meta.Json"])
def test_no_link_of_a_chain_leaves_a_sidecar_behind(docs: Path, sidecar: str) -> None:
    write(docs / "c", real="# Real\n\nText.")
    (docs / "a.md").symlink_to("b.md")
    (docs / "b.md").symlink_to(docs / "c" / "real.md")
    (docs / sidecar).write_text('{"access": ["hr"]}')
    for place in (docs, docs / "a.md"):
        assert read(find_files([place]))["a.md"].startswith("is a link to a file with a sidecar")


def test_a_file_that_is_named_itself_has_its_sidecar_whatever_its_case(docs: Path) -> None:
    (docs / "leave.md.META.YAML").write_text("access: [hr]")
    (file,) = find_files([docs / "leave.md"]).files
    assert file.metadata == {"access": ["hr"]}


def test_a_link_put_there_after_the_listing_is_seen(docs: Path) -> None:
    found = find_files([docs])
    (docs / "leave.md").unlink()
    (docs / "leave.md").symlink_to(docs.parent / "secret" / "pay.md")
    shutil.move(docs / "sub", docs / "old")
    (docs.parent / "secret" / "vpn.md").write_text("secret")
    (docs / "sub").symlink_to(docs.parent / "secret")
    assert read(found) == {"leave.md": OUTSIDE, "sub/vpn.md": OUTSIDE}


def test_a_pipe_does_not_hold_a_run(docs: Path) -> None:
    found = find_files([docs])
    (docs / "leave.md").unlink()
    os.mkfifo(docs / "leave.md")
    assert read(found)["leave.md"] == "cannot be read: not a regular file"
