"""The benchmarks by name. A new one is a file here (`evaluation.benchmark` tells what it offers) and a line below."""

from evaluation.benchmark import Benchmark
from evaluation.benchmarks.camvid import CamVid
from evaluation.benchmarks.davis import Davis
from evaluation.benchmarks.folder import Folder
from evaluation.benchmarks.jhmdb import JHMDB
from evaluation.benchmarks.joints import Joints
from evaluation.benchmarks.kitti_step import KittiStep
from evaluation.benchmarks.tap_vid import TapVid
from evaluation.benchmarks.uvo import UVO
from evaluation.benchmarks.vip import VIP
from evaluation.benchmarks.vspw import VSPW
from evaluation.benchmarks.youtube_vos import YouTubeVOS

BENCHMARKS: dict[str, type[Benchmark]] = {
    "davis": Davis,
    "vip": VIP,
    "jhmdb": JHMDB,
    "camvid": CamVid,
    "joints": Joints,
    "tap_vid": TapVid,
    "vspw": VSPW,
    "kitti_step": KittiStep,
    "uvo": UVO,
    "youtube_vos": YouTubeVOS,
    "folder": Folder,
}
