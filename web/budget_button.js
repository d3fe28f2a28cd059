// The button that sets the smallest sufficient budget, shown when the server refuses a budget as too small.
import { button, setText } from './dom.js';
import { changed } from './graph_options.js';
import { widgetOf } from './prompt.js';

/**
 * Where `budget` (docs/formats.md) can be set: {widgets: [{node, widget}]}, {options: component, or all} for the options of the
 * graph, also where a setting is too small, for that holds for every workflow; or null.
 */
export function placeOf(budget, active) {
  if (!budget?.smallest_gb) return null;
  if (['graph', 'settings'].includes(budget.source)) return { options: budget.component };
  const widgets = budget.widgets.map(({ node, widget }) => widgetOf(active, node, widget));
  return widgets.length && widgets.every(Boolean) ? { widgets } : null;
}

/** The button, hidden if there is nothing to set; `update(budget)` takes the `budget` of the server's last answer, or null. */
export function budgetButton(say, contact) {
  let budget = null;
  const set = () => {
    const place = placeOf(budget, contact.activeNodes());
    if (place?.widgets) contact.setWidgets(place.widgets, budget.smallest_gb);
    else if (place) contact.writeGraphOptions(changed(contact.readGraphOptions(), place.options, budget.setting, budget.smallest_gb));
    contact.graphChanged();
  };
  const root = button('', { class: 'lwo-primary', hidden: true, onclick: set });
  return {
    root,
    update(next) {
      budget = next;
      const place = placeOf(budget, contact.activeNodes());
      root.hidden = !place;
      if (!place) return;
      setText(root, say('empty.set', { size: `${budget.smallest_gb.toFixed(2)} GB` }));
      root.title = tooltip(say, budget, place);
    },
  };
}

function tooltip(say, { component, source }, { widgets }) {
  if (!widgets) return say(source === 'settings' ? 'empty.set_instead' : 'empty.set_graph', { component });
  const distinct = (names) => [...new Set(names)].join(', ');
  const node = distinct(widgets.map((entry) => entry.node.title ?? entry.node.type));
  return say('empty.set_widget', { widget: distinct(widgets.map(({ widget }) => widget.label || widget.name)), node });
}
