const [h, w] = DATA.grid, [H, W] = DATA.size, [SH, SW] = DATA.shown;
const N = h * w, FRAMES = DATA.frames.length, K = DATA.components;
const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
const SCALES = new Float32Array(bytes(DATA.scales).buffer), ALONG = new Float32Array(bytes(DATA.along).buffer);

// ---------------------------------------------------------------- features and the rule of propagation

// One memory for WebAssembly: the values of all patches [F·N, K] in 16 bits, and room for the sums of products.
const MEMORY = new WebAssembly.Memory({ initial: Math.ceil((FRAMES * N * (2 * K + 4)) / 65536) });
const VALUES = new Int16Array(MEMORY.buffer, 0, FRAMES * N * K), SUMS = new Int32Array(MEMORY.buffer, FRAMES * N * K * 2, FRAMES * N);
VALUES.set(new Int8Array(bytes(DATA.values).buffer));

/* sums(query, key, end, size, out), all in bytes: for each key up to the end, the sum of its products with the query, eight at a time:
     loop keys: sum = i32x4(0), at = key + size, q = query
       loop parts: sum += i32x4.dot_i16x8_s(v128.load(q), v128.load(key)); q += 16; key += 16; again while key < at
       i32.store(out, the sum of the four lanes); out += 4; again while key < end */
const CODE = "AGFzbQEAAAABCQFgBX9/f39/AAIIAQFlAW0CAAEDAgEABwUBAWYAAApyAXACAn8BewNAQQD9ESEHIAEgA2ohBSAAIQYDQCAHIAb9AAAAIAH9AAAA/boB"
  + "/a4BIQcgBkEQaiEGIAFBEGoiASAFSQ0ACyAEIAf9GwAgB/0bAWogB/0bAmogB/0bA2o2AgAgBEEEaiEEIAEgAkkNAAsL";
let compiled = null;
try {
  compiled = new WebAssembly.Instance(new WebAssembly.Module(bytes(CODE)), { e: { m: MEMORY } }).exports.f;
} catch { /* a browser without SIMD: slower */ }

/** Into SUMS, for `count` patches from `first` on: the sums of products with the patch `query`, by their numbers among all F·N. */
function sums(query, first, count) {
  if (compiled) return compiled(query * K * 2, first * K * 2, (first + count) * K * 2, K * 2, SUMS.byteOffset);
  for (let k = 0, j = first * K; k < count; k++) {
    let sum = 0;
    for (let i = query * K, end = i + K; i < end; i++, j++) sum = (sum + VALUES[i] * VALUES[j]) | 0;
    SUMS[k] = sum;
  }
}
/** The cosines of a patch with all patches of all frames [F·N]. */
function affinity(patch) {
  sums(patch, 0, FRAMES * N);
  return Float32Array.from({ length: FRAMES * N }, (_, k) => ALONG[patch] * ALONG[k] + SCALES[patch] * SCALES[k] * SUMS[k]);
}

function inside(rules, y, x, v, u) {
  if (rules.radius === 0) return true;
  const down = Math.abs(y - v), across = Math.abs(x - u);
  if (rules.shape === "square") return Math.max(down, across) <= rules.radius;
  const square = down * down + across * across, limit = rules.radius * rules.radius;
  return rules.shape === "circle" ? square <= limit : square < limit;
}

/** Where a pixel of `to` lies among `from`, linearly: [lower, upper, share of the upper]. */
function linear(to, from) {
  return Array.from({ length: to }, (_, k) => {
    const at = Math.max(0, ((k + 0.5) * from) / to - 0.5), low = Math.min(Math.floor(at), from - 1);
    return [low, Math.min(low + 1, from - 1), at - low];
  });
}
const nearestPixel = (to, from) => Array.from({ length: to }, (_, k) => Math.min(from - 1, Math.floor(((k + 0.5) * from) / to)));

/** A mask [SH, SW] as soft labels [N, M] of the patches; `values` names the M labels. */
function maskToPatches(mask, values, rules) {
  const M = values.length, place = new Map(values.map((value, m) => [value, m])), soft = new Float32Array(N * M);
  const [rows, columns] = rules.reduce === "nearest" ? [h, w] : [H, W];
  const down = nearestPixel(rows, SH), across = nearestPixel(columns, SW);
  const label = (y, x) => place.get(mask[down[y] * SW + across[x]]);
  if (rules.reduce === "nearest") {
    for (let y = 0; y < h; y++) for (let x = 0; x < w; x++) soft[(y * w + x) * M + label(y, x)] = 1;
    return soft;
  }
  const ys = linear(h, H), xs = linear(w, W);
  for (let y = 0; y < h; y++)
    for (let x = 0; x < w; x++)
      for (const [v, share] of [[ys[y][0], 1 - ys[y][2]], [ys[y][1], ys[y][2]]])
        for (const [u, part] of [[xs[x][0], 1 - xs[x][2]], [xs[x][1], xs[x][2]]]) soft[(y * w + x) * M + label(v, u)] += share * part;
  return soft;
}

/** Soft labels [N, M] as a mask [SH, SW]: enlarge, the largest wins, nearest. */
function patchesToMask(soft, values, rules) {
  const enlarge = rules.enlarge === "nearest" ? (to, from) => nearestPixel(to, from).map((at) => [at, at, 0]) : linear;
  const M = values.length, ys = enlarge(H, h), xs = enlarge(W, w);
  const maps = new Float32Array(H * W * M), low = new Float32Array(M).fill(Infinity), high = new Float32Array(M).fill(-Infinity);
  for (let y = 0; y < H; y++) {
    const [y0, y1, fy] = ys[y];
    for (let x = 0; x < W; x++) {
      const [x0, x1, fx] = xs[x];
      const a = (y0 * w + x0) * M, b = (y0 * w + x1) * M, c = (y1 * w + x0) * M, d = (y1 * w + x1) * M, at = (y * W + x) * M;
      for (let m = 0; m < M; m++) {
        const value = (1 - fy) * ((1 - fx) * soft[a + m] + fx * soft[b + m]) + fy * ((1 - fx) * soft[c + m] + fx * soft[d + m]);
        maps[at + m] = value;
        if (value < low[m]) low[m] = value;
        if (value > high[m]) high[m] = value;
      }
    }
  }
  const winner = new Uint8Array(H * W);
  for (let k = 0; k < H * W; k++) {
    let best = -Infinity;
    for (let m = 0; m < M; m++) {
      let value = maps[k * M + m];
      if (rules.min_max) value = high[m] > low[m] ? (value - low[m]) / (high[m] - low[m]) : high[m] > 0 ? Infinity : value;
      if (value > best) { best = value; winner[k] = values[m]; }
    }
  }
  const down = nearestPixel(SH, H), across = nearestPixel(SW, W), mask = new Uint8Array(SH * SW);
  for (let y = 0; y < SH; y++) for (let x = 0; x < SW; x++) mask[y * SW + x] = winner[down[y] * W + across[x]];
  return mask;
}

/** How far to either side the radius reaches in a row so many rows away; −1: not at all. */
function widths(rules) {
  return Array.from({ length: h }, (_, down) => {
    let across = -1;
    while (across < w && inside(rules, 0, 0, down, across + 1)) across++;
    return across;
  });
}

/** One row of patches of a frame: its soft labels from the frames of `context` ({frame, labels}, the first one first). */
function stepRow(target, y, context, near, far, M, rules, result, room) {
  const { values, places, counts, reach } = room, k = rules.top_k;
  const best = new Float64Array(k), which = new Int32Array(k);
  for (let x = 0; x < w; x++) {
    const query = target * N + y * w + x, along = ALONG[query], scale = SCALES[query];
    let found = 0, kept = 0;
    for (let c = 0; c < context.length; c++) {
      const whole = c === 0 && far > 0;
      for (let v = 0; v < h; v++) {
        const across = reach[Math.abs(y - v)];
        if (across < 0 && !whole) continue;
        const x0 = whole ? 0 : Math.max(0, x - across), x1 = whole ? w - 1 : Math.min(w - 1, x + across), row = v * w + x0;
        const first = context[c].frame * N + row;
        sums(query, first, x1 - x0 + 1);
        for (let u = 0; u <= x1 - x0; u++) {
          const value = along * ALONG[first + u] + scale * SCALES[first + u] * SUMS[u];
          values[found] = value;
          places[found] = c * N + row + u;
          counts[found] = whole ? far + (Math.abs(x - u) <= across ? near : 0) : c === 0 ? near : 1;
          if (kept < k || value > best[kept - 1]) { // into its place among the k best
            let j = kept < k ? kept++ : k - 1;
            for (; j > 0 && best[j - 1] < value; j--) { best[j] = best[j - 1]; which[j] = which[j - 1]; }
            best[j] = value;
            which[j] = found;
          }
          found++;
        }
      }
    }
    const at = (y * w + x) * M;
    let total = 0;
    const add = (index, weight) => {
      const c = (places[index] / N) | 0, from = (places[index] % N) * M, { labels } = context[c];
      for (let m = 0; m < M; m++) result[at + m] += weight * labels[from + m];
      total += weight;
    };
    let before = 0, last = -Infinity; // how much of the k is taken by better ones
    for (let j = 0; j < kept && before < k; j++) {
      const count = counts[which[j]];
      last = best[j];
      if (rules.weights === "softmax") add(which[j], Math.exp((best[j] - best[0]) / rules.temperature) * Math.min(count, k - before));
      before += count;
    }
    if (rules.weights === "cut") // all that reach the k-th value
      for (let index = 0; index < found; index++)
        if (values[index] >= last) add(index, Math.exp((values[index] - best[0]) / rules.temperature) * counts[index]);
    for (let m = 0; m < M; m++) result[at + m] /= total;
  }
}

const pause = () => new Promise((go) => { const { port1, port2 } = new MessageChannel(); port1.onmessage = go; port2.postMessage(0); });

/**
 * Follow a mask [SH, SW] of frame `start` to the end of the video, and from there back to its beginning.
 * `tell(frame, mask, soft)` is called for each; false from it, or from `going()`, ends the journey.
 */
async function travel(mask, start, rules, tell, going = () => true) {
  const values = [...new Set(mask)].sort((a, b) => a - b), M = values.length;
  const first = maskToPatches(mask, values, rules);
  const room = { values: new Float64Array((rules.context + 1) * N), places: new Int32Array((rules.context + 1) * N), counts: new Float64Array((rules.context + 1) * N), reach: widths(rules) };
  let since = performance.now();
  for (const direction of [1, -1]) {
    const queue = []; // the last frames with their predicted labels
    for (let t = 1; start + direction * t >= 0 && start + direction * t < FRAMES; t++) {
      const frame = start + direction * t, copies = rules.filled ? rules.context - queue.length : 0;
      const near = rules.first_unlimited ? copies : copies + 1, far = rules.first_unlimited ? 1 : 0;
      const context = [{ frame: start, labels: first }, ...queue], soft = new Float32Array(N * M);
      for (let y = 0; y < h; y++) {
        stepRow(frame, y, context, near, far, M, rules, soft, room);
        if (performance.now() - since > 24) {
          await pause();
          if (!going()) return;
          since = performance.now();
        }
      }
      if (rules.context) {
        queue.push({ frame, labels: soft });
        if (queue.length > rules.context) queue.shift();
      }
      tell(frame, patchesToMask(soft, values, rules), soft);
    }
  }
}

// ---------------------------------------------------------------- the state of the page
const OWN = { ...DATA.rules };
const state = {
  mode: "look", frame: 0, query: ((h / 2) | 0) * w + ((w / 2) | 0), queryFrame: 0,
  look: { temperature: Math.min(OWN.temperature, 0.05), top_k: N, radius: 0 }, paint: { temperature: OWN.temperature, top_k: OWN.top_k, radius: OWN.radius },
  colour: 1, painted: null, masks: Array(FRAMES).fill(null), cursor: null,
};
const COLOURS = [null, [255, 92, 64], [64, 190, 255], [255, 214, 64], [190, 120, 255]];
const rules = () => ({ ...OWN, ...state.paint });

const images = DATA.frames.map((address) => { const image = new Image(); image.src = address; return image; });
const film = [], canvas = $("#canvas");
const HINTS = {
  look: "Touch any patch of any frame: every other frame shows at once where its features look alike. Rings mark the best match in each frame. Keys: arrows move the patch, comma and full stop change the frame.",
  paint: "Paint on the frame; the mask travels through the others by the protocol's rule, forwards and backwards. Keys: arrows move the cursor, Enter paints, comma and full stop change the frame.",
};

// ---------------------------------------------------------------- drawing
/** Black over purple and orange to light yellow, as opaque as it is strong. */
const HEAT = Array.from({ length: 256 }, (_, k) => {
  const stops = [[20, 4, 40], [120, 28, 109], [220, 70, 60], [250, 160, 40], [255, 250, 190]], at = (k / 255) * 4, j = Math.min(3, at | 0);
  return stops[j].map((value, c) => Math.round(value + (stops[j + 1][c] - value) * (at - j)));
});

function heatCanvas(strength) {
  const small = new OffscreenCanvas(w, h), context = small.getContext("2d"), picture = context.createImageData(w, h);
  strength.forEach((value, k) => {
    const level = Math.max(0, Math.min(255, Math.round(255 * value)));
    picture.data.set([...HEAT[level], Math.round(255 * Math.min(1, 1.1 * value ** 0.6))], 4 * k);
  });
  context.putImageData(picture, 0, 0);
  return small;
}

const drawnMasks = new WeakMap(); // a mask's picture, until it is painted on
function maskCanvas(mask) {
  if (drawnMasks.has(mask)) return drawnMasks.get(mask);
  const drawn = new OffscreenCanvas(SW, SH), context = drawn.getContext("2d"), picture = context.createImageData(SW, SH);
  for (let k = 0; k < mask.length; k++) {
    const label = mask[k];
    if (!label) continue;
    const x = k % SW, edge = mask[k - 1] !== label || mask[k + 1] !== label || mask[k - SW] !== label || mask[k + SW] !== label || !x;
    const colour = COLOURS[label] || COLOURS[1];
    picture.data[4 * k] = colour[0]; picture.data[4 * k + 1] = colour[1]; picture.data[4 * k + 2] = colour[2];
    picture.data[4 * k + 3] = edge ? 255 : 120;
  }
  context.putImageData(picture, 0, 0);
  drawnMasks.set(mask, drawn);
  return drawn;
}

/** What `look` shows of each frame: strengths [N], the best match and its cosine. */
function matches() {
  const all = affinity(state.queryFrame * N + state.query), { temperature, top_k, radius } = state.look;
  const limits = { radius, shape: OWN.shape }, y = (state.query / w) | 0, x = state.query % w;
  let most = -Infinity;
  for (let k = 0; k < all.length; k++) if ((k / N | 0) !== state.queryFrame && all[k] > most) most = all[k];
  return Array.from({ length: FRAMES }, (_, t) => {
    const own = all.subarray(t * N, (t + 1) * N), near = Array.from(own, (_, k) => inside(limits, y, x, (k / w) | 0, k % w));
    let best = -1;
    for (let k = 0; k < N; k++) if (near[k] && (best < 0 || own[k] > own[best])) best = k;
    let least = -Infinity;
    if (top_k < N) least = Array.from(own).filter((_, k) => near[k]).sort((a, b) => b - a)[top_k - 1] ?? -Infinity;
    const strength = Array.from(own, (value, k) => (near[k] && value >= least ? Math.min(1, Math.exp((value - most) / temperature)) : 0));
    return { strength, best, value: own[best] };
  });
}

function drawFrame(target, t, match, large) {
  const context = target.getContext("2d"), { width, height } = target, px = width / w, py = height / h;
  context.imageSmoothingEnabled = true;
  context.globalAlpha = 1;
  if (images[t].complete) context.drawImage(images[t], 0, 0, width, height);
  if (state.mode === "look" && match) {
    context.fillStyle = "rgb(0 0 0 / .45)";
    context.fillRect(0, 0, width, height);
    context.globalAlpha = 0.85;
    context.imageSmoothingEnabled = !large;
    context.drawImage(heatCanvas(match.strength), 0, 0, width, height);
    context.globalAlpha = 1;
    const mark = (k, colour, round) => {
      const x = (k % w) * px, y = ((k / w) | 0) * py, size = Math.max(px, large ? 9 : 7);
      for (const [style, thick] of [["#000", large ? 5 : 4], [colour, large ? 2.5 : 2]]) {
        context.strokeStyle = style;
        context.lineWidth = thick;
        context.beginPath();
        if (round) context.arc(x + px / 2, y + py / 2, size, 0, 2 * Math.PI);
        else context.rect(x, y, px, py);
        context.stroke();
      }
    };
    if (t === state.queryFrame) mark(state.query, "#3dd6ff", false);
    else mark(match.best, "#fff", true);
  }
  if (state.mode === "paint") {
    if (state.masks[t]) context.drawImage(maskCanvas(state.masks[t]), 0, 0, width, height);
    if (large && state.cursor) {
      context.strokeStyle = "#fff";
      context.lineWidth = 2;
      context.beginPath();
      context.arc(state.cursor.x * width, state.cursor.y * height, brushSize() * width / SW, 0, 2 * Math.PI);
      context.stroke();
    }
  }
}

let current = null, scheduled = false;
function draw() { // at most once a frame of the screen
  if (scheduled) return;
  scheduled = true;
  requestAnimationFrame(() => {
    scheduled = false;
    drawNow();
  });
}
function drawNow() {
  current = state.mode === "look" ? matches() : null;
  film.forEach(({ figure, small, note }, t) => {
    drawFrame(small, t, current && current[t], false);
    figure.classList.toggle("now", t === state.frame);
    note.textContent = !current ? "" : t === state.queryFrame ? "the patch" : current[t].value.toFixed(3);
  });
  drawFrame(canvas, state.frame, current && current[state.frame], true);
  $("#frame").value = state.frame;
  $("#frame + output").textContent = `${state.frame + 1} of ${FRAMES}, ${DATA.names[state.frame]}`;
}

// ---------------------------------------------------------------- looking and painting
function place(event, element) {
  const box = element.getBoundingClientRect();
  return { x: Math.min(0.99999, Math.max(0, (event.clientX - box.left) / box.width)), y: Math.min(0.99999, Math.max(0, (event.clientY - box.top) / box.height)) };
}
const patchAt = ({ x, y }) => Math.floor(y * h) * w + Math.floor(x * w);

function ask(frame, patch) {
  state.queryFrame = frame;
  state.query = patch;
  draw();
}
function show(frame) {
  state.frame = (frame + FRAMES) % FRAMES;
  draw();
}

const brushSize = () => (+$("#brush").value * SW) / 200;
function dab({ x, y }) {
  const t = state.frame, radius = brushSize();
  if (!state.painted || state.painted.frame !== t) { // a new beginning: what has come here so far may be corrected
    state.painted = { frame: t, mask: state.masks[t] ? state.masks[t].slice() : new Uint8Array(SH * SW) };
    state.masks = Array(FRAMES).fill(null);
  }
  const { mask } = state.painted, cx = x * SW, cy = y * SH;
  for (let v = Math.max(0, Math.floor(cy - radius)); v < Math.min(SH, cy + radius); v++)
    for (let u = Math.max(0, Math.floor(cx - radius)); u < Math.min(SW, cx + radius); u++)
      if ((u + 0.5 - cx) ** 2 + (v + 0.5 - cy) ** 2 <= radius * radius) mask[v * SW + u] = state.colour;
  drawnMasks.delete(mask);
  state.masks[t] = mask;
  draw();
}
function stroke(from, to) {
  const length = Math.hypot((to.x - from.x) * SW, (to.y - from.y) * SH), steps = Math.max(1, Math.ceil(length / Math.max(1, brushSize() / 2)));
  for (let k = 1; k <= steps; k++) dab({ x: from.x + ((to.x - from.x) * k) / steps, y: from.y + ((to.y - from.y) * k) / steps });
}

let journey = 0;
async function follow() {
  const own = ++journey, { painted } = state;
  if (!painted || !painted.mask.some(Boolean)) return;
  state.masks = state.masks.map((_, t) => (t === painted.frame ? painted.mask : null));
  let done = 0;
  const say = () => { $("#progress").textContent = done < FRAMES - 1 ? `${done} of ${FRAMES - 1} frames` : "followed through all frames"; };
  say();
  await travel(painted.mask, painted.frame, rules(), (frame, mask) => {
    state.masks[frame] = mask;
    done++;
    say();
    draw();
  }, () => own === journey);
}

function clearMasks() {
  journey++;
  state.painted = null;
  state.masks = Array(FRAMES).fill(null);
  $("#progress").textContent = "";
  draw();
}

/** The painted mask as a grey PNG whose levels are the labels: what `siammae track --mask` reads. */
async function savedMask() {
  const { mask } = state.painted, raw = new Uint8Array(SH * (SW + 1));
  for (let y = 0; y < SH; y++) raw.set(mask.subarray(y * SW, (y + 1) * SW), y * (SW + 1) + 1);
  const packed = new Uint8Array(await new Response(new Blob([raw]).stream().pipeThrough(new CompressionStream("deflate"))).arrayBuffer());
  const table = Array.from({ length: 256 }, (_, n) => { for (let k = 0; k < 8; k++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1; return n >>> 0; });
  const big = (n) => [n >>> 24, (n >>> 16) & 255, (n >>> 8) & 255, n & 255];
  const chunk = (name, content) => {
    const body = [...name].map((c) => c.charCodeAt(0)).concat([...content]);
    let sum = 0xffffffff;
    for (const byte of body) sum = table[(sum ^ byte) & 255] ^ (sum >>> 8);
    return [...big(content.length), ...body, ...big(~sum >>> 0)];
  };
  return Uint8Array.from([137, 80, 78, 71, 13, 10, 26, 10, ...chunk("IHDR", [...big(SW), ...big(SH), 8, 0, 0, 0, 0]), ...chunk("IDAT", packed), ...chunk("IEND", [])]);
}

let pressed = null;
canvas.addEventListener("pointerdown", (event) => {
  if (event.button) return;
  canvas.setPointerCapture(event.pointerId);
  pressed = place(event, canvas);
  if (state.mode === "look") ask(state.frame, patchAt(pressed));
  else { journey++; dab(pressed); }
});
canvas.addEventListener("pointermove", (event) => {
  const here = place(event, canvas);
  if (state.mode === "paint") { state.cursor = event.pointerType === "touch" ? null : here; draw(); }
  if (!pressed) return;
  if (state.mode === "look") ask(state.frame, patchAt(here));
  else stroke(pressed, here);
  pressed = here;
});
for (const name of ["pointerup", "pointercancel"])
  canvas.addEventListener(name, () => {
    if (pressed && state.mode === "paint") follow();
    pressed = null;
  });
canvas.addEventListener("pointerleave", () => { state.cursor = null; if (state.mode === "paint") draw(); });
canvas.addEventListener("keydown", (event) => {
  const moves = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key in moves) {
    const [down, across] = moves[event.key];
    const from = state.mode === "look" ? state.query : patchAt(state.cursor || { x: 0.5, y: 0.5 });
    const y = Math.min(h - 1, Math.max(0, ((from / w) | 0) + down)), x = Math.min(w - 1, Math.max(0, (from % w) + across));
    if (state.mode === "look") ask(state.frame, y * w + x);
    else { state.cursor = { x: (x + 0.5) / w, y: (y + 0.5) / h }; draw(); }
  } else if (event.key === "," || event.key === ".") show(state.frame + (event.key === "." ? 1 : -1));
  else if ((event.key === "Enter" || event.key === " ") && state.mode === "paint") { dab(state.cursor || { x: 0.5, y: 0.5 }); follow(); }
  else return;
  event.preventDefault();
});

// ---------------------------------------------------------------- sliders and buttons
function tellSliders() {
  const now = state.mode === "look" ? state.look : state.paint, far = Math.max(h, w);
  $("#temperature").value = Math.log10(now.temperature);
  $("#topk").max = state.mode === "look" ? 51 : 50;
  $("#topk").value = Math.min(now.top_k, 51);
  $("#radius").max = far;
  $("#radius").value = now.radius;
  $("#temperature + output").textContent = now.temperature.toPrecision(2);
  $("#topk + output").textContent = now.top_k >= N ? "all" : now.top_k;
  $("#radius + output").textContent = now.radius ? `${now.radius} patches` : "anywhere";
}
let waiting = null;
function changed() {
  tellSliders();
  draw();
  clearTimeout(waiting);
  if (state.mode === "paint" && state.painted) waiting = setTimeout(follow, 150);
}
for (const [id, f] of Object.entries({
  temperature: (now, value) => { now.temperature = +(10 ** value).toPrecision(2); },
  topk: (now, value) => { now.top_k = state.mode === "look" && value > 50 ? N : value; },
  radius: (now, value) => { now.radius = value; },
})) $("#" + id).addEventListener("input", () => { f(state.mode === "look" ? state.look : state.paint, +$("#" + id).value); changed(); });
$("#protocol").addEventListener("click", () => {
  Object.assign(state.mode === "look" ? state.look : state.paint, { temperature: OWN.temperature, top_k: OWN.top_k, radius: OWN.radius });
  changed();
});
COLOURS.forEach((colour, label) => {
  const button = make("button", {
    type: "button", "aria-label": label ? `object ${label}` : "rubber", "aria-pressed": label === state.colour,
    style: colour ? `background: rgb(${colour})` : "", onclick: () => {
      state.colour = label;
      [...$("#colours").children].forEach((b) => b.setAttribute("aria-pressed", b === button));
    },
  }, label ? "" : "⌫");
  if (label) $("#colours").insertBefore(button, $("#colours").lastChild); else $("#colours").append(button);
});
const tellBrush = () => { $("#brush + output").textContent = `${Math.round(2 * brushSize())} px`; };
$("#brush").addEventListener("input", tellBrush);
$("#clear").addEventListener("click", clearMasks);
$("#mask").addEventListener("click", async () => {
  if (!state.painted) { $("#progress").textContent = "nothing is painted yet"; return; }
  const link = make("a", { href: URL.createObjectURL(new Blob([await savedMask()], { type: "image/png" })), download: `mask_frame${state.painted.frame}.png` });
  link.click();
});
let playing = null;
$("#play").addEventListener("click", () => {
  clearInterval(playing);
  playing = playing ? null : setInterval(() => show(state.frame + 1), 160);
  $("#play").setAttribute("aria-pressed", playing !== null);
});
$("#frame").addEventListener("input", () => show(+$("#frame").value));

function setMode(mode) {
  state.mode = mode;
  for (const button of $("#modes").children) button.setAttribute("aria-selected", button.id === mode);
  $("#video").hidden = mode === "predict";
  $("#pairs").hidden = mode !== "predict";
  $("#brushes").hidden = mode !== "paint";
  $("#hint").textContent = HINTS[mode] || "";
  canvas.setAttribute("aria-label", mode === "paint" ? "the frame: paint on it" : "the frame: choose a patch");
  if (mode !== "predict") { tellSliders(); draw(); }
}
for (const button of $("#modes").children) button.addEventListener("click", () => setMode(button.id));

// ---------------------------------------------------------------- what a model predicts of pairs
function pairsOf(predictions) {
  let pair = 0, set = 0, ratio = predictions.ratio, patch = 0;
  const names = [...predictions.draws, "one patch, chosen by hand"], one = predictions.draws.length;
  const panel = (words) => {
    const image = make("img", { alt: words }), over = make("canvas"), caption = make("figcaption", {}, words);
    const picture = make("div", { class: "picture" }, image, over);
    $("#panels").append(make("figure", {}, picture, caption));
    return { image, over, caption, picture, words };
  };
  const past = panel("f1, the past: the model sees all of it"), future = panel("f2, the future"), seen = panel("what the model sees of f2");
  const predicted = panel("its prediction"), spread = panel("how unsure it is");
  function cells(target, grid, paintCell) {
    const [rows, columns] = grid, size = 8;
    target.over.width = columns * size;
    target.over.height = rows * size;
    const context = target.over.getContext("2d");
    for (let k = 0; k < rows * columns; k++) {
      const style = paintCell(k);
      if (!style) continue;
      context.fillStyle = style;
      context.fillRect((k % columns) * size, ((k / columns) | 0) * size, size, size);
    }
  }
  function update() {
    const now = predictions.pairs[pair], entry = set === one ? now.single[patch] : now.draws[set][ratio], count = now.grid[0] * now.grid[1];
    const visible = new Set(entry.visible), unsure = set === one ? now.single_spread : now.spread[ratio];
    $("#ratio").disabled = set === one;
    $("#ratio + output").textContent = `${Math.round((100 * (count - visible.size)) / count)} %, ${visible.size} of ${count} visible`;
    past.image.src = now.past;
    for (const each of [future, seen]) each.image.src = now.future;
    for (const each of [predicted, spread]) each.image.src = entry.picture;
    future.caption.textContent = `f2, the future: ${now.future_name}`;
    past.caption.textContent = `f1, the past: ${now.past_name}; the model sees all of it`;
    cells(seen, now.grid, (k) => (visible.has(k) ? null : "#808080"));
    predicted.caption.textContent = `its prediction, visible patches pasted in; loss ${entry.loss.toFixed(3)}`;
    const most = Math.max(...unsure, 1e-6);
    cells(spread, now.grid, (k) => `rgb(${HEAT[Math.round((255 * unsure[k]) / most)].join(" ")} / .78)`);
    spread.caption.textContent = `how unsure it is: spread over ${set === one ? now.single.length : predictions.draws.length} sets of as many visible patches, at most ${Math.round(255 * most)} of 255 levels`;
    seen.picture.classList.toggle("choose", set === one);
    seen.caption.textContent = set === one ? "what the model sees of f2: touch the patch that it may see" : seen.words;
    [...$("#sets").children].forEach((button, k) => button.setAttribute("aria-pressed", k === set));
  }
  seen.picture.addEventListener("pointerdown", (event) => {
    if (set !== one) return;
    const { grid, single } = predictions.pairs[pair], at = place(event, seen.picture), y = at.y * grid[0] - 0.5, x = at.x * grid[1] - 0.5;
    const far = ({ visible: [k] }) => (((k / grid[1]) | 0) - y) ** 2 + ((k % grid[1]) - x) ** 2;
    patch = single.reduce((best, each, k) => (far(each) < far(single[best]) ? k : best), 0);
    update();
  });
  names.forEach((name, k) => $("#sets").append(make("button", { type: "button", onclick: () => { set = k; update(); } }, name)));
  predictions.pairs.forEach((each, k) => $("#pair").append(make("option", { value: k }, each.name)));
  $("#pair").addEventListener("change", () => { pair = +$("#pair").value; patch = Math.min(patch, predictions.pairs[pair].single.length - 1); update(); });
  $("#ratio").max = predictions.ratios.length - 1;
  $("#ratio").value = ratio;
  $("#ratio").addEventListener("input", () => { ratio = +$("#ratio").value; update(); });
  $("#pairabout").textContent = predictions.caption;
  update();
}

// ---------------------------------------------------------------- the page
$("#title").textContent = DATA.title;
$("#source").textContent = DATA.source;
$("#about").textContent = `${FRAMES} frames of ${h}×${w} patches; ${DATA.about}. ${DATA.protocol}.`;
$("header").append(themeButton());
const larger = Math.max(1, 900 / SW); // as wide as it is shown at most, so that marks are sharp on a small video
canvas.width = Math.round(SW * larger);
canvas.height = Math.round(SH * larger);
canvas.style.setProperty("--ratio", SW / SH);
DATA.frames.forEach((_, t) => {
  const small = make("canvas"), note = make("span"), figure = make("figure", {}, small, make("figcaption", {}, make("span", {}, DATA.names[t]), note));
  small.width = 300;
  small.height = Math.round((300 * SH) / SW);
  figure.addEventListener("click", (event) => {
    const at = event.target === small ? patchAt(place(event, small)) : null;
    show(t);
    if (state.mode === "look" && at !== null) ask(t, at);
  });
  film.push({ figure, small, note });
  $("#film").append(figure);
});
$("#frame").max = FRAMES - 1;
$("#predict").hidden = !DATA.predictions;
if (DATA.predictions) pairsOf(DATA.predictions);
tellBrush();
images.forEach((image) => image.addEventListener("load", draw));
setMode("look");
