"""Architectures of few numbers under public names."""

import pytest

from mae.models_mae import ARCHITECTURES, MaskedAutoencoderViT
from mae.models_mae_st import ARCHITECTURES_ST, SpatiotemporalMAE
from tests.mae.small_st import TINY, TINY48


@pytest.fixture
def arch(monkeypatch):
    """A named architecture that is tiny, and the image model of its size."""
    name = "mae_st_vit_large_patch16"
    monkeypatch.setitem(ARCHITECTURES_ST, name, lambda **kw: SpatiotemporalMAE(**{**TINY, **kw}))
    image = {**TINY48, "img_size": 32}
    monkeypatch.setitem(ARCHITECTURES, "mae_vit_large_patch16", lambda **kw: MaskedAutoencoderViT(**{**image, **kw}))
    return name
