"use strict";
const DATA = JSON.parse(document.getElementById("data").textContent);
const $ = (selector, within = document) => within.querySelector(selector);

/** An element: make("td", { class: "number", onclick: f }, "text", child, …). */
function make(name, attributes = {}, ...children) {
  const drawing = ["svg", "path", "g", "line", "text", "rect", "circle", "clipPath", "title"].includes(name);
  const element = drawing ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (typeof value === "boolean" && key.startsWith("aria-")) element.setAttribute(key, value);
    else if (value === true) element.setAttribute(key, "");
    else if (value !== false && value != null) element.setAttribute(key, value);
  }
  element.append(...children.filter((child) => child != null));
  return element;
}

/** A number as a reader wants it: four significant digits, thousands apart. */
function shown(value, digits = 4) {
  if (value == null) return "–";
  if (typeof value !== "number") return String(value);
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size < 1e-3) return value.toExponential(2).replace("e-", "e−");
  if (Number.isInteger(value) || size >= 10 ** digits) return Math.round(value).toLocaleString("en").replace(/,/g, "\u202f");
  return value.toPrecision(digits);
}

/** Light, dark, or what the system has: a button that goes through the three. */
function themeButton() {
  const names = { "light dark": "theme: system", light: "theme: light", dark: "theme: dark" }, order = Object.keys(names);
  let now = "light dark";
  try { now = sessionStorage.getItem("theme") || now; } catch { /* a browser may keep nothing for files */ }
  const button = make("button", { class: "theme", type: "button", onclick: () => set(order[(order.indexOf(now) + 1) % 3]) });
  function set(name) {
    now = name;
    document.documentElement.style.colorScheme = name;
    button.textContent = names[name];
    try { sessionStorage.setItem("theme", name); } catch { /* as above */ }
    document.dispatchEvent(new Event("theme"));
  }
  set(now in names ? now : "light dark");
  return button;
}
