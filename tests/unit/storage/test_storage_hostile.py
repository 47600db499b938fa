"""Crafted archives: each is refused before loading, and its command did not run.

To show that they are hostile at all, the same files are then given to torch.export.load itself, in
a process of its own, where the commands of most of them do run.
"""

import io
import json
import os
import pickle
import subprocess
import sys
import zipfile

import pytest
import torch

from sundog.errors import Unsafe
from sundog.storage.models import Registry
from sundog.storage.programs import check_safe, export_program, load_model, load_program
from sundog.storage.root import open_root


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 2)
        self.register_buffer("shift", torch.ones(2))

    def forward(self, x):
        return {"y": self.layer(x) + self.shift}


class Runs:
    """Unpickling this runs a shell command."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (os.system, (f"touch {self.marker}",))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("hostile")


@pytest.fixture(scope="module")
def good(folder):
    path = folder / "good.pt2"
    export_program(Net(), {"x": torch.zeros(1, 4)}, path)
    return path


def rewritten(good, path, change=lambda members: None, drop=()):
    """A copy of an archive; `change` may edit its members, a dict of name -> bytes."""
    with zipfile.ZipFile(good) as archive:
        members = {n.partition("/")[2]: archive.read(n) for n in archive.namelist()}
    change(members)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(f"{path.stem}/{name}", data)
    return path


def pickled(marker, how=torch.save):
    buffer = io.BytesIO()
    how(Runs(marker), buffer)
    return buffer.getvalue()


def edited(members, name, how):
    document = json.loads(members[name])
    how(document)
    members[name] = json.dumps(document).encode()


def every(value, key):
    """All dicts below `value` that have `key`."""
    if isinstance(value, dict):
        if key in value:
            yield value
        for item in value.values():
            yield from every(item, key)
    elif isinstance(value, list):
        for item in value:
            yield from every(item, key)


PROGRAM = "models/model.json"


def in_weights(members, marker):
    def use_pickle(document):
        document["config"]["layer.weight"]["use_pickle"] = True

    edited(members, "data/weights/model_weights_config.json", use_pickle)
    members["data/weights/weight_0"] = pickled(marker)


def in_legacy_weights(members, marker):
    members["data/weights/model.pt"] = pickled(marker)


def in_sample_inputs(members, marker):
    members["data/sample_inputs/model.pt"] = pickled(marker)


def in_constants(members, marker):
    def add(document):
        meta = {"path_name": "tensor_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
        document["config"]["c"] = meta

    edited(members, "data/constants/model_constants_config.json", add)
    members["data/constants/tensor_0"] = pickled(marker)


def in_opaque_object(members, marker):
    def add(document):
        meta = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True,
                "tensor_meta": None}  # fmt: skip
        document["config"]["c"] = meta

    edited(members, "data/constants/model_constants_config.json", add)
    members["data/constants/opaque_obj_0"] = pickled(marker, how=pickle.dump)


def in_shape_expression(members, marker):
    def evil(document):
        for item in every(document, "expr_str"):
            item["expr_str"] = f"__import__('os').system('touch {marker}')"

    edited(members, PROGRAM, evil)


def in_nested_shape_expression(members, marker):
    def evil(document):
        for item in every(document, "expr_str"):
            item["expr_str"] = f"""Max(Integer(1), "__import__('os').system('touch {marker}')")"""

    edited(members, PROGRAM, evil)


def in_operator(members, marker):
    """Looked up at loading, called at the first prediction."""

    def evil(document):
        node = document["graph_module"]["graph"]["nodes"][0]
        node["target"] = "torch.os.system"
        node["inputs"] = [{"name": "", "arg": {"as_string": f"touch {marker}"}, "kind": 1}]

    edited(members, PROGRAM, evil)


def in_file_operator(members, marker):
    def evil(document):
        document["graph_module"]["graph"]["nodes"][0]["target"] = "torch.ops.aten.from_file.default"

    edited(members, PROGRAM, evil)


def in_a_guard(members, marker):
    """Compiled when the loaded program becomes a module."""

    def evil(document):
        document["guards_code"] = [f"__import__('os').system('touch {marker}') == 0"]

    edited(members, PROGRAM, evil)


def in_tree(members, marker):
    """Importing a module by name, and with it whatever it does."""

    def evil(document):
        for item in every(document, "in_spec"):
            item["in_spec"] = item["in_spec"].replace(
                '"builtins.dict", "context": "[\\"x\\"]"',
                '"collections.defaultdict", "context": {"default_factory_module": "antigravity", '
                '"default_factory_name": "x", "dict_context": ["x"]}',
            )

    edited(members, PROGRAM, evil)


def in_a_name(members, marker):
    """Names become Python source."""
    members[PROGRAM] = members[PROGRAM].replace(
        b'"x"', json.dumps(f"x=__import__('os').system('touch {marker}')").encode()
    )


def as_compiled_library(members, marker):
    members["data/aotinductor/model/model.so"] = b"\x7fELF"


ATTACKS = {
    f.__name__: f
    for f in (in_weights, in_legacy_weights, in_sample_inputs, in_constants, in_opaque_object,
              in_shape_expression, in_nested_shape_expression, in_operator, in_file_operator,
              in_a_guard, in_tree, in_a_name, as_compiled_library)
}  # fmt: skip
RUN_ON_LOADING = [
    "in_weights", "in_legacy_weights", "in_sample_inputs", "in_constants", "in_opaque_object",
    "in_shape_expression", "in_nested_shape_expression",
]  # fmt: skip


@pytest.fixture(scope="module")
def hostile(good, folder):
    """name -> (archive, the file that its command would make)."""
    made = {}
    for name, attack in ATTACKS.items():
        marker = folder / f"{name}.ran"
        path = rewritten(good, folder / f"{name}.pt2", lambda m, a=attack, k=marker: a(m, k))
        made[name] = (path, marker)
    return made


def test_the_archive_they_are_made_from_is_good(good, folder):
    copy = rewritten(good, folder / "copy.pt2")
    for path in (good, copy):
        check_safe(path)
        assert load_program(path).module()(x=torch.zeros(3, 4))["y"].shape == (3, 2)


@pytest.mark.parametrize("name", ATTACKS)
def test_a_hostile_archive_is_refused_and_its_command_did_not_run(hostile, name, tmp_path):
    path, marker = hostile[name]
    with pytest.raises(Unsafe, match="refused before loading") as raised:
        check_safe(path)
    assert "do not load it" in raised.value.fix
    registry = Registry(open_root(str(tmp_path / "root")))
    with pytest.raises(Unsafe):
        registry.import_export("digits", path)
    assert registry.models() == []
    assert not marker.exists()


def test_a_hostile_archive_in_the_registry_is_refused_by_the_server(hostile, good, tmp_path):
    """Somebody with write access put it there past `import`; its hash is right."""
    root = open_root(str(tmp_path / "root"))
    registry = Registry(root)
    signature = registry.import_export("digits", good).signature
    path, marker = hostile["in_sample_inputs"]
    version = registry.register(
        "digits", {"model.pt2": path}, kind="torch-export", signature=signature, metrics={},
        lineage={},
    )  # fmt: skip
    assert registry.verify(version.ref) == []
    with pytest.raises(Unsafe):
        load_model(root, version, allow_code=True)
    assert not marker.exists()


def test_torch_alone_would_have_run_these_commands(hostile):
    code = (
        "import sys, torch\n"
        "for path in sys.argv[1:]:\n"
        "    try: torch.export.load(path)\n"
        "    except Exception as error: print(path, type(error))\n"
    )
    paths = [str(hostile[name][0]) for name in RUN_ON_LOADING]
    subprocess.run([sys.executable, "-c", code, *paths], check=True, capture_output=True)
    ran = [name for name in RUN_ON_LOADING if hostile[name][1].exists()]
    for _, marker in hostile.values():
        marker.unlink(missing_ok=True)
    assert ran == RUN_ON_LOADING


def test_an_archive_of_the_old_format_is_refused(folder):
    path, marker = folder / "old.pt2", folder / "old.ran"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("version", "8.8")
        archive.writestr("serialized_exported_program.json", "{}")
        archive.writestr("serialized_state_dict.pt", pickled(marker))
    with pytest.raises(Unsafe):
        check_safe(path)
    assert not marker.exists()


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_members_of_one_name_are_refused(good, folder):
    path = rewritten(good, folder / "twice.pt2")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("twice/models/model.json", "{}")
    with pytest.raises(Unsafe, match="two members"):
        check_safe(path)


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", b"\x80\x04N.", b"text"])
def test_what_is_no_archive_is_refused(folder, data):
    path = folder / "broken.pt2"
    path.write_bytes(data)
    with pytest.raises(Unsafe):
        check_safe(path)


def test_plain_pickles_are_refused_and_plain_weights_pass(tmp_path):
    marker = tmp_path / "ran"
    bad, fine = tmp_path / "bad.pt", tmp_path / "fine.pt"
    bad.write_bytes(pickled(marker))
    torch.save({"w": torch.zeros(2)}, fine)
    check_safe(fine)
    with pytest.raises(Unsafe, match="system"):
        check_safe(bad)
    assert not marker.exists()
