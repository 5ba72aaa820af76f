"""Load the server with clients of all kinds, and count what it leaves behind.

    python -m tools.load                        1,000 requests, 500 of them malformed besides
    python -m tools.load --requests 60 --malformed 30      as the tests do

The server is a process of its own, `llama2np serve stories-box`. Its clients read answers whole or
as a stream, read slowly, send slowly, or close the connection at a random place; more of them come
than the queue takes. In the middle of it the server gets a SIGTERM, must end all answers that it
has begun, and is started again. Each answer is compared with the library's. Linux only: threads,
descriptors and memory are read from /proc.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from llama2np import Llama

SEQUENCES, WAITING, CLIENTS = 4, 8, 20
POOL = 4  # threads that encode texts: they come and go
KINDS = "whole", "stream", "slow reader", "slow sender", "large", "gone", "gone at once"
MALFORMED = (
    b"{",
    b"[]",
    b"\xff\xfe",
    b'{"prompt": "a"',
    b'{"prompt": 5}',
    b'{"prompt": [[]]}',
    b'{"prompt": [99999]}',
    b'{"temperature": NaN}',
    b'{"temperature": "hot"}',
    b'{"max_tokens": -1}',
    b'{"n": 1e99}',
    b'{"stop": {"a": 1}}',
    b'{"logit_bias": {"x": 1}}',
    b'{"stream": "yes"}',
    b'{"model": "\\ud800"}',
    b'{"stream_options": 3, "stream": true}',
    b"[" * 50_000,
    b'{"prompt": "' + b"a b " * 2_000 + b'"}',
)
# No HTTP, or not for this server: a status of 400 and more, or a closed connection.
NOT_HTTP = (
    b"HELLO\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 300_000 + b"\r\n\r\n",
    b"GET /v1/models HTTP/1.1\r\nHost: other.example\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\n"
    b"Content-Length: 2\r\n\r\n{}",
)


class Wrong(Exception):
    """The server did what it must not do."""


class NotAnswered(Exception):
    """The connection was closed before a byte of an answer."""


@dataclass
class Server:
    """The process, and what the system says about it."""

    port: int = 0
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, on the same port as before."""
        command = [sys.executable, "-m", "llama2np", "serve", "stories-box"]
        command += ["--port", str(self.port), "--grace", "300", "--threads", "1"]
        command += ["--max-sequences", str(SEQUENCES), "--max-waiting", str(WAITING)]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE)
        assert self.process.stderr is not None
        line = self.process.stderr.readline().decode()
        if not (match := re.search(r"http://127\.0\.0\.1:(\d+)", line)):
            raise Wrong(f"it did not start: {line}{self.process.stderr.read().decode()}")
        self.port = int(match[1])
        while True:
            try:
                urlopen(f"http://127.0.0.1:{self.port}/health").close()
                return
            except OSError:
                time.sleep(0.05)

    def stop(self) -> None:
        """End it as a service manager does, and check its status."""
        assert self.process is not None and self.process.stderr is not None
        process, self.process = self.process, None
        process.send_signal(signal.SIGTERM)
        status, said = process.wait(600), process.stderr.read().decode()
        process.stderr.close()
        if "Traceback" in said or status:
            raise Wrong(f"after SIGTERM: status {status}; {said}")

    def numbers(self) -> dict[str, int]:
        """Threads, descriptors, kB of memory; and texts and chunks, as /metrics has them."""
        assert self.process is not None
        folder = Path("/proc") / str(self.process.pid)
        memory = re.search(r"VmRSS:\s+(\d+)", (folder / "status").read_text())
        found = {
            "threads": len(list((folder / "task").iterdir())),
            "descriptors": len(list((folder / "fd").iterdir())),
            "memory": int(memory[1]) if memory else 0,
        }
        with urlopen(f"http://127.0.0.1:{self.port}/metrics") as page:
            text = page.read().decode()
        for name in ("texts_running", "cache_chunks"):
            found[name] = int(re.search(rf"^llama2np_{name} (\d+)", text, re.MULTILINE)[1])  # type: ignore[index]
        return found

    def at_rest(self) -> dict[str, int]:
        """Its numbers when it has nothing to do any more: connections end a little later."""
        last: dict[str, int] = {}
        for _ in range(200):
            found = self.numbers()
            same = all(found[name] == last.get(name) for name in found if name != "memory")
            if not found["texts_running"] and same:
                return found
            last = found
            time.sleep(0.1)
        raise Wrong(f"it does not come to rest: {last}")


@dataclass
class Load:
    """Clients that work off a list of requests, and what they have seen."""

    server: Server
    model: Llama
    chance: random.Random
    seen: Counter[str] = field(default_factory=Counter)
    expected: dict[str, str] = field(default_factory=dict)
    stops: int = 0  # how often the server was ended

    async def run(self, kinds: list[str], stop_at: int = 0) -> None:
        """Work off `kinds`; when only `stop_at` are left, end the server and start it again."""
        todo, up = list(kinds), asyncio.Event()
        up.set()

        async def client() -> None:
            while todo:
                await self._until_done(todo.pop(), up)

        async def restarted() -> None:
            while len(todo) > stop_at:
                await asyncio.sleep(0.01)
            self.stops += 1
            up.clear()  # no new requests; those that are under way must end
            await asyncio.to_thread(self.server.stop)
            self.seen["SIGTERM"] += 1
            await asyncio.to_thread(self.server.start)
            up.set()

        tasks = [client() for _ in range(CLIENTS)] + ([restarted()] if stop_at else [])
        await asyncio.gather(*tasks)

    async def _until_done(self, kind: str, up: asyncio.Event) -> None:
        """Send a request until it is answered: the queue may be full, the server away."""
        while True:
            await up.wait()
            stops = self.stops
            try:
                if kind == "malformed":
                    return await self._malformed()
                if await self._asked(kind):
                    self.seen[kind] += 1
                    return
                self.seen["queue was full"] += 1
                await asyncio.sleep(self.chance.uniform(0.05, 0.3))
            except (ConnectionError, NotAnswered) as error:
                if up.is_set() and stops == self.stops:
                    raise Wrong(f"{kind}: {error!r}, although the server was not stopped") from None
                self.seen["not accepted at the end"] += 1  # it was still being sent
                await asyncio.sleep(0.1)

    async def _asked(self, kind: str) -> bool:
        """Send a request of this kind and check its answer; False if the queue is full."""
        body = {"prompt": self.chance.choice(("Once", "One day", "Tom")), "top_p": 1}
        body |= {"seed": self.chance.randint(1, 8), "max_tokens": self.chance.choice((8, 30))}
        if kind == "large":
            body |= {"n": 2, "logprobs": 20}
        wanted = await asyncio.to_thread(self._text, body)
        streamed = kind in ("stream", "slow reader", "large", "gone")
        data = json.dumps(body | {"stream": streamed}).encode()
        answer = await self._answer(kind, data)
        if kind.startswith("gone"):
            return True
        if not answer:
            raise NotAnswered
        head, _, rest = answer.partition(b"\r\n\r\n")
        status = int(head[9:12])
        if status == 429:
            if json.loads(rest)["error"]["code"] != "queue_full":
                raise Wrong(f"429 for another reason: {rest!r}")
            return False
        if status != 200:
            raise Wrong(f"{kind}: {answer[:300]!r}")
        if (text := _streamed(rest) if streamed else _whole(rest)) != wanted:
            raise Wrong(f"{kind}: {body}: expected {wanted!r}, found {text!r}")
        return True

    async def _answer(self, kind: str, data: bytes) -> bytes:
        """Send a body as this kind of client does; what it reads of the answer."""
        reader, writer = await self._connected(small=kind == "slow reader")
        answer = b""
        try:
            await self._send(writer, data, slowly=kind == "slow sender")
            if kind == "gone at once":
                return answer
            if kind == "gone":
                return await reader.read(self.chance.randint(1, 2_000))
            while part := await reader.read(400 if kind == "slow reader" else 65_536):
                answer += part
                if kind == "slow reader":
                    await asyncio.sleep(0.005)
        finally:
            writer.close()
        return answer

    def _text(self, body: dict[str, Any]) -> str:
        """What the library makes of it: all choices, one after the other."""
        found = []
        for i in range(body.get("n", 1)):
            key = f"{body['prompt']}|{body['seed'] + i}|{body['max_tokens']}"
            if key not in self.expected:
                made = self.model.generate(
                    body["prompt"],
                    seed=body["seed"] + i,
                    max_new_tokens=body["max_tokens"],
                    temperature=1,
                    top_p=1,
                )
                self.expected[key] = made.read()
            found.append(self.expected[key])
        return "\n---\n".join(found)

    async def _malformed(self) -> None:
        raw = self.chance.random() < 0.2
        data = self.chance.choice(NOT_HTTP if raw else MALFORMED)
        reader, writer = await self._connected()
        answer = b""
        try:
            if raw:
                writer.write(data)
            else:
                await self._send(writer, data)
            answer = await asyncio.wait_for(reader.read(), 120)
        except (ConnectionResetError, BrokenPipeError):
            if not raw:
                raise
        except TimeoutError:
            raise Wrong(f"{data[:60]!r}: the connection stays open") from None
        finally:
            writer.close()
        if not answer and not raw:
            raise NotAnswered
        status = int(answer[9:12]) if answer else 400
        if not 400 <= status < 500 or (not raw and b'"error"' not in answer):
            raise Wrong(f"{data[:60]!r}: {answer[:300]!r}")
        self.seen["malformed"] += 1

    async def _connected(
        self, small: bool = False
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        connection = socket.socket()
        if small:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        connection.setblocking(False)
        try:
            address = ("127.0.0.1", self.server.port)
            await asyncio.get_running_loop().sock_connect(connection, address)
        except OSError:
            connection.close()
            raise
        return await asyncio.open_connection(sock=connection, limit=2048)

    async def _send(self, writer: asyncio.StreamWriter, data: bytes, slowly: bool = False) -> None:
        head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        data = head.encode() + data
        step = 16 if slowly else len(data)
        for i in range(0, len(data), step):
            writer.write(data[i : i + step])
            await writer.drain()
            await asyncio.sleep(0.005 if slowly else 0)


def _whole(body: bytes) -> str:
    choices = json.loads(body)["choices"]
    return "\n---\n".join(choice["text"] for choice in choices)


def _streamed(body: bytes) -> str:
    """The text of a stream in chunked encoding, which must have come to its end."""
    lines = re.findall(rb"^data: (.*?)\r?$", body, re.MULTILINE)
    if not lines or lines[-1] != b"[DONE]":
        raise Wrong(f"a stream without an end: {body[-300:]!r}")
    texts: dict[int, str] = {}
    for line in lines[:-1]:
        choice = json.loads(line)["choices"][0]
        texts[choice["index"]] = texts.get(choice["index"], "") + choice["text"]
    return "\n---\n".join(texts[i] for i in sorted(texts))


def run(requests: int, malformed: int, seed: int = 0) -> dict[str, Any]:
    """Load a server; return what was seen, and its numbers at rest. Raises Wrong."""
    chance, server = random.Random(seed), Server()
    load = Load(server, Llama.load("stories-box"), chance)

    def some(share: float) -> list[str]:
        kinds = [KINDS[i % len(KINDS)] for i in range(int(requests * share))]
        kinds += ["malformed"] * int(malformed * share)
        chance.shuffle(kinds)
        return kinds

    start = time.monotonic()
    server.start()
    try:
        asyncio.run(load.run(some(0.4), stop_at=CLIENTS))
        asyncio.run(load.run(some(0.3)))
        before = server.at_rest()
        asyncio.run(load.run(some(0.3)))
        after = server.at_rest()
    finally:
        if server.process is not None:
            server.stop()
    # Prefixes of answered texts stay in the cache for the next ones; how many differs.
    if after["cache_chunks"] > SEQUENCES:
        raise Wrong(f"{after['cache_chunks']} chunks stay in the cache, for {SEQUENCES} texts")
    for name, more in (("threads", POOL), ("descriptors", 0)):
        if after[name] > before[name] + more:
            raise Wrong(f"{name} grew from {before[name]} to {after[name]}")
    if after["memory"] > before["memory"] + 8_000:
        raise Wrong(f"memory grew from {before['memory']:,} to {after['memory']:,} kB")
    seconds = time.monotonic() - start
    return {"seen": dict(load.seen), "before": before, "after": after, "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=1000, metavar="N")
    parser.add_argument("--malformed", type=int, default=500, metavar="N", help="besides these")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    options = parser.parse_args()
    try:
        found = run(options.requests, options.malformed, options.seed)
    except Wrong as error:
        sys.exit(f"wrong: {error}")
    print("\n".join(f"{count:6,}  {name}" for name, count in sorted(found["seen"].items())))
    print(f"at rest after 70 %: {found['before']}\nat the end: {found['after']}")
    print(f"every answer was the library's; {found['seconds']:.0f} s")


if __name__ == "__main__":
    main()
