"""Sends traces with the unmodified Zipkin and Jaeger exporters of OpenTelemetry and writes what it sent to a ledger, one
JSON object per span: what must come back once a server has turned it into OTLP again.

Needs the packages of zipkin_jaeger.txt, which are older than those of requirements.txt: OpenTelemetry ended these exporters.
With --record it needs no server: it takes the exporter's own request and writes the body to a file, as
ingest/dialects/tests/recorded has them.
"""

import argparse
import json
import struct
import sys
import threading
import time
from concurrent import futures
from http.server import BaseHTTPRequestHandler, HTTPServer

import grpc
from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Link, SpanKind, Status, StatusCode

MS = 1_000_000
SERVICES = ("frontend", "payment", "email")


def exporter(protocol, endpoint):
    """One exporter, as a program would set it up; `endpoint` is host:port."""
    if protocol == "zipkin-json":
        from opentelemetry.exporter.zipkin.json import ZipkinExporter

        return ZipkinExporter(endpoint=f"http://{endpoint}/api/v2/spans", local_node_ipv4="10.0.0.1", local_node_port=8080)
    if protocol == "zipkin-proto":
        from opentelemetry.exporter.zipkin.proto.http import ZipkinExporter

        return ZipkinExporter(endpoint=f"http://{endpoint}/api/v2/spans", local_node_ipv6="2001:db8::1", local_node_port=8080)
    if protocol == "jaeger-thrift":
        from opentelemetry.exporter.jaeger.thrift import JaegerExporter

        return JaegerExporter(collector_endpoint=f"http://{endpoint}/api/traces?format=jaeger.thrift")
    from opentelemetry.exporter.jaeger.proto.grpc import JaegerExporter

    return JaegerExporter(collector_endpoint=endpoint, insecure=True)


def provider(service, arguments, endpoint):
    """One process of the shop: its own resource, processor and connection."""
    resource = Resource.create({"service.name": service, "service.version": "1.2.3", "host.name": "shop-1"})
    made = TracerProvider(resource=resource)
    made.add_span_processor(BatchSpanProcessor(exporter(arguments.protocol, endpoint), schedule_delay_millis=200))
    return made


def shop_trace(tracers, kind, number):
    """A visit: four spans in three services."""
    began = time.time_ns() // 1_000 * 1_000
    root = tracers["frontend"].start_span(
        "GET /checkout",
        kind=SpanKind.SERVER,
        start_time=began,
        attributes={
            "text": "Grüße, 世界 🌍 \"quoted\"\n",
            "int.max": 2**63 - 1,
            "double": 0.1,
            "true": True,
            "texts": ["a", "", "c"],
            "visit.number": number,
            "visit.class": kind,
        },
    )
    call = tracers["frontend"].start_span(
        "POST payment", context=trace.set_span_in_context(root), kind=SpanKind.CLIENT, start_time=began + MS
    )
    charge = tracers["payment"].start_span(
        "Charge",
        context=trace.set_span_in_context(call),
        kind=SpanKind.SERVER,
        start_time=began + 2 * MS,
        links=[Link(root.get_span_context())],
    )
    receipt = tracers["email"].start_span(
        "receipts process", context=trace.set_span_in_context(charge), kind=SpanKind.CONSUMER, start_time=began + 3 * MS
    )
    receipt.add_event("queued", timestamp=began + 4 * MS)
    receipt.add_event("sent", {"mail.bytes": 5_120, "mail.ok": True}, timestamp=began + 5 * MS)
    if kind == "error":
        charge.set_status(Status(StatusCode.ERROR, "upstream said no"))
    else:
        charge.set_status(Status(StatusCode.OK))
    for span, end in ((receipt, 6), (charge, 7), (call, 8), (root, 10)):
        span.end(began + end * MS)
    return [root, call, charge, receipt]


def value(given):
    """A value with its type. Integers are text and doubles their bits, so that JSON cannot round them."""
    if isinstance(given, bool):
        return {"bool": given}
    if isinstance(given, str):
        return {"text": given}
    if isinstance(given, int):
        return {"int": str(given)}
    if isinstance(given, float):
        return {"double": struct.pack(">d", given).hex()}
    return {"array": [value(item) for item in given]}


def attributes(given):
    return [[key, value(item)] for key, item in (given or {}).items()]


def entry(span, kind):
    """What the SDK was told about one span: a line of the ledger. Zipkin has text alone; its reader must not ask for more."""
    context, parent = span.get_span_context(), span.parent
    return {
        "class": kind,
        "service": span.resource.attributes["service.name"],
        "scope": {"name": span.instrumentation_scope.name, "version": span.instrumentation_scope.version},
        "trace_id": f"{context.trace_id:032x}",
        "span_id": f"{context.span_id:016x}",
        "parent_id": f"{parent.span_id:016x}" if parent else "",
        "name": span.name,
        "kind": span.kind.value + 1,
        "start": str(span.start_time),
        "end": str(span.end_time),
        "attributes": attributes(span.attributes),
        "events": [
            {"name": event.name, "time": str(event.timestamp), "attributes": attributes(event.attributes)}
            for event in span.events
        ],
        "links": [{"trace_id": f"{link.context.trace_id:032x}", "span_id": f"{link.context.span_id:016x}"} for link in span.links],
        "status": {"code": span.status.status_code.value, "message": span.status.description or ""},
    }


class Recorder:
    """Stands in for a server and keeps the largest body it was sent."""

    def __init__(self, protocol):
        self.body = b""
        if protocol == "jaeger-grpc":
            server = grpc.server(futures.ThreadPoolExecutor(max_workers=2))
            method = grpc.unary_unary_rpc_method_handler(lambda body, _: self.keep(body))
            service = "jaeger.api_v2.CollectorService"
            server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, {"PostSpans": method})])
            self.endpoint = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
            server.start()
            self.server = server
            return
        recorder = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                recorder.keep(self.rfile.read(int(self.headers["content-length"])))
                self.send_response(202)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def keep(self, body):
        self.body = max(self.body, body, key=len)
        return b""


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--protocol", choices=["zipkin-json", "zipkin-proto", "jaeger-thrift", "jaeger-grpc"], required=True)
    parser.add_argument("--endpoint", help="host:port")
    parser.add_argument("--record", help="where to write a body instead of sending it")
    parser.add_argument("--traces", type=int, default=0, help="plain traces")
    parser.add_argument("--errors", type=int, default=0, help="traces with a failed span")
    parser.add_argument("--ledger", required=True, help="where to write what was sent")
    arguments = parser.parse_args()
    if bool(arguments.endpoint) == bool(arguments.record):
        parser.error("one of --endpoint and --record")

    recorder = Recorder(arguments.protocol) if arguments.record else None
    endpoint = recorder.endpoint if recorder else arguments.endpoint
    # A recording is one body, so everything in it comes from one process.
    processes = SERVICES[:1] * len(SERVICES) if recorder else SERVICES
    made = {process: provider(process, arguments, endpoint) for process in processes}
    tracers = {service: made[process].get_tracer("shop", "0.9") for service, process in zip(SERVICES, processes)}
    sent = []
    classes = ["plain"] * arguments.traces + ["error"] * arguments.errors
    for number, kind in enumerate(classes):
        sent += ((kind, span) for span in shop_trace(tracers, kind, number))
    flushed = [one.force_flush(120_000) for one in made.values()]
    for one in made.values():
        one.shutdown()
    with open(arguments.ledger, "w", encoding="utf-8") as ledger:
        for kind, span in sent:
            ledger.write(json.dumps(entry(span, kind), separators=(",", ":")) + "\n")
    if recorder:
        with open(arguments.record, "wb") as record:
            record.write(recorder.body)
    if not all(flushed):
        sys.exit("zipkin_jaeger.py: the SDK could not flush its spans")


if __name__ == "__main__":
    main()
