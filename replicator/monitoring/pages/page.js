// Replaces what changed on the page every two seconds, and reads values off the charts. It sends nothing but GETs.
"use strict";
const EVERY = 2000;
const parser = new DOMParser();
let missed = 0;

function update(html) {
  const next = parser.parseFromString(html, "text/html").getElementById("page");
  const page = document.getElementById("page");
  if (!next) return;
  document.title = next.dataset.title;
  page.className = next.className;
  page.dataset.at = next.dataset.at;
  merge(page, next);
}

// Keeps every element that looks the same, so that focus, selection and scroll positions survive.
function merge(old, next) {
  const before = [...old.children], after = [...next.children];
  if (before.length !== after.length || before.some((e, i) => e.tagName !== after[i].tagName || e.id !== after[i].id)) {
    old.replaceChildren(...next.childNodes);
    return;
  }
  after.forEach((element, i) => {
    if (before[i].isEqualNode(element)) return;
    if (before[i].matches("header, main, .columns, .charts")) merge(before[i], element);
    else replace(before[i], element);
  });
}

function replace(old, element) {
  const scrolled = [...old.querySelectorAll("ul")].map((list) => list.scrollTop);
  const focused = old.contains(document.activeElement) ? document.activeElement.className : "";
  old.replaceWith(element);
  element.querySelectorAll("ul").forEach((list, i) => (list.scrollTop = scrolled[i] || 0));
  if (focused) element.getElementsByClassName(focused)[0]?.focus({ preventScroll: true });
}

async function poll() {
  try {
    const response = await fetch("fragment", { cache: "no-store", signal: AbortSignal.timeout(5000) });
    if (!response.ok) throw new Error(response.status);
    update(await response.text());
    missed = 0;
  } catch {
    missed += 1;
  }
  const lost = document.getElementById("lost");
  lost.hidden = missed < 2;
  document.body.classList.toggle("lost", missed >= 2);
  if (missed >= 2) {
    lost.querySelector("time").textContent = document.getElementById("page").dataset.at;
    document.querySelector(".pill").lastChild.textContent = "no response";
    document.title = "stopped? " + document.title.replace(/^stopped\? /, "");
  }
  setTimeout(poll, document.hidden ? 5 * EVERY : EVERY);
}

function read(event) {
  const plot = event.target.closest?.("svg[data-points]");
  document.querySelectorAll("svg[data-points]").forEach((svg) => {
    const reading = svg.closest("figure").querySelector(".reading");
    if (svg !== plot) {
      reading.textContent = reading.dataset.now;
      svg.querySelector(".cross").setAttribute("d", "");
      return;
    }
    const box = svg.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * 600;
    const near = JSON.parse(svg.dataset.points).reduce((a, b) => (Math.abs(b[0] - x) < Math.abs(a[0] - x) ? b : a));
    reading.textContent = near[1];
    svg.querySelector(".cross").setAttribute("d", `M${near[0]} 0V120`);
  });
}

document.addEventListener("pointermove", read);
setTimeout(poll, EVERY);
