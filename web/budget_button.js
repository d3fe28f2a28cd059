// The button that sets a budget which is enough, where the server says that the one that was asked for is too small.
import { element, setText } from './dom.js';
import { changed } from './graph_options.js';
import { widgetOf } from './prompt.js';

/**
 * Where the budget of a document with `budget` (docs/formats.md) can be set: {widgets: [{node, widget}]}, {options: component}
 * for the options of the graph, or null. What the user's settings say is not changed, for it is about every workflow: the
 * graph's options are stronger.
 */
export function placeOf(budget, active) {
  if (!budget?.smallest_gb) return null;
  if (['graph', 'settings'].includes(budget.source)) return { options: budget.component };
  const widgets = budget.widgets.map(({ node, widget }) => widgetOf(active, node, widget));
  return widgets.length && widgets.every(Boolean) ? { widgets } : null;
}

/** The button, hidden where there is nothing to set; `update(budget)` with what the server said last, or null. */
export function budgetButton(say, contact) {
  let budget = null;
  const set = () => {
    const place = placeOf(budget, contact.activeNodes());
    if (place?.widgets) contact.setWidgets(place.widgets, budget.smallest_gb);
    else if (place) contact.writeGraphOptions(changed(contact.readGraphOptions(), place.options, 'budget_gb', budget.smallest_gb));
    contact.graphChanged();
  };
  const root = element('button', { class: 'lwo-button lwo-primary', type: 'button', hidden: true, onclick: set });
  return {
    root,
    update(given) {
      budget = given;
      const place = budget && placeOf(budget, contact.activeNodes());
      root.hidden = !place;
      if (!place) return;
      setText(root, say('empty.set', { size: `${budget.smallest_gb.toFixed(2)} GB` }));
      root.title = whatItSets(say, budget, place);
    },
  };
}

function whatItSets(say, { component, source }, { widgets }) {
  if (!widgets) return say(source === 'settings' ? 'empty.set_instead' : 'empty.set_graph', { component });
  const names = (list) => [...new Set(list)].join(', ');
  const node = names(widgets.map((one) => one.node.title ?? one.node.type));
  return say('empty.set_widget', { widget: names(widgets.map((one) => one.widget.label || one.widget.name)), node });
}
