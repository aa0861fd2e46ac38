"""A small Kinetics on loopback, and answers of servers that misbehave."""

from dataset_loader.preparing.download import download_kinetics
from tests.dataset_loader.preparing.test_archives import noise, tar
from tests.server import PAGE, Answer, Site

QUICK = dict(retries=3, backoff=0.01)
PART = "/train/part_3.tar.gz"


def part(split, k):
    """The videos of one part."""
    return [(f"{split}{k:05}{v:02}_000000_000010.mp4", noise(f"{split}{k}{v}", 3000 + 700 * v)) for v in range(6)]


def kinetics_site():
    """A small Kinetics on loopback: 6 parts of train, 2 of val."""
    site = Site()
    for split, count in (("train", 6), ("val", 2)):
        names = [f"part_{k}.tar.gz" for k in range(count)]
        site.files |= {f"/{split}/{name}": tar(part(split, k)) for k, name in enumerate(names)}
        listing = "".join(f"https://s3.amazonaws.com/kinetics/400/{split}/{name}\n" for name in names)
        site.files[f"/{split}/k400_{split}_path.txt"] = listing.encode()
        site.files[f"/annotations/{split}.csv"] = f"label,youtube_id\n{split},x\n".encode()
    return site


def kinetics(site, out, videos="all", **options):
    download_kinetics(out, videos, base_url=site.url, **QUICK | options)


DROP, HALF, BUSY = Answer(stop=-1), Answer(stop=-1, ranges=False), Answer(status=503)
WEB = Answer(PAGE, headers={"Content-Type": "text/html"})
