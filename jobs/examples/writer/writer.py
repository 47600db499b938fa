"""A language model of bytes that writes on, in parts: each request is a text, each part what follows."""

import codecs
import json
import zlib

import numpy as np
import torch

from sundog.storage.programs import load_program

LENGTH = 200  # bytes of an answer
TEMPERATURE = 0.7


class Writer:
    """Around `model.pt2`, whose window of bytes `about.json` says."""

    def __init__(self, folder):
        self.window = json.loads((folder / "about.json").read_text())["window"]
        self.model = load_program(folder / "model.pt2").module(check_guards=False)

    def predict(self, inputs):
        text = bytes(inputs["text_input"].reshape(-1)[0])
        written = list(text)
        # The same text is written on in the same way, whichever replica is asked.
        rng = torch.Generator().manual_seed(zlib.crc32(text))
        characters = codecs.getincrementaldecoder("utf-8")("replace")
        for _ in range(LENGTH):
            written.append(self.next_byte(written, rng))
            if part := characters.decode(bytes(written[-1:])):  # a character may have several bytes
                yield {"text_output": np.array([part.encode()], dtype=object)}

    def next_byte(self, written, rng):
        """The program takes whole windows: what is missing before a short text is lines' ends."""
        window = ([10] * self.window + written)[-self.window :]
        with torch.inference_mode():
            logits = self.model(tokens=torch.tensor([window]))[0, -1]
        return int(torch.multinomial((logits / TEMPERATURE).softmax(-1), 1, generator=rng))
