"""An object store on this machine, in memory, that the real clients talk to over HTTP: the part of Amazon's S3 and of
Google's Cloud Storage (JSON) that fsspec's clients and tensorstore use."""

import contextlib
import email.parser
import email.policy
import hashlib
import itertools
import json
import re
import sys
import threading
from base64 import b64encode
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.sax.saxutils import escape

DATE = "2026-01-01T00:00:00.000Z"


class Thing(NamedTuple):
    data: bytes
    generation: int

    @property
    def etag(self) -> str:
        return hashlib.md5(self.data, usedforsecurity=False).hexdigest()


class Store:
    """(bucket, name) -> Thing, and what went over the wire. fail: a function of (verb, bucket, name) -> refuse it?"""

    def __init__(self, buckets):
        self.buckets, self.things, self.lock = set(buckets), {}, threading.RLock()
        self.requests: list[tuple[str, str, str]] = []
        self.fail = lambda verb, bucket, name: False
        self._generation = itertools.count(1)

    def put(self, bucket: str, name: str, data: bytes) -> Thing:
        with self.lock:
            thing = self.things[bucket, name] = Thing(bytes(data), next(self._generation))
        return thing

    def names(self, bucket: str, prefix: str = "") -> list[str]:
        with self.lock:
            return sorted(name for own, name in self.things if own == bucket and name.startswith(prefix))

    def listing(self, bucket: str, prefix: str, delimiter: str) -> tuple[list[str], list[str]]:
        """(names, folders) as a cloud lists them."""
        names, folders = [], set()
        for name in self.names(bucket, prefix):
            below, found, _ = name[len(prefix) :].partition(delimiter) if delimiter else (name, "", "")
            folders.add(prefix + below + found) if found else names.append(name)
        return names, sorted(folders)


@contextlib.contextmanager
def serving(handler, *buckets: str):
    """(Store, address) of a server that runs until the block ends."""
    store = Store(buckets)
    server = _Server(("127.0.0.1", 0), type("Handler", (handler,), {"store": store}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield store, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        if not isinstance(sys.exception(), ConnectionError):  # a client that was killed
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    store: Store

    def log_message(self, *_):
        pass

    def reply(self, status: int, body: bytes = b"", kind: str = "application/json", **headers: str):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(headers.pop("length", len(body))))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            data = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if "aws-chunked" in self.headers.get("Content-Encoding", ""):
            rest, data = data, b""
            while True:
                head, _, rest = rest.partition(b"\r\n")
                size = int(head.split(b";")[0], 16)
                if not size:
                    break
                data, rest = data + rest[:size], rest[size + 2 :]
        return data

    def reply_data(self, thing: Thing, **headers: str):
        match = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        size = len(thing.data)
        headers |= {
            "ETag": f'"{thing.etag}"',
            "Accept_Ranges": "bytes",
            "Last_Modified": "Thu, 01 Jan 2026 00:00:00 GMT",
        }
        if not match:
            return self.reply(200, thing.data, "application/octet-stream", **headers)
        begin = int(match[1]) if match[1] else max(size - int(match[2]), 0)
        end = min(int(match[2]) + 1 if match[1] and match[2] else size, size)
        if begin >= size:
            return self.reply(416, Content_Range=f"bytes */{size}")
        part = {"Content_Range": f"bytes {begin}-{end - 1}/{size}"}
        return self.reply(206, thing.data[begin:end], "application/octet-stream", **headers, **part)

    def handle_one(self):
        url = urlsplit(self.path)
        query = {k: v[0] for k, v in parse_qs(url.query, keep_blank_values=True).items()}
        self.answer(self.command, url.path, query)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = do_PATCH = handle_one


class S3(_Handler):
    """Path-style requests; every credential is taken."""

    def answer(self, verb, path, query):
        bucket, _, name = unquote(path).lstrip("/").partition("/")
        body, store = self.body(), self.store
        store.requests.append((verb, bucket, name))
        if store.fail(verb, bucket, name):
            return self._error(403, "AccessDenied")
        if bucket not in store.buckets:
            return self._error(404, "NoSuchBucket")
        if not name:
            return self._bucket(verb, bucket, query, body)
        if verb == "PUT":
            source = unquote(self.headers.get("x-amz-copy-source", "")).lstrip("/")
            if source:
                thing = store.things.get(tuple(source.split("/", 1)))
                if thing is None:
                    return self._error(404, "NoSuchKey")
                etag = store.put(bucket, name, thing.data).etag
                return self._xml(
                    f'<CopyObjectResult><ETag>"{etag}"</ETag><LastModified>{DATE}</LastModified></CopyObjectResult>'
                )
            return self.reply(200, ETag=f'"{store.put(bucket, name, body).etag}"')
        if verb == "DELETE":
            store.things.pop((bucket, name), None)
            return self.reply(204)
        thing = store.things.get((bucket, name))
        return self._error(404, "NoSuchKey") if thing is None else self.reply_data(thing)

    def _bucket(self, verb, bucket, query, body):
        if verb == "POST" and "delete" in query:
            for key in re.findall(r"<Key>(.*?)</Key>", body.decode()):
                self.store.things.pop((bucket, key.replace("&amp;", "&")), None)
            return self._xml("<DeleteResult/>")
        if verb == "GET" and ("list-type" in query or "prefix" in query):
            names, folders = self.store.listing(bucket, query.get("prefix", ""), query.get("delimiter", ""))
            text = (
                f"<Name>{bucket}</Name><IsTruncated>false</IsTruncated><KeyCount>{len(names) + len(folders)}</KeyCount>"
            )
            for name in names:
                thing = self.store.things[bucket, name]
                text += (f"<Contents><Key>{escape(quote(name))}</Key><Size>{len(thing.data)}</Size>"
                         f"<ETag>\"{thing.etag}\"</ETag><LastModified>{DATE}</LastModified></Contents>")  # fmt: skip
            text += "".join(f"<CommonPrefixes><Prefix>{escape(quote(f))}</Prefix></CommonPrefixes>" for f in folders)
            return self._xml(f"<ListBucketResult><EncodingType>url</EncodingType>{text}</ListBucketResult>")
        return self.reply(200, kind="application/xml")

    def _xml(self, text, status=200):
        self.reply(status, f'<?xml version="1.0" encoding="UTF-8"?>{text}'.encode(), "application/xml")

    def _error(self, status, code):
        self._xml(f"<Error><Code>{code}</Code><Message>{code}</Message></Error>", status)


class GCS(_Handler):
    """The JSON interface."""

    def answer(self, verb, path, query):
        body, store = self.body(), self.store
        if path.startswith("/batch/"):
            return self._batch(body)
        match = re.search(r"/b/([^/]+)(?:/o(?:/([^/]+)(?:/(rewriteTo|copyTo)/b/([^/]+)/o/([^/]+))?)?)?$", path)
        if match is None:
            return self.reply(404, b"{}")
        bucket, name, copy, to_bucket, to_name = (part and unquote(part) for part in match.groups())
        store.requests.append((verb, bucket, name or query.get("name", "")))
        if store.fail(verb, bucket, name or ""):
            return self._error(403)
        if bucket not in store.buckets:
            return self._error(404)
        if path.startswith("/upload/"):
            return self._upload(bucket, query, body)
        if not name:
            return (
                self._listing(bucket, query) if path.endswith("/o") else self._json({"name": bucket, "location": "EU"})
            )
        thing = store.things.get((bucket, name))
        if thing is None:
            return self._error(404)
        if copy:
            made = store.put(to_bucket, to_name, thing.data)
            about = self._about(to_bucket, to_name, made)
            return self._json({"done": True, "resource": about} if copy == "rewriteTo" else about)
        if verb == "DELETE":
            store.things.pop((bucket, name), None)
            return self.reply(204)
        if query.get("alt") != "media":
            return self._json(self._about(bucket, name, thing))
        if query.get("ifGenerationNotMatch") == str(thing.generation):
            return self.reply(304)
        return self.reply_data(thing, x_goog_generation=str(thing.generation))

    def _upload(self, bucket, query, body):
        name, kind = query.get("name"), query.get("uploadType")
        if kind == "multipart":
            head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
            message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + body)
            about, data = message.get_payload()
            name, body = json.loads(about.get_payload()).get("name", name), data.get_payload(decode=True)
        elif kind == "resumable" and "upload_id" not in query:
            name = name or json.loads(body or b"{}").get("name")
            host = self.headers["Host"]
            place = (
                f"http://{host}/upload/storage/v1/b/{bucket}/o?uploadType=resumable&upload_id=1&name={quote(name, '')}"
            )
            return self.reply(200, Location=place)
        thing = self.store.things.get((bucket, name))
        wanted = query.get("ifGenerationMatch")
        if wanted is not None and int(wanted) != (thing.generation if thing else 0):
            return self._error(412)
        return self._json(self._about(bucket, name, self.store.put(bucket, name, body)))

    def _listing(self, bucket, query):
        names, folders = self.store.listing(bucket, query.get("prefix", ""), query.get("delimiter", ""))
        names = [name for name in names if name >= query.get("startOffset", "")]
        items = [self._about(bucket, name, self.store.things[bucket, name]) for name in names]
        self._json({"kind": "storage#objects", "items": items, "prefixes": folders})

    def _batch(self, body):
        answers = []
        boundary = re.search(r'boundary="?([^";]+)', self.headers["Content-Type"])[1]
        for line in re.findall(rb"^DELETE (\S+)", body, re.M):
            match = re.search(r"/b/([^/]+)/o/([^/?]+)", line.decode())
            found = self.store.things.pop((unquote(match[1]), unquote(match[2])), None)
            status = "204 No Content" if found else "404 Not Found"
            answers.append(f"--{boundary}\r\nContent-Type: application/http\r\n\r\nHTTP/1.1 {status}\r\n\r\n\r\n")
        text = "".join(answers) + f"--{boundary}--"
        self.reply(200, text.encode(), f"multipart/mixed; boundary={boundary}")

    def _about(self, bucket, name, thing):
        md5 = b64encode(bytes.fromhex(thing.etag)).decode()
        return {"kind": "storage#object", "bucket": bucket, "name": name, "size": str(len(thing.data)), "updated": DATE,
                "timeCreated": DATE, "generation": str(thing.generation), "md5Hash": md5, "etag": thing.etag,
                "metageneration": "1", "storageClass": "STANDARD",
                "contentType": "application/octet-stream"}  # fmt: skip

    def _json(self, value, status=200):
        self.reply(status, json.dumps(value).encode())

    def _error(self, status):
        self._json({"error": {"code": status, "message": f"status {status}"}}, status)
