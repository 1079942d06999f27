# SPDX-License-Identifier: Apache-2.0
"""Python code, and what its standard library does in C: hashes, compression, sorting with a key function, JSON, regular expressions, sockets, threads."""

import hashlib
import json
import re
import socket
import sys
import threading
import zlib
from pathlib import Path


def fibonacci(n: int) -> int:
    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)


def hashes(data: bytes) -> None:
    for name in ("md5", "sha1", "sha256", "sha512", "blake2b", "sha3_256"):
        hashlib.new(name, data).hexdigest()
    zlib.decompress(zlib.compress(data, 6))
    zlib.crc32(data)


def objects(data: bytes) -> None:
    words = [f"{value:03d}" for value in data[:4000]]
    words.sort(key=lambda word: word[::-1])
    table = {word: re.findall(r"(\d)(?=\d)", word) for word in words}
    assert json.loads(json.dumps(table)) == {key: list(value) for key, value in table.items()}
    fibonacci(15)


def sockets() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        peer, _ = server.accept()
        for _ in range(40):
            client.sendall(bytes(16384))
            left = 16384
            while left:
                left -= len(peer.recv(left))
        client.close()
        peer.close()


def main() -> None:
    data, ready = bytes(value * value % 251 for value in range(100_000)), False
    while True:
        hashes(data)
        objects(data)
        sockets()
        thread = threading.Thread(target=objects, args=(data,))
        thread.start()
        thread.join()
        if not ready:
            Path(sys.argv[1]).touch()
            ready = True


main()
