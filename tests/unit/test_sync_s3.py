"""A collection kept in step with a bucket, through changes, faults and an outage."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from index_samples import HashEmbedder, manifest, parsers
from s3_server import Bucket, s3_bucket, s3_server

from tritonrag.corpus import find_files
from tritonrag.errors import InvalidRequest, Unavailable
from tritonrag.index import Snapshot, layout, syncing
from tritonrag.index.adding import Added, Adder
from tritonrag.scheduling import Backoff, Counts, Runner, Watcher

OBJECTS = 500


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with s3_server() as number:
        yield number


@pytest.fixture
def bucket(port: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Bucket]:
    with s3_bucket(port) as made:
        for variable, value in {
            "AWS_ACCESS_KEY_ID": "reader",
            "AWS_SECRET_ACCESS_KEY": "very-secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{made.door.server_address[1]}",
            "AWS_MAX_ATTEMPTS": "1",
            "AWS_CONFIG_FILE": str(tmp_path / "none"),
            "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"),
        }.items():
            monkeypatch.setenv(variable, value)
        yield made


class Syncing:
    """Runs of one collection; the failures of attempts, and the door opened after one."""

    def __init__(self, index_dir: Path, bucket: Bucket) -> None:
        self.index_dir = index_dir
        self.bucket = bucket
        self.failures: list[Exception] = []
        self.embedder = HashEmbedder()
        self.done = Added("default")

    def run(self, *, allow_empty: bool = False, attempts: int = 3) -> Added:
        self.embedder = HashEmbedder()
        self.bucket.door.reads.clear()
        watcher = Repairing(self)
        Runner(lambda: self._once(allow_empty), [watcher], Backoff(attempts, 0.01)).once()
        return self.done

    def _once(self, allow_empty: bool) -> Counts:
        found = find_files([source(self.bucket)])
        installed = manifest()
        records = syncing.current_documents(self.index_dir, "default", installed.sha256)
        syncing.check_listing(found, records, allow_empty=allow_empty)
        adder = Adder(self.index_dir, installed, self.embedder, parsers())
        recipe = parsers().chunker.settings.recipe
        self.done = syncing.sync(adder, "default", found, records, recipe)
        return {}

    def sources(self) -> list[str]:
        folder = self.index_dir / "default"
        snapshot = Snapshot.open(folder / str(layout.current(folder)))
        return [document.source for document in snapshot.documents]


class Repairing(Watcher):
    def __init__(self, syncing: Syncing) -> None:
        self.syncing = syncing

    def failed(self, error: Exception) -> None:
        self.syncing.failures.append(error)
        self.syncing.bucket.door.shut = False


@pytest.fixture
def syncs(tmp_path: Path, bucket: Bucket) -> Syncing:
    return Syncing(tmp_path / "index", bucket)


def source(bucket: Bucket) -> str:
    return f"s3://{bucket.name}/handbook"


def name(number: int) -> str:
    return f"{number:03}.md"


def test_changes_deletions_a_refusal_and_an_outage(syncs: Syncing, bucket: Bucket) -> None:
    bucket.put_all((f"handbook/{name(n)}", f"# T{n}\n\nText {n}.") for n in range(OBJECTS))
    everything = [name(number) for number in range(OBJECTS)]

    bucket.door.shut_at = OBJECTS // 2
    first = syncs.run()
    assert [type(error) for error in syncs.failures] == [Unavailable]
    assert (first.added, first.failures, syncs.sources()) == (OBJECTS, [], everything)
    syncs.failures.clear()

    for number in (3, 5, 7):
        bucket.put(f"handbook/{name(number)}", f"# T{number}\n\nOther text.")
    bucket.put(f"handbook/{name(9)}", "archived", StorageClass="GLACIER")
    bucket.delete(f"handbook/{name(11)}", f"handbook/{name(13)}")
    second = syncs.run()
    assert (second.changed, second.removed, second.unchanged) == (3, 2, OBJECTS - 6)
    assert [each.name for each in second.failures] == [f"{source(bucket)}/009.md"]
    assert "no permission to read it" in second.failures[0].reason
    assert sorted(bucket.door.reads) == [f"/{bucket.name}/handbook/{name(n)}" for n in (3, 5, 7, 9)]
    assert sorted(syncs.embedder.texts) == [f"T{n}\nOther text." for n in (3, 5, 7)]
    assert syncs.sources() == [each for each in everything if each not in ("011.md", "013.md")]

    bucket.door.shut = True
    third = syncs.run()
    assert "cannot be listed" in str(syncs.failures[0])
    assert (third.changed, third.removed, third.snapshot) == (0, 0, second.snapshot)
    assert syncs.embedder.texts == []


def test_an_outage_that_stays_changes_nothing(syncs: Syncing, bucket: Bucket) -> None:
    bucket.put("handbook/a.md", "A.")
    first = syncs.run()
    bucket.door.shut = True
    with pytest.raises(Unavailable, match="handbook: cannot be listed") as caught:
        syncs.run(attempts=1)
    assert "very-secret" not in str(caught.value)
    bucket.door.shut = False
    assert syncs.run().snapshot == first.snapshot


def test_an_empty_bucket_is_not_believed(syncs: Syncing, bucket: Bucket) -> None:
    bucket.put("handbook/a.md", "A.")
    syncs.run()
    bucket.delete("handbook/a.md")
    with pytest.raises(InvalidRequest, match="is empty but had documents"):
        syncs.run()
    assert syncs.run(allow_empty=True).removed == 1
    assert syncs.sources() == []


def test_a_sidecar_changes_metadata_and_embeds_nothing(syncs: Syncing, bucket: Bucket) -> None:
    bucket.put("handbook/a b#1.md", "A.")
    bucket.put("handbook/.hidden/b.md", "B.")
    syncs.run()
    bucket.put("handbook/a b#1.md.meta.json", '{"access": ["hr"]}')
    done = syncs.run()
    assert (done.changed, done.failures, syncs.embedder.texts) == (1, [], [])
    (record,) = syncing.current_documents(syncs.index_dir, "default", manifest().sha256)
    assert (record.path, record.metadata.access) == (f"{source(bucket)}/a b#1.md", ("hr",))
    assert syncs.run().unchanged == 1


def test_what_is_not_in_the_store_is_named(bucket: Bucket) -> None:
    found = find_files(["s3://nowhere/x"])
    assert [each.reason for each in found.unlisted] == ["no such bucket or folder"]
    with pytest.raises(Unavailable, match="nothing was changed"):
        syncing.check_listing(found, [])
    bucket.put("handbook/a.md", "A.")
    (file,) = find_files([f"{source(bucket)}/a.md"]).files
    bucket.delete("handbook/a.md")
    assert file.reader is not None
    with pytest.raises(InvalidRequest, match="is gone since it was listed"):
        file.reader.read(10)
