// Five numbers about one component; the plan's prediction stands in for a number that has not been measured yet.
import { element, setAttribute, setText } from './dom.js';
import { UNKNOWN, bytes, duration, percent, rate } from './format.js';

const SHOWN = {
  stall: { value: (numbers) => percent(numbers.stall_pct), planned: (plan) => percent(plan.pass_ns ? (100 * plan.stall_ns) / plan.pass_ns : 0), bad: (numbers) => numbers.stall_pct > 25 },
  moved: { value: (numbers) => bytes(numbers.bytes_per_pass), planned: (plan) => bytes(plan.bytes_per_pass) },
  speed: { value: (numbers) => rate(numbers.copy_bytes_per_s) },
  hits: { value: (numbers) => percent(numbers.hit_rate === null ? null : 100 * numbers.hit_rate) },
  headroom: { value: (numbers) => bytes(numbers.headroom_bytes) },
};

const streams = (component) => !component || component.plan?.layers.some((layer) => layer.placement === 'streamed');

export function numberTiles(say) {
  const caption = element('h3');
  const tiles = Object.entries(SHOWN).map(([name, shown]) => {
    const value = element('b', { class: 'lwo-number' });
    const note = element('span', { class: 'lwo-note' });
    const tile = element('div', { class: 'lwo-tile', title: say(`number.${name}.tip`) }, element('span', { class: 'lwo-label', text: say(`number.${name}`) }), value, note);
    return { shown, tile, value, note };
  });
  const root = element('section', { class: 'lwo-numbers' }, caption, element('div', { class: 'lwo-tiles' }, ...tiles.map(({ tile }) => tile)));
  return {
    root,
    update(component) {
      const ahead = component?.planned && say('number.ahead', { pass: duration(component.plan.predicted.pass_ns) });
      setText(caption, component ? [component.component, component.model, ahead].filter(Boolean).join(' · ') : '');
      setAttribute(root, 'aria-label', say('number.title', { component: component?.component ?? '' }));
      const numbers = component?.numbers ?? {};
      for (const { shown, tile, value, note } of tiles) {
        const text = component ? shown.value({ stall_pct: null, hit_rate: null, ...numbers }) : UNKNOWN;
        const planned = text === UNKNOWN && component?.plan?.predicted && shown.planned?.(component.plan.predicted);
        setText(value, planned || text);
        setText(note, planned ? say('number.planned') : text !== UNKNOWN ? '' : say(streams(component) ? 'number.unmeasured' : 'number.nothing'));
        tile.classList.toggle('lwo-bad', !!shown.bad?.(numbers));
      }
    },
  };
}
