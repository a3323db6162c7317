"""Many photographs in order, read by a thread of its own while the network computes."""

import functools
import os
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from minires.errors import ImageError
from minires.kernels.cpu import get_num_threads
from minires.layers import Array
from minires.preprocess import Preset, preprocess
from minires.sources import no_image_in, opened


def read_photographs(
    files: Sequence[Path], preset: Preset, ahead: int
) -> Iterator[Array | ImageError]:
    """Read photographs for the network, in order: each (1, 3, H, W) float32, or its error.

    At most `ahead` are kept that you have not asked for yet.
    """
    return _in_order(functools.partial(_read, preset=preset), files, ahead)


def _read(file: Path, preset: Preset) -> Array | ImageError:
    try:
        if os.path.isdir(file):
            raise no_image_in(file)
        return preprocess(opened(file), preset)
    except ImageError as error:
        return error


def _in_order(read: Callable[[Any], Any], items: Sequence[Any], ahead: int) -> Iterator[Any]:
    """Yield `read(item)` of each item, and let a thread begin with up to `ahead` of the next."""
    # Decoding keeps one core busy, and a layer's end leaves some idle: together they fill all.
    # Who asks for one thread wants one core busy, and a single photograph has no next one.
    if get_num_threads() == 1 or len(items) < 2:
        yield from map(read, items)
        return
    # One reader only: images.py changes Python's warning filters, which all threads share.
    done: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
    room = threading.Semaphore(ahead)
    left = threading.Event()  # whoever asked has gone, for example by Ctrl-C

    def run() -> None:
        for item in items:
            room.acquire()
            if left.is_set():
                return
            try:
                done.put((read(item), None))
            except BaseException as error:  # raised where it was asked for
                done.put((None, error))

    # A daemon: Ctrl-C need not wait for a large photograph, or for standard input.
    threading.Thread(target=run, name="minires reads photographs", daemon=True).start()
    try:
        for _ in items:
            result, error = done.get()
            if error is not None:
                raise error
            room.release()
            yield result
    finally:
        left.set()
        room.release()
