"""The command `siammae`: one short file a sub-command, no logic. Each is imported only when it is called."""

import importlib
import logging
import os
import sys
from typing import TextIO

from common.errors import InputError

COMMANDS = {
    "train": "train a model on the videos of a folder",
    "ablate": "train a grid of settings and seeds, and compare them in a table and a figure",
    "test": "the loss of a checkpoint on held-out videos",
    "eval": "DAVIS, VIP, JHMDB and others: how well features follow objects, parts and joints",
    "score": "the same benchmarks' numbers of results that any method saved",
    "track": "follow your own objects through your own video",
    "motion": "does a model find what moved? errors and attention on pairs with a known correspondence",
    "uncertainty": "how sure a model is of its predictions, and whether that is right",
    "settle": "train a small head on a frozen encoder, so that its features agree through time",
    "plot": "reconstructions of a few pairs by a checkpoint",
    "compare": "draw the loss curves of several runs in one figure",
    "report": "one page over runs: curves, reconstructions over epochs, evaluations",
    "explore": "one page to look into a model: affinities, painted masks that travel, predictions",
    "samples": "write frame pairs for figures to a file",
    "export": "write a checkpoint's weights for other programs",
    "weights": "list and download published weights, inspect a file of any origin",
    "data download": "Kinetics-400, DAVIS 2017, or what a list of URLs names",
    "data validate": "decode every video of a folder, and list which are good",
    "data split": "divide videos into training and test, without overlap",
    "data prepare": "rewrite videos as JPEG folders, packed shards or short-GOP files",
    "data inspect": "a picture of frame pairs with their gaps",
    "zoo": "the models that ship in checkpoints/: measure them again, or make a small file of a run",
    "study": "what each choice of the recipe is worth, in small: many short runs and a report",
    "learn": "train the micro preset and compare it with copying on held-out videos",
    "demo": "execute SiamMAE.ipynb into a page",
}


def main(argv: list[str] | None = None) -> int:
    """Run one sub-command; 0, or 2 after bad input (one sentence, no traceback), or 130 after Ctrl-C."""
    for stream in (sys.stdout, sys.stderr):
        _print_anything(stream)
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        width = max(map(len, COMMANDS))
        lines = "\n".join(f"  {name:{width}}  {about}" for name, about in COMMANDS.items())
        print(f"usage: siammae COMMAND …\n\n{lines}\n\nsiammae COMMAND --help tells the options of one.")
        return 0 if argv else 2
    words = 2 if argv[0] == "data" else 1
    name, rest = " ".join(argv[:words]), argv[words:]
    if name not in COMMANDS:
        print(f"siammae: {name!r} is not a command; there are {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:  # Ctrl-C during the imports ends like any other
        import tyro

        command = importlib.import_module(f"cli.{name.replace(' ', '_')}")
        function = command.arguments(rest) if hasattr(command, "arguments") else command.main
        tyro.cli(function, args=rest, prog=f"siammae {name}")
        return 0
    except InputError as error:
        print(f"siammae {name}: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of our output has gone, as in `siammae … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # a full disk, a folder that may not be written
        print(f"siammae {name}: {error.strerror or error}: {error.filename or ''}".rstrip(": "), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _print_anything(stream: TextIO) -> None:
    """Let a stream of an ASCII terminal print "×" and file names that are not UTF-8 as escapes instead of failing."""
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="backslashreplace")


if __name__ == "__main__":
    sys.exit(main())
