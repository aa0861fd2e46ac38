"""Cuts of videos that copy their packets, as recorders and cutting programs leave them."""

from pathlib import Path

import av
import numpy as np
from av.container import OutputContainer

from common.errors import InputError
from dataset_loader.decoding import Video
from dataset_loader.preparing.encoding import write_container


def copy_cut(
    source: str | Path, target: str | Path, start_seconds: float, seconds: float, *, at_keyframe: bool = True
) -> None:
    """Copy the packets of a stretch of video into another file, without encoding them again.

    start_seconds: from the source's first frame on. The cut begins at the keyframe before it; mp4 then hides what
    precedes the start (an edit list), other containers show it. With `at_keyframe` False it begins at the first packet
    at or after the start, keyframe or not: what a recorder leaves that was switched on in the middle of a broadcast.
    """

    with Video(source) as video:
        times = video.index.times
        begin = float(times[0]) + start_seconds
        first = int(np.searchsorted(times, begin - 1e-6))
        if video.index.sequential or first == len(times):
            raise InputError(f"{source} cannot be cut at {start_seconds:g} s: it ends before, or states no times")
        keyframe = video.index.runs([int(video.index.positions[first])])[0][0]
        shown = video.index.packets[keyframe:]
        decoded = np.sort(shown)  # times of decoding, which not every container states: as late as they can be
        decoded -= (decoded - shown).max()

        def write(container: OutputContainer) -> None:
            copied: av.VideoStream | None = None
            for position, packet in video.packets_from(keyframe):
                offset = round(begin / packet.time_base)
                pts, dts = (int(stamps[position - keyframe]) - offset for stamps in (shown, decoded))
                if dts * packet.time_base >= seconds:
                    break
                if at_keyframe or dts >= 0:
                    copied = copied or container.add_stream_from_template(packet.stream)
                    packet.pts, packet.dts, packet.stream = pts, dts, copied
                    container.mux(packet)

        write_container(target, write)
