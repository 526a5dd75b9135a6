import pytest

from decentral.adapters.address import Address, parse_address
from decentral.errors import ExitCode, UsageError
from decentral.types import PeerId

RSA = PeerId("QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N")
ED25519 = PeerId("12D3KooWEhMyxzTiHd93uqNo4neU2xGe96RBojmisGEeVaij9STL")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("203.0.113.7:31337", Address("203.0.113.7", 31337)),
        (" gpu-box.example.org:1 \n", Address("gpu-box.example.org", 1)),
        (f"localhost:65535/{RSA}", Address("localhost", 65535, RSA)),
        ("[2001:db8::7]:31337", Address("2001:db8::7", 31337)),
        ("/ip4/203.0.113.7/tcp/31337", Address("203.0.113.7", 31337)),
        (f"/ip4/203.0.113.7/tcp/31337/p2p/{RSA}", Address("203.0.113.7", 31337, RSA)),
        (f"/ip6/2001:db8::7/tcp/31337/p2p/{ED25519}", Address("2001:db8::7", 31337, ED25519)),
        (f"/dns4/gpu-box.example.org/tcp/31337/ipfs/{RSA}", Address("gpu-box.example.org", 31337, RSA)),
        (f"/ip4/203.0.113.7/tcp/5/p2p/{RSA}/p2p-circuit/p2p/{ED25519}", Address("203.0.113.7", 5, ED25519, RSA)),
    ],
)
def test_what_people_paste(text: str, expected: Address) -> None:
    assert parse_address(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "/ip4/1.2.3.4/tcp/5",
        "/ip6/::1/tcp/5",
        "/dns/box/tcp/5",
        f"/ip4/1.2.3.4/tcp/5/p2p/{RSA}",
        f"/ip4/1.2.3.4/tcp/5/p2p/{RSA}/p2p-circuit/p2p/{ED25519}",
    ],
)
def test_multiaddr_is_the_inverse(text: str) -> None:
    assert parse_address(text).multiaddr() == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "--join is empty (is a variable unset?)."),
        (" \t", "--join is empty (is a variable unset?)."),
        ("203.0.113.7", '"203.0.113.7" has no port. Write it as 203.0.113.7:31337.'),
        ("gpu-box", '"gpu-box" has no port. Write it as gpu-box:31337.'),
        ("1.2.3.4:", 'its port is ""'),
        ("1.2.3.4:port", 'its port is "port"'),
        ("1.2.3.4:0", 'its port is "0"'),
        ("1.2.3.4:65536", 'its port is "65536"'),
        ("1.2.3.4:٣", "its port is"),
        ("1.2.3.4:" + "9" * 900, "its port is"),
        (":31337", "it has no host"),
        ("1.2.3:31337", '"1.2.3" is neither an IP address nor a host name'),
        ("two words:31337", "neither an IP address nor a host name"),
        ("2001:db8::7:31337", "Write an IPv6 address as [2001:db8::7]:31337."),
        ("http://1.2.3.4:31337", "is a URL"),
        (str(RSA), f"is a peer id without a place. Write it as 203.0.113.7:31337/{RSA}."),
        (f"1.2.3.4:5/{RSA[:-3]}", "not a peer id. Was it cut"),
        ("1.2.3.4:5/0OIl", "not a peer id"),
        ("/", "it starts with /,"),
        ("/tcp/5", "it starts with /tcp"),
        ("/ip4", "it has no host"),
        ("/ip4/1.2.3.4", "it has no /tcp/PORT"),
        ("/ip4/1.2.3.4/udp/5/quic-v1", "it has /udp/5 where /tcp/PORT belongs"),
        ("/ip4/1.2.3.4/tcp/5/p2p", "after the port comes /p2p, expected is /p2p/PEERID"),
        (f"/ip4/1.2.3.4/tcp/5/p2p/{RSA[:-3]}", "not a peer id"),
        ("/ip4/1.2.3.4/tcp/5/p2p-circuit", "through a relay it is .../p2p/RELAY/p2p-circuit/p2p/PEERID"),
        (f"/ip4/1.2.3.4/tcp/5/p2p/{RSA}/p2p-circuit/p2p/QmCut", "not a peer id"),
        ("x" * 2000, "2000 characters long"),
    ],
)
def test_each_mistake_has_its_own_text(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_address(text)
    assert message in caught.value.message
    assert caught.value.exit_code is ExitCode.USAGE


def test_an_empty_address_never_starts_a_swarm_but_says_how() -> None:
    with pytest.raises(UsageError) as caught:
        parse_address("")
    assert caught.value.hint == "To start a new swarm use --new."
    with pytest.raises(UsageError, match="ADDR is empty") as caught:
        parse_address("", option="ADDR")
    assert caught.value.hint == ""
