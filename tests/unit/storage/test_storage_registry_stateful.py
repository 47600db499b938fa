"""Any sequence of registry calls agrees with a model of it that fits on one screen."""

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from sundog.errors import Conflict, NotFound
from sundog.storage.gc import orphans
from sundog.storage.models import Registry, Signature, TensorSpec
from sundog.storage.root import open_root

NAMES = st.sampled_from(["digits", "digits-2"])
ALIASES = st.sampled_from(["champion", "candidate"])
VERSIONS = st.integers(1, 6)
HOLDERS = st.sampled_from(["service a", "service b"])


def signature(width):
    return Signature((TensorSpec("x", "FP32", (-1, width)),), (TensorSpec("y", "FP32", (-1, 2)),))


class RegistryMachine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="sundog-stateful-"))
        self.file = self.folder / "model.bin"
        self.registry = Registry(open_root(str(self.folder / "root")))
        self.live = {}  # (name, version) -> width of its input
        self.taken = {}  # name -> how many numbers were given out
        self.aliases = {}  # (name, alias) -> version
        self.held = {}  # (name, version) -> set of holders

    def teardown(self):
        shutil.rmtree(self.folder)

    @rule(name=NAMES, width=st.sampled_from([4, 8]), alias=st.none() | ALIASES, new=st.booleans())
    def register(self, name, width, alias, new):
        self.file.write_bytes(f"{name} {width} {self.taken.get(name, 0)}".encode())
        breaks = any(self.live[n, v] != width for (n, _), v in self.aliases.items()
                     for n in [n] if n == name)  # fmt: skip

        def call():
            return self.registry.register(
                name, {"model.bin": self.file}, kind="torch-export", signature=signature(width),
                metrics={}, lineage={}, alias=alias, new_signature=new,
            )  # fmt: skip

        if breaks and not new:
            with pytest.raises(Conflict):
                call()
            return
        self.taken[name] = self.taken.get(name, 0) + 1
        assert call().version == self.taken[name]
        self.live[name, self.taken[name]] = width
        if alias:
            self.aliases[name, alias] = self.taken[name]

    @rule(name=NAMES, alias=ALIASES, version=VERSIONS, expect=st.just("any") | st.none() | VERSIONS)
    def set_alias(self, name, alias, version, expect):
        now = self.aliases.get((name, alias))
        if (name, version) not in self.live:
            with pytest.raises(NotFound):
                self.registry.set_alias(name, alias, version, expect)
        elif expect not in ("any", now):
            with pytest.raises(Conflict):
                self.registry.set_alias(name, alias, version, expect)
        else:
            self.registry.set_alias(name, alias, version, expect)
            self.aliases[name, alias] = version

    @rule(name=NAMES, alias=ALIASES)
    def remove_alias(self, name, alias):
        self.registry.remove_alias(name, alias)
        self.aliases.pop((name, alias), None)

    @rule(name=NAMES, version=VERSIONS, holder=HOLDERS)
    def hold(self, name, version, holder):
        if (name, version) not in self.live:
            with pytest.raises(NotFound):
                self.registry.hold(name, version, holder)
            return
        self.registry.hold(name, version, holder)
        self.held.setdefault((name, version), set()).add(holder)

    @rule(name=NAMES, version=VERSIONS, holder=HOLDERS)
    def release(self, name, version, holder):
        if (name, version) in self.live:
            self.registry.release(name, version, holder)
            self.held.get((name, version), set()).discard(holder)

    @rule(name=NAMES, version=VERSIONS, force=st.booleans())
    def delete(self, name, version, force):
        reference = f"{name}@{version}"
        needed = self.held.get((name, version)) or version in (
            v for (n, _), v in self.aliases.items() if n == name
        )
        if (name, version) not in self.live:
            with pytest.raises(NotFound):
                self.registry.delete(reference, force)
        elif needed and not force:
            with pytest.raises(Conflict):
                self.registry.delete(reference)
        else:
            self.registry.delete(reference, force)
            del self.live[name, version]
            self.aliases = {k: v for k, v in self.aliases.items() if (k[0], v) != (name, version)}

    @invariant()
    def what_is_read_is_what_was_done(self):
        registry = Registry(open_root(self.registry.root.url))
        assert registry.models() == sorted({name for name, _ in self.live})
        for name in self.taken:
            found = {v.version: v for v in registry.versions(name)}
            mine = {v: width for (n, v), width in self.live.items() if n == name}
            assert {v: f.signature for v, f in found.items()} == {
                v: signature(width) for v, width in mine.items()
            }
            assert registry.aliases(name) == {
                a: v for (n, a), v in self.aliases.items() if n == name
            }
            for version in mine:
                assert set(registry.holds(name, version)) == self.held.get((name, version), set())
            if mine:
                assert registry.get(name).version == max(mine)
                assert registry.verify(f"{name}@{max(mine)}") == []
        assert orphans(registry.root, older_than_s=-60) == []


RegistryMachine.TestCase.settings = settings(
    max_examples=25, stateful_step_count=20, deadline=None, derandomize=True
)
TestRegistry = RegistryMachine.TestCase
