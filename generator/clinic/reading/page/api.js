// Requests to the server of this page. The token comes after # in the address, which no server ever gets, and stays in
// this tab.

const KEY = "token";

export const NO_ANSWER = "The server does not answer; is raddraft read still running?";

export function takeToken() {
  if (location.hash.length > 1) {
    sessionStorage.setItem(KEY, location.hash.slice(1));
    history.replaceState(null, "", location.pathname);
  }
  return sessionStorage.getItem(KEY);
}

async function request(path, options = {}) {
  const headers = { "X-RadDraft-Token": sessionStorage.getItem(KEY) ?? "", ...options.headers };
  let answer;
  try {
    answer = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error(NO_ANSWER);
  }
  document.dispatchEvent(new Event("answered"));
  if (!answer.ok) {
    const told = await answer.json().catch(() => ({}));
    throw new Error(told.error ?? `The server answers with status ${answer.status}.`);
  }
  return answer;
}

export async function ask(path, signal) {
  return (await request(path, { signal })).json();
}

export async function tell(path, value, keepalive = false) {
  const headers = { "Content-Type": "application/json" };
  return (await request(path, { method: "POST", headers, keepalive, body: JSON.stringify(value) })).json();
}

// {width, height, window, warnings, pixels}
export async function askFilm(path, signal) {
  const answer = await request(path, { signal });
  const about = JSON.parse(answer.headers.get("X-Film"));
  return { ...about, pixels: new Uint16Array(await answer.arrayBuffer()) };
}
