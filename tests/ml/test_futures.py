"""One past with several futures, and the ways of computing that change no number: checkpointing and compiling."""

import contextlib

import pytest
import torch

from common.errors import InputError
from dataset_loader import get_kinetics_dataset, make_loader
from mae.masking import mask_noise
from mae.models_mae import MAEEncoder, MaskedAutoencoderViT
from ml.SiamMAE import SiamMAE


def tiny(decoder_kind="cross-self", **kw):
    torch.manual_seed(0)
    encoder = MAEEncoder((24, 32), patch_size=8, embed_dim=48, depth=2, num_heads=4)  # a grid of 3×4
    model = SiamMAE(encoder, 0.75, decoder_kind=decoder_kind, decoder_size=(32, 2, 4), **kw)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def pasts(B=2, futures=3):
    return torch.randint(0, 256, (B, 1 + futures, 3, 24, 32), generator=torch.Generator().manual_seed(1)).byte()


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("decoder_kind", ["cross-self", "cross", "joint", "rotary"])
def test_futures_are_so_many_pairs(decoder_kind):
    """Loss, prediction, mask and gradients are those of B·F separate pairs with the same masks."""
    model, video = tiny(decoder_kind), pasts()
    noise = torch.rand(6, 12)
    loss, prediction, mask = model(video, noise=noise)
    assert prediction.shape == (6, 12, 192) and mask.shape == (6, 12)
    loss.backward()
    together = gradients(model)
    model.zero_grad()
    losses = []
    for b in range(2):
        for f in range(3):
            k = 3 * b + f
            pair = torch.stack([video[b, 0], video[b, 1 + f]])[None]
            alone, expected, expected_mask = model(pair, noise=noise[k : k + 1])
            assert torch.equal(mask[k : k + 1], expected_mask)
            torch.testing.assert_close(prediction[k : k + 1], expected, rtol=0, atol=1e-5)
            (alone / 6).backward()
            losses.append(alone.item())
    assert loss.item() == pytest.approx(sum(losses) / 6, rel=1e-5)
    apart = gradients(model)
    norm = sum(g.square().sum() for g in apart.values()).sqrt()
    assert sum((together[name] - apart[name]).square().sum() for name in apart).sqrt() <= 1e-5 * norm


def test_masks_of_futures_follow_from_the_seed():
    """Each future has a mask of its own; the first one's, and all of a sample's, do not depend on the others."""
    model, video, seeds = tiny(), pasts(), torch.tensor([5, 6])
    mask = model(video, seeds=seeds)[2]
    assert torch.equal(mask, model(video, seeds=seeds)[2])
    assert len({tuple(row.tolist()) for row in mask}) == 6
    assert (mask.sum(1) == 9).all()
    assert torch.equal(mask[::3], model(video[:, :2], seeds=seeds)[2])
    assert torch.equal(mask[3:], model(video[1:], seeds=seeds[1:])[2])
    kept = mask_noise(seeds, 36).reshape(6, 12).argsort(dim=1)[:, :3]
    assert not mask.gather(1, kept).any()


def test_a_past_is_read_once():
    model, rows = tiny(), []
    model.encoder.blocks[0].mlp.register_forward_hook(lambda _, args, __: rows.append(len(args[0])))
    model(pasts(2, 3), seeds=torch.arange(2))
    assert rows == [2 * 13 + 6 * 4]


def test_what_the_loader_gives_goes_in(clips):
    dataset = get_kinetics_dataset(clips, image_size=48, futures=2, repeated_sampling=2)
    batch = next(iter(make_loader(dataset, 4, workers=0)))
    model = SiamMAE(MAEEncoder(48, 8, 48, 1, 4), 0.75, decoder_size=(32, 1, 4))
    loss, prediction, mask = model(batch["video"], seeds=batch["seed"])
    assert loss.isfinite() and prediction.shape[:2] == mask.shape == (8, 36)


def test_what_cannot_be_shared_is_said():
    with pytest.raises(InputError, match="joint encoder.*3 futures.*futures=1"):
        tiny(encoder_kind="joint")(pasts())
    assert tiny(encoder_kind="joint")(pasts(futures=1))[0].isfinite()
    with pytest.raises(InputError, match=r"\(4, 12\).*\(6, 12\)"):
        tiny()(pasts(), noise=torch.rand(4, 12))
    with pytest.raises(InputError, match=r"\(9, 12\).*\(6, 12\)"):
        tiny()(pasts(), seeds=torch.arange(3))
    with pytest.raises(InputError, match=r"\[2, 1, 3, 24, 32\]"):
        tiny()(pasts(futures=0))


def test_checkpointing_is_for_training_and_for_mae_as_well():
    mae = MaskedAutoencoderViT((24, 32), 8, 48, 2, 4, 32, 2, 4)
    images, seeds, runs = torch.rand(2, 3, 24, 32), torch.arange(2), []
    for block in (*mae.blocks, *mae.decoder_blocks):
        block.mlp.register_forward_pre_hook(lambda *_: runs.append(1))
    for checkpointing, training, expected in [(False, True, 4), (True, True, 8), (True, False, 4)]:
        mae.checkpointing = checkpointing
        runs.clear()
        mae.train(training)(images, seeds=seeds)[0].backward()
        assert len(runs) == expected


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the compiler, about the machine
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_a_compiled_model_gives_the_same(backend):
    """Masks too: in inductor's C++ (torch 2.15) products of int64 that wrap around came out wrong."""
    model, video, seeds = tiny(), pasts(futures=2), torch.arange(2)
    expected_loss, expected, expected_mask = model(video, seeds=seeds)
    expected_loss.backward()
    gradient = gradients(model)
    model.zero_grad()
    with contextlib.ExitStack() as stack:
        stack.callback(torch.compiler.reset)
        loss, prediction, mask = torch.compile(model, backend=backend)(video, seeds=seeds)
        loss.backward()
    assert torch.equal(mask, expected_mask)
    torch.testing.assert_close(prediction, expected, rtol=0, atol=1e-5)
    assert abs(loss - expected_loss) <= 1e-5
    found = gradients(model)
    norm = sum(g.square().sum() for g in gradient.values()).sqrt()
    assert sum((found[name] - gradient[name]).square().sum() for name in found).sqrt() <= 1e-5 * norm
