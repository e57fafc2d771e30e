"""gRPC's C core through Python: makes the calls it is told to and prints what it heard. Judges nothing.

    client.py ENDPOINT CASES

CASES holds one call a line, JSON: {"name", "path", "body" (a file), "gzip", "tenant"}. For each, one line of JSON goes
out: {"name", "code", "message", "details" (hex), "answer" (hex)}.
"""

import json
import sys

import grpc


def call(channel, case):
    """One unary call with the bytes of a file; the answer stays bytes, too."""
    with open(case["body"], "rb") as file:
        body = file.read()
    metadata = [("x-scope-orgid", case["tenant"])] if case["tenant"] else []
    method = channel.unary_unary(case["path"], request_serializer=None, response_deserializer=None)
    compression = grpc.Compression.Gzip if case["gzip"] else grpc.Compression.NoCompression
    heard = {"name": case["name"], "code": 0, "message": "", "details": "", "answer": ""}
    try:
        answer = method(body, timeout=60, metadata=metadata, compression=compression)
        heard["answer"] = answer.hex()
    except grpc.RpcError as error:
        trailers = dict(error.trailing_metadata() or [])
        heard["code"] = error.code().value[0]
        heard["message"] = error.details()
        heard["details"] = trailers.get("grpc-status-details-bin", b"").hex()
    return heard


def main():
    """All calls over one channel, one after the other."""
    endpoint, cases = sys.argv[1:]
    with grpc.insecure_channel(endpoint) as channel, open(cases, encoding="utf-8") as lines:
        for line in lines:
            print(json.dumps(call(channel, json.loads(line))), flush=True)


main()
