"""A model and a loader so small that hundreds of runs with them take seconds."""

import torch

from mae.models_mae import MAEEncoder
from mae.models_mae_st import SpatiotemporalMAE
from ml.logs import read_steps
from ml.SiamMAE import SiamMAE
from ml.training import train


class Stop(Exception):
    """The end of a run that a test brings about."""


class Pairs:
    """A loader of random pairs, two in a batch; it ends the run instead of giving batch `stop` (epoch, batch)."""

    pairs = 2

    def __init__(self, stop=None, batches=3):
        self.stop, self.batches = stop, batches

    def __len__(self):
        return self.batches

    def set_epoch(self, epoch, start=0):
        self.epoch, self.start = epoch, start

    def __iter__(self):
        for k in range(self.start, self.batches):
            if (self.epoch, k) == self.stop:
                raise Stop
            draw = torch.Generator().manual_seed(10 * self.epoch + k)
            video = torch.randint(256, (2, 2, 3, 16, 16), dtype=torch.uint8, generator=draw)
            yield {"video": video, "seed": torch.arange(2), "time": torch.tensor([[0.0, 0.5]] * 2), "path": ["a", "b"]}


def tiny(seed=0, trained="decoder.pred", **kw):
    """Only its last layer learns, so that its state holds few tensors: hundreds of them are read here."""
    torch.manual_seed(seed)
    model = SiamMAE(MAEEncoder(16, 8, 16, 1, 2), decoder_size=(16, 1, 2), **kw)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and name.startswith(trained))
    return model


CLIP = dict(img_size=(24, 32), patch_size=8, num_frames=6, pred_t_dim=3)  # 3×4 places, tubelets of 2 frames


def tiny_clips(**kw):
    """A model of clips, of three steps of 3×4 places."""
    torch.manual_seed(0)
    sizes = dict(embed_dim=48, depth=1, num_heads=4, decoder_embed_dim=32, decoder_depth=1, decoder_num_heads=4)
    return SpatiotemporalMAE(**{**CLIP, **sizes, "mask_ratio": 0.75, **kw})


def run(root, loader=None, model=None, **options):
    """The name of a run of two epochs of three steps, and the lines of its log of steps."""
    options = {"epochs": 2, "device": "cpu", "progress": False, "figures": False, "base_lr": 0.1, **options}
    name = train(model or tiny(), loader or Pairs(), root=root, **options)
    return name, read_steps(root / "losses" / f"{name}.jsonl")


def losses(steps):
    return [step["loss"] for step in steps if "loss" in step]
