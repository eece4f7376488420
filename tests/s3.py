"""An S3 server on loopback (moto's), which fails on demand, and folders on disk: what a remote store is tested against."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

BUCKET = "shared"
ANSWERS = {  # what S3 says: that it is not well, and that it is asked too much
    "500": (
        "500 Internal Server Error",
        b"<Error><Code>InternalError</Code><Message>We encountered an error</Message></Error>",
    ),
    "503": (
        "503 Slow Down",
        b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>",
    ),
}
Fault = Callable[[str, str], str | None]  # method, path -> name of what goes wrong, if anything


def healthy(method: str, path: str) -> None:
    return None


class S3:
    """`fault` says what goes wrong with a request: "500", "503", "cut", "slow", "corrupt" (the protocol's own
    checksum tells) or "corrupt unnoticed"; `requests` are all that came."""

    def __init__(self, port: int, app: Callable):
        self.port, self._app = port, app
        self.fault: Fault = healthy
        self.requests: list[tuple[str, str]] = []
        self.environment = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "eu-west-1",  # of us-east-1 the server takes no LocationConstraint
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def url(self, prefix: str) -> str:
        return f"s3://{BUCKET}/{prefix}"

    def fails(self, fault: str, method: str = "", part: str = "", times: int = 10**9) -> None:
        """The next `times` requests of this method, with `part` in their path or query, go wrong."""
        left = iter(range(times))

        def decide(asked: str, path: str) -> str | None:
            return fault if method in asked and part in path and next(left, None) is not None else None

        self.fault = decide

    def __call__(self, environ: dict, start_response: Callable) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], f"{environ['PATH_INFO']}?{environ['QUERY_STRING']}"
        self.requests.append((method, path))
        fault = self.fault(method, path)
        if fault in ANSWERS:
            status, body = ANSWERS[fault]
            start_response(status, [("Content-Length", str(len(body)))])
            return [body]
        if fault == "slow":
            time.sleep(60)  # longer than anybody waits
        if fault not in ("cut", "corrupt", "corrupt unnoticed"):
            return self._app(environ, start_response)
        if method == "PUT":
            environ["wsgi.input"].read(1)
            raise ConnectionAbortedError
        start = start_response if fault != "corrupt unnoticed" else _without_checksums(start_response)
        body = b"".join(self._app(environ, start))
        return _cut(body) if fault == "cut" else [body[:-8] + b"damaged!"]


def _without_checksums(start_response: Callable) -> Callable:
    def start(status: str, headers: list[tuple[str, str]], *rest: object) -> object:
        kept = [(name, value) for name, value in headers if not name.lower().startswith("x-amz-checksum")]
        return start_response(status, kept, *rest)

    return start


def _cut(body: bytes) -> Iterator[bytes]:
    """Half of what the header has promised."""
    yield body[: len(body) // 2]
    raise ConnectionAbortedError


@contextmanager
def s3_server() -> Iterator[S3]:
    import logging

    import boto3
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        def log(self, type: str, message: str, *args: object) -> None:
            pass

    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
    moto = DomainDispatcherApplication(create_backend_app)
    holder: list[S3] = []
    server = make_server("127.0.0.1", 0, lambda *args: holder[0](*args), threaded=True, request_handler=Quiet)
    server.daemon_threads = True
    s3 = S3(server.server_port, moto)
    holder.append(s3)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    before = dict(os.environ)
    os.environ.update(s3.environment)
    try:
        boto3.client("s3").create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
        yield s3
    finally:
        os.environ.clear()
        os.environ.update(before)
        server.shutdown()
