// Keys, the reader's own clock, light and dark, and what htmx says of errors. All pages are whole without it.
"use strict";

const root = document.documentElement;

// ── light and dark
const theme = document.getElementById("theme");
if (theme) {
  theme.hidden = false;
  theme.addEventListener("click", () => {
    const dark = matchMedia("(prefers-color-scheme: dark)").matches;
    const now = root.dataset.theme || (dark ? "dark" : "light");
    root.dataset.theme = now === "dark" ? "light" : "dark";
    try {
      localStorage.setItem("mia-theme", root.dataset.theme);
    } catch {
      // It holds for this page alone.
    }
  });
}

// ── times, as this clock has them
const clock = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" });
function tellTimes(within) {
  for (const time of within.querySelectorAll("time[datetime]")) {
    const at = new Date(time.dateTime);
    if (!Number.isNaN(at.getTime())) time.textContent = clock.format(at);
  }
}
tellTimes(document);

// ── keys
function editable(element) {
  return element.matches("input, textarea, select, [contenteditable]");
}
function move(by) {
  const rows = [...document.querySelectorAll("a[data-row]")].filter((row) => row.offsetParent !== null);
  if (!rows.length) return;
  const at = rows.indexOf(document.activeElement);
  const next = at < 0 ? (by > 0 ? 0 : rows.length - 1) : Math.min(rows.length - 1, Math.max(0, at + by));
  rows[next].focus();
  rows[next].scrollIntoView({ block: "nearest" });
}
document.addEventListener("keydown", (event) => {
  const here = event.target instanceof Element ? event.target : document.body;
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing && here.matches("textarea[data-submit]")) {
    event.preventDefault();
    here.form.requestSubmit();
    return;
  }
  if (event.key === "Escape" && editable(here)) {
    here.blur();
    return;
  }
  if (event.ctrlKey || event.metaKey || event.altKey || editable(here)) return;
  if (event.key === "/") {
    const search = document.querySelector("[data-search]");
    if (search) {
      event.preventDefault();
      search.focus();
    } else {
      location.assign("/memories#q");
    }
  } else if (event.key === "j") move(1);
  else if (event.key === "k") move(-1);
});
if (location.hash === "#q") document.getElementById("q")?.focus();

// ── htmx
const toast = document.getElementById("toast");
let hiding = 0;
function say(text) {
  toast.textContent = text;
  toast.classList.add("shown");
  clearTimeout(hiding);
  hiding = setTimeout(() => toast.classList.remove("shown"), 6000);
}
const offline = document.querySelector(".offline");
document.addEventListener("htmx:afterSwap", (event) => tellTimes(event.target.parentElement || document));
document.addEventListener("htmx:beforeSwap", (event) => {
  offline.hidden = true;
  const { xhr } = event.detail;
  if (xhr.status === 401) {
    location.assign("/login");
  } else if (xhr.status >= 400) {
    // An error of a page is a part of a page; any other is JSON, and never becomes one.
    const polled = event.detail.requestConfig.verb === "get";
    if (!polled && (xhr.getResponseHeader("content-type") || "").startsWith("text/html")) {
      const shown = new DOMParser().parseFromString(xhr.responseText, "text/html");
      say(shown.body.textContent.replace(/\s+/g, " ").trim());
    } else if (!polled) {
      try {
        say(JSON.parse(xhr.responseText).error.message);
      } catch {
        say(`The server answered ${xhr.status}.`);
      }
    }
  }
});
for (const name of ["htmx:sendError", "htmx:timeout"]) {
  document.addEventListener(name, () => {
    offline.hidden = false;
  });
}
document.addEventListener("htmx:afterRequest", (event) => {
  // A question that was taken leaves the box.
  if (event.detail.successful && event.detail.elt.matches("form[action='/asks']")) event.detail.elt.reset();
});
