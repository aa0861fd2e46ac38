"""Evaluation as the public scripts do it, told plainly: what `evaluation/` is measured against, in results and in time.

Attention written out, dense affinities, a mask built by loops, whole pictures, every object by itself. Not for use.
Legend: F context frames, h w patch grid, N = h·w, D width, M labels, T frames, B batch, H W pixels.
"""

import math
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F


def neighbourhood(h, w, radius):
    """[N, N] 1 where a source lies within the square radius of a target, by loops as in the public script."""
    mask = torch.zeros(h, w, h, w)
    for y in range(h):
        for x in range(w):
            for v in range(2 * radius + 1):
                for u in range(2 * radius + 1):
                    row, column = y - radius + v, x - radius + u
                    if 0 <= row < h and 0 <= column < w:
                        mask[y, x, row, column] = 1
    return mask.reshape(h * w, h * w)


def dino_step(target, sources, labels, mask, top_k=5, temperature=0.1):
    """Features [h, w, D], list of [h, w, D], list of [h, w, M], mask [N, N] → labels [h, w, M]."""
    h, w, _ = target.shape
    queries = F.normalize(target.flatten(0, 1), dim=1)  # [N, D]
    keys = F.normalize(torch.stack(sources).flatten(1, 2), dim=2)  # [F, N, D]
    affinity = torch.exp(torch.bmm(queries.expand(len(keys), -1, -1), keys.transpose(1, 2)) / temperature)
    affinity = (affinity * mask).transpose(1, 2).reshape(-1, h * w)  # [F·N, N]
    kept = affinity.topk(top_k, dim=0).values.min(dim=0).values
    affinity[affinity < kept] = 0
    affinity = affinity / affinity.sum(dim=0, keepdim=True)
    return (torch.stack(labels).flatten(0, 2).T @ affinity).T.reshape(h, w, -1)


def dino_video(features, first, mask, context=7, top_k=5, temperature=0.1):
    """Features [h, w, D] of frames in order, the first one's labels [h, w, M], mask [N, N] → labels of the others."""
    features = iter(features)
    start = (next(features), first)
    queue: list = []
    for frame in features:
        used = [start, *queue]
        result = dino_step(frame, [f for f, _ in used], [s for _, s in used], mask, top_k, temperature)
        queue = [*queue, (frame, result)][-context:]
        yield result


def explicit_encode(model, images):
    """What `model.encode` computes of images [B, 3, H, W], uint8 → [B, h, w, D], with the softmax written out."""
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    x = model.tokens((images / 255 - mean) / std)
    B, tokens, D = x.shape
    for block in model.blocks:
        heads = block.attn.num_heads
        q, k, v = block.attn.qkv(block.norm1(x)).reshape(B, tokens, 3, heads, D // heads).permute(2, 0, 3, 1, 4)
        attention = (q @ k.transpose(-2, -1) * (D // heads) ** -0.5).softmax(dim=-1)  # [B, heads, tokens, tokens]
        x = x + block.attn.proj((attention @ v).transpose(1, 2).reshape(B, tokens, D))
        x = x + block.mlp(block.norm2(x))
    h, w = (side // model.patch_size for side in images.shape[-2:])
    return model.norm(x)[:, 1:].reshape(B, h, w, D)


def stretch(maps):
    """Each map of [M, H, W] to [0, 1], one by one."""
    for index in range(len(maps)):
        if maps[index].max() > 0:
            maps[index] -= maps[index].min()
            maps[index] /= maps[index].max()
    return maps


def follow_files(pictures, first_mask, encode, size, out, patch_size=16, radius=12):
    """Follow the object of the first mask (anything but 0) through files of pictures; write masks of 0 and 1 to `out`.

    size: what pictures are resized to (height, width); the protocol is DINO's.
    """
    h, w = size[0] // patch_size, size[1] // patch_size
    whole = (np.asarray(Image.open(first_mask)) > 0).astype(np.uint8)
    small = torch.from_numpy(np.array(Image.fromarray(whole).resize((w, h), Image.Resampling.NEAREST)))
    first = F.one_hot(small.long(), 2).float()

    def features():
        for path in pictures:
            picture = cv2.resize(np.asarray(Image.open(path).convert("RGB")), (size[1], size[0]))
            with torch.no_grad():
                yield encode(torch.from_numpy(picture).permute(2, 0, 1)[None])[0]

    Path(out).mkdir(parents=True)
    Image.fromarray(whole).save(Path(out) / f"{Path(pictures[0]).stem}.png")
    results = dino_video(features(), first, neighbourhood(h, w, radius))
    for path, labels in zip(pictures[1:], results, strict=True):
        maps = F.interpolate(labels.permute(2, 0, 1)[None], scale_factor=patch_size, mode="bilinear")[0]
        mask = Image.fromarray(stretch(maps).argmax(dim=0).numpy().astype(np.uint8))
        mask = mask.resize((whole.shape[1], whole.shape[0]), Image.Resampling.NEAREST)
        mask.save(Path(out) / f"{Path(path).stem}.png")


def read_masks(folder):
    """All masks of a folder, [T, H, W]."""
    return np.stack([np.asarray(Image.open(path)) for path in sorted(Path(folder).glob("*.png"))])


def separate(masks, objects):
    """[T, H, W] → one boolean mask for each object, [M, T, H, W]."""
    numbers = np.ones((objects, *masks.shape)) * np.arange(1, objects + 1)[:, None, None, None]
    return numbers == masks[None]


def region(truth, result):
    """J of one object, [T, H, W] each → [T]."""
    both, either = (truth & result).sum(axis=(1, 2)), (truth | result).sum(axis=(1, 2))
    return np.where(either == 0, 1.0, both / np.maximum(either, 1))


def boundary(mask):
    right, down, diagonal = np.zeros_like(mask), np.zeros_like(mask), np.zeros_like(mask)
    right[:, :-1], down[:-1], diagonal[:-1, :-1] = mask[:, 1:], mask[1:], mask[1:, 1:]
    edges = mask ^ right | mask ^ down | mask ^ diagonal
    edges[-1], edges[:, -1] = mask[-1] ^ right[-1], mask[:, -1] ^ down[:, -1]
    edges[-1, -1] = False
    return edges


def contour(truth, result):
    """F of one object in one frame, [H, W] each."""
    radius = int(np.ceil(0.008 * np.linalg.norm(truth.shape)))
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    disk = (x**2 + y**2 <= radius**2).astype(np.uint8)
    true, found = boundary(truth), boundary(result)
    precise = found * cv2.dilate(true.astype(np.uint8), disk)
    recalled = true * cv2.dilate(found.astype(np.uint8), disk)
    if found.sum() == 0 or true.sum() == 0:
        return float(found.sum() == true.sum())
    precision, recall = np.sum(precise) / float(np.sum(found)), np.sum(recalled) / float(np.sum(true))
    return 0.0 if precision + recall == 0 else 2 * precision * recall / (precision + recall)


def score_folders(truths, results, frames=None, binary=False):
    """J and F [M, T − 2] of a sequence from its two folders of PNGs, all frames in memory at once.

    frames: only the first so many. binary: anything but 0 is the one object.
    """
    truth, result = read_masks(truths)[:frames], read_masks(results)
    truth = (truth > 0).astype(np.uint8) if binary else truth
    objects = int(truth[0].max())
    truth, result = separate(truth, objects)[:, 1:-1], separate(result, objects)[:, 1:-1]
    j = np.stack([region(*pair) for pair in zip(truth, result, strict=True)])
    f = np.array([[contour(a, b) for a, b in zip(*pair, strict=True)] for pair in zip(truth, result, strict=True)])
    return j, f


def median_and_interval(values):
    """Median and its 95 % interval by order statistics."""
    values = sorted(values)
    n = len(values)
    spread = math.ceil(0.98 * math.sqrt(n))
    middle = n // 2
    return values[middle], values[max(0, middle - spread)], values[min(n - 1, middle + spread)]
