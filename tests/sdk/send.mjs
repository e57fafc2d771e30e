// Sends traces with the unmodified OpenTelemetry SDK and writes what it sent to a ledger, one JSON object per span.
//
// The shapes of the traces and of the ledger are those of send.py; tests/sdk.rs compares the ledger with what comes back.
// Runs from the folder that tests/sdk/setup made, where its imports are found.

import { createWriteStream } from "node:fs";
import { createRequire } from "node:module";
import { once } from "node:events";
import { parseArgs } from "node:util";

// Modules are looked up beside the installed packages, not beside this file.
const require = createRequire(`${process.cwd()}/`);
const { ROOT_CONTEXT, SpanKind, SpanStatusCode, TraceFlags, createTraceState, defaultTextMapGetter, defaultTextMapSetter, trace } =
    require("@opentelemetry/api");
const { W3CTraceContextPropagator } = require("@opentelemetry/core");
const { resourceFromAttributes, defaultResource } = require("@opentelemetry/resources");
const { BatchSpanProcessor, NodeTracerProvider } = require("@opentelemetry/sdk-trace-node");
const EXPORTERS = {
    "grpc": () => require("@opentelemetry/exporter-trace-otlp-grpc").OTLPTraceExporter,
    "http/protobuf": () => require("@opentelemetry/exporter-trace-otlp-proto").OTLPTraceExporter,
    "http/json": () => require("@opentelemetry/exporter-trace-otlp-http").OTLPTraceExporter,
};

const MS = 1_000_000n;

// Every fast root takes equally long: a tie with the learned p95 is not slow, so none is slow by chance.
const ROOT_NS = 10n * MS;
const SLOW_ROOT_NS = 400n * MS;

const SERVICES = ["frontend", "payment", "email"];

// Every type this SDK knows. Whole numbers are sent as integers.
const EVERY_TYPE = {
    "text": "Grüße, 世界 🌍 \"quoted\"\n",
    "text.empty": "",
    "int": 42,
    "int.min": Number.MIN_SAFE_INTEGER,
    "int.max": Number.MAX_SAFE_INTEGER,
    "double": 0.1,
    "double.tiny": 5e-324,
    "true": true,
    "false": false,
    "texts": ["a", "", "c"],
    "ints": [1, -2, 3],
    "doubles": [0.5, -1.25],
    "bools": [true, false],
    "nothing_in_it": [],
};

const hrTime = ns => [Number(ns / 1_000_000_000n), Number(ns % 1_000_000_000n)];
const nanos = ([seconds, rest]) => String(BigInt(seconds) * 1_000_000_000n + BigInt(rest));

// One process of the shop: its own resource, processor and connection.
function provider(service, options) {
    const Exporter = EXPORTERS[options.protocol]();
    const url = options.protocol === "grpc" ? options.endpoint : `${options.endpoint}/v1/traces`;
    const exporter = new Exporter({ url, compression: options.compression });
    const resource = defaultResource().merge(resourceFromAttributes({
        "service.name": service,
        "service.version": "1.2.3",
        "host.cpus": 8,
        "host.load": 0.25,
        "host.is_spot": true,
        "process.command_args": [service, "--serve"],
    }));
    const processor = new BatchSpanProcessor(exporter, {
        maxQueueSize: 500_000,
        maxExportBatchSize: 5_000,
        scheduledDelayMillis: 200,
    });
    return new NodeTracerProvider({ resource, spanProcessors: [processor] });
}

// The context another process reads from the request's headers.
function handedOver(span) {
    const propagator = new W3CTraceContextPropagator();
    const headers = {};
    propagator.inject(trace.setSpan(ROOT_CONTEXT, span), headers, defaultTextMapSetter);
    return propagator.extract(ROOT_CONTEXT, headers, defaultTextMapGetter);
}

// A visit: five spans in three services, parents and children across processes.
function shopTrace(tracers, kind, number) {
    const began = BigInt(Date.now()) * MS + 123_457n;
    const at = (ms, ns = 0n) => hrTime(began + BigInt(ms) * MS + ns);
    const start = (service, name, spanKind, context, ms, rest) =>
        tracers[service].startSpan(name, { kind: spanKind, startTime: at(ms), ...rest }, context);
    const below = span => trace.setSpan(ROOT_CONTEXT, span);

    const root = start("frontend", "GET /checkout", SpanKind.SERVER, ROOT_CONTEXT, 0, {
        attributes: { ...EVERY_TYPE, "visit.number": number, "visit.class": kind },
    });
    const call = start("frontend", "POST payment", SpanKind.CLIENT, below(root), 1);
    const charge = start("payment", "Charge", SpanKind.SERVER, handedOver(call), 2, {
        attributes: { "card.kind": "debit", "amount": 12.5 },
    });
    const publish = start("payment", "receipts publish", SpanKind.PRODUCER, below(charge), 3);
    const elsewhere = {
        traceId: (0x0102030405060708090a0b0c0d0e0f10n + BigInt(number)).toString(16).padStart(32, "0"),
        spanId: "1112131415161718",
        isRemote: true,
        traceFlags: TraceFlags.SAMPLED,
        traceState: createTraceState("vendor=x1"),
    };
    const receipt = start("email", "receipts process", SpanKind.CONSUMER, handedOver(publish), 4, {
        links: [
            { context: publish.spanContext() },
            { context: elsewhere, attributes: { "why": "same customer", "hops": 2 } },
        ],
    });
    receipt.setAttribute("mail.attempts", [1, 2]);
    receipt.addEvent("queued", at(4, 1n));
    receipt.addEvent("sent", { "mail.bytes": 5_120, "mail.ok": true }, at(5, 7n));
    if (kind === "error") {
        charge.recordException(new Error("card refused"), at(6));
        charge.setStatus({ code: SpanStatusCode.ERROR, message: "upstream said no" });
    } else {
        charge.setStatus({ code: SpanStatusCode.OK });
    }
    receipt.end(at(6));
    publish.end(at(4));
    charge.end(at(7));
    call.end(at(8));
    root.end(hrTime(began + (kind === "slow" ? SLOW_ROOT_NS : ROOT_NS)));
    return [root, call, charge, publish, receipt];
}

// A value with its OTLP type. Integers are text and doubles their bits, so that JSON cannot round them.
function value(given) {
    if (given === null || given === undefined) return null;
    if (typeof given === "boolean") return { bool: given };
    if (typeof given === "string") return { text: given };
    if (Array.isArray(given)) return { array: given.map(value) };
    if (Number.isInteger(given)) return { int: String(given) };
    const bits = Buffer.alloc(8);
    bits.writeDoubleBE(given);
    return { double: bits.toString("hex") };
}

const attributes = given => Object.entries(given ?? {}).map(([key, item]) => [key, value(item)]);
const traceState = state => state?.serialize() ?? "";

// What the SDK was told about one span: a line of the ledger.
function entry(span, kind) {
    const context = span.spanContext();
    const parent = span.parentSpanContext;
    const scope = span.instrumentationScope;
    return {
        class: kind,
        resource: { attributes: attributes(span.resource.attributes), schema_url: span.resource.schemaUrl ?? "" },
        scope: { name: scope.name, version: scope.version ?? "", attributes: [], schema_url: scope.schemaUrl ?? "" },
        trace_id: context.traceId,
        span_id: context.spanId,
        parent_id: parent?.spanId ?? "",
        parent_is_remote: parent?.isRemote ?? false,
        trace_state: traceState(context.traceState),
        name: span.name,
        kind: span.kind + 1,
        start: nanos(span.startTime),
        end: nanos(span.endTime),
        attributes: attributes(span.attributes),
        events: span.events.map(event => ({
            name: event.name,
            time: nanos(event.time),
            attributes: attributes(event.attributes),
        })),
        links: span.links.map(link => ({
            trace_id: link.context.traceId,
            span_id: link.context.spanId,
            trace_state: traceState(link.context.traceState),
            attributes: attributes(link.attributes),
        })),
        status: { code: span.status.code, message: span.status.message ?? "" },
    };
}

const { values: options } = parseArgs({
    options: {
        endpoint: { type: "string" },
        protocol: { type: "string" },
        compression: { type: "string", default: "gzip" },
        traces: { type: "string", default: "0" },
        errors: { type: "string", default: "0" },
        slow: { type: "string", default: "0" },
        ledger: { type: "string" },
    },
});
if (!options.endpoint || !options.ledger || !(options.protocol in EXPORTERS)) {
    console.error("send.mjs: --endpoint URL, --ledger FILE and --protocol grpc, http/protobuf or http/json are needed");
    process.exit(2);
}
const providers = Object.fromEntries(SERVICES.map(service => [service, provider(service, options)]));
const tracers = Object.fromEntries(
    SERVICES.map(service => [
        service,
        providers[service].getTracer("shop", "0.9", { schemaUrl: "https://opentelemetry.io/schemas/1.26.0" }),
    ]),
);
const classes = { plain: options.traces, error: options.errors, slow: options.slow };
const sent = [];
for (const [kind, count] of Object.entries(classes)) {
    for (let number = 0; number < Number(count); number += 1) {
        sent.push(...shopTrace(tracers, kind, number).map(span => [kind, span]));
    }
}
await Promise.all(Object.values(providers).map(made => made.forceFlush()));
await Promise.all(Object.values(providers).map(made => made.shutdown()));
const ledger = createWriteStream(options.ledger);
for (const [kind, span] of sent) {
    ledger.write(`${JSON.stringify(entry(span, kind))}\n`);
}
ledger.end();
await once(ledger, "finish");
