// grpc-js: makes the calls it is told to and prints what it heard; see ../python/client.py for both formats. Judges nothing.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";

// The library lies in the working directory, this file does not.
const grpc = createRequire(join(process.cwd(), "package.json"))("@grpc/grpc-js");
const GZIP = 2;

const [endpoint, cases] = process.argv.slice(2);
const clients = [0, GZIP].map(
  (algorithm) =>
    new grpc.Client(endpoint, grpc.credentials.createInsecure(), {
      "grpc.default_compression_algorithm": algorithm,
      "grpc.max_send_message_length": -1,
    }),
);
const same = (bytes) => bytes;

function call({ name, path, body, gzip, tenant }) {
  const metadata = new grpc.Metadata();
  if (tenant) metadata.set("x-scope-orgid", tenant);
  const options = { deadline: Date.now() + 60_000 };
  return new Promise((resolve) => {
    const heard = (error, answer) => {
      const details = error?.metadata?.get("grpc-status-details-bin")[0];
      resolve({
        name,
        code: error?.code ?? 0,
        message: error?.details ?? "",
        details: details?.toString("hex") ?? "",
        answer: answer?.toString("hex") ?? "",
      });
    };
    clients[gzip ? 1 : 0].makeUnaryRequest(path, same, same, readFileSync(body), metadata, options, heard);
  });
}

for (const line of readFileSync(cases, "utf8").trim().split("\n")) {
  console.log(JSON.stringify(await call(JSON.parse(line))));
}
clients.forEach((client) => client.close());
