"use strict";
/* The page "Explore all nodes" (book/explore.md). The address holds all that is shown; whatever is chosen goes into
   the address, and the page is drawn from there:

     #cifar100/enc7/ff_hidden/123?theta=0.3&label=oak_tree&sort=-noise&order=data&only=1

   Data come from scripts that tools/explore.py writes, which call explore.put: a page that was opened from disk may
   load scripts, and no other data. In the order of reading: numbers, loading, the address, words, drawing, what is
   clicked. */

const explore = (() => {
  const HERE = new URL("explore/", document.currentScript.src).href;
  const el = (id) => document.getElementById(`x-${id}`);
  const sum = (values) => values.reduce((total, value) => total + value, 0);
  const range = (count) => Array.from({ length: count }, (_, i) => i);

  // --- numbers: as cctlib.snp.fields computes them, in double precision --------------------------------------------

  /** mu and W of a site, by node: arrays of N x K doubles. */
  const arrays = (data, K) => ({ mu: decode(data.mu, true), W: decode(data.W, true), N: data.nodes, K });

  function decode(text, half) {
    const bits = new Uint16Array(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);
    return half ? Float64Array.from(bits, fromHalf) : bits;
  }

  function fromHalf(bits) {
    const exponent = (bits >> 10) & 31, fraction = bits & 1023;
    const size = exponent ? (1 + fraction / 1024) * 2 ** (exponent - 15) : fraction * 2 ** -24;
    return bits >> 15 ? -size : size;
  }

  /** The largest entry of a node's field: a product of extremes. */
  function peak({ mu, W, K }, node) {
    const [means, weights] = [mu, W].map((values) => extremes(values, node * K, K));
    return Math.max(...means.flatMap((a) => weights.map((b) => a * b)));
  }

  function extremes(values, from, K) {
    const own = values.subarray(from, from + K);
    return [Math.min(...own), Math.max(...own)];
  }

  /** Counts of a node by their names in cctlib, the cluster of each label (-1: none), and the Boolean matrix. */
  function look(site, node, theta, ones = new Uint8Array(site.K ** 2)) {
    const { mu, W, K } = site, top = peak(site, node), from = node * K;
    const perOutput = new Int32Array(K), cluster = new Int16Array(K).fill(-1), members = [];
    ones.fill(0);
    const [low, high] = extremes(W, from, K);
    for (let i = 0; top > 0 && i < K; i++) {
      const mean = mu[from + i];
      if (Math.max(mean * low, mean * high) / top <= theta) continue;  // no entry of the row is larger
      for (let j = 0; j < K; j++)
        if ((mean * W[from + j]) / top > theta) {
          ones[i * K + j] = 1;
          perOutput[j]++;
        }
    }
    const fits = (label) => (group) => group.every((other) => ones[label * K + other] && ones[other * K + label]);
    for (let label = 0; label < K; label++) {
      if (!ones[label * K + label]) continue;
      let joined = members.findIndex(fits(label));
      if (joined < 0) joined = members.push([]) - 1;
      members[joined].push(label);
      cluster[label] = joined;
    }
    const all = sum(perOutput), own = sum(perOutput.filter((_, j) => cluster[j] >= 0));
    const labels = sum(members.map((group) => group.length)), signal = sum(members.map((group) => group.length ** 2));
    return {
      silent: all === 0, ones: all, labels, clusters: members.length, signal,
      noise: all - signal, column_noise: own - signal, foreign_noise: all - own,
      cluster_size: members.length ? labels / members.length : 0, members, cluster, matrix: ones, peak: top,
    };
  }

  /** `look` at all nodes of a site, without their matrices. Kept for the last threshold. */
  function lookAtAll(site, theta) {
    if (site.theta !== theta) {
      const matrix = new Uint8Array(site.K ** 2);
      site.all = range(site.N).map((node) => ({ ...look(site, node, theta, matrix), matrix: null, node }));
      site.theta = theta;
    }
    return site.all;
  }

  /** The same site in a random basis (Haar measure): reflections of random vectors of N, N - 1, ... entries, one after
      the other (Stewart 1980). The signs of the new directions are left open, for they change no field. */
  function rotated({ mu, W, N, K }, seed = 1) {
    const turned = { mu: mu.slice(), W: W.slice(), N, K }, normal = normals(seed);
    for (let first = 0; first < N - 1; first++) {
      const u = Float64Array.from({ length: N - first }, normal);
      u[0] += Math.sign(u[0]) * Math.hypot(...u);
      const square = sum(u.map((value) => value * value));
      for (const values of [turned.mu, turned.W]) {
        const along = new Float64Array(K);
        for (let n = 0; n < u.length; n++)
          for (let k = 0, at = (first + n) * K; k < K; k++) along[k] += u[n] * values[at + k];
        for (let n = 0; n < u.length; n++)
          for (let k = 0, at = (first + n) * K, by = (2 * u[n]) / square; k < K; k++) values[at + k] -= by * along[k];
      }
    }
    return turned;
  }

  /** A source of normal numbers: mulberry32 and Box and Muller. */
  function normals(seed) {
    const uniform = () => {
      let t = (seed = (seed + 0x6d2b79f5) | 0);
      t = Math.imul(t ^ (t >>> 15), t | 1);
      t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
      return (((t ^ (t >>> 14)) >>> 0) + 0.5) / 2 ** 32;
    };
    return () => Math.sqrt(-2 * Math.log(uniform())) * Math.cos(2 * Math.PI * uniform());
  }

  /** The node whose noise is nearest the median of those that are not silent: the one that the chapters show. */
  function typical(all) {
    const filled = all.filter((one) => !one.silent), middle = median(filled.map((one) => one.noise));
    const away = (one) => Math.abs(one.noise - middle);
    return filled.length ? filled.reduce((best, one) => (away(one) < away(best) ? one : best)).node : 0;
  }

  function median(values) {
    const sorted = [...values].sort((a, b) => a - b);
    return (sorted[(sorted.length - 1) >> 1] + sorted[sorted.length >> 1]) / 2;
  }

  // --- loading -----------------------------------------------------------------------------------------------------

  const got = {}, asked = {}, sites = {};
  let index;

  const put = (name, content) => { got[name] = content; };

  function script(name, file) {
    asked[name] ??= new Promise((done, failed) => {
      const tag = Object.assign(document.createElement("script"), { src: HERE + file, onload: () => done(got[name]) });
      tag.onerror = () => {
        delete asked[name];
        failed(new Error(`The data of ${name} are missing: ${file}`));
      };
      document.head.append(tag);
    });
    return asked[name];
  }

  async function load(set, site) {
    const name = `${set}/${site}`, data = await script(name, `${set}/${site.replace("/", "-")}.js`);
    return (sites[name] ??= { ...arrays(data, index.sets[set].names.length), data, name: site });
  }

  // --- the address -------------------------------------------------------------------------------------------------

  let state, here, shown;  // what the address says, the site, the node

  /** What an address asks for, and in words what it asks for that is not there. */
  function read(hash) {
    const [path, query] = hash.replace(/^#/, "").split("?"), asks = new URLSearchParams(query), problems = [];
    const [set, place, kind, node] = decodeURI(path).split("/");
    const pick = (what, asked, all, otherwise) => {
      if (!asked || all.includes(asked)) return asked || otherwise;
      problems.push(`There is no ${what} ${asked}.`);
      return otherwise;
    };
    const next = { set: pick("data set", set, Object.keys(index.sets), Object.keys(index.sets)[0]) };
    const { sites: sizes, names } = index.sets[next.set], all = Object.keys(sizes);
    const last = all.filter((site) => site.endsWith("/ff")).pop() ?? all[all.length - 1];
    next.site = pick("site", place && `${place}/${kind}`, all, last);
    const N = sizes[next.site];
    next.node = /^\d+$/.test(node) && Number(node) < N ? Number(node) : null;
    if (node && next.node === null) problems.push(`${placed(next.site)} has nodes 0 to ${N - 1}, not ${node}.`);
    next.theta = Number(asks.get("theta") ?? index.theta);
    if (!(next.theta > 0 && next.theta < 1)) {
      problems.push(`A threshold is between 0 and 1, not ${asks.get("theta")}.`);
      next.theta = index.theta;
    }
    const sorts = COLUMNS.flatMap(([key]) => [key, `-${key}`]);
    next.label = pick("label", asks.get("label"), names, "");
    next.sort = pick("column", asks.get("sort"), sorts, "node");
    next.order = asks.get("order") === "data" ? "data" : "";
    next.only = asks.get("only") === "1" ? "1" : "";
    return [next, problems];
  }

  function address(changes) {
    const next = { ...state, ...changes }, asks = new URLSearchParams({ theta: next.theta });
    for (const key of ["label", "order", "only"]) if (next[key]) asks.set(key, next[key]);
    if (next.sort !== "node") asks.set("sort", next.sort);
    return `#${encodeURI(next.set)}/${next.site}${next.node === null ? "" : `/${next.node}`}?${asks}`;
  }

  const go = (changes) => { location.hash = address(changes); };

  let turn = 0, goal = null;  // goal: the part of the page to go to once it is drawn

  async function show() {
    const mine = ++turn;
    try {
      const [next, problems] = read(location.hash), site = await load(next.set, next.site);
      if (mine !== turn) return;
      [state, here] = [next, site];
      state.node ??= typical(lookAtAll(site, state.theta));
      if (location.hash !== address()) history.replaceState(null, "", address());
      el("problem").textContent = problems.length ? `${problems.join(" ")} Shown instead:` : "";
      fillControls();
      draw();
      document.getElementById("explore").dataset.shown = location.hash;
      if (goal) el(goal).scrollIntoView();
      if (goal) el(goal).focus({ preventScroll: true });
      goal = null;
      await drawLabel(() => mine === turn);
    } catch (error) {
      el("problem").textContent = error.message;
    }
  }

  // --- words -------------------------------------------------------------------------------------------------------

  const about = () => index.sets[state.set];
  const escape = (text) => String(text).replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`);
  const spoken = (name) => name.replaceAll("_", " ");
  const named = (label) => spoken(about().names[label]);
  const count = (number, one, many = `${one}s`) => `${number || "no"} ${number === 1 ? one : many}`;
  const signed = (number) => (number < 0 ? "−" : "+") + Math.abs(number).toPrecision(2);
  const unit = (part) => part.replace(/^enc(\d+)$/, "encoder $1").replace(/^layer(\d+)$/, "layer $1");
  const placed = (site) => site.split("/").reverse().map(unit).join(" of ");
  const labelLink = (label) => link({ label: about().names[label] }, named(label), "labels");
  const headOf = (node, site) => (isHeads(site) ? Math.floor(node / (about().sites[site] / about().heads)) : null);
  const isHeads = (site) => site.endsWith("/mha");
  const bySize = (members) => [...members].sort((a, b) => b.length - a.length);

  function short(number) {
    return Number.isInteger(number) ? number.toLocaleString("en") : number.toFixed(Math.abs(number) < 10 ? 2 : 1);
  }

  function link(changes, text, goal = "", words = text) {
    const more = `${goal && ` data-goal="${goal}"`}${words === text ? "" : ` aria-label="${escape(words)}"`}`;
    return `<a href="${escape(address(changes))}"${more}>${escape(text)}</a>`;
  }

  const row = (head, cells, more = "") =>
    `<tr${more}><th scope="row">${head}</th>${cells.map((cell) => `<td>${cell}</td>`).join("")}</tr>`;

  function message({ silent, labels, clusters, noise }) {
    const head = isHeads(state.site) ? ` (head ${headOf(state.node, state.site)})` : "";
    const who = `Node ${state.node} at ${placed(state.site)}${head}`;
    if (silent) return `${who} is silent: no entry of its field is positive.`;
    if (!labels) return `${who} has no label on its diagonal, and ${count(noise, "one")} elsewhere.`;
    const noisy = count(noise, "noisy entry", "noisy entries");
    return `${who} recognises ${count(labels, "label")} in ${count(clusters, "cluster")}, and has ${noisy}.`;
  }

  /** The superclass that all labels of a cluster share, if there is one. */
  function together(group) {
    const groups = new Set(about().groups && group.map((label) => about().groups[label]));
    return group.length > 1 && groups.size === 1 ? ` <small>(all ${escape(spoken([...groups][0]))})</small>` : "";
  }

  /** What a one of the Boolean matrix is. */
  function kindOf(i, j, { cluster } = shown) {
    return cluster[j] < 0 ? "foreign noise" : cluster[i] === cluster[j] ? "signal" : "column noise";
  }

  // --- drawing -----------------------------------------------------------------------------------------------------

  /** quick: while the threshold moves, without the long tables. */
  function draw(quick = false) {
    shown = look(here, state.node, state.theta);
    el("message").textContent = message(shown);
    el("theta").value = state.theta;
    el("theta-value").textContent = state.theta;
    drawMatrices();
    drawClusters();
    drawStrips();
    if (quick) return;
    drawLiked();
    drawWeights();
    drawTwin();
    drawList();
    el("made").textContent = about().made;
  }

  const entry = (i, j) => here.mu[state.node * here.K + i] * here.W[state.node * here.K + j];

  /** Labels in the order drawn: clusters first, the largest before, then those with most ones in row and column. */
  function ordered() {
    const { cluster, members, matrix } = shown, { K } = here, ones = new Int32Array(K), rows = range(K);
    for (let at = 0; at < K * K; at++)
      if (matrix[at]) {
        ones[Math.floor(at / K)]++;
        ones[at % K]++;
      }
    const size = (label) => (cluster[label] < 0 ? 0 : members[cluster[label]].length);
    const rest = (a, b) => (cluster[a] < 0 ? ones[b] - ones[a] : 0);
    const before = (a, b) => size(b) - size(a) || cluster[a] - cluster[b] || rest(a, b) || a - b;
    if (state.order !== "data") rows.sort(before);
    return state.only ? rows.filter((label) => ones[label]) : rows;
  }

  function drawMatrices() {
    const rows = ordered(), { cluster, matrix, peak } = shown, { K, mu, W } = here, at = state.node * K;
    const style = getComputedStyle(document.documentElement);
    const colors = (name) => style.getPropertyValue(`--x-${name}`).trim().split(" ").map(rgb);
    const field = colors("field"), [zero, signal, column, foreign] = colors("entries");
    const kinds = { signal, "column noise": column, "foreign noise": foreign };
    const largest = (values) => Math.max(...values.subarray(at, at + K).map(Math.abs)) || 1;
    const scale = peak > 0 ? peak : largest(mu) * largest(W);
    const own = (label) => (cluster[label] >= 0 ? signal : zero);
    const vector = (values) => (label) => blend(field, values[at + label] / largest(values));
    paint(el("field"), rows, style, (i, j) => blend(field, entry(i, j) / scale), vector(mu), vector(W));
    paint(el("boolean"), rows, style, (i, j) => (matrix[i * K + j] ? kinds[kindOf(i, j)] : zero), own, own);
    const which = rows.length < K ? `the ${rows.length} of ${K} labels that have ones` : `all ${K} labels`;
    el("drawn").textContent = `Rows: true labels; columns: outputs; ${which}.`;
  }

  const rgb = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));

  /** A colour for a value between -1 and 1, of five. */
  function blend(stops, value) {
    const place = 2 + 2 * Math.max(-1, Math.min(1, value)), low = Math.min(3, Math.floor(place)), part = place - low;
    return stops[low].map((channel, at) => channel + (stops[low + 1][at] - channel) * part);
  }

  /** A square of cells, with a strip of cells on its left and above, and names where they fit. */
  function paint(canvas, rows, style, color, left, above) {
    const dots = window.devicePixelRatio || 1, size = Math.round(canvas.parentElement.clientWidth * dots);
    const n = rows.length, few = n <= 20, strip = Math.round(size / 40), gap = Math.round(strip / 2);
    const x = strip + gap + (few ? Math.round(size * 0.27) : 0), y = strip + gap, side = size - x;
    canvas.width = size;
    canvas.height = y + side;
    canvas.ariaLabel = `${message(shown)} A table below has the same.`;
    canvas.place = { rows, x: x / dots, y: y / dots, side: side / dots };
    const pen = canvas.getContext("2d"), edge = (at) => Math.round((at * side) / n);
    pen.imageSmoothingEnabled = false;
    pen.strokeStyle = pen.fillStyle = style.getPropertyValue("--pst-color-text-base");
    if (!n) return pen.strokeRect(x, y, side - 1, side - 1);
    const cells = (width, height, of, ...box) => {
      const pixels = new ImageData(width, height), small = document.createElement("canvas");
      for (let at = 0; at < width * height; at++)
        pixels.data.set([...of(Math.floor(at / width), at % width), 255], 4 * at);
      Object.assign(small, { width, height }).getContext("2d").putImageData(pixels, 0, 0);
      pen.drawImage(small, ...box);
    };
    cells(n, n, (i, j) => color(rows[i], rows[j]), x, y, side, side);
    cells(1, n, (i) => left(rows[i]), x - gap - strip, y, strip, side);
    cells(n, 1, (_, j) => above(rows[j]), x, 0, side, strip);
    if (state.order !== "data") frameClusters(pen, rows, dots, (start, end) => {
      const width = edge(end) - edge(start) - dots;
      pen.strokeRect(x + edge(start) + dots / 2, y + edge(start) + dots / 2, width, width);
    });
    if (!few) return;
    pen.font = `${Math.min(13 * dots, (0.85 * side) / n)}px ${style.getPropertyValue("--pst-font-family-base")}`;
    Object.assign(pen, { textBaseline: "middle", textAlign: "right" });
    const right = x - strip - 2 * gap;
    rows.forEach((label, i) => pen.fillText(named(label), right, y + ((i + 0.5) * side) / n, right));
  }

  function frameClusters(pen, rows, width, frame) {
    pen.lineWidth = width;
    for (let start = 0, end; shown.cluster[rows[start]] >= 0; start = end) {
      for (end = start; end < rows.length && shown.cluster[rows[end]] === shown.cluster[rows[start]]; end++);
      frame(start, end);
    }
  }

  /** Say what a cell is; cell: [row, column] of the matrix as it is drawn. */
  function tell(canvas, cell) {
    const [i, j] = cell.map((at) => canvas.place.rows[at]), { matrix, peak } = shown;
    if (i === undefined || j === undefined) return;
    canvas.cell = cell;
    const what = matrix[i * here.K + j] ? kindOf(i, j) : "not above θ";
    const part = peak > 0 ? `${(entry(i, j) / peak).toFixed(2)} of the largest entry, ${what}` : "the node is silent";
    el("cell").textContent = `True ${named(i)}, output ${named(j)}: ${part}.`;
  }

  function drawClusters() {
    const { members, ones } = shown;
    const groups = bySize(members).map((group) => `<li>${group.map(labelLink).join(", ")}${together(group)}</li>`);
    el("clusters").innerHTML = groups.join("") || "<li>nothing</li>";
    const parts = [
      ["signal", shown.signal, "inside its clusters"],
      ["column", shown.column_noise, "column noise: wrong images that switch its labels on"],
      ["foreign", shown.foreign_noise, "foreign noise: outputs of labels that it does not recognise"],
    ];
    el("bar").innerHTML = parts.map(([key, n]) => `<span class="x-${key}" style="flex-grow:${n}"></span>`).join("");
    const split = parts.map(([key, n, words]) => `<li><span class="x-key x-${key}"></span>${n} ${words}</li>`);
    el("split").innerHTML = `<li>${count(ones, "one")} above θ, of which</li>${split.join("")}`;
  }

  const QUANTITIES = {
    noise: "noise",
    labels: "labels on the diagonal",
    clusters: "clusters",
    cluster_size: "mean size of its clusters",
  };

  /** Where the node is among those of its site (bars upwards) and among random directions (downwards). */
  function drawStrips() {
    here.random ??= rotated(here);
    const nodes = lookAtAll(here, state.theta), random = lookAtAll(here.random, state.theta);
    const strips = Object.entries(QUANTITIES).map(([key, words]) =>
      strip(words, shown[key], nodes.map((one) => one[key]), random.map((one) => one[key])));
    el("strips").innerHTML = strips.join("");
  }

  function strip(words, value, ours, theirs) {
    const top = Math.max(...ours, ...theirs, 1), bins = Number.isInteger(top) && top < 40 ? top + 1 : 40;
    const bin = (number) => Math.round((number / top) * (bins - 1));
    const heights = [ours, theirs].map((all) => {
      const counts = Array(bins).fill(0);
      for (const number of all) counts[bin(number)]++;
      return counts;
    });
    const scale = 48 / Math.max(...heights.flat());
    const bars = heights.flatMap((counts, down) => counts.map((n, at) => {
      const height = n * scale, kind = down ? "random" : "nodes";
      const box = `x="${at + 0.05}" y="${down ? 50 : 50 - height}" width="0.9" height="${height}"`;
      return n ? `<rect class="x-${kind}" ${box}/>` : "";
    }));
    const [rank, lower] = [ours, theirs].map((all) => all.filter((other) => other < value).length);
    const middle = bin(value) + 0.5, percent = Math.round((100 * lower) / theirs.length);
    return `<figure><figcaption><b>${words}: ${short(value)}</b></figcaption>
      <svg viewBox="0 0 ${bins} 100" preserveAspectRatio="none" aria-hidden="true">${bars.join("")}
      <line x1="${middle}" x2="${middle}" y1="0" y2="100"/></svg>
      <p class="x-ends"><span>0</span><span>${short(top)}</span></p>
      <p>Rank ${rank + 1} of ${ours.length} nodes, from the lowest; their median is ${short(median(ours))}.
      ${percent}% of random directions are lower; their median is ${short(median(theirs))}.</p></figure>`;
  }

  /** Label, and place within the label, of the test images that a node likes most and least. */
  function liked(node) {
    const { liked: found } = here.data;
    if (!found) return null;
    const pairs = decode(found.images), end = (start) =>
      range(found.each).map((rank) => ({ label: pairs[start + 2 * rank], place: pairs[start + 2 * rank + 1] }));
    return { most: end(4 * found.each * node), least: end(4 * found.each * node + 2 * found.each) };
  }

  function drawLiked() {
    const found = liked(state.node);
    el("liked").hidden = !found;
    el("no-images").hidden = Boolean(about().images);
    for (const [end, images] of Object.entries(found ?? {}))
      el(end).innerHTML = images.map((image) => `<li>${picture(image)}${labelLink(image.label)}</li>`).join("");
  }

  function picture({ label, place }) {
    if (!about().images) return "";
    const { columns } = about().images, step = (steps) => `calc(${-steps} * var(--x-side))`;
    const corner = `${step(place % columns)} ${step(Math.floor(place / columns))}`;
    const sheet = `url('${HERE}${encodeURI(state.set)}/images/${label}.webp')`;
    return `<span class="x-picture" style="background: ${sheet} ${corner} / calc(${columns} * var(--x-side))"></span>`;
  }

  function weights(node, end) {
    const found = here.data[end];
    if (!found) return null;
    const whose = decode(found.whose), values = decode(found.values, true), first = node * found.each;
    const strongest = range(found.each).map((rank) => ({ node: whose[first + rank], weight: values[first + rank] }));
    return { site: found.site, layer: found.layer, weights: strongest };
  }

  function drawWeights() {
    const ends = ["from", "to"].filter((end) => {
      const found = weights(state.node, end);
      el(end).hidden = !found;
      if (!found) return false;
      const largest = Math.abs(found.weights[0].weight) || 1;
      const items = found.weights.map(({ node, weight }) => {
        const width = (100 * Math.abs(weight)) / largest, bar = weight < 0 ? "x-low" : "x-high";
        const line = `<span class="x-weight"><span class="${bar}" style="width:${width}%"></span></span>`;
        return `<li>${link({ site: found.site, node }, `node ${node}`, "node")}${line}${signed(weight)}</li>`;
      });
      el(end).innerHTML = `<p><b>${end} ${placed(found.site)}</b>, by ${found.layer}</p><ol>${items.join("")}</ol>`;
      return true;
    });
    el("weights").hidden = !ends.length;
  }

  /** The field and the Boolean matrix as a table: two numbers a label, and what they make. */
  function drawTwin() {
    const { K, mu, W } = here, at = state.node * K, { matrix, cluster, peak } = shown;
    const outputs = (i) => range(K).filter((j) => matrix[i * K + j]).map(named).map(escape).join(", ");
    const rows = ordered().map((i) => row(escape(named(i)), [
      signed(mu[at + i]), signed(W[at + i]), peak > 0 ? (entry(i, i) / peak).toFixed(2) : "silent",
      cluster[i] < 0 ? "" : cluster[i] + 1, outputs(i)]));
    el("twin").innerHTML = rows.join("");
  }

  const COLUMNS = [["node", "node"], ["labels", "labels"], ["clusters", "clusters"], ["cluster_size", "mean size"],
    ["noise", "noise"], ["column_noise", "column noise"], ["foreign_noise", "foreign noise"]];

  function drawList() {
    const [, down, key] = state.sort.match(/^(-?)(.+)$/), label = about().names.indexOf(state.label);
    const nodes = lookAtAll(here, state.theta).filter((one) => label < 0 || one.cluster[label] >= 0);
    nodes.sort((a, b) => (down ? b[key] - a[key] : a[key] - b[key]) || a.node - b.node);
    const those = label < 0 ? "nodes" : `nodes recognise ${named(label)}`;
    const caption = `${nodes.length} of ${here.N} ${those} at ${placed(state.site)}, θ ${state.theta}.`;
    el("list-caption").textContent = caption;
    const heads = COLUMNS.map(([name, words]) => {
      const sort = name !== key ? "none" : down ? "descending" : "ascending";
      return `<th scope="col" aria-sort="${sort}"><button type="button" data-sort="${name}">${words}</button></th>`;
    });
    el("list-head").innerHTML = `${heads.join("")}<th scope="col">recognises</th>`;
    el("list").innerHTML = nodes.map((one) => {
      const counts = COLUMNS.slice(1).map(([name]) => short(one[name])), current = one.node === state.node;
      const cells = [...counts, escape(clustersInWords(one))];
      return row(link({ node: one.node }, one.node, "node"), cells, current ? ' aria-current="true"' : "");
    }).join("");
  }

  /** The labels of the largest clusters, six at most. */
  function clustersInWords({ members, silent }) {
    const words = [];
    let left = 6;
    for (const group of bySize(members)) {
      if (left > 0) words.push(group.slice(0, left).map(named).join(", "));
      left -= group.length;
    }
    return silent ? "silent" : `${words.join(" | ")}${left < 0 ? ` and ${-left} more` : ""}`;
  }

  /** A label in all sites: how many nodes of each site and head recognise it, and which carry most of its output. */
  async function drawLabel(current) {
    const label = about().names.indexOf(state.label), all = Object.keys(about().sites);
    el("label-found").hidden = label < 0;
    if (label < 0) return;
    let done = 0;
    const step = () => { el("progress").value = ++done / all.length; };
    el("progress").hidden = false;
    const loaded = await Promise.all(all.map((site) => load(state.set, site).finally(step)));
    if (!current()) return;
    el("progress").hidden = true;
    const cells = {}, found = loaded.flatMap((site) => speakers(site, label, cells));
    drawGrid(cells);
    found.sort((a, b) => b.share - a.share);
    el("strongest").innerHTML = found.slice(0, 20).map(({ site, node, part, share }) => {
      const { members, cluster, noise } = look(site, node, state.theta), name = `${site.name}/${node}`;
      const mates = members[cluster[label]].filter((other) => other !== label).map(named).join(", ");
      return row(link({ site: site.name, node }, name, "node"), [
        headOf(node, site.name) ?? "", `${(100 * share).toFixed(1)}%`, part.toFixed(2), short(noise),
        escape(mates || "nothing else")]);
    }).join("");
    const whole = sum(Object.values(about().sites));
    el("label-message").textContent =
      `${short(found.length)} of ${short(whole)} nodes recognise ${named(label)} at θ ${state.theta}.`;
  }

  /** The nodes of a site that recognise a label, counted into `cells` by site and head. */
  function speakers(site, label, cells) {
    const { K, N, mu, W, name } = site, fields = range(N).map((node) => mu[node * K + label] * W[node * K + label]);
    const total = sum(fields);
    return range(N).flatMap((node) => {
      const top = peak(site, node), part = fields[node] / top, head = headOf(node, name);
      const cell = (cells[head === null ? name : `${name} head ${head}`] ??= { site: name, hits: 0, of: 0 });
      cell.of++;
      if (!(top > 0 && part > state.theta)) return [];
      cell.hits++;
      return [{ site, node, part, share: fields[node] / total }];
    });
  }

  function drawGrid(cells) {
    const places = [...new Set(Object.keys(about().sites).map((site) => site.split("/")[0]))];
    const columns = [...new Set(Object.keys(cells).map((key) => key.slice(key.indexOf("/") + 1)))];
    const most = Math.max(...Object.values(cells).map(({ hits, of }) => hits / of)) || 1;
    const cell = (place, column) => {
      const found = cells[`${place}/${column}`];
      if (!found) return "<td></td>";
      const { site, hits, of } = found, words = `${hits} of ${of} nodes at ${column} of ${unit(place)}`;
      const part = Math.round((60 * hits) / of / most);
      return `<td style="--x-part:${part}%">${link({ site, node: null }, hits, "nodes", words)}</td>`;
    };
    const head = ["where", ...columns].map((column) => `<th scope="col">${escape(column)}</th>`).join("");
    const rows = places.map((place) =>
      `<tr><th scope="row">${unit(place)}</th>${columns.map((column) => cell(place, column)).join("")}</tr>`);
    el("grid").innerHTML = `<thead><tr>${head}</tr></thead><tbody>${rows.join("")}</tbody>`;
  }

  // --- what is chosen and clicked ----------------------------------------------------------------------------------

  function fillControls() {
    const options = (select, pairs, value) => {
      const html = pairs.map(([key, words]) => `<option value="${escape(key)}">${escape(words)}</option>`).join("");
      if (select.dataset.html !== html) select.innerHTML = select.dataset.html = html;
      select.value = value;
    };
    const all = Object.keys(about().sites).map((site) => site.split("/")), [place, kind] = state.site.split("/");
    const places = [...new Set(all.map(([one]) => one))].map((one) => [one, unit(one)]);
    options(el("set"), Object.entries(index.sets).map(([key, { title }]) => [key, title]), state.set);
    options(el("place"), places, place);
    options(el("kind"), all.filter(([one]) => one === place).map(([, one]) => [one, one]), kind);
    options(el("label"), [["", "choose a label"], ...about().names.map((name) => [name, spoken(name)])], state.label);
    Object.assign(el("number"), { value: state.node, max: here.N - 1 });
    el("of").textContent = `0 to ${here.N - 1}`;
    el("order").checked = state.order !== "data";
    el("only").checked = Boolean(state.only);
  }

  const COUNTS = ["silent", "ones", "labels", "clusters", "signal", "noise", "column_noise", "foreign_noise"];

  function save(name, type, text) {
    const href = URL.createObjectURL(new Blob([text], { type }));
    Object.assign(document.createElement("a"), { download: name, href }).click();
    setTimeout(() => URL.revokeObjectURL(href), 1000);
  }

  const file = (...parts) => [state.set, state.site.replace("/", "-"), ...parts].join("-");

  /** All nodes of the site, and as many random directions, one a row. */
  function saveSite() {
    const words = ({ members }) => members.map((group) => group.map((i) => about().names[i]).join(", ")).join(" | ");
    const rows = [["nodes", here], ["random basis", here.random]].flatMap(([basis, site]) =>
      lookAtAll(site, state.theta).map((one) => [state.set, state.site, state.theta, basis, one.node,
        ...COUNTS.map((key) => one[key]), `"${words(one).replaceAll('"', '""')}"`]));
    const head = ["dataset", "site", "theta", "basis", "node", ...COUNTS, "recognises"];
    save(`${file()}.csv`, "text/csv", [head, ...rows].map((cells) => `${cells.join(",")}\n`).join(""));
  }

  function saveNode() {
    const own = (values) => [...values.subarray(state.node * here.K, (state.node + 1) * here.K)], { names } = about();
    const labels = (images) => images.map(({ label }) => names[label]), found = liked(state.node);
    const { set: dataset, site, node, theta } = state;
    const content = {
      dataset, site, node, theta, made: about().made, address: location.hash,
      ...Object.fromEntries(COUNTS.map((key) => [key, shown[key]])),
      recognises: shown.members.map((group) => group.map((label) => names[label])),
      likes: found && { most: labels(found.most), least: labels(found.least) },
      from: weights(node, "from"), to: weights(node, "to"), names, mu: own(here.mu), W: own(here.W),
    };
    save(`${file(node)}.json`, "application/json", JSON.stringify(content, null, 1));
  }

  function goToAnyNode() {
    const all = Object.entries(about().sites);
    let at = Math.floor(Math.random() * sum(all.map(([, N]) => N)));
    const [site] = all.find(([, N]) => at < N || ((at -= N), false));
    go({ site, node: at });
  }

  function goToPlace(place) {
    const there = Object.keys(about().sites).filter((site) => site.startsWith(`${place}/`));
    const same = `${place}/${state.site.split("/")[1]}`;
    go({ site: there.includes(same) ? same : there[0], node: null });
  }

  function listen() {
    const on = (id, event, act) => el(id).addEventListener(event, ({ target }) => act(target));
    const step = (by) => () => go({ node: (state.node + by + here.N) % here.N });
    on("set", "change", ({ value }) => { location.hash = `#${encodeURI(value)}?theta=${state.theta}`; });
    on("place", "change", ({ value }) => goToPlace(value));
    on("kind", "change", ({ value }) => go({ site: `${state.site.split("/")[0]}/${value}`, node: null }));
    on("number", "change", ({ value }) => go({ node: value === "" ? null : value }));
    on("previous", "click", step(-1));
    on("next", "click", step(1));
    on("random", "click", goToAnyNode);
    on("order", "change", ({ checked }) => go({ order: checked ? "" : "data" }));
    on("only", "change", ({ checked }) => go({ only: checked ? "1" : "" }));
    on("label", "change", ({ value }) => go({ label: value }));
    on("csv", "click", saveSite);
    on("json", "click", saveNode);
    on("list-head", "click", ({ dataset: { sort } }) => sort && go({ sort: state.sort === sort ? `-${sort}` : sort }));
    let moved = null;  // drawn once a frame, however often the threshold moves
    on("theta", "input", ({ value }) => {
      state.theta = Number(value);
      moved ??= requestAnimationFrame(() => {
        moved = null;
        draw(true);
      });
    });
    on("theta", "change", ({ value }) => go({ theta: Number(value) }));
    const goalOf = (element) => element.closest("a[data-goal]")?.dataset.goal ?? null;
    document.addEventListener("click", ({ target }) => { goal = goalOf(target); });
    for (const canvas of [el("field"), el("boolean")]) listenToCells(canvas);
    window.addEventListener("hashchange", show);
    window.addEventListener("resize", () => shown && drawMatrices());
    const themed = new MutationObserver(() => shown && drawMatrices());
    themed.observe(document.documentElement, { attributeFilter: ["data-theme"] });
  }

  function listenToCells(canvas) {
    const STEPS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    canvas.addEventListener("pointermove", ({ offsetX, offsetY }) => {
      const { rows, x, y, side } = canvas.place;
      tell(canvas, [offsetY - y, offsetX - x].map((way) => Math.floor((way / side) * rows.length)));
    });
    canvas.addEventListener("keydown", (event) => {
      const step = STEPS[event.key], last = canvas.place.rows.length - 1;
      if (!step) return;
      event.preventDefault();
      tell(canvas, (canvas.cell ?? [0, 0]).map((at, axis) => Math.max(0, Math.min(last, at + step[axis]))));
    });
  }

  async function start() {
    try {
      index = await script("index", "index.js");
      listen();
      await show();
    } catch (error) {
      el("problem").textContent = error.message;
    }
  }

  document.addEventListener("DOMContentLoaded", start);
  return { put, rotated };
})();
