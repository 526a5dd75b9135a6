"""The probe against programs that are no peers; against real nodes it is tested in test_node."""

import asyncio
import socket
from collections.abc import Awaitable, Callable

import pytest

from decentral.adapters.address import Address
from decentral.adapters.probe import probe
from decentral.errors import UnreachableError

Server = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def outcome(server: Server | None, *, timeout_s: float = 5.0) -> str:
    """What the probe says of a program that behaves like ``server``; of a port without a program if it is None."""

    async def main() -> str:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            assert server is not None
            await server(reader, writer)
            writer.close()

        running = await asyncio.start_server(handle, "127.0.0.1", 0)
        port = running.sockets[0].getsockname()[1]
        if server is None:
            running.close()
            await running.wait_closed()
        with pytest.raises(UnreachableError) as caught:
            await probe(Address("127.0.0.1", port), timeout_s=timeout_s)
        running.close()
        assert caught.value.hint
        return caught.value.message.replace(f"127.0.0.1:{port}", "HOST")

    return asyncio.run(asyncio.wait_for(main(), 30))


def test_nothing_listens() -> None:
    assert outcome(None) == "Nothing listens on HOST (connection refused)."


def test_a_program_that_speaks_first_is_quoted() -> None:
    async def ssh(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0\r\nmore\xff\x00")
        await reader.read()

    assert outcome(ssh) == 'HOST answered, but not as a decentral peer (it sent "SSH-2.0").'


def test_a_program_that_answers_is_quoted_without_control_characters() -> None:
    async def http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP\x1b[31m/1.1 400 Bad Request\r\n")
        await reader.read()

    assert outcome(http) == 'HOST answered, but not as a decentral peer (it sent "HTTP?[31m/1.1 400 Ba").'


def test_a_program_that_hangs_up() -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)

    assert "HOST answered, but not as a decentral peer (it " in outcome(hang_up)


def test_a_program_that_says_nothing() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    assert outcome(silent, timeout_s=1.0) == "HOST answered, but not as a decentral peer (it said nothing in 1 s)."


def test_libp2p_without_tls() -> None:
    async def noise_only(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"\x13/multistream/1.0.0\n\x03na\n")
        await reader.read()

    assert "speaks libp2p without TLS" in outcome(noise_only)


def test_a_handshake_that_never_ends_is_cut_off() -> None:
    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"\x13/multistream/1.0.0\n\x0b/tls/1.0.0\n")
        writer.write(b"\x16\x03\x03\x40\x00" + bytes(1 << 20))
        await reader.read()

    assert "HOST answered, but not as a decentral peer (it broke the connection off" in outcome(flood)


def test_packets_that_are_dropped() -> None:
    """A listener whose queue is full drops further connections, as a firewall does."""

    async def main() -> str:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen(0)
            port = listener.getsockname()[1]
            waiting = [socket.socket() for _ in range(4)]
            for client in waiting:
                client.setblocking(False)
                client.connect_ex(("127.0.0.1", port))
            try:
                with pytest.raises(UnreachableError) as caught:
                    await probe(Address("127.0.0.1", port), timeout_s=0.5)
            finally:
                for client in waiting:
                    client.close()
            assert "firewall" in caught.value.hint
            return caught.value.message.replace(str(port), "PORT")

    assert asyncio.run(main()) == "127.0.0.1:PORT did not answer in 0.5 s."


def test_a_name_that_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*args: object, **kwargs: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(UnreachableError, match="no-such-host is not known: Name or service not known"):
        asyncio.run(probe(Address("no-such-host", 1)))
