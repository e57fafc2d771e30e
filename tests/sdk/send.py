"""Sends traces with the unmodified OpenTelemetry SDK and writes what it sent to a ledger, one JSON object per span.

The shapes of the traces and of the ledger are those of send.mjs; tests/sdk.rs compares the ledger with what comes back.
"""

import argparse
import json
import struct
import sys
import time

import grpc
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

MS = 1_000_000

# Every fast root takes equally long: a tie with the learned p95 is not slow, so none is slow by chance.
ROOT_NS = 10 * MS
SLOW_ROOT_NS = 400 * MS

SERVICES = ("frontend", "payment", "email")

EVERY_TYPE = {
    "text": "Grüße, 世界 🌍 \"quoted\"\n",
    "text.empty": "",
    "int": 42,
    "int.min": -(2**63),
    "int.max": 2**63 - 1,
    "double": 0.1,
    "double.tiny": 5e-324,
    "double.negative_zero": -0.0,
    "double.infinite": float("-inf"),
    "true": True,
    "false": False,
    "texts": ["a", "", "c"],
    "ints": [1, -2, 3],
    "doubles": [0.5, -1.25],
    "bools": [True, False],
    "nothing_in_it": [],
    "bytes": bytes(range(256)),
    "map": {"inner": "value", "deeper": {"n": 7}},
}


def exporter(arguments):
    """One exporter, as a program would set it up."""
    gzip = arguments.compression == "gzip"
    if arguments.protocol == "grpc":
        compression = grpc.Compression.Gzip if gzip else grpc.Compression.NoCompression
        return GrpcExporter(endpoint=arguments.endpoint, insecure=True, compression=compression)
    compression = Compression.Gzip if gzip else Compression.NoCompression
    return HttpExporter(endpoint=arguments.endpoint + "/v1/traces", compression=compression)


def provider(service, arguments):
    """One process of the shop: its own resource, processor and connection."""
    resource = Resource.create(
        {
            "service.name": service,
            "service.version": "1.2.3",
            "host.cpus": 8,
            "host.load": 0.25,
            "host.is_spot": True,
            "process.command_args": [service, "--serve"],
        },
        schema_url="https://opentelemetry.io/schemas/1.26.0",
    )
    made = TracerProvider(resource=resource, span_limits=SpanLimits(max_attributes=64))
    made.add_span_processor(
        BatchSpanProcessor(
            exporter(arguments),
            max_queue_size=500_000,
            schedule_delay_millis=200,
            max_export_batch_size=5_000,
        )
    )
    return made


def tracer(made):
    return made.get_tracer("shop", "0.9", "https://opentelemetry.io/schemas/1.26.0", {"team": "sluice", "level": 3})


def handed_over(span):
    """The context another process reads from the request's headers."""
    headers = {}
    TraceContextTextMapPropagator().inject(headers, trace.set_span_in_context(span))
    return TraceContextTextMapPropagator().extract(headers)


def shop_trace(tracers, kind, number):
    """A visit: five spans in three services, parents and children across processes."""
    began = time.time_ns()
    root = tracers["frontend"].start_span(
        "GET /checkout",
        kind=SpanKind.SERVER,
        start_time=began,
        attributes={**EVERY_TYPE, "visit.number": number, "visit.class": kind},
    )
    call = tracers["frontend"].start_span(
        "POST payment",
        context=trace.set_span_in_context(root),
        kind=SpanKind.CLIENT,
        start_time=began + 1 * MS,
    )
    charge = tracers["payment"].start_span(
        "Charge",
        context=handed_over(call),
        kind=SpanKind.SERVER,
        start_time=began + 2 * MS,
        attributes={"card.kind": "debit", "amount": 12.5},
    )
    publish = tracers["payment"].start_span(
        "receipts publish",
        context=trace.set_span_in_context(charge),
        kind=SpanKind.PRODUCER,
        start_time=began + 3 * MS,
    )
    elsewhere = SpanContext(
        0x0102030405060708090A0B0C0D0E0F10 + number, 0x1112131415161718, True, TraceFlags(1), TraceState([("vendor", "x1")])
    )
    receipt = tracers["email"].start_span(
        "receipts process",
        context=handed_over(publish),
        kind=SpanKind.CONSUMER,
        start_time=began + 4 * MS,
        links=[
            Link(publish.get_span_context()),
            Link(elsewhere, attributes={"why": "same customer", "hops": 2}),
        ],
    )
    receipt.set_attribute("mail.attempts", [1, 2])
    receipt.add_event("queued", timestamp=began + 4 * MS + 1)
    receipt.add_event("sent", {"mail.bytes": 5_120, "mail.ok": True}, timestamp=began + 5 * MS + 7)
    if kind == "error":
        charge.record_exception(ValueError("card refused"), timestamp=began + 6 * MS)
        charge.set_status(Status(StatusCode.ERROR, "upstream said no"))
    else:
        charge.set_status(Status(StatusCode.OK))
    receipt.end(began + 6 * MS)
    publish.end(began + 4 * MS)
    charge.end(began + 7 * MS)
    call.end(began + 8 * MS)
    root.end(began + (SLOW_ROOT_NS if kind == "slow" else ROOT_NS))
    return [root, call, charge, publish, receipt]


def single_trace(made, number):
    """One short span, the least a trace can be."""
    began = time.time_ns()
    span = made.start_span("tick", kind=SpanKind.INTERNAL, start_time=began, attributes={"tick.number": number})
    span.end(began + MS // 2)
    return [span]


def value(given):
    """A value with its OTLP type. Integers are text and doubles their bits, so that JSON cannot round them."""
    if given is None:
        return None
    if isinstance(given, bool):
        return {"bool": given}
    if isinstance(given, str):
        return {"text": given}
    if isinstance(given, int):
        return {"int": str(given)}
    if isinstance(given, float):
        return {"double": struct.pack(">d", given).hex()}
    if isinstance(given, bytes):
        return {"bytes": given.hex()}
    if hasattr(given, "items"):
        return {"map": attributes(given)}
    return {"array": [value(item) for item in given]}


def attributes(given):
    return [[key, value(item)] for key, item in (given or {}).items()]


def tracestate(state):
    return ",".join(f"{key}={item}" for key, item in state.items())


def entry(span, kind):
    """What the SDK was told about one span: a line of the ledger."""
    context, parent, scope = span.get_span_context(), span.parent, span.instrumentation_scope
    return {
        "class": kind,
        "resource": {"attributes": attributes(span.resource.attributes), "schema_url": span.resource.schema_url},
        "scope": {
            "name": scope.name,
            "version": scope.version,
            "attributes": attributes(scope.attributes),
            "schema_url": scope.schema_url,
        },
        "trace_id": f"{context.trace_id:032x}",
        "span_id": f"{context.span_id:016x}",
        "parent_id": f"{parent.span_id:016x}" if parent else "",
        "parent_is_remote": bool(parent and parent.is_remote),
        "trace_state": tracestate(context.trace_state),
        "name": span.name,
        "kind": span.kind.value + 1,
        "start": str(span.start_time),
        "end": str(span.end_time),
        "attributes": attributes(span.attributes),
        "events": [
            {"name": event.name, "time": str(event.timestamp), "attributes": attributes(event.attributes)}
            for event in span.events
        ],
        "links": [
            {
                "trace_id": f"{link.context.trace_id:032x}",
                "span_id": f"{link.context.span_id:016x}",
                # This SDK's exporter leaves the tracestate of links out; the one for JavaScript sends it.
                "trace_state": "",
                "attributes": attributes(link.attributes),
            }
            for link in span.links
        ],
        "status": {"code": span.status.status_code.value, "message": span.status.description or ""},
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--endpoint", required=True, help="http://host:port")
    parser.add_argument("--protocol", choices=["grpc", "http"], required=True)
    parser.add_argument("--compression", choices=["gzip", "none"], default="gzip")
    parser.add_argument("--traces", type=int, default=0, help="plain traces")
    parser.add_argument("--errors", type=int, default=0, help="traces with a failed span")
    parser.add_argument("--slow", type=int, default=0, help="traces with a slow root")
    parser.add_argument("--single", action="store_true", help="plain traces of one small span each")
    parser.add_argument("--ledger", required=True, help="where to write what was sent")
    arguments = parser.parse_args()

    sent = []
    if arguments.single:
        providers = [provider("ticker", arguments)]
        ticker = tracer(providers[0])
        sent += (("plain", span) for number in range(arguments.traces) for span in single_trace(ticker, number))
    else:
        providers = [provider(service, arguments) for service in SERVICES]
        tracers = {service: tracer(made) for service, made in zip(SERVICES, providers)}
        classes = ["plain"] * arguments.traces + ["error"] * arguments.errors + ["slow"] * arguments.slow
        for number, kind in enumerate(classes):
            sent += ((kind, span) for span in shop_trace(tracers, kind, number))
    flushed = [made.force_flush(120_000) for made in providers]
    for made in providers:
        made.shutdown()
    with open(arguments.ledger, "w", encoding="utf-8") as ledger:
        for kind, span in sent:
            ledger.write(json.dumps(entry(span, kind), separators=(",", ":")) + "\n")
    if not all(flushed):
        sys.exit("send.py: the SDK could not flush its spans")


if __name__ == "__main__":
    main()
