// What went wrong in one sentence that can be shown. Any other error is a mistake of ours.
export class LabError extends Error {}

// Fetch a file. onProgress is told its share that is there, from 0 to 1, if the server says how long it is.
export async function fetchBytes(url, onProgress = () => {}) {
  let got = 0;
  try {
    const answer = await fetch(url), total = Number(answer.headers.get('Content-Length') ?? 0);
    if (!answer.ok) throw new LabError(`${url} is not there: the server says ${answer.status}.`);
    const counter = new TransformStream({transform(piece, next) {
      got += piece.length;
      if (total) onProgress(Math.min(got / total, 1));
      next.enqueue(piece);
    }});
    return await new Response(answer.body.pipeThrough(counter)).arrayBuffer();
  } catch (error) {
    if (error instanceof LabError) throw error;
    throw new LabError(`${url} broke off after ${got} bytes: load the page again.`);
  }
}

export const fetchJson = async url => JSON.parse(new TextDecoder().decode(await fetchBytes(url)));
