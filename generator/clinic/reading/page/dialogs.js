// The dialogs: why a draft is rejected, documents of read studies, keys.

import { tell } from "./api.js";

const REASONS = [
  "A finding is missed",
  "A finding is invented",
  "Wrong side or place",
  "The text makes no sense",
  "The film cannot be read",
  "Not a chest film",
];

const element = (id) => document.getElementById(id);

// Resolves to a reason, or to null.
export function askReason() {
  const [dialog, field, confirm] = ["reject-dialog", "reason", "confirm-reject"].map(element);
  field.value = "";
  confirm.disabled = true;
  field.oninput = () => {
    confirm.disabled = !field.value.trim();
  };
  const buttons = REASONS.map((reason, at) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = `${at + 1} ${reason}`;
    button.addEventListener("click", () => {
      field.value = field.value.trim() ? `${field.value.trim()}; ${reason}` : reason;
      field.oninput();
      confirm.focus();
    });
    return button;
  });
  element("reasons").replaceChildren(...buttons);
  dialog.onkeydown = (event) => {
    if (event.target !== field && buttons[Number(event.key) - 1]) {
      event.preventDefault();
      buttons[Number(event.key) - 1].click();
    } else if (event.target === field && event.key === "Enter" && (event.ctrlKey || event.metaKey) && field.value.trim()) {
      dialog.close("reject");
    }
  };
  dialog.returnValue = "";
  dialog.showModal();
  buttons[0].focus();
  return new Promise((resolve) => {
    dialog.onclose = () => resolve(dialog.returnValue === "reject" ? field.value.trim() : null);
  });
}

// current: number of the open study; studies: all of them; folder: where documents go.
export function showExport(current, studies, folder) {
  const dialog = element("export-dialog");
  const read = studies.map((one, at) => at).filter((at) => ["accepted", "corrected"].includes(studies[at].status));
  element("export-note").textContent =
    `Documents go to the folder ${folder} on this computer. They name the patient as the films do, and say that they are drafts for a radiologist to check.`;
  const all = dialog.querySelector('input[value="all"]');
  all.disabled = !read.length;
  if (all.disabled) dialog.querySelector('input[value="this"]').checked = true;
  element("export-all").textContent = `All accepted and corrected studies (${read.length})`;
  const report = element("exported");
  report.replaceChildren();
  const run = element("run-export");
  run.onclick = async () => {
    const forms = [...dialog.querySelectorAll('input[name="form"]:checked')].map((box) => box.value);
    if (!forms.length) return say(report, ["Choose a document."], true);
    run.disabled = true;
    say(report, ["Writing …"]);
    try {
      const found = await tell("/api/export", { studies: all.checked ? read : [current], forms, complete: element("complete").checked });
      const count = found.written.length;
      const files = count ? `${count === 1 ? "Written" : `${count} files written`} to ${found.folder}: ${found.written.slice(0, 6).join(", ")}${count > 6 ? " …" : ""}` : "";
      say(report, files ? [files] : []);
      say(report, found.errors, true, true);
    } catch (error) {
      say(report, [error.message], true);
    } finally {
      run.disabled = false;
    }
  };
  dialog.showModal();
}

function say(place, lines, bad = false, more = false) {
  const texts = lines.map((line) => {
    const text = document.createElement("p");
    text.textContent = line;
    text.classList.toggle("bad", bad);
    return text;
  });
  if (more) place.append(...texts);
  else place.replaceChildren(...texts);
}

// keys: [[key, what it does]]
export function showKeys(keys) {
  const rows = keys.flatMap(([key, what]) => {
    const [term, description] = [document.createElement("dt"), document.createElement("dd")];
    term.textContent = key;
    description.textContent = what;
    return [term, description];
  });
  element("keys").replaceChildren(...rows);
  element("help-dialog").showModal();
}
