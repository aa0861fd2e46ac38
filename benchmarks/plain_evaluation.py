"""Evaluation as the public scripts do it, told plainly: what `evaluation/` is measured against, in results and in time.

Dense affinities, a mask built by loops, whole pictures, every object by itself. Not for use.
Legend: F context frames, h w patch grid, N = h·w, D width, M labels, T frames.
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


def dino_video(features, first, context=7, top_k=5, radius=12, temperature=0.1):
    """Features [T, h, w, D] and the first frame's labels [h, w, M] → the labels of the others, [T − 1, h, w, M]."""
    mask = neighbourhood(*first.shape[:2], radius)
    queue, results = [], []
    for frame in features[1:]:
        used = [(features[0], first), *queue]
        result = dino_step(frame, [f for f, _ in used], [s for _, s in used], mask, top_k, temperature)
        queue = [*queue, (frame, result)][-context:]
        results.append(result)
    return torch.stack(results)


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


def score_folders(truths, results):
    """J and F [M, T − 2] of a sequence from its two folders of PNGs, all frames in memory at once."""
    truth, result = read_masks(truths), read_masks(results)
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
