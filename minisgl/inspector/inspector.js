// The inspector's renderer: one ES module for three hosts (a live engine, a trace, a saved page).
//
// It draws what a film says and decides nothing: every number on the screen comes from a column
// that minisgl/inspector/film.py wrote. A film is read once into typed arrays; the state of pages
// and tree at a step is replayed from the nearest keyframe; each view draws one canvas, or a few
// dozen reused elements, in one animation frame. Text from prompts only ever becomes textContent
// or canvas text.
//
//   1 reading a film   2 the state at a step   3 the session and its hosts   4 drawing tools
//   5 the views        6 the inspector itself: transport, keyboard, popovers

// ---- 1 · reading a film --------------------------------------------------------------------------

const VERSION = 1;
const DTYPES = {
  u1: Uint8Array, u2: Uint16Array, u4: Uint32Array, i1: Int8Array, i2: Int16Array, i4: Int32Array,
  f8: Float64Array,
};
const I = Int32Array, F = Float64Array;
const TABLES = {
  rows: { rid: I, start: I, length: I, kind: Uint8Array },
  refusals: { rid: I, why: Uint16Array, asked: I, left: I, by: I },
  events: { kind: Uint8Array, rid: I, value: I },
  requests: { rid: I, prompt_len: I, max_tokens: I, arrival: I, head: I, tail: I },
  pages: { page: I, holders: I, node: I, owner: I },
  nodes: { id: I, parent: I, depth: I, size: I, used: I, maker: I, said: I },
  spans: { lane: Uint8Array, name: Uint8Array, gap: F, length: F },
  gaps: { lane: Uint8Array, cause: Uint8Array, start: F, length: F },
  hits: { rid: I, page: I }, // cached pages that a request began to hold
};
const GAUGES = ["free", "cached", "evictable", "promised", "waiting", "running", "failed"];
const PREFILL = 0, DECODE = 1, ZOMBIE = 2;
// what only a request that holds a slot is refused for, and what closes no door: nobody stands in line behind it
const OF_RUNNING = new Set(["PREFILL_PRIORITY", "AWAITS_TOKEN", "AWAITS_RELEASE", "KV_DRY", "POLICY"]);
const MOST_PAGES = 1 << 24; // a film that names more is damaged; nothing is allocated for it

/** What is wrong with a film, in words for the person who opened it. */
class FilmError extends Error {}

/** A growing table: typed arrays of one length, as properties. Read them afresh after appending. */
class Table {
  constructor(types) {
    this.types = types;
    this.n = this.room = 0;
    this.reserve(64);
  }

  reserve(room) {
    if (room <= this.room) return;
    this.room = Math.max(room, 2 * this.room);
    for (const name in this.types) {
      const grown = new this.types[name](this.room);
      if (this.n) grown.set(this[name].subarray(0, this.n));
      this[name] = grown;
    }
  }

  /** Room for one more row; returns its index. */
  push() {
    this.reserve(this.n + 1);
    return this.n++;
  }

  bytes() {
    let sum = 0;
    for (const name in this.types) sum += this[name].BYTES_PER_ELEMENT * this.n;
    return sum;
  }

  /** Drop the rows before `begin`, all but those of `kept`, which grow; they come first then. */
  drop(begin, kept = []) {
    const m = kept.length, n = m + this.n - begin, room = Math.max(64, Math.ceil(1.25 * n));
    for (const name in this.types) {
      const from = this[name], to = new this.types[name](room);
      for (let i = 0; i < m; i++) to[i] = from[kept[i]];
      to.set(from.subarray(begin, this.n), m);
      this[name] = to;
    }
    this.n = n;
    this.room = room;
    return m - begin;
  }
}

/** The chunk that begins at `at`: its header and its columns, checked against the bytes there are. */
function readChunk(bytes, at) {
  const left = bytes.length - at;
  if (left < 12) throw new FilmError("The film is cut off: its last chunk has no header.");
  const view = new DataView(bytes.buffer, bytes.byteOffset + at, left);
  if (view.getUint32(0, false) !== 0x4d53474c)
    throw new FilmError("This is not a film of minisgl: it does not begin with MSGL.");
  const version = view.getUint32(4, true), length = view.getUint32(8, true);
  if (version !== VERSION)
    throw new FilmError(
      `This film has version ${version}; this inspector reads version ${VERSION}. Update minisgl.`);
  if (12 + length > left) throw new FilmError("The film is cut off inside a header.");
  let header;
  try {
    header = JSON.parse(new TextDecoder().decode(bytes.subarray(at + 12, at + 12 + length)));
  } catch {
    throw new FilmError("The film is damaged: a header is not JSON.");
  }
  if (!(header.size >= 12 + length)) throw new FilmError("The film is damaged: a chunk has no size.");
  if (header.size > left)
    throw new FilmError(`The film is cut off: ${header.size - left} bytes of a chunk are missing.`);
  // Typed arrays need aligned memory: a chunk that is not where it must be is copied.
  const whole = bytes.byteOffset + at;
  const base = whole % 8 ? 0 : whole;
  const buffer = whole % 8 ? bytes.slice(at, at + header.size).buffer : bytes.buffer;
  const column = (name) => {
    const entry = header.columns?.[name];
    if (!entry) return new I(0);
    const [dtype, offset, count] = entry, Type = DTYPES[dtype];
    if (!Type || offset % Type.BYTES_PER_ELEMENT || offset < 0 || count < 0
      || offset + count * Type.BYTES_PER_ELEMENT > header.size)
      throw new FilmError(`The film is damaged: column ${name} does not lie inside its chunk.`);
    return new Type(buffer, base + offset, count);
  };
  return { header, column, size: header.size };
}

/** Everything a run's chunks have said so far. Append-only; views read its tables directly. */
class Film {
  constructor() {
    this.about = {
      model: "", page_size: 1, num_pages: 0, max_step_tokens: 0, config: [], why: [], events: [],
      reasons: [], causes: [],
    };
    this.first = 0; // the first step that is kept
    this.count = 0; // steps
    this.version = 0; // grows with every chunk
    this.say = [];
    this.words = new Map();
    this.lanes = [];
    this.names = [];
    this.totals = {};
    for (const name in TABLES) this[name] = new Table(this.columnsOf(name));
    // A step's row of `steps` holds, for each table, the index where its rows begin.
    const types = { t0: F, t1: F, tokens: I, peak: I, over: I };
    for (const name in TABLES) types[name] = I;
    for (const name of GAUGES) types[name] = I;
    this.steps = new Table(types);
    this.requestTokens = new Table({ id: I });
    this.nodeTokens = new Table({ id: I });
    this.nodeTextFrom = 0; // what the first of them is the number of, and the texts of before that
    this.nodeTexts = new Map(); // are still shown: its number -> ids
    this.eventPages = new Table({ id: I });
    // Boxes of the lanes: consecutive decodes of one request are one run, so that a lane of a
    // thousand tokens is drawn, and searched, as a handful of entries.
    this.runs = new Table({ first: I, last: I, kind: Uint8Array, start: I, length: I, next: I });
    this.indexOfRid = new Map();
    this.laneEnd = [];
    this.shift = null; // nanoseconds that device times are moved by; see addTimes
    this.foreign = false;
    this.mostLevels = 0; // of the tree, over all steps, so that its height holds for all
    // Nodes get rows of the state's table here, once: moving about then only copies columns.
    this.slotOf = new Map();
    this.freeSlots = [];
    this.gone = []; // rows of nodes that the last step evicted; they are shown a while
    this.goneBefore = [];
    this.numSlots = 0;
    this.levels = [];
    this.numOver = 0; // requests that came first and were over before the last step
    this.cuts = 0; // how often the beginning was dropped; who keeps indices must look them up again
    this.kept = 0; // the first step that the engine keeps
    this.mostRid = 0;
    this.longestSay = 0;
    this.hitCache = new Map();
    this.occurs = new Set(); // of "zombie", "preempted", "abort", "error": what a legend must explain
  }

  columnsOf(name) {
    const types = { ...TABLES[name] };
    if (name === "events") Object.assign(types, { step: I, next: I, pages: I, count: I });
    if (name === "nodes") Object.assign(types, { text: I, slot: I, up: I });
    if (name === "hits") types.step = I;
    if (name === "spans") Object.assign(types, { start: F, end: F, step: I });
    if (name === "requests")
      Object.assign(types, {
        seen: I, text: I, finish: I, reason: Int8Array, run: I, lastRun: I, mark: I, lastMark: I,
        sampled: I, lastSampled: I, admitted: I,
      });
    return types;
  }

  get last() {
    return this.first + this.count - 1;
  }

  /** Read further chunks. What is whole before a fault stays. Throws FilmError. */
  append(bytes) {
    for (let at = 0; at < bytes.length;) {
      const chunk = readChunk(bytes, at);
      this.add(chunk);
      at += chunk.size;
    }
  }

  add({ header, column }) {
    const n = header.steps;
    if (this.broken) throw new FilmError("The film is damaged: what came before this chunk cannot be read.");
    if (!(n >= 0 && column("steps.rows").length === n))
      throw new FilmError("The film is damaged: a chunk does not hold the steps that it claims.");
    this.broken = true; // until all of the chunk is in
    if (header.about) Object.assign(this.about, header.about);
    if (!this.count) this.first = header.first;
    else if (header.first !== this.last + 1)
      throw new FilmError(`The film is damaged: after step ${this.last} comes step ${header.first}.`);
    if (!(this.about.num_pages <= MOST_PAGES))
      throw new FilmError("The film is damaged: it claims more pages than any pool has.");
    const begin = {};
    for (const name in TABLES) begin[name] = this.takeTable(name, n, column);
    const steps = this.steps, from = this.count;
    for (const name of GAUGES) steps[name].set(column(`steps.${name}`).subarray(0, n), from);
    for (const [id, word] of Object.entries(header.words || {})) this.words.set(+id, String(word));
    for (const [number, own] of Object.entries(header.reasons || {})) this.about.why[+number] = ["POLICY", String(own)];
    this.lanes = header.lanes || this.lanes;
    this.names = header.names || this.names;
    this.totals = header.totals || this.totals;
    this.kept = header.kept || 0;
    for (let i = 0; i < n; i++) {
      this.say.push(String(header.say?.[i] ?? `step ${header.first + i}`));
      this.longestSay = Math.max(this.longestSay, this.say[this.say.length - 1].length);
    }
    this.takeFlat(begin, column);
    this.count += n;
    for (let g = from; g < from + n; g++) this.addStep(g);
    this.version++;
    this.broken = false;
  }

  /** A chunk's rows of one table, and where each step's rows begin. Returns the first new row. */
  takeTable(name, n, column) {
    const table = this[name], steps = this.steps, counts = column(`steps.${name}`);
    steps.reserve(this.count + n + 1);
    steps.n = this.count + n + 1;
    let end = table.n;
    steps[name][this.count] = end; // not where the last step ended, if indexOf made a request since
    for (let i = 0; i < n; i++) {
      end += counts[i] || 0;
      steps[name][this.count + i + 1] = end;
    }
    const begin = table.n;
    table.reserve(end);
    for (const key in TABLES[name]) {
      const values = column(`${name}.${key}`);
      if (values.length !== end - begin)
        throw new FilmError(`The film is damaged: ${name}.${key} does not have a row for each count.`);
      table[key].set(values, begin);
    }
    table.n = end;
    return begin;
  }

  /** Numbers that belong to rows of a table, one after another: where each row's begin. */
  takeFlat(begin, column) {
    const take = (table, name, where, flat, start, sizeOf, from = 0) => {
      const values = column(name);
      let at = flat.n + from;
      flat.reserve(flat.n + values.length);
      flat.id.set(values, flat.n);
      flat.n += values.length;
      for (let i = start; i < table.n; i++) {
        table[where][i] = at;
        at += sizeOf(i);
      }
      if (at !== flat.n + from) throw new FilmError(`The film is damaged: ${name} has a wrong length.`);
    };
    const { requests, nodes, events, about } = this, { page_size: size } = about;
    take(requests, "requests.tokens", "text", this.requestTokens, begin.requests,
      (i) => requests.head[i] + requests.tail[i]);
    take(nodes, "nodes.tokens", "text", this.nodeTokens, begin.nodes, (i) => Math.max(0, nodes.said[i] - 1),
      this.nodeTextFrom);
    take(events, "events.pages", "pages", this.eventPages, begin.events, (i) => {
      const kind = about.events[events.kind[i]];
      return (events.count[i] = kind === "reused" ? Math.ceil(events.value[i] / size)
        : kind === "inserted" || kind === "evicted" ? events.value[i] : 0);
    });
  }

  /** Index what step `g` (counted from the first kept) said: requests, lanes, events, times. */
  addStep(g) {
    const step = this.first + g, { steps, requests, rows, events } = this;
    for (let i = steps.requests[g]; i < steps.requests[g + 1]; i++) this.beginRequest(i, step);
    let tokens = 0;
    for (let i = steps.rows[g]; i < steps.rows[g + 1]; i++) {
      tokens += rows.length[i];
      this.addRow(this.indexOf(rows.rid[i], step), step, rows.kind[i], rows.start[i], rows.length[i]);
    }
    steps.tokens[g] = tokens;
    let evicted = 0;
    for (let i = steps.events[g]; i < steps.events[g + 1]; i++) {
      events.step[i] = step;
      events.next[i] = -1;
      const kind = this.about.events[events.kind[i]];
      if (kind === "evicted") evicted += events.value[i];
      if (events.rid[i] >= 0) this.addEvent(this.indexOf(events.rid[i], step), i, kind, step);
    }
    steps.peak[g] = Math.max(g ? steps.peak[g - 1] : 0, steps.cached[g] + evicted);
    while (this.numOver < requests.n && requests.finish[this.numOver] >= 0 && requests.finish[this.numOver] < step)
      this.numOver++;
    steps.over[g] = this.numOver;
    this.placeNodes(g);
    for (let i = steps.hits[g]; i < steps.hits[g + 1]; i++) this.hits.step[i] = step;
    this.addTimes(g, step);
  }

  /** Which rows of the state's table the nodes of step `g` have, and with them the pages. */
  placeNodes(g) {
    const { steps, nodes, pages, slotOf } = this, from = steps.nodes[g], to = steps.nodes[g + 1];
    // a row is free when its node is no longer shown: see State.apply
    this.freeSlots.push(...(this.overlaps ? this.goneBefore : this.gone));
    [this.goneBefore, this.gone] = [this.gone, []];
    if (!this.overlaps) this.goneBefore = [];
    for (let i = from; i < to; i++) {
      let slot = slotOf.get(nodes.id[i]);
      if (slot === undefined && nodes.size[i])
        slotOf.set(nodes.id[i], (slot = this.freeSlots.length ? this.freeSlots.pop() : this.numSlots++));
      nodes.slot[i] = slot ?? -1;
    }
    for (let i = from; i < to; i++) {
      const up = (nodes.up[i] = slotOf.get(nodes.parent[i]) ?? -1);
      const level = nodes.slot[i] < 0 ? 0 : (this.levels[nodes.slot[i]] = 1 + (up < 0 ? 0 : this.levels[up] || 0));
      this.mostLevels = Math.max(this.mostLevels, level);
    }
    let known = 0, row = -1; // neighbouring pages mostly belong to one node
    for (let i = steps.pages[g]; i < steps.pages[g + 1]; i++) {
      if (!(pages.page[i] >= 0 && pages.page[i] < MOST_PAGES))
        throw new FilmError("The film is damaged: it names a page that no pool has.");
      if (pages.node[i] !== known) row = (known = pages.node[i]) ? slotOf.get(known) ?? -1 : -1;
      pages.node[i] = row; // from here on
    }
    for (let i = from; i < to; i++) {
      if (nodes.size[i] || nodes.slot[i] < 0) continue;
      slotOf.delete(nodes.id[i]);
      this.gone.push(nodes.slot[i]);
    }
  }

  /**
   * Drop the steps before `step`. Requests that are not over by then keep what they did, and the nodes
   * of `base`, the state that the rest begins with, their texts. Returns the number of steps dropped.
   */
  cut(step, base) {
    const drop = step - this.first, { steps, requests: r, events, hits } = this;
    const begin = (name) => steps[name][drop];
    const stays = [], stayed = new I(r.n + 1);
    for (let i = 0; i < r.n; i++) {
      stayed[i] = stays.length;
      const last = r.lastMark[i] < 0 ? -1 : events.step[r.lastMark[i]];
      if (r.finish[i] < 0 || last >= step) stays.push(i);
    }
    stayed[r.n] = stays.length;
    this.cutEvents(begin("events"), stays);
    const here = new Set(stays.map((i) => r.rid[i])), held = [];
    for (let i = 0; i < begin("hits"); i++) if (here.has(hits.rid[i])) held.push(i);
    const shift = { events: this.eventShift, hits: hits.drop(begin("hits"), held), requests: stays.length - r.n };
    this.cutRequests(stays);
    this.numOver = stayed[this.numOver];
    const { nodes } = this, texts = new Map(), tokens = begin("nodes") < nodes.n ? nodes.text[begin("nodes")]
      : this.nodeTextFrom + this.nodeTokens.n;
    for (let slot = 0; slot < base.nodes.n; slot++) {
      const at = base.nodes.text[slot], n = base.nodes.said[slot];
      if (base.nodes.size[slot] && n && at < tokens) texts.set(at, this.nodeText(at, n).slice());
    }
    this.nodeTokens.drop(tokens - this.nodeTextFrom);
    Object.assign(this, { nodeTexts: texts, nodeTextFrom: tokens });
    for (const name in TABLES) shift[name] ??= this[name].drop(begin(name));
    for (let g = drop; g < this.count; g++) steps.over[g] = stayed[steps.over[g]];
    steps.drop(drop);
    for (const name in TABLES) for (let g = 0; g < steps.n; g++) steps[name][g] += shift[name];
    this.say.splice(0, drop);
    this.hitCache.clear();
    this.first = step;
    this.count -= drop;
    this.cuts++;
    this.version++;
    return drop;
  }

  /** Drop the events before `begin`, all but those of the requests that stay. */
  cutEvents(begin, stays) {
    const { events, requests: r } = this, kept = [];
    for (const i of stays)
      for (const first of [r.mark[i], r.sampled[i]])
        for (let e = first; e >= 0 && e < begin; e = events.next[e]) kept.push(e);
    kept.sort((a, b) => a - b);
    const pages = begin < events.n ? events.pages[begin] : this.eventPages.n;
    const at = new Map(kept.map((e, i) => [e, i])), shift = (this.eventShift = events.drop(begin, kept));
    const moved = (e) => e < 0 ? -1 : e < begin ? at.get(e) : e + shift;
    for (let e = 0; e < events.n; e++) {
      events.next[e] = moved(events.next[e]);
      if (e < kept.length) events.pages[e] = events.count[e] = 0; // what its step marked is not shown again
      else events.pages[e] -= pages;
    }
    this.eventPages.drop(pages);
    for (const i of stays) for (const name of ["mark", "lastMark", "sampled", "lastSampled"]) r[name][i] = moved(r[name][i]);
  }

  /** Drop all requests but these, and all boxes but theirs. */
  cutRequests(stays) {
    const { requests: r, requestTokens } = this, old = this.runs, runs = (this.runs = new Table(old.types));
    const texts = [];
    for (const i of stays) {
      for (let n = r.text[i]; n < r.text[i] + r.head[i] + r.tail[i]; n++) texts.push(n);
      let before = -1;
      for (let run = r.run[i]; run >= 0; run = old.next[run]) {
        const now = runs.push();
        for (const name in old.types) runs[name][now] = old[name][run];
        if (before < 0) r.run[i] = now;
        else runs.next[before] = now;
        before = now;
      }
      r.lastRun[i] = before;
    }
    r.drop(r.n, stays);
    requestTokens.drop(requestTokens.n, texts);
    this.indexOfRid.clear();
    for (let i = 0, at = 0; i < r.n; at += r.head[i] + r.tail[i], i++) {
      r.text[i] = at;
      this.indexOfRid.set(r.rid[i], i);
    }
  }

  /** Bytes of all that was said. */
  bytes() {
    let sum = 2 * this.say.reduce((all, words) => all + words.length, 0);
    for (const name of [...Object.keys(TABLES), "steps", "runs", "requestTokens", "nodeTokens", "eventPages"])
      sum += this[name].bytes();
    return sum;
  }

  /** The ids of a node's text. */
  nodeText(at, n) {
    if (at < this.nodeTextFrom) return this.nodeTexts.get(at) ?? new I(0);
    return this.nodeTokens.id.subarray(at - this.nodeTextFrom, at - this.nodeTextFrom + n);
  }

  beginRequest(i, step) {
    const r = this.requests;
    r.seen[i] = step;
    r.finish[i] = r.reason[i] = r.run[i] = r.lastRun[i] = r.mark[i] = r.lastMark[i] = -1;
    r.sampled[i] = r.lastSampled[i] = r.admitted[i] = -1;
    this.indexOfRid.set(r.rid[i], i);
    this.mostRid = Math.max(this.mostRid, r.rid[i]);
  }

  /** The request's index. One that the film never introduced (its beginning was forgotten) gets one. */
  indexOf(rid, step) {
    let i = this.indexOfRid.get(rid);
    if (i === undefined) {
      i = this.requests.push();
      const r = this.requests;
      r.rid[i] = rid;
      r.prompt_len[i] = r.max_tokens[i] = r.head[i] = r.tail[i] = r.text[i] = 0;
      r.arrival[i] = step;
      this.beginRequest(i, step);
    }
    return i;
  }

  addRow(i, step, kind, start, length) {
    if (kind === ZOMBIE) this.occurs.add("zombie");
    const r = this.requests, runs = this.runs, before = r.lastRun[i];
    if (before >= 0 && kind !== PREFILL && runs.kind[before] === kind && runs.last[before] === step - 1) {
      runs.last[before] = step;
      runs.length[before] += length;
      return;
    }
    const run = runs.push();
    runs.first[run] = runs.last[run] = step;
    runs.kind[run] = kind;
    runs.start[run] = start;
    runs.length[run] = length;
    runs.next[run] = -1;
    if (before < 0) r.run[i] = run;
    else runs.next[before] = run;
    r.lastRun[i] = run;
  }

  /** Sampled tokens and all other events are two chains, so that a long output costs neither. */
  addEvent(i, event, kind, step) {
    const r = this.requests, sampled = kind === "sampled";
    const last = sampled ? r.lastSampled[i] : r.lastMark[i];
    if (last >= 0) this.events.next[last] = event;
    else if (sampled) r.sampled[i] = event;
    else r.mark[i] = event;
    if (sampled) r.lastSampled[i] = event;
    else r.lastMark[i] = event;
    if (kind === "admitted" && r.admitted[i] < 0) r.admitted[i] = step;
    if (kind === "preempted") this.occurs.add(kind);
    if (kind === "finished") {
      this.occurs.add(this.about.reasons[this.events.value[event]]);
      r.finish[i] = step;
      r.reason[i] = this.events.value[event];
    }
  }

  /** When the step's batch was computed: on the devices, or where they said nothing, by the host. */
  addTimes(g, step) {
    const { steps, spans, laneEnd } = this;
    let start = Infinity, end = -Infinity, hostStart = Infinity, hostEnd = -Infinity;
    for (let i = steps.gaps[g]; i < steps.gaps[g + 1]; i++)
      this.gaps.start[i] += laneEnd[this.gaps.lane[i]] || 0; // it was told since the lane's last span
    for (let i = steps.spans[g]; i < steps.spans[g + 1]; i++) {
      const lane = spans.lane[i];
      spans.start[i] = (laneEnd[lane] || 0) + spans.gap[i];
      spans.end[i] = laneEnd[lane] = spans.start[i] + spans.length[i];
      spans.step[i] = step;
      if (this.lanes[lane] === "host") {
        hostStart = Math.min(hostStart, spans.start[i]);
        hostEnd = Math.max(hostEnd, spans.end[i]);
      } else {
        start = Math.min(start, spans.start[i]);
        end = Math.max(end, spans.end[i]);
      }
    }
    // A device on another clock (a simulated one) would lie years away from the host. Then its own
    // time is shown, from its first batch on, and the host's is not.
    if (this.shift === null && end >= start) {
      this.foreign = hostEnd >= hostStart && (start < hostStart - 1e6 || end > hostEnd + 1e6);
      this.shift = this.foreign ? start : 0;
    }
    if (this.shift) {
      for (let i = steps.spans[g]; i < steps.spans[g + 1]; i++)
        if (this.lanes[spans.lane[i]] !== "host") {
          spans.start[i] -= this.shift;
          spans.end[i] -= this.shift;
        }
      for (let i = steps.gaps[g]; i < steps.gaps[g + 1]; i++) this.gaps.start[i] -= this.shift;
      start -= this.shift;
      end -= this.shift;
    }
    const before = g ? steps.t0[g - 1] : -Infinity, done = g ? steps.t1[g - 1] : 0;
    if (end < start) [start, end] = hostEnd < hostStart ? [done, done] : [hostStart, hostEnd];
    steps.t0[g] = Math.max(start, before);
    steps.t1[g] = Math.max(end, steps.t0[g]);
  }

  get overlaps() {
    return this.about.config.some(([name, value]) => name === "overlap" && value === "True");
  }

  get timed() {
    return this.spans.n > 0;
  }

  /** Nanoseconds that a step usually takes: the median of up to 500 of them. */
  get usualStep() {
    if (this.usualAt === undefined || this.count > 1.5 * this.usualAt || this.count < 20) {
      const some = [], { t0, t1 } = this.steps, by = Math.max(1, Math.floor(this.count / 500));
      for (let g = 0; g < this.count; g += by) if (t1[g] > t0[g]) some.push(t1[g] - t0[g]);
      some.sort((a, b) => a - b);
      this.usualAt = this.count;
      this.usual = 1.2 * some[some.length >> 1] || 1e6;
    }
    return this.usual;
  }

  /**
   * Times in which neither host nor device did anything for long: somebody thought about the next
   * step. On the screen such a time is as wide as 1.5 steps, or nothing else would be seen.
   */
  get folds() {
    if (this.foldsAt === this.version) return this.foldList;
    this.foldsAt = this.version;
    const { spans } = this, starts = new F(spans.n), ends = new F(spans.n);
    let n = 0;
    for (let i = 0; i < spans.n; i++) {
      if (this.foreign && this.lanes[spans.lane[i]] === "host") continue;
      starts[n] = spans.start[i];
      ends[n++] = spans.end[i];
    }
    const from = starts.subarray(0, n).sort(), to = ends.subarray(0, n).sort(), keep = 1.5 * this.usualStep;
    this.foldList = { from: [], to: [], gone: [0], keep };
    // with both sorted, all that began before from[i + 1] has ended where to[i] is smaller
    for (let i = 0; i + 1 < n; i++) {
      if (from[i + 1] - to[i] < 4 * keep) continue;
      this.foldList.from.push(to[i]);
      this.foldList.to.push(from[i + 1]);
      this.foldList.gone.push(this.foldList.gone[this.foldList.gone.length - 1] + from[i + 1] - to[i] - keep);
    }
    return this.foldList;
  }

  /** A time as it is drawn. */
  drawnTime(time) {
    const { from, to, gone, keep } = this.folds;
    let low = 0, high = from.length;
    while (low < high) {
      const mid = (low + high) >> 1;
      if (from[mid] < time) low = mid + 1;
      else high = mid;
    }
    if (low && time < to[low - 1])
      return from[low - 1] - gone[low - 1] + (time - from[low - 1]) / (to[low - 1] - from[low - 1]) * keep;
    return time - gone[low];
  }

  get drawnEnd() {
    return this.count ? this.drawnTime(this.steps.t1[this.count - 1]) : 0;
  }
  drawnMiddle(g) {
    return (this.drawnTime(this.steps.t0[g]) + this.drawnTime(this.steps.t1[g])) / 2;
  }

  // What people read: token ids as visible text, refusals as sentences, breakpoint names as steps.

  /** Token ids as text in which nothing is invisible. */
  text(ids, from, to) {
    let out = "";
    for (let i = from; i < to; i++) out += ids[i] < 0 ? "" : this.words.get(ids[i]) ?? `<${ids[i]}>`;
    return visible(out);
  }

  promptText(i) {
    const r = this.requests, ids = this.requestTokens.id, at = r.text[i], mid = at + r.head[i];
    const hidden = r.prompt_len[i] - r.head[i] - r.tail[i];
    const head = this.text(ids, at, mid);
    if (!r.head[i]) return "";
    return hidden > 0 || r.tail[i]
      ? `${head}${hidden > 0 ? ` … ${num(hidden)} tokens … ` : ""}${this.text(ids, mid, mid + r.tail[i])}`
      : head;
  }

  /** Why `refusal` (a row of refusals) was refused. */
  whyText(row) {
    const { why, asked, left, by } = this.refusals;
    const [name, template] = this.about.why[why[row]] ?? ["", "for a reason this inspector does not know"];
    if (name === "POLICY") return visible(template); // its own words
    return template.replaceAll("{asked}", num(asked[row])).replaceAll("{left}", num(left[row]))
      .replaceAll("{by}", String(by[row]));
  }

  /** The steps where a breakpoint of this name holds; the same rules as engine/breakpoint.py. */
  hitsOf(name) {
    let known = this.hitCache.get(name);
    if (!known) this.hitCache.set(name, (known = { upto: 0, steps: [] }));
    const kind = this.about.events.findIndex((event) => event.startsWith(name));
    const finished = this.about.events.indexOf("finished"), reason = this.about.reasons.indexOf(name);
    const { steps, events } = this;
    for (let g = known.upto; g < this.count; g++) {
      let holds = name === "wait" && steps.refusals[g + 1] > steps.refusals[g];
      for (let i = steps.events[g]; i < steps.events[g + 1] && !holds; i++)
        holds = reason >= 0 ? events.kind[i] === finished && events.value[i] === reason
          : events.kind[i] === kind;
      if (holds) known.steps.push(this.first + g);
    }
    known.upto = this.count;
    return known.steps;
  }

  /** A request at step k: its place in life, and how far its tokens are. */
  life(i, k) {
    const r = this.requests, { events, runs, about } = this;
    const life = {
      state: "queued", reused: 0, prefilled: 0, decoded: 0, admitted: -1, preemptions: 0, slot: -1,
      total: r.prompt_len[i] + Math.max(r.max_tokens[i], 1) - 1,
    };
    for (let e = r.mark[i]; e >= 0 && events.step[e] <= k; e = events.next[e]) {
      const kind = about.events[events.kind[e]];
      if (kind === "admitted") {
        Object.assign(life, { state: "running", admitted: events.step[e], slot: events.value[e], reused: 0 });
      } else if (kind === "reused") life.reused = events.value[e];
      else if (kind === "preempted") {
        life.state = "preempted";
        life.preemptions++;
      } else if (kind === "finished") life.state = about.reasons[events.value[e]];
    }
    let prefilled = life.reused, computed = life.reused;
    for (let run = r.run[i]; run >= 0 && runs.first[run] <= k; run = runs.next[run]) {
      if (runs.kind[run] === ZOMBIE || runs.last[run] < life.admitted) continue;
      const whole = runs.kind[run] === PREFILL ? runs.length[run]
        : Math.min(k, runs.last[run]) - runs.first[run] + 1;
      computed = Math.max(computed, runs.start[run] + whole);
      if (runs.kind[run] === PREFILL) prefilled = Math.max(prefilled, runs.start[run] + whole);
    }
    life.prefilled = prefilled - life.reused;
    life.decoded = computed - prefilled;
    life.total = Math.max(life.total, computed);
    return life;
  }

  /** The first step after `since`, up to k, in which a request's pages went back; -1 if they did not. */
  releasedAfter(i, since, k) {
    const { events, about } = this;
    for (let e = this.requests.mark[i]; e >= 0 && events.step[e] <= k; e = events.next[e])
      if (events.step[e] > since && about.events[events.kind[e]] === "released") return events.step[e];
    return -1;
  }

  /** The steps [from, to] in which a request was there and had no row. Calls see(from, to). */
  waits(i, see) {
    const r = this.requests, runs = this.runs;
    const end = r.finish[i] >= 0 ? r.finish[i] : this.last;
    let at = Math.max(r.arrival[i], this.first);
    for (let run = r.run[i]; run >= 0 && at <= end; run = runs.next[run]) {
      if (runs.first[run] > at) see(at, Math.min(runs.first[run] - 1, end));
      at = Math.max(at, runs.last[run] + 1);
    }
    if (at <= end) see(at, end);
  }
}

// Control characters, and those that reorder or hide text, are shown as what they are.
const HIDDEN = /[\u0000-\u001f\u007f-\u009f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]/g;
const visible = (text) =>
  String(text).replace(HIDDEN, (c) => {
    const code = c.charCodeAt(0);
    return code === 10 ? "↵" : code === 9 ? "⇥" : `\\u${code.toString(16).padStart(4, "0")}`;
  });

// ---- 2 · the state at a step ---------------------------------------------------------------------

const FRAME_MEMORY = 48 << 20; // bytes that the keyframes of one run may take
const FILM_MEMORY = 192 << 20; // bytes that the steps of a run that goes on may take

/**
 * Pages and tree nodes as they stand after one step.
 *
 * Going forward applies what each step changed; going back begins at the nearest keyframe. What the
 * step shown hit, inserted and evicted is what its own events say. With overlap the next step has
 * been committed by then: what that one evicts is gone already, and its node is a ghost for two
 * steps, the second of which tells of it.
 */
class State {
  constructor(film) {
    this.film = film;
    this.pages = new Table({ holders: Uint16Array, slot: I, owner: I, taken: I, changed: I });
    this.pages.reserve(film.about.num_pages);
    this.pages.n = film.about.num_pages;
    // the rows are those that Film.placeNodes gave; up: the parent's; born: in which step it was new
    this.nodes = new Table({
      id: I, up: I, depth: I, size: I, used: I, maker: I, text: I, said: I, order: I, born: I, gone: Uint8Array,
    });
    this.base = null; // the keyframe before the film's first step, if its beginning was dropped
    // What happened in the step shown: by page and by node, the step in which it did.
    this.hitPage = new I(film.about.num_pages);
    this.lostPage = new I(film.about.num_pages);
    this.newPage = new I(film.about.num_pages);
    this.frames = new Map();
    this.every = 32;
    this.reset();
  }

  /** Stand before the first step. */
  reset() {
    this.clear();
    if (this.base) this.load(this.base, -1);
  }

  clear() {
    const { pages } = this;
    pages.holders.fill(0);
    pages.slot.fill(-1);
    pages.owner.fill(-1);
    pages.changed.fill(-1);
    this.nodes.size.fill(0);
    this.nodes.n = 0;
    this.ghosts = []; // rows of nodes that have just gone; they keep their place until they are forgotten
    this.fading = []; // with overlap, those of the step before
    this.at = -1;
    this.shape = (this.shape || 0) + 1; // changes when the tree does
    this.stampHit = new Map(); // row of a node -> how many of its pages
    this.stampNew = new Map();
    this.lost = new Map(); // the same, of pages that it lost and lives on
    this.lostBefore = new Map();
    for (const stamp of [this.hitPage, this.lostPage, this.newPage]) stamp.fill(-1);
  }

  /** Forget what was before `step`, where the film is cut now. */
  cut(step) {
    const { film } = this, before = step - film.first - 1;
    let base = this.frames.get(before);
    if (!base) {
      this.go(step - 1);
      base = this.copy();
    }
    const drop = film.cut(step, base);
    this.base = base;
    this.frames = new Map([...this.frames].filter(([at]) => at >= drop).map(([at, frame]) => [at - drop, frame]));
    this.reset();
  }

  /** Stand after step k of the run; before the first one if k is smaller. */
  go(k) {
    const g = Math.min(k - this.film.first, this.film.count - 1);
    if (this.pages.n < this.film.about.num_pages) this.growPages(this.film.about.num_pages);
    if (g === this.at) return this;
    if (g < 0) {
      this.reset();
      return this;
    }
    let nearest = -1;
    // two steps are applied, never restored: the ghosts of both are learnt on the way
    for (const frame of this.frames.keys()) if (frame < g - 1 && frame > nearest) nearest = frame;
    if (this.at > g || nearest > this.at) {
      if (nearest < 0) this.reset();
      else {
        this.clear();
        this.load(this.frames.get(nearest), nearest);
      }
    }
    while (this.at < g) {
      this.apply(++this.at, this.at >= g - 1);
      if (this.at % this.every === 0 && !this.frames.has(this.at)) this.keep();
    }
    this.mark(g);
    return this;
  }

  /** Apply step g to the state after g - 1. near: what nodes lose may be seen. */
  apply(g, near) {
    const { film, nodes, pages } = this, { steps } = film, change = film.nodes, moved = film.pages;
    const done = film.overlaps ? this.fading : this.ghosts;
    for (const slot of done) nodes.size[slot] = nodes.gone[slot] = 0;
    if (done.length || steps.nodes[g + 1] > steps.nodes[g] || this.lost.size || this.lostBefore.size) this.shape++;
    [this.fading, this.ghosts] = film.overlaps ? [this.ghosts, []] : [[], []];
    this.lostBefore = film.overlaps ? this.lost : new Map();
    this.lost = new Map();
    if (nodes.n < film.numSlots) {
      nodes.reserve(film.numSlots);
      nodes.size.fill(0, nodes.n);
      nodes.n = film.numSlots;
    }
    for (let i = steps.nodes[g]; i < steps.nodes[g + 1]; i++) {
      if (!change.size[i]) continue;
      const slot = change.slot[i];
      if (!nodes.size[slot]) {
        nodes.id[slot] = nodes.order[slot] = change.id[i];
        nodes.said[slot] = nodes.gone[slot] = 0;
        nodes.born[slot] = film.first + g;
      }
      nodes.up[slot] = change.up[i];
      nodes.depth[slot] = change.depth[i];
      nodes.size[slot] = change.size[i];
      nodes.used[slot] = change.used[i];
      nodes.maker[slot] = change.maker[i];
      if (change.said[i]) {
        nodes.text[slot] = change.text[i];
        nodes.said[slot] = change.said[i] - 1;
      }
    }
    for (let i = steps.pages[g]; i < steps.pages[g + 1]; i++) {
      const page = moved.page[i];
      if (page >= pages.n) this.growPages(page + 1);
      const old = pages.slot[page], now = moved.node[i];
      if (near && old >= 0 && now < 0) this.lost.set(old, (this.lost.get(old) || 0) + 1);
      // a split's upper half stands where the node stood, so that siblings stay in order
      if (old >= 0 && now >= 0 && old !== now && nodes.born[now] === film.first + g)
        nodes.order[now] = Math.min(nodes.order[now], nodes.order[old]);
      if (!pages.holders[page] || pages.owner[page] !== moved.owner[i]) pages.taken[page] = film.first + g;
      pages.slot[page] = now;
      pages.holders[page] = moved.holders[i];
      pages.owner[page] = moved.owner[i];
      pages.changed[page] = film.first + g;
    }
    for (let i = steps.nodes[g]; i < steps.nodes[g + 1]; i++) {
      if (change.size[i]) continue;
      const slot = change.slot[i];
      if (slot < 0) continue;
      nodes.gone[slot] = 1;
      this.lost.delete(slot);
      this.lostBefore.delete(slot);
      this.ghosts.push(slot);
    }
    this.at = g;
  }

  /** What the events of step g say of pages, and of the nodes that have these pages now. */
  mark(g) {
    const { film, pages } = this, { events, eventPages } = film;
    this.stampHit.clear();
    this.stampNew.clear();
    for (let e = film.steps.events[g]; e < film.steps.events[g + 1]; e++) {
      const kind = film.about.events[events.kind[e]];
      for (let i = events.pages[e]; i < events.pages[e] + events.count[e]; i++) {
        const page = eventPages.id[i], slot = pages.slot[page];
        if (kind === "evicted") this.lostPage[page] = g;
        else {
          const [when, nodes] = kind === "reused" ? [this.hitPage, this.stampHit] : [this.newPage, this.stampNew];
          when[page] = g;
          if (slot >= 0) nodes.set(slot, (nodes.get(slot) || 0) + 1);
        }
      }
    }
  }

  /** Pages that a node has just lost while it lives on. */
  lostBy(slot) {
    return (this.lost.get(slot) || 0) + (this.lostBefore.get(slot) || 0);
  }

  growPages(room) {
    this.pages.reserve(room);
    this.pages.slot.fill(-1, this.pages.n);
    this.pages.owner.fill(-1, this.pages.n);
    this.pages.n = room;
    for (const name of ["hitPage", "lostPage", "newPage"]) {
      const grown = new I(this.pages.room).fill(-1);
      grown.set(this[name]);
      this[name] = grown;
    }
  }

  /** A keyframe of this step. They are spaced so that all of them keep to FRAME_MEMORY. */
  keep() {
    const { pages, nodes } = this, most = Math.max(6, FRAME_MEMORY / (pages.bytes() + nodes.bytes() + 1));
    const needed = Math.max(32, Math.ceil(this.film.count / most));
    if (needed > this.every) {
      this.every = needed;
      for (const at of this.frames.keys()) if (at % this.every) this.frames.delete(at);
      if (this.at % this.every) return;
    }
    this.frames.set(this.at, this.copy());
  }

  copy() {
    const copy = (table) => {
      const out = { n: table.n };
      for (const name in table.types) out[name] = table[name].slice(0, table.n);
      return out;
    };
    return { pages: copy(this.pages), nodes: copy(this.nodes), ghosts: this.ghosts.slice(), fading: this.fading.slice() };
  }

  load(frame, at) {
    for (const [table, from] of [[this.pages, frame.pages], [this.nodes, frame.nodes]]) {
      table.reserve(from.n);
      table.n = Math.max(table.n, from.n);
      for (const name in table.types) table[name].set(from[name]);
    }
    this.ghosts = frame.ghosts.slice();
    this.fading = frame.fading.slice();
    this.at = at;
  }

  /** How many requests hold each node: most of all its pages; by row of `nodes`. */
  nodeHolders() {
    const { pages, nodes } = this, held = new Uint16Array(nodes.n);
    for (let page = 0; page < pages.n; page++) {
      const slot = pages.slot[page];
      if (slot >= 0 && pages.holders[page] - 1 > held[slot]) held[slot] = pages.holders[page] - 1;
    }
    return held;
  }

  /** The requests that hold a page, as far as the film tells: who took it, and who found it cached. */
  holders(page) {
    const { film } = this, { hits } = film, out = new Set();
    const add = (rid, since) => {
      const i = film.indexOfRid.get(rid);
      if (i !== undefined && film.releasedAfter(i, since, film.first + this.at) < 0) out.add(rid);
    };
    if (this.pages.owner[page] >= 0) add(this.pages.owner[page], this.pages.taken[page]);
    const end = this.at < 0 ? 0 : film.steps.hits[this.at + 1];
    for (let i = 0; i < end; i++) if (hits.page[i] === page) add(hits.rid[i], hits.step[i]);
    return [...out].sort((a, b) => a - b);
  }

  /** The cached pages that a request holds besides those it computed. */
  reusedBy(rid) {
    const { film } = this, k = film.first + this.at, { hits } = film, i = film.indexOfRid.get(rid), out = new Set();
    const end = this.at < 0 || i === undefined ? 0 : film.steps.hits[this.at + 1];
    for (let n = 0; n < end; n++)
      if (hits.rid[n] === rid && film.releasedAfter(i, hits.step[n], k) < 0) out.add(hits.page[n]);
    return out;
  }

  nodeText(slot) {
    const { nodes, film } = this, n = nodes.said[slot];
    return n ? film.text(film.nodeText(nodes.text[slot], n), 0, n) : "";
  }
}

// ---- 3 · the session and its hosts ---------------------------------------------------------------

/**
 * What all views of one model share: films, states, status, the way to the kernel.
 *
 * model: anywidget's model, or anything with get, set, save_changes, on, off and send.
 */
class Session {
  constructor(model, began = performance.now()) {
    this.model = model;
    this.began = began; // when somebody asked for this; the first view says how long it took
    this.films = [];
    this.states = [];
    this.error = null; // words for the person, if a film cannot be read
    this.alive = true; // the kernel answers
    this.listeners = new Set();
    this.asked = new Map(); // id of a command -> what to do with its answer
    this.nextId = 1;
    (model.get("films") || []).forEach((film, run) => this.take(run, film, true));
    this.handlers = {
      "msg:custom": (message, buffers) => this.receive(message, buffers || []),
      "change:status": () => this.tell("status"),
      "change:cursor": () => this.tell("cursor"),
      "change:selected": () => this.tell("cursor"),
      "change:run": () => this.tell("run"),
      "comm:close": () => this.lose(),
      "comm_live_update": () => this.lose(),
    };
    for (const name in this.handlers) model.on(name, this.handlers[name]);
    if (model.get("cursor") == null || model.get("cursor") > this.film.last) this.cursor = this.film.last;
  }

  close() {
    for (const name in this.handlers) this.model.off(name, this.handlers[name]);
    clearTimeout(this.saving);
    this.listeners.clear();
  }

  tell(what) {
    for (const listener of this.listeners) listener(what);
  }

  get status() {
    return this.model.get("status") || {};
  }
  get run() {
    return Math.min(this.model.get("run") || 0, Math.max(0, this.films.length - 1));
  }
  get film() {
    return this.films[this.run] || (this.films[this.run] = new Film());
  }
  get state() {
    return this.states[this.run] || (this.states[this.run] = new State(this.film));
  }
  get runStatus() {
    return this.status.runs?.[this.run] || {};
  }
  get cursor() {
    const { film } = this, k = this.model.get("cursor") ?? film.last;
    return film.count ? Math.max(film.first, Math.min(film.last, k)) : -1;
  }
  set cursor(k) {
    if (this.model.get("cursor") !== k) this.put("cursor", k);
  }
  get selected() {
    return this.model.get("selected") ?? null;
  }
  set selected(rid) {
    this.put("selected", rid);
  }
  get atHead() {
    return this.cursor >= this.film.last;
  }
  /** A run that can be driven: its engine is open, and the kernel is there. */
  get live() {
    return this.alive && this.status.mode === "live" && !!this.runStatus.live && !this.runStatus.closed;
  }
  /** The runs whose lanes are drawn over one another: the one in front, and what it is compared with. */
  get pair() {
    if (!this.status.divergence || this.films.length < 2) return [this.run];
    return this.run === 0 ? [0, 1] : [0, this.run];
  }

  put(name, value) {
    this.model.set(name, value);
    // a drag moves the cursor sixty times a second; the kernel need not hear of each
    clearTimeout(this.saving);
    this.saving = setTimeout(() => {
      try {
        this.model.save_changes();
      } catch {
        this.lose();
      }
    }, 80);
  }

  take(run, buffer, reset) {
    if (reset || !this.films[run]) {
      this.films[run] = new Film();
      this.states[run] = null;
      this.error = null;
    }
    const film = this.films[run];
    try {
      film.append(asBytes(buffer));
      this.bound(run);
    } catch (error) {
      this.error = error instanceof FilmError ? error.message : `The film cannot be read: ${error.message}`;
    }
  }

  /** Drop the beginning of a run that goes on: what its engine forgot, and what memory does not hold. */
  bound(run) {
    const film = this.films[run];
    if (!this.status.runs?.[run]?.live) return;
    let first = Math.max(film.first, film.kept);
    if (film.bytes() > FILM_MEMORY) first = Math.max(first, film.first + (film.count >> 1));
    if (first - film.first < Math.max(64, film.count >> 2) || first > film.last) return;
    (this.states[run] ||= new State(film)).cut(first);
  }

  bytes() {
    let sum = this.film.bytes();
    for (const { pages, nodes } of this.state.frames.values())
      for (const table of [pages, nodes])
        for (const name in table) if (name !== "n") sum += table[name].byteLength;
    return sum;
  }

  receive(message, buffers) {
    if (message.chunk !== undefined) {
      const run = message.chunk, front = run === this.run, follow = front && this.atHead;
      this.take(run, buffers[0] || new Uint8Array(0), message.reset);
      if (front && (follow || message.reset)) this.cursor = this.film.last;
      else if (front && this.model.get("cursor") < this.film.first) this.cursor = this.film.first;
      this.tell("film");
    }
    if (message.done === undefined && message.ran === undefined) return;
    // A run's answer may come without the id; there is never more than one under way.
    const id = message.done ?? [...this.asked].find(([, ask]) => ask.what === "run")?.[0];
    const ask = this.asked.get(id);
    if (!ask) return;
    this.asked.delete(id);
    ask.resolve(message);
    this.tell("status");
  }

  /** Ask the kernel for something; resolves with its answer, whose `error` is null or words. */
  ask(what, more = {}) {
    const id = this.nextId++;
    return new Promise((resolve) => {
      if (!this.alive) return resolve({ error: "the kernel is gone" });
      this.asked.set(id, { what, resolve });
      try {
        this.model.send({ do: what, run: this.run, id, ...more });
      } catch {
        this.lose();
      }
      this.tell("status");
    });
  }

  lose() {
    if (!this.alive) return;
    this.alive = false;
    for (const ask of this.asked.values()) ask.resolve({ error: "the kernel is gone" });
    this.asked.clear();
    this.tell("status");
  }
}

const asBytes = (buffer) =>
  buffer instanceof Uint8Array ? buffer
    : ArrayBuffer.isView(buffer) ? new Uint8Array(buffer.buffer, buffer.byteOffset, buffer.byteLength)
      : new Uint8Array(buffer);

/** The model of a saved page: no kernel, so it keeps breakpoints and everything else itself. */
class PageModel {
  constructor(values) {
    this.values = { cursor: null, run: 0, selected: null, ...values };
    this.handlers = new Map();
  }
  get(name) {
    return this.values[name];
  }
  set(name, value) {
    this.values[name] = value;
    for (const handler of this.handlers.get(`change:${name}`) || []) handler();
  }
  save_changes() {}
  on(name, handler) {
    this.handlers.set(name, (this.handlers.get(name) || []).concat([handler]));
  }
  off(name, handler) {
    this.handlers.set(name, (this.handlers.get(name) || []).filter((each) => each !== handler));
  }
  send(message) {
    const status = structuredClone(this.values.status), list = status.runs[message.run].breakpoints;
    if (message.do === "break") list.push({ label: message.condition, on: true, hits: null });
    if (message.do === "break_set") list[message.index].on = message.on;
    if (message.do === "break_remove") list.splice(message.index, 1);
    this.set("status", status);
    queueMicrotask(() => {
      for (const handler of this.handlers.get("msg:custom") || []) handler({ done: message.id, error: null });
    });
  }
}

async function inflate(text) {
  const flat = atob(text), raw = new Uint8Array(flat.length);
  for (let i = 0; i < raw.length; i++) raw[i] = flat.charCodeAt(i);
  const stream = new Blob([raw]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** Show a saved run. data: { films: base64 of deflated chunks, one for each run; status }. */
export async function mountPage(el, data) {
  const began = performance.now();
  const status = { runs: [], conditions: Object.keys(WORDS), ...data.status };
  for (const run of data.films.keys())
    status.runs[run] = { name: `run ${run}`, breakpoints: [], ...status.runs[run] };
  for (const run of status.runs) run.breakpoints ||= [];
  let films = [], broken = null;
  try {
    films = await Promise.all(data.films.map(inflate));
  } catch {
    broken = "The film is damaged: it cannot be unpacked.";
  }
  const model = new PageModel({ films, status, cursor: status.divergence?.step ?? null });
  const session = new Session(model, began);
  session.error ||= broken;
  const inspector = new Inspector(el, session);
  return () => {
    inspector.close();
    session.close();
  };
}

/** anywidget calls this once for each model; views of one model share its session. */
export default () => {
  let session = null;
  return {
    initialize({ model }) {
      session = new Session(model);
      return () => session.close();
    },
    render({ model, el }) {
      session ||= new Session(model);
      const inspector = new Inspector(el, session);
      return () => inspector.close();
    },
  };
};

// ---- 4 · drawing tools ---------------------------------------------------------------------------

const numbers = new Intl.NumberFormat("en-US");
const num = (n) => numbers.format(n);
const clamp = (x, low, high) => Math.max(low, Math.min(high, x));
const count = (n, one, many = `${one}s`) => `${num(n)} ${n === 1 ? one : many}`;
const percent = (share) => `${share > 0 && share < 0.01 ? "<1" : Math.round(share * 100)} %`;

/** Nanoseconds for people, to three digits; or so exactly that times `apart` from one another differ. */
const duration = (ns, apart = 0) => {
  if (ns < 0) return `−${duration(-ns, apart)}`;
  const [unit, by] = ns < 1e3 ? ["ns", 1] : ns < 1e6 ? ["µs", 1e3] : ns < 1e9 ? ["ms", 1e6] : ["s", 1e9];
  const value = ns / by, digits = by === 1 || value >= 100 ? 0 : value >= 10 ? 1 : 2;
  return `${value.toFixed(apart ? clamp(Math.ceil(-Math.log10(apart / by) - 1e-9), 0, 9) : digits)} ${unit}`;
};

/** A step of 1, 2 or 5 times a power of ten, so that ticks stand at least `apart` pixels apart. */
const niceStep = (perPixel, apart) => {
  const least = perPixel * apart, power = 10 ** Math.floor(Math.log10(least));
  return [1, 2, 5, 10].map((m) => m * power).find((step) => step >= least);
};

/** An element with properties and children; strings become text. Never parses markup. */
function h(tag, props = {}, ...children) {
  const [name, ...classes] = tag.split("."), el = document.createElement(name);
  if (classes.length) el.className = classes.map((each) => `msgl-${each}`).join(" ");
  for (const key in props) {
    if (key.startsWith("on")) el.addEventListener(key.slice(2), props[key]);
    else if (key in el && key !== "list") el[key] = props[key];
    else el.setAttribute(key, props[key]);
  }
  el.append(...children.filter((child) => child != null));
  return el;
}

/** Set text only where it changed: the browser lays out nothing for a step that says the same. */
const say = (el, text) => {
  if (el.textContent !== text) el.textContent = text;
};

const ICONS = {
  first: "M4 4v8M12.5 4 7 8l5.5 4z", prev: "M3 8l4-3.2v6.4zM9 4.5v7M12 4.5v7", back: "M10.5 4 5 8l5.5 4z",
  play: "M5 3.5 12.5 8 5 12.5z", pause: "M5.5 4v8M10.5 4v8", step: "M5.5 4 11 8l-5.5 4z",
  next: "M13 8 9 4.8v6.4zM4 4.5v7M7 4.5v7", last: "M12 4v8M3.5 4 9 8l-5.5 4z",
};

function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  svg.setAttribute("viewBox", "0 0 16 16");
  svg.setAttribute("aria-hidden", "true");
  path.setAttribute("d", ICONS[name]);
  svg.append(path);
  return svg;
}

const COLOURS = [
  "bg", "ink", "soft", "line", "panel", "wait", "pre", "dec", "hit", "ghost", "fault", "sel", "free", "cache",
  "on-pre", "on-dec", "on-cache", "plan", "commit", "launch", "apply",
  "own0", "own1", "own2", "own3", "own4", "own5", "own6", "own7", "ramp0", "ramp1",
];

/** The theme's colours, read from CSS so that canvas and elements never differ. */
class Theme {
  constructor(root, changed) {
    this.root = root;
    const lab = document.body, queries = ["(prefers-color-scheme: dark)", "(prefers-contrast: more)",
      "(forced-colors: active)", "(prefers-reduced-motion: reduce)"].map((query) => matchMedia(query));
    const read = this.refresh = () => {
      this.read();
      changed();
    };
    this.observer = new MutationObserver(read);
    this.observer.observe(lab, { attributes: true, attributeFilter: ["data-jp-theme-light", "data-jp-theme-name"] });
    for (const query of queries) query.addEventListener("change", read);
    this.close = () => {
      this.observer.disconnect();
      for (const query of queries) query.removeEventListener("change", read);
    };
    [this.darkQuery, this.contrastQuery, this.forcedQuery, this.stillQuery] = queries;
    this.read();
  }

  /** Whether motion is unwanted. */
  get still() {
    return this.stillQuery.matches;
  }

  read() {
    const { jpThemeLight, jpThemeName = "" } = document.body.dataset;
    const dark = jpThemeLight ? jpThemeLight === "false" : this.darkQuery.matches;
    const contrast = /high contrast/i.test(jpThemeName) || this.contrastQuery.matches;
    this.root.dataset.theme = dark ? "dark" : "light";
    this.root.dataset.contrast = contrast || this.forcedQuery.matches ? "more" : "normal";
    const style = getComputedStyle(this.root), probe = document.createElement("canvas").getContext("2d",
      { willReadFrequently: true });
    this.known = style.getPropertyValue(`--msgl-${COLOURS[0]}`) !== "";
    this.family = style.fontFamily;
    this.rgb = {};
    for (const name of COLOURS) {
      const colour = style.getPropertyValue(`--msgl-${name}`).trim() || "#888";
      const key = name.replace(/-(\w)/, (_, c) => c.toUpperCase());
      this[key] = colour;
      probe.fillStyle = colour;
      probe.fillRect(0, 0, 1, 1);
      this.rgb[key] = probe.getImageData(0, 0, 1, 1).data.slice(0, 3);
    }
  }

  font(size = 11, weight = 400) {
    return `${weight} ${size}px ${this.family}`;
  }
}

const LITTLE = new Uint8Array(new Uint32Array([1]).buffer)[0] === 1;
const pixel = ([r, g, b]) =>
  (LITTLE ? 255 << 24 | b << 16 | g << 8 | r : r << 24 | g << 16 | b << 8 | 255) >>> 0;
const mix = (a, b, t) => [0, 1, 2].map((i) => Math.round(a[i] + (b[i] - a[i]) * t));
const css = ([r, g, b]) => `rgb(${r} ${g} ${b})`;

/** The longest beginning of a text that fits, with an ellipsis; "" if not even three letters do. */
function fit(ctx, text, room) {
  if (room < 12) return "";
  if (text.length > 400) text = text.slice(0, 400);
  const whole = ctx.measureText(text).width;
  if (whole <= room) return text;
  let n = Math.floor(text.length * room / whole);
  while (n > 2 && ctx.measureText(`${text.slice(0, n)}…`).width > room) n--;
  return n > 2 ? `${text.slice(0, n)}…` : "";
}

/** A window a..b on the values lo..hi of one axis, drawn at the pixels x0..x1. */
class Axis {
  constructor() {
    Object.assign(this, { lo: 0, hi: 1, a: 0, b: 1, x0: 0, x1: 1, custom: false });
  }
  get scale() {
    return (this.x1 - this.x0) / (this.b - this.a || 1);
  }
  x(value) {
    return this.x0 + (value - this.a) * this.scale;
  }
  value(x) {
    return this.a + (x - this.x0) / this.scale;
  }
  /** Keep `at` inside the window, moved no further than needed; `width` unless one was chosen. */
  follow(lo, hi, width, at, moved) {
    this.lo = lo;
    this.hi = Math.max(hi, lo + 1e-9);
    const whole = this.hi - lo;
    width = this.custom ? this.b - this.a : Math.min(width, whole);
    if (!this.custom || moved) {
      if (at < this.a + 0.1 * width) this.a = at - 0.1 * width;
      if (at > this.a + 0.85 * width) this.a = at - 0.85 * width;
    }
    this.a = clamp(this.a, lo, Math.max(lo, this.hi - width));
    this.b = this.a + width;
  }
  zoom(x, factor, least) {
    const at = this.value(x), width = clamp((this.b - this.a) * factor, least, this.hi - this.lo);
    this.a = at - (x - this.x0) / (this.x1 - this.x0) * width;
    this.b = this.a + width;
    this.custom = width < this.hi - this.lo;
    this.pan(0);
  }
  pan(dx) {
    const width = this.b - this.a;
    if (dx) this.custom = true;
    this.a = clamp(this.a - dx / this.scale, this.lo, Math.max(this.lo, this.hi - width));
    this.b = this.a + width;
  }
}

// ---- 5 · the views -------------------------------------------------------------------------------

// What the log calls an event, and which of them breakpoints may name.
const WORDS = {
  add: "arrives", admit: "gets a slot", reuse: "reuses cached pages", insert: "its pages become findable",
  evict: "cached pages go", preempt: "gives its pages back", finish: "ends", release: "its pages go back",
  wait: "somebody is refused", abort: "ends early", error: "ends by an error",
};
const FAINT = 0.28; // how much of the future shows

/** A section with a title, what it says beside it, and canvases that know their size. */
class View {
  constructor(app, name, title) {
    this.app = app;
    this.tools = h("span.tools");
    this.note = h("span.note");
    this.legend = h("div.legend");
    this.body = h("div.body");
    this.el = h(`section.view.${name}`, { "aria-label": title },
      h("div.head", {}, h("h3", { textContent: title }), this.tools, this.note), this.body, this.legend);
  }

  canvas(parent, height) {
    const canvas = h("canvas", { tabIndex: 0, role: "img" });
    this.setHeight(canvas, height);
    canvas.wide = 0;
    parent.append(canvas);
    this.app.watch(canvas, this);
    return canvas;
  }

  setHeight(canvas, height) {
    if (canvas.high === height) return;
    canvas.high = height;
    canvas.style.height = `${height}px`;
  }

  /** A cleared context in CSS pixels; null while the canvas has no size. */
  begin(canvas) {
    const ratio = window.devicePixelRatio || 1;
    const width = Math.round(canvas.wide * ratio), height = Math.round(canvas.high * ratio);
    if (!width || !height) return null;
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    const ctx = (canvas.context ||= canvas.getContext("2d"));
    ctx.setTransform(ratio, 0, 0, ratio, 0, 0);
    ctx.clearRect(0, 0, canvas.wide, canvas.high);
    ctx.font = this.app.theme.font();
    ctx.textBaseline = "alphabetic";
    ctx.textAlign = "left";
    ctx.globalAlpha = 1;
    return ctx;
  }

  /** A row of buttons of which one is pressed. */
  choice(names, value, chosen, label) {
    const group = h("span.choice", { role: "group", "aria-label": label });
    const buttons = names.map((name) => h("button", {
      type: "button", textContent: name, onclick: () => {
        press(name);
        chosen(name);
        this.app.draw();
      },
    }));
    const press = (now) => buttons.forEach((b, i) => b.setAttribute("aria-pressed", names[i] === now));
    press(value);
    group.append(...buttons);
    this.tools.append(group);
  }

  /** Swatches beside what they explain. entries: [class, words]. */
  explain(entries) {
    this.legend.replaceChildren(...entries.map(([key, words]) =>
      h("span.key", {}, h(`i.sw.sw-${key}`), words)));
  }

  scrolled() {
    this.top = this.list.scrollTop;
    this.rows();
  }

  describe(canvas, words) {
    if (canvas.said !== words) canvas.setAttribute("aria-label", (canvas.said = words));
  }

  /** Hover, click, drag and zoom of a canvas. on: hover(x, y) -> tip lines or null, click, drag, zoom. */
  listen(canvas, on) {
    let from = null, moved = false;
    const at = (e) => [e.offsetX, e.offsetY];
    canvas.addEventListener("pointerdown", (e) => {
      if (e.button) return;
      from = { x: e.offsetX, y: e.offsetY, at: e.offsetX };
      moved = false;
      canvas.setPointerCapture?.(e.pointerId);
      if (on.grab?.(...at(e))) moved = from.grabbed = true;
    });
    canvas.addEventListener("pointermove", (e) => {
      if (from && e.buttons) {
        const dx = e.offsetX - from.at;
        if (Math.abs(e.offsetX - from.x) > 3) moved = true;
        if (from.grabbed) on.grab(...at(e));
        else if (moved && on.drag) on.drag(dx);
        if (moved) from.at = e.offsetX;
        this.app.tip.hide();
        return;
      }
      const lines = on.hover?.(...at(e));
      if (lines) this.app.tip.show(e.clientX, e.clientY, lines);
      else this.app.tip.hide();
    });
    canvas.addEventListener("pointerup", (e) => {
      if (from && !moved) on.click?.(...at(e));
      from = null;
    });
    canvas.addEventListener("pointercancel", () => (from = null));
    canvas.addEventListener("pointerleave", () => {
      this.app.tip.hide();
      on.hover?.(-1, -1);
    });
    canvas.addEventListener("dblclick", () => on.reset?.());
    canvas.addEventListener("wheel", (e) => {
      if (on.zoom && (e.ctrlKey || e.altKey || e.metaKey)) {
        e.preventDefault();
        on.zoom(e.offsetX, Math.exp(clamp(e.deltaY, -60, 60) / 120));
      } else if (on.drag && (e.shiftKey || Math.abs(e.deltaX) > Math.abs(e.deltaY))) {
        e.preventDefault();
        on.drag(-(e.deltaX || e.deltaY));
      }
    }, { passive: false });
    // Up and down walk through what the view shows, so that hovering has its twin on the keyboard.
    canvas.walk = on.walk;
    canvas.addEventListener("blur", () => this.app.tip.hide());
  }

  /** A tip at a place of the canvas, for the keyboard. */
  tipAt(canvas, x, y, lines) {
    const box = canvas.getBoundingClientRect();
    this.app.tip.show(box.left + clamp(x, 0, canvas.wide), box.top + clamp(y, 0, canvas.high), lines);
    this.app.announce(lines.join(". "));
  }

  /** The same three gestures for every view with an axis. */
  gestures(axis, least) {
    return {
      drag: (dx) => {
        axis().pan(dx);
        this.app.paint(this);
      },
      zoom: (x, factor) => {
        axis().zoom(x, factor, least());
        this.app.paint(this);
      },
      reset: () => {
        axis().custom = false;
        this.app.draw();
      },
    };
  }
}

/** A thin vertical line where the cursor is, the same in every view with time in it. */
function cursorLine(ctx, theme, x, top, bottom) {
  ctx.fillStyle = theme.sel;
  ctx.fillRect(Math.round(x) - 0.6, top, 1.2, bottom - top);
}

/** Who is in the run and what each one did in every step; in a comparison, both runs. */
class Lanes extends View {
  constructor(app) {
    super(app, "lanes", "Requests");
    this.byTime = false;
    this.axes = [new Axis(), new Axis()];
    this.top = 0;
    this.films = []; // one, or two in a comparison: the upper and the lower half of each lane
    this.lanes = []; // for each of these, by lane: the request's index in it, or -1
    this.choice(["by step", "by time"], "by step", (name) => (this.byTime = name === "by time"), "x axis");
    this.filter = h("input.filter", {
      type: "text", placeholder: "filter  /", "aria-label": "Filter requests and events", spellcheck: false,
      title: "r3, r3-9, evict, finish, or words of a prompt", oninput: () => app.setFilter(this.filter.value),
    });
    this.tools.append(this.filter);
    this.inner = h("div.inner");
    this.scroll = h("div.scroll", {
      onscroll: () => {
        this.top = this.scroll.scrollTop;
        app.paint(this);
      },
    }, this.inner);
    this.body.append(this.scroll);
    this.canvasEl = this.canvas(this.inner, 120);
    this.listen(this.canvasEl, {
      ...this.gestures(() => this.axis, () => this.byTime ? this.app.film.usualStep * 2 : 4),
      hover: (x, y) => this.hover(x, y),
      click: (x, y) => {
        const lane = this.laneAt(y);
        if (lane >= 0) app.select(this.rid(lane));
      },
      grab: (x, y) => {
        if (y < this.canvasEl.high - 20 && !this.scrubbing) return false;
        this.scrubbing = true;
        app.go(this.stepAt(x));
        return true;
      },
      walk: (by) => app.walkSelection(by),
    });
    this.canvasEl.addEventListener("pointerup", () => (this.scrubbing = false));
  }

  get axis() {
    return this.axes[+this.byTime];
  }
  get n() {
    return this.lanes.length ? this.lanes[0].length : 0;
  }
  get paired() {
    return this.films.length > 1;
  }
  rid(lane) {
    const which = this.lanes[0][lane] >= 0 ? 0 : 1;
    return this.films[which].requests.rid[this.lanes[which][lane]];
  }

  list() {
    const { app } = this, { pair, films } = app.session, front = films[0] ? pair.map((run) => films[run]) : [app.film];
    const key = [...front.map((film) => film.version), app.filter.text, ...pair].join("|");
    if (key === this.key && front.every((film, i) => film === this.films[i])) return;
    this.key = key;
    this.films = front;
    const passing = (film) => {
      const out = [];
      for (let i = 0; i < film.requests.n; i++) if (app.filter.lane(film, i)) out.push(i);
      return out;
    };
    if (front.length === 1) this.lanes = [I.from(passing(front[0]))];
    else {
      const rids = new Set(front.flatMap((film) => passing(film).map((i) => film.requests.rid[i])));
      const all = [...rids].sort((x, y) => x - y);
      this.lanes = front.map((film) => I.from(all, (rid) => film.indexOfRid.get(rid) ?? -1));
    }
  }

  update(moved) {
    const { app } = this, { film, k } = app, n = (this.list(), this.n), { films } = this;
    this.rowHigh = this.paired ? (n <= 10 ? 30 : 24) : n <= 8 ? 23 : n <= 16 ? 19 : n <= 48 ? 15 : 12;
    const want = n * this.rowHigh + 22, least = app.narrow ? 130 : app.live ? 324 : 226;
    const high = Math.max(least, Math.min(want, 22 + this.rowHigh * Math.floor(294 / this.rowHigh)));
    this.setHeight(this.canvasEl, high);
    this.high = high;
    const px = `${Math.max(want, high)}px`;
    if (this.inner.style.height !== px) {
      this.inner.style.height = px;
      this.scroll.style.height = `${high}px`;
    }
    const last = Math.max(...films.map((each) => each.last)), steps = last - film.first + 1;
    if (this.byTime && film.timed) {
      const g = clamp(k - film.first, 0, film.count - 1), end = Math.max(...films.map((each) => each.drawnEnd));
      const begin = film.drawnTime(film.steps.t0[0]);
      this.axis.follow(begin, end, steps <= 200 ? Infinity : 160 * film.usualStep, film.drawnMiddle(g), moved);
    } else {
      // a live run grows: room ahead, so that not every step moves all the others
      const room = app.live ? Math.ceil((steps + 1) / 25) * 25 : Math.max(steps, 8);
      const at = Math.max(k, film.first) + 0.5;
      this.axis.follow(film.first, film.first + room, steps <= 200 ? Infinity : 160, at, moved);
    }
    const rare = [["zombie", "result dropped"], ["preempted", "preempted"], ["abort", "aborted"], ["error", "failed"]]
      .filter(([key]) => films.some((each) => each.occurs.has(key)));
    if (this.rare !== rare.join()) {
      this.rare = rare.join();
      this.explain([["wait", "waiting"], ["hit", "reused"], ["pre", "prefill"], ["dec", "decode"], ...rare]);
    }
    if (moved || this.selected !== app.selected) this.showActive(k);
    this.selected = app.selected;
    const { pair } = app.session;
    say(this.note, this.paired ? `above: ${app.runName(pair[0])} · below: ${app.runName(pair[1])}`
      : n === film.requests.n ? `${count(n, "request")}` : `${num(n)} of ${count(film.requests.n, "request")}`);
    this.describe(this.canvasEl, this.summary());
  }

  summary() {
    const { film, g } = this.app;
    if (g < 0) return "Requests: no steps yet";
    const { running, waiting } = film.steps;
    return `Requests by ${this.byTime ? "time" : "step"}: ${count(film.requests.n, "lane")}; after step `
      + `${this.app.k}, ${running[g]} run and ${waiting[g]} wait`;
  }

  /** Scroll, if nobody who runs at the cursor (or else waits) is in sight, or the selected lane is not. */
  showActive(k) {
    const { app, n } = this, { film } = app, { arrival, admitted, finish } = film.requests;
    const rows = Math.floor((this.high - 22) / this.rowHigh), from = this.top / this.rowHigh, to = from + rows;
    const mine = this.lanes[this.films.indexOf(film)], here = (i) => i >= 0 && (finish[i] < 0 || finish[i] >= k);
    let want = this.top;
    for (const lives of [(i) => here(i) && admitted[i] >= 0 && admitted[i] <= k, (i) => here(i) && arrival[i] <= k]) {
      let lane = Math.ceil(from);
      while (lane < Math.min(n, to) && !lives(mine[lane])) lane++;
      if (lane < Math.min(n, to)) break;
      if ((lane = mine.findIndex(lives)) < 0) continue;
      want = (lane - 1) * this.rowHigh;
      break;
    }
    if (this.selected !== app.selected && app.selected !== null) {
      const chosen = mine.indexOf(film.indexOfRid.get(app.selected) ?? -2);
      if (chosen >= 0 && (chosen < from || chosen + 1 > to)) want = (chosen - rows / 2) * this.rowHigh;
    }
    want = clamp(want, 0, Math.max(0, n * this.rowHigh + 22 - this.high));
    if (want !== this.top) {
      this.top = want;
      this.wantTop = want;
    }
  }

  /** Left and right edge of a step. */
  left(film, step) {
    if (!this.byTime || !film.timed) return this.axis.x(step);
    return this.axis.x(film.drawnTime(film.steps.t0[clamp(step - film.first, 0, film.count - 1)]));
  }
  right(film, step) {
    if (!this.byTime || !film.timed) return this.axis.x(step + 1);
    return this.axis.x(film.drawnTime(film.steps.t1[clamp(step - film.first, 0, film.count - 1)]));
  }

  stepAt(x) {
    const { film } = this.app, value = this.axis.value(x);
    return this.byTime && film.timed ? film.first + searchTime(film, value)
      : clamp(Math.floor(value), film.first, film.last);
  }

  laneAt(y) {
    const lane = Math.floor((y + this.top - 2) / this.rowHigh);
    return y < this.high - 20 && lane >= 0 && lane < this.n ? lane : -1;
  }

  paint() {
    if (this.wantTop !== undefined) {
      this.scroll.scrollTop = this.wantTop;
      this.wantTop = undefined;
    }
    const ctx = this.begin(this.canvasEl), { app } = this, { theme, film, k } = app;
    if (!ctx) return;
    const w = this.canvasEl.wide, base = this.high - 20, { films, paired } = this;
    const names = app.session.pair.map((run) => app.runName(run));
    ctx.font = theme.font(this.rowHigh < 14 ? 10 : 11);
    this.axis.x0 = Math.ceil(ctx.measureText(`r${film.mostRid}`).width) + (paired ? 24 : 14);
    this.axis.x1 = w - 6;
    const first = Math.max(0, Math.floor((this.top - 2) / this.rowHigh));
    const last = Math.min(this.n - 1, Math.ceil((this.top + base) / this.rowHigh));
    ctx.save();
    ctx.beginPath();
    ctx.rect(0, 1, w, base - 1);
    ctx.clip();
    for (let lane = first; lane <= last; lane++) {
      const y = 2 + lane * this.rowHigh - this.top, rid = this.rid(lane), mine = rid === app.selected;
      if (mine) {
        ctx.fillStyle = theme.panel;
        ctx.strokeStyle = theme.sel;
        box(ctx, 0.5, y - 0.5, w - 1, this.rowHigh - 1, 3);
        ctx.fill();
        ctx.stroke();
      }
      ctx.font = theme.font(this.rowHigh < 14 ? 10 : 11, mine ? 700 : 400);
      const born = films.some((each, n) => {
        const i = this.lanes[n][lane];
        return i >= 0 && each.requests.arrival[i] <= Math.max(k, film.first);
      });
      ctx.fillStyle = born ? theme.ink : theme.soft;
      ctx.fillText(`r${rid}`, 5, y + this.rowHigh / 2 + 3);
      const each = paired ? (this.rowHigh - 6) / 2 : this.rowHigh - 2;
      films.forEach((film, n) => {
        const i = this.lanes[n][lane], top = paired ? y + 1 + n * (each + 1) : y;
        if (i < 0) return;
        if (paired && names[n].length < 3) {
          ctx.font = theme.font(9);
          ctx.fillStyle = theme.soft;
          ctx.fillText(names[n], this.axis.x0 - 10, top + each / 2 + 3);
        }
        ctx.save();
        ctx.beginPath();
        ctx.rect(this.axis.x0 - 1, y - 1, w - this.axis.x0 + 1, this.rowHigh);
        ctx.clip();
        this.lane(ctx, film, i, top, each);
        ctx.restore();
      });
    }
    if (!this.n) {
      ctx.fillStyle = theme.soft;
      ctx.fillText(film.requests.n ? "No request passes the filter." : "Requests appear with the first step.", 5, 22);
    }
    ctx.restore();
    this.ticks(ctx, base, w);
    this.divergence(ctx, base);
    if (app.g < 0) return;
    const x = (this.left(film, k) + this.right(film, k)) / 2;
    if (x >= this.axis.x0 - 1 && x <= this.axis.x1 + 1) {
      cursorLine(ctx, theme, x, 0, base + 3);
      const label = String(k);
      ctx.font = theme.font(11, 600);
      const wide = ctx.measureText(label).width + 8, at = clamp(x - wide / 2, 0, w - wide);
      ctx.fillStyle = theme.sel;
      box(ctx, at, base + 3, wide, 15, 3);
      ctx.fill();
      ctx.fillStyle = theme.bg;
      ctx.fillText(label, at + 4, base + 14);
    }
  }

  /** One request of one run, in the rectangle that begins at y and is `high` tall. */
  lane(ctx, film, i, y, high) {
    const { theme, k } = this.app, { runs, requests: r, events, about } = film, { x0, x1 } = this.axis;
    const middle = y + high / 2, tall = Math.round(high * 0.7), low = Math.max(3, Math.round(high * 0.42));
    const fill = (from, to, top, tallness, colour, apart) => {
      for (const [a, b, alpha] of [[from, Math.min(to, k), 1], [Math.max(from, k + 1), to, FAINT]]) {
        if (a > b) continue;
        const left = this.left(film, a), right = this.right(film, b);
        if (right < x0 || left > x1) continue;
        ctx.globalAlpha = alpha;
        ctx.fillStyle = colour;
        const each = (right - left) / (b - a + 1);
        if (!apart || each < 3.2) {
          ctx.fillRect(left, top, Math.max(right - left - (each < 1.5 ? 0 : 0.8), 0.8), tallness);
          continue;
        }
        ctx.beginPath();
        const begin = Math.max(a, this.stepAt(x0) - 1), end = Math.min(b, this.stepAt(x1) + 1);
        for (let step = begin; step <= end; step++) {
          const l = this.left(film, step), wide = Math.max(this.right(film, step) - l - 0.8, 0.8);
          if (each > 7) ctx.roundRect(l + 0.4, top, wide, tallness, 1.5);
          else ctx.rect(l + 0.4, top, wide, tallness);
        }
        ctx.fill();
      }
    };
    film.waits(i, (from, to) => fill(from, to, middle - 1.5, 3, theme.wait, false));
    for (let run = r.run[i]; run >= 0; run = runs.next[run]) {
      const kind = runs.kind[run], a = runs.first[run], b = runs.last[run];
      if (kind === PREFILL) fill(a, b, middle - tall / 2, tall, theme.pre, true);
      else if (kind === DECODE) fill(a, b, middle - low / 2, low, theme.dec, true);
      else {
        ctx.globalAlpha = a <= k ? 1 : FAINT;
        ctx.strokeStyle = theme.dec;
        ctx.lineWidth = 1;
        const left = this.left(film, a);
        ctx.strokeRect(left + 0.9, middle - low / 2 + 0.5, Math.max(this.right(film, b) - left - 1.8, 1), low - 1);
      }
    }
    for (let e = r.mark[i]; e >= 0; e = events.next[e]) {
      const kind = about.events[events.kind[e]], step = events.step[e];
      ctx.globalAlpha = step <= k ? 1 : FAINT;
      if (kind === "reused" && events.value[e] > 0) {
        ctx.fillStyle = theme.hit;
        ctx.fillRect(this.left(film, step), middle - tall / 2, 3, tall);
      } else if (kind === "preempted") {
        const x = this.right(film, step);
        ctx.fillStyle = theme.ghost;
        ctx.beginPath();
        ctx.moveTo(x - 4, middle - tall / 2 - 1);
        ctx.lineTo(x + 4, middle - tall / 2 - 1);
        ctx.lineTo(x, middle + 2);
        ctx.fill();
      } else if (kind === "finished") {
        const x = this.right(film, step) + 1.5, reason = about.reasons[events.value[e]];
        const bad = reason === "abort" || reason === "error", s = Math.min(3.5, high / 3);
        ctx.strokeStyle = reason === "error" ? theme.fault : bad ? theme.ink : theme.soft;
        ctx.lineWidth = bad ? 1.6 : 1.5;
        ctx.beginPath();
        if (bad) {
          for (const d of [-s, s]) {
            ctx.moveTo(x + 1, middle + d);
            ctx.lineTo(x + 1 + 2 * s, middle - d);
          }
        } else {
          ctx.moveTo(x, middle - tall / 2);
          ctx.lineTo(x, middle + tall / 2);
        }
        ctx.stroke();
      }
    }
    ctx.globalAlpha = 1;
    ctx.lineWidth = 1;
  }

  ticks(ctx, base, w) {
    const { theme, film } = this.app, { axis } = this;
    ctx.fillStyle = theme.line;
    ctx.fillRect(axis.x0, base + 0.5, w - axis.x0, 1);
    ctx.font = theme.font(10.5);
    ctx.fillStyle = theme.soft;
    if (this.byTime && film.timed) return timeTicks(ctx, film, axis, base, w);
    const by = Math.max(1, niceStep(1 / axis.scale, 44));
    for (let at = Math.ceil(axis.a / by) * by; at <= axis.b; at += by) {
      const label = String(at), wide = ctx.measureText(label).width, x = axis.x(at + 0.5) - wide / 2;
      if (x >= axis.x0 - 6 && x + wide <= w) ctx.fillText(label, x, base + 14);
    }
  }

  divergence(ctx, base) {
    const { divergence } = this.app.session.status, { theme, film } = this.app;
    if (!divergence || !this.paired) return;
    const x = this.left(film, divergence.step);
    if (x < this.axis.x0 || x > this.axis.x1) return;
    ctx.strokeStyle = ctx.fillStyle = theme.ghost;
    ctx.setLineDash([4, 3]);
    ctx.beginPath();
    ctx.moveTo(x, 0);
    ctx.lineTo(x, base);
    ctx.stroke();
    ctx.setLineDash([]);
    diamond(ctx, x, base + 1, 4);
  }

  hover(x, y) {
    const lane = this.laneAt(y);
    if (lane < 0 || x < 0) return null;
    const n = this.paired && (y + this.top - 2) % this.rowHigh > this.rowHigh / 2 ? 1 : 0, i = this.lanes[n][lane];
    if (i < 0) return [`r${this.rid(lane)}`, "is not in this run"];
    return this.app.aboutRequest(this.films[n], i, x < this.axis.x0 ? this.app.k : this.stepAt(x));
  }

  drawn(n = this.films.indexOf(this.app.film)) {
    const film = this.films[n], { requests: r, runs, events, about } = film;
    return Array.from(this.lanes[n]).filter((i) => i >= 0).map((i) => {
      const lane = { rid: r.rid[i], boxes: [], waiting: [], reused: [], preempted: [], finished: null, reason: null };
      for (let run = r.run[i]; run >= 0; run = runs.next[run]) {
        const span = runs.last[run] - runs.first[run] + 1;
        for (let s = 0; s < span; s++)
          lane.boxes.push([runs.first[run] + s, runs.kind[run], runs.length[run] / span]);
      }
      film.waits(i, (from, to) => lane.waiting.push([from, to]));
      for (let e = r.mark[i]; e >= 0; e = events.next[e]) {
        const kind = about.events[events.kind[e]];
        if (kind === "reused") lane.reused.push([events.step[e], events.value[e]]);
        if (kind === "preempted") lane.preempted.push(events.step[e]);
        if (kind === "finished") [lane.finished, lane.reason] = [events.step[e], about.reasons[events.value[e]]];
      }
      return lane;
    });
  }
}

/** Times under an axis; where time is folded, two strokes through the axis say so. */
function timeTicks(ctx, film, axis, base, w) {
  const { from, to } = film.folds, by = niceStep(1 / axis.scale, 70);
  for (let i = 0, begin = -Infinity; i <= from.length; begin = to[i++]) {
    const end = i < from.length ? from[i] : Infinity, shift = begin > -Infinity ? begin - film.drawnTime(begin) : 0;
    const first = Math.max(begin, axis.a + shift), last = Math.min(end, axis.b + shift);
    for (let at = Math.ceil(first / by) * by; at <= last; at += by) {
      const label = duration(at, by), wide = ctx.measureText(label).width, x = axis.x(at - shift) - wide / 2;
      if (x >= axis.x0 - 6 && x + wide <= w) ctx.fillText(label, x, base + 14);
    }
    if (i === from.length) return;
    const x = axis.x((film.drawnTime(from[i]) + film.drawnTime(to[i])) / 2);
    if (x < axis.x0 || x > w) continue;
    for (const dx of [-2, 2]) {
      ctx.beginPath();
      ctx.moveTo(x + dx - 2, base + 4);
      ctx.lineTo(x + dx + 2, base - 3);
      ctx.strokeStyle = ctx.fillStyle;
      ctx.stroke();
    }
  }
}

/** The last step, counted from the first kept, that begins at or before a drawn time. */
function searchTime(film, time) {
  let low = 0, high = film.count - 1;
  while (low < high) {
    const mid = (low + high + 1) >> 1;
    if (film.drawnTime(film.steps.t0[mid]) <= time) low = mid;
    else high = mid - 1;
  }
  return low;
}

function box(ctx, x, y, w, high, r) {
  ctx.beginPath();
  ctx.roundRect(x, y, Math.max(w, 0), high, Math.min(r, Math.max(w, 0) / 2));
}

function diamond(ctx, x, y, r) {
  ctx.beginPath();
  ctx.moveTo(x, y - r);
  ctx.lineTo(x + r, y);
  ctx.lineTo(x, y + r);
  ctx.lineTo(x - r, y);
  ctx.fill();
}

/** The batch of one step: its budget, each request's life in tokens, and why the others wait. */
class Step extends View {
  constructor(app) {
    super(app, "step", "This step");
    this.bar = this.canvas(this.body, 20);
    this.pool = [];
    this.items = new I(0);
    this.lines = new Uint8Array(0);
    this.tops = new I(1);
    this.inner = h("div.inner");
    this.top = 0; // asking an element for it would lay out the page in every step
    this.list = h("div.list", {
      onscroll: () => this.scrolled(), tabIndex: 0, role: "list", "aria-label": "Requests of this step",
    }, this.inner);
    this.card = h("div.card");
    this.plan = h("div.plan", { hidden: true });
    this.body.append(this.list, this.plan, this.card);
    this.explain([["hit", "reused"], ["pre", "prefilled"], ["dec", "decoded"], ["free", "still to come"],
      ["now", "in this step"]]);
    this.listen(this.bar, {
      hover: (x) => {
        const at = this.segmentAt(x);
        return at < 0 ? null : this.app.aboutRow(this.order[at]);
      },
      click: (x) => {
        const at = this.segmentAt(x);
        if (at >= 0) app.select(this.app.film.rows.rid[this.order[at]]);
      },
      walk: (by) => app.walkSelection(by),
    });
  }

  update() {
    const { app } = this, { film, g, k } = app, { steps, rows } = film;
    const from = g < 0 ? 0 : steps.rows[g], to = g < 0 ? 0 : steps.rows[g + 1];
    // prefills first: few and wide, so that what is left to read stands together
    const order = [];
    for (const kind of [PREFILL, DECODE, ZOMBIE])
      for (let i = from; i < to; i++) if (rows.kind[i] === kind) order.push(i);
    this.order = order;
    this.used = g < 0 ? 0 : steps.tokens[g];
    this.budget = Math.max(film.about.max_step_tokens || 0, this.used, 1);
    say(this.note, g < 0 ? "" : `${num(this.used)} of ${count(this.budget, "token")} · ${count(order.length, "row")}`);
    this.refusals = new Map(); // rid -> rows of refusals
    this.refused = [];
    if (g >= 0)
      for (let i = steps.refusals[g]; i < steps.refusals[g + 1]; i++) {
        const rid = film.refusals.rid[i];
        if (!this.refusals.has(rid)) this.refusals.set(rid, []);
        this.refusals.get(rid).push(i);
        if (!OF_RUNNING.has(film.about.why[film.refusals.why[i]]?.[0])) this.refused.push(rid);
      }
    this.collect(film, k, from, to);
    const px = `${this.tops[this.items.length]}px`;
    if (this.inner.style.height !== px) this.inner.style.height = px;
    this.rows();
    this.describe(this.bar, `Step ${k}: ${this.used} of ${this.budget} tokens: `
      + order.slice(0, 8).map((i) => `r${rows.rid[i]} ${rows.length[i]}`).join(", "));
    this.drawPlan();
    this.drawCard();
  }

  /** Whom to list: the batch in its order, then who runs without a row, then the queue. */
  collect(film, k, from, to) {
    const { rows, requests: r } = film, items = [], here = new Set();
    for (let i = from; i < to; i++) {
      const at = film.indexOfRid.get(rows.rid[i]);
      items.push(at);
      here.add(at);
    }
    const idle = [], again = [], queue = [], { seen, finish, admitted } = r;
    for (let i = k < film.first ? 0 : film.steps.over[k - film.first]; i < r.n; i++) {
      if (seen[i] > k || (finish[i] >= 0 && finish[i] < k) || here.has(i)) continue;
      if (finish[i] === k) idle.push(i);
      else if (admitted[i] < 0 || admitted[i] > k) queue.push(i);
      else (film.life(i, k).state === "preempted" ? again : idle).push(i);
    }
    items.push(...idle, ...again);
    this.items = new I(items.length + queue.length);
    this.items.set(items);
    this.items.set(queue, items.length);
    this.again = new Set(again); // preempted, and waiting once more
    const n = this.items.length;
    if (!n) this.top = 0;
    if (this.lines.length < n) {
      this.lines = new Uint8Array(2 * n);
      this.tops = new I(2 * n + 1);
    }
    for (let at = 0; at < n; at++) {
      const i = this.items[at], busy = at < to - from || finish[i] === k;
      this.lines[at] = busy ? 0 : Math.min(9, Math.max(1, this.refusals.get(r.rid[i])?.length || 0));
      this.tops[at + 1] = this.tops[at] + 20 + 15 * this.lines[at];
    }
  }

  /** Every failed check of a request that has no row, in words. */
  why(film, i, k) {
    const r = film.requests, rid = r.rid[i], rows = this.refusals.get(rid);
    if (rows) return rows.map((row) => film.whyText(row));
    if (r.arrival[i] > k) return ["arrived while this step was under way"];
    for (let e = r.mark[i]; e >= 0 && film.events.step[e] <= k; e = film.events.next[e])
      if (film.events.step[e] === k && film.about.events[film.events.kind[e]] === "preempted")
        return ["gave its pages back"];
    const ahead = this.refused.at(-1); // it closed the door behind itself: see trace/explain.py
    return [ahead === undefined ? "not looked at" : `r${ahead} waits before it`];
  }

  doing(film, i, k) {
    const { rows, steps, requests: r, about } = film, g = k - film.first;
    for (let row = steps.rows[g]; row < steps.rows[g + 1]; row++)
      if (rows.rid[row] === r.rid[i])
        return [row, rows.kind[row] === ZOMBIE ? "result dropped"
          : `${rows.kind[row] === PREFILL ? "prefill" : "decode"} +${num(rows.length[row])}`];
    if (r.finish[i] === k) return [-1, `ended: ${about.reasons[r.reason[i]]}`];
    const waits = r.admitted[i] < 0 || r.admitted[i] > k || this.again.has(i);
    return [-1, waits ? "waits" : "runs, no row"];
  }

  /** Fill as many reused elements as are in sight. */
  rows() {
    const { app } = this, { film, k } = app, { top } = this, high = this.listHigh || 200;
    let first = 0;
    while (first < this.items.length && this.tops[first + 1] <= top) first++;
    let used = 0;
    for (let n = first; n < this.items.length && this.tops[n] < top + high; n++, used++) {
      const row = this.pool[used] || (this.pool[used] = this.makeRow()), i = this.items[n], rid = film.requests.rid[i];
      row.rid = rid;
      row.el.hidden = false;
      row.el.style.transform = `translateY(${this.tops[n]}px)`;
      row.el.style.height = `${this.tops[n + 1] - this.tops[n]}px`;
      row.el.classList.toggle("msgl-chosen", rid === app.selected);
      say(row.name, `r${rid}`);
      const life = film.life(i, k), [at, doing] = this.doing(film, i, k), share = (n) => `${100 * n / life.total}%`;
      say(row.doing, doing);
      const ends = [life.reused, life.reused + life.prefilled, life.reused + life.prefilled + life.decoded];
      row.parts.forEach((part, p) => {
        part.style.left = share(p ? ends[p - 1] : 0);
        part.style.width = share(ends[p] - (p ? ends[p - 1] : 0));
      });
      row.now.hidden = at < 0;
      if (at >= 0) {
        row.now.style.left = share(film.rows.start[at]);
        row.now.style.width = `max(2px, ${share(film.rows.length[at])})`;
      }
      row.bar.title = `${num(life.reused)} reused, ${num(life.prefilled)} prefilled, ${num(life.decoded)} decoded, `
        + `of at most ${num(life.total)} positions`;
      const why = this.lines[n] ? this.why(film, i, k) : [];
      say(row.why, why.slice(0, 9).join("\n"));
      row.why.title = why.join("\n");
    }
    for (; used < this.pool.length; used++) this.pool[used].el.hidden = true;
  }

  makeRow() {
    const row = { name: h("span.name"), doing: h("span.doing"), why: h("div.why") };
    row.parts = ["hit", "pre", "dec"].map((key) => h(`i.p-${key}`));
    row.now = h("i.p-now");
    row.bar = h("span.bar", {}, h("span.fill", {}, ...row.parts), row.now);
    row.el = h("div.row", { role: "listitem", onclick: () => this.app.select(row.rid) },
      row.name, row.bar, row.doing, row.why);
    this.inner.append(row.el);
    return row;
  }

  paint() {
    const ctx = this.begin(this.bar), { theme, film, selected } = this.app;
    if (!ctx) return;
    const w = this.bar.wide, unit = w / this.budget, { rows } = film;
    ctx.fillStyle = theme.free;
    box(ctx, 0, 0, w, 20, 4);
    ctx.fill();
    ctx.save();
    ctx.clip();
    ctx.font = theme.font(10.5);
    this.edges = [];
    let x = 0;
    for (const i of this.order) {
      const wide = Math.max(rows.length[i] * unit, Math.min(3, w / this.order.length));
      const kind = rows.kind[i], gap = wide > 2.5 ? 1 : 0;
      if (kind === ZOMBIE) {
        ctx.strokeStyle = theme.dec;
        ctx.strokeRect(x + 0.5, 0.5, Math.max(wide - gap - 1, 0.5), 19);
      } else {
        ctx.fillStyle = kind === PREFILL ? theme.pre : theme.dec;
        ctx.fillRect(x, 0, wide - gap, 20);
      }
      ctx.fillStyle = kind === PREFILL ? theme.onPre : kind === ZOMBIE ? theme.ink : theme.onDec;
      const label = [`r${rows.rid[i]} ${num(rows.length[i])}`, `r${rows.rid[i]}`].find((text) =>
        ctx.measureText(text).width + 9 <= wide);
      if (label) ctx.fillText(label, x + 5, 14);
      if (rows.rid[i] === selected) {
        ctx.strokeStyle = theme.sel;
        ctx.lineWidth = 2;
        if (wide > 9) ctx.strokeRect(x + 1, 1, wide - gap - 2, 18);
        else ctx.strokeRect(x - 1.5, 1, wide - gap + 3, 18); // around it, or nothing of it would be left
        ctx.lineWidth = 1;
      }
      this.edges.push((x += wide));
    }
    ctx.restore();
  }

  segmentAt(x) {
    return x < 0 || !this.edges ? -1 : this.edges.findIndex((edge) => x < edge);
  }

  /** The selected request: what it is, its text so far, and what can be done to it. */
  drawCard() {
    const { app } = this, { film, k, selected } = app, i = film.indexOfRid.get(selected);
    const card = this.card;
    if (selected == null || i === undefined || film.requests.seen[i] > k) {
      const hint = selected == null ? "Select a request to read it here." : `r${selected} is not here yet.`;
      if (card.key !== hint) card.replaceChildren(h("span.hint", { textContent: hint }));
      card.key = hint;
      return;
    }
    const r = film.requests, { events } = film;
    const ids = [];
    for (let e = r.sampled[i]; e >= 0 && events.step[e] <= k; e = events.next[e]) ids.push(events.value[e]);
    const life = film.life(i, k), key = [film.version, selected, k, app.live, app.session.run].join("|");
    if (card.key === key) return;
    card.key = key;
    const over = r.finish[i] >= 0 && r.finish[i] <= k;
    const facts = [count(r.prompt_len[i], "prompt token"), `${num(life.reused)} reused`,
      `${num(ids.length)} of ${num(Math.max(1, r.max_tokens[i]))} sampled`];
    if (life.preemptions) facts.push(`preempted ${num(life.preemptions)}×`);
    if (over) facts.push(`ended at step ${r.finish[i]}: ${film.about.reasons[r.reason[i]]}`);
    const head = h("div.cardhead", {}, h("b", { textContent: `r${selected}` }),
      h("span.soft", { textContent: facts.join(" · ") }));
    if (app.live && !over && app.session.atHead)
      head.append(app.button("Abort", "end this request now", () => app.command("abort", { rid: selected })));
    if (app.live && !app.session.runStatus.served)
      head.append(app.button("Skip its arrival", "run everything again without this request, as a new run",
        () => app.command("skip", { rid: selected })));
    const prompt = film.promptText(i), out = film.text(ids, 0, ids.length);
    const middle = prompt.length > 900 ? `${prompt.slice(0, 450)} … ${prompt.slice(-400)}` : prompt;
    const none = film.about.redacted ? "The text was left out of this film." : "";
    const words = h("div.words", {}, h("span.soft", { textContent: middle || out ? middle : none }),
      h("span.out", { textContent: out.slice(-1200) }));
    card.replaceChildren(head, words);
    words.scrollTop = words.scrollHeight;
  }

  /** What the engine would launch next, to be edited and launched. */
  drawPlan() {
    const { app } = this, { plan, busy } = app.session.runStatus, { plan: el } = this;
    el.hidden = !app.live || !!app.session.runStatus.served;
    if (el.hidden) return;
    const head = app.session.atHead, key = JSON.stringify([plan, head, busy]);
    if (el.key === key) return;
    el.key = key;
    const title = h("span.planhead", { textContent: "Next" });
    if (!head || !plan) {
      el.replaceChildren(title, h("span.planhint", {
        textContent: head ? "nothing to run" : "go to the last step to see, edit and launch what comes next",
      }));
      return;
    }
    const boxes = [];
    const chip = ([rid, n], on) => {
      const input = h("input", { type: "checkbox", checked: on, onchange: () => able() });
      boxes.push([input, rid, n]);
      const title = on ? "leave out of the next batch" : "add to the next batch";
      return h("label.chip", { title }, input, `r${rid} +${num(n)}`);
    };
    const launch = app.button("Launch", "run exactly these rows next", () =>
      app.command("launch", {
        rows: boxes.filter(([input]) => input.checked).map(([, rid, n]) => [rid, n]), preempt: plan.preempt || [],
      }));
    const able = () => (launch.disabled = !!busy || !boxes.some(([input]) => input.checked));
    const chips = plan.rows.map((row) => chip(row, true)).concat((plan.addable || []).map((row) => chip(row, false)));
    const victims = (plan.preempt || []).map((rid) => `r${rid} gives its pages back first`);
    able();
    el.replaceChildren(title, h("span.planhint", { textContent: "what would be launched: leave out, or add" }), launch,
      h("div.chips", {}, ...chips),
      h("div.planwhy", { textContent: victims.concat(plan.refusals || []).join("\n") }));
  }

  drawn() {
    const { film, k } = this.app, { rows, requests: r } = film;
    return {
      step: k, budget: this.budget, used: this.used,
      rows: this.order.map((i) => [rows.rid[i], rows.start[i], rows.length[i], rows.kind[i]]),
      life: Array.from(this.items, (i) => ({ rid: r.rid[i], ...film.life(i, k) })),
      why: Object.fromEntries(Array.from(this.items).filter((_, n) => this.lines[n])
        .map((i) => [r.rid[i], this.why(film, i, k)])),
    };
  }
}

/** The next of 1, 1.5, 2, 3, 4, 6, 8, 12, ... */
const roomy = (n) => {
  const power = 2 ** Math.floor(Math.log2(n));
  return n <= power ? power : n <= 1.5 * power ? 1.5 * power : 2 * power;
};

const EVICTABLE = 0, HELD = 1, GONE = 2; // what a node is
const NODE_WORDS = ["evictable", "held", "evicted"];
const NARROW = 2; // pixels below which nodes are drawn together

/** What the prefix cache can find: an icicle whose widths are tokens, or the same as a graph. */
class Tree extends View {
  constructor(app) {
    super(app, "tree", "Radix tree");
    this.links = false;
    this.choice(["icicle", "links"], "icicle", (name) => {
      this.links = name === "links";
      this.shape = null;
    }, "shape");
    this.axis = new Axis();
    this.canvasEl = this.canvas(this.body, 188);
    this.old = new Map(); // node id -> [x, width, y] as drawn last
    this.explain([["pre", "held"], ["cache", "evictable"], ["hitedge", "just hit"], ["new", "just inserted"],
      ["ghost", "just evicted"]]);
    this.listen(this.canvasEl, {
      ...this.gestures(() => this.axis, () => 2),
      hover: (x, y) => {
        const slot = this.slotAt(x, y);
        if (slot !== this.lit) {
          this.lit = slot;
          app.paint(this);
        }
        return slot < 0 ? null : this.lines(slot);
      },
      click: (x, y) => {
        const slot = this.slotAt(x, y), maker = slot < 0 ? -1 : app.session.state.nodes.maker[slot];
        if (maker >= 0) app.select(maker);
      },
      walk: (by) => this.walk(by),
    });
    this.lit = -1;
  }

  update(moved) {
    const { app } = this, { film, k, g } = app, state = app.session.state.go(k), { nodes } = state;
    this.state = state;
    this.held = state.nodeHolders();
    const before = this.k, steps = Math.abs((before ?? k) - k);
    this.k = k;
    this.setHeight(this.canvasEl, clamp(Math.max(app.pages.needs, film.mostLevels * 27 + 4), 118, 200));
    if (this.shape !== state.shape || this.owner !== state) this.arrange(state);
    this.shape = state.shape;
    this.owner = state;
    // The scale follows the most that was ever cached, in a few large steps: a node keeps its width.
    const whole = this.links ? roomy(this.leaves) : roomy(Math.max(g < 0 ? 0 : film.steps.peak[g], this.extent, 1));
    const a = this.axis;
    Object.assign(a, { lo: 0, hi: whole });
    if (!a.custom) Object.assign(a, { a: 0, b: whole });
    a.pan(0);
    let tokens = 0, held = 0, live = 0;
    const { page_size } = film.about, { gone, size } = nodes, { order, held: holders } = this;
    for (let j = 0; j < order.length; j++) {
      const slot = order[j];
      if (gone[slot]) continue;
      live++;
      tokens += size[slot] * page_size;
      if (holders[slot]) held += size[slot] * page_size;
    }
    say(this.note, live ? `${count(live, "node")} · ${num(tokens)} tokens, ${num(held)} held` : "nothing cached");
    this.describe(this.canvasEl, `Radix tree after step ${k}: ${count(live, "node")}, ${num(tokens)} tokens cached, `
      + `${num(held)} held, ${state.ghosts.length + state.fading.length} nodes just evicted`);
    // one step on or back moves what moved; a jump shows the new state at once
    this.animate = moved && steps === 1 && !app.theme.still && !app.fast && this.order.length < 1500;
    if (this.animate) this.began = performance.now();
  }

  /** Where each node stands: `x` and `ext` in pages (or leaves), `level` from the root. */
  arrange(state) {
    const { nodes } = state, n = nodes.n, { up } = nodes, room = this.room(n);
    const { level, ext, x, own, next, child, order } = room, kids = room.kids.fill(0, 0, n + 2);
    const by = this.sorted(nodes, n), m = by.length;
    // children of row s: child[kids[s + 1] .. kids[s + 2]]; of the root: child[kids[0] .. kids[1]]
    for (let j = 0; j < m; j++) kids[up[by[j]] + 2]++;
    for (let i = 1; i < n + 2; i++) kids[i] += kids[i - 1];
    const at = room.at;
    at.set(kids.subarray(0, n + 1));
    for (let j = 0; j < m; j++) child[at[up[by[j]] + 1]++] = by[j];
    const stack = room.stack;
    let high = 0, out = 0;
    this.levels = 0;
    for (let i = kids[1] - 1; i >= kids[0]; i--) stack[high++] = child[i];
    while (high) {
      const slot = stack[--high];
      order[out++] = slot;
      level[slot] = up[slot] < 0 ? 0 : level[up[slot]] + 1;
      if (level[slot] >= this.levels) this.levels = level[slot] + 1;
      for (let i = kids[slot + 2] - 1; i >= kids[slot + 1]; i--) stack[high++] = child[i];
      own[slot] = nodes.size[slot];
      ext[slot] = next[slot] = 0;
    }
    for (const lost of [state.lost, state.lostBefore]) for (const [slot, pages] of lost) own[slot] += pages;
    for (let j = out - 1; j >= 0; j--) {
      const slot = order[j], least = this.links ? 1 : own[slot];
      if (ext[slot] < least) ext[slot] = least;
      if (up[slot] >= 0) ext[up[slot]] += ext[slot];
    }
    let right = 0;
    for (let j = 0; j < out; j++) {
      const slot = order[j], parent = up[slot];
      if (parent < 0) {
        x[slot] = right;
        right += ext[slot];
      } else {
        x[slot] = x[parent] + next[parent];
        next[parent] += ext[slot];
      }
    }
    this.extent = right;
    this.leaves = Math.max(right, 1);
    Object.assign(this, { order: order.subarray(0, out), level, ext, x, own, parent: up });
  }

  /** Arrays for n rows, the same ones as long as they are long enough. */
  room(n) {
    if (!this.arrays || this.arrays.length < n) {
      const length = Math.ceil(1.25 * n) + 64, arrays = (this.arrays = { length });
      for (const name of ["level", "kids", "at", "child", "order", "stack", "one", "other"])
        arrays[name] = new I(length + 2);
      for (const name of ["ext", "x", "own", "next"]) arrays[name] = new F(length);
      arrays.counts = new I(65537);
    }
    return this.arrays;
  }

  /** The rows of all nodes that are shown, by `order`, then by row: a radix sort. */
  sorted(nodes, n) {
    const { one, other, counts } = this.arrays, { order, size } = nodes;
    let m = 0, most = 0;
    for (let slot = 0; slot < n; slot++) {
      if (!size[slot]) continue;
      one[m++] = slot;
      if (order[slot] > most) most = order[slot];
    }
    let from = one, to = other;
    for (let digit = 0; digit === 0 || most >= 2 ** digit; digit += 16) {
      counts.fill(0);
      for (let j = 0; j < m; j++) counts[(order[from[j]] >>> digit & 65535) + 1]++;
      for (let i = 1; i < 65537; i++) counts[i] += counts[i - 1];
      for (let j = 0; j < m; j++) to[counts[order[from[j]] >>> digit & 65535]++] = from[j];
      [from, to] = [to, from];
    }
    return from.subarray(0, m);
  }

  get rowHigh() {
    return clamp(Math.floor((this.canvasEl.high - 4) / Math.max(1, this.levels)), 5, this.links ? 64 : 27);
  }

  /** Pixels of a node: left, width, top. */
  place(slot) {
    const high = this.rowHigh, y = 2 + this.level[slot] * high;
    const { axis } = this;
    if (!this.links) return [axis.x(this.x[slot]), this.own[slot] * axis.scale, y, this.ext[slot] * axis.scale];
    return [axis.x(this.x[slot] + this.ext[slot] / 2), this.radius(slot), y + Math.min(high / 2, 12)];
  }

  radius(slot) {
    return clamp(Math.sqrt(this.own[slot] * this.app.film.about.page_size) * 0.7, 2.5, Math.min(9, this.rowHigh / 2.6));
  }

  what(slot) {
    return this.state.nodes.gone[slot] ? GONE : this.held[slot] ? HELD : EVICTABLE;
  }

  colour(slot) {
    const { theme } = this.app;
    return [theme.cache, theme.pre, "transparent"][this.what(slot)];
  }

  paint() {
    const ctx = this.begin(this.canvasEl), { app, axis } = this;
    if (!ctx || !this.order) return;
    const { theme, film } = app;
    axis.x0 = 1;
    axis.x1 = this.canvasEl.wide - 1;
    let t = 1;
    if (this.animate) {
      const p = clamp((performance.now() - this.began) / 220, 0, 1);
      t = 1 - (1 - p) ** 3;
      if (p < 1) app.paint(this);
      else this.animate = false;
    }
    if (!this.order.length) {
      ctx.fillStyle = theme.soft;
      const naive = film.about.config.some(([name, value]) => name === "prefix_cache" && value === "naive");
      ctx.fillText(naive ? "This run has no prefix cache." : "Nothing is cached yet.", 1, 16);
      this.old.clear();
      return;
    }
    const now = new Map();
    (this.links ? this.paintLinks : this.paintIcicle).call(this, ctx, t, now);
    if (t === 1) this.old = now;
  }

  /** Between where a node was drawn and where it belongs. */
  between(slot, place, t, now) {
    const id = this.state.nodes.id[slot], before = this.old.get(id);
    now.set(id, place);
    if (t === 1) return place;
    if (!before) return place.map((value, i) => i === 1 ? value * t : value);
    return place.map((value, i) => (before[i] ?? value) + (value - (before[i] ?? value)) * t);
  }

  paintIcicle(ctx, t, now) {
    const { app, axis, state } = this, { theme } = app;
    const high = this.rowHigh, tall = Math.max(high - (high > 9 ? 3 : 1), 3);
    // nodes too narrow to see: one run of pixels for each row, coloured by the liveliest
    const wide = Math.ceil(this.canvasEl.wide), cells = new Uint8Array(wide * this.levels);
    // the loop over all nodes is the longest of a move of the cursor: nothing in it is looked up twice
    const { order, x, own, ext, level, held } = this, { gone } = state.nodes, { a, x0, x1, scale } = axis;
    const hits = state.stampHit, some = hits.size > 0;
    let narrow = 0;
    for (let j = 0; j < order.length; j++) {
      const slot = order[j], left = x0 + (x[slot] - a) * scale, width = own[slot] * scale, span = ext[slot] * scale;
      if (left > x1 || left + span < 0) continue;
      if (span >= NARROW && (width >= NARROW || span > width + 1)) {
        this.node(ctx, slot, this.between(slot, [left, width, 2 + level[slot] * high, span], t, now), tall);
        if (width >= NARROW) continue;
      }
      narrow++;
      const rank = some && hits.has(slot) ? 4 : gone[slot] ? 1 : held[slot] ? 3 : 2, at = level[slot] * wide;
      const end = Math.min(wide - 1, left + width);
      for (let px = left > 0 ? left | 0 : 0; px <= end; px++) if (cells[at + px] < rank) cells[at + px] = rank;
    }
    this.narrow = narrow;
    if (narrow) {
      const colours = [null, theme.ghost, theme.cache, theme.pre, theme.hit];
      for (let row = 0; row < this.levels; row++)
        for (let px = 0; px < wide;) {
          const rank = cells[row * wide + px];
          let end = px + 1;
          while (end < wide && cells[row * wide + end] === rank) end++;
          if (rank) {
            ctx.fillStyle = colours[rank];
            ctx.fillRect(px, 2 + row * high, end - px, rank === 1 ? 1 : tall);
          }
          px = end;
        }
    }
  }

  /** A node: as wide as its tokens; the pale part only spans what continues it. */
  node(ctx, slot, [left, width, y, span], tall) {
    const { app, state } = this, { theme, film } = app, { nodes } = state, what = this.what(slot);
    const lost = what === GONE ? this.own[slot] : state.lostBy(slot);
    const gone = width * lost / (this.own[slot] || 1), w = Math.max(width - gone - 1, 0);
    if (span > width + 1 && what !== GONE) {
      ctx.globalAlpha = 0.22;
      ctx.fillStyle = this.colour(slot);
      ctx.fillRect(left + Math.max(w - 2, 0), y, span - 1 - Math.max(w - 2, 0), tall);
      ctx.globalAlpha = 1;
    }
    if (width < NARROW) return this.caption(ctx, slot, left, y, width, span, tall, theme.ink);
    if (gone > 0) {
      ctx.strokeStyle = theme.ghost;
      ctx.setLineDash([4, 3]);
      box(ctx, left + width - gone + 0.5, y + 0.5, Math.max(gone - 2, 1), tall - 1, 3);
      ctx.stroke();
      ctx.setLineDash([]);
    }
    if (what !== GONE) {
      ctx.fillStyle = this.colour(slot);
      box(ctx, left, y, Math.max(w, 0.8), tall, 3);
      ctx.fill();
      if (state.stampHit.has(slot)) {
        ctx.fillStyle = theme.hit;
        box(ctx, left, y, Math.min(4, w), tall, 2);
        ctx.fill();
      }
      if (state.stampNew.has(slot)) {
        ctx.strokeStyle = theme.sel;
        ctx.lineWidth = 1.2;
        box(ctx, left + 0.6, y + 0.6, Math.max(w - 1.2, 0.5), tall - 1.2, 3);
        ctx.stroke();
        ctx.lineWidth = 1;
      }
    }
    const mine = app.selected != null && nodes.maker[slot] === app.selected;
    if (mine || slot === this.lit) {
      ctx.strokeStyle = theme.sel;
      ctx.lineWidth = mine ? 2 : 1;
      box(ctx, left + 0.5, y + 0.5, Math.max(width - 2, 1), tall - 1, 3);
      ctx.stroke();
      ctx.lineWidth = 1;
    }
    const text = what === GONE ? theme.ghost : what === HELD ? theme.onPre : theme.onCache;
    this.caption(ctx, slot, left, y, width, span, tall, text);
  }

  /** How many tokens, and which, as far as there is room. */
  caption(ctx, slot, left, y, width, span, tall, colour) {
    if (span < 24 || tall < 13) return;
    const { app, state } = this, { theme, film } = app, tokens = num(state.nodes.size[slot] * film.about.page_size);
    const begin = Math.max(left, 0) + (width < 12 ? width + 4 : 8), room = Math.min(left + span, this.axis.x1) - begin - 5;
    ctx.font = theme.font(11, 600);
    const wide = ctx.measureText(tokens).width;
    if (wide > room) return;
    ctx.fillStyle = colour;
    ctx.fillText(tokens, begin, y + tall / 2 + 4);
    ctx.font = theme.font(11);
    const text = room - wide > 32 ? fit(ctx, state.nodeText(slot).trimStart(), room - wide - 6) : "";
    ctx.fillText(text, begin + wide + 6, y + tall / 2 + 4);
  }

  paintLinks(ctx, t, now) {
    const { app, axis, state } = this, { theme, selected } = app, { nodes } = state;
    const placed = new Map(), shown = [], unit = axis.scale, seen = new Set();
    this.narrow = 0;
    for (const slot of this.order) {
      const up = this.parent[slot];
      if (up >= 0 && !placed.has(up)) continue; // inside something that is drawn as one
      const place = this.place(slot);
      // neighbours that would fall onto each other are one dot
      if (this.ext[slot] * unit < 5) {
        this.narrow++;
        const cell = this.level[slot] * 100000 + Math.round(place[0] / 5);
        if (seen.has(cell)) continue;
        seen.add(cell);
      }
      placed.set(slot, this.between(slot, place, t, now));
      shown.push(slot);
    }
    ctx.strokeStyle = theme.wait;
    ctx.beginPath();
    for (const slot of shown) {
      const up = placed.get(this.parent[slot]), [x, , y] = placed.get(slot);
      if (!up) continue;
      ctx.moveTo(up[0], up[2]);
      ctx.bezierCurveTo(up[0], (up[2] + y) / 2, x, (up[2] + y) / 2, x, y);
    }
    ctx.stroke();
    for (const slot of shown) {
      const [x, r, y] = placed.get(slot), what = this.what(slot);
      if (x < -10 || x > this.canvasEl.wide + 10) continue;
      ctx.beginPath();
      ctx.arc(x, y, Math.max(r, 1), 0, 7);
      ctx.fillStyle = what === GONE ? theme.bg : this.colour(slot);
      ctx.fill();
      if (what === GONE) {
        ctx.strokeStyle = theme.ghost;
        ctx.setLineDash([3, 2]);
        ctx.stroke();
        ctx.setLineDash([]);
      }
      if (state.stampHit.has(slot)) {
        ctx.strokeStyle = theme.hit;
        ctx.lineWidth = 2.5;
        ctx.stroke();
      } else if (state.stampNew.has(slot)) {
        ctx.strokeStyle = theme.sel;
        ctx.lineWidth = 1.2;
        ctx.stroke();
      }
      ctx.lineWidth = 1;
      if (slot === this.lit || (selected != null && nodes.maker[slot] === selected)) {
        ctx.strokeStyle = theme.sel;
        ctx.lineWidth = 1.5;
        ctx.beginPath();
        ctx.arc(x, y, r + 2.5, 0, 7);
        ctx.stroke();
        ctx.lineWidth = 1;
      }
      const room = Math.min(this.ext[slot] * unit - r - 8, this.canvasEl.wide - x - r - 6, 210);
      if (room < 16 || this.rowHigh < 16) continue;
      ctx.font = theme.font(10.5);
      ctx.fillStyle = theme.soft;
      const tokens = num(nodes.size[slot] * app.film.about.page_size), text = `${tokens} ${state.nodeText(slot).trimStart()}`;
      const label = fit(ctx, text, room);
      if (label.length > tokens.length + 4) ctx.fillText(label, x + r + 4, y + 3.5);
      else if (ctx.measureText(tokens).width < room) ctx.fillText(tokens, x + r + 4, y + 3.5);
    }
  }

  slotAt(x, y) {
    if (!this.order || x < 0) return -1;
    const row = Math.floor((y - 2) / this.rowHigh);
    let best = -1, near = this.links ? 12 : 1.5;
    for (const slot of this.order) {
      if (this.level[slot] !== row) continue;
      const [left, width] = this.place(slot);
      const away = this.links ? Math.abs(x - left) : Math.max(left - x, x - left - Math.max(width, 1), 0);
      if (away < near) [near, best] = [away, slot];
    }
    return best;
  }

  lines(slot) {
    const { app, state } = this, { nodes, pages } = state, { film } = app, what = this.what(slot);
    const mine = [], size = film.about.page_size;
    for (let page = 0; page < pages.n && mine.length < 13; page++) if (pages.slot[page] === slot) mine.push(page);
    const held = this.held[slot], text = state.nodeText(slot);
    const more = nodes.size[slot] > mine.length || mine.length > 12 ? ", …" : "";
    return [
      `${count(nodes.size[slot] * size, "token")}, positions ${num(nodes.depth[slot] * size)} to `
        + num((nodes.depth[slot] + nodes.size[slot]) * size - 1),
      text && `“${text}${nodes.said[slot] < nodes.size[slot] * size ? " …" : ""}”`,
      what === GONE ? "just evicted" : !held ? "held by nobody: may be evicted"
        : `held by ${(mine.length && app.pages.names(mine[0])) || count(held, "request")}`,
      what !== GONE && `${mine.length > 1 ? "pages" : "page"} ${mine.slice(0, 12).join(", ")}${more}`,
      `${nodes.maker[slot] >= 0 ? `computed by r${nodes.maker[slot]} · ` : ""}used last in step ${nodes.used[slot]}`,
      state.stampNew.has(slot) && `just inserted: ${count(state.stampNew.get(slot), "page")}`,
      state.stampHit.has(slot) && "just hit",
      what !== GONE && state.lostBy(slot) && `just lost ${count(state.lostBy(slot), "page")}`,
    ].filter(Boolean);
  }

  walk(by) {
    const at = Array.from(this.order).indexOf(this.lit);
    if (!this.order.length) return;
    this.lit = this.order[clamp(at + by, 0, this.order.length - 1)];
    const [x, , y] = this.place(this.lit);
    this.tipAt(this.canvasEl, x + 6, y + 14, this.lines(this.lit));
    this.app.paint(this);
  }

  drawn() {
    const { nodes } = this.state;
    return Array.from(this.order, (slot) => {
      const [x, w, y] = this.place(slot);
      return {
        id: nodes.id[slot], parent: nodes.up[slot] < 0 ? 0 : nodes.id[nodes.up[slot]], depth: nodes.depth[slot], size: nodes.size[slot],
        used: nodes.used[slot], state: NODE_WORDS[this.what(slot)], holders: this.held[slot], x, w, y,
        text: this.state.nodeText(slot), hit: this.state.stampHit.has(slot), inserted: this.state.stampNew.has(slot),
      };
    });
  }
}

const PAGE_STATES = ["free", "held", "evictable", "hit", "inserted", "evicted"];

/** Every page of the pool as a cell, and the pool as one bar above them. */
class Pages extends View {
  constructor(app) {
    super(app, "pages", "KV pages");
    this.mode = "state";
    this.choice(["state", "owner", "age", "holders"], "state", (name) => (this.mode = name), "colour by");
    this.canvasEl = this.canvas(this.body, 188);
    this.cells = new Uint8Array(0); // by page, of PAGE_STATES
    this.shades = this.cells; // the same, but what was just inserted or evicted as what it is now
    this.needs = 0; // pixels of height for all pages
    this.lit = -1;
    this.listen(this.canvasEl, {
      hover: (x, y) => {
        const page = this.pageAt(x, y);
        this.lit = page;
        return page < 0 ? null : this.lines(page);
      },
      click: (x, y) => {
        const page = this.pageAt(x, y), owner = page < 0 ? -1 : this.state.pages.owner[page];
        if (owner >= 0) app.select(owner);
      },
      walk: (by) => {
        this.lit = clamp(this.lit + by, 0, this.cells.length - 1);
        const [x, y] = this.corner(this.lit);
        this.tipAt(this.canvasEl, x + 8, y + 12, this.lines(this.lit));
      },
    });
  }

  update() {
    const { app } = this, { film, k, g } = app, state = app.session.state.go(k);
    const { pages, hitPage, lostPage, newPage } = state;
    this.state = state;
    const n = pages.n;
    if (this.cells.length !== n) [this.cells, this.shades] = [new Uint8Array(n), new Uint8Array(n)];
    const { cells, shades } = this;
    let free = 0, held = 0, evictable = 0, runs = 0, longest = 0, run = 0;
    for (let page = 0; page < n; page++) {
      const holders = pages.holders[page];
      let what, shade = 0;
      if (holders === 0) {
        what = lostPage[page] === g && g >= 0 ? 5 : 0;
        free++;
        if (run++ === 0) runs++;
        if (run > longest) longest = run;
      } else {
        run = 0;
        if (holders === 1 && pages.slot[page] >= 0) {
          what = 2;
          evictable++;
        } else {
          what = 1;
          held++;
        }
        shade = what;
        if (g >= 0) {
          if (hitPage[page] === g) what = shade = 3;
          else if (newPage[page] === g) what = 4;
          else if (lostPage[page] === g) what = 5;
        }
      }
      cells[page] = what;
      shades[page] = shade;
    }
    this.reused = app.selected === null ? new Set() : state.reusedBy(app.selected);
    Object.assign(this, { free, heldPages: held, evictable, runs, longest });
    this.promised = g < 0 ? 0 : film.steps.promised[g];
    this.unused = this.unusedPositions(film, k);
    const wide = n > 12000;
    this.el.classList.toggle("msgl-spread", wide);
    say(this.note, this.unused ? `${count(this.unused, "position")} empty` : "");
    this.note.title = "positions in taken pages that hold nothing yet: what whole pages cost";
    this.legends();
    this.describe(this.canvasEl, `KV pages after step ${k}: ${held} held, ${evictable} evictable, ${free} free, `
      + `${this.promised} promised to running requests; free pages in ${runs} runs`);
  }

  /** Positions in taken pages that hold nothing yet: what whole pages cost. */
  unusedPositions(film, k) {
    const size = film.about.page_size, r = film.requests;
    let unused = 0;
    for (let i = k < film.first ? 0 : film.steps.over[k - film.first]; size > 1 && i < r.n; i++) {
      if (r.admitted[i] < 0 || r.admitted[i] > k || (r.finish[i] >= 0 && r.finish[i] <= k)) continue;
      const life = film.life(i, k), at = life.reused + life.prefilled + life.decoded;
      if (life.state === "running") unused += (size - at % size) % size;
    }
    return unused;
  }

  legends() {
    const facts = !this.cells.length ? "" : !this.runs ? "no page is free"
      : `free in ${count(this.runs, "run")}, longest ${num(this.longest)}`;
    const key = this.mode + facts;
    if (key === this.legendKey) return;
    this.legendKey = key;
    const keys = {
      state: [["hit", "just hit"], ["new", "just inserted"], ["ghost", "just evicted"]],
      owner: [["own", "who computed it"]],
      age: [["ramp", "used now … 64 steps ago"]],
      holders: [["ramp", "8 … 1 holders, the tree included"]],
    }[this.mode];
    this.explain(keys);
    this.legend.append(h("span.fact", { textContent: facts }));
  }

  /** Cell size in device pixels, and how many to a row. */
  layout() {
    const ratio = window.devicePixelRatio || 1, n = Math.max(1, this.cells.length), top = 34;
    const w = Math.floor(this.canvasEl.wide * ratio), most = (n > 12000 ? 400 : 200) - top;
    let cw = Math.round(20 * ratio), ch = cw;
    while (cw > 1 && Math.ceil(n / Math.floor(w / cw)) * cw > most * ratio) cw--;
    ch = cw;
    if (cw === 1) ch = Math.max(1, Math.floor(most * ratio / Math.ceil(n / w)));
    const across = Math.max(1, Math.floor(w / cw)), down = Math.ceil(n / across);
    Object.assign(this, { cw, ch, across, down, ratio, top });
    this.needs = Math.ceil(top + down * ch / ratio) + 2;
    this.setHeight(this.canvasEl, n > 12000 ? this.needs : this.app.tree.canvasEl.high);
  }

  corner(page) {
    return [page % this.across * this.cw / this.ratio, this.top + Math.floor(page / this.across) * this.ch / this.ratio];
  }

  pageAt(x, y) {
    if (!this.across || x < 0) return -1;
    const column = Math.floor(x * this.ratio / this.cw), row = Math.floor((y - this.top) * this.ratio / this.ch);
    const page = row * this.across + column;
    return row >= 0 && column < this.across && page < this.cells.length ? page : -1;
  }

  /** The colour of a page as an index into `palette`. */
  colouring() {
    const { app, state, mode } = this, { theme, k } = app, { rgb } = theme, { pages } = state, { nodes } = state;
    if (mode === "state")
      return [[rgb.free, rgb.pre, rgb.cache, rgb.hit], (page) => this.shades[page]];
    const ramp = (i) => mix(rgb.ramp1, rgb.ramp0, i / 15);
    const shades = [rgb.free, ...Array.from({ length: 16 }, (_, i) => ramp(i))];
    if (mode === "owner")
      return [[rgb.free, rgb.own0, rgb.own1, rgb.own2, rgb.own3, rgb.own4, rgb.own5, rgb.own6, rgb.own7],
        (page) => pages.owner[page] < 0 ? 0 : 1 + pages.owner[page] % 8];
    if (mode === "age")
      return [shades, (page) => {
        if (!pages.holders[page]) return 0;
        const slot = pages.slot[page], used = Math.max(pages.changed[page], slot >= 0 ? nodes.used[slot] : -1);
        return 1 + clamp(Math.floor(Math.log2(1 + Math.max(0, k - used)) * 2.5), 0, 15);
      }];
    return [shades, (page) => pages.holders[page] ? 16 - clamp(2 * (pages.holders[page] - 1), 0, 15) : 0];
  }

  paint() {
    if (!this.canvasEl.wide || !this.state) return;
    this.layout();
    const ctx = this.begin(this.canvasEl), { app } = this, { theme } = app;
    if (!ctx) return;
    this.poolBar(ctx);
    if (this.cells.length) (this.cw / this.ratio >= 7 ? this.paintCells : this.paintPixels).call(this, ctx);
    else {
      ctx.fillStyle = theme.soft;
      ctx.fillText("No pages yet.", 0, 48);
    }
  }

  /** held | evictable | free, of which promised: the same pages as below, counted. */
  poolBar(ctx) {
    const { theme } = this.app, w = this.canvasEl.wide, n = Math.max(1, this.cells.length);
    let x = 0;
    ctx.font = theme.font(10.5);
    const parts = [[this.heldPages, theme.pre, "held"], [this.evictable, theme.cache, "evictable"],
      [this.free, theme.free, "free"]];
    const labels = [];
    for (const [pages, colour, word] of parts) {
      const wide = w * pages / n;
      ctx.fillStyle = colour;
      ctx.fillRect(x, 0, Math.max(0, wide - (pages ? 1 : 0)), 9);
      if (pages) labels.push([x, `${num(pages)} ${word}`]);
      x += wide;
    }
    // what is promised comes out of free and evictable pages; it is drawn from the right
    const kept = Math.min(w, w * this.promised / n);
    if (kept > 0) {
      ctx.save();
      ctx.beginPath();
      ctx.rect(w - kept, 0, kept, 9);
      ctx.clip();
      ctx.strokeStyle = theme.soft;
      ctx.beginPath();
      for (let at = w - kept - 9; at < w; at += 4) {
        ctx.moveTo(at, 9);
        ctx.lineTo(at + 9, 0);
      }
      ctx.stroke();
      ctx.restore();
      labels.push([Infinity, `${num(this.promised)} promised`]);
    }
    ctx.fillStyle = theme.soft;
    // a label stands where its part begins, or as near as its neighbours let it
    const wide = labels.map(([, text]) => ctx.measureText(text).width), starts = [];
    labels.forEach(([at], i) => starts.push(i ? Math.max(at, starts[i - 1] + wide[i - 1] + 10) : at));
    for (let i = labels.length - 1, limit = w; i >= 0; limit = starts[i--] - 10)
      starts[i] = Math.min(starts[i], limit - wide[i]);
    labels.forEach(([, text], i) => starts[i] > -1 && ctx.fillText(text, starts[i], 22));
  }

  paintCells(ctx) {
    const { app, state, mode, ratio } = this, { theme, selected } = app, [palette, index] = this.colouring();
    const colours = palette.map(css), z = this.cw / ratio, gap = z > 11 ? 2 : 1, { pages } = state;
    let reserve = Math.min(this.promised, this.free);
    for (let page = this.cells.length - 1; page >= 0; page--) {
      const [x, y] = this.corner(page), what = this.cells[page], at = index(page);
      ctx.fillStyle = colours[at];
      box(ctx, x, y, z - gap, z - gap, z > 11 ? 3 : 1.5);
      ctx.fill();
      if (what === 5) {
        ctx.strokeStyle = theme.ghost;
        ctx.setLineDash([3, 2]);
        box(ctx, x + 0.7, y + 0.7, z - gap - 1.4, z - gap - 1.4, 2.5);
        ctx.stroke();
        ctx.setLineDash([]);
      } else if (what === 4) {
        ctx.strokeStyle = theme.sel;
        box(ctx, x + 0.5, y + 0.5, z - gap - 1, z - gap - 1, 2.5);
        ctx.stroke();
      }
      // which free pages the promised ones will be is decided when they are taken: the last, here
      if (pages.holders[page] === 0 && reserve > 0) {
        reserve--;
        ctx.fillStyle = theme.soft;
        ctx.fillRect(x + (z - gap) / 2 - 1, y + (z - gap) / 2 - 1, 2, 2);
      }
      const label = mode === "owner" ? pages.owner[page] : mode === "holders" ? pages.holders[page] || -1 : -1;
      if (label >= 0 && z >= 15) {
        ctx.font = theme.font(label > 99 ? 7.5 : 9);
        ctx.fillStyle = legible(palette[at]);
        ctx.textAlign = "center";
        ctx.fillText(String(label), x + (z - gap) / 2, y + (z - gap) / 2 + 3);
        ctx.textAlign = "left";
      }
    }
    if (selected == null) return;
    ctx.strokeStyle = theme.sel;
    ctx.lineWidth = z > 11 ? 1.8 : 1.2;
    for (let page = 0; page < this.cells.length; page++) {
      if (!this.isMine(page)) continue;
      const [x, y] = this.corner(page);
      box(ctx, x + 0.4, y + 0.4, z - gap - 0.8, z - gap - 0.8, z > 11 ? 3 : 1.5);
      ctx.stroke();
    }
    ctx.lineWidth = 1;
  }

  isMine(page) {
    const { pages } = this.state;
    return pages.holders[page] > 0 && (pages.owner[page] === this.app.selected || this.reused.has(page));
  }

  paintPixels(ctx) {
    const { app, across, down, cw, ch, ratio } = this, { theme, selected } = app, [palette, index] = this.colouring();
    const w = across * cw, high = down * ch;
    if (!this.image || this.image.width !== w || this.image.height !== high) {
      this.image = new ImageData(w, high);
      this.raw = new Uint32Array(this.image.data.buffer);
    }
    const colours = Uint32Array.from(palette, pixel), back = pixel(theme.rgb.bg);
    const { raw } = this, n = this.cells.length;
    const gapX = cw > 3 ? 1 : 0, gapY = ch > 3 && cw > 3 ? 1 : 0;
    for (let row = 0; row < down; row++) {
      const start = row * ch * w;
      for (let column = 0, page = row * across, at = start; column < across; column++, page++) {
        const colour = page < n ? colours[index(page)] : back;
        for (let px = 0; px < cw; px++) raw[at++] = px < cw - gapX ? colour : back;
      }
      for (let line = 1; line < ch; line++) {
        if (line < ch - gapY) raw.copyWithin(start + line * w, start, start + w);
        else raw.fill(back, start + line * w, start + line * w + w);
      }
    }
    ctx.putImageData(this.image, 0, Math.round(this.top * ratio));
    if (selected == null) return;
    // a page of a pixel has no outline of its own: pages that stand together are outlined together
    ctx.strokeStyle = theme.sel;
    ctx.beginPath();
    for (let page = 0; page < n; page++) {
      if (!this.isMine(page)) continue;
      let end = page;
      while (end + 1 < n && (end + 1) % across && this.isMine(end + 1)) end++;
      const [x, y] = this.corner(page);
      ctx.rect(x - 0.5, y - 0.5, (end - page + 1) * cw / ratio + 1, ch / ratio + 1);
      page = end;
    }
    ctx.stroke();
  }

  lines(page) {
    const { pages, nodes } = this.state, slot = pages.slot[page], holders = pages.holders[page];
    const owner = pages.owner[page], since = pages.changed[page];
    if (!holders) return [`Page ${num(page)}`, since < 0 ? "free, never taken" : `free since step ${since}`];
    const rows = holders - (slot >= 0 ? 1 : 0), size = this.app.film.about.page_size;
    return [
      `Page ${num(page)} · ${PAGE_STATES[this.cells[page]]}`,
      !rows ? "only the tree holds it: may be evicted"
        : `held by ${this.names(page) || count(rows, "request")}${slot >= 0 ? ", and findable in the tree" : ""}`,
      owner >= 0 && `computed by r${owner}`,
      slot >= 0 && `its node begins at position ${num(nodes.depth[slot] * size)}; used last in step ${nodes.used[slot]}`,
      `changed in step ${since}`,
    ].filter(Boolean);
  }

  /** The holders of a page by name; "" where the film does not tell all of them. */
  names(page) {
    const { pages } = this.state, all = this.state.holders(page);
    const rows = pages.holders[page] - (pages.slot[page] >= 0 ? 1 : 0);
    return all.length === rows && rows <= 6 ? all.map((rid) => `r${rid}`).join(", ") : "";
  }

  drawn() {
    return {
      holders: Array.from(this.state.pages.holders.subarray(0, this.cells.length)),
      owner: Array.from(this.state.pages.owner.subarray(0, this.cells.length)),
      state: Array.from(this.cells, (what) => PAGE_STATES[what]),
      free: this.free, held: this.heldPages, evictable: this.evictable, promised: this.promised,
    };
  }
}

/** Black or white, whichever reads better on a colour. */
const legible = ([r, g, b]) => 0.3 * r + 0.59 * g + 0.11 * b > 140 ? "#10131a" : "#fff";

/** What host and devices did on the clock, and why a device did nothing. */
class Timeline extends View {
  constructor(app) {
    super(app, "time", "Timeline");
    this.axis = new Axis();
    this.canvasEl = this.canvas(this.body, 78);
    this.explain([["plan", "plan"], ["commit", "commit"], ["launch", "launch"], ["waitspan", "wait"], ["apply", "apply"],
      ["pre", "batch with prefill"], ["dec", "decode only"], ["idle", "idle"]]);
    this.listen(this.canvasEl, {
      ...this.gestures(() => this.axis, () => app.film.usualStep / 20),
      hover: (x, y) => this.hover(x, y),
      click: (x) => app.go(app.film.first + searchTime(app.film, this.axis.value(x))),
      walk: (by) => app.go(app.k + by),
    });
  }

  update(moved) {
    const { app } = this, { film, k, g } = app, { steps } = film, lanes = Math.max(2, film.lanes.length);
    this.setHeight(this.canvasEl, lanes * 26 + 26);
    const { totals } = film, idle = Object.values(totals.idle || {}).reduce((a, b) => a + b, 0);
    const share = totals.hidden_share, parts = [];
    this.hidden = share ?? null;
    if (share != null) parts.push(`${percent(share)} of the host's work hidden behind the device`);
    if (totals.seconds > 0) {
      const worst = Object.entries(totals.idle || {}).sort((a, b) => b[1] - a[1])[0];
      parts.push(`idle ${percent(idle / totals.seconds)}${worst && idle > 0 ? `, mostly ${worst[0]}` : ""}`);
    }
    say(this.note, film.timed ? parts.join(" · ") : "");
    if (film.timed && g >= 0) {
      const took = film.drawnTime(steps.t1[g]) - film.drawnTime(steps.t0[g]);
      const width = Math.max(14 * film.usualStep, 1.6 * took), last = film.spans.end[film.spans.n - 1];
      const end = film.foreign ? film.drawnEnd : Math.max(film.drawnEnd, film.drawnTime(last));
      this.axis.follow(Math.min(0, film.drawnTime(steps.t0[0])), end, width, film.drawnMiddle(g), moved);
    }
    this.describe(this.canvasEl, film.timed && g >= 0
      ? `Timeline: step ${k} was computed from ${duration(steps.t0[g])} to ${duration(steps.t1[g])}; ${parts.join("; ")}`
      : "Timeline: no times were recorded");
  }

  /** The steps whose spans may be in sight; overlap lets a step's host spans lie steps before. */
  range() {
    const { film } = this.app, a = searchTime(film, this.axis.a), b = searchTime(film, this.axis.b);
    return [Math.max(0, a - 3), Math.min(film.count - 1, b + 3)];
  }

  paint() {
    const ctx = this.begin(this.canvasEl), { app, axis } = this, { theme, film, g, selected } = app;
    if (!ctx) return;
    const w = this.canvasEl.wide, { spans, steps, gaps } = film;
    if (!film.timed) {
      ctx.fillStyle = theme.soft;
      ctx.fillText(film.count ? "No times were recorded in this run." : "No steps yet.", 0, 16);
      return;
    }
    const names = film.lanes.length > 2 ? film.lanes : film.lanes.map((name) => name === "host" ? "host" : "device");
    axis.x0 = 8 + Math.max(...names.map((name) => ctx.measureText(name).width));
    axis.x1 = w;
    const top = (lane) => 2 + lane * 26, base = top(film.lanes.length) + 2;
    ctx.fillStyle = theme.soft;
    names.forEach((name, lane) => ctx.fillText(name, 0, top(lane) + 14));
    ctx.save();
    ctx.beginPath();
    ctx.rect(axis.x0, 0, w - axis.x0, this.canvasEl.high);
    ctx.clip();
    const x = (time) => axis.x(film.drawnTime(time));
    const [from, to] = this.range(), filled = new F(film.lanes.length).fill(-Infinity), last = [];
    for (let i = steps.spans[from]; i < steps.spans[to + 1]; i++) {
      const left = x(spans.start[i]), width = x(spans.end[i]) - left, lane = spans.lane[i];
      if (left > w || left + width < axis.x0) continue;
      const host = film.lanes[lane] === "host", name = film.names[spans.name[i]], at = spans.step[i] - film.first;
      if (host && film.foreign) continue;
      const colour = host ? theme[name] || theme.soft : this.prefills(at) ? theme.pre : theme.dec;
      // spans thinner than a pixel are drawn once for a pixel
      if (left + width < filled[lane] + 0.5 && last[lane] === colour) continue;
      filled[lane] = left + Math.max(width, 0.7);
      last[lane] = colour;
      ctx.globalAlpha = at <= g ? 1 : FAINT;
      if (host && name === "wait") {
        ctx.fillStyle = theme.wait;
        ctx.fillRect(left, top(lane) + 9, Math.max(width - 0.5, 0.5), 2);
        continue;
      }
      ctx.fillStyle = colour;
      const wide = Math.max(width - (width > 2 ? 0.6 : 0), 0.7);
      const y = host ? top(lane) + 3 : top(lane) + 1, tall = host ? 14 : 18;
      if (wide > 4) {
        box(ctx, left, y, wide, tall, host ? 2 : 3);
        ctx.fill();
      } else ctx.fillRect(left, y, wide, tall);
      if (!host && at === g) {
        ctx.strokeStyle = theme.sel;
        ctx.lineWidth = 1.4;
        box(ctx, left + 0.7, y + 0.7, Math.max(wide - 1.4, 0.5), tall - 1.4, 3);
        ctx.stroke();
        ctx.lineWidth = 1;
      }
      if (!host && selected != null && this.serves(at, selected)) {
        ctx.fillStyle = theme.sel;
        ctx.fillRect(left, y + tall + 1.5, wide, 2);
      }
      const label = host ? name : String(spans.step[i]);
      ctx.font = theme.font(10.5);
      if (ctx.measureText(label).width + 6 < wide) {
        ctx.fillStyle = at > g ? theme.soft : host ? legible(theme.rgb[name] || theme.rgb.soft)
          : colour === theme.pre ? theme.onPre : theme.onDec;
        ctx.globalAlpha = 1;
        ctx.fillText(label, Math.max(left, axis.x0) + 4, y + tall / 2 + 4);
      }
    }
    if (film.foreign) {
      ctx.fillStyle = theme.soft;
      const lane = Math.max(0, film.lanes.indexOf("host"));
      ctx.fillText("not drawn: the device keeps another clock than the host", axis.x0 + 4, top(lane) + 14);
    }
    for (let i = steps.gaps[from]; i < steps.gaps[to + 1]; i++) {
      const left = x(gaps.start[i]), width = x(gaps.start[i] + gaps.length[i]) - left;
      if (width < 1.5 || left > w || left + width < axis.x0) continue;
      const y = top(gaps.lane[i]) + 4;
      ctx.globalAlpha = gaps.start[i] <= steps.t1[g] ? 1 : FAINT;
      ctx.strokeStyle = theme.soft;
      ctx.setLineDash([2, 2]);
      if (width > 5) ctx.strokeRect(left + 0.5, y + 0.5, width - 1.5, 11);
      ctx.setLineDash([]);
      const cause = film.about.causes[gaps.cause[i]] || "idle";
      ctx.font = theme.font(10);
      ctx.fillStyle = theme.soft;
      const begin = Math.max(left, axis.x0) + 4, room = Math.min(left + width, w) - begin - 3;
      const took = duration(gaps.length[i]);
      const label = [`${cause} · ${took}`, cause, took].find((text) => ctx.measureText(text).width <= room);
      if (label) ctx.fillText(label, begin, y + 9);
    }
    ctx.globalAlpha = 1;
    ctx.restore();
    ctx.fillStyle = theme.line;
    ctx.fillRect(axis.x0, base + 0.5, w - axis.x0, 1);
    ctx.fillStyle = theme.soft;
    ctx.font = theme.font(10.5);
    timeTicks(ctx, film, axis, base, w);
    if (g < 0) return;
    const at = axis.x(film.drawnMiddle(g));
    if (at > axis.x0 && at < w) cursorLine(ctx, theme, at, 0, base);
  }

  prefills(g) {
    const { steps, rows } = this.app.film;
    for (let i = steps.rows[g]; i < steps.rows[g + 1]; i++) if (rows.kind[i] === PREFILL) return true;
    return false;
  }

  serves(g, rid) {
    const { steps, rows } = this.app.film;
    for (let i = steps.rows[g]; i < steps.rows[g + 1]; i++) if (rows.rid[i] === rid) return true;
    return false;
  }

  hover(x, y) {
    const { film } = this.app, { axis } = this, lane = Math.floor((y - 2) / 26);
    if (!film.timed || x < axis.x0 || lane < 0 || lane >= film.lanes.length) return null;
    const { spans, gaps, steps } = film, [from, to] = this.range(), near = (time) => axis.x(film.drawnTime(time));
    for (let i = steps.spans[from]; i < steps.spans[to + 1]; i++) {
      if (spans.lane[i] !== lane || x < near(spans.start[i]) - 1.5 || x > near(spans.end[i]) + 1.5) continue;
      const host = film.lanes[lane] === "host", step = spans.step[i];
      return [`${film.lanes[lane]}: ${host ? film.names[spans.name[i]] : "batch"} of step ${step}`,
        `${duration(spans.length[i])}, from ${duration(spans.start[i])}`,
        ...(host ? [] : [`${count(steps.tokens[step - film.first], "token")}`])];
    }
    for (let i = steps.gaps[from]; i < steps.gaps[to + 1]; i++)
      if (gaps.lane[i] === lane && x >= near(gaps.start[i]) && x <= near(gaps.start[i] + gaps.length[i]))
        return [`${film.lanes[lane]} idle: ${film.about.causes[gaps.cause[i]]}`, duration(gaps.length[i])];
    return null;
  }

  drawn() {
    const { gaps, spans, steps, lanes, about } = this.app.film, upto = steps.gaps[this.app.g + 1] || 0;
    return {
      spans: spans.n, hidden_share: this.hidden,
      gaps: Array.from({ length: upto }, (_, i) =>
        [lanes[gaps.lane[i]], about.causes[gaps.cause[i]], gaps.start[i], gaps.length[i]]),
    };
  }
}

const LINE = 18; // height of a log line

/** What happened, newest first; only the lines in sight exist. */
class Log extends View {
  constructor(app) {
    super(app, "log", "Events");
    this.tokens = false;
    const toggle = h("button", {
      type: "button", textContent: "tokens", "aria-pressed": "false", title: "show every sampled token, too",
      onclick: () => {
        this.tokens = !this.tokens;
        toggle.setAttribute("aria-pressed", this.tokens);
        app.draw();
      },
    });
    this.tools.append(h("span.choice", {}, toggle));
    this.inner = h("div.inner", { role: "list" });
    this.top = 0;
    this.list = h("div.loglist", {
      onscroll: () => this.scrolled(), tabIndex: 0, role: "group", "aria-label": "Events, newest first",
    }, this.inner);
    this.body.append(this.list);
    this.pool = [];
    this.found = new Table({ event: I });
  }

  update() {
    const { app } = this, { film, k } = app, { events } = film;
    const key = [app.filter.text, this.tokens, app.session.run, film.about.model, film.cuts].join("|");
    if (key !== this.key || this.film !== film) {
      this.key = key;
      this.film = film;
      this.found.n = 0;
      this.upto = film.steps.events[0] || 0; // those before are of steps that are not kept
    }
    for (; this.upto < events.n; this.upto++)
      if (app.filter.event(film, this.upto, this.tokens)) {
        const at = this.found.push();
        this.found.event[at] = this.upto;
      }
    // events are in order of steps: those up to the cursor are the first n
    let low = 0, high = this.found.n;
    while (low < high) {
      const mid = (low + high) >> 1;
      if (events.step[this.found.event[mid]] <= k) low = mid + 1;
      else high = mid;
    }
    this.n = low;
    say(this.note, `${num(low)} so far, newest first`);
    const px = `${low * LINE}px`;
    if (this.inner.style.height !== px) this.inner.style.height = px;
    this.rows();
  }

  rows() {
    const { top } = this, high = this.listHigh || 120, { film } = this.app;
    const first = Math.max(0, Math.floor(top / LINE));
    let used = 0;
    for (let n = first; n < this.n && n * LINE < top + high; n++, used++) {
      const row = this.pool[used] || (this.pool[used] = this.makeRow()), e = this.found.event[this.n - 1 - n];
      row.event = e;
      row.el.hidden = false;
      row.el.style.transform = `translateY(${n * LINE}px)`;
      const rid = film.events.rid[e];
      row.el.classList.toggle("msgl-chosen", rid >= 0 && rid === this.app.selected);
      row.el.classList.toggle("msgl-now", film.events.step[e] === this.app.k);
      say(row.step, String(film.events.step[e]));
      say(row.kind, film.about.events[film.events.kind[e]] || "?");
      say(row.words, eventWords(film, e));
    }
    for (; used < this.pool.length; used++) this.pool[used].el.hidden = true;
  }

  makeRow() {
    const row = { step: h("span.at"), kind: h("span.kind"), words: h("span.what") };
    row.el = h("button.event", {
      type: "button", tabIndex: -1, role: "listitem", title: "go to this step",
      onclick: () => {
        const { film } = this.app, rid = film.events.rid[row.event];
        if (rid >= 0) this.app.session.selected = rid;
        this.app.go(film.events.step[row.event]);
      },
    }, row.step, row.kind, row.words);
    this.inner.append(row.el);
    return row;
  }

  drawn() {
    const { film } = this.app, { step, kind, rid, value } = film.events;
    return Array.from({ length: this.n }, (_, n) => {
      const e = this.found.event[this.n - 1 - n];
      return [step[e], film.about.events[kind[e]], rid[e], value[e], eventWords(film, e)];
    });
  }
}

/** An event without its name: whom it touched, and its number in words. */
function eventWords(film, e) {
  const { rid, value, kind } = film.events, who = rid[e] >= 0 ? `r${rid[e]}` : "", n = value[e];
  const words = {
    added: () => count(n, "prompt token"),
    admitted: () => `slot ${n}`,
    reused: () => `${count(n, "token")} from the cache`,
    inserted: () => `${count(n, "page")} findable`,
    evicted: () => count(n, "page"),
    preempted: () => "gives its pages back",
    sampled: () => n < 0 ? "a token" : `“${film.text([n], 0, 1)}”`,
    finished: () => film.about.reasons[n] ?? "",
    released: () => n ? `${count(n, "page")} stay${n === 1 ? "s" : ""} cached` : "no page stays cached",
  }[film.about.events[kind[e]]]?.() ?? String(n);
  return [who, words].filter(Boolean).join(" · ");
}

/** What the filter lets through: `r3`, `r3-9`, names of events, and words of a prompt. */
class Filter {
  constructor(text, film) {
    this.text = text.trim();
    this.ranges = [];
    this.kinds = new Set();
    this.words = [];
    this.prompts = new Map();
    for (const term of this.text.toLowerCase().split(/\s+/).filter(Boolean)) {
      const rids = /^r(\d+)(?:-r?(\d+))?$/.exec(term);
      const kinds = term.length > 2 ? film.about.events.flatMap((name, i) => name.startsWith(term) ? [i] : []) : [];
      if (rids) this.ranges.push([+rids[1], +(rids[2] ?? rids[1])]);
      else if (kinds.length) kinds.forEach((kind) => this.kinds.add(kind));
      else this.words.push(term);
    }
  }

  rid(rid) {
    return !this.ranges.length || this.ranges.some(([from, to]) => rid >= from && rid <= to);
  }

  prompt(film, i) {
    if (!this.words.length) return true;
    if (!this.prompts.has(film)) this.prompts.set(film, new Map());
    const known = this.prompts.get(film);
    let text = known.get(i);
    if (text === undefined) known.set(i, (text = film.promptText(i).toLowerCase()));
    return this.words.every((word) => text.includes(word));
  }

  lane(film, i) {
    if (!this.text) return true;
    const { requests: r, events } = film;
    if (!this.rid(r.rid[i]) || !this.prompt(film, i)) return false;
    if (!this.kinds.size) return true;
    if (r.sampled[i] >= 0 && this.kinds.has(events.kind[r.sampled[i]])) return true;
    for (let e = r.mark[i]; e >= 0; e = events.next[e]) if (this.kinds.has(events.kind[e])) return true;
    return false;
  }

  event(film, e, tokens) {
    const { kind, rid } = film.events, sampled = film.about.events[kind[e]] === "sampled";
    if (this.kinds.size ? !this.kinds.has(kind[e]) : sampled && !tokens) return false;
    if (!this.text) return true;
    if (rid[e] < 0) return !this.ranges.length && !this.words.length;
    return this.rid(rid[e]) && this.prompt(film, film.indexOfRid.get(rid[e]));
  }
}

// ---- 6 · the inspector ---------------------------------------------------------------------------

const TOLD = ["overlap", "prefix_cache", "policy", "page_size"]; // toggles that are always in sight
const words = (value) => value === "True" || value === true ? "on" : value === "False" || value === false ? "off"
  : String(value).replaceAll("_", " ");
const SPEEDS = [1, 2, 5, 10, 30, 100];
const KEYS = [
  ["space", "play and pause"], ["← →", "one step back, one step on"], ["shift ← →", "ten steps"],
  ["Home End", "first and last step"], ["b  shift b", "to the next breakpoint, and back to the previous one"],
  ["↑ ↓", "through the requests, or through what the focused view shows"], ["/", "filter requests and events"],
  ["ctrl or alt + wheel", "zoom a view; drag to pan, double-click to reset"], ["?", "this help"],
  ["Esc", "close, or select nothing"],
];

/** One widget on the screen. Its state is the session's; it owns only elements and how it looks at them. */
class Inspector {
  constructor(el, session) {
    this.session = session;
    this.began = session.began ?? performance.now();
    session.began = null;
    this.timings = { firstPaint: null, lastMove: null };
    this.speed = 5;
    this.frames = new Set();
    this.dirty = true;
    this.root = h("div.root", {
      tabIndex: 0, role: "region", "aria-label": "minisgl inspector", "data-lm-suppress-shortcuts": "true",
      onkeydown: (e) => this.key(e), dir: "ltr",
    });
    el.append(this.root);
    this.theme = new Theme(this.root, () => this.draw());
    this.sizes = new ResizeObserver((entries) => {
      if (!this.theme.known) this.theme.refresh(); // only what stands on a page has a style
      this.resized(entries);
    });
    this.filter = new Filter("", this.film);
    this.tip = new Tip(this.root);
    this.build();
    this.listener = (what) => this.heard(what);
    session.listeners.add(this.listener);
    this.root.minisgl = {
      ready: new Promise((resolve) => (this.resolveReady = resolve)), timings: this.timings,
      drawn: () => this.drawn(),
      bytes: () => session.bytes(), // that the run in front takes, its keyframes included
      view: (k) => {
        this.go(k);
        return this.drawn();
      },
    };
    this.draw();
  }

  close() {
    this.pause();
    cancelAnimationFrame(this.frame);
    this.sizes.disconnect();
    this.theme.close();
    this.session.listeners.delete(this.listener);
    this.root.remove();
  }

  // What every view asks of it.

  get film() {
    return this.session.film;
  }
  /** The step shown; -1 before the first. */
  get k() {
    return this.session.cursor;
  }
  /** The same, counted from the first step that is kept. */
  get g() {
    return this.film.count ? this.k - this.film.first : -1;
  }
  get live() {
    return this.session.live;
  }
  get selected() {
    return this.session.selected;
  }
  get fast() {
    return this.playing && this.speed > 8;
  }

  runName(run) {
    return this.session.status.runs?.[run]?.name || `run ${run}`;
  }

  select(rid) {
    this.session.selected = rid === this.selected ? null : rid;
  }

  walkSelection(by) {
    const { lanes } = this, { n } = lanes;
    if (!n) return;
    let at = -1;
    for (let lane = 0; lane < n; lane++) if (lanes.rid(lane) === this.selected) at = lane;
    const rid = lanes.rid(clamp(at + by, 0, n - 1));
    if (rid !== this.selected) this.session.selected = rid;
    const i = this.film.indexOfRid.get(rid);
    if (i !== undefined) this.announce(this.aboutRequest(this.film, i, this.k).join(". "));
  }

  go(k) {
    const { film } = this;
    if (!film.count) return;
    k = clamp(Math.round(k), film.first, film.last);
    this.local = null;
    if (k === this.k) return;
    this.asked ??= performance.now();
    this.session.cursor = k;
  }

  setFilter(text) {
    this.filter = new Filter(text, this.film);
    this.draw();
  }

  announce(words) {
    say(this.voice, words);
  }

  /** A request at a step, in the lines of a tip. */
  aboutRequest(film, i, step) {
    const r = film.requests, life = film.life(i, step), g = step - film.first, lines = [`r${r.rid[i]}`];
    const prompt = film.promptText(i);
    lines[0] += ` · ${count(r.prompt_len[i], "prompt token")}, at most ${num(Math.max(1, r.max_tokens[i]))} more`;
    let doing = "";
    for (let row = film.steps.rows[g]; row < film.steps.rows[g + 1]; row++)
      if (film.rows.rid[row] === r.rid[i]) doing = this.rowWords(row, film);
    if (!doing && r.arrival[i] > step) doing = `arrives in step ${r.arrival[i]}`;
    else if (!doing && r.finish[i] >= 0 && r.finish[i] < step) doing = `over since step ${r.finish[i]}`;
    else if (!doing) {
      const why = [];
      for (let row = film.steps.refusals[g]; row < film.steps.refusals[g + 1]; row++)
        if (film.refusals.rid[row] === r.rid[i]) why.push(film.whyText(row));
      doing = why.length ? `waits: ${why.join("; ")}` : "has no row";
    }
    lines.push(`step ${step}: ${doing}`);
    if (life.reused) lines.push(`reused ${num(life.reused)} tokens from the cache`);
    if (life.preemptions) lines.push(`preempted ${num(life.preemptions)}×`);
    if (r.finish[i] >= 0) lines.push(`from step ${r.arrival[i]} to ${r.finish[i]}: ${film.about.reasons[r.reason[i]]}`);
    if (prompt) lines.push(`“${prompt.length > 160 ? `${prompt.slice(0, 100)} … ${prompt.slice(-50)}` : prompt}”`);
    return lines;
  }

  rowWords(row, film = this.film) {
    const { start, length, kind } = film.rows;
    return kind[row] === PREFILL
      ? `prefill, positions ${num(start[row])} to ${num(start[row] + length[row] - 1)}`
      : kind[row] === DECODE ? `decode, position ${num(start[row])}` : "its result is dropped: the request was over";
  }

  aboutRow(row) {
    return [`r${this.film.rows.rid[row]} · ${count(this.film.rows.length[row], "token")}`, this.rowWords(row)];
  }

  // Building.

  button(text, title, onclick) {
    return h("button.text", { type: "button", textContent: text, title, onclick });
  }

  iconButton(name, title, onclick) {
    return h("button.icon", { type: "button", title, "aria-label": title, onclick }, icon(name));
  }

  build() {
    this.pill = h("span.pill.live");
    this.first = this.iconButton("first", "first step (Home)", () => this.go(this.film.first));
    this.prev = this.iconButton("prev", "back to the previous breakpoint (shift b)", () => this.toBreakpoint(-1));
    this.back = this.iconButton("back", "step back (←)", () => this.step(-1));
    this.playButton = this.iconButton("play", "play (space)", () => this.playing ? this.pause() : this.play());
    this.stepButton = this.iconButton("step", "step (→)", () => this.step(1));
    this.next = this.iconButton("next", "run to the next breakpoint (b)", () => this.toBreakpoint(1));
    this.lastButton = this.iconButton("last", "last step (End)", () => this.go(this.film.last));
    this.speedBox = h("select.speed", {
      "aria-label": "speed", title: "speed while playing", onchange: () => (this.speed = +this.speedBox.value),
    }, ...SPEEDS.map((each) => h("option", { value: each, textContent: `${each}/s`, selected: each === this.speed })));
    this.track = h("canvas", { "aria-hidden": "true" });
    this.track.high = 28;
    this.range = h("input", {
      type: "range", min: 0, max: 0, step: 1, "aria-label": "step", oninput: () => this.go(+this.range.value),
    });
    this.position = h("input.jump", {
      type: "text", inputMode: "numeric", "aria-label": "go to step", title: "type a step and press Enter",
      onchange: () => {
        const k = parseInt(this.position.value, 10);
        if (Number.isFinite(k)) this.go(k);
        this.position.value = this.k;
      },
      onfocus: () => this.position.select(),
    });
    this.of = h("span.of");
    this.forkButton = this.button("Fork here", "a new run from this step on, with other toggles", () => this.forkPop());
    this.rewindButton = this.button("Rewind here", "take the engine back to this step", () =>
      this.command("rewind", { to: this.k + 1 }));
    this.serverButton = this.button("Pause", "stop and start the server's engine; the others wait meanwhile", () =>
      this.command(this.session.runStatus.served.paused ? "resume" : "pause"));
    this.breakButton = this.button("Breakpoints", "where running and playing stop", () => this.breakPop());
    this.helpButton = this.button("?", "keys (?)", () => this.helpPop());
    this.configButton = h("button.pill", {
      type: "button", textContent: "all", title: "everything this run was configured with", onclick: () => this.configPop(),
    });
    this.watch(this.track, { paint: () => this.paintTrack() });
    this.tabs = h("div.tabs", { role: "tablist", hidden: true });
    this.sentence = h("div.say", { "aria-live": "polite" });
    this.pills = h("div.pills");
    this.divergence = h("div.line.diverges", { hidden: true });
    this.message = h("div.line.message", { hidden: true, role: "status" });
    this.voice = h("div.voice", { "aria-live": "polite" });
    this.failure = h("div.failure", { hidden: true, role: "alert" });
    this.grid = h("div.grid");
    this.root.append(this.tabs,
      h("header.bar", {}, this.pill,
        h("span.buttons", {}, this.first, this.prev, this.back, this.playButton, this.stepButton, this.next, this.lastButton),
        this.speedBox,
        h("span.scrub", {}, this.track, this.range), h("span.pos", {}, this.position, this.of),
        h("span.actions", {}, this.serverButton, this.forkButton, this.rewindButton, this.breakButton, this.helpButton)),
      h("div.words1", {}, this.sentence, this.pills), this.divergence, this.message, this.failure, this.grid, this.voice);
    this.lanes = new Lanes(this);
    this.stepView = new Step(this);
    this.tree = new Tree(this);
    this.pages = new Pages(this);
    this.time = new Timeline(this);
    this.log = new Log(this);
    this.views = [this.lanes, this.stepView, this.tree, this.pages, this.time, this.log];
    this.grid.append(...this.views.map((view) => view.el));
    this.sizes.observe(this.root);
    this.sizes.observe(this.stepView.list);
    this.sizes.observe(this.log.list);
    this.root.append(this.tip.el);
  }

  watch(canvas, view) {
    canvas.owner = view;
    this.sizes.observe(canvas);
  }

  resized(entries) {
    for (const { target, contentRect } of entries) {
      if (target === this.root) this.narrow = contentRect.width < 860;
      else if (target === this.stepView.list) this.stepView.listHigh = contentRect.height;
      else if (target === this.log.list) this.log.listHigh = contentRect.height;
      else target.wide = contentRect.width;
    }
    this.draw();
  }

  // Frames: everything is computed and drawn in one animation frame, however much happened before.

  draw() {
    this.dirty = true;
    this.frame ??= requestAnimationFrame(() => this.render());
  }

  paint(view) {
    this.frames.add(view);
    this.frame ??= requestAnimationFrame(() => this.render());
  }

  render() {
    this.frame = null;
    const paint = this.dirty ? this.views : [...this.frames];
    this.frames = new Set();
    if (this.dirty) {
      this.dirty = false;
      const moved = this.k !== this.shown || this.film !== this.shownFilm;
      this.shown = this.k;
      this.shownFilm = this.film;
      this.update(moved);
      this.paintTrack();
    }
    for (const view of paint) this.attempt(view, "paint");
    const now = performance.now();
    if (this.asked !== undefined) this.timings.lastMove = now - this.asked;
    this.asked = undefined;
    if (this.timings.firstPaint === null && this.lanes.canvasEl.wide) {
      this.timings.firstPaint = now - this.began;
      this.resolveReady();
    }
  }

  update(moved) {
    const { session, film } = this, broken = session.error && !film.count;
    this.failure.hidden = !broken;
    this.grid.hidden = !!broken;
    if (broken) say(this.failure, session.error);
    this.updateBar();
    this.updateWords();
    if (broken) return;
    this.root.classList.toggle("msgl-big", film.about.num_pages > 12000);
    for (const view of this.views) this.attempt(view, "update", moved);
  }

  /** A view that fails is told of, and the others go on. */
  attempt(view, what, ...given) {
    try {
      view[what]?.(...given);
    } catch (error) {
      console.error(`minisgl inspector, ${view.constructor.name}.${what}:`, error);
    }
  }

  updateBar() {
    const { session, film, k } = this, { status, runStatus, alive, atHead } = session;
    const live = this.live, busy = !!runStatus.busy || session.asked.size > 0;
    const [kind, state] = !alive ? ["gone", "kernel gone, looking back only"]
      : runStatus.closed ? ["gone", "closed"]
        : live && atHead ? ["live", "live"] : live ? ["behind", "live, behind"]
          : status.mode === "page" ? ["page", "saved"] : ["replay", "replay"];
    this.pill.dataset.kind = kind;
    say(this.pill, state);
    const none = !film.count, locked = live && busy && atHead && !this.playing;
    for (const b of [this.first, this.back]) b.disabled = none || k <= film.first;
    this.lastButton.disabled = none || atHead;
    this.stepButton.disabled = (atHead && !live) || locked;
    this.playButton.disabled = !this.playing && ((atHead && !live) || locked);
    if (this.playButton.playing !== !!this.playing) {
      this.playButton.playing = !!this.playing;
      this.playButton.replaceChildren(icon(this.playing ? "pause" : "play"));
      this.playButton.setAttribute("aria-label", this.playing ? "pause (space)" : "play (space)");
      this.playButton.title = this.playing ? "pause (space)" : "play (space)";
    }
    this.prev.disabled = this.findHit(-1) === null;
    this.next.disabled = this.findHit(1) === null && !(live && !locked && this.breakpoints.some((each) => each.on));
    Object.assign(this.range, { min: film.first, max: Math.max(film.last, film.first), value: k, disabled: none });
    this.range.setAttribute("aria-valuetext", none ? "no steps yet" : `step ${k} of ${film.last}`);
    if (document.activeElement !== this.position) this.position.value = none ? "–" : String(k);
    this.position.style.width = `${Math.max(2, String(film.last).length) + 1.5}ch`;
    say(this.of, none ? "/ –" : film.first ? `of ${film.first} … ${film.last}` : `/ ${film.last}`);
    this.of.title = film.first ? `steps before ${film.first} are forgotten` : "";
    const { served } = runStatus;
    this.serverButton.hidden = !live || !served;
    if (served) say(this.serverButton, served.paused ? "Resume" : "Pause");
    this.forkButton.hidden = !live || !!served || !status.forkable;
    this.rewindButton.hidden = !live || !!served;
    this.forkButton.disabled = none || locked;
    this.rewindButton.disabled = none || atHead || locked;
    this.updateTabs();
  }

  updateTabs() {
    const { session } = this, runs = session.status.runs || [];
    const key = JSON.stringify([runs.map((run) => run.name), session.run]);
    if (key === this.tabsKey) return;
    this.tabsKey = key;
    this.tabs.hidden = runs.length < 2;
    this.tabs.replaceChildren(...runs.map((run, i) => h("button.tab", {
      type: "button", role: "tab", textContent: run.name || `run ${i}`, "aria-selected": String(i === session.run),
      onclick: () => session.put("run", i),
    })));
  }

  updateWords() {
    const { session, film, g } = this, { status } = session;
    const said = g >= 0 ? film.say[g] : this.live ? "No steps yet: step to run the first." : "This run has no steps.";
    this.sentence.setAttribute("aria-live", this.playing ? "off" : "polite");
    this.sentence.classList.toggle("msgl-long", film.longestSay > 110);
    if (this.sentence.said !== said) {
      this.sentence.said = said;
      this.sentence.replaceChildren(...this.sentenceParts(said));
      this.sentence.title = said.length > 110 ? said : "";
    }
    const key = JSON.stringify([film.about.model, film.about.config]);
    if (this.pills.key !== key) {
      this.pills.key = key;
      const shown = film.about.config.filter(([name]) => TOLD.includes(name));
      this.pills.replaceChildren(...shown.map(([name, value]) =>
        h("span.pill", {}, `${words(name)} `, h("b", { textContent: words(value) }))));
      if (film.about.config.length) this.pills.append(this.configButton);
    }
    const { divergence } = status;
    this.divergence.hidden = !divergence;
    if (divergence && this.divergence.key !== divergence.words) {
      this.divergence.key = divergence.words;
      const where = h("b", { textContent: `First divergence, step ${divergence.step}: ` });
      this.divergence.replaceChildren(h("i.sw.sw-diverge"), h("span", {}, where, visible(divergence.words)),
        this.button("go there", "go to the step of the first divergence", () => this.go(divergence.step)));
    }
    const told = status.message !== this.dismissed ? status.message : "";
    const notice = this.local ?? ((film.count && session.error) || told || "");
    this.message.hidden = !notice;
    this.message.classList.toggle("msgl-fault", !!notice && (notice === this.failed || notice === session.error));
    if (notice && this.message.key !== notice) {
      this.message.key = notice;
      this.message.replaceChildren(h("span", { textContent: notice }), this.button("×", "dismiss", () => {
        this.local = null;
        this.dismissed = status.message;
        session.error = null;
        this.draw();
      }));
    }
    if (!notice) this.message.key = null;
  }

  /** The sentence with its step in bold, who waits in grey, and every request to be clicked. */
  sentenceParts(said) {
    const [, step, rest] = /^(step \d+: )?([^]*)$/.exec(said);
    const out = step ? [h("b", { textContent: `S${step.slice(1, -2)}.` }), " "] : [];
    const plain = /^r\d/.test(rest) ? rest : rest.slice(0, 1).toUpperCase() + rest.slice(1);
    visible(plain).split("; ").forEach((part, n, all) => {
      const span = h("span", { className: / waits?: /.test(part) ? "msgl-soft" : "" });
      part.split(/(\br\d+\b)/).forEach((piece, i) => {
        if (i % 2) span.append(h("span.rid", { textContent: piece, onclick: () => this.select(+piece.slice(1)) }));
        else if (piece) span.append(piece);
      });
      out.push(span, n + 1 < all.length ? "; " : "");
    });
    return out;
  }

  /** The scrub bar: how full each step was, where breakpoints hold, where the runs part. */
  paintTrack() {
    const { track, theme, film } = this, ctx = View.prototype.begin.call({ app: this }, track);
    if (!ctx) return;
    const w = track.wide, pad = 6, n = film.count;
    const x = (k) => n < 2 ? pad : pad + (k - film.first) / (n - 1) * (w - 2 * pad);
    if (n) {
      const columns = Math.max(1, Math.floor((w - 2 * pad) / 2));
      const key = `${film.version}|${columns}|${this.session.run}`;
      if (this.fullKey !== key) {
        this.fullKey = key;
        this.full = new F(columns);
        let most = 1;
        for (let g = 0; g < n; g++) most = Math.max(most, film.steps.tokens[g]);
        for (let g = 0; g < n; g++) {
          const column = Math.min(columns - 1, Math.floor(g / n * columns));
          this.full[column] = Math.max(this.full[column], film.steps.tokens[g] / most);
          if (n < columns) this.full.fill(this.full[column], column, Math.min(columns, Math.ceil((g + 1) / n * columns)));
        }
      }
      ctx.fillStyle = theme.wait;
      this.full.forEach((share, column) => {
        const high = share ? Math.max(1, 12 * Math.min(1, share)) : 0;
        ctx.fillRect(pad + 2 * column, 14 - high, n < columns ? 2 : 1.5, high);
      });
    }
    ctx.fillStyle = theme.line;
    box(ctx, pad - 2, 18.5, w - 2 * pad + 4, 3, 1.5);
    ctx.fill();
    ctx.fillStyle = theme.dec;
    if (n) {
      box(ctx, pad - 2, 18.5, x(this.k) - pad + 2, 3, 1.5);
      ctx.fill();
    }
    ctx.fillStyle = theme.ghost;
    let right = -9;
    for (const point of this.breakpoints) {
      if (!point.on) continue;
      for (const step of this.hitsOf(point)) {
        const at = x(step);
        if (at < right + 1) continue; // one mark for a pixel
        right = at;
        ctx.fillRect(at - 0.75, 14.5, 1.5, 11);
      }
      right = -9;
    }
    const { divergence } = this.session.status;
    const apart = divergence?.step;
    if (apart >= film.first && apart <= film.last) diamond(ctx, x(apart), 20, 5);
  }

  // Moving.

  heard(what) {
    // after a cut a filter must look its requests up again
    if (what === "run" || this.film.cuts !== this.cuts) this.filter = new Filter(this.filter.text, this.film);
    this.cuts = this.film.cuts;
    // breakpoints may come and go in Python while their list is open
    if (what === "status" && !this.popped?.el.contains(document.activeElement.closest?.(".msgl-points") ?? null))
      this.popped?.el.querySelector(".msgl-points")?.fill();
    this.draw();
  }

  step(by) {
    this.pause();
    if (by > 0 && this.session.atHead && this.live) {
      this.asked ??= performance.now();
      this.command("step");
    } else this.go(this.k + by);
  }

  /** A command to the kernel; what it answers badly is shown. Returns the answer. */
  async command(what, more) {
    const runs = this.session.films.length, answer = await this.session.ask(what, more);
    this.local = this.failed = answer.error || null;
    if (!answer.error && (what === "fork" || what === "skip") && this.session.films.length > runs)
      this.session.put("run", this.session.films.length - 1);
    this.draw();
    return answer;
  }

  play() {
    if (this.playing) return;
    this.playing = { due: 0, at: performance.now() };
    const beat = (now) => {
      if (!this.playing) return;
      const { playing } = this;
      playing.due += Math.min(250, Math.max(0, now - playing.at)) / 1000 * this.speed;
      playing.at = now;
      const n = Math.floor(playing.due);
      if (n > 0) {
        playing.due -= n;
        if (!this.session.atHead) {
          const stop = this.findHit(1), to = Math.min(this.film.last, this.k + n);
          this.go(stop === null ? to : Math.min(to, stop));
          if (stop !== null && stop <= to) this.pause();
        } else if (!this.live) this.pause();
        else if (!playing.asking) {
          playing.asking = true;
          this.command("run", { steps: clamp(n, 1, 64) }).then((answer) => {
            playing.asking = false;
            if (answer.error || (answer.stopped && answer.stopped !== "limit")) this.pause();
          });
        }
      }
      playing.frame = requestAnimationFrame(beat);
    };
    this.playing.frame = requestAnimationFrame(beat);
    this.draw();
  }

  pause() {
    if (!this.playing) return;
    cancelAnimationFrame(this.playing.frame);
    this.playing = null;
    this.draw();
  }

  get breakpoints() {
    return this.session.runStatus.breakpoints || [];
  }

  hitsOf(point) {
    return point.hits ?? this.film.hitsOf(point.label);
  }

  /** The next step in a direction where a breakpoint that is on holds; null if there is none. */
  findHit(by) {
    let best = null;
    for (const point of this.breakpoints) {
      if (!point.on) continue;
      const hits = this.hitsOf(point);
      let low = 0, high = hits.length;
      while (low < high) {
        const mid = (low + high) >> 1;
        if (by > 0 ? hits[mid] <= this.k : hits[mid] < this.k) low = mid + 1;
        else high = mid;
      }
      const hit = by > 0 ? hits[low] : hits[low - 1];
      if (hit !== undefined && (best === null || (by > 0 ? hit < best : hit > best))) best = hit;
    }
    return best;
  }

  async toBreakpoint(by) {
    this.pause();
    const hit = this.findHit(by);
    if (hit !== null) return this.go(hit);
    const any = this.breakpoints.some((each) => each.on);
    if (by < 0 || !this.live || !any) {
      this.local = any ? `No ${by > 0 ? "further" : "earlier"} step where a breakpoint holds.`
        : "There is no breakpoint: add one under Breakpoints.";
      return this.draw();
    }
    // the kernel runs a little at a time, so that pausing always works
    const token = (this.playing = { frame: 0 });
    this.go(this.film.last);
    for (let answer = {}; this.playing === token;) {
      answer = await this.command("run", { steps: 64 });
      if (answer.error || answer.stopped !== "limit") break;
    }
    if (this.playing === token) this.pause();
  }

  // Popovers and keys.

  pop(button, title, ...content) {
    const was = this.popped?.button;
    this.unpop();
    if (was === button) return null;
    const el = h("div.pop", { role: "dialog", "aria-label": title }, h("h4", { textContent: title }), ...content);
    this.root.append(el);
    const box = this.root.getBoundingClientRect(), at = button.getBoundingClientRect();
    el.style.top = `${at.bottom - box.top + 6}px`;
    el.style.left = `${clamp(at.left - box.left, 8, Math.max(8, box.width - el.offsetWidth - 8))}px`;
    const outside = (e) => {
      if (!el.contains(e.target) && !button.contains(e.target)) this.unpop();
    };
    this.root.addEventListener("pointerdown", outside);
    this.popped = { el, button, close: () => this.root.removeEventListener("pointerdown", outside) };
    (el.querySelector("select, input, button") || el).focus();
    return el;
  }

  unpop() {
    if (!this.popped) return false;
    const { el, button, close } = this.popped, inside = el.contains(document.activeElement);
    this.popped = null;
    close();
    el.remove();
    if (inside) button.focus();
    return true;
  }

  forkPop() {
    const { forkable } = this.session.status, at = this.k + 1, inputs = [];
    const now = Object.fromEntries(this.film.about.config);
    const field = (name, options) => {
      const label = name.replaceAll("_", " ");
      if (!Array.isArray(options)) {
        const input = h("input", { type: "number", min: 1, value: options, "aria-label": label });
        inputs.push([name, () => +input.value === +options || !input.value ? undefined : +input.value]);
        return h("label.field", {}, label, input);
      }
      const asIs = now[name] === undefined ? "as it is" : `as it is: ${words(now[name])}`;
      const select = h("select", { "aria-label": label }, h("option", { value: "", textContent: asIs }),
        ...options.map((value, i) => h("option", { value: String(i), textContent: words(value) })));
      inputs.push([name, () => select.value === "" ? undefined : options[+select.value]]);
      return h("label.field", {}, label, select);
    };
    this.pop(this.forkButton, `Fork before step ${at}`, h("p.soft", {
      textContent: "A twin of the engine as it stood after this step. It goes on with:",
    }), ...Object.entries(forkable).map(([name, options]) => field(name, options)),
    h("div.poprow", {}, this.button("Fork", "make the fork", () => {
      const chosen = inputs.map(([name, value]) => [name, value()]).filter(([, value]) => value !== undefined);
      this.unpop();
      this.command("fork", { at, changes: Object.fromEntries(chosen) });
    })));
  }

  breakPop() {
    const { conditions = Object.keys(WORDS) } = this.session.status;
    const list = h("div.points");
    const fill = () => {
      list.replaceChildren(...this.breakpoints.map((point, index) => {
        const hits = this.hitsOf(point);
        return h("div.point", {}, h("label", {},
          h("input", { type: "checkbox", checked: point.on, "aria-label": `breakpoint ${point.label}`, onchange: async (e) => {
            await this.command("break_set", { index, on: e.target.checked });
            fill();
          } }), h("b", { textContent: visible(point.label) })),
        h("span.soft", { textContent: `${count(hits.length, "step")}` }),
        this.button("×", "remove this breakpoint", async () => {
          await this.command("break_remove", { index });
          fill();
        }));
      }));
      if (!this.breakpoints.length)
        list.append(h("p.soft", { textContent: "None yet. Functions of a step record are added in Python: eng.break_when(…)." }));
    };
    fill();
    list.fill = fill;
    const select = h("select", { "aria-label": "condition" },
      ...conditions.map((name) => h("option", { value: name, textContent: [name, WORDS[name]].filter(Boolean).join(" · ") })));
    const add = this.button("Add", "stop where this happens", async () => {
      await this.command("break", { condition: select.value });
      fill();
    });
    this.pop(this.breakButton, "Breakpoints", list, h("div.poprow", {}, select, add));
  }

  configPop() {
    const { about } = this.film, rows = [["model", about.model], ...about.config];
    this.pop(this.configButton, "This run", this.pairs(rows.map(([name, value]) =>
      [h("span.soft", { textContent: words(name) }), visible(words(value))])));
  }

  helpPop() {
    const rows = KEYS.map(([keys, words]) =>
      [h("span", {}, ...keys.split("  ").map((key) => h("kbd", { textContent: key }))), words]);
    this.pop(this.helpButton, "Keys, while the inspector has the focus", this.pairs(rows));
  }

  /** Names and what they mean, in two columns. No dl: pages around it, JupyterLab's too, float its parts. */
  pairs(rows) {
    return h("div.keys", { role: "list" }, ...rows.map(([name, meaning]) =>
      h("div.pair", { role: "listitem" }, name, h("span", {}, meaning))));
  }

  key(e) {
    const { target } = e, typing = target.matches?.("select, textarea, input:not([type=range]):not([type=checkbox])");
    if (e.defaultPrevented || e.ctrlKey || e.metaKey || e.altKey) return;
    const handled = () => {
      e.preventDefault();
      e.stopPropagation();
    };
    if (e.key === "Escape") {
      if (this.unpop()) return handled();
      if (typing) {
        if (target === this.lanes.filter && target.value) {
          target.value = "";
          this.setFilter("");
        } else this.root.focus();
        return handled();
      }
      if (this.selected !== null) {
        this.session.selected = null;
        return handled();
      }
      return;
    }
    if (typing) {
      if (e.key === "Enter" && target === this.position) {
        this.position.dispatchEvent(new Event("change"));
        this.root.focus();
      }
      e.stopPropagation();
      return;
    }
    if ((e.key === " " || e.key === "Enter") && target.matches?.("button, input")) return e.stopPropagation();
    const far = e.shiftKey ? 10 : 1;
    const action = {
      " ": () => this.playing ? this.pause() : this.play(),
      ArrowRight: () => this.step(far === 10 && !this.session.atHead ? 10 : 1), ArrowLeft: () => this.step(-far),
      Home: () => this.go(this.film.first), End: () => this.go(this.film.last),
      ArrowDown: () => target.walk ? target.walk(1) : this.walkSelection(1),
      ArrowUp: () => target.walk ? target.walk(-1) : this.walkSelection(-1),
      b: () => this.toBreakpoint(1), B: () => this.toBreakpoint(-1),
      "/": () => this.lanes.filter.focus(), "?": () => this.helpPop(),
    }[e.key];
    if (!action) return;
    handled();
    action();
  }

  // What was drawn, for those who hold it against the trace.

  drawn() {
    if (this.dirty) {
      cancelAnimationFrame(this.frame);
      this.render();
    }
    const { film, g } = this, part = (view) => this.session.error && !film.count ? null : view.drawn();
    return {
      cursor: this.k, run: this.session.run, selected: this.selected, sentence: g >= 0 ? film.say[g] : "",
      shown: this.sentence.textContent, failure: this.failure.hidden ? null : this.failure.textContent,
      message: this.message.hidden ? null : this.message.textContent, pill: this.pill.textContent,
      lanes: part(this.lanes), others: this.lanes.paired ? this.lanes.drawn(1 - this.lanes.films.indexOf(film)) : null,
      batch: part(this.stepView), tree: part(this.tree), pages: part(this.pages),
      timeline: part(this.time), log: part(this.log),
    };
  }
}

/** The one tip: lines of text beside the pointer. */
class Tip {
  constructor(root) {
    this.root = root;
    this.el = h("div.tip", { role: "tooltip", hidden: true });
  }

  show(clientX, clientY, lines) {
    const key = lines.join("\n");
    if (this.key !== key) {
      this.key = key;
      this.el.replaceChildren(...lines.map((line) => h("div", { textContent: line })));
    }
    this.el.hidden = false;
    const box = this.root.getBoundingClientRect(), { offsetWidth: w, offsetHeight: high } = this.el;
    const x = clientX - box.left + 14, y = clientY - box.top + 16;
    this.el.style.left = `${clamp(x, 4, Math.max(4, box.width - w - 4))}px`;
    this.el.style.top = `${y + high > box.height - 4 && y - high - 28 > 0 ? y - high - 28 : y}px`;
  }

  hide() {
    if (!this.el.hidden) this.el.hidden = true;
  }
}
