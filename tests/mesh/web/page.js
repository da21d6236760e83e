// Runs in Chromium: calls the fleet as a page would, and posts what it saw to where it came from.
import { ConnectError } from "@connectrpc/connect";
import { ErrorInfoSchema } from "./gen/google/rpc/error_details_pb.js";
import { JobState } from "./gen/triptych/v1/job_pb.js";
import { connect, download, generate } from "./triptych.js";

const told = new URLSearchParams(location.search);
const edge = told.get("edge");
const jobs = Number(told.get("jobs"));
const hex = (bytes) => [...new Uint8Array(bytes)].map((byte) => byte.toString(16).padStart(2, "0")).join("");
const request = { prompt: "a circle", height: 32, width: 48, seed: 3n };

async function byGrpcWeb() {
  const client = connect(edge);
  const times = [];
  const states = new Set();
  const job = await generate(client, request, (update) => {
    times.push(performance.now());
    states.add(JobState[update.job.state]);
  });
  const file = await download(client, job);
  const digest = hex(await crypto.subtle.digest("SHA-256", await file.arrayBuffer()));
  return { jobId: job.jobId, states: [...states], spread: times.at(-1) - times[0], type: file.type, digest };
}

async function anError() {
  try {
    await connect(edge).getJob({ jobId: "nobody" });
    return {};
  } catch (error) {
    const found = ConnectError.from(error);
    return { code: found.code, reasons: found.findDetails(ErrorInfoSchema).map((info) => info.reason) };
  }
}

async function byRest() {
  const body = JSON.stringify({ request: { ...request, seed: "3" } });
  const headers = { "content-type": "application/json" };
  const { job } = await (await fetch(`${edge}/v1/jobs`, { method: "POST", headers, body })).json();
  const states = await new Promise((resolve, reject) => {
    const seen = [];
    const source = new EventSource(`${edge}/v1/jobs/${job.job_id}:watch`);
    source.onmessage = ({ data }) => {
      seen.push(JSON.parse(data).job.state);
      if (/SUCCEEDED|FAILED/.test(seen.at(-1))) {
        source.close();
        resolve(seen);
      }
    };
    source.onerror = () => reject(new Error(`the event source broke after ${seen}`));
  });
  return { jobId: job.job_id, states };
}

async function many() {
  const client = connect(edge);
  const made = [];
  for (let seed = 1; seed <= jobs; seed++) {
    const job = await generate(client, { ...request, prompt: "from a page", seed: BigInt(seed) });
    await download(client, job);
    made.push(job.jobId);
  }
  return { jobIds: made };
}

const report = {};
for (const [name, run] of Object.entries(jobs ? { many } : { byGrpcWeb, anError, byRest })) {
  report[name] = await run().catch((error) => ({ error: String(error) }));
}
await fetch("/report", { method: "POST", body: JSON.stringify(report) });
