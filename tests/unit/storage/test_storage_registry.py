"""The registry on a local root: numbers, aliases, holds, faults, signatures."""

import threading

import pytest

from sundog.errors import Conflict, Corrupt, NotFound, StorageUnavailable, SundogError
from sundog.storage.datasets import open_dataset
from sundog.storage.gc import orphans
from sundog.storage.models import Registry, Signature, TensorSpec
from sundog.storage.root import open_root
from sundog.storage.runs import open_run


def signature(*shape, name="pixels"):
    return Signature((TensorSpec(name, "FP32", shape),), (TensorSpec("logits", "FP32", (-1, 10)),))


@pytest.fixture
def root(tmp_path):
    return open_root(str(tmp_path / "root"))


@pytest.fixture
def registry(root):
    return Registry(root)


@pytest.fixture
def register(registry, tmp_path):
    def call(name="digits", data=b"weights", shape=(-1, 64), **more):
        path = tmp_path / "model.pt2"
        path.write_bytes(data)
        return registry.register(
            name,
            {"model.pt2": path, "more/notes.txt": path},
            kind="torch-export",
            signature=signature(*shape),
            metrics={"accuracy": 0.97},
            lineage={"run": "digits-1"},
            **more,
        )

    return call


def test_versions_count_up_and_are_found_by_number_alias_and_latest(registry, register):
    first, second = register(alias="champion"), register(data=b"better")
    assert (first.version, second.version) == (1, 2)
    assert registry.get("digits@1") == registry.get("digits@champion") == first
    assert registry.get("digits") == registry.get("digits@latest") == second
    assert registry.get("digits", default="champion") == first
    assert registry.models() == ["digits"]
    assert registry.versions("digits") == [first, second]
    assert first.ref == "digits@1"
    assert first.lineage == {"run": "digits-1"}


def test_what_is_not_there_names_what_is_near(registry, register):
    with pytest.raises(NotFound, match="digits") as raised:
        registry.get("digits@1")
    assert "no model yet" in raised.value.fix
    register(alias="champion")
    for reference, near in (("digts", "'digits'"), ("digits@9", "digits@1"),
                            ("digits@candidate", "digits@champion")):  # fmt: skip
        with pytest.raises(NotFound) as raised:
            registry.get(reference)
        assert near in raised.value.fix


def test_a_failed_upload_leaves_nothing_to_see(root, registry, register, monkeypatch):
    real = type(root).upload

    def second_file_fails(self, path, key):
        if key.endswith("notes.txt"):
            raise StorageUnavailable("gone")
        real(self, path, key)

    monkeypatch.setattr(type(root), "upload", second_file_fails)
    with pytest.raises(StorageUnavailable):
        register(alias="champion")
    assert registry.models() == []
    assert registry.aliases("digits") == {}
    assert len(orphans(root, older_than_s=-60)) == 1
    monkeypatch.undo()
    assert register().version == 1


def test_readers_see_a_version_whole_or_not_at_all(registry, register):
    seen, stop = [], threading.Event()

    def read():
        reader = Registry(registry.root)
        while not stop.is_set():
            try:
                version = reader.get("digits@latest")
            except NotFound:
                continue
            seen.append(version.version)
            assert reader.verify(version.ref) == []

    thread = threading.Thread(target=read)
    thread.start()
    for n in range(20):
        register(data=b"x" * (1 + n))
    stop.set()
    thread.join()
    assert seen == sorted(seen)


def test_a_signature_that_followers_would_break_on_is_refused(registry, register):
    register(alias="champion")
    register(shape=(-1, 64))
    with pytest.raises(Conflict, match=r"takes 'pixels' FP32 \[-1, 8, 8\].*digits@champion") as e:
        register(shape=(-1, 8, 8))
    assert "--new-signature" in e.value.fix
    assert [v.version for v in registry.versions("digits")] == [1, 2]
    assert register(shape=(-1, 8, 8), new_signature=True).version == 3


def test_without_an_alias_a_signature_may_change(register):
    register()
    assert register(shape=(-1, 8, 8)).version == 2


def test_an_alias_moves_only_from_where_it_is_expected(registry, register):
    register(alias="champion"), register(), register()
    registry.set_alias("digits", "champion", 2, expect=1)
    with pytest.raises(Conflict, match="points at 2, not at 1"):
        registry.set_alias("digits", "champion", 3, expect=1)
    with pytest.raises(Conflict, match="not at nothing"):
        registry.set_alias("digits", "champion", 3, expect=None)
    registry.set_alias("digits", "candidate", 3, expect=None)
    assert registry.aliases("digits") == {"champion": 2, "candidate": 3}
    registry.remove_alias("digits", "candidate")
    assert registry.aliases("digits") == {"champion": 2}


def test_of_two_that_expect_the_same_alias_one_wins(registry, register):
    register(alias="champion")
    for _ in range(8):
        register()
    won, barrier = [], threading.Barrier(8)

    def move(version):
        barrier.wait()
        try:
            Registry(registry.root).set_alias("digits", "champion", version, expect=1)
        except Conflict:
            return
        won.append(version)

    threads = [threading.Thread(target=move, args=(n,)) for n in range(2, 10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [registry.aliases("digits")["champion"]] == won


@pytest.mark.parametrize("alias", ["latest", "3", "", "A", "a/b"])
def test_an_alias_that_means_something_else_is_refused(registry, register, alias):
    register()
    with pytest.raises(SundogError):
        registry.set_alias("digits", alias, 1)


def test_an_alias_points_only_at_what_is_there(registry, register):
    register()
    with pytest.raises(NotFound):
        registry.set_alias("digits", "champion", 2)
    assert registry.aliases("digits") == {}


def test_verify_finds_a_flipped_byte_and_a_missing_file(root, registry, register):
    version = register()
    assert registry.verify("digits@1") == []
    path = root.local_path(version.key("model.pt2"))
    data = bytearray(path.read_bytes())
    data[3] ^= 1
    path.write_bytes(data)
    root.delete(version.key("more/notes.txt"))
    first, second = registry.verify("digits@1")
    assert "model.pt2: sha256" in first
    assert "more/notes.txt: missing" in second


def test_a_held_version_is_not_deleted(registry, register):
    register()
    registry.hold("digits", 1, "service digits")
    registry.hold("digits", 1, "service digits")
    with pytest.raises(Conflict, match="service digits needs it"):
        registry.delete("digits@1")
    assert registry.verify("digits@1") == []
    assert registry.holds("digits", 1) == ["service digits"]
    registry.release("digits", 1, "service digits")
    registry.delete("digits@1")
    with pytest.raises(NotFound, match="was deleted"):
        registry.hold("digits", 1, "service digits")


def test_a_version_with_an_alias_is_not_deleted_and_stays_usable(registry, register):
    register(alias="champion")
    with pytest.raises(Conflict, match="champion") as raised:
        registry.delete("digits@1")
    assert "sundog models alias" in raised.value.fix
    registry.hold("digits", 1, "service digits")  # the refused delete left no mark
    registry.delete("digits@1", force=True)
    assert registry.aliases("digits") == {}


def test_a_deleted_version_is_gone_with_its_files_and_its_number_stays_taken(
    root, registry, register
):
    register(), register()
    files_at = registry.get("digits@2").files_at
    registry.delete("digits@2")
    assert list(root.entries(files_at)) == []
    assert registry.get("digits").version == 1
    with pytest.raises(NotFound, match="was deleted"):
        registry.get("digits@2")
    assert register().version == 3
    registry.delete("digits@1")
    registry.delete("digits@3")
    assert registry.models() == []
    assert registry.versions("digits") == []
    with pytest.raises(NotFound, match="all versions"):
        registry.get("digits")
    assert register().version == 4


def test_an_interrupted_delete_blocks_new_users_and_can_be_finished(
    root, registry, register, monkeypatch
):
    register()
    monkeypatch.setattr(
        type(root), "write", lambda *a: (_ for _ in ()).throw(StorageUnavailable("gone"))
    )
    with pytest.raises(StorageUnavailable):
        registry.delete("digits@1")
    monkeypatch.undo()
    with pytest.raises(NotFound):
        registry.hold("digits", 1, "service digits")
    with pytest.raises(NotFound):
        registry.set_alias("digits", "champion", 1)
    assert registry.aliases("digits") == {}
    registry.delete("digits@1")
    assert registry.models() == []


def test_a_number_is_one_direct_read(root, registry, register, monkeypatch):
    for _ in range(3):
        register()
    monkeypatch.setattr(type(root), "children", lambda *a: pytest.fail("listed"))
    monkeypatch.setattr(type(root), "entries", lambda *a: pytest.fail("listed"))
    registry.set_alias("digits", "champion", 2)
    assert registry.get("digits@2") == registry.get("digits@champion")


@pytest.mark.parametrize("name", ["../runs", "a/b", "", "A", ".staging"])
def test_a_reference_that_is_no_name_is_an_error_of_ours_and_reads_nothing(registry, name):
    for call in (
        lambda: registry.get(f"{name}@1"),
        lambda: registry.versions(name),
        lambda: registry.aliases(name),
        lambda: registry.set_alias(name, "champion", 1),
        lambda: registry.hold(name, 1, "x"),
        lambda: registry.delete(f"{name}@1"),
        lambda: open_dataset(registry.root, name),
        lambda: open_run(registry.root, name),
    ):
        with pytest.raises(SundogError):
            call()


def test_a_document_that_names_files_of_others_is_corrupt(root, registry, register):
    """Deleting it would delete them."""
    victim = register(name="victim")
    register()
    key = "models/digits/1/model.json"
    document = root.read(key).replace(
        registry.get("digits@1").files_at.encode(), victim.files_at.encode()
    )
    root.write(key, document)
    with pytest.raises(Corrupt):
        registry.delete("digits@1", force=True)
    assert registry.verify("victim@1") == []
