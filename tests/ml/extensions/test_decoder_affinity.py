"""Cross-attention as affinity: what it is, by loops; that propagation follows it; the source `decoder:RUN`."""

from dataclasses import replace

import pytest
import torch

from cli.feature_sources import open_source
from common.errors import InputError
from evaluation.propagation import propagate
from evaluation.protocols import NAMED
from mae.models_mae import MAEEncoder
from ml.checkpoints import save_checkpoint
from ml.extensions.decoder_affinity import DecoderAffinity
from ml.SiamMAE import SiamMAE

H, W, HEADS = 2, 3, 2


def small(**changes):
    torch.manual_seed(0)
    options = dict(decoder_size=(16, 2, HEADS), decoder_kind="cross") | changes
    model = SiamMAE(MAEEncoder((H * 8, W * 8), 8, 24, 1, 2), 0.5, **options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def frames(count):
    return torch.randint(256, (count, 3, H * 8, W * 8), generator=torch.Generator().manual_seed(1)).byte()


def attention_by_loops(model, past, future):
    """Mean over layers and heads of the softmax over f1's tokens, without the class token's share."""
    decoder, N = model.decoder, H * W
    pixels = model.normalize(torch.stack([past, future]))
    tokens = model.encoder.transform(model.encoder.tokens(pixels))
    memory = decoder.memory_norm(decoder.embed(tokens[:1]) + decoder.pos_embed)
    x = decoder.embed(tokens[1:]) + decoder.pos_embed  # everything is visible: no mask token
    mean = torch.zeros(N, N)
    for block in decoder.blocks:
        q, (k, _) = block.cross.q(block.cross_norm(x))[0], block.cross.kv(memory)[0].chunk(2, dim=-1)
        size = q.shape[-1] // HEADS
        for head in range(HEADS):
            part = slice(head * size, (head + 1) * size)
            for n in range(N):
                weights = torch.stack([q[1 + n, part] @ k[m, part] / size**0.5 for m in range(1 + N)]).softmax(0)
                mean[n] += weights[1:] / (len(decoder.blocks) * HEADS)
        x = block(x, memory)
    return mean


@torch.no_grad()
def test_it_is_the_mean_of_both_directions():
    model, video = small(), frames(3)
    decoder = DecoderAffinity(model, "small")
    encoded = decoder.encode(video)
    found = decoder.affinity(encoded[2], encoded[:2])
    assert encoded.shape == (3, H, W, 48) and found.shape == (2, H, W, H, W)
    for f in range(2):
        there = attention_by_loops(model, past=video[f], future=video[2])
        back = attention_by_loops(model, past=video[2], future=video[f])
        torch.testing.assert_close(found[f].exp().reshape(H * W, -1), (there + back.T) / 2, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", NAMED)
def test_propagation_with_cosines_as_affinity_is_propagation(name):
    torch.manual_seed(0)
    features, first = torch.randn(6, 5, 7, 8), torch.rand(5, 7, 3)
    protocol = replace(NAMED[name], context=3, radius=2)

    def cosines(target, context):
        unit, others = (torch.nn.functional.normalize(x, dim=-1) for x in (target, context))
        return torch.einsum("abd,fced->fabce", unit, others)

    plain = list(propagate(features, first, protocol))
    asked = list(propagate(features, first, protocol, affinity=cosines))
    assert len(plain) == len(asked) == 5
    for one, other in zip(plain, asked, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_a_label_goes_where_the_affinity_points():
    """Features that say nothing; an affinity that says that everything moves one patch to the right."""

    def right(target, context):
        h, w = target.shape[:2]
        shift = torch.full((h, w, h, w), -9.0)
        for y in range(h):
            for x in range(w):
                shift[y, x, y, max(x - 1, 0)] = 0.0
        return shift.expand(len(context), -1, -1, -1, -1)

    first = torch.zeros(3, 6, 1)
    first[1, 0] = 1
    rules = replace(NAMED["dino"], context=1, top_k=1, radius=0)
    rules = replace(rules, first_unlimited=False)
    labels = list(propagate(torch.ones(3, 3, 6, 4), first, rules, affinity=right))
    assert labels[0][1, :, 0].tolist() == [1, 1, 0, 0, 0, 0]


def test_the_source_and_what_it_refuses(tmp_path):
    def saved(model, name):
        save_checkpoint(tmp_path / name, dict(model=model.state_dict(), config=model.config, epoch=1, step=1, run="r"))
        return str(tmp_path / name)

    source = open_source(f"decoder:{saved(small(), 'a.pt')}", tmp_path, "cpu", False)
    assert source.patch_size == 8 and source.weights.startswith("sha256 ") and source.affinity is not None
    encoded = source.encode(frames(2))
    assert encoded.shape == (2, H, W, 48) and not encoded.requires_grad
    with pytest.raises(InputError, match="the explorer compares features by cosines"):
        source.compared_by_cosine("the explorer")
    for changes in (dict(decoder_kind="joint"), dict(encoder_kind="joint")):
        with pytest.raises(InputError, match="cross-attention between frames that were encoded apart"):
            open_source(f"decoder:{saved(small(**changes), 'b.pt')}", tmp_path, "cpu", False)
    with pytest.raises(InputError, match="no checkpoint nobody"):
        open_source("decoder:nobody", tmp_path, "cpu", False)
