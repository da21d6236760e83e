// What a web page needs of Triptych: make a job, follow it, fetch its file, by gRPC-Web through the proxy of
// deploy/envoy. `client` has every other call.
import { Code, ConnectError, createClient } from "@connectrpc/connect";
import { createGrpcWebTransport } from "@connectrpc/connect-web";
import { JobState } from "./gen/triptych/v1/job_pb.js";
import { GenerationService } from "./gen/triptych/v1/generation_service_pb.js";

const OVER = new Set([JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED, JobState.EXPIRED]);
const AGAIN_MS = 500;
const BREAKS_MAX = 20;

/** A client of the fleet behind `edge`, for example `http://127.0.0.1:8080`. `token` is for fleets that ask for one. */
export function connect(edge, token = "") {
  const authorize = (next) => (request) => {
    if (token) request.header.set("authorization", `Bearer ${token}`);
    return next(request);
  };
  return createClient(GenerationService, createGrpcWebTransport({ baseUrl: edge, interceptors: [authorize] }));
}

/**
 * Make a job of a request (fields of GenerationRequest), and return it once it is over. A broken call is repeated: the
 * request's id makes it the same job.
 */
export async function generate(client, request, onUpdate = () => {}) {
  const requestId = crypto.randomUUID();
  const { job } = await again(() => client.createJob({ requestId, request }));
  let last = job;
  await again(async () => {
    for await (const update of client.watchJob({ jobId: job.jobId })) {
      last = update.job;
      onUpdate(update);
    }
    if (!OVER.has(last.state)) throw new ConnectError("the stream ended early", Code.Unavailable);
  });
  if (last.state !== JobState.SUCCEEDED) throw new Error(last.error || JobState[last.state]);
  return last;
}

/** One file of a job that succeeded. A broken download goes on where it was, and its SHA-256 is checked. */
export async function download(client, job, artifactIndex = 0) {
  const chunks = [];
  let offsetBytes = 0n;
  await again(async () => {
    for await (const part of client.downloadResult({ jobId: job.jobId, artifactIndex, offsetBytes })) {
      chunks.push(part.chunk);
      offsetBytes += BigInt(part.chunk.length);
    }
  });
  const artifact = job.artifacts[artifactIndex];
  const file = new Blob(chunks, { type: artifact.mediaType });
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", await file.arrayBuffer()));
  if (digest.some((byte, index) => byte !== artifact.sha256[index])) throw new Error("the file isn't what was stored");
  return file;
}

/** Repeat what a break of the line or of a server has ended. */
async function again(attempt) {
  for (let breaks = 1; ; breaks++) {
    try {
      return await attempt();
    } catch (error) {
      // A controller's own errors have details; those of browsers and proxies, which have none, are breaks.
      const { code, details } = ConnectError.from(error);
      const isOnTheWay = details.length === 0 && (code === Code.Unknown || code === Code.Internal);
      const isBreak = code === Code.Unavailable || isOnTheWay;
      if (!isBreak || breaks >= BREAKS_MAX) throw error;
      await new Promise((resolve) => setTimeout(resolve, AGAIN_MS));
    }
  }
}
