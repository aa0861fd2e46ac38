"""Weights that others publish: where each file lies."""

_PUBLIC = "https://dl.fbaipublicfiles.com/mae"
# What MAE's authors publish, preferred first: models that predict plain pixels, the same with a GAN loss, models that
# predict normalised pixels (https://github.com/facebookresearch/mae/issues/8), and encoders alone.
PUBLIC_WEIGHTS: dict[str, str] = {
    name: f"{_PUBLIC}/{folder}/{name}"
    for folder, names in (
        ("visualize", [f"mae_visualize_vit_{size}.pth" for size in ("base", "large", "huge")]),
        ("visualize", [f"mae_visualize_vit_{size}_ganloss.pth" for size in ("large", "huge")]),
        ("pretrain", [f"mae_pretrain_vit_{size}_full.pth" for size in ("base", "large", "huge")]),
        ("pretrain", [f"mae_pretrain_vit_{size}.pth" for size in ("base", "large", "huge")]),
    )
    for name in names
}
# What MAE-ST's authors publish: normalised pixels, Kinetics-400, ViT-L and ViT-H.
PUBLIC_WEIGHTS_ST: dict[str, str] = {
    f"mae_pretrain_vit_{size}_k400.pth": (
        f"https://dl.fbaipublicfiles.com/video-mae/pretrain/mae_pretrain_vit_{size}_k400.pth"
    )
    for size in ("large", "huge")
}
