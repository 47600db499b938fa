"""`ray job submit --working-dir . -- python jobs/examples/writer/register.py gpt-docs@champion`.

Registers a python model `gpt-docs-writer` around a language model that `jobs/specs/gpt.yaml` trained.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path

from sundog.runs import place
from sundog.storage.models import Registry
from sundog.storage.signature import Signature, TensorSpec

TEXT = Signature(
    (TensorSpec("text_input", "BYTES", (1,)),), (TensorSpec("text_output", "BYTES", (1,)),)
)


def register(root, reference):
    registry = Registry(root)
    version = registry.get(reference)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        shutil.copy(Path(__file__).with_name("writer.py"), folder)
        root.download(version.key("model.pt2"), folder / "model.pt2")
        window = version.signature.inputs[0].shape[1]
        (folder / "about.json").write_text(json.dumps({"window": window}))
        return registry.import_python(
            f"{version.name}-writer", folder, "writer:Writer", TEXT, alias="champion",
            lineage={"around": version.ref},
        )  # fmt: skip


if __name__ == "__main__":
    place.connect()
    print("registered", register(place.resolve_root(None), sys.argv[1]).ref)
