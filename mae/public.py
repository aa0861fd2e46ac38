"""Weights that others publish: where they are, on what terms, and what they scored by which protocol.

Numbers are quoted, not measured here; each row says from where. J&F is on DAVIS 2017 val, mIoU on VIP, PCK on JHMDB.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

_MAE = "https://dl.fbaipublicfiles.com/mae"
_DINO = "https://dl.fbaipublicfiles.com/dino"
_NC = "CC BY-NC 4.0"


@dataclass(frozen=True)
class Public:
    """One published file.

    name: the file's, or what it is called here where it must be fetched by hand. where: its address, if that brings the
    file itself (`direct`), else the page that leads to it. scores: benchmark → published number. protocol: one of
    `evaluation.protocols`, by which it was scored. cited: where the numbers stand.
    """

    name: str
    family: str
    model: str
    where: str
    licence: str
    scores: dict[str, float] = field(default_factory=dict)
    protocol: str = ""
    cited: str = ""

    @property
    def direct(self) -> bool:
        return self.name.endswith(".pth") and self.where.endswith(f"/{self.name}")

    @property
    def how(self) -> str:
        """How to get it, in words."""
        return self.where if self.direct else f"by hand, from {self.where}"


def _scores(davis: float = 0, vip: float = 0, pck1: float = 0, pck2: float = 0) -> dict[str, float]:
    named = {"davis": davis, "vip": vip, "jhmdb": pck1, "jhmdb@.2": pck2}
    return {name: score for name, score in named.items() if score}


def _of_mae() -> Iterator[Public]:
    """Preferred first: models that predict plain pixels, the same with a GAN loss, models that predict normalised
    pixels (https://github.com/facebookresearch/mae/issues/8), and encoders alone."""
    for folder, pattern, sizes, what in (
        ("visualize", "mae_visualize_vit_{}.pth", ("base", "large", "huge"), "with decoder"),
        ("visualize", "mae_visualize_vit_{}_ganloss.pth", ("large", "huge"), "with decoder, GAN loss"),
        ("pretrain", "mae_pretrain_vit_{}_full.pth", ("base", "large", "huge"), "with decoder, normalised pixels"),
        ("pretrain", "mae_pretrain_vit_{}.pth", ("base", "large", "huge"), "encoder"),
    ):
        for size in sizes:
            name, about = pattern.format(size), f"ViT-{size[0].upper()}/{14 if size == 'huge' else 16}, {what}"
            scored = (_scores(53.5, 28.1, 44.6), "paper", _SIAMMAE) if name == "mae_pretrain_vit_base.pth" else ()
            yield Public(name, "MAE", about, f"{_MAE}/{folder}/{name}", _NC, *scored)


_SIAMMAE = "as SiamMAE (arXiv 2305.14344) is quoted for it"
_COSETTLE = "Co-Settle (CVPR 2026), table 1"
_TOBO = "ToBo (NeurIPS 2025), table 5"
_CROPMAE_PAGE = "https://github.com/alexandre-eymael/CropMAE"
_TCORE_PAGE = "https://github.com/yafeng19/T-CORE"

PUBLIC: tuple[Public, ...] = (
    *_of_mae(),
    Public(
        "mae_pretrain_vit_large_k400.pth", "MAE-ST", "ViT-L/16, Kinetics-400",
        "https://dl.fbaipublicfiles.com/video-mae/pretrain/mae_pretrain_vit_large_k400.pth", _NC,
        _scores(54.6, 33.2, 44.4, 72.5), "paper", _COSETTLE,
    ),
    Public(
        "mae_pretrain_vit_huge_k400.pth", "MAE-ST", "ViT-H/16, Kinetics-400",
        "https://dl.fbaipublicfiles.com/video-mae/pretrain/mae_pretrain_vit_huge_k400.pth", _NC,
    ),
    Public(
        "dino_deitsmall16_pretrain.pth", "DINO", "ViT-S/16, ImageNet",
        f"{_DINO}/dino_deitsmall16_pretrain/dino_deitsmall16_pretrain.pth", "Apache-2.0", _scores(61.8), "dino",
        _SIAMMAE,
    ),
    Public(
        "dino_deitsmall8_pretrain.pth", "DINO", "ViT-S/8, ImageNet",
        f"{_DINO}/dino_deitsmall8_pretrain/dino_deitsmall8_pretrain.pth", "Apache-2.0",
    ),
    Public(
        "dino_vitbase16_pretrain.pth", "DINO", "ViT-B/16, ImageNet",
        f"{_DINO}/dino_vitbase16_pretrain/dino_vitbase16_pretrain.pth", "Apache-2.0", _scores(63.2, 39.1, 44.4),
        "paper", _COSETTLE,
    ),
    Public(
        "dino_vitbase8_pretrain.pth", "DINO", "ViT-B/8, ImageNet",
        f"{_DINO}/dino_vitbase8_pretrain/dino_vitbase8_pretrain.pth", "Apache-2.0",
    ),
    Public(
        "cropmae_vits16_imagenet", "CropMAE", "ViT-S/16, ImageNet, 400 epochs", _CROPMAE_PAGE, "Apache-2.0",
        _scores(60.4, 33.3, 43.6), "paper", "CropMAE's README",
    ),
    Public(
        "cropmae_vits16_k400", "CropMAE", "ViT-S/16, Kinetics-400, 400 epochs", _CROPMAE_PAGE, "Apache-2.0",
        _scores(58.6, 33.7, 42.9, 71.1), "paper", _TOBO,
    ),
    Public(
        "rsp_vits16_k400", "RSP", "ViT-S/16, Kinetics-400, 400 epochs", "https://github.com/huiwon-jang/RSP", "MIT",
        _scores(60.1, 33.8, 44.6, 73.4), "paper", _TOBO,
    ),
    Public(
        "rsp_vitb16_k400", "RSP", "ViT-B/16, Kinetics-400, 400 epochs", "https://github.com/huiwon-jang/RSP", "MIT",
        _scores(60.5, 34.0, 46.0, 74.6), "paper", _COSETTLE,
    ),
    Public(
        "tobo_vits16_k400", "ToBo", "ViT-S/16, Kinetics-400, 400 epochs, with decoder",
        "https://huggingface.co/taekyung-k/tobo_vit_small", _NC, _scores(60.6, 34.0, 47.0, 74.8), "paper", _TOBO,
    ),
    Public(
        "catmae_vits16_k400", "CatMAE", "ViT-S/16, Kinetics-400, 150 epochs × 2", "https://github.com/minhoooo1/CatMAE",
        "see the page", _scores(62.5), "its own: temperature 0.7, top-k 8, radius 18, 20 frames", "CatMAE's README",
    ),
    Public(
        "catmae_vits8_k400", "CatMAE", "ViT-S/8, Kinetics-400, 150 epochs × 2", "https://github.com/minhoooo1/CatMAE",
        "see the page", _scores(70.4), "its own: temperature 0.5, top-k 12, radius 32, 20 frames", "CatMAE's README",
    ),
    Public(
        "vits16_100ep_INET.pth", "T-CoRe", "ViT-S/16, ImageNet, 100 epochs", f"{_TCORE_PAGE}#-checkpoints",
        "see the page", _scores(64.1, 39.7, 46.2), "paper", "T-CoRe's README",
    ),
    Public(
        "vits16_400ep_K400.pth", "T-CoRe", "ViT-S/16, Kinetics-400, 400 epochs", f"{_TCORE_PAGE}#-checkpoints",
        "see the page", _scores(64.7, 37.8, 47.0), "paper", "T-CoRe's README",
    ),
    Public(
        "vitb16_200ep_K400.pth", "T-CoRe", "ViT-B/16, Kinetics-400, 200 epochs", f"{_TCORE_PAGE}#-checkpoints",
        "see the page", _scores(66.4, 38.9, 47.1), "paper", "T-CoRe's README",
    ),
    Public(
        "videomae_vitl16_k400", "VideoMAE", "ViT-L/16, Kinetics-400, 1600 epochs",
        "https://github.com/MCG-NJU/VideoMAE/blob/main/MODEL_ZOO.md", _NC, _scores(45.0, 25.6, 43.3, 70.5), "paper",
        _COSETTLE,
    ),
    Public(
        "videomae_vitb16_k400", "VideoMAE", "ViT-B/16, Kinetics-400, 1600 epochs",
        "https://github.com/MCG-NJU/VideoMAE/blob/main/MODEL_ZOO.md", _NC,
    ),
    Public(
        "vit-mae-base", "Transformers", "ViT-B/16, MAE with decoder, a folder",
        "https://huggingface.co/facebook/vit-mae-base", "see the page",
    ),
    Public("timm", "timm", "any vision transformer, a folder", "https://huggingface.co/timm", "each its own"),
    Public(
        "siammae_vitb16", "SiamMAE of eleander", "ViT-B/16, trained by you", "https://github.com/eleander/SiamMAE",
        "no weights are published",
    ),
    Public(
        "replicate_siammae", "SiamMAE of replicate_siamMAE", "trained by you",
        "https://github.com/aweers/replicate_siamMAE", "no weights are published",
    ),
    Public("mae3d", "MAE3D", "trained by you", "https://github.com/cyrilzakka/MAE3D", "no weights are published"),
    Public(
        "dinov2", "DINOv2", "ViT-S, B, L, g /14", "https://github.com/facebookresearch/dinov2", "see the page",
        _scores(61.7, 40.6), "paper", "RVM (CVPR 2026), of ViT-L",
    ),
    Public(
        "dinov3", "DINOv3", "ViT-S/16 to 7B, through timm", "https://huggingface.co/facebook/dinov3-vits16-pretrain-lvd1689m",
        "DINOv3 licence, gated", _scores(72.7), "its own: short side 960, 7 frames, top-k 5, temperature 0.2",
        "DINOv3's MODEL_CARD.md, of ViT-S",
    ),
)  # fmt: skip

PUBLIC_WEIGHTS: dict[str, str] = {p.name: p.where for p in PUBLIC if p.family == "MAE"}
PUBLIC_WEIGHTS_ST: dict[str, str] = {p.name: p.where for p in PUBLIC if p.family == "MAE-ST"}


def published(name: str) -> Public | None:
    """The row of a file by its name, for a source's published numbers."""
    return next((row for row in PUBLIC if row.name == name), None)
