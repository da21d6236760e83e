// node generate.js ENDPOINT PROMPT OUTPUT
//
// TRIPTYCH_CA names the authority's certificate where the controller speaks TLS, TRIPTYCH_TOKEN_FILE the file of a token.

import { randomUUID } from 'node:crypto';
import { readFile } from 'node:fs/promises';

import { call, connect, download, explain, watch } from './triptych.js';

const [endpoint, prompt, output] = process.argv.slice(2);
const { TRIPTYCH_CA: ca, TRIPTYCH_TOKEN_FILE: token } = process.env;
const client = await connect(endpoint, {
  ca: ca && (await readFile(ca)),
  token: token && (await readFile(token, 'utf8')).trim(),
});
try {
  const { job: accepted } = await call(client, 'CreateJob', {
    request_id: randomUUID(), // or a repeated call would make a second job
    request: { prompt, height: 64, width: 64, seed: 1, output_format: output.split('.').pop() },
  });
  let job = accepted;
  for await (job of watch(client, accepted.job_id)) console.log(job.state, job.step);
  if (job.state !== 'JOB_STATE_SUCCEEDED') throw new Error(job.error);
  const { size_bytes: size } = await download(client, job.job_id, output);
  console.log(`${output}: ${size} bytes`);
} catch (error) {
  const { reason, field, accepted } = explain(error);
  console.error('error:', reason, field, accepted, error.details ?? error.message);
  process.exitCode = 1;
} finally {
  client.close();
}
