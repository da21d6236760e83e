// Triptych for Node, over the contract as it is: no code is generated.

import { createHash } from 'node:crypto';
import { open, readFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

import grpc from '@grpc/grpc-js';
import loader from '@grpc/proto-loader';

const ROOT = join(dirname(fileURLToPath(import.meta.url)), '../..');
const LOADED = loader.loadSync(['triptych/v1/generation_service.proto', 'google/rpc/error_details.proto', 'google/rpc/status.proto'], {
  includeDirs: [join(ROOT, 'protos'), join(ROOT, 'third_party')],
  // Without it the loader calls fields jobId and numFrames, and drops a job_id or num_frames in silence.
  keepCase: true,
  enums: String,
  longs: Number,
  defaults: true,
  oneofs: true,
});
const { triptych } = grpc.loadPackageDefinition(LOADED);
const OVER = new Set(['JOB_STATE_SUCCEEDED', 'JOB_STATE_FAILED', 'JOB_STATE_CANCELLED']);
const PAUSE_MS = 200;
const PATIENCE_MS = 60_000; // a controller restarts in less than a second; a machine takes longer

/** A client of the controller at `host:port`. `ca` is the PEM of its authority, for TLS; `token` goes with each call. */
export async function connect(endpoint, { ca, token } = {}) {
  let credentials = grpc.credentials.createInsecure();
  if (ca) {
    credentials = grpc.credentials.createSsl(ca);
    if (token) credentials = grpc.credentials.combineChannelCredentials(credentials, bearer(token));
  }
  return new triptych.v1.GenerationService(endpoint, credentials, {
    'grpc.service_config': await readFile(join(ROOT, 'docs/service_config.json'), 'utf8'),
    'grpc.service_config_disable_resolution': 1,
    'grpc.max_receive_message_length': 64 * 2 ** 20,
    'grpc.keepalive_time_ms': 20_000,
  });
}

function bearer(token) {
  return grpc.credentials.createFromMetadataGenerator((_options, done) => {
    const metadata = new grpc.Metadata();
    metadata.set('authorization', `Bearer ${token}`);
    done(null, metadata);
  });
}

/** A unary call. Its deadline is `seconds` from now. */
export function call(client, method, request, seconds = 60) {
  return new Promise((resolve, reject) => {
    const options = { deadline: Date.now() + 1000 * seconds };
    client[method](request, new grpc.Metadata(), options, (error, answer) => (error ? reject(error) : resolve(answer)));
  });
}

/** Yields a job's present state, then each change, until it is over; goes on when the controller comes back. */
export async function* watch(client, jobId) {
  yield* resumed(async function* () {
    for await (const { job } of client.WatchJob({ job_id: jobId })) {
      yield job;
      if (OVER.has(job.state)) return;
    }
  });
}

/** Writes one file of a job's result to `path`; goes on where it was when the stream breaks. */
export async function download(client, jobId, path, index = 0) {
  const file = await open(path, 'w');
  const hash = createHash('sha256');
  let [artifact, written] = [null, 0];
  const pieces = resumed(async function* () {
    yield* client.DownloadResult({ job_id: jobId, artifact_index: index, offset_bytes: written });
  });
  try {
    for await (const message of pieces) {
      artifact = message.artifact ?? artifact;
      hash.update(message.chunk);
      await file.write(message.chunk);
      written += message.chunk.length;
    }
  } finally {
    await file.close();
  }
  if (!hash.digest().equals(artifact.sha256)) throw new Error(`${path} isn't what was stored`);
  return artifact;
}

/** What `stream()` yields, and again what a new one yields where it breaks; each begins where the caller is by then. */
async function* resumed(stream) {
  for (let end = Date.now() + PATIENCE_MS; ; ) {
    try {
      for await (const message of stream()) {
        yield message;
        end = Date.now() + PATIENCE_MS;
      }
      return;
    } catch (error) {
      if (!isBreak(error) || Date.now() > end) throw error;
      await new Promise((resolve) => setTimeout(resolve, PAUSE_MS));
    }
  }
}

/** Whether a stream was cut, rather than refused: directly, or by a proxy that lost its server. */
export function isBreak(error) {
  const isReset = error.code === grpc.status.INTERNAL && /RST_STREAM/.test(error.details);
  return error.code === grpc.status.UNAVAILABLE || isReset;
}

/** The details of an error of Triptych's: its reason, the refused field, seconds to wait. docs/errors.md has them all. */
export function explain(error) {
  const [packed] = error.metadata?.get('grpc-status-details-bin') ?? [];
  const found = { reason: '', field: '', accepted: '', waitSeconds: 0 };
  if (!packed) return found; // gRPC's own, or a proxy's
  for (const { type_url: url, value } of LOADED['google.rpc.Status'].deserialize(packed).details) {
    const detail = LOADED[url.slice(url.lastIndexOf('/') + 1)]?.deserialize(value);
    if (url.endsWith('/google.rpc.ErrorInfo')) found.reason = detail.reason;
    if (url.endsWith('/google.rpc.BadRequest')) {
      [{ field: found.field, description: found.accepted }] = detail.field_violations;
    }
    if (url.endsWith('/google.rpc.RetryInfo')) found.waitSeconds = detail.retry_delay.seconds + detail.retry_delay.nanos / 1e9;
  }
  return found;
}
