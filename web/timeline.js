// The overlap timeline of one component's last passes: copies above, compute below, stalls in red.
import { element, legendKey, setAttribute, setText } from './dom.js';
import { duration } from './format.js';
import { lastPasses } from './model.js';

const LANE = 20;
const GAP = 6;
const AXIS = 16;
const HEIGHT = 2 * LANE + GAP + AXIS;

/** The canvas with its legend and totals; `update(state, component)` draws. Redraws when the width changes. */
export function timeline(say) {
  const title = say('timeline.title');
  const canvas = element('canvas', { class: 'lwo-canvas', role: 'img' });
  const summary = element('span', { class: 'lwo-summary' });
  const keys = ['copy', 'visit', 'stall'].map((kind) => legendKey(`lwo-${kind}`, say(`timeline.${kind}`)));
  const head = element('div', { class: 'lwo-section-head' }, element('h3', { text: title }), element('div', { class: 'lwo-keys' }, ...keys), summary);
  const lanes = ['copy', 'visit'].map((kind) => element('span', { text: say(`timeline.${kind}`) }));
  const frame = element('div', { class: 'lwo-timeline-frame' }, element('div', { class: 'lwo-lanes', 'aria-hidden': 'true' }, ...lanes), canvas);
  const empty = element('p', { class: 'lwo-quiet', text: say('timeline.empty') });
  const root = element('section', { class: 'lwo-timeline', 'aria-label': title }, head, frame, empty);
  let last = null;
  const draw = () => last && paint(canvas, last, getComputedStyle(root));
  const observer = new ResizeObserver(draw);
  observer.observe(frame);
  return {
    root,
    update(state, component) {
      last = component && lastPasses(component.planned ? component.events ?? [] : state.events, component.id);
      frame.hidden = !last;
      empty.hidden = !!last;
      const text = last ? totals(say, last, component.planned ? 'timeline.planned' : 'timeline.totals') : '';
      setText(summary, text);
      setAttribute(canvas, 'aria-label', `${title}: ${component?.component ?? ''} ${text}`);
      draw();
    },
    close: () => observer.disconnect(),
  };
}

function totals(say, { events, start_ns, end_ns }, key) {
  const sum = (kind) => events.filter((event) => event[0] === kind).reduce((total, event) => total + event[4] - event[3], 0);
  return say(key, { span: duration(end_ns - start_ns), copy: duration(sum('copy')), stall: duration(sum('stall')) });
}

/** Draws `passes` ({events, start_ns, end_ns}) over the full width of the canvas, in device pixels. */
function paint(canvas, passes, style) {
  const width = canvas.clientWidth;
  if (!width) return;
  const scale = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(HEIGHT * scale);
  const context = canvas.getContext('2d');
  context.scale(scale, scale);
  const span = Math.max(1, passes.end_ns - passes.start_ns);
  const x = (time) => ((time - passes.start_ns) / span) * width;
  const colour = (name) => style.getPropertyValue(`--lwo-${name}`).trim();
  context.fillStyle = colour('surface');
  context.fillRect(0, 0, width, LANE);
  context.fillRect(0, LANE + GAP, width, LANE);
  for (const [kind, name] of [['copy', 'flight'], ['visit', 'use'], ['stall', 'stall']]) {
    context.fillStyle = colour(name);
    const top = kind === 'copy' ? 0 : LANE + GAP;
    for (const [, , , start, end] of passes.events.filter((event) => event[0] === kind)) {
      const left = Math.max(0, x(start));
      const gap = kind === 'stall' ? 0 : Math.min(1, (x(end) - left) / 4); // a visible gap between neighbours
      context.fillRect(left, top, Math.max(0.75, x(end) - left - gap), LANE);
    }
  }
  context.fillStyle = colour('muted');
  context.font = `11px ${style.fontFamily}`;
  axis(context, span, width);
}

/** The time between two ticks, in nanoseconds: 1, 2 or 5 times a power of ten, and at least 100 pixels. */
export function tickStep(span_ns, width) {
  const least = (span_ns * 100) / Math.max(1, width);
  const power = 10 ** Math.floor(Math.log10(least));
  return [1, 2, 5, 10].map((factor) => factor * power).find((step) => step >= least);
}

function axis(context, span, width) {
  const step = tickStep(span, width);
  context.textBaseline = 'bottom';
  for (let time = 0; time < span; time += step) {
    const left = (time / span) * width;
    const text = duration(time);
    if (left + context.measureText(text).width + 4 > width) break;
    context.fillRect(left, 2 * LANE + GAP, 1, 4);
    context.fillText(time ? text : '0', left + (time ? 3 : 0), HEIGHT);
  }
}
