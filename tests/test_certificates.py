"""A certificate that does not verify is refused at once, for good, and with an error that says what is wrong with it.

By the embedded exchange over TLS, with both transports.
"""

import datetime
import logging
import ssl
import time

import pytest
import trio

from bitmex_streams import Connected, Connection, ConnectionFailed, Decoder, Disconnected, Pipeline, Reconnect, Welcome
from bitmex_streams.exchange import open_exchange
from tests.servers import open_sockets

trustme = pytest.importorskip("trustme")
x509 = pytest.importorskip("cryptography.x509")
hashes = pytest.importorskip("cryptography.hazmat.primitives.hashes")
serialization = pytest.importorskip("cryptography.hazmat.primitives.serialization")
ec = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ec")

NOW = datetime.datetime.now(datetime.UTC)
HOUR, DAY = datetime.timedelta(hours=1), datetime.timedelta(days=1)
AT_ONCE = 5.0  # seconds, on a busy machine; connecting may take PATIENCE
PATIENCE = 60.0


@pytest.fixture(params=["default", "fast"])
def transport(request):
    if request.param == "fast":
        pytest.importorskip("websockets")
    return request.param


@pytest.fixture
def server():
    """The server's side, which counts the handshakes that clients begin."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.handshakes = 0

    def begin(*_):
        context.handshakes += 1

    context.sni_callback = begin
    return context


@pytest.fixture
def client(authority):
    """The client's side, which trusts the authority."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


def load_self_signed(context, directory, *hosts):
    """A certificate that nobody has signed but its own key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "self-signed")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - DAY)
        .not_valid_after(NOW + DAY)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host) for host in hosts]), critical=False)
        .sign(key, hashes.SHA256())
    )
    file = directory / "self-signed.pem"
    unencrypted = serialization.NoEncryption()
    file.write_bytes(
        certificate.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, unencrypted)
    )
    context.load_cert_chain(file)


async def refused(url, **options):
    """How a pipeline ends that was refused at once, by a connection that would try again for ever."""
    connection = Connection(
        url, subscribe=["trade"], connect_timeout=PATIENCE, reconnect=Reconnect(initial=0.01), **options
    )
    seen = []
    began = time.monotonic()
    with trio.fail_after(2 * AT_ONCE), pytest.raises(ConnectionFailed) as caught:
        async with Pipeline.create(connection, Decoder()) as pipeline, pipeline.tap() as items:
            async for item in items:
                seen.append(item)
    assert time.monotonic() - began < AT_ONCE
    assert seen == [] and connection.stats.connections == 0
    error = caught.value
    assert error.final and error.status is None
    assert url in str(error) and "the server's certificate does not verify: " in str(error)
    assert isinstance(error.__cause__, ssl.SSLCertVerificationError)
    return str(error)


@pytest.fixture
def exchange(server):
    return open_exchange(symbols=["XBTUSD"], rate=0, ssl_context=server)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_the_certificate_of_this_host_by_a_trusted_authority_is_taken(
    host, exchange, server, client, authority, transport
):
    authority.issue_cert(host).configure_cert(server)
    async with exchange as exchange:
        connection = Connection(exchange.url.replace("127.0.0.1", host), ssl_context=client, transport=transport)
        with trio.fail_after(10):
            async with Pipeline.create(connection, Decoder()) as pipeline, pipeline.tap() as items:
                assert [type(await items.receive()) for _ in range(2)] == [Connected, Welcome]


@pytest.mark.parametrize("host, mismatch", [("127.0.0.1", "IP address mismatch"), ("localhost", "Hostname mismatch")])
async def test_a_certificate_for_another_host_is_refused_at_once_with_an_error_that_says_so(
    host, mismatch, exchange, server, client, authority, transport, caplog
):
    authority.issue_cert("another.host").configure_cert(server)
    caplog.set_level(logging.INFO, "bitmex_streams")
    async with exchange as exchange:
        before = open_sockets()
        url = exchange.url.replace("127.0.0.1", host)
        said = await refused(url, ssl_context=client, transport=transport)
        assert f"{mismatch}, certificate is not valid for '{host}'" in said and "check the host name" in said
        assert server.handshakes == 1, "nobody tries again"
        assert not caplog.records
        with trio.fail_after(5):
            while exchange.clients or open_sockets() > before:  # noqa: ASYNC110 - the server's end has no event here
                await trio.sleep(0.01)


@pytest.mark.parametrize(
    "begins, ends, words",
    [(NOW - 2 * DAY, NOW - HOUR, "certificate has expired"), (NOW + DAY, NOW + 2 * DAY, "not yet valid")],
)
async def test_one_that_has_expired_or_is_not_valid_yet(
    begins, ends, words, exchange, server, client, authority, transport
):
    authority.issue_cert("127.0.0.1", not_before=begins, not_after=ends).configure_cert(server)
    async with exchange as exchange:
        said = await refused(exchange.url, ssl_context=client, transport=transport)
        assert words in said and "the clock" in said
        assert server.handshakes == 1


async def test_a_self_signed_one(exchange, server, client, transport, tmp_path):
    load_self_signed(server, tmp_path, "localhost")
    async with exchange as exchange:
        said = await refused(exchange.url.replace("127.0.0.1", "localhost"), ssl_context=client, transport=transport)
        assert "self-signed certificate" in said.replace("self signed", "self-signed")
        assert "pass an ssl_context that trusts it" in said
        assert server.handshakes == 1


async def test_one_of_an_authority_that_the_system_does_not_know(exchange, server, authority, transport):
    authority.issue_cert("127.0.0.1").configure_cert(server)
    async with exchange as exchange:
        said = await refused(exchange.url, transport=transport)  # without an ssl_context
        assert "unable to get local issuer certificate" in said and "pass an ssl_context that trusts it" in said
        assert server.handshakes == 1


async def test_one_that_changes_while_connected_ends_the_stream_at_the_next_attempt(
    exchange, server, client, authority, transport
):
    authority.issue_cert("127.0.0.1").configure_cert(server)
    async with exchange as exchange:
        connection = Connection(
            exchange.url, ssl_context=client, transport=transport, reconnect=Reconnect(initial=0.01)
        )
        seen = []
        with trio.fail_after(10), pytest.raises(ConnectionFailed, match=r"not valid for '127\.0\.0\.1'") as caught:
            async with Pipeline.create(connection, Decoder()) as pipeline, pipeline.tap() as items:
                async for item in items:
                    seen.append(type(item))
                    if seen[-1] is Welcome:
                        authority.issue_cert("another.host").configure_cert(server)
                        exchange.faults.drop()
        assert caught.value.final
        assert seen == [Connected, Welcome, Disconnected], "all that was, and the mark, before the error"
        assert server.handshakes == 2
