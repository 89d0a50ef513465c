"""Objects between processes in whole messages: nobody is ever left with half of one.

A message is either small and holds the object, or it holds a descriptor of anonymous memory in which the object lies;
arrays and tensors are not copied on arrival. /dev/shm, which containers keep small, is not used.
"""

from __future__ import annotations

import errno
import io
import mmap
import os
import pickle
import socket
import struct
from typing import Any

import numpy as np
import torch
from torch import Tensor

_SMALL = 1 << 13  # bytes; what waits in a socket never fills it
_PART = 64  # parts begin at multiples of this


def link() -> tuple[socket.socket, socket.socket]:
    """Return the two ends of a link that keeps messages apart."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def send(end: socket.socket, content: Any) -> None:
    """Send an object; raises ConnectionError if nobody is at the other end, OSError if there is no memory for it."""
    head = io.BytesIO()
    arrays: list[pickle.PickleBuffer] = []
    _Pickler(head, 5, buffer_callback=arrays.append).dump(content)
    if not arrays and head.tell() < _SMALL:
        end.send(b"i" + head.getvalue())
        return
    parts = [head.getbuffer(), *(array.raw() for array in arrays)]
    table = struct.pack(f"={len(parts) + 1}Q", len(parts), *(part.nbytes for part in parts))
    memory = os.memfd_create("batch", os.MFD_CLOEXEC)
    try:
        place = 0
        for part in (memoryview(table), *parts):
            _write(memory, part, place)
            place = _next(place + part.nbytes)
        os.ftruncate(memory, place)
        socket.send_fds(end, [b"m"], [memory])
    finally:
        os.close(memory)


def receive(end: socket.socket) -> Any:
    """Return the next object, waiting for it; raises EOFError if nobody is at the other end any more."""
    try:
        message, descriptors, _, _ = socket.recv_fds(end, _SMALL + 1, 1)
    except ConnectionResetError:
        message = b""
    if not message:
        raise EOFError
    if message[:1] == b"i":
        return pickle.loads(message[1:])
    if not descriptors:  # the system keeps a descriptor back where there is no room for one more
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    try:
        memory = memoryview(mmap.mmap(descriptors[0], 0, mmap.MAP_SHARED | mmap.MAP_POPULATE))
    finally:
        os.close(descriptors[0])
    count = struct.unpack_from("=Q", memory)[0]
    place, parts = _next(8 * (count + 1)), []
    for size in struct.unpack_from(f"={count}Q", memory, 8):
        parts.append(memory[place : place + size])
        place = _next(place + size)
    return pickle.loads(parts[0], buffers=parts[1:])


def _next(place: int) -> int:
    return -(-place // _PART) * _PART


def _write(memory: int, part: memoryview, place: int) -> None:
    while part.nbytes:
        written = os.pwrite(memory, part, place)
        part, place = part[written:], place + written


class _Pickler(pickle.Pickler):
    def reducer_override(self, content: Any) -> Any:
        """Send tensors as arrays, which travel beside the pickle, and build them with the strides they had."""
        if type(content) is not Tensor:
            return NotImplemented
        if content.is_contiguous():
            return torch.from_numpy, (content.numpy(),)
        extent = 1 + sum((size - 1) * stride for size, stride in zip(content.shape, content.stride(), strict=True))
        return _strided, (content.as_strided((extent,), (1,)).numpy(), tuple(content.shape), content.stride())


def _strided(places: np.ndarray, shape: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(places).as_strided(shape, stride)
