"""The recorded models of other projects, written as each project writes its own files."""

import argparse
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from common.errors import InputError
from mae.formats import load

FOREIGN = Path(__file__).parent / "golden" / "foreign"


@dataclass
class Golden:
    """What was recorded of one project, by name; its configuration; and how its files are laid out."""

    name: str
    tensors: dict[str, torch.Tensor]
    config: dict[str, Any]
    layout: dict[str, Any]

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.tensors[name]

    @property
    def state(self) -> dict[str, torch.Tensor]:
        return self.below("state.")

    @property
    def num_heads(self) -> int:
        return next(
            self.config[k]
            for k in ("num_heads", "num_attention_heads", "encoder_num_heads", "encoder_heads")
            if k in self.config
        )

    def below(self, prefix: str) -> dict[str, torch.Tensor]:
        """The tensors whose names begin so, without it."""
        return {k.removeprefix(prefix): v for k, v in self.tensors.items() if k.startswith(prefix)}

    def video(self, name: str) -> torch.Tensor:
        """Recorded images [n, H, W, 3] or clips [n, F, H, W, 3] with the channels where our models want them."""
        return self.tensors[name].movedim(-1, -3)

    def pairs(self) -> torch.Tensor:
        return torch.stack([self.video("pair_first"), self.video("pair_second")], dim=1)

    def write(self, folder: Path, **args: Any) -> Path:
        """The project's file or folder; `args` go into the training arguments, or the configuration."""
        if self.name in ("hf_vitmae", "timm_vit"):
            save_file(self.state, folder / "model.safetensors", {"format": "pt"})
            (folder / "config.json").write_text(json.dumps({**self.layout["config.json"], **args}))
            return folder
        if self.name == "replicate_siammae":
            for part in ("encoder", "decoder", "embedding"):
                torch.save(self.below(f"state.{part}."), folder / f"{part}.pt")
            return folder
        path = folder / "checkpoint-399.pth"
        if self.name == "eleander_siammae":
            torch.save(self.state, path)
        elif self.name == "tcore":
            torch.save({"teacher": self.state}, path)
        elif self.name == "dino":
            both = {part: self.below(f"state.{part}.") for part in ("student", "teacher")}
            torch.save({**both, "epoch": 100, "args": argparse.Namespace(**args), "fp16_scaler": {}}, path)
        else:
            torch.save({"model": self.state, "epoch": 399, "scaler": {}, "args": argparse.Namespace(**args)}, path)
        return path


def golden(name: str) -> Golden:
    """What was recorded of a project."""
    with safe_open(FOREIGN / f"{name}.safetensors", "pt") as file:
        about = file.metadata()
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118, it is no dict
    return Golden(name, tensors, json.loads(about["config"]), json.loads(about["layout"]))


def refused(path, **options):
    """The one sentence with which a file is refused."""
    with pytest.raises(InputError) as caught:
        load(path, **options)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message
    return message


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)
