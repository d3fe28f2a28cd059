// Helpers that create and update elements. Text is never parsed as HTML. Knows nothing about the pack.

/** Creates an element. `properties`: `text`, `value`, `on…` listeners; the rest are attributes, none for null and false. */
export function element(tag, properties = {}, ...children) {
  const created = document.createElement(tag);
  created.append(...children.filter((child) => child !== null)); // first, for the value of a list is that of a child
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === 'text') created.textContent = value;
    else if (name === 'value') created.value = value;
    else if (name.startsWith('on')) created.addEventListener(name.slice(2), value);
    else created.setAttribute(name, value === true ? '' : value);
  }
  return created;
}

/** An entry of a legend: a swatch of the class `swatch`, then `content`. */
export const legendKey = (swatch, ...content) => element('span', { class: 'lwo-key' }, element('i', { class: `lwo-swatch ${swatch}` }), ...content);

/** A button. `properties`: as in `element`; a `class` stands beside the one of all buttons. */
export const button = (text, { class: extra = '', ...properties }) =>
  element('button', { class: `lwo-button ${extra}`, type: 'button', text, ...properties });

// These write to the page only if the value differs: live updates call them for every element.
export function setText(target, text) {
  if (target.textContent !== text) target.textContent = text;
}

export function setAttribute(target, name, value) {
  if (target.getAttribute(name) !== value) target.setAttribute(name, value);
}

/**
 * `show(entries)` fills `parent` with the root of a part {root, update} for each [key, ...data], and calls `update(...data)`.
 * `make(...data)` makes a part; while its key is shown, it stays.
 */
export function keptParts(parent, make) {
  let parts = new Map();
  return (entries) => {
    const next = new Map(entries.map(([key, ...data]) => [key, parts.get(key) ?? make(...data)]));
    for (const [key, { root }] of parts) if (!next.has(key)) root.remove();
    parts = next;
    entries.forEach(([key, ...data], index) => {
      const { root, update } = parts.get(key);
      update(...data);
      if (parent.children[index] !== root) parent.insertBefore(root, parent.children[index] ?? null);
    });
  };
}

/** Arrow keys, Home and End move the focus among `items()`, which are one tab stop; then `moved(item)` is called. */
export function rovingFocus(container, items, moved = () => {}) {
  container.addEventListener('keydown', (event) => {
    const all = items();
    const now = all.indexOf(document.activeElement);
    const steps = { ArrowRight: now + 1, ArrowDown: now + 1, ArrowLeft: now - 1, ArrowUp: now - 1, Home: 0, End: all.length - 1 };
    if (now < 0 || !(event.key in steps)) return;
    event.preventDefault();
    event.stopPropagation(); // the app's canvas listens to arrow keys as well
    const next = all[Math.min(all.length - 1, Math.max(0, steps[event.key]))];
    for (const item of all) item.tabIndex = item === next ? 0 : -1;
    next.focus();
    moved(next);
  });
}
