// The page: a prompt, its progress, and what came of it. `?edge=` and `?token=` say where the fleet is.
import { connect, download, generate } from "./triptych.js";

const told = new URLSearchParams(location.search);
const client = connect(told.get("edge") ?? "http://127.0.0.1:8080", told.get("token") ?? "");
const form = document.querySelector("form");
const progress = document.querySelector("progress");
const status = document.querySelector("[role=status]");
const place = document.querySelector("div");

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  progress.hidden = false;
  status.textContent = "";
  try {
    const job = await generate(client, { prompt: form.elements.prompt.value }, ({ job: { step, stepCount } }) => {
      progress.max = stepCount || 1;
      progress.value = step;
    });
    const file = await download(client, job);
    const shown = document.createElement(file.type.startsWith("video/") ? "video" : "img");
    shown.src = URL.createObjectURL(file);
    shown.controls = shown.loop = true;
    place.replaceChildren(shown);
    status.textContent = `${job.jobId}, seed ${job.seed}`;
  } catch (error) {
    status.textContent = String(error.message ?? error);
  }
  progress.hidden = true;
});
