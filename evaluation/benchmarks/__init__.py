"""The benchmarks by name. A new one is a file here (`evaluation.benchmark` tells what it offers) and a line below."""

from evaluation.benchmark import Benchmark
from evaluation.benchmarks.camvid import CamVid
from evaluation.benchmarks.davis import Davis
from evaluation.benchmarks.folder import Folder
from evaluation.benchmarks.jhmdb import JHMDB
from evaluation.benchmarks.joints import Joints
from evaluation.benchmarks.vip import VIP

BENCHMARKS: dict[str, type[Benchmark]] = {
    "davis": Davis,
    "vip": VIP,
    "jhmdb": JHMDB,
    "camvid": CamVid,
    "joints": Joints,
    "folder": Folder,
}
