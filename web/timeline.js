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
  const canvas = element('canvas', { class: 'lwo-canvas', role: 'img' });
  const summary = element('span', { class: 'lwo-summary' });
  const keys = ['copy', 'visit', 'stall'].map((kind) => legendKey(`lwo-${kind}`, say(`timeline.${kind}`)));
  const empty = element('p', { class: 'lwo-quiet', text: say('timeline.empty') });
  const lanes = element('div', { class: 'lwo-lanes', 'aria-hidden': 'true' }, element('span', { text: say('timeline.copy') }), element('span', { text: say('timeline.visit') }));
  const frame = element('div', { class: 'lwo-timeline-frame' }, lanes, canvas);
  const root = element(
    'section',
    { class: 'lwo-timeline', 'aria-label': say('timeline.title') },
    element('div', { class: 'lwo-section-head' }, element('h3', { text: say('timeline.title') }), element('div', { class: 'lwo-keys' }, ...keys), summary),
    frame,
    empty,
  );
  let last = null;
  const draw = () => last && paint(canvas, last, colours(root));
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
      setAttribute(canvas, 'aria-label', `${say('timeline.title')}: ${component?.component ?? ''} ${text}`);
      draw();
    },
    close: () => observer.disconnect(),
  };
}

function totals(say, { events, start_ns, end_ns }, key) {
  const sum = (kind) => events.filter((event) => event[0] === kind).reduce((total, event) => total + event[4] - event[3], 0);
  return say(key, { span: duration(end_ns - start_ns), copy: duration(sum('copy')), stall: duration(sum('stall')) });
}

function colours(root) {
  const style = getComputedStyle(root);
  const get = (name) => style.getPropertyValue(name).trim();
  return { copy: get('--lwo-flight'), visit: get('--lwo-use'), stall: get('--lwo-stall'), lane: get('--lwo-surface'), text: get('--lwo-muted'), font: style.fontFamily };
}

/** Draws `passes` ({events, start_ns, end_ns}) over the full width of the canvas, in device pixels. */
function paint(canvas, passes, colour) {
  const width = canvas.clientWidth;
  if (!width) return;
  const scale = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(HEIGHT * scale);
  const context = canvas.getContext('2d');
  context.scale(scale, scale);
  const span = Math.max(1, passes.end_ns - passes.start_ns);
  const x = (time) => ((time - passes.start_ns) / span) * width;
  context.fillStyle = colour.lane;
  context.fillRect(0, 0, width, LANE);
  context.fillRect(0, LANE + GAP, width, LANE);
  for (const kind of ['copy', 'visit', 'stall']) {
    context.fillStyle = colour[kind];
    const top = kind === 'copy' ? 0 : LANE + GAP;
    for (const [name, , , start, end] of passes.events) {
      if (name !== kind) continue;
      const left = Math.max(0, x(start));
      const gap = kind === 'stall' ? 0 : Math.min(1, (x(end) - left) / 4); // a visible gap between neighbours
      context.fillRect(left, top, Math.max(0.75, x(end) - left - gap), LANE);
    }
  }
  axis(context, span, width, colour);
}

/** The time between two ticks, in nanoseconds: 1, 2 or 5 times a power of ten, and at least 100 pixels. */
export function tickStep(span_ns, width) {
  const least = (span_ns * 100) / Math.max(1, width);
  const power = 10 ** Math.floor(Math.log10(least));
  return [1, 2, 5, 10].map((factor) => factor * power).find((step) => step >= least);
}

function axis(context, span, width, colour) {
  const step = tickStep(span, width);
  context.fillStyle = colour.text;
  context.font = `11px ${colour.font}`;
  context.textBaseline = 'bottom';
  for (let time = 0; time < span; time += step) {
    const left = (time / span) * width;
    const text = duration(time);
    if (left + context.measureText(text).width + 4 > width) break;
    context.fillRect(left, 2 * LANE + GAP, 1, 4);
    context.fillText(time ? text : '0', left + (time ? 3 : 0), HEIGHT);
  }
}
